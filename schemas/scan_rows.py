"""Rows of the prediction log, written while the monitor reads the events: a raw log that costs no second look at them.

What the scanner takes (``schemas.scan``) is what the log takes too, but for its time; so the row is written from what the
scanner has just found, and is the one that ``schemas.scan_log`` would make of the same bytes. Whatever the scanner leaves,
and what has another address than its own, has no row here: whoever writes the log reads it again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import eight, inlined, put_eight, put_real
from schemas.ids import ROLES
from schemas.json_text import Bytes, Integers, Whole
from schemas.messages import TIME_MAX_MS, TIME_MIN_MS
from schemas.row_binary import RowBlock, put_address, put_bytes, put_length
from schemas.scan_names import ENTITY, FIELDS, ID, MODEL, REGION, TRACE, VERSION, Names
from schemas.spans import Spans

#: Of a row beside what stands in its document, at most: numbers it need not have, defaults, its address; and what a copy in
#: words of eight bytes writes beyond its end.
_ROW_BYTES = 192
#: Behind its name, of a number: the name's length, the number, and what a copy in words writes beyond its end.
_PAIR_BYTES = 20
#: A number takes at most so many bytes more than its text does.
_NUMBER_BYTES = 7


class Writing(NamedTuple):
    """Rows that are being written ``to``, of messages ``n``: which ones may be (``plain``), their ``offsets``, which ones were.

    Of the event at hand, ``text (f, 2)``: where its texts stand, start and length; ``number``: what it has of numbers, as it is
    written; ``category (k, 3)``: a text's name, where it stands. ``state``: bytes written, partition, numbers, their bytes,
    texts.
    """

    to: Bytes
    plain: NDArray[np.bool_]
    offsets: Integers
    written: NDArray[np.bool_]
    text: NDArray[np.int64]
    number: Bytes
    category: NDArray[np.int64]
    state: Integers


class LogRows:
    """Rows of the log of messages of one partition. ``offsets (n,)``: theirs; ``own (n,)``: those that were sent here in the first
    place; ``plain (n,)``: those of them that are one event. Once they are read, ``blocks`` have the rows of those that are
    ``written (n,)``."""

    __slots__ = ("blocks", "offsets", "own", "partition", "plain", "written")

    def __init__(
        self, partition: int, offsets: Integers, own: NDArray[np.bool_], plain: NDArray[np.bool_]
    ) -> None:
        self.partition = partition
        self.offsets = offsets
        self.own = own
        self.plain = plain
        self.written = np.zeros(len(offsets), np.bool_)
        self.blocks: list[RowBlock] = []


def writing(log: LogRows | None, values: Spans, names: Names) -> Writing:
    """What the scanner writes rows to; None: it writes none."""
    features = len(names.context_of)
    none = np.zeros(0, np.bool_)
    scratch = (
        np.zeros((len(FIELDS), 2), np.int64),
        np.empty(int(names.table.length[names.name_of].sum()) + _PAIR_BYTES * (features + 1), np.uint8),
        np.zeros((features, 3), np.int64),
    )
    if log is None:
        return Writing(
            np.zeros(0, np.uint8), none, np.zeros(0, np.int64), none, *scratch, np.zeros(5, np.int64)
        )
    size = values.size
    to = np.empty(
        size + min(size, _NUMBER_BYTES * features * len(values)) + _ROW_BYTES * len(values), np.uint8
    )
    return Writing(
        to, log.plain, log.offsets, log.written, *scratch, np.array([0, log.partition, 0, 0, 0], np.int64)
    )


def finish(log: LogRows, into: Writing) -> None:
    """Every message was read."""
    rows = int(np.count_nonzero(log.written))
    if rows:
        # Cut where it lies: most of it was never touched.
        into.to.resize(int(into.state[0]), refcheck=False)
        log.blocks.append(RowBlock(rows, (into.to.data,)))


@inlined
def put_number(to: Bytes, at: Whole, names: Bytes, start: Whole, length: Whole, value: float) -> Whole:
    """Note a number of the event at hand, behind ``at`` bytes of others; where its own end."""
    at = _put_text(to, at, names, start, length)
    put_real(to, at, value)
    return at + 8


@inlined
def put_row(
    bytes_: Bytes,
    row: int,
    names: Names,
    whole: NDArray[np.int64],
    numbers: NDArray[np.float64],
    into: Writing,
) -> None:
    """Write the row of the event that was read last, from its columns and what was noted of it."""
    if not into.plain[row] or whole[row, 5] < TIME_MIN_MS or whole[row, 5] > TIME_MAX_MS:
        return
    to, text, state, table = into.to, into.text, into.state, names.table
    # Names lie in the order of their contexts: fields, models, roles, states.
    role: Whole = len(FIELDS) + len(names.model_context) + whole[row, 4]
    status: Whole = len(FIELDS) + len(names.model_context) + len(ROLES) + whole[row, 6]
    at = _put_text(to, state[0], bytes_, text[MODEL, 0], text[MODEL, 1])
    at = _put_text(to, at, bytes_, text[VERSION, 0], text[VERSION, 1])
    at = _put_text(to, at, table.text, table.start[role], table.length[role])
    at = _put_text(to, at, bytes_, text[ID, 0], text[ID, 1])
    put_eight(to, at, np.uint64(whole[row, 5]))
    at = put_length(to, at + 8, state[2])
    for i in range(0, state[3], 8):
        put_eight(to, at + i, eight(into.number, i))
    at = put_length(to, at + state[3], state[4])
    for i in range(state[4]):
        name = into.category[i, 0]
        at = _put_text(to, at, table.text, table.start[name], table.length[name])
        at = _put_text(to, at, bytes_, into.category[i, 1], into.category[i, 2])
    to[at] = 1
    at += 1
    if not np.isnan(numbers[row, 0]):
        to[at - 1] = 0
        put_real(to, at, numbers[row, 0])
        at += 8
    put_real(to, at, numbers[row, 1])
    at = _put_text(to, at + 8, table.text, table.start[status], table.length[status])
    at = _put_text(to, at, bytes_, text[ENTITY, 0], text[ENTITY, 1])
    at = _put_text(to, at, bytes_, text[TRACE, 0], text[TRACE, 1])
    at = _put_text(to, at, bytes_, text[REGION, 0], text[REGION, 1])
    state[0] = put_address(to, at, state[1], into.offsets[row], 0)
    into.written[row] = True


@inlined
def _put_text(to: Bytes, at: Whole, source: Bytes, start: Whole, length: Whole) -> Whole:
    """Write a text, in words of eight bytes where it is short and nothing ends behind it; the place after it."""
    if length >= 128 or start + length + 8 > len(source):
        return put_bytes(to, at, source, start, length)
    to[at] = length
    at += 1
    i = 0
    while i < length:
        put_eight(to, at + i, eight(source, start + i))
        i += 8
    return at + length
