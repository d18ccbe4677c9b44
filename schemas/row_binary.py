"""ClickHouse's ``RowBinary``: rows as bytes, one behind the other, and back.

A row is written where it is read, without an object for any of its values (``schemas.scan_log``). The format is that of
ClickHouse's documentation, "RowBinary": numbers little-endian, texts and maps behind their length as a variable-length
number, what is nullable behind a byte that is 1 for null.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, eight, put_eight
from schemas.json_text import Bytes, Whole

_FORMATS = {
    "UInt8": "<B", "UInt16": "<H", "UInt32": "<I", "UInt64": "<Q", "Int8": "<b", "Int16": "<h", "Int32": "<i",
    "Int64": "<q", "Float64": "<d",
}  # fmt: skip


class RowBlock(NamedTuple):
    """``rows`` rows of one table as bytes in one of ClickHouse's formats: this one, or ``schemas.native``. ``parts`` stand one behind
    the other, each where it was made: to put them together would copy all of them."""

    rows: int
    parts: tuple[memoryview, ...]
    format: str = "RowBinary"

    @property
    def nbytes(self) -> int:
        """How many bytes they are."""
        return sum(part.nbytes for part in self.parts)

    @property
    def held(self) -> int:
        """How much memory they take: a part may stand in several places."""
        return sum({id(part.obj): part.nbytes for part in self.parts}.values())

    def whole(self) -> memoryview:
        """The bytes in one piece."""
        return self.parts[0] if len(self.parts) == 1 else memoryview(b"".join(self.parts))


def length_bytes(length: int) -> bytes:
    """A length as it stands in front of a text, an array or a map."""
    found = bytearray()
    while length >= 128:
        found.append(length & 127 | 128)
        length >>= 7
    return bytes([*found, length])


def text_bytes(text: str) -> bytes:
    """A text as it is written."""
    raw = text.encode()
    return length_bytes(len(raw)) + raw


def pack_rows(rows: int, columns: Sequence[NDArray[Any] | bytes]) -> RowBlock:
    """Rows all of one size: of each column its numbers ``(rows,)``, or ``(rows, k)`` of an array behind its length, or the bytes
    that all rows have there."""
    kinds = [
        (f"c{at}", f"V{len(column)}")
        if isinstance(column, bytes)
        else (f"c{at}", column.dtype, column.shape[1:])
        for at, column in enumerate(columns)
    ]
    table = np.empty(rows, np.dtype(kinds))
    for at, column in enumerate(columns):
        table[f"c{at}"] = np.void(column) if isinstance(column, bytes) else column
    return RowBlock(rows, (memoryview(table.tobytes()),))


@compiled
def put_length(to: Bytes, at: int, length: int) -> Whole:
    """Write a length; the place after it. It takes at most ten bytes."""
    while length >= 128:
        to[at] = (length & 127) | 128
        length >>= 7
        at += 1
    to[at] = length
    return at + 1


@compiled
def put_four(to: Bytes, at: int, value: Whole) -> Whole:
    """Write a whole number of 32 bits; the place after it."""
    for i in range(4):
        to[at + i] = (value >> (8 * i)) & 255
    return at + 4


@compiled
def put_address(to: Bytes, at: int, partition: int, offset: Whole, row: Whole) -> Whole:
    """Write where a row of a log comes from; the place after it."""
    to[at] = partition & 255
    to[at + 1] = partition >> 8
    put_eight(to, at + 2, np.uint64(offset))
    return put_four(to, at + 10, row)


@compiled
def put_bytes(to: Bytes, at: int, source: Bytes, start: int, length: int) -> Whole:
    """Write a text; the place after it."""
    at = put_length(to, at, length)
    i = 0
    while i + 8 <= length:
        put_eight(to, at + i, eight(source, start + i))
        i += 8
    while i < length:
        to[at + i] = source[start + i]
        i += 1
    return at + length


def read_rows(types: Sequence[str], block: RowBlock) -> list[tuple[Any, ...]]:
    """The rows of columns of these types as Python's values; times are whole numbers of their unit. Raises ValueError when
    they are not what ``block`` says."""
    rows, at, data = [], 0, block.whole()
    for _ in range(block.rows):
        row = []
        for kind in types:
            value, at = _value(kind, data, at)
            row.append(value)
        rows.append(tuple(row))
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind the last of {block.rows} rows")
    return rows


def _value(kind: str, data: memoryview, at: int) -> tuple[Any, int]:
    if match := re.fullmatch(r"(LowCardinality|Nullable|Array)\((.*)\)", kind):
        outer, inner = match.groups()
        if outer == "LowCardinality":
            return _value(inner, data, at)
        if outer == "Nullable":
            return (None, at + 1) if data[at] else _value(inner, data, at + 1)
        count, at = _length(data, at)
        if inner in _FORMATS:
            form = f"<{count}{_FORMATS[inner][1]}"
            return list(struct.unpack_from(form, data, at)), at + struct.calcsize(form)
        found = []
        for _ in range(count):
            value, at = _value(inner, data, at)
            found.append(value)
        return found, at
    if match := re.fullmatch(r"Map\((\w+(?:\(\w+\))?), (.*)\)", kind):
        count, at = _length(data, at)
        pairs = {}
        for _ in range(count):
            key, at = _value(match[1], data, at)
            pairs[key], at = _value(match[2], data, at)
        return pairs, at
    if kind == "String":
        length, at = _length(data, at)
        return bytes(data[at : at + length]).decode(), at + length
    form = "<q" if kind.startswith("DateTime64") else _FORMATS[kind]
    size = struct.calcsize(form)
    return struct.unpack_from(form, data, at)[0], at + size


def _length(data: memoryview, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        found |= (data[at] & 127) << shift
        if data[at] < 128:
            return found, at + 1
        at, shift = at + 1, shift + 7
