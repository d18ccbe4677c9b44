"""Arrow batches of the ordinary kind, read by compiled code where they lie, all of a fetch in one pass a column.

Ordinary are whole columns of 64-bit numbers and of texts that are not dictionary-coded: what pyarrow makes of arrays and lists.
Of the rest nothing is said here but that it is ``Odd``; ``schemas.arrow`` then says what is wrong with which row, if anything is.
Memory is shared by Arrow's C data interface, https://arrow.apache.org/docs/format/CDataInterface.html.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence, Set
from types import TracebackType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.compiled import byte_of, compiled, copy_of, eight, half_of, word_of
from schemas.json_text import Whole, equal
from schemas.spans import Spans

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
#: Words of an ``ArrowArray``, and which of them are its columns and who lets go of it; of a column, which are how many items are
#: null, at which it begins, and its buffers.
_WORDS, _CHILDREN, _RELEASE = 10, 6, 8
_NULLS, _FIRST, _BUFFERS = 1, 2, 5
#: Of more distinct texts in a column, and of longer ones, pyarrow is asked; so many rows of it are looked at together.
_DISTINCT_MAX, _TEXT_BYTES_MAX, _ROWS_AT_ONCE = 16, 64, 1_024
#: What a column of numbers has beside finite ones.
FINITE, MISSING, INFINITE = 0, 1, 2
_ODD, _NOT_ASCII = -1, -2
_release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Odd(Exception):
    """Something is not as it mostly is."""


class PlainBatches:
    """Batches of one schema, at least one, each valid but for what only a look at every row tells. To be used in ``with``.

    ``counts``: rows of each; ``rows``: of all.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self._batches = batches
        self._made = np.zeros((len(batches), _WORDS), np.int64)
        first = self._made.ctypes.data
        self._addresses = range(first, first + self._made.nbytes, self._made.strides[0])
        self._validated = False
        schema = batches[0].schema
        self._place = {name: place for place, name in enumerate(schema.names)}
        self._kinds = schema.types
        self.counts: Ints = np.array([batch.num_rows for batch in batches], np.int64)
        self.rows = int(self.counts.sum())

    def __enter__(self) -> PlainBatches:
        if not self.counts.all() or len(self._place) < len(self._kinds):
            raise Odd
        for batch, address in zip(self._batches, self._addresses, strict=True):
            batch._export_to_c(address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for release, address in zip(self._made[:, _RELEASE].tolist(), self._addresses, strict=True):
            if release:
                _release(release)(address)

    def __contains__(self, name: str) -> bool:
        return name in self._place

    @property
    def names(self) -> Set[str]:
        """Of all columns."""
        return self._place.keys()

    def floats(self, name: str, into: Floats) -> int:
        """Fill ``into (n,)`` with a column, null as NaN; ``FINITE``, ``MISSING`` or ``INFINITE``: what there is in it."""
        found = _numbers(self._made, self.counts, self._column(name, _DOUBLE), into)
        if found == _ODD:
            raise Odd
        return int(found)

    def integers(self, name: str) -> Ints:
        """A column of whole numbers, none of them null."""
        into = np.empty(self.rows, np.int64)
        if _whole_numbers(self._made, self.counts, self._column(name, _LONG), into) == _ODD:
            raise Odd
        return into

    def keys(self, name: str, bytes_max: int, bytes_min: int = 1) -> Spans:
        """A column of texts of ``bytes_min`` to ``bytes_max`` bytes, copied."""
        place = self._column(name, _STRING)
        buffer = np.empty(_extent(self._made, self.counts, place), np.uint8)
        start, length = np.empty(self.rows, np.int64), np.empty(self.rows, np.int64)
        self._sound(_keys(self._made, self.counts, place, bytes_min, bytes_max, buffer, start, length))
        return Spans(buffer, start, length)

    def texts(self, name: str) -> tuple[list[str], Ints]:
        """A column's distinct values, and for each row its place among them."""
        codes, known = (
            np.empty(self.rows, np.int64),
            np.zeros((_DISTINCT_MAX, _TEXT_BYTES_MAX), np.uint8),
        )
        lengths, table = np.zeros(_DISTINCT_MAX, np.int64), np.zeros(64, np.int64)
        room = np.empty(_ROWS_AT_ONCE * _TEXT_BYTES_MAX + 8, np.uint8)
        count = _texts(
            self._made, self.counts, self._column(name, _STRING), room, known.reshape(-1), lengths, table, codes
        )  # fmt: skip
        self._sound(int(count) if count < 0 else FINITE)
        if count > 0 and bool((known & 0x80).any()):
            self._sound(_NOT_ASCII)
        return [
            bytes(one[:length]).decode()
            for one, length in zip(known[:count], lengths[:count].tolist(), strict=True)
        ], codes

    def check_texts(self, names: Iterable[str]) -> None:
        """Whether columns of which nobody asks for anything are what they say."""
        for name in names:
            self._sound(_checked(self._made, self.counts, self._column(name, _STRING)))

    def _column(self, name: str, kind: pa.DataType) -> int:
        place = self._place[name]
        if self._kinds[place] != kind:
            raise Odd
        return place

    def _sound(self, found: int) -> None:
        """What is not ASCII may be no UTF-8 either."""
        if found == _ODD:
            raise Odd
        if found == _NOT_ASCII and not self._validated:
            try:
                for batch in self._batches:
                    batch.validate(full=True)
            except pa.ArrowInvalid as error:
                raise Odd from error
            self._validated = True


_DOUBLE, _LONG, _STRING = pa.float64(), pa.int64(), pa.string()


def numbered(counts: Ints, told: Ints) -> tuple[Ints, NDArray[np.int32], Ints]:
    """Of each row of batches of so many rows the two numbers ``told (2, batches)`` of its batch, and between them its place in it."""
    n = int(counts.sum())
    first, row, second = np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.int64)
    _numbered(counts, told, first, row, second)
    return first, row, second


