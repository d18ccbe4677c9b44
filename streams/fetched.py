"""aiokafka's consumers hand out what a fetch brought as columns: an object a record is most of what they cost."""

from __future__ import annotations

from collections.abc import Iterator

from aiokafka.consumer import fetcher

from streams.core.records import RecordBatch
from streams.record_batches import read, whole_batches


class _Response:
    """The records of one partition in a fetch response, unread: what aiokafka's fetcher asks of ``MemoryRecords``."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def has_next(self) -> bool:
        return whole_batches(self.raw)

    def size_in_bytes(self) -> int:
        return len(self.raw)


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Hands out all records of a response at once."""

    def _unpack_records(self) -> Iterator[RecordBatch]:
        tp = self._tp
        batch, end = read(
            tp.topic, tp.partition, self._records.raw, self._aborted_transactions, self.next_fetch_offset
        )
        self.next_fetch_offset: int = end
        if len(batch):
            yield batch


def hand_out_batches() -> None:
    """From now on every consumer of this process yields a ``RecordBatch`` in the place of records: the fetcher has no other
    seam, and no process has consumers of both kinds."""
    fetcher.MemoryRecords, fetcher.PartitionRecords = _Response, _PartitionRecords
