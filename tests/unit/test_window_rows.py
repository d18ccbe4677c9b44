"""Rows of windows as bytes: what they say is what the cells have counted, worked out here the slow way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.rows import TABLES
from streams.core import window_rows
from streams.core.aggregates import Cell
from streams.core.join_state import WindowKey
from streams.core.layouts import HEAD, INVALID, LOWER, MISSING, OTHER, ROWS, UPPER, Layout, Part
from streams.core.tally import FACTS, FACTS_WIDTH
from streams.core.window_rows import Told, counts_rows, features_rows, row_key
from streams.core.window_state import Group
from tests.support_examples import examples
from tests.support_upserts import spread

#: A category may be called as what is none of them, and then there are two of its name.
PARTS = (
    Part("x", (0.5, 1.5)),
    Part("no borders", ()),
    Part("c", (), ("b", OTHER, "a", OTHER)),
    Part("größe", (), ("ä", OTHER)),
)
COUNTS = st.integers(0, 2**40)


def told(start_ms: int, layout: Layout, numbers: list[int], latencies: dict[int, int]) -> Told:
    """A cell of a window that has counted these numbers, one behind the other, as often as it takes."""
    group, key = Group(WindowKey("modèle", start_ms, 60_000), span_ms=60_000), ("1", "stable", "s=ß")
    cell = group.cell(key)
    given = itertools.cycle(numbers)
    cell.counts = np.array([next(given) for _ in range(FACTS_WIDTH)], np.int64)
    cell.latencies, cell.layout, cell.sums = latencies, layout, layout.empty.copy()
    for start, end in itertools.pairwise(layout.starts.tolist()):
        for place in (ROWS, MISSING, INVALID, UPPER, LOWER, *range(HEAD, end - start)):
            cell.sums[start + place] = next(given)
    return Told(group, cell, row_key(group.key, key, 3))


@examples(15)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**40),
            st.lists(COUNTS | st.just(0), min_size=1, max_size=9),
            st.dictionaries(st.integers(-5, 1_400), st.integers(1, 2**40), max_size=4),
            st.integers(1, 4),
        ),
        min_size=1,
        max_size=9,
    ),
    st.sampled_from([1, 3, 8_192]),
)
def test_rows_say_what_was_counted(
    cells: list[tuple[int, list[int], dict[int, int], int]], at_once: int
) -> None:
    """Of cells of several layouts, in one piece or in several."""
    layouts = {n: Layout(PARTS[:n]) for n in range(1, 5)}
    of = [told(start, layouts[width], numbers, latencies) for start, numbers, latencies, width in cells]
    before, window_rows.ROWS_AT_ONCE = window_rows.ROWS_AT_ONCE, at_once
    try:
        counted, featured = list(counts_rows(of, 7)), list(features_rows(of, 7))
    finally:
        window_rows.ROWS_AT_ONCE = before
    names = TABLES["window_counts"].names
    for one, row in zip(of, spread(counted), strict=True):
        said = dict(zip(names, row.row, strict=True))
        assert [said[name] for name in FACTS] == one.cell.counts[: len(FACTS)].tolist()
        assert said["score_histogram"] == one.cell.counts[len(FACTS) :].tolist()
        assert said["latency_buckets"] == one.cell.latencies
        assert (round(said["window_start"].timestamp() * 1000), said["version"]) == (
            one.group.key.start_ms,
            7,
        )
    expected = [line for one in of for line in lines(one.cell, one.group.key.start_ms)]
    names = TABLES["window_features"].names
    found = []
    for row in spread(featured):
        said = dict(zip(names, row.row, strict=True))
        keys = ("feature", "rows", "missing", "invalid", "sum_micro", "edges", "histogram", "categories")
        found.append((round(said["window_start"].timestamp() * 1000), *(said[name] for name in keys)))
    assert sorted(map(repr, found)) == sorted(map(repr, expected))


def lines(cell: Cell, start_ms: int) -> list[tuple[object, ...]]:
    """A cell's features, each by itself."""
    assert cell.layout is not None
    found: list[tuple[object, ...]] = []
    for place, part in enumerate(cell.layout.parts):
        sums = cell.layout.of(cell.sums, place).tolist()
        total = max(-(2**63) + 1, min((sums[UPPER] << 32) + sums[LOWER], 2**63 - 1))
        counts, names = sums[HEAD:], dict[str, int]()
        for name, count in zip(part.categories, counts, strict=False):
            if count:
                names[name] = names.get(name, 0) + count
        shown = ([], [0], dict(sorted(names.items()))) if part.categories else ([*part.edges], counts, {})
        found.append((start_ms, part.name, sums[ROWS], sums[MISSING], sums[INVALID], total, *shown))
    return found


@pytest.mark.parametrize(
    ("upper", "lower", "total"),
    [(0, 5, 5), (-1, 2**32 - 3, -3), (2**31, 0, 2**63 - 1), (-(2**31), 0, -(2**63) + 1), (-(2**40), 9, -(2**63) + 1),
     (2**31 - 1, 2**32, 2**63 - 1), (-2, 2**33 + 1, 1)],
)  # fmt: skip
def test_sums_of_two_halves_are_cut_to_what_64_bits_hold(upper: int, lower: int, total: int) -> None:
    """As the warehouse's column does not hold more."""
    one = told(0, Layout(PARTS[:1]), [1], {})
    one.cell.sums[[UPPER, LOWER]] = upper, lower
    (row,) = spread(features_rows([one], 1))
    assert row.row[TABLES["window_features"].names.index("sum_micro")] == total
