"""A task's bookkeeping, without a clock, a broker or a thread: what is read, applied, planned, committed, confirmed.

``streams.task`` moves bytes and calls it; the simulation moves the same calls through crashes in an in-memory log. So
the rules of the delivery protocol are in one place, and what is tested a million times is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from schemas.contracts import ModelRecord
from schemas.errors import DeliveryError
from streams.core.delivery import (
    Loaded,
    Manifest,
    TaskCore,
    TopicPartition,
    Transaction,
    Upserts,
    plan,
)
from streams.core.piece_log import PieceLog
from streams.core.records import RecordBatch

#: Pieces of which there may be many, each small, are stored together: see ``streams.core.piece_log``.
GATHERED = ("detector/", "edges/", "model/", "window/")
SEGMENT = "log/"
#: Rows that may wait for the warehouse before more are made.
OUTBOX_MAX = 50_000
#: Contracts and versions published before an offset of ``models``.
Known = Callable[[int], Sequence[ModelRecord]]


class Ledger:
    """One owner's account of one task: ``open``; ``fresh`` records to apply; ``plan`` and, once durable, ``committed``.

    The outbox and what was confirmed belong to whoever talks to the warehouse: ``offer``, ``confirmed`` and
    ``take_confirmed`` are called from one thread, everything else from the core's.
    """

    def __init__(self, task: str, core: TaskCore) -> None:
        self.task = task
        self.core = core
        self.manifest = Manifest(task=task)
        #: The first offset not yet applied of each input.
        self.next: dict[TopicPartition, int] = {}
        #: Next offset on each broadcast topic.
        self.activations: dict[str, int] = {}
        #: What the warehouse has not confirmed, oldest first.
        self.outbox: list[Upserts] = []
        self._high: dict[TopicPartition, int] = {}
        self._gathered = PieceLog(SEGMENT)
        self._confirmed: list[Upserts] = []

    def open(self, loaded: Loaded, starts: Mapping[TopicPartition, int], known: Known, now_ms: int) -> None:
        """Become the committed state. ``starts``: the first offset retention has left of each input.

        A task without a manifest numbers its transactions from ``now_ms`` on: should the state topic be lost, the
        rows made again must win over those of the life before, which made fewer than one transaction a millisecond.
        Raises DeliveryError when input was deleted before it was read.
        """
        manifest = loaded.manifest
        for tp, start in starts.items():
            at = start if manifest is None else manifest.offsets.get(tp, start)
            if at < start:
                raise DeliveryError(
                    f"task {self.task}: {tp[0]}[{tp[1]}] starts at {start}, but was read to {at} only: retention has "
                    f"deleted {start - at} offsets. Raise the retention; to go on without them, delete the task's "
                    "records on the state topic"
                )
            self.next[tp] = at
        if manifest is None:
            self.manifest = Manifest(task=self.task, sequence=now_ms)
        else:
            self._high = dict(manifest.high)
            self.activations = dict(manifest.activations)
            self.manifest = Manifest(
                task=self.task,
                epoch=manifest.epoch + 1,
                sequence=manifest.sequence,
                pieces=manifest.pieces,
                garbage=manifest.garbage,
            )
            self.core.activate(known(self.activations.get("models", 0)))
        alone = {name: data for name, data in loaded.pieces.items() if not name.startswith(SEGMENT)}
        self.core.restore(alone | self._gathered.restore(loaded.pieces), manifest)

    def fresh(self, tp: TopicPartition, records: RecordBatch) -> RecordBatch:
        """Which of these, consecutive on ``tp``, the core is to get; they count as read from now on.

        ``disposition`` says SKIP of every offset below the next one, and of no other.
        """
        at = self.next[tp]
        self.next[tp] = max(at, int(records.offsets[-1]) + 1)
        return records.since(at)

    @property
    def rereading(self) -> bool:
        """Rows the core gave back to the log at recovery are still to be read: its state is not the manifest's yet."""
        return any(at < self._high.get(tp, 0) for tp, at in self.next.items())

    @property
    def has_confirmed(self) -> bool:
        """The warehouse has confirmed rows that no transaction has taken into account."""
        return bool(self._confirmed)

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """How far the last manifest had read, for lag display: what a core holds back for its own reasons is no lag."""
        return {tp: at for tp, at in self.manifest.high.items() if tp in self.next}

    @property
    def waiting(self) -> int:
        """Rows in the outbox."""
        return sum(upserts.rows for upserts in self.outbox)

    def confirmed(self, sent: Sequence[Upserts]) -> None:
        """The warehouse has these, which were in the outbox. Only noted: the core hears of it with the next ``plan``."""
        gone = set(map(id, sent))
        self.outbox = [upserts for upserts in self.outbox if id(upserts) not in gone]
        self._confirmed += sent

    def take_confirmed(self) -> list[Upserts]:
        """What was confirmed since the last call, for ``plan``."""
        confirmed, self._confirmed = self._confirmed, []
        return confirmed

    def plan(self, confirmed: Sequence[Upserts]) -> Transaction:
        """Everything applied since the last one as the next transaction. Drains the core: commit it, or end."""
        core = self.core
        if confirmed:
            core.confirm(confirmed)
        outs = core.outputs()
        changed = core.changed_pieces()
        gathered = {name: data for name, data in changed.items() if name.startswith(GATHERED)}
        alone = {name: data for name, data in changed.items() if name not in gathered}
        positions = core.positions()
        return plan(
            self.manifest,
            outs=outs,
            changed=alone | self._gathered.changed(gathered),
            offsets={tp: positions.get(tp, at) for tp, at in self.next.items()},
            high=self.next,
            watermarks=core.watermarks(),
            activations=self.activations,
        )

    def committed(self, transaction: Transaction) -> list[Upserts]:
        """``transaction`` is durable. What is to be offered to the warehouse: nothing while much waits for it, for by the
        time it is taken the same rows will have changed again. They stay marked in the core till a later transaction."""
        self.manifest = transaction.manifest
        self.core.committed(self.manifest.sequence)
        return self.core.upserts() if self.waiting < OUTBOX_MAX else []

    def offer(self, upserts: Sequence[Upserts]) -> None:
        """Put rows into the outbox, behind older values."""
        self.outbox += upserts
