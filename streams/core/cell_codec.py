"""What cells count as bytes and back, compiled: all cells that a transaction stores are written in one call.

Numbers take as many bytes as they need, seven bits in each; a run of zeros takes two. Of a feature of which a cell has seen
one value or two, these say all: sum and histogram are worked out again. So a window of two rows is not much larger than they;
and cells that have seen as many rows are as long, each number at its place, for ``streams.core.alike``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, eight, put_eight
from schemas.json_text import Whole
from streams.core.layouts import HEAD, INVALID, LEAST, LOWER, MISSING, MOST, ROWS, UPPER, Layout
from streams.core.tally import FACTS, count_value

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
#: The most that a number takes, with the zeros that may follow it.
_BYTES_MAX = 12
#: So many scores are written one by one.
_FEW_SCORES = 8
_FACTS = len(FACTS)


def encode_counts(rows: Ints) -> list[bytes]:
    """Each of ``rows (n, FACTS_WIDTH)``: what a cell has counted of its predictions."""
    into, ends = np.empty(rows.size * _BYTES_MAX, np.uint8), np.empty(len(rows), np.int64)
    _write_counts(rows, into, ends)
    return _cut(into, ends)


def decode_counts(data: bytes, into: Ints) -> None:
    """Inverse of :func:`encode_counts` of one row, into zeros. Raises ValueError."""
    if _read_counts(np.frombuffer(data, np.uint8), into) != len(data):
        raise ValueError("counts of another length")


def decode_numbers(data: bytes, into: Ints) -> None:
    """Numbers behind each other, as cells of schema 5 had their counts. Raises ValueError."""
    if _read_run(np.frombuffer(data, np.uint8), 0, into, 0, len(into)) != len(data):
        raise ValueError("counts of another length")


def encode_features(layouts: Sequence[Layout], sums: Sequence[Ints], rows: Sequence[int]) -> list[bytes]:
    """What cells, at least one, have counted of their features. ``rows``: their predictions, which most features have too."""
    flat = np.concatenate(sums)
    # Cells of one layout, which most have, share its tables.
    known: dict[int, int] = {}
    of = np.array([known.setdefault(id(layout), len(known)) for layout in layouts], np.int64)
    first_of: dict[int, Layout] = {id(layout): layout for layout in layouts}
    distinct = list(first_of.values())
    counts = np.cumsum([0, *(len(layout.parts) for layout in distinct)])
    starts = np.concatenate([layout.starts[:-1] for layout in distinct])
    sizes = np.concatenate([np.diff(layout.starts) for layout in distinct])
    numeric = np.concatenate([layout.numeric for layout in distinct])
    begins = np.cumsum([0, *map(len, sums[:-1])])
    into, ends = np.empty(flat.size * _BYTES_MAX, np.uint8), np.empty(len(sums), np.int64)
    _write_features(flat, begins, of, np.array(rows, np.int64), counts, starts, sizes, numeric, into, ends)
    return _cut(into, ends)


def decode_features(data: bytes, layout: Layout, rows: int) -> Ints:
    """Inverse of :func:`encode_features` of one cell. Raises ValueError."""
    sums = layout.empty.copy()
    edges, edge_starts = layout.cuts
    end = _read_features(
        np.frombuffer(data, np.uint8), rows, layout.starts, layout.numeric, edges, edge_starts, sums, sums.view(np.float64)
    )  # fmt: skip
    if end != len(data):
        raise ValueError("features of another layout")
    return sums


def _cut(data: Bytes, ends: Ints) -> list[bytes]:
    places = ends.tolist()
    whole = data[: places[-1]].tobytes()
    return [whole[begin:end] for begin, end in zip([0, *places], places, strict=False)]


@compiled
def _write_counts(rows: Ints, into: Bytes, ends: Ints) -> None:
    """Facts; how many scores there are, and the bin of each where they are few, else their histogram."""
    at = 0
    for i in range(rows.shape[0]):
        row, scored = rows[i], 0
        for k in range(_FACTS):
            at = _write(row[k], into, at)
        for k in range(_FACTS, rows.shape[1]):
            scored += row[k]
        at = _write(scored, into, at)
        if scored > _FEW_SCORES:
            at = _write_run(row, _FACTS, rows.shape[1], into, at)
        else:
            for k in range(_FACTS, rows.shape[1]):
                for _ in range(row[k]):
                    into[at] = k - _FACTS
                    at += 1
        ends[i] = at


@compiled
def _read_counts(data: Bytes, into: Ints) -> Whole:
    """Where they end; beyond the data where that is not whole."""
    at = 0
    for k in range(_FACTS):
        into[k] = _read(data, at)
        at = _after(data, at)
    scored = _read(data, at)
    at = _after(data, at)
    if scored < 0 or scored > _FEW_SCORES:
        return _read_run(data, at, into, _FACTS, len(into))
    for _ in range(scored):
        if at >= len(data) or data[at] >= len(into) - _FACTS:
            return len(data) + 1
        into[_FACTS + data[at]] += 1
        at += 1
    return at


@compiled
def _write_run(values: Ints, begin: int, end: int, into: Bytes, at: int) -> Whole:
    """Numbers that are not negative; behind a zero, how many more follow it."""
    i = begin
    while i < end:
        at = _write(values[i], into, at)
        if values[i] == 0:
            zeros = 0
            while i + 1 < end and values[i + 1] == 0:
                zeros += 1
                i += 1
            at = _write(zeros, into, at)
        i += 1
    return at


@compiled
def _write(value: int, into: Bytes, at: int) -> Whole:
    left = np.uint64(value)
    while left >= np.uint64(128):
        into[at] = np.uint8(left & np.uint64(127)) | np.uint8(128)
        left >>= np.uint64(7)
        at += 1
    into[at] = np.uint8(left)
    return at + 1


@compiled
def _read(data: Bytes, at: int) -> Whole:
    """The number at ``at``; nothing is read beyond the end, and ``_after`` says that it was to be."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < len(data) and shift < np.uint64(64):
        value |= np.uint64(data[at] & np.uint8(127)) << shift
        if data[at] < 128:
            break
        shift += np.uint64(7)
        at += 1
    return np.int64(value)