@compiled
def _numbered(counts: Ints, told: Ints, first: Ints, row: NDArray[np.int32], second: Ints) -> None:
    at = 0
    for b in range(len(counts)):
        for i in range(counts[b]):
            first[at], row[at], second[at] = told[0, b], i, told[1, b]
            at += 1


@compiled
def _child(made: Ints, batch: int, place: int) -> Whole:
    """The address of what a batch says of its column."""
    return word_of(made[batch, _CHILDREN] + 8 * place)


@compiled
def _told(column: int, word: int) -> Whole:
    return word_of(column + 8 * word)


@compiled
def _buffer(column: int, which: int) -> Whole:
    """The address of a column's buffer; 0: there is none."""
    return word_of(_told(column, _BUFFERS) + 8 * which)


@compiled
def _is_whole(column: int) -> Whole:
    """Whether a column has a value in every row, and begins where its buffers do."""
    return _told(column, _NULLS) == 0 and _told(column, _FIRST) == 0 and _buffer(column, 0) == 0


@compiled
def _numbers(made: Ints, counts: Ints, place: int, into: Floats) -> Whole:
    start, missing, infinite = 0, 0, 0
    for b in range(len(counts)):
        column, n = _child(made, b, place), counts[b]
        if _told(column, _FIRST) != 0:
            return _ODD
        copy_of(into, start, _buffer(column, 1), n)
        left = 0
        for i in range(start, start + n):
            left += into[i] - into[i] != 0.0
        if _buffer(column, 0) != 0 or _told(column, _NULLS) != 0:
            if _buffer(column, 0) == 0:
                return _ODD
            nulls = 0
            for i in range(n):
                if not byte_of(_buffer(column, 0) + i // 8) >> (i % 8) & 1:
                    into[start + i] = np.nan
                    nulls += 1
            if nulls != _told(column, _NULLS):
                return _ODD
            missing += nulls
        if left:
            for i in range(start, start + n):
                missing += into[i] != into[i]
                infinite += abs(into[i]) == np.inf
        start += n
    return INFINITE if infinite else MISSING if missing else FINITE


@compiled
def _whole_numbers(made: Ints, counts: Ints, place: int, into: Ints) -> Whole:
    start = 0
    for b in range(len(counts)):
        column = _child(made, b, place)
        if not _is_whole(column):
            return _ODD
        copy_of(into, start, _buffer(column, 1), counts[b])
        start += counts[b]
    return FINITE


@compiled
def _offset(column: int, at: int) -> Whole:
    """Where in its bytes a column's text ``at`` begins."""
    return np.int64(half_of(_buffer(column, 1) + 4 * at))


@compiled
def _extent(made: Ints, counts: Ints, place: int) -> Whole:
    """How many bytes the texts of a column have."""
    size = 0
    for b in range(len(counts)):
        column = _child(made, b, place)
        size += max(_offset(column, counts[b]) - _offset(column, 0), 0)
    return size


@compiled
def _keys(
    made: Ints,
    counts: Ints,
    place: int,
    bytes_min: int,
    bytes_max: int,
    buffer: Bytes,
    start: Ints,
    length: Ints,
) -> Whole:
    row, at, seen = 0, 0, 0
    for b in range(len(counts)):
        column = _child(made, b, place)
        if not _is_whole(column):
            return _ODD
        offsets, begin = _buffer(column, 1), _offset(column, 0)
        ahead = at - begin
        for i in range(counts[b]):
            end = np.int64(half_of(offsets + 4 * (i + 1)))
            if end < begin + bytes_min or end > begin + bytes_max:
                return _ODD
            start[row], length[row] = ahead + begin, end - begin
            row += 1
            begin = end
        size = begin + ahead - at
        data = _buffer(column, 2) + at - ahead
        copy_of(buffer, at, data, size)
        seen |= _high_bits(data, size)
        at += size
    return _NOT_ASCII if seen else FINITE


@compiled
def _high_bits(data: int, size: int) -> Whole:
    """Not 0 if one of the bytes at an address is not ASCII."""
    seen, end = np.int64(0), data + size
    while data + 8 <= end:
        seen |= word_of(data)
        data += 8
    while data < end:
        seen |= np.int64(byte_of(data))
        data += 1
    return seen & np.int64(-0x7F7F7F7F7F7F7F80)


@compiled
def _rises(column: int, rows: int) -> bool:
    """Whether texts lie one behind the other: all between the first one's begin and the last one's end, which are known to be
    there."""
    offsets, falls = _buffer(column, 1), 0
    for i in range(rows):
        falls += half_of(offsets + 4 * i) > half_of(offsets + 4 * (i + 1))
    return falls == 0


@compiled
def _texts(
    made: Ints, counts: Ints, place: int, room: Bytes, known: Bytes, lengths: Ints, table: Ints, codes: Ints
) -> Whole:
    """How many distinct ones there are. ``known (16 x 64,)`` and ``lengths`` become these, ``table`` where to look first."""
    count, row = 0, 0
    for b in range(len(counts)):
        column = _child(made, b, place)
        if not _is_whole(column) or not _rises(column, counts[b]):
            return _ODD
        offsets, data = _buffer(column, 1), _buffer(column, 2)
        for block in range(0, counts[b], _ROWS_AT_ONCE):
            last = min(block + _ROWS_AT_ONCE, counts[b])
            first = _offset(column, block)
            size = _offset(column, last) - first
            if size + 8 > len(room):
                return _ODD
            copy_of(room, 0, data + first, size)
            begin = 0
            for i in range(block, last):
                end = np.int64(half_of(offsets + 4 * (i + 1))) - first
                length = end - begin
                # Of a short text all bytes, of a longer one eight, say where it is looked for first.
                word = eight(room, begin)
                if length < 8:
                    word &= (np.uint64(1) << np.uint64(8 * length)) - np.uint64(1)
                look = np.int64((word ^ np.uint64(length)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(58))
                code = table[look]
                if not (code < count and _is_known(known, lengths, code, word, room, begin, length)):
                    code = 0
                    while code < count and not _is_known(known, lengths, code, word, room, begin, length):
                        code += 1
                    if code == count:
                        if count == _DISTINCT_MAX or length > _TEXT_BYTES_MAX:
                            return _ODD
                        for k in range(length):
                            known[code * _TEXT_BYTES_MAX + k] = room[begin + k]
                        lengths[code] = length
                        count += 1
                    table[look] = code
                codes[row] = code
                row += 1
                begin = end
    return count


@compiled
def _is_known(
    known: Bytes, lengths: Ints, code: int, word: int, room: Bytes, begin: int, length: int
) -> Whole:
    """Whether a text, whose first bytes are ``word``, is the distinct one ``code``."""
    at = code * _TEXT_BYTES_MAX
    same = lengths[code] == length and eight(known, at) == word
    return same and (length <= 8 or equal(known, at, room, begin, length))


@compiled
def _checked(made: Ints, counts: Ints, place: int) -> Whole:
    seen = 0
    for b in range(len(counts)):
        column = _child(made, b, place)
        if not _is_whole(column) or not _rises(column, counts[b]):
            return _ODD
        begin = _offset(column, 0)
        seen |= _high_bits(_buffer(column, 2) + begin, _offset(column, counts[b]) - begin)
    return _NOT_ASCII if seen else FINITE
