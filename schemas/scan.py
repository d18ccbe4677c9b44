"""JSON predictions to columns in one pass over their bytes: what makes a monitor faster than a JSON parser.

The scanner takes what nearly every event is: the fields of a known model in any order, plain texts, finite numbers, under
its own key. Whatever else comes is left for the full decoder (``schemas.codecs``), which takes it or says what is wrong:
so the scanner refuses nothing, and a row means the same whoever read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, inlined
from schemas.events import ID_CHARS_MAX, MESSAGE_BYTES_MAX
from schemas.json_text import (
    FAILED,
    Bytes,
    Integers,
    Whole,
    blank,
    equal,
    find,
    is_name,
    is_null,
    name_end,
    name_number,
    number,
    punctuation,
    text_end,
)
from schemas.scan_names import (
    ENTITY,
    FEATURES,
    ID,
    LATENCY,
    MODEL,
    OF_FIELDS,
    OF_MODELS,
    OF_ROLES,
    OF_STATUSES,
    ROLE,
    SCORE,
    STATUS,
    TIME,
    TRACE,
    VERSION,
    Names,
)
from schemas.scan_rows import LogRows, Writing, finish, put_number, put_row, writing
from schemas.spans import Spans

_REQUIRED = 1 << ID | 1 << MODEL | 1 << VERSION | 1 << TIME | 1 << FEATURES
_NAME_CHARS_MAX, _TRACE_CHARS_MAX = 100, 64
_TAKEN, _LEFT, _OTHER_MODEL = 0, 1, 2
#: More versions than this in one batch are left to the full decoder.
VERSIONS_MAX = 256
_NO_NUMBER = -(2**63)


class _Into(NamedTuple):
    """What the scanner fills, a row each: whole ``(n, 8)`` (model or -1, id, its length, version, role, time, status,
    where its features begin), numbers ``(n, 2)`` (score, latency); the features, flat; where versions stand ``(v, 2)``.

    ``state``: next row, features used, model of the row before, versions known. ``guess``: which field, and of each model
    which feature, stood in this place in the event before. ``seen``: by feature, the last row that had it, plus one.
    ``log``: rows of the log.
    """

    whole: NDArray[np.int64]
    numbers: NDArray[np.float64]
    features: NDArray[np.float64]
    versions: NDArray[np.int64]
    state: Integers
    guess: Integers
    seen: Integers
    log: Writing


@dataclass(slots=True)
class Scanned:
    """Rows that were taken, ``n`` of them; ``places`` says which messages they were. ``left``: the other ones.

    ``features`` is flat; a row's begin at ``at``, as many as its model has. ``version`` counts in ``versions``.
    """

    places: Integers
    left: Integers
    model: Integers
    ids: Spans
    versions: list[str]
    version: Integers
    role: NDArray[np.int8]
    event_time_ms: Integers
    score: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    status: NDArray[np.int8]
    at: Integers
    features: NDArray[np.float64]


def scan(
    names: Names, keys: Spans, values: Spans, skip: NDArray[np.bool_], log: LogRows | None = None
) -> Scanned:
    """Take what can be taken of ``n`` messages; those that ``skip`` names are left unread. Rows of the log go to ``log``."""
    n = len(values)
    whole = np.empty((n, 8), np.int64)
    numbers = np.empty((n, 2), np.float64)
    versions = np.zeros((VERSIONS_MAX, 2), np.int64)
    state = np.full(4, 0, np.int64)
    guess, seen = np.zeros(16 + int(names.first[-1]), np.int64), np.zeros(int(names.first[-1]), np.int64)
    guess[16:] = np.concatenate(
        [np.arange(b - a) for a, b in zip(names.first[:-1], names.first[1:], strict=True)]
    )
    features = np.empty(n * max(1, int(names.first[1])), np.float64)
    rows = writing(log, values, names)
    while True:
        into = _Into(whole, numbers, features, versions, state, guess, seen, rows)
        _scan(
            keys.buffer, keys.start, keys.length, values.buffer, values.start, values.length, skip, names, into
        )  # fmt: skip
        if state[0] == n:
            break
        # The next row has no room.
        features = np.concatenate([features, np.empty(len(features) + int(np.diff(names.first).max()))])
    if log is not None:
        finish(log, rows)
    taken = whole[:, 0] >= 0
    places, left = np.flatnonzero(taken), np.flatnonzero(~taken)
    if len(left):
        whole, numbers = whole[places], numbers[places]
    told = [
        values.buffer[start : start + length].tobytes().decode()
        for start, length in versions[: int(state[3])].tolist()
    ]
    return Scanned(
        places, left, whole[:, 0], Spans(values.buffer, whole[:, 1], whole[:, 2]), told, whole[:, 3],
        whole[:, 4].astype(np.int8), whole[:, 5], numbers[:, 0], numbers[:, 1], whole[:, 6].astype(np.int8),
        whole[:, 7], features[: int(state[1])],
    )  # fmt: skip


@compiled
def _scan(
    key_bytes: Bytes, key_start: Integers, key_length: Integers, bytes_: Bytes, starts: Integers, lengths: Integers,
    skip: NDArray[np.bool_], names: Names, into: _Into,
) -> None:  # fmt: skip
    """Rows from ``state[0]`` on, as far as there is room for their features."""
    whole, state = into.whole, into.state
    n = len(starts)
    row = state[0]
    while row < n:
        whole[row, 0] = -1
        length = lengths[row]
        if skip[row] or length <= 0 or length > MESSAGE_BYTES_MAX:
            row += 1
            continue
        at, end = starts[row], starts[row] + length
        for _ in range(2):
            model = state[2]
            width = names.first[model + 1] - names.first[model]
            if state[1] + width > len(into.features):
                state[0] = row
                return
            said = _event(bytes_, at, end, row, model, names, into)
            if said != _OTHER_MODEL:
                break
        if said == _TAKEN:
            size = key_length[row]
            own = size < 0 or (
                size == whole[row, 2] and equal(key_bytes, key_start[row], bytes_, whole[row, 1], size)
            )
            if own:
                whole[row, 0] = model
                whole[row, 7] = state[1]
                state[1] += width
                if len(into.log.to):
                    put_row(bytes_, row, names, whole, into.numbers, into.log)
        row += 1
    state[0] = row


@inlined
def _event(bytes_: Bytes, at: int, end: int, row: int, model: int, names: Names, into: _Into) -> int:
    """Whether this row was taken, is left, or is of another model, which ``state`` names then."""
    whole, numbers, state, guess = into.whole, into.numbers, into.state, into.guess
    at = punctuation(bytes_, blank(bytes_, at, end), end, 123)
    whole[row, 4] = 0
    whole[row, 6] = 0
    text = into.log.text
    for field in range(ENTITY, len(text)):
        text[field, 1] = 0
    numbers[row, 0] = np.nan
    numbers[row, 1] = 0.0
    have, place, foreign = 0, 0, False
    while True:
        if at < 0 or at >= end or bytes_[at] != 34 or place >= 12:
            return _LEFT
        at += 1
        # Events of one service have their fields in one order: the field that was here in the event before is tried first.
        field = guess[place]
        if not is_name(names.table, bytes_, at, end, field):
            field = name_number(names.table, bytes_, at, end, OF_FIELDS)
            if field < 0:
                return _LEFT
            guess[place] = field
        length: Whole = names.table.length[field]
        at = punctuation(bytes_, at + length + 1, end, 58)
        if at < 0 or at >= end or have & (1 << field):
            return _LEFT
        have |= 1 << field
        place += 1
        value_at = at
        if field == FEATURES:
            at = _features(bytes_, at, end, row, model, names, into)
            if at < 0:
                if have & (1 << MODEL):
                    return _LEFT
                # They may be those of another model, which is still to be named.
                foreign, at = True, _after_object(bytes_, value_at, end)
        elif field in (TIME, SCORE, LATENCY):
            if field == SCORE and is_null(bytes_, at, end):
                at += 4
            else:
                at, value, exact = number(bytes_, at, end)
                if at < 0 or (field == TIME and exact == _NO_NUMBER) or (field == LATENCY and value < 0):
                    return _LEFT
                if field == TIME:
                    whole[row, 5] = exact
                else:
                    numbers[row, 0 if field == SCORE else 1] = value
        elif field >= ENTITY and is_null(bytes_, at, end):
            at += 4
        else:
            if at >= end or bytes_[at] != 34:
                return _LEFT
            at += 1
            stop = name_end(bytes_, at, end) if field == MODEL else text_end(bytes_, at, end)
            if stop < 0:
                return _LEFT
            length = stop - at
            text[field, 0] = at
            text[field, 1] = length
            if field == ID:
                if length == 0 or length > ID_CHARS_MAX:
                    return _LEFT
                whole[row, 1], whole[row, 2] = at, length
            elif field == MODEL:
                found = find(names.table, bytes_, at, length, OF_MODELS)
                if found < 0:
                    return _LEFT
                if names.value[found] != model:
                    state[2] = names.value[found]
                    return _OTHER_MODEL
            elif field == VERSION:
                code = _version(bytes_, at, length, into.versions, state)
                if code < 0:
                    return _LEFT
                whole[row, 3] = code
            elif field in (ROLE, STATUS):
                context = OF_ROLES if field == ROLE else OF_STATUSES
                found = find(names.table, bytes_, at, length, context)
                if found < 0:
                    return _LEFT
                whole[row, 4 if field == ROLE else 6] = names.value[found]
            elif length > (_TRACE_CHARS_MAX if field == TRACE else ID_CHARS_MAX):
                return _LEFT
            at = stop + 1
        if at < 0:
            return _LEFT
        if at < end and bytes_[at] != 44:
            at = blank(bytes_, at, end)
        if at >= end:
            return _LEFT
        if bytes_[at] == 125:
            at = blank(bytes_, at + 1, end)
            break
        at = punctuation(bytes_, at, end, 44)
    return _TAKEN if at == end and have & _REQUIRED == _REQUIRED and not foreign else _LEFT


@inlined
def _features(bytes_: Bytes, at: int, end: int, row: int, model: int, names: Names, into: _Into) -> int:
    """The place after the object of features. FAILED: they are not this model's, or not plain."""
    features, used, guess, seen, log = into.features, into.state[1], into.guess, into.seen, into.log
    start = names.first[model]
    width = names.first[model + 1] - start
    for i in range(width):
        features[used + i] = np.nan
    place, logged, numeric, texts = 0, len(log.to) > 0, 0, 0
    end_of_numbers: Whole = 0
    at = punctuation(bytes_, at, end, 123)
    while at >= 0 and at < end and bytes_[at] != 125:
        if bytes_[at] != 34 or place >= width:
            return FAILED
        at += 1
        feature = guess[16 + start + place]
        name = names.name_of[start + feature]
        if not is_name(names.table, bytes_, at, end, name):
            name = name_number(names.table, bytes_, at, end, names.model_context[model])
            if name < 0:
                return FAILED
            feature = names.value[name]
            guess[16 + start + place] = feature
        length: Whole = names.table.length[name]
        at = punctuation(bytes_, at + length + 1, end, 58)
        if at < 0 or seen[start + feature] == row + 1:
            return FAILED
        seen[start + feature] = row + 1
        place += 1
        if is_null(bytes_, at, end):
            if not names.nullable[start + feature]:
                return FAILED
            at += 4
        elif names.context_of[start + feature] < 0:
            at, value, _ = number(bytes_, at, end)
            if at < 0:
                return FAILED
            features[used + feature] = value
            if logged:
                end_of_numbers = put_number(
                    log.number, end_of_numbers, names.table.text, names.table.start[name], length, value
                )
                numeric += 1
        else:
            if at >= end or bytes_[at] != 34:
                return FAILED
            at += 1
            stop = name_end(bytes_, at, end)
            if stop < 0:
                return FAILED
            log.category[texts, 0] = name
            log.category[texts, 1] = at
            log.category[texts, 2] = stop - at
            texts += 1
            found = find(names.table, bytes_, at, stop - at, names.context_of[start + feature])
            if found < 0 and text_end(bytes_, at, end) < 0:
                return FAILED
            features[used + feature] = names.value[found] if found >= 0 else names.categories[start + feature]
            at = stop + 1
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
    log.state[2] = numeric
    log.state[3] = end_of_numbers
    log.state[4] = texts
    if place < width:
        for i in range(width):
            if seen[start + i] != row + 1 and not names.nullable[start + i]:
                return FAILED
    return at + 1


@compiled
def _after_object(bytes_: Bytes, at: int, end: int) -> int:
    """The place after the object that begins here, whatever is in it."""
    depth = 0
    while at < end:
        c = bytes_[at]
        if c == 34:
            at += 1
            while at < end and bytes_[at] != 34:
                at += 2 if bytes_[at] == 92 else 1
        elif c == 123:
            depth += 1
        elif c == 125:
            depth -= 1
        at += 1
        if depth == 0:
            return at
    return FAILED


@compiled
def _version(bytes_: Bytes, at: int, length: int, versions: Integers, state: Integers) -> Whole:
    """The number of this version among those met so far. FAILED: it is no name, or they are too many."""
    for i in range(state[3]):
        if versions[i, 1] == length and equal(bytes_, at, bytes_, versions[i, 0], length):
            return i
    if length == 0 or length > _NAME_CHARS_MAX or state[3] == len(versions):
        return FAILED
    versions[state[3], 0] = at
    versions[state[3], 1] = length
    state[3] += 1
    return state[3] - 1
