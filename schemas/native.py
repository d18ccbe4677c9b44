"""ClickHouse's ``Native``: blocks of columns, and back. What is columns already becomes rows of a table at the price of a copy.

The format is that of ClickHouse's documentation, "Native": the number of columns and of rows, then each column behind its name
and type. Numbers lie there as in memory, little-endian; texts behind their length as a variable-length number; what is nullable
behind a byte a row that is 1 for null; an array's or map's ends behind each other, then all its keys, then all its values; what is
of low cardinality as its distinct values and a place among these for each row, and in front of the column, whatever it is
inside of, the version of that. Blocks stand one behind the other.

A column here is a list of buffers, in their order; what is contiguous in memory is not copied before all is put together. It need
not be of its column's type in the table: ClickHouse makes plain texts of such of low cardinality for less than it takes to read
them.
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


def coded(values: Sequence[str], codes: NDArray[Any]) -> Buffers:
    """Texts of low cardinality: the distinct ones, and the place among them of each row."""
    return [_SHARED, *_coded(values, codes)]


def same_coded(value: str, rows: int) -> Buffers:
    """The text of low cardinality that all rows have."""
    return [_SHARED, *_of_places([value], rows, _repeated(bytes(1), rows))]


def _coded(values: Sequence[str], codes: NDArray[Any]) -> Buffers:
    return _of_places(values, len(codes), [codes.astype(_PLACES[_place_size(len(values))])])


def _of_places(values: Sequence[str], rows: int, places: Buffers) -> Buffers:
    """``places``: of so many rows the bytes that say which value. Of none there is nothing."""
    if not rows:
        return []
    keys = np.array([_OWN_KEYS | _place_size(len(values)), len(values)], "<u8").tobytes()
    return [keys, *map(text_bytes, values), rows.to_bytes(8, "little"), *places]


def _place_size(values: int) -> int:
    """Which of ``_PLACES``."""
    return 0 if values <= 256 else 2


def keys_coded(kind: str) -> str:
    """The type of what :func:`maps` makes for a column of maps from plain texts."""
    return kind.replace("Map(String, ", "Map(LowCardinality(String), ")


def maps(names: Sequence[str], values: Any, there: NDArray[np.bool_] | None) -> Buffers:
    """Maps of at most these names, which are of low cardinality. ``values (n, k)``: of each row and name a double, or Spans of all
    texts, row by row. ``there (n, k)``: whether a row has it; None: all have all."""
    spans = isinstance(values, Spans)
    rows = len(values) // max(len(names), 1) if spans else len(values)
    if there is not None:
        values = values.take(np.flatnonzero(there)) if spans else values[there]
    told = texts(values) if spans else numbers(values.reshape(-1), "Float64")
    return [_SHARED, *_ends_and_keys(names, rows, there), *told]


def coded_maps(names: Sequence[str], values: Sequence[str], codes: NDArray[Any]) -> Buffers:
    """Maps of all these names to texts, both of low cardinality: the distinct ones, and their places ``(n, k)``."""
    return [_SHARED, _SHARED, *_ends_and_keys(names, len(codes), None), *_coded(values, codes.reshape(-1))]


def _ends_and_keys(names: Sequence[str], rows: int, there: NDArray[np.bool_] | None) -> Buffers:
    if there is not None:
        ends = np.cumsum(np.count_nonzero(there, axis=1)).astype("<u8")
        return [ends, *_coded(names, np.nonzero(there)[1])]
    width = len(names)
    ends = np.arange(width, rows * width + 1, width, dtype="<u8") if width else np.zeros(rows, "<u8")
    once = np.arange(width, dtype=_PLACES[_place_size(width)]).tobytes()
    return [ends, *_of_places(names, rows * width, _repeated(once, rows))]


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
        self._take(8 * kind.count("LowCardinality"))
        return self._values(kind, count)

    def _values(self, kind: str, count: int) -> list[Any]:
        if match := re.fullmatch(r"LowCardinality\((.*)\)", kind):
            if not count:
                return []
            flags, keys = self.numbers("<u8", 2)
            values = self._values(match[1], keys)
            return [values[place] for place in self.numbers(_PLACES[flags & 3], self.numbers("<u8", 1)[0])]
        if match := re.fullmatch(r"Nullable\((.*)\)", kind):
            nulls = self.numbers("<u1", count)
            return [
                None if null else value
                for null, value in zip(nulls, self._values(match[1], count), strict=True)
            ]
        if match := re.fullmatch(r"Map\((LowCardinality\(String\)), (.*)\)", kind):
            ends = self.numbers("<u8", count)
            pairs = list(zip(self._values(match[1], ends[-1]), self._values(match[2], ends[-1]), strict=True))
            return [dict(pairs[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        if kind == "String":
            return [self.text() for _ in range(count)]
        return self.numbers(_NUMBERS.get(kind, "<i8"), count)

    def _take(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self._data):
            raise ValueError("a block that is cut off")
        return bytes(self._data[self.at - size : self.at])