@compiled
def _after(data: Bytes, at: int) -> Whole:
    """Where the number at ``at`` ends; beyond the end where it does not."""
    while at < len(data) and data[at] >= 128:
        at += 1
    return at + 1


@compiled
def _read_run(data: Bytes, at: int, into: Ints, begin: int, end: int) -> Whole:
    """Inverse of ``_write_run``; where it ends, beyond the data where that is not whole."""
    i = begin
    while i < end:
        if at >= len(data):
            return len(data) + 1
        into[i] = _read(data, at)
        zero = into[i] == 0
        at = _after(data, at)
        i += 1
        if zero:
            zeros = _read(data, at)
            at = _after(data, at)
            while zeros > 0 and i < end:
                into[i] = 0
                zeros -= 1
                i += 1
    return at


@compiled
def _write_features(
    flat: Ints, begins: Ints, of: Ints, rows: Ints, counts: Ints, starts: Ints, sizes: Ints, numeric: NDArray[np.bool_],
    into: Bytes, ends: Ints,
) -> None:  # fmt: skip
    at = 0
    for c in range(len(begins)):
        for f in range(counts[of[c]], counts[of[c] + 1]):
            begin = begins[c] + starts[f]
            end = begin + sizes[f]
            more = flat[begin + ROWS] - rows[c]
            at = _write((more << 1) ^ (more >> 63), into, at)
            at = _write(flat[begin + MISSING], into, at)
            at = _write(flat[begin + INVALID], into, at)
            known = flat[begin + ROWS] - flat[begin + MISSING]
            if known == 0:
                continue
            if numeric[f]:
                put_eight(into, at, np.uint64(flat[begin + LEAST]))
                at += 8
                if known > 1:
                    put_eight(into, at, np.uint64(flat[begin + MOST]))
                    at += 8
                if known < 3:
                    continue
                upper = flat[begin + UPPER]
                at = _write((upper << 1) ^ (upper >> 63), into, at)
                at = _write(flat[begin + LOWER], into, at)
            at = _write_run(flat, begin + HEAD, end, into, at)
        ends[c] = at


@compiled
def _read_features(
    data: Bytes, rows: int, starts: Ints, numeric: NDArray[np.bool_], edges: NDArray[np.float64], edge_starts: Ints,
    sums: Ints, reals: NDArray[np.float64],
) -> Whole:  # fmt: skip
    at = 0
    for f in range(len(numeric)):
        begin, end = starts[f], starts[f + 1]
        coded = _read(data, at)
        sums[begin + ROWS] = rows + ((coded >> 1) ^ -(coded & 1))
        at = _after(data, at)
        sums[begin + MISSING] = _read(data, at)
        at = _after(data, at)
        sums[begin + INVALID] = _read(data, at)
        at = _after(data, at)
        known = sums[begin + ROWS] - sums[begin + MISSING]
        if known == 0:
            continue
        if numeric[f]:
            if at + (16 if known > 1 else 8) > len(data):
                return len(data) + 1
            sums[begin + LEAST] = np.int64(eight(data, at))
            at += 8
            sums[begin + MOST] = sums[begin + LEAST]
            if known > 1:
                sums[begin + MOST] = np.int64(eight(data, at))
                at += 8
            if known < 3:
                count_value(reals[begin + LEAST], begin, edges, edge_starts[f], edge_starts[f + 1], sums)
                if known == 2:
                    count_value(reals[begin + MOST], begin, edges, edge_starts[f], edge_starts[f + 1], sums)
                continue
            coded = _read(data, at)
            sums[begin + UPPER] = (coded >> 1) ^ -(coded & 1)
            at = _after(data, at)
            sums[begin + LOWER] = _read(data, at)
            at = _after(data, at)
        at = _read_run(data, at, sums, begin + HEAD, end)
    return at
