"""Input records, one by one and many at once: a core that works on columns is handed columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.spans import Spans

_NO_HEADERS: Mapping[str, bytes] = {}


class Record(msgspec.Struct, frozen=True, gc=False):
    """One input record. ``topic`` is the logical name (no prefix); ``timestamp_ms`` is the broker's, not event time."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes] = _NO_HEADERS
    timestamp_ms: int = 0


class RecordBatch:
    """Consecutive records of one partition as columns. ``headers``: of those that have any, by their place."""

    __slots__ = ("headers", "keys", "offsets", "partition", "timestamps_ms", "topic", "values")

    def __init__(
        self,
        topic: str,
        partition: int,
        offsets: NDArray[np.int64],
        keys: Spans,
        values: Spans,
        headers: Mapping[int, Mapping[str, bytes]],
        timestamps_ms: NDArray[np.int64],
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.offsets = offsets
        self.keys = keys
        self.values = values
        self.headers = headers
        self.timestamps_ms = timestamps_ms

    @classmethod
    def of(cls, records: Sequence[Record]) -> RecordBatch:
        """Records of one partition, at least one."""
        return cls(
            records[0].topic,
            records[0].partition,
            np.array([r.offset for r in records], np.int64),
            Spans.of([r.key for r in records]),
            Spans.of([r.value for r in records]),
            {at: r.headers for at, r in enumerate(records) if r.headers},
            np.array([r.timestamp_ms for r in records], np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, at: int) -> Record:
        return Record(
            self.topic,
            self.partition,
            int(self.offsets[at]),
            self.keys[at],
            self.values[at],
            self.headers.get(at, _NO_HEADERS),
            int(self.timestamps_ms[at]),
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[at] for at in range(len(self)))

    def named(self, topic: str) -> RecordBatch:
        """The same under another topic's name."""
        return RecordBatch(
            topic, self.partition, self.offsets, self.keys, self.values, self.headers, self.timestamps_ms
        )

    def part(self, start: int, end: int) -> RecordBatch:
        """Those from place ``start`` on and before ``end``."""
        if start == 0 and end == len(self):
            return self
        within = slice(start, end)
        headers = {at - start: held for at, held in self.headers.items() if start <= at < end}
        return RecordBatch(
            self.topic, self.partition, self.offsets[within], self.keys[within], self.values[within], headers,
            self.timestamps_ms[within],
        )  # fmt: skip

    def take(self, places: NDArray[np.int64]) -> RecordBatch:
        """Those at ``places``, which rise."""
        headers = {
            at: self.headers[place] for at, place in enumerate(places.tolist()) if place in self.headers
        }
        return RecordBatch(
            self.topic, self.partition, self.offsets[places], self.keys.take(places), self.values.take(places), headers,
            self.timestamps_ms[places],
        )  # fmt: skip

    def since(self, offset: int) -> RecordBatch:
        """Those from ``offset`` on."""
        return self.part(int(np.searchsorted(self.offsets, offset)), len(self))


#: What a core is handed.
Input = Record | RecordBatch


def one_by_one(records: Iterable[Input]) -> Iterator[Record]:
    """For a core that works record by record."""
    for record in records:
        if isinstance(record, Record):
            yield record
        else:
            yield from record


def batches(records: Iterable[Input]) -> Iterator[RecordBatch]:
    """For a core that works on columns: neighbours of one topic together, in their order."""
    alone: list[Record] = []
    for record in records:
        if alone and (isinstance(record, RecordBatch) or record.topic != alone[0].topic):
            yield RecordBatch.of(alone)
            alone = []
        if isinstance(record, RecordBatch):
            yield record
        else:
            alone.append(record)
    if alone:
        yield RecordBatch.of(alone)


def joined(parts: Iterable[RecordBatch]) -> Iterator[RecordBatch]:
    """Neighbours of one topic and partition as one batch: for a core to which every batch costs something by itself."""
    for _, found in itertools.groupby(parts, lambda batch: (batch.topic, batch.partition)):
        of = list(found)
        if len(of) == 1:
            yield of[0]
            continue
        starts = itertools.accumulate((len(batch) for batch in of), initial=0)
        headers = {
            start + at: held
            for start, batch in zip(starts, of, strict=False)
            for at, held in batch.headers.items()
        }
        yield RecordBatch(
            of[0].topic,
            of[0].partition,
            np.concatenate([batch.offsets for batch in of]),
            Spans.concat([batch.keys for batch in of]),
            Spans.concat([batch.values for batch in of]),
            headers,
            np.concatenate([batch.timestamps_ms for batch in of]),
        )
