"""Blocks of columns say what the rows are made of, to this reader and to the ClickHouse client's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from clickhouse_connect.driver.ctypes import RespBuffCls
from clickhouse_connect.driver.query import QueryContext
from clickhouse_connect.driver.transform import NativeTransform

from schemas.native import (
    NATIVE,
    coded,
    coded_maps,
    maps,
    native_block,
    nullable,
    numbers,
    read_native,
    same_coded,
    same_text,
    texts,
)
from schemas.row_binary import RowBlock
from schemas.spans import Spans

LONG = "ü" * 200
BOTH = "Map(LowCardinality(String), LowCardinality(String))"


class _Source:
    """A response as the client has it: one chunk."""

    exception_tag = None

    def __init__(self, data: bytes) -> None:
        self.gen = iter([data])

    def close(self) -> None:
        """Nothing to let go."""


def _block(rows: int) -> RowBlock:
    """Every kind of column; of the first so many of three rows."""
    cut = slice(0, rows)
    there = np.array([[True, False], [True, True], [False, False]])
    values = Spans.of([b"a", None, b"", LONG.encode(), None, None])
    return native_block(rows, [
        ("n", "UInt16", numbers(np.array([1, 2, 65_535])[cut], "UInt16")),
        ("t", "DateTime64(3)", numbers(np.array([0, 1_500, -1])[cut], "DateTime64(3)")),
        ("x", "Nullable(Float64)", nullable(np.array([0.5, math.nan, math.inf])[cut], np.array([True, False, True])[cut])),
        ("y", "Nullable(Float64)", nullable(np.array([0.5, 2.0, math.inf])[cut], None)),
        ("s", "String", texts(Spans.of([b"", LONG.encode(), None])[cut])),
        ("c", "String", same_text(LONG, rows)),
        ("m", "LowCardinality(String)", coded(["", "b"], np.array([1, 0, 1])[cut])),
        ("a", "Map(LowCardinality(String), Float64)", maps(["p", "q"], np.arange(6.0).reshape(3, 2)[cut], there[cut])),
        ("b", "Map(LowCardinality(String), Float64)", maps(["p", LONG], np.arange(6.0).reshape(3, 2)[cut], None)),
        ("d", "Map(LowCardinality(String), String)", maps(["p", "q"], values[0 : 2 * rows], there[cut])),
        ("e", "Map(LowCardinality(String), String)", maps([], np.empty((rows, 0)), None)),
        ("f", BOTH, coded_maps(["p", "q"], ["x", "", LONG], np.array([[0, 1], [2, 0], [1, 1]])[cut])),
        ("g", BOTH, coded_maps([], [], np.empty((rows, 0), np.int64))),
        ("k", "LowCardinality(String)", same_coded(LONG, rows)),
    ])  # fmt: skip


ROWS: list[tuple[Any, ...]] = [
    (1, 0, 0.5, 0.5, "", LONG, "b", {"p": 0.0}, {"p": 0.0, LONG: 1.0}, {"p": "a"}, {}, {"p": "x", "q": ""}, {}, LONG),
    (2, 1_500, None, 2.0, LONG, LONG, "", {"p": 2.0, "q": 3.0}, {"p": 2.0, LONG: 3.0}, {"p": "", "q": LONG}, {}, {"p": LONG, "q": "x"}, {}, LONG),
    (65_535, -1, math.inf, math.inf, "", LONG, "b", {}, {"p": 4.0, LONG: 5.0}, {}, {}, {"p": "", "q": ""}, {}, LONG),
]  # fmt: skip


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_what_was_written_is_read_back(rows: int) -> None:
    """Of blocks that stand one behind the other, all of it."""
    assert read_native(_block(rows)) == ROWS[:rows]
    both = b"".join([_block(rows).whole(), _block(2).whole()])
    assert read_native(RowBlock(rows + 2, (memoryview(both),), NATIVE)) == ROWS[:rows] + ROWS[:2]


def test_the_client_reads_the_same() -> None:
    """It had no part in writing it; times apart, which it makes objects of."""
    result = NativeTransform.parse_response(RespBuffCls(_Source(bytes(_block(3).whole()))), QueryContext())
    found = [tuple(row) for row in result.result_set]
    assert [row[:1] + row[2:] for row in found] == [row[:1] + row[2:] for row in ROWS]


def test_many_distinct_texts_have_wider_places() -> None:
    """More than a byte counts."""
    names = [f"v{at}" for at in range(300)]
    block = native_block(300, [("m", "LowCardinality(String)", coded(names, np.arange(300)[::-1]))])
    assert read_native(block) == [(name,) for name in reversed(names)]


def test_what_is_cut_off_or_miscounted_is_refused() -> None:
    """Not read as something else."""
    block = _block(2)
    with pytest.raises(ValueError, match="cut off"):
        read_native(block._replace(parts=(block.whole()[:-3],)))
    with pytest.raises(ValueError, match="2 rows where 3"):
        read_native(block._replace(rows=3))
