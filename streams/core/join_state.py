"""How the join index is stored: a piece of it as bytes and back.

Columns of raw numbers, as small as their range allows, so that reading a million rows back takes a second; what many
rows share stands once in a piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.errors import StateCorrupt
from schemas.json_text import Whole
from schemas.labels import Label
from streams.core.compression import CompressionError, compressed, compressed_numbers, expanded

JOIN_SCHEMA = 9
#: Pieces of schema 7 had their kinds as they are, those of 8 no columns of differences.
_READABLE = (7, 8, 9)

#: Revision, label, label time of one label.
Told = tuple[int, float, int]


class WindowKey(NamedTuple):
    """One window of one model."""

    model: str
    start_ms: int
    window_ms: int

    @property
    def end_ms(self) -> int:
        return self.start_ms + self.window_ms


class Kind(NamedTuple):
    """What many predictions share."""

    window: WindowKey
    version: str
    role: int
    segments: tuple[str, ...]


#: Columns of a piece. Those of rows that were added, then those of labels: of rows added and of rows of earlier pieces.
ADDED = ("number", "key", "check", "kind", "event_time_ms", "score", "status", "partition", "offset", "row")
SETTLED = ("number", "revision", "label", "label_time_ms")
_INTEGERS = ("|i1", "<i2", "<i4", "<i8")
#: Columns of which the difference of neighbours is stored: the same everywhere, or numbers of the type behind the mark.
_STEPS, _DIFFERENCES = "steps", "+"
_LAST = 2**63 - 1
Columns = Mapping[str, NDArray[Any]]


class _Column(msgspec.Struct, array_like=True):
    """Whole numbers as their distance to ``base``, none at all where all are the same, or as differences, where these are
    smaller; everything else as it is."""

    base: int
    dtype: str
    data: bytes


class Body(msgspec.Struct, array_like=True):
    """A piece as stored. ``numbers``: of the next row to come; below which rows are evicted, of this piece or one before.
    ``settled``: the last label of each row that got one. ``earlier``: (number, labels that were replaced). ``waits``:
    labels that wait, and whether they are looked up. ``gone``: fingerprints of evicted rows by window. ``kinds``: compressed,
    since of ten thousand models there are as many and they look alike."""

    schema: int
    numbers: tuple[int, int]
    added_between: tuple[int, int]
    level: int
    kinds: bytes | list[Kind]
    rows: tuple[int, int]
    added: list[_Column]
    settled: list[_Column]
    earlier: list[tuple[int, list[Told]]]
    waits: list[tuple[Label, bool]]
    gone: list[tuple[WindowKey, bytes]]

    def told_kinds(self) -> list[Kind]:
        """What the codes in column ``kind`` stand for. Raises CompressionError and what msgspec raises."""
        if isinstance(self.kinds, list):
            return self.kinds
        return msgspec.msgpack.decode(expanded(self.kinds), type=list[Kind])

    def columns(self) -> tuple[Columns, Columns]:
        """What was added and what was settled."""
        added, settled = self.rows
        return (
            _by_number({name: _read(column, added) for name, column in zip(ADDED, self.added, strict=True)}),
            {name: _read(column, settled) for name, column in zip(SETTLED, self.settled, strict=True)},
        )


def _written(values: NDArray[Any]) -> _Column:
    if values.dtype.kind != "i" or not len(values):
        return _Column(0, values.dtype.str, values.tobytes())
    base, top, least, most = _spread(np.ascontiguousarray(values))
    if base == top:
        return _Column(base, _INTEGERS[0], b"")
    dtype = _fits(0, top - base)
    if dtype is None:
        return _Column(0, "<i8", values.astype("<i8").tobytes())
    if least == most:
        return _Column(int(values[0]), _STEPS, least.to_bytes(8, "little", signed=True))
    # Also those that are no smaller: they repeat themselves where the numbers do not.
    narrow = _fits(least, most)
    if narrow is not None and (_INTEGERS.index(narrow) <= _INTEGERS.index(dtype)):
        squeezed = _squeezed(values, np.dtype(narrow).itemsize)
        if len(squeezed) < len(values) * np.dtype(dtype).itemsize:
            return _Column(int(values[0]), _DIFFERENCES + narrow, squeezed)
    # A distance fits where it is to be written, not always in what it is taken from.
    return _Column(base, dtype, (values.astype(np.int64, copy=False) - base).astype(dtype).tobytes())


def _fits(least: int, most: int) -> str | None:
    return next((d for d in _INTEGERS if np.iinfo(d).min <= least and most <= np.iinfo(d).max), None)


def _squeezed(values: NDArray[Any], width: int) -> bytes:
    """Differences of neighbours, each in so many bytes: first the lowest of all, then the next. Those that are mostly the same
    stand together."""
    apart = np.empty(width * (len(values) - 1), np.uint8)
    _take_apart(np.ascontiguousarray(values), width, apart)
    return compressed_numbers(apart.data)


@compiled
def _spread(values: NDArray[Any]) -> tuple[Whole, Whole, Whole, Whole]:
    """The least and the greatest of numbers, and of the differences of neighbours."""
    least: Any = np.int64(values[0])
    most, least_step, most_step = least, _LAST, -_LAST
    for i in range(1, len(values)):
        value: Any = np.int64(values[i])
        step = value - np.int64(values[i - 1])
        least, most = min(least, value), max(most, value)
        least_step, most_step = min(least_step, step), max(most_step, step)
    return least, most, least_step, most_step


@compiled
def _take_apart(values: NDArray[Any], width: int, apart: NDArray[np.uint8]) -> None:
    n = len(values) - 1
    for byte in range(width):
        for i in range(n):
            step = np.int64(values[i + 1]) - np.int64(values[i])
            apart[byte * n + i] = np.uint8(step >> (8 * byte))


def _read(column: _Column, rows: int) -> NDArray[Any]:
    if column.dtype == _STEPS:
        return column.base + int.from_bytes(column.data, "little", signed=True) * np.arange(
            rows, dtype=np.int64
        )
    if column.dtype.startswith(_DIFFERENCES):
        kind = np.dtype(column.dtype.removeprefix(_DIFFERENCES))
        # As long as it must be: whoever damaged it cannot make it take memory.
        size = (rows - 1) * kind.itemsize
        apart = np.frombuffer(expanded(column.data, size), np.uint8)
        if len(apart) != size:
            raise ValueError(f"differences of other than {rows} numbers")
        steps = np.ascontiguousarray(apart.reshape(kind.itemsize, -1).T).view(kind).reshape(-1)
        return np.cumsum(np.concatenate([[column.base], steps.astype(np.int64)]))
    values: NDArray[Any] = np.frombuffer(column.data, column.dtype)
    if values.dtype.kind != "i":
        return values
    return values.astype(np.int64) + column.base if len(values) else np.full(rows, column.base, np.int64)


def _by_offset(columns: Columns) -> Columns:
    """Rows as they came: in this order times and kinds go on as they do in the log."""
    offset = columns["offset"]
    if len(offset) < 2 or bool((offset[1:] >= offset[:-1]).all()):
        return columns
    order = np.argsort(offset, kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _by_number(columns: Columns) -> Columns:
    """Inverse of :func:`_by_offset`: numbers only rise."""
    number = columns["number"]
    if len(number) < 2 or bool((number[1:] > number[:-1]).all()):
        return columns
    order = np.argsort(number)
    return {name: values[order] for name, values in columns.items()}


def encode_piece(
    numbers: tuple[int, int],
    added_between: tuple[int, int],
    level: int,
    kinds: Sequence[Kind],
    added: Columns,
    settled: Columns,
    earlier: list[tuple[int, list[Told]]],
    waits: list[tuple[Label, bool]],
    gone: Mapping[WindowKey, NDArray[np.uint64]],
) -> bytes:
    """A piece as bytes."""
    added = _by_offset(added)
    body = Body(
        JOIN_SCHEMA,
        numbers,
        added_between,
        level,
        compressed(msgspec.msgpack.encode(kinds)),
        (len(added["number"]), len(settled["number"])),
        [_written(added[name]) for name in ADDED],
        [_written(settled[name]) for name in SETTLED],
        earlier,
        waits,
        [(window, marks.astype("<u8").tobytes()) for window, marks in gone.items()],
    )
    return msgspec.msgpack.encode(body)


def decode_piece(name: str, data: bytes) -> tuple[Body, list[Kind]]:
    """Inverse of :func:`encode_piece`, and the kinds. Raises StateCorrupt."""
    # An array's header and its first item, a small number, are one byte each: no need to decode twice to see it.
    if data[1:2] not in map(bytes, zip(_READABLE)):
        raise StateCorrupt(
            f"piece {name}: schema {data[1:2].hex() or 'missing'}, this code reads {_READABLE[0]:02x} to {JOIN_SCHEMA:02x}"
        )
    try:
        body = msgspec.msgpack.decode(data, type=Body)
        return body, body.told_kinds()
    except (
        msgspec.DecodeError,
        msgspec.ValidationError,
        CompressionError,
        TypeError,
        LookupError,
    ) as error:
        raise StateCorrupt(f"piece {name} cannot be read: {error}") from error
