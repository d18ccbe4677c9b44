"""Observation blocks on the wire: whatever is in a column, what is read is what was written, bit by bit."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from schemas.blocks import DTYPES, ObservationBlock, decode_block, encode_block
from schemas.errors import BadMessage

#: Below and above from where on columns are made narrower.
SIZES = st.sampled_from([1, 2, 63, 64, 65, 200])
#: How a column's numbers are drawn: all the same, near each other, any.
SPREADS = st.sampled_from([0, 1, 100, 40_000, 2**62])
REALS = np.array([0.0, -0.0, np.nan, 3.25, -1e300, 5e-324, np.inf])


def _block(rows: int, width: int, draw: Any) -> ObservationBlock:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        shape = {"features": (rows, width), "segments": (rows, 2)}.get(name, (rows,))
        if np.dtype(dtype).kind == "f":
            columns[name] = rng.choice(REALS[: draw(st.integers(1, len(REALS)))], shape).astype(dtype)
        else:
            limits = np.iinfo(dtype)
            spread = draw(SPREADS)
            low = max(limits.min, draw(st.sampled_from([limits.min, -5, 0, 7])))
            columns[name] = rng.integers(
                low, min(limits.max, low + spread), shape, np.dtype(dtype), endpoint=True
            )
    columns["loss"] = np.empty(0)
    if draw(st.booleans()):
        columns["features"] = np.asfortranarray(columns["features"])
    return ObservationBlock("predictions", "m", ("1",), "h", **columns)


def _same(a: ObservationBlock, b: ObservationBlock) -> None:
    for field in fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name in DTYPES:
            assert left.dtype == right.dtype == np.dtype(DTYPES[field.name])
            assert left.shape == right.shape
            assert left.tobytes() == right.tobytes(), field.name
        else:
            assert left == right


@given(SIZES, st.integers(1, 4), st.data())
def test_what_is_read_is_what_was_written(rows: int, width: int, data: st.DataObject) -> None:
    """Constants, small ranges, the greatest ranges, zeros of both signs, in either layout of the features."""
    block = _block(rows, width, data.draw)
    found = decode_block(encode_block(block))
    _same(found, block)
    assert found.features.T.flags.c_contiguous


@given(SIZES, st.data())
def test_rows_taken_are_the_same_in_either_layout(rows: int, data: st.DataObject) -> None:
    """By positions, by a mask and by a slice."""
    block = _block(rows, 3, data.draw)
    mask = np.arange(rows) % 3 == 0
    for index in (np.flatnonzero(mask)[::-1], mask, slice(1, rows)):
        assert_array_equal(block.take(index).features, block.features[index])
        assert_array_equal(decode_block(encode_block(block)).take(index).features, block.features[index])


def test_a_block_of_many_rows_takes_little_beside_its_numbers() -> None:
    """What all rows have in common is sent once."""
    rows = 1_000
    columns: dict[str, Any] = {name: np.full(rows, 7, dtype) for name, dtype in DTYPES.items()}
    columns |= {
        "features": np.random.default_rng(0).normal(size=(rows, 2)),
        "segments": np.zeros((rows, 1), np.int32),
    }
    columns["event_time_ms"] = 10**12 + np.arange(rows)
    block = ObservationBlock("predictions", "m", ("1",), "h", **columns)
    assert len(encode_block(block)) < rows * (2 * 8 + 8 + 4 + 2 + 3) + 600


def test_blocks_of_schema_3_are_read() -> None:
    """Features row by row, and every column as it is."""
    rows = 3
    columns: dict[str, Any] = {name: np.arange(rows).astype(dtype) for name, dtype in DTYPES.items()}
    columns |= {"features": np.arange(6.0).reshape(3, 2), "segments": np.arange(3, dtype="<i4").reshape(3, 1)}
    block = ObservationBlock("outcomes", "m", ("1", "2", "3"), "h", **columns)
    head = {
        "schema": 3,
        "kind": "outcomes",
        "model": "m",
        "versions": ["1", "2", "3"],
        "contract_hash": "h",
        "rows": 3,
    }
    wire = (
        head | {"width": 2, "segment_width": 1} | {name: column.tobytes() for name, column in columns.items()}
    )
    _same(decode_block(msgspec.msgpack.encode(wire)), block)


@pytest.mark.parametrize(
    "damage",
    [{"rows": 10**15}, {"offset": [0, "<q", b"1234567"]}, {"offset": [0, "nonsense", b"1234567"]}, {"row": [0, "|O", b"12345678"]},
     {"role": 5}, {"score": ["x", "<f8", b""]}, {"features": b"123"}],
)  # fmt: skip
def test_damage_is_a_bad_message(damage: dict[str, Any]) -> None:
    """Never an error of another kind, nor a column as long as somebody says."""
    columns: dict[str, Any] = {name: np.full(70, 1, dtype) for name, dtype in DTYPES.items()}
    columns |= {"features": np.ones((70, 2)), "segments": np.zeros((70, 1), np.int32)}
    wire = msgspec.msgpack.decode(encode_block(ObservationBlock("outcomes", "m", ("1",), "h", **columns)))
    with pytest.raises(BadMessage):
        decode_block(msgspec.msgpack.encode(wire | damage))
