"""The compiled loops count what a loop over rows in Python counts, to the last bit."""

from __future__ import annotations

import bisect
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.edges import Edges
from schemas.rows import NANO, PROBABILITY_MIN
from streams.core import tally
from streams.core.layouts import HEAD, INVALID, LEAST, LOWER, MISSING, MOST, UPPER
from tests.support_examples import examples

finite = st.floats(allow_nan=False, allow_infinity=False)
edges = st.one_of(
    st.lists(st.floats(-10, 10), max_size=30),
    st.lists(finite, max_size=6),
    # A long tail: nearly all edges lie in one step.
    st.lists(st.floats(0, 1e-9), min_size=2, max_size=20).map(lambda some: [*some, 1e12]),
).map(lambda some: tuple(sorted(set(some))))


@examples(75)
@given(
    edges,
    st.lists(st.tuples(finite | st.floats(-12, 12) | st.just(math.nan), st.integers(0, 2)), max_size=60),
    st.data(),
)
def test_numbers_are_counted_as_one_by_one(
    borders: tuple[float, ...], rows: list[tuple[float, int]], data: st.DataObject
) -> None:
    """Sums beyond 64 bits, values on an edge, edges in one step; cells of other edges are left alone."""
    if borders and rows:
        at = data.draw(st.integers(0, len(rows) - 1))
        rows[at] = (data.draw(st.sampled_from(borders)), rows[at][1])
    values, member = np.array([value for value, _ in rows]), np.array([cell for _, cell in rows], np.int64)
    cut = Edges(borders)
    whole, bins = np.zeros((3, 4), np.int64), np.zeros((3, len(borders) + 1), np.int64)
    range_ = np.array([[math.inf, -math.inf]] * 3)
    slot = np.array([0, -1, 2])
    tally.numbers(values, member, slot, -5.0, 5.0, *cut.table, whole, range_, bins)
    for cell in range(3):
        own = [value for value, of in rows if of == cell] if slot[cell] >= 0 else []
        known = [value for value in own if not math.isnan(value)]
        missing, invalid, upper, lower = whole[cell].tolist()
        assert missing == len(own) - len(known)
        assert invalid == sum(not -5.0 <= value <= 5.0 for value in known)
        limited = [min(max(value, -tally.VALUE_MAX), tally.VALUE_MAX) for value in known]
        assert (upper << tally.HALF) + lower == sum(round(value * 1e6) for value in limited)
        assert range_[cell].tolist() == [min(known, default=math.inf), max(known, default=-math.inf)]
        places = [bisect.bisect_right(borders, value) for value in known]
        assert bins[cell].tolist() == [places.count(place) for place in range(len(borders) + 1)]
        if slot[cell] >= 0:
            block, column = np.zeros(HEAD + len(borders) + 1, np.int64), np.array(own, np.float64)
            reals = block.view(np.float64)
            reals[[LEAST, MOST]] = math.inf, -math.inf
            reached = np.zeros(len(borders) + 1, np.int64)
            tally.numbers_alone(column, column.view(np.int64), -5.0, 5.0, *cut.table, reached, block)
            assert block[[MISSING, INVALID, UPPER, LOWER]].tolist() == whole[cell].tolist()
            assert reals[[LEAST, MOST]].tolist() == range_[cell].tolist()
            assert block[HEAD:].tolist() == bins[cell].tolist()


@examples(50)
@given(st.lists(st.tuples(st.floats(-0.5, 1.5), st.sampled_from([0.0, 1.0])), max_size=50))
def test_losses_are_those_of_the_c_library(rows: list[tuple[float, float]]) -> None:
    """Compiled or not: a machine that counts again what another one counted comes to the same."""
    score, label = np.array([s for s, _ in rows]), np.array([y for _, y in rows])
    found = np.empty(len(rows), np.int64)
    tally.losses(score, label, found)
    kept = [min(max(s, PROBABILITY_MIN), 1 - PROBABILITY_MIN) for s, _ in rows]
    expected = [-math.log(p) if y else -math.log1p(-p) for p, (_, y) in zip(kept, rows, strict=True)]
    assert found.tolist() == [round(loss * NANO) for loss in expected]


@examples(25)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.sampled_from([-1, 1]), st.booleans(), st.integers(0, 2)),
                min_size=1, max_size=40))  # fmt: skip
def test_outcomes_are_counted_in_each_of_their_cells(rows: list[tuple[float, bool, int, bool, int]]) -> None:
    """What is taken back is subtracted; delays are of first labels only."""
    score, label = np.array([row[0] for row in rows]), np.array([float(row[1]) for row in rows])
    sign, replaces = (
        np.array([row[2] for row in rows]),
        np.array([int(row[3] and row[2] > 0) for row in rows]),
    )
    member = np.array([[row[4], 3] for row in rows])
    times, losses = np.arange(len(rows)) + 1_000, np.arange(len(rows)) * 7
    bucket = np.arange(len(rows)) % 3 + 5
    whole, seen = np.zeros((4, len(tally.OUTCOMES)), np.int64), np.array([[2**62, 0]] * 4)
    scores, calibration = np.zeros((4, 2, 200), np.int64), np.zeros((4, 3, 10), np.int64)
    delays = np.zeros((4, 2, 3), np.int64)
    tally.outcomes(
        member,
        score,
        label,
        times,
        sign,
        replaces,
        losses,
        0.5,
        bucket,
        5,
        whole,
        seen,
        scores,
        calibration,
        delays,
    )
    for cell in range(4):
        own = [at for at in range(len(rows)) if cell in member[at]]
        total = dict(zip(tally.OUTCOMES, whole[cell].tolist(), strict=True))
        assert total["labelled"] == sum(sign[at] for at in own) == scores[cell].sum()
        assert total["revisions"] == sum(replaces[at] for at in own)
        assert total["log_loss_nano"] == sum(sign[at] * losses[at] for at in own)
        brier = {at: round((Fraction(score[at]) - int(label[at])) ** 2 * NANO) for at in own}
        assert total["brier_nano"] == pytest.approx(sum(sign[at] * brier[at] for at in own), abs=len(own))
        said = {at: (score[at] >= 0.5, label[at] == 1.0) for at in own}
        named = ("true_positive", (True, True)), ("false_positive", (True, False)), ("true_negative", (False, False)), \
            ("false_negative", (False, True))  # fmt: skip
        for name, which in named:
            assert total[name] == sum(sign[at] for at in own if said[at] == which)
        assert total["positive_log_loss_nano"] == sum(sign[at] * losses[at] for at in own if label[at])
        assert calibration[cell, 2].sum() == sum(sign[at] for at in own if label[at])
        first = [at for at in own if sign[at] > 0 and not replaces[at]]
        assert delays[cell].sum() == len(first)
        if own:
            assert seen[cell].tolist() == [min(times[own]), max(times[own])]
