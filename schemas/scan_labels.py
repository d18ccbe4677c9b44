"""JSON ground truths to columns in one pass over their bytes, as ``schemas.scan`` does with predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.contracts import ModelContract
from schemas.events import ID_CHARS_MAX, MESSAGE_BYTES_MAX, REVISION_MAX
from schemas.json_text import (
    Bytes,
    Integers,
    Table,
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
    table_of,
    text_end,
)
from schemas.messages import TIME_MAX_MS, TIME_MIN_MS
from schemas.spans import Spans

FIELDS = ("prediction_id", "model", "label", "label_time_ms", "revision", "trace_id")
_ID, _MODEL, _LABEL, _TIME, _REVISION, _TRACE = range(len(FIELDS))
_REQUIRED = 1 << _ID | 1 << _MODEL | 1 << _LABEL | 1 << _TIME
_OF_FIELDS, _OF_MODELS = 0, 1
_TRACE_CHARS_MAX = 64


class ScannedLabels(NamedTuple):
    """Rows that were taken, ``n`` of them; ``places`` says which messages they were. ``left``: the other ones."""

    places: Integers
    left: Integers
    model: Integers
    keys: Spans
    label: NDArray[np.float64]
    label_time_ms: Integers
    revision: Integers


def label_names(contracts: Mapping[str, ModelContract]) -> Table:
    """Fields, and models by their place behind them."""
    names = [name.encode() for name in (*FIELDS, *contracts)]
    return table_of(names, [_OF_FIELDS] * len(FIELDS) + [_OF_MODELS] * len(contracts))


def scan_labels(names: Table, keys: Spans, values: Spans, skip: NDArray[np.bool_]) -> ScannedLabels:
    """Take what can be taken of ``n`` messages; those that ``skip`` names are left unread."""
    whole, label = np.empty((5, len(values)), np.int64), np.empty(len(values), np.float64)
    guess = np.zeros(len(FIELDS), np.int64)
    _scan(
        keys.buffer, keys.start, keys.length, values.buffer, values.start, values.length, skip, names, whole, label, guess
    )  # fmt: skip
    taken = whole[0] >= 0
    places, left = np.flatnonzero(taken), np.flatnonzero(~taken)
    if len(left):
        whole, label = whole[:, places], label[places]
    model, start, length, time_ms, revision = whole
    return ScannedLabels(places, left, model, Spans(values.buffer, start, length), label, time_ms, revision)


@compiled
def _scan(
    key_bytes: Bytes, key_start: Integers, key_length: Integers, bytes_: Bytes, starts: Integers, lengths: Integers,
    skip: NDArray[np.bool_], names: Table, whole: NDArray[np.int64], label: NDArray[np.float64], guess: Integers,
) -> None:  # fmt: skip
    for row in range(len(starts)):
        length = lengths[row]
        whole[0, row] = -1
        if skip[row] or length <= 0 or length > MESSAGE_BYTES_MAX:
            continue
        model = _label(bytes_, starts[row], starts[row] + length, row, names, whole, label, guess)
        size = key_length[row]
        if size < 0 or (
            size == whole[2, row] and equal(key_bytes, key_start[row], bytes_, whole[1, row], size)
        ):
            whole[0, row] = model


@compiled
def _label(
    bytes_: Bytes, at: int, end: int, row: int, names: Table, whole: NDArray[np.int64], label: NDArray[np.float64],
    guess: Integers,
) -> int:  # fmt: skip
    """The number of its model, or -1: it is left."""
    at = punctuation(bytes_, blank(bytes_, at, end), end, 123)
    have, place, model = 0, 0, -1
    whole[2, row] = 0
    whole[4, row] = 0
    while True:
        if at < 0 or at >= end or bytes_[at] != 34 or place >= 6:
            return -1
        at += 1
        field = guess[place]
        if not is_name(names, bytes_, at, end, field):
            field = name_number(names, bytes_, at, end, _OF_FIELDS)
            if field < 0:
                return -1
            guess[place] = field
        length: Whole = names.length[field]
        at = punctuation(bytes_, at + length + 1, end, 58)
        if at < 0 or at >= end or have & (1 << field):
            return -1
        have |= 1 << field
        place += 1
        if field in (_LABEL, _TIME, _REVISION):
            at, value, exact = number(bytes_, at, end)
            if at < 0:
                return -1
            if field == _LABEL:
                if value != 0.0 and value != 1.0:
                    return -1
                label[row] = value
            elif field == _TIME:
                if exact < TIME_MIN_MS or exact > TIME_MAX_MS:
                    return -1
                whole[3, row] = exact
            else:
                if exact < 0 or exact > REVISION_MAX:
                    return -1
                whole[4, row] = exact
        elif field == _TRACE and is_null(bytes_, at, end):
            at += 4
        else:
            if bytes_[at] != 34:
                return -1
            at += 1
            stop = name_end(bytes_, at, end) if field == _MODEL else text_end(bytes_, at, end)
            if stop < 0:
                return -1
            length = stop - at
            if field == _MODEL:
                model = find(names, bytes_, at, length, _OF_MODELS) - 6
                if model < 0:
                    return -1
            elif field == _ID:
                if length == 0 or length > ID_CHARS_MAX:
                    return -1
                whole[1, row] = at
                whole[2, row] = length
            elif length > _TRACE_CHARS_MAX:
                return -1
            at = stop + 1
        if at < end and bytes_[at] != 44:
            at = blank(bytes_, at, end)
        if at >= end:
            return -1
        if bytes_[at] == 125:
            at = blank(bytes_, at + 1, end)
            break
        at = punctuation(bytes_, at, end, 44)
    return model if at == end and have & _REQUIRED == _REQUIRED else -1
