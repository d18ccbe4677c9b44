"""Which of the records a worker has read go into the raw log, in order and without a gap, and which it has to read again.

Every record is offered when it is read. It waits for the warehouse if there is room, and is let go if there is none: nothing
that acts waits. What was let go, and what was read by a process that died before it was written, is read again from Kafka,
until that has come to where the worker is. So of each partition everything before ``next`` has been handed on to be written.

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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from streams.core.delivery import TopicPartition
from streams.core.records import RecordBatch


@dataclass(slots=True, eq=False)
class _Place:
    """Of one partition: the offset ``next`` to go on from (None: the warehouse has not said it yet), how far the worker has
    read, how many of its batches wait, and whether there is a gap between these."""

    live: int
    next: int | None = None
    waiting: int = 0
    gap: bool = False


class _Entry(NamedTuple):
    """Records that wait. They are all there are from offset ``start`` on."""

    tp: TopicPartition
    place: _Place
    start: int
    records: RecordBatch
    size: int


class RawLogQueue:
    """At most ``bytes_max`` of values of records that were read once wait."""

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

    def seek(self, positions: Mapping[TopicPartition, int]) -> None:
        """The worker has these partitions, no others, and reads on from there."""
        for tp in self._places.keys() - positions.keys():
            del self._places[tp]
        for tp, offset in positions.items():
            self._places.setdefault(tp, _Place(offset)).live = offset

    def unknown(self) -> list[TopicPartition]:
        """Partitions of which the warehouse has not said how far they are."""
        return [tp for tp, place in self._places.items() if place.next is None]

    def go_on(self, reached: Mapping[TopicPartition, int]) -> None:
        """The warehouse has everything before these offsets."""
        for tp, offset in reached.items():
            place = self._places.get(tp)
            if place is not None and place.next is None:
                place.next = offset

    def offer(self, records: RecordBatch) -> None:
        """The worker has read these, right behind those it had read before."""
        place = self._places.get((records.topic, records.partition))
        if place is None:
            return
        start, place.live = place.live, _end(records)
        if place.gap and not place.waiting and place.next is not None and start <= place.next:
            place.gap = False
        if place.gap or self.full:
            place.gap = True
        else:
            self._put(place, start, records)

    def take(self, records_max: int, bytes_max: int = 2**62) -> list[RecordBatch]:
        """What is to be written next; about so many records and bytes."""
        found: list[RecordBatch] = []
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
            place.next = max(place.next, _end(held))
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

    def read_again(self, start: int, records: RecordBatch) -> bool:
        """These are all there are from offset ``start`` on; whether there is a gap still."""
        place = self._places.get((records.topic, records.partition))
        if place is None or not place.gap:
            return False
        self._put(place, start, records)
        place.gap = _end(records) < place.live
        return place.gap

    def still_behind(self, tps: Iterable[TopicPartition]) -> set[TopicPartition]:
        """Those of these partitions that have a gap."""
        return {tp for tp in tps if tp in self._places and self._places[tp].gap}

    def _put(self, place: _Place, start: int, records: RecordBatch) -> None:
        size = records.values.size
        place.waiting += 1
        self.bytes += size
        self.records += len(records)
        self._entries.append(_Entry((records.topic, records.partition), place, start, records, size))


def _end(records: RecordBatch) -> int:
    return int(records.offsets[-1]) + 1
