"""The shells of the monitor, effect by effect: what ``streams.task``, ``.store``, ``.sink`` and ``.archive`` do to a broker.

Each is a generator that stops in front of every effect, so that the scheduler can let others run there, refuse the
effect, or never come back. Rules are not repeated here: what is read, applied, planned and confirmed is
``streams.core.ledger``'s, as in the real task. A test holds the order of effects to the real store's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from schemas.contracts import ModelRecord
from schemas.errors import DeliveryError, Fenced
from schemas.ids import partition_of
from schemas.rows import TABLES
from schemas.settings import MonitorSettings
from streams.core.delivery import (
    Loaded,
    Manifest,
    Out,
    StageContext,
    TaskCore,
    TopicPartition,
    Transaction,
    Upserts,
    load,
)
from streams.core.label_index import FOUND_COLUMNS, LABELS, PREDICTIONS, PROGRESS, TOLD_COLUMNS, answer
from streams.core.ledger import Ledger
from streams.core.pipeline import JoinCore
from streams.core.records import Record, RecordBatch
from tests.simulation.log import Log
from tests.simulation.world import CONTRACT, INPUTS, PARTITIONS
from tests.support_upserts import spread

SETTINGS = MonitorSettings()
Choose = Callable[[int], int]


class Refused(Exception):
    """The broker did not take an effect; it may be tried again."""


class RelayCore:
    """Passes on what it reads in the order of the log, but holds rows in memory, not in state, until a tick comes.

    So do detectors with rows that wait for event time: recovery reads from the first held row, and what had been
    passed on before is dropped by the core.
    """

    stage = "detect"

    def __init__(self, context: StageContext) -> None:
        self._input = ("observations", context.partition)
        self._waiting: list[Record] = []
        self._released = 0
        self._outs: list[Out] = []
        self._changed = False

    def apply(self, records: Sequence[Record], now_ms: int) -> None:
        for record in records:
            if record.offset < self._released:
                continue
            self._waiting.append(record)
            if record.key is None:  # a tick
                self._released, self._changed = record.offset + 1, True
                self._outs += [Out("signals", r.key, r.value, r.partition, r.headers) for r in self._waiting]
                self._waiting = []

    def outputs(self) -> list[Out]:
        outs, self._outs = self._outs, []
        return outs

    def changed_pieces(self) -> dict[str, bytes | None]:
        changed, self._changed = self._changed, False
        return {"released": str(self._released).encode()} if changed else {}

    def restore(self, pieces: Mapping[str, bytes], manifest: Manifest | None) -> None:
        self._released = int(pieces.get("released", b"0"))

    def positions(self) -> dict[TopicPartition, int]:
        return {self._input: self._waiting[0].offset} if self._waiting else {}

    def watermarks(self) -> dict[str, int]:
        return {}

    def committed(self, sequence: int) -> None:
        """Nothing waits for it."""

    def upserts(self) -> list[Upserts]:
        return []

    def confirm(self, sent: Sequence[Upserts]) -> None:
        """There are none."""

    def activate(self, records: Sequence[ModelRecord]) -> None:
        """It needs none."""


STAGES: dict[str, tuple[tuple[str, ...], Callable[[StageContext], TaskCore]]] = {
    "join": (INPUTS, JoinCore),
    "detect": (("observations",), RelayCore),
}


class Run:
    """One owner's life of one task. ``advance`` performs effects; a run that is dropped was killed."""

    contract = CONTRACT

    def __init__(self, log: Log, stage: str, partition: int, choose: Choose, now_ms: int) -> None:
        self.log = log
        self.task = f"{stage}/{partition}"
        self.state = ("state", list(STAGES).index(stage) * PARTITIONS + partition)
        inputs, create = STAGES[stage]
        self.inputs = [(topic, partition) for topic in inputs]
        self.core = create(StageContext(stage, partition, PARTITIONS, SETTINGS))
        self.ledger = Ledger(self.task, self.core)
        self.at: dict[TopicPartition, int] = {}
        self.ready = False
        #: What the next effect is.
        self.due = "start"
        #: Set to refuse the next effect of a transaction.
        self.refuse = False
        #: Set to end after a last commit, as on revocation or SIGTERM.
        self.stopping = False
        self.ended = False
        #: What was applied and is in no transaction yet: the simulation's notes, no part of the system.
        self.applied: list[Record] = []
        #: Answers from the label index that have come.
        self.inbox: list[Record] = []
        self._dirty = False
        self._choose = choose
        self._now_ms = now_ms
        self._epoch = -1
        self._life = self._live()

    def advance(self) -> None:
        """Perform the effect that is due, up to the next."""
        try:
            self.due = next(self._life)
        except StopIteration:
            self.ended = True
        except Fenced:
            self.ended = True
        except DeliveryError:
            # Its successor read on while it was still opening, and retention followed: a worker that ends.
            if self.log.is_newest(self.task, self._epoch):
                raise
            self.ended = True

    def _live(self) -> Iterator[str]:
        yield "initialise"
        self._epoch = self.log.initialise(self.task)
        yield "load"
        loaded = self.load()
        yield "open"
        starts = {tp: self.log.partition(tp).start for tp in self.inputs}
        self.core.activate([ModelRecord(contract=self.contract)])
        self.open(loaded, starts)
        self.ledger.offer(self.core.upserts())
        self.at = dict(self.ledger.next)
        self.ready = True
        while True:
            yield "fetch"
            records = self.answers() + self._fetch()
            if records:
                yield "apply"
                self.core.apply(records, 0)
                self.applied += records
                self._dirty = True
            wanted = self._dirty or (self.stopping and self.ledger.has_confirmed)
            if wanted and not self.ledger.rereading and (self.stopping or self._choose(4) != 3):
                yield from self._commit()
            if self.stopping:
                return

    def load(self) -> Loaded:
        """The committed state, never an older one. Raises AssertionError."""
        loaded = load(self.task, [(r.key, r.value) for r in self.log.partition(self.state).readable()])
        sequences = [sequence for sequence, _ in self.log.committed.get(self.task, ())]
        found = loaded.manifest.sequence if loaded.manifest else None
        # Whoever has been fenced since may read what it likes: it can write nothing.
        if self.log.is_newest(self.task, self._epoch):
            assert found == (sequences[-1] if sequences else None), f"{self.task}: restored to {found}"
        return loaded

    def open(self, loaded: Loaded, starts: Mapping[TopicPartition, int]) -> None:
        """Restore it."""
        self.ledger.open(loaded, starts, lambda before: [ModelRecord(contract=self.contract)], self._now_ms)

    def answers(self) -> list[Record]:
        """What has come from the label index."""
        inbox, self.inbox = self.inbox, []
        return inbox

    def fresh(self, tp: TopicPartition, records: list[Record]) -> list[Record]:
        """Which of what was fetched is applied."""
        return list(self.ledger.fresh(tp, RecordBatch.of(records)))

    def _fetch(self) -> list[Record]:
        found: list[Record] = []
        first = self._choose(2)
        for at in range(len(self.inputs)):
            tp = self.inputs[(first + at) % len(self.inputs)]
            records = self.log.read(tp, self.at[tp], (30, 3, 1, 8)[self._choose(4)])
            if records:
                self.at[tp] = records[-1].offset + 1
                found += self.fresh(tp, records)
            if self._choose(3) == 2:
                break
        return found

    def _commit(self) -> Iterator[str]:
        transaction = self.ledger.plan(self.ledger.take_confirmed())
        applied, self.applied, self._dirty = self.applied, [], False
        while True:
            try:
                yield from self.attempt(transaction, applied)
                break
            except Refused:
                self.log.abort(self.task, self._epoch)
        yield "after-commit"
        self.ledger.offer(self.ledger.committed(transaction))

    def _effect(self, name: str) -> Iterator[str]:
        yield name
        if self.refuse:
            self.refuse = False
            raise Refused(name)

    def attempt(self, transaction: Transaction, applied: list[Record]) -> Iterator[str]:
        """One transaction, as ``streams.store`` makes it."""
        yield "before-transaction"
        self.log.begin(self.task, self._epoch)
        for out in transaction.outs:
            yield from self._effect("output")
            partition = partition_of(out.key or b"", PARTITIONS) if out.partition is None else out.partition
            self.produce((out.topic, partition), out.key, out.value, out.headers)
        yield "before-state"
        for key, value in transaction.state:
            yield from self._effect("piece")
            self.produce_state(key, value)
        yield from self._effect("before-commit")
        self.log.commit(self.task, self._epoch, (transaction.manifest.sequence, applied))

    def produce(
        self, tp: TopicPartition, key: bytes | None, value: bytes | None, headers: Mapping[str, bytes]
    ) -> None:
        """One output."""
        self.log.produce(self.task, self._epoch, tp, key, value, headers)

    def produce_state(self, key: bytes, value: bytes | None) -> None:
        """One record of state."""
        self.log.produce(self.task, self._epoch, self.state, key, value, {})


