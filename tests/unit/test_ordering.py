"""Rows are read in one order, however they came."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.blocks import DTYPES, ObservationBlock, decode_block, encode_block
from streams.core.ordering import in_order

Row = tuple[int, int, str, int, int]
few = st.integers(0, 3)
rows = st.lists(
    st.tuples(few, few, st.sampled_from(["v1", "v10", "v2"]), st.integers(0, 2), st.sampled_from([-1, 1]))
)


def _block(some: list[Row], versions: tuple[str, ...]) -> ObservationBlock:
    columns: dict[str, Any] = {name: np.zeros(len(some), dtype) for name, dtype in DTYPES.items()}
    columns |= {
        "features": np.empty((0, 0)),
        "segments": np.zeros((len(some), 0), np.int32),
        "check": np.empty(0, np.uint32),
    }
    columns["label_time_ms"] = np.array([row[0] for row in some], np.int64)
    columns["identity"] = np.array([row[1] for row in some], np.uint64)
    columns["version"] = np.array([versions.index(row[2]) for row in some], np.int32)
    columns["role"] = np.array([row[3] for row in some], np.int8)
    columns["sign"] = np.array([row[4] for row in some], np.int8)
    return ObservationBlock("outcomes", "m", versions, "h", **columns)


def _rows(block: ObservationBlock) -> list[Row]:
    names = [block.versions[code] for code in block.version.tolist()]
    columns = (block.label_time_ms, block.identity, names, block.role, block.sign)
    return [(int(t), int(i), v, int(r), int(s)) for t, i, v, r, s in zip(*columns, strict=True)]


@settings(max_examples=150, deadline=None)
@given(rows, st.permutations(["v1", "v10", "v2"]), st.integers(1, 40), st.booleans())
def test_rows_are_in_the_order_of_their_keys(
    some: list[Row], versions: list[str], times: int, sent: bool
) -> None:
    """By time, identity, version's name, role and sign: few rows of a time, or many; as they were made, or as they are read."""
    block = _block(some * times, tuple(versions))
    found = in_order(decode_block(encode_block(block)) if sent else block)
    assert _rows(found) == sorted(some * times)
