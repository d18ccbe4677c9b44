"""Which of the records a worker has read go into the raw log, in order and without a gap, and which it has to read again.

Every record is offered when the core has come back from it, as a row where the core made one on its way. It waits for the
warehouse if there is room, and is let go if there is none: nothing that acts waits. What was let go, and what was
read by a process that died before it was written, is read again from Kafka, until that has come to where the worker is. So
of each partition everything before ``next`` has been handed on to be written.

What is known of the partition, what comes, what is done:

    next is not known yet         records were read        they wait for the warehouse's answer, as far as there is room
    no gap, there is room         records were read        they wait, and are written in their turn
    no gap, there is no room      records were read        let go: there is a gap from the end of what waits on
    a gap                         records were read        let go; how far the worker has read moves on
    a gap, nothing waits          -                        read again from ``next`` on
    a gap                         read again, up to live   the gap is closed: what is read next waits again
    next = n                      the turn of start > n    let go: a worker before had read, not written, what lies between
    next = n                      the turn of start <= n   what lies before n is in already; the rest is written, next = end

    the process dies                                       after recovery
    before rows are written                                next is what the warehouse says: they are read again
    behind rows, before how far that is is written         the same rows again, to the same keys
    and somebody else has the partition meanwhile          both write the same rows to the same keys
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from schemas.row_binary import RowBlock
from schemas.scan_rows import LogRows
from streams.core.delivery import TopicPartition
from streams.core.records import RecordBatch


@dataclass(frozen=True, slots=True)
class Stretch:
    """All there is of a partition up to ``end``: ``rows`` of its log that were made already, and ``records`` of which none
    were, in their order."""

    topic: str
    partition: int
    end: int
    records: tuple[RecordBatch, ...]
    rows: tuple[RowBlock, ...] = ()

    @classmethod
    def of(cls, batch: RecordBatch) -> Stretch:
        """Records, at least one, of which no rows were made."""
        return cls(batch.topic, batch.partition, int(batch.offsets[-1]) + 1, (batch,))

    def __len__(self) -> int:
        """How many records and rows."""
        return sum(map(len, self.records)) + sum(block.rows for block in self.rows)

    @property
    def size(self) -> int:
        """Bytes it holds on to."""
        return sum(batch.values.size for batch in self.records) + sum(block.held for block in self.rows)

    def since(self, offset: int) -> Stretch:
        """What of it is from ``offset`` on; rows cannot be told apart, and are written again."""
        rows = self.rows if offset < self.end else ()
        records = (batch.since(offset) for batch in self.records)
        return replace(self, records=tuple(batch for batch in records if len(batch)), rows=rows)


def stretch_of(batches: Sequence[RecordBatch], logged: Sequence[LogRows]) -> Stretch:
    """Batches of one partition, at least one, one behind the other, of some records of which rows were made."""
    last = batches[-1]
    written = np.concatenate([log.offsets[log.written] for log in logged] or [np.zeros(0, np.int64)])
    left = []
    for batch in batches:
        at = np.searchsorted(written, batch.offsets)
        known = np.append(written, -1)[at] == batch.offsets
        if not known.any():
            left.append(batch)
        elif not known.all():
            rest = batch.take(np.flatnonzero(~known))
            # A few ticks must not keep the whole of a fetch in memory.
            rest.keys, rest.values = rest.keys.alone(), rest.values.alone()
            left.append(rest)
    rows = tuple(block for log in logged for block in log.blocks)
    return Stretch(last.topic, last.partition, int(last.offsets[-1]) + 1, tuple(left), rows)


@dataclass(slots=True, eq=False)
class _Place:
    """Of one partition: the offset ``next`` to go on from (None: the warehouse has not said it yet), how far the worker has
    read, how many of its batches wait, and whether there is a gap between these."""

    live: int
    next: int | None = None
    waiting: int = 0
    gap: bool = False


class _Entry(NamedTuple):
    """What waits. It is all there is from offset ``start`` on."""

    tp: TopicPartition
    place: _Place
    start: int
    held: Stretch
    size: int


class RawLogQueue:
    """At most ``bytes_max`` of rows and of values of records that were read once wait."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._places: dict[TopicPartition, _Place] = {}
        self._entries: deque[_Entry] = deque()
        #: Of what waits.
        self.bytes = 0
        self.records = 0

    @property
    def full(self) -> bool:
        """Whether nothing more can wait."""
        return self.bytes >= self._bytes_max

    def follow(self, positions: Mapping[TopicPartition, int]) -> None:
        """The worker has these partitions now, and reads on from there."""
        for tp, offset in positions.items():
            self._places[tp] = _Place(offset)

    def leave(self, tps: Iterable[TopicPartition]) -> None:
        """It does not have these any more. What waits of them is for whoever has them next."""
        for tp in tps:
            self._places.pop(tp, None)

    def unknown(self) -> list[TopicPartition]:
        """Partitions of which the warehouse has not said how far they are."""
        return [tp for tp, place in self._places.items() if place.next is None]

    def go_on(self, reached: Mapping[TopicPartition, int]) -> None:
        """The warehouse has everything before these offsets."""
        for tp, offset in reached.items():
            place = self._places.get(tp)
            if place is not None and place.next is None:
                place.next = offset

    def offer(self, held: Stretch) -> None:
        """The worker has read this, right behind what it had read before."""
        place = self._places.get((held.topic, held.partition))
        if place is None:
            return
        start, place.live = place.live, held.end
        if place.gap and not place.waiting and place.next is not None and start <= place.next:
            place.gap = False
        if place.gap or self.full:
            place.gap = True
        else:
            self._put(place, start, held)

    def take(self, records_max: int, bytes_max: int = 2**62) -> list[Stretch]:
        """What is to be written next; about so many records and bytes."""
        found: list[Stretch] = []
        records = size_taken = 0
        while self._entries and records < records_max and size_taken < bytes_max:
            entry = self._entries[0]
            tp, place, start, held, size = entry
            if place.next is None and self._places.get(tp) is place:
                break
            self._entries.popleft()
            place.waiting -= 1
            self.bytes -= size
            self.records -= len(held)
            if self._places.get(tp) is not place or place.next is None:
                continue
            if start > place.next:
                place.gap = True
                continue
            fresh = held.since(place.next)
            place.next = max(place.next, held.end)
            if len(fresh):
                found.append(fresh)
                records += len(fresh)
                size_taken += size
        return found

    def behind(self) -> dict[TopicPartition, int]:
        """Partitions with a gap, and where it begins, once nothing of them waits any more."""
        found = {}
        for tp, place in self._places.items():
            if place.next is not None and not place.waiting and (place.gap or place.next < place.live):
                place.gap = True
                found[tp] = place.next
        return found

    def read_again(self, start: int, held: Stretch) -> bool:
        """This is all there is from offset ``start`` on; whether there is a gap still."""
        place = self._places.get((held.topic, held.partition))
        if place is None or not place.gap:
            return False
        self._put(place, start, held)
        place.gap = held.end < place.live
        return place.gap

    def still_behind(self, tps: Iterable[TopicPartition]) -> set[TopicPartition]:
        """Those of these partitions that have a gap."""
        return {tp for tp in tps if tp in self._places and self._places[tp].gap}

    def _put(self, place: _Place, start: int, held: Stretch) -> None:
        size = held.size
        place.waiting += 1
        self.bytes += size
        self.records += len(held)
        self._entries.append(_Entry((held.topic, held.partition), place, start, held, size))
