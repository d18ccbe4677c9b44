"""A Kafka that fits in a dictionary: what readers of committed records may see, in any order a real one may show it.

Offsets have holes (markers, aborted records, compaction). A commit is decided at once and becomes visible partition by
partition, each when its marker is written; nothing behind an open transaction is readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from schemas.errors import Fenced
from streams.core.delivery import TopicPartition
from streams.core.records import Record


class Fate(Enum):
    """What became of a record."""

    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(slots=True)
class Slot:
    """One record as the broker holds it."""

    record: Record
    fate: Fate = Fate.COMMITTED


@dataclass(slots=True)
class Partition:
    """``start``: the first offset retention has left. ``end``: the next one."""

    start: int = 0
    end: int = 0
    slots: list[Slot] = field(default_factory=list)

    def readable(self) -> list[Record]:
        """Committed records in front of the first open transaction."""
        found = []
        for slot in self.slots:
            if slot.fate is Fate.OPEN:
                break
            if slot.fate is Fate.COMMITTED:
                found.append(slot.record)
        return found


@dataclass(slots=True)
class _Transaction:
    slots: dict[TopicPartition, list[Slot]] = field(default_factory=dict)


class Log:
    """Topics, producers' epochs, transactions."""

    def __init__(self) -> None:
        self.partitions: dict[TopicPartition, Partition] = {}
        self._epochs: dict[str, int] = {}
        self._open: dict[str, _Transaction] = {}
        self._due: list[tuple[str, TopicPartition, list[Slot]]] = []
        #: Witnesses of what was committed, by producer: no part of the log, the simulation's own notes.
        self.committed: dict[str, list[Any]] = {}

    def partition(self, tp: TopicPartition) -> Partition:
        """The partition, made if need be."""
        found = self.partitions.get(tp)
        if found is None:
            found = self.partitions[tp] = Partition()
        return found

    def _append(
        self,
        tp: TopicPartition,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes],
        fate: Fate,
    ) -> Slot:
        partition = self.partition(tp)
        slot = Slot(Record(tp[0], tp[1], partition.end, key, value, headers, 0), fate)
        partition.end += 1
        partition.slots.append(slot)
        return slot

    def send(
        self,
        tp: TopicPartition,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        """Append without a transaction."""
        self._append(tp, key, value, headers or {}, Fate.COMMITTED)

    def read(self, tp: TopicPartition, offset: int, most: int) -> list[Record]:
        """Up to ``most`` committed records from ``offset`` on."""
        return [r for r in self.partition(tp).readable() if r.offset >= offset][:most]

    # -- transactions ---------------------------------------------------------------------------------------------

    def initialise(self, producer: str) -> int:
        """A new epoch for ``producer``: what it had open is aborted, what it had committed is finished."""
        self._epochs[producer] = self._epochs.get(producer, -1) + 1
        self._finish(producer)
        self._abort(producer)
        return self._epochs[producer]

    def begin(self, producer: str, epoch: int) -> None:
        """Open a transaction. Raises Fenced."""
        self._check(producer, epoch)
        self._finish(producer)
        self._open[producer] = _Transaction()

    def produce(
        self,
        producer: str,
        epoch: int,
        tp: TopicPartition,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes],
    ) -> None:
        """Append to the open transaction. Raises Fenced."""
        self._check(producer, epoch)
        slot = self._append(tp, key, value, headers, Fate.OPEN)
        self._open[producer].slots.setdefault(tp, []).append(slot)

    def commit(self, producer: str, epoch: int, witness: Any) -> None:
        """Decide the transaction; its partitions show it as their markers are written. Raises Fenced."""
        self._check(producer, epoch)
        transaction = self._open.pop(producer)
        self._due += [(producer, tp, slots) for tp, slots in transaction.slots.items()]
        self.committed.setdefault(producer, []).append(witness)

    def abort(self, producer: str, epoch: int) -> None:
        """Give the transaction up. Raises Fenced."""
        self._check(producer, epoch)
        self._abort(producer)

    def _abort(self, producer: str) -> None:
        transaction = self._open.pop(producer, _Transaction())
        for tp, slots in transaction.slots.items():
            self._mark(tp, slots, Fate.ABORTED)

    def is_newest(self, producer: str, epoch: int) -> bool:
        """Whether nobody has initialised ``producer`` since."""
        return self._epochs[producer] == epoch

    def _check(self, producer: str, epoch: int) -> None:
        if not self.is_newest(producer, epoch):
            raise Fenced(f"{producer}: epoch {epoch}, now {self._epochs[producer]}")

    def _mark(self, tp: TopicPartition, slots: list[Slot], fate: Fate) -> None:
        for slot in slots:
            slot.fate = fate
        self.partition(tp).end += 1

    @property
    def markers_due(self) -> int:
        """Markers of committed transactions still to be written."""
        return len(self._due)

    def write_marker(self, at: int) -> None:
        """Write one of them."""
        _, tp, slots = self._due.pop(at)
        self._mark(tp, slots, Fate.COMMITTED)

    def _finish(self, producer: str) -> None:
        for due in [due for due in self._due if due[0] == producer]:
            self._due.remove(due)
            self._mark(due[1], due[2], Fate.COMMITTED)

    # -- what time does to a log ----------------------------------------------------------------------------------

    def compact(self, tp: TopicPartition) -> None:
        """Keep the newest committed record of each key; tombstones go too, as they do after their time."""
        partition = self.partition(tp)
        newest = {r.key: r.offset for r in partition.readable()}
        first_open = next((s.record.offset for s in partition.slots if s.fate is Fate.OPEN), partition.end)
        partition.slots = [
            slot
            for slot in partition.slots
            if slot.record.offset >= first_open
            or (
                slot.fate is Fate.COMMITTED
                and newest[slot.record.key] == slot.record.offset
                and slot.record.value is not None
            )
        ]

    def lose(self, producer: str, tp: TopicPartition) -> None:
        """Everything on a partition is gone, and with it what ``producer`` had done."""
        self.partition(tp).slots = []
        self.committed.pop(producer, None)

    def retain(self, tp: TopicPartition, start: int) -> None:
        """Delete what is in front of ``start``."""
        partition = self.partition(tp)
        partition.start = max(partition.start, start)
        partition.slots = [slot for slot in partition.slots if slot.record.offset >= partition.start]
