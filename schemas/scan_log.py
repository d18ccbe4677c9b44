"""JSON events to rows of a log table in one pass over their bytes: a raw log that costs less than parsing.

A log row is a copy: no contract is asked, features are whatever was sent. What the scanner does not take (escapes, rare
numbers, a field twice, anything wrong) it leaves for a full decoder, which takes it or says what is wrong; a row means the
same whoever made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, put_eight, put_real
from schemas.events import MESSAGE_BYTES_MAX
from schemas.json_text import (
    FAILED,
    Bytes,
    Integers,
    Table,
    Whole,
    blank,
    equal,
    find,
    is_name,
    is_null,
    name_number,
    number,
    punctuation,
    table_of,
    text_size,
)
from schemas.row_binary import RowBlock, put_address, put_bytes, put_four, put_length
from schemas.spans import Spans

#: What a field's value is, and how it is written: a text, a 64-bit or 32-bit whole number, a double, one that is not
#: negative, a double or null, two maps of what is in an object (numbers, texts).
KINDS = ("text", "long", "short", "real", "real from 0", "real or null", "maps")
_TEXT, _LONG, _SHORT, _REAL, _REAL_FROM_0, _REAL_OR_NULL, _MAPS = range(len(KINDS))
#: Nothing else than these bounds what ClickHouse takes.
_ANY = 2**31
_NO_NUMBER = -(2**63)
#: Events with more features are left.
FEATURES_MAX = 2_048
#: Of a row beside its values, at most: lengths, numbers of fields it need not have, its address.
ROW_BYTES = 256
_MULTIPLIER = 0x9E3779B97F4A7C15


class Field(NamedTuple):
    """A field of a document, in the order of its table's columns; ``kind``: one of ``KINDS``. ``default``: the text of what
    need not be there (a number is 0 then); None: it must. ``low`` and ``high``: of a whole number, of a text's characters.
    ``null``: it may be null, which is not there. ``values``: the only ones there are."""

    name: str
    kind: str
    default: str | None = None
    low: int = 0
    high: int = _ANY
    null: bool = False
    values: tuple[str, ...] = ()


class _Shape(NamedTuple):
    """Fields by their place: ``rule (f, 6)`` is kind, low, high, may be null, context of its values (-1: any), number of its
    default among the names. ``required``: a bit for each field that must be there."""

    names: Table
    rule: NDArray[np.int64]
    required: int


class _Scratch(NamedTuple):
    """Of the row at hand: ``field (f, 2)`` start and length or the whole number, ``real (f,)``; features ``(FEATURES_MAX, 4)``
    name, its length, value, its length (-1: a number, -2: none) and ``feature_real``. ``before``: names and lengths of the
    row before. ``seen``: a set of names, each stamped with its row. ``guess``: which field stood at this place before."""

    field: NDArray[np.int64]
    real: NDArray[np.float64]
    feature: NDArray[np.int64]
    feature_real: NDArray[np.float64]
    before: NDArray[np.int64]
    seen: NDArray[np.int64]
    guess: Integers
    #: Features of this row, of the row before, the row's stamp.
    state: Integers


class LogScanner:
    """Makes rows of documents with these fields; make once. Not thread-safe."""

    def __init__(self, fields: Sequence[Field]) -> None:
        texts = [field.name for field in fields]
        contexts = [0] * len(fields)
        rule = []
        for field in fields:
            context = -1
            if field.values:
                context = len(texts)
                contexts += [context] * len(field.values)
                texts += field.values
            default = -1
            if field.default is not None:
                default = len(texts)
                contexts.append(-1 - default)
                texts.append(field.default)
            rule.append((KINDS.index(field.kind), field.low, field.high, field.null, context, default))
        self._row_bytes = ROW_BYTES + sum(len((field.default or "").encode()) for field in fields)
        required = sum(1 << at for at, field in enumerate(fields) if field.default is None)
        names = table_of([text.encode() for text in texts], contexts)
        self._to = np.empty(0, np.uint8)
        self._shape = _Shape(names, np.array(rule, np.int64), required)
        width = len(fields)
        self._scratch = _Scratch(
            np.zeros((width, 2), np.int64), np.zeros(width), np.zeros((FEATURES_MAX, 4), np.int64), np.zeros(FEATURES_MAX),
            np.zeros((FEATURES_MAX, 2), np.int64), np.zeros((4 * FEATURES_MAX, 3), np.int64), np.zeros(width, np.int64),
            np.zeros(3, np.int64),
        )  # fmt: skip

    def rows(
        self, values: Spans, skip: NDArray[np.bool_], partition: int, offsets: NDArray[np.int64]
    ) -> tuple[RowBlock, NDArray[np.int64]]:
        """Rows of ``n`` messages but those that ``skip`` names, and the places of those that are left, skipped ones too.

        A row ends with its address: partition, offset, row 0 of its message.
        """
        n = len(values)
        taken = np.zeros(n, np.bool_)
        most = 2 * int(np.maximum(values.length, 0).sum()) + n * self._row_bytes
        if len(self._to) < most:
            self._to = np.empty(most, np.uint8)
        self._scratch.state[1] = 0
        size = _rows(
            values.buffer, values.start, values.length, skip, self._shape, self._scratch, partition, offsets, taken,
            self._to,
        )  # fmt: skip
        # A copy of what was written: pages that were touched once are quicker than new ones.
        return RowBlock(
            int(np.count_nonzero(taken)), (memoryview(self._to[:size].tobytes()),)
        ), np.flatnonzero(~taken)


@compiled
def _rows(
    bytes_: Bytes, starts: Integers, lengths: Integers, skip: NDArray[np.bool_], shape: _Shape, scratch: _Scratch,
    partition: int, offsets: Integers, taken: NDArray[np.bool_], to: Bytes,
) -> Whole:  # fmt: skip
    """Write rows to ``to``; how many bytes."""
    at = 0
    for row in range(len(starts)):
        length = lengths[row]
        if skip[row] or length <= 0 or length > MESSAGE_BYTES_MAX:
            continue
        have = _read(bytes_, starts[row], starts[row] + length, shape, scratch)
        if have < 0:
            continue
        taken[row] = True
        at = _write(bytes_, shape, scratch, have, to, at)
        at = put_address(to, at, partition, offsets[row], 0)
    return at


@compiled
def _read(bytes_: Bytes, at: int, end: int, shape: _Shape, scratch: _Scratch) -> Whole:
    """Which fields the document has, a bit each, and where. FAILED: it is left."""
    names, rule, guess = shape.names, shape.rule, scratch.guess
    at = punctuation(bytes_, blank(bytes_, at, end), end, 123)
    have, place = np.int64(0), 0
    while True:
        if at < 0 or at >= end or bytes_[at] != 34 or place >= len(rule):
            return FAILED
        at += 1
        field = guess[place]
        if not is_name(names, bytes_, at, end, field):
            field = name_number(names, bytes_, at, end, 0)
            if field < 0:
                return FAILED
            guess[place] = field
        size: Whole = names.length[field]
        at = punctuation(bytes_, at + size + 1, end, 58)
        if at < 0 or at >= end or have & (1 << field):
            return FAILED
        place += 1
        kind = rule[field, 0]
        if is_null(bytes_, at, end):
            if rule[field, 3] == 0:
                return FAILED
            at += 4
        else:
            have |= 1 << field
            if kind == _MAPS:
                at = _features(bytes_, at, end, scratch)
            elif kind == _TEXT:
                if bytes_[at] != 34:
                    return FAILED
                at += 1
                stop, chars = text_size(bytes_, at, end)
                if stop < 0 or chars < rule[field, 1] or chars > rule[field, 2]:
                    return FAILED
                if rule[field, 4] >= 0 and find(names, bytes_, at, stop - at, rule[field, 4]) < 0:
                    return FAILED
                scratch.field[field, 0] = at
                scratch.field[field, 1] = stop - at
                at = stop + 1
            else:
                at, value, exact = number(bytes_, at, end)
                scratch.real[field] = value
                scratch.field[field, 0] = exact
                if kind == _LONG or kind == _SHORT:
                    if exact == _NO_NUMBER or exact < rule[field, 1] or exact > rule[field, 2]:
                        return FAILED
                elif kind == _REAL_FROM_0 and value < 0:
                    return FAILED
            if at < 0:
                return FAILED
        if at < end and bytes_[at] != 44:
            at = blank(bytes_, at, end)
        if at >= end:
            return FAILED
        if bytes_[at] == 125:
            at = blank(bytes_, at + 1, end)
            break
        at = punctuation(bytes_, at, end, 44)
    return have if at == end and have & shape.required == shape.required else np.int64(FAILED)


@compiled
def _features(bytes_: Bytes, at: int, end: int, scratch: _Scratch) -> Whole:
    """The place after the object; its names and values are in ``scratch``. FAILED: it is left."""
    feature, before, state = scratch.feature, scratch.before, scratch.state
    count, same = 0, True
    at = punctuation(bytes_, at, end, 123)
    while at >= 0 and at < end and bytes_[at] != 125:
        if bytes_[at] != 34 or count >= FEATURES_MAX:
            return FAILED
        at += 1
        # Events of one model have their features in one order: a name that stood here before needs no second look.
        size = before[count, 1]
        stop = at + size
        known = (
            count < state[1]
            and stop < end
            and bytes_[stop] == 34
            and equal(bytes_, at, bytes_, before[count, 0], size)
        )
        if not known:
            same = False
            stop, _ = text_size(bytes_, at, end)
            if stop < 0:
                return FAILED
        feature[count, 0] = at
        feature[count, 1] = stop - at
        at = punctuation(bytes_, stop + 1, end, 58)
        if at < 0 or at >= end:
            return FAILED
        c = bytes_[at]
        if c == 34:
            at += 1
            stop, _ = text_size(bytes_, at, end)
            if stop < 0:
                return FAILED
            feature[count, 2] = at
            feature[count, 3] = stop - at
            at = stop + 1
        elif c == 110 or c == 116 or c == 102:
            feature[count, 3] = -2 if c == 110 else -1
            scratch.feature_real[count] = 1.0 if c == 116 else 0.0
            at = _word(bytes_, at, end)
        else:
            at, value, _ = number(bytes_, at, end)
            feature[count, 3] = -1
            scratch.feature_real[count] = value
        if at < 0:
            return FAILED
        count += 1
        if at < end and bytes_[at] != 44:
            at = blank(bytes_, at, end)
        if at < end and bytes_[at] == 44:
            at = punctuation(bytes_, at, end, 44)
            if at >= end or bytes_[at] != 34:
                return FAILED
        elif at >= end or bytes_[at] != 125:
            return FAILED
    if at < 0 or at >= end:
        return FAILED
    state[0] = count
    if not same:
        if _twice(bytes_, scratch, count):
            return FAILED
        for i in range(count):
            before[i, 0] = feature[i, 0]
            before[i, 1] = feature[i, 1]
        state[1] = count
    return at + 1


@compiled
def _word(bytes_: Bytes, at: int, end: int) -> Whole:
    """The place after null, true or false. FAILED: it is none."""
    if is_null(bytes_, at, end):
        return at + 4
    if (
        at + 4 <= end
        and bytes_[at] == 116
        and bytes_[at + 1] == 114
        and bytes_[at + 2] == 117
        and bytes_[at + 3] == 101
    ):
        return at + 4
    false = at + 5 <= end and bytes_[at] == 102 and bytes_[at + 1] == 97 and bytes_[at + 2] == 108
    return at + 5 if false and bytes_[at + 3] == 115 and bytes_[at + 4] == 101 else np.int64(FAILED)


@compiled
def _twice(bytes_: Bytes, scratch: _Scratch, count: int) -> bool:
    """Whether two features have one name."""
    feature, seen, state = scratch.feature, scratch.seen, scratch.state
    state[2] += 1
    stamp, mask = state[2], len(seen) - 1
    for i in range(count):
        start, size = feature[i, 0], feature[i, 1]
        h = np.uint64(size)
        for k in range(size):
            h = (h ^ np.uint64(bytes_[start + k])) * np.uint64(_MULTIPLIER)
        h ^= h >> np.uint64(32)
        at = np.int64(h & np.uint64(mask))
        while seen[at, 0] == stamp:
            if seen[at, 2] == size and equal(bytes_, seen[at, 1], bytes_, start, size):
                return True
            at = (at + 1) & mask
        seen[at, 0] = stamp
        seen[at, 1] = start
        seen[at, 2] = size
    return False


@compiled
def _write(bytes_: Bytes, shape: _Shape, scratch: _Scratch, have: Whole, to: Bytes, at: Whole) -> Whole:
    """Write the fields of a row; the place after them."""
    names, rule = shape.names, shape.rule
    for field in range(len(rule)):
        kind, there = rule[field, 0], have & (1 << field) != 0
        if kind == _TEXT:
            if there:
                at = put_bytes(to, at, bytes_, scratch.field[field, 0], scratch.field[field, 1])
            else:
                default = rule[field, 5]
                at = put_bytes(to, at, names.text, names.start[default], names.length[default])
        elif kind == _LONG:
            put_eight(to, at, np.uint64(scratch.field[field, 0] if there else 0))
            at += 8
        elif kind == _SHORT:
            at = put_four(to, at, scratch.field[field, 0] if there else 0)
        elif kind == _MAPS:
            at = _write_maps(bytes_, scratch, to, at)
        else:
            if kind == _REAL_OR_NULL:
                to[at] = 0 if there else 1
                at += 1
            if there or kind != _REAL_OR_NULL:
                put_real(to, at, scratch.real[field] if there else 0.0)
                at += 8
    return at


@compiled
def _write_maps(bytes_: Bytes, scratch: _Scratch, to: Bytes, at: Whole) -> Whole:
    """Write what numbers the object has, then what texts."""
    feature, count = scratch.feature, scratch.state[0]
    numbers = texts = 0
    for i in range(count):
        numbers += feature[i, 3] == -1
        texts += feature[i, 3] >= 0
    at = put_length(to, at, numbers)
    for i in range(count):
        if feature[i, 3] == -1:
            at = put_bytes(to, at, bytes_, feature[i, 0], feature[i, 1])
            put_real(to, at, scratch.feature_real[i])
            at += 8
    at = put_length(to, at, texts)
    for i in range(count):
        if feature[i, 3] >= 0:
            at = put_bytes(to, at, bytes_, feature[i, 0], feature[i, 1])
            at = put_bytes(to, at, bytes_, feature[i, 2], feature[i, 3])
    return at
