"""The join index's rows as columns: some ninety bytes a prediction, and a batch of thousands is one copy.

Rows stand in the order of their numbers, which count up for ever; a row that has left stays in place until the columns
are packed. No text is kept: a prediction is known by 96 bits of its id and of its model's name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled
from streams.core.growing import Growing
from streams.core.hash_table import SLOT_BYTES, SLOTS_PER_ROW, HashTable

NO_REVISION = -1
#: What belongs to a row. ``link``: the next row of the same prediction id, -1 when there is none. ``kind``: code of what
#: it shares with others. ``revision`` -1: no label yet.
DTYPES: dict[str, str] = {
    "number": "<i8",
    "key": "<u8",
    "check": "<u4",
    "kind": "<i4",
    "event_time_ms": "<i8",
    "score": "<f8",
    "status": "|i1",
    "partition": "<i4",
    "offset": "<i8",
    "row": "<i4",
    "revision": "<i4",
    "label": "<f8",
    "label_time_ms": "<i8",
    "link": "<i4",
    "alive": "|b1",
}
_GROWTH = 1.25
#: Room for more than so many times the rows that are left, and for more than so many rows, is given back.
_SPARE, _SPARE_ROWS_MIN = 4, 16_384
#: Of a row in the columns and in the table over them, which on average are as far from full as this says.
ROW_BYTES = round(
    sum(np.dtype(d).itemsize for d in DTYPES.values()) * 1.12 + SLOT_BYTES * SLOTS_PER_ROW * 1.5
)


class JoinRows:
    """Columns of ``size`` rows, each longer than that, and a table that finds them by their key.

    The table knows the first row of a prediction id; further ones (other roles, other versions) are linked behind it.
    """

    number: NDArray[np.int64]
    key: NDArray[np.uint64]
    check: NDArray[np.uint32]
    kind: NDArray[np.int32]
    event_time_ms: NDArray[np.int64]
    score: NDArray[np.float64]
    status: NDArray[np.int8]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    row: NDArray[np.int32]
    revision: NDArray[np.int32]
    label: NDArray[np.float64]
    label_time_ms: NDArray[np.int64]
    link: NDArray[np.int32]
    alive: NDArray[np.bool_]

    def __init__(self) -> None:
        self.size = 0
        self._table = HashTable()
        self._rooms = {name: Growing(dtype) for name, dtype in DTYPES.items()}
        self._reserve(1)

    def append(self, rows: int, **columns: Any) -> int:
        """Put ``rows`` rows at the end, what is not given as zeros; the position of the first."""
        start, end = self.size, self.size + rows
        if end > self._capacity:
            self._reserve(max(end, round(self._capacity * _GROWTH)))
        for name, values in columns.items():
            getattr(self, name)[start:end] = values
        self.size = end
        return start

    def _reserve(self, rows: int) -> None:
        for name, room in self._rooms.items():
            # A column that somebody has cannot be moved.
            self.__dict__.pop(name, None)
            setattr(self, name, room.column(rows))
        self._capacity = min(len(getattr(self, name)) for name in DTYPES)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns, those that nothing was written to yet among them."""
        return sum(room.nbytes for room in self._rooms.values())

    def position_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows with these numbers stand; -1 for those that are not alive."""
        at = np.searchsorted(self.number[: self.size], numbers)
        inside = np.minimum(at, max(self.size - 1, 0))
        there = (at < self.size) & (self.number[inside] == numbers) & self.alive[inside]
        return np.where(there, at, -1)

    def between(self, first: int, end: int) -> slice:
        """The rows with numbers from ``first`` on and below ``end``."""
        low, high = np.searchsorted(self.number[: self.size], [first, end])
        return slice(int(low), int(high))

    def living(self, first: int, end: int) -> NDArray[np.int64]:
        """Positions of living rows with numbers from ``first`` on and below ``end``."""
        within = self.between(first, end)
        found: NDArray[np.int64] = np.flatnonzero(self.alive[within]) + within.start
        return found

    # -- by key ---------------------------------------------------------------------------------------------------

    def has_room(self, rows: int) -> bool:
        """Whether so many more may be entered."""
        return self._table.has_room(rows)

    def find(self, key: NDArray[np.uint64], check: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The first row of each prediction, -1 where there is none."""
        return self._table.find(key, check, self.key, self.check)

    def enter(self, first: int, end: int, but: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Let rows that were appended be found, and live, unless their prediction has one: the first it has, else -1. Those of
        ``but`` are left out."""
        other = np.full(end - first, -1, np.int64)
        runs = [(0, end - first)]
        if but.any():
            runs = np.flatnonzero(np.diff(but, prepend=True, append=True)).reshape(-1, 2).tolist()
        for low, high in runs:
            other[low:high] = self._table.claim(first + low, first + high, self.key, self.check)
            np.less(other[low:high], 0, out=self.alive[first + low : first + high])
        return other

    def settle(
        self, at: NDArray[np.int64], label: NDArray[np.float64], time_ms: NDArray[np.int64], revision: NDArray[np.int64],
        last_ms: NDArray[np.int64],
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Give label i to the row ``at[i]`` if that is alone, had none, and its kind's ``last_ms`` has not passed by the label's own
        time; which were given. A position may be -1, or come again."""
        given = np.empty(len(at), np.bool_)
        _settle(
            at, label, time_ms, revision, last_ms, self.kind, self.link, self.revision, self.label, self.label_time_ms, given
        )  # fmt: skip
        return given

    def chain(self, head: int) -> list[int]:
        """All rows of the prediction whose first one this is."""
        found = [head]
        while self.link[found[-1]] >= 0:
            found.append(int(self.link[found[-1]]))
        return found

    def remove(self, at: NDArray[np.int64]) -> None:
        """Rows leave."""
        head = self.find(self.key[at], self.check[at])
        alone = (head == at) & (self.link[at] < 0)
        self.alive[at] = False
        self._table.drop(self.key[at[alone]], at[alone])
        for position in at[~alone].tolist():
            self._unlink(position)

    def _unlink(self, position: int) -> None:
        key, after = self.key[position : position + 1], int(self.link[position])
        head = int(self.find(key, self.check[position : position + 1])[0])
        if head != position:
            chain = self.chain(head)
            self.link[chain[chain.index(position) - 1]] = after
        elif after >= 0:
            self._table.replace(int(key[0]), position, after)
        else:
            self._table.drop(key, np.array([position]))
        self.link[position] = -1

    def index(self, rows: int = 0) -> None:
        """Make the table anew, with room for so many more rows."""
        self._table.clear(2 * self.size + rows)
        self.link[: self.size] = -1
        other = self._table.claim(0, self.size, self.key, self.check)
        for position in np.flatnonzero(other >= 0).tolist():
            self.link[self.chain(int(other[position]))[-1]] = position

    def pack(self) -> None:
        """Close the gaps of rows that have left; ``index`` must follow."""
        keep = np.flatnonzero(self.alive[: self.size])
        for name in DTYPES:
            column = getattr(self, name)
            column[: len(keep)] = column[keep]
            column[len(keep) : self.size] = 0
            del column
        self.size = len(keep)
        if self._capacity > max(_SPARE * self.size, _SPARE_ROWS_MIN):
            self._reserve(round(self.size * _GROWTH))


@compiled
def _settle(
    at: NDArray[np.int64], label: NDArray[np.float64], time_ms: NDArray[np.int64], revision: NDArray[np.int64],
    last_ms: NDArray[np.int64], kinds: NDArray[np.int32], links: NDArray[np.int32], revisions: NDArray[np.int32],
    labels: NDArray[np.float64], times_ms: NDArray[np.int64], given: NDArray[np.bool_],
) -> None:  # fmt: skip
    for i in range(len(at)):
        row = at[i]
        given[i] = row >= 0 and links[row] < 0 and revisions[row] == -1 and time_ms[i] <= last_ms[kinds[row]]
        if given[i]:
            revisions[row] = revision[i]
            labels[row] = label[i]
            times_ms[row] = time_ms[i]