class Warehouse:
    """A ReplacingMergeTree: of a key the highest version stays. Inserts may land long after they were sent."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[tuple[Any, ...], tuple[Any, ...]]] = {}
        self.under_way: list[list[Upserts]] = []
        self.away = False

    def insert(self, upserts: Sequence[Upserts]) -> None:
        """Rows are in. Equal versions must be equal rows: merging keeps any one of them."""
        for upsert in spread(upserts):
            table = self.tables.setdefault(upsert.table, {})
            held = table.get(upsert.key)
            if held is not None and held[-1] == upsert.version:
                assert held == upsert.row, f"two values of one version: {held} and {upsert.row}"
            if held is None or held[-1] <= upsert.version:
                table[upsert.key] = upsert.row


def sink(runs: Callable[[], list[Run]], warehouse: Warehouse, choose: Choose) -> Iterator[str]:
    """The writer of one process, for ever."""
    while True:
        yield "gather"
        batch = [(run, upserts) for run in runs() if run.ready for upserts in run.ledger.outbox]
        batch = batch[: (10_000, 5)[choose(4) == 3]]
        for table in dict.fromkeys(upsert.table for _, upsert in batch):
            part = [(run, upsert) for run, upsert in batch if upsert.table == table]
            yield "write"
            if warehouse.away:
                break
            rows = [upsert for _, upsert in part]
            if choose(8) == 7:  # the answer never comes; the rows may still land
                warehouse.under_way.append(rows)
                break
            warehouse.insert(rows)
            yield "confirm"
            for run in dict.fromkeys(run for run, _ in part):
                run.ledger.confirmed([upsert for owner, upsert in part if owner is run])


class LabelIndex:
    """The tables of the label index. Rows may come again; progress never goes back."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[tuple[Any, ...], tuple[Any, ...]]] = {}

    def insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Rows are in; of a key that is there already, the same. Raises AssertionError."""
        held = self.rows.setdefault(table, {})
        for row in rows:
            key = tuple(row[TABLES[table].names.index(name)] for name in TABLES[table].key)
            if table == PROGRESS:
                held[key] = max(row, held.get(key, row))
                continue
            assert repr(held.get(key, row)) == repr(row), f"two rows of one key: {held[key]} and {row}"
            held[key] = row

    def position(self, partition: int, source: str) -> int:
        """How far the copy of a task's blocks on a partition has come."""
        row = self.rows.get(PROGRESS, {}).get((partition, source))
        return -(2**63) if row is None else int(row[-1])

    def select(self, table: str, columns: Sequence[str], model: str, ids: set[int]) -> list[tuple[Any, ...]]:
        """Rows of a model's predictions."""
        names = TABLES[table].names
        at = [names.index(name) for name in columns]
        return [
            tuple(row[i] for i in at)
            for row in self.rows.get(table, {}).values()
            if row[1] == model and row[0] in ids
        ]


def lookups(
    runs: Callable[[], list[Run]], index: LabelIndex, away: Callable[[], bool], choose: Choose
) -> Iterator[str]:
    """What looks labels up in one process, for ever; answers may come late and twice."""
    late: list[tuple[Run, Record]] = []
    while True:
        yield "gather"
        for run in runs():
            questions = run.core.questions() if run.ready and isinstance(run.core, JoinCore) else []
            for question in questions:
                yield "progress"
                position = index.position(question.partition, run.task)
                keys = [(identity, check) for identity, check, bound in question.keys if bound < position]
                if away() or not keys:
                    continue
                yield "read"
                ids = {identity for identity, _ in keys}
                predictions = index.select(PREDICTIONS, FOUND_COLUMNS, question.model, ids)
                yield "read"
                labels = index.select(LABELS, TOLD_COLUMNS, question.model, ids)
                found = answer(question.model, position, keys, predictions, labels)
                record = found.as_record(question.partition)
                if choose(6) == 5:
                    late.append((run, record))
                else:
                    yield "answer"
                    run.inbox.append(record)
                if choose(6) == 5:
                    run.inbox.append(record)
        if late and choose(2):
            run, record = late.pop(choose(len(late)))
            run.inbox.append(record)
