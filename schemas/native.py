"""ClickHouse's ``Native``: blocks of columns, and back. What is columns already becomes rows of a table at the price of a copy.

The format is that of ClickHouse's documentation, "Native": the number of columns and of rows, then each column behind its name
and type. Numbers lie there as in memory, little-endian; texts behind their length as a variable-length number; what is nullable
behind a byte a row that is 1 for null; an array's or map's ends behind each other, then all its keys, then all its values; what is
of low cardinality as its distinct values and a place among these for each row. Blocks stand one behind the other.

A column here is a list of buffers, in their order; what is contiguous in memory is not copied before all is put together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.json_text import Bytes, Integers, Whole
from schemas.row_binary import RowBlock, length_bytes, put_bytes, text_bytes
from schemas.spans import Spans

Buffers = list[Any]
NATIVE = "Native"
#: Version of the dictionaries of low cardinality; that each block brings its own, all of it.
_SHARED = (1).to_bytes(8, "little")
_OWN_KEYS = 0x600
_LENGTH_BYTES_MAX = 10
_NUMBERS = {
    "UInt8": "<u1", "UInt16": "<u2", "UInt32": "<u4", "UInt64": "<u8", "Int8": "<i1", "Int16": "<i2", "Int32": "<i4",
    "Int64": "<i8", "Float64": "<f8",
}  # fmt: skip
#: What is larger is sent from where it is, and what repeats is repeated in pieces about as large.
_LARGE_BYTES = 16_384
_PLACES = ("<u1", "<u2", "<u4", "<u8")


def native_block(rows: int, columns: Sequence[tuple[str, str, Buffers]]) -> RowBlock:
    """One block of ``rows`` rows: of each column its name, its type and what it holds."""
    parts: Buffers = [length_bytes(len(columns)), length_bytes(rows)]
    for name, kind, held in columns:
        parts += [text_bytes(name), text_bytes(kind), *(held if rows else ())]
    return RowBlock(rows, tuple(_gathered(parts)), NATIVE)


def _gathered(parts: Buffers) -> Iterator[memoryview]:
    """The same bytes: what is small together, what is large where it is."""
    small: Buffers = []
    for part in parts:
        if memoryview(part).nbytes < _LARGE_BYTES:
            small.append(part)
            continue
        if small:
            yield memoryview(b"".join(small))
        yield memoryview(part)
        small = []
    if small:
        yield memoryview(b"".join(small))


def numbers(values: NDArray[Any], kind: str) -> Buffers:
    """Numbers ``(n,)`` of this type, or of the time that it counts."""
    return [np.ascontiguousarray(values, _NUMBERS.get(kind, "<i8")).view(np.uint8)]


def nullable(values: NDArray[np.float64], there: NDArray[np.bool_] | None) -> Buffers:
    """Doubles ``(n,)``, and of which rows they are null; None: of none."""
    if there is None:
        return [bytes(len(values)), *numbers(values, "Float64")]
    return [(~there).view(np.uint8), *numbers(np.where(there, values, 0.0), "Float64")]


def texts(values: Spans) -> Buffers:
    """Texts; what is null is empty."""
    most = int(np.maximum(values.length, 0).sum()) + _LENGTH_BYTES_MAX * len(values)
    to = np.empty(most, np.uint8)
    return [to[: _put_texts(values.buffer, values.start, values.length, to)]]


def same_text(value: str, rows: int) -> Buffers:
    """A text that all rows have."""
    return _repeated(text_bytes(value), rows)


def _repeated(once: bytes, times: int) -> Buffers:
    """The same bytes again and again, of which few are made."""
    in_piece = _LARGE_BYTES // max(len(once), 1) + 1
    pieces, rest = divmod(times, in_piece)
    return [once * in_piece] * pieces + [once * rest]


def coded(values: Sequence[str], codes: NDArray[np.int64]) -> Buffers:
    """Texts of low cardinality: the distinct ones, and the place among them of each row."""
    size = 0 if len(values) <= 256 else 2
    head = [_OWN_KEYS | size, len(values)], [len(codes)]
    keys, places = (np.array(numbers, "<u8").tobytes() for numbers in head)
    return [_SHARED, keys, *map(text_bytes, values), places, codes.astype(_PLACES[size])]


def maps(names: Sequence[str], values: Any, there: NDArray[np.bool_] | None) -> Buffers:
    """Maps of at most these names. ``values (n, k)``: of each row and name a double, or Spans of all texts, row by row.
    ``there (n, k)``: whether a row has it; None: all have all."""
    width, held = len(names), [name.encode() for name in names]
    rows = len(values) // max(width, 1) if isinstance(values, Spans) else len(values)
    if there is None:
        ends = np.arange(width, rows * width + 1, width, dtype="<u8") if width else np.zeros(rows, "<u8")
        keys: Buffers = _repeated(b"".join(map(text_bytes, names)), rows)
    else:
        ends = np.cumsum(np.count_nonzero(there, axis=1)).astype("<u8")
        of_names, chosen = Spans.of(held), np.nonzero(there)[1]
        keys = texts(of_names.take(chosen))
        values = values.take(np.flatnonzero(there)) if isinstance(values, Spans) else values[there]
    told = texts(values) if isinstance(values, Spans) else numbers(values.reshape(-1), "Float64")
    return [ends, *keys, *told]


@compiled
def _put_texts(source: Bytes, start: Integers, length: Integers, to: Bytes) -> Whole:
    at: Whole = 0
    for row in range(len(start)):
        at = put_bytes(to, at, source, start[row], max(length[row], 0))
    return at


def read_native(block: RowBlock) -> list[tuple[Any, ...]]:
    """The rows as Python's values; times are whole numbers of their unit. Raises ValueError when they are not what ``block``
    says."""
    rows: list[tuple[Any, ...]] = []
    reader = _Reader(block.whole())
    while not reader.ended:
        width, count = reader.length(), reader.length()
        columns = []
        for _ in range(width):
            reader.text()
            kind = reader.text()
            columns.append(reader.column(kind, count) if count else [])
        rows += zip(*columns, strict=True)
    if len(rows) != block.rows:
        raise ValueError(f"{len(rows)} rows where {block.rows} were told")
    return rows


class _Reader:
    """Reads on from ``at``."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0

    @property
    def ended(self) -> bool:
        return self.at >= len(self._data)

    def length(self) -> int:
        found = shift = 0
        while True:
            byte = self._data[self.at]
            self.at += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7

    def text(self) -> str:
        return self._take(self.length()).decode()

    def numbers(self, kind: str, count: int) -> list[Any]:
        dtype = np.dtype(kind)
        found: list[Any] = np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
        return found

    def column(self, kind: str, count: int) -> list[Any]:
        if match := re.fullmatch(r"LowCardinality\((.*)\)", kind):
            _, flags, keys = self.numbers("<u8", 3)
            values = self.column(match[1], keys)
            return [values[place] for place in self.numbers(_PLACES[flags & 3], self.numbers("<u8", 1)[0])]
        if match := re.fullmatch(r"Nullable\((.*)\)", kind):
            nulls = self.numbers("<u1", count)
            return [
                None if null else value
                for null, value in zip(nulls, self.column(match[1], count), strict=True)
            ]
        if match := re.fullmatch(r"Map\((\w+), (\w+)\)", kind):
            ends = self.numbers("<u8", count)
            pairs = list(zip(self.column(match[1], ends[-1]), self.column(match[2], ends[-1]), strict=True))
            return [dict(pairs[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        if kind == "String":
            return [self.text() for _ in range(count)]
        return self.numbers(_NUMBERS.get(kind, "<i8"), count)

    def _take(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self._data):
            raise ValueError("a block that is cut off")
        return bytes(self._data[self.at - size : self.at])
