"""From columns to sums: counts a batch of rows, or of outcomes, into the cells they belong to, without a Python loop
over rows.

Everything that is summed is an integer, so no order and no cut of the input can change a bit of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from schemas.contracts import ModelContract
from schemas.edges import Edges
from schemas.events import STATUSES
from schemas.rows import CALIBRATION_BINS, OUTCOME_BINS
from streams.core import tally
from streams.core.aggregates import Cell, Outcomes, latency_bucket
from streams.core.arriving import paired
from streams.core.distinct import distinct, few
from streams.core.layouts import HEAD, INVALID, LEAST, LOWER, MISSING, MOST, ROWS, UPPER, Arrays, Plan
from streams.core.maturity import delay_bucket
from streams.core.members import Members
from streams.core.outcomes import OutcomeRows
from streams.core.together import Together

#: Of so many rows of a model all features are counted in one call; of more, one after the other along memory.
FEW_ROWS = 512
_FIRST_CELL = np.zeros(1, np.int64)
_ERROR, _FALLBACK = STATUSES.index("error"), STATUSES.index("fallback")
Ints = NDArray[np.int64]
#: Of latencies in whole microseconds, up to a twentieth of a second.
_LATENCY_BUCKETS = latency_bucket(np.arange(50_000, dtype=np.float64)).astype(np.int16)


def count_predictions(
    rows: Together, members: Members, late: NDArray[np.bool_], cells_of: Ints, cells: Sequence[Cell]
) -> None:
    """Add what is counted of each prediction, whatever its features, summed once by combination.

    ``cells_of (sets, m)``: the cells that each combination adds to, -1 for none. ``late (n,)``: which came late; empty: none.
    """
    thresholds = np.array([part.contract.threshold for part in rows.parts])[members.model]
    table = np.zeros((len(members), tally.FACTS_WIDTH), np.int64)
    bucket = np.empty(len(rows), np.int64)
    tally.facts(
        members.of_row, late, rows.score, rows.latency_ms, rows.status, rows.payload_bytes, _ERROR, _FALLBACK,
        thresholds, _LATENCY_BUCKETS, bucket, table,
    )  # fmt: skip
    if len(long := np.flatnonzero(bucket < 0)):
        latency_us = np.rint(np.minimum(rows.latency_ms[long] * 1000.0, tally.LATENCY_US_MAX))
        bucket[long] = latency_bucket(latency_us)
    counts = np.concatenate([cell.counts for cell in cells]).reshape(len(cells), -1)
    tally.summed(cells_of, table, counts)
    for cell, own in zip(cells, counts, strict=True):
        cell.counts = own.copy()
    _count_latencies(members.of_row, bucket, cells_of, cells)


def _count_latencies(member: Ints, bucket: Ints, cells_of: Ints, cells: Sequence[Cell]) -> None:
    first, members = int(bucket.min()), int(cells_of.shape[1])
    width = int(bucket.max()) - first + 1
    if few(members * width, len(member)):
        pairs = np.zeros((members, width), np.int64)
        paired(member, bucket, first, pairs)
        member, bucket = np.nonzero(pairs)
        times = pairs[member, bucket]
    else:
        code, times = _counted(member * width + (bucket - first))
        member, bucket = np.divmod(code, width)
    for of in cells_of:
        own = of[member]
        inside = own >= 0
        found, count = _counted((own * width + bucket)[inside], times[inside])
        at, place = np.divmod(found, width)
        for cell, b, n in zip(at.tolist(), (place + first).tolist(), count.tolist(), strict=True):
            held = cells[cell].latencies
            held[b] = held.get(b, 0) + n


def _counted(codes: Ints, times: Ints | None = None) -> tuple[Ints, Ints]:
    """The distinct codes and how often each comes; ``times``: how often each of them counts, in all less than 2**53."""
    found, place = distinct(codes)
    return found, np.bincount(place, times, len(found)).astype(np.int64)


def count_features(
    cells: Sequence[Cell], plans: Sequence[Plan], cell_of: Ints, rows: Together, arrays: Arrays
) -> None:
    """Add the features of row i to ``cells[cell_of[i]]``, which are counted by ``plans``; each has a row, and its plan's layout.

    ``arrays``: of the plans. Models of many rows are counted feature by feature.
    """
    sums = np.concatenate([cell.sums for cell in cells])
    ends = list(itertools.accumulate((plan.layout.size for plan in plans), initial=0))
    starts, few = np.array(ends[:-1], np.int64), cell_of
    bounds = rows.bounds
    for part, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if end - begin > FEW_ROWS:
            few = few.copy() if few is cell_of else few
            few[begin:end] = -1
            own, member = (
                distinct(cell_of[begin:end]) if len(cells) > 1 else (_FIRST_CELL, cell_of[begin:end])
            )
            if len(own) == 1 and _lie_by_column(rows, part, begin, end, plans[own[0]]):
                tally.features_alone(
                    rows.values, rows.values.view(np.int64), int(rows.at[begin]), int(rows.step[part]), end - begin,
                    plans[own[0]].number, ends[own[0]], arrays, np.zeros(tally.REACHED_MAX, np.int64), sums,
                )  # fmt: skip
                continue
            held = [(sums[ends[c] :], plans[c]) for c in own.tolist()]
            _count_many(rows.parts[part].contract, held, member, rows.features(part, begin, end))
    if few is cell_of or (few >= 0).any():
        numbers = np.array([plan.number for plan in plans], np.int64)
        tally.features(
            rows.values, rows.at, rows.step, rows.model, few, numbers, starts, arrays, sums, sums.view(np.float64)
        )  # fmt: skip
    for cell, (begin, end) in zip(cells, itertools.pairwise(ends), strict=True):
        cell.sums = sums[begin:end].copy()


def _lie_by_column(rows: Together, part: int, begin: int, end: int, plan: Plan) -> bool:
    """Whether columns of features lie each in one piece, with few borders."""
    whole = rows.step[part] > 1 and rows.at[end - 1] - rows.at[begin] == end - begin - 1
    return bool(whole) and all(len(edges) <= tally.REACHED_MAX for edges in plan.edges)


_Held = list[tuple[Ints, Plan]]


def _count_many(contract: ModelContract, held: _Held, member: Ints, values: NDArray[np.float64]) -> None:
    """Rows of one model, each of one of the cells ``held``."""
    times = np.bincount(member, minlength=len(held)).tolist()
    for place, feature in enumerate(contract.features):
        blocks = [sums[plan.starts[place] :] for sums, plan in held]
        column = np.ascontiguousarray(values[:, place])
        for block, rows in zip(blocks, times, strict=True):
            block[ROWS] += rows
        if feature.kind == "categorical":
            _count_categories(blocks, [plan.cells[place] for _, plan in held], member, column)
        else:
            low = -np.inf if feature.low is None else feature.low
            high = np.inf if feature.high is None else feature.high
            edges = [plan.edges[place] for _, plan in held]
            _count_numbers(blocks, edges, (low, high), member, column)


def _count_categories(
    blocks: list[Ints], cells: list[list[int]], member: Ints, values: NDArray[np.float64]
) -> None:
    table = np.zeros((len(blocks), len(cells[0]) + 1), np.int64)
    tally.categories(values, member, table)
    for block, of, row in zip(blocks, cells, table, strict=True):
        block[MISSING] += row[-1]
        block[INVALID] += row[-2]
        np.add.at(block[HEAD:], of, row[:-1])


def _count_numbers(
    blocks: list[Ints], borders: list[tuple[float, ...]], between: tuple[float, float], member: Ints,
    values: NDArray[np.float64],
) -> None:  # fmt: skip
    n = len(blocks)
    if n == 1:
        cut, (low, high) = _edges(borders[0]), between
        reached = np.zeros(len(cut.edges), np.int64)
        tally.numbers_alone(values, values.view(np.int64), low, high, *cut.table, reached, blocks[0])
        return
    whole, range_ = np.zeros((n, len(tally.NUMBERS)), np.int64), np.empty((n, 2))
    range_[:] = np.inf, -np.inf
    for edges, cells in _by_edges(borders):
        slot = np.full(n, -1, np.int64)
        slot[cells] = cells
        bins = np.zeros((n, len(edges) + 1), np.int64)
        cut = _edges(edges)
        # Infinite values never come: the decoder has refused them.
        tally.numbers(values, member, slot, between[0], between[1], *cut.table, whole, range_, bins)
        for at in cells:
            block = blocks[at]
            block[[MISSING, INVALID, UPPER, LOWER]] += whole[at]
            block[HEAD : HEAD + len(edges) + 1] += bins[at]
            reals = block[:HEAD].view(np.float64)
            reals[LEAST] = min(reals[LEAST], range_[at, 0])
            reals[MOST] = max(reals[MOST], range_[at, 1])


def _by_edges(borders: list[tuple[float, ...]]) -> list[tuple[tuple[float, ...], list[int]]]:
    """Versions of different references have different edges."""
    if all(one is borders[0] for one in borders):
        return [(borders[0], list(range(len(borders))))]
    found: dict[tuple[float, ...], list[int]] = {}
    for at, one in enumerate(borders):
        found.setdefault(one, []).append(at)
    return list(found.items())


@lru_cache(maxsize=4_096)
def _edges(edges: tuple[float, ...]) -> Edges:
    return Edges(edges)


def _add_buckets(held: dict[int, int], first: int, times: Ints) -> None:
    at = np.flatnonzero(times)
    for bucket, count in zip(at.tolist(), times[at].tolist(), strict=True):
        held[first + bucket] = held.get(first + bucket, 0) + count


def count_outcomes(
    cells: Sequence[Outcomes],
    starts_ms: Ints,
    member: Ints,
    outcomes: OutcomeRows,
    losses_nano: Ints,
    threshold: float,
) -> None:
    """Add row i, at least one, to each of the cells ``cells[member[i, :]]``, whose windows begin at ``starts_ms``; ``member``
    has shape (rows, cells of a row)."""
    n, unset = len(cells), np.iinfo(np.int64)
    bucket = delay_bucket(outcomes.label_time_ms - starts_ms[member[:, 0]])
    first = int(bucket.min())
    whole = np.zeros((n, len(tally.OUTCOMES)), np.int64)
    times = np.empty((n, 2), np.int64)
    times[:] = unset.max, unset.min
    scores = np.zeros((n, 2, OUTCOME_BINS), np.int64)
    calibration = np.zeros((n, 3, CALIBRATION_BINS), np.int64)
    delays = np.zeros((n, 2, int(bucket.max()) - first + 1), np.int64)
    tally.outcomes(
        member, outcomes.score, outcomes.label, outcomes.label_time_ms, outcomes.sign, outcomes.replaces, losses_nano,
        threshold, bucket, first, whole, times, scores, calibration, delays,
    )  # fmt: skip
    for at, kept in enumerate(cells):
        for name, total in zip(tally.OUTCOMES, whole[at].tolist(), strict=True):
            if total:
                setattr(kept, name, getattr(kept, name) + total)
        kept.negative_scores = kept.negative_scores + scores[at, 0]
        kept.positive_scores = kept.positive_scores + scores[at, 1]
        kept.calibration_counts = kept.calibration_counts + calibration[at, 0]
        kept.calibration_score_nano = kept.calibration_score_nano + calibration[at, 1]
        kept.calibration_positives = kept.calibration_positives + calibration[at, 2]
        _add_buckets(kept.negative_delays, first, delays[at, 0])
        _add_buckets(kept.positive_delays, first, delays[at, 1])
        earliest, latest = times[at].tolist()
        kept.first_label_ms = min(kept.first_label_ms or unset.max, earliest)
        kept.last_label_ms = max(kept.last_label_ms, latest)
