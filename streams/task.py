"""The shell of one task: carries records from Faust to the core and its results into transactions.

One coroutine a task. The core's work runs in the process's one CPU thread, so that heartbeats go on; transactions run in
I/O threads. Order of every round: take chunks, apply, and when enough has gathered (or event time moved) one
transaction; only what a transaction holds is ever reported as read.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from schemas.clock import wall_ms
from schemas.contracts import ModelRecord
from schemas.errors import DeliveryError
from schemas.events import HEADER_KIND, HEADER_TRACE
from schemas.failpoints import failpoint
from schemas.observability import Metrics
from schemas.scan_rows import LogRows
from streams.batches import Chunk
from streams.broadcast import Broadcast, model_records
from streams.core.cold import Question
from streams.core.delivery import Out, StageContext, TaskCore, TopicPartition, Transaction, Upserts, assembled
from streams.core.ledger import Ledger
from streams.core.raw_log import Stretch, stretch_of
from streams.core.records import Input, Record, RecordBatch
from streams.inbox import Inbox
from streams.lookup import Asking
from streams.pace import Lags, Pace
from streams.raw_log import RawLog
from streams.store import TaskStore, log_starts

log = logging.getLogger(__name__)
_BROADCAST_PARTITION = 0
LOGGED = "predictions"
_TRACED = frozenset({"signals", "decisions", "alerts", "control"})


@runtime_checkable
class Measured(Protocol):
    """A core may say what it counted: (metric, labels, value); counters as increments since the last call."""

    def measurements(self) -> Iterable[tuple[str, dict[str, str], float]]: ...


@runtime_checkable
class Logging(Protocol):
    """A core may have made rows of the raw log of what it was handed last on topic ``LOGGED``."""

    def logged(self) -> list[LogRows]: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What all tasks of a process share. ``cpu`` has one thread, ``io`` several."""

    cpu: Executor
    io: Executor
    broadcast: Broadcast
    metrics: Metrics
    on_failed: Callable[[Task, BaseException], None]
    on_upserts: Callable[[], None]
    raw_log: RawLog | None
    lags: Lags


class Task:
    """One (stage, partition): ``open``, then ``start``; ``put`` chunks; ``close``. ``paced_by``: a stage before this one; where its
    tasks are behind this one is, too."""

    def __init__(
        self,
        context: StageContext,
        core: TaskCore,
        inputs: tuple[str, ...],
        follows: tuple[str, ...],
        shared: Services,
        paced_by: str | None = None,
    ) -> None:
        self.context = context
        self.name = context.task
        self.core = core
        self.inputs = tuple((topic, context.partition) for topic in inputs)
        self.ready = False
        self._follows = follows
        self._shared = shared
        self._kafka = context.settings.kafka
        self._limits = context.settings.monitor
        self._store = TaskStore(self._kafka, context.stage, context.partition)
        self._inbox = Inbox(
            inputs, self._limits.queue_batches_max, self._limits.commit_rows_max, time.monotonic
        )
        self._runner: asyncio.Task[None] | None = None
        self._stopping = False
        self._labels = {"stage": context.stage, "partition": str(context.partition)}
        self._ledger = Ledger(self.name, core)
        self._answers: list[Record] = []
        self._received: dict[tuple[str, int], int] = {}
        self._applied: dict[tuple[str, int], int] = {}
        self._seek = -1
        self._numbers: dict[tuple[str, int], int] = {}
        self._paced_by = paced_by
        self._pace = Pace(self._limits, time.monotonic)

    # -- life -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Fence the previous owner, load, restore. Raises DeliveryError when input was deleted before it was read."""
        newest = await self._io(self._store.open, self._shared.broadcast.count("models"))
        starts = await self._io(log_starts, self._kafka, self.inputs)
        # Never in the I/O threads: msgspec learns a type at its first use, and a second thread that meets it half
        # learnt ends the process in native code.
        await self._cpu(self._restore, newest, starts)
        self._offer(await self._cpu(self.core.upserts))
        self.ready = True
        self._shared.metrics.set("driftline_task_ready", 1, **self._labels)

    def _restore(self, newest: Mapping[bytes, bytes], starts: Mapping[TopicPartition, int]) -> None:
        loaded = assembled(self.name, newest)
        ledger = self._ledger
        ledger.open(loaded, starts, self._known, time.time_ns() // 1_000_000)
        self._received, self._applied = dict(ledger.next), dict(ledger.next)
        log.info(
            "task loaded",
            extra={
                "event": "task-loaded",
                "task": self.name,
                "sequence": ledger.manifest.sequence,
                "epoch": ledger.manifest.epoch,
                "pieces": len(loaded.pieces),
                "bytes": sum(map(len, loaded.pieces.values())),
            },
        )

    def _known(self, before: int) -> list[ModelRecord]:
        return model_records(self._shared.broadcast.since("models", 0, before))

    def start(self) -> None:
        if self._shared.raw_log is not None:
            self._shared.raw_log.follow(self.progress)
        self._runner = asyncio.create_task(self._run(), name=self.name)

    async def close(self) -> None:
        """Stop after the round under way, commit what was applied, let go."""
        self._stopping = True
        if self._shared.raw_log is not None:
            self._shared.raw_log.leave(self.inputs)
        self.wake()
        if self._runner is not None:
            await asyncio.wait([self._runner])
        self._inbox.close()
        self._shared.lags.forget(self.context.stage, self.context.partition)
        self.ready = False
        self._shared.metrics.set("driftline_task_ready", 0, **self._labels)
        await self._io(self._store.close)

    # -- input ----------------------------------------------------------------------------------------------------

    def positions(self, seek: int) -> dict[tuple[str, int], int]:
        """Where to read on, by (logical topic, partition); chunks of earlier seeks are ignored from now on."""
        self._seek = seek
        self._numbers = dict.fromkeys(self._received, 0)
        return dict(self._received)

    async def put(self, topic: str, chunk: Chunk) -> None:
        """Take one chunk in; waits while the queue is full. Raises DeliveryError when a chunk before it is missing."""
        tp = (topic, chunk.partition)
        if chunk.seek != self._seek or self._stopping:
            return
        if chunk.number != self._numbers[tp]:
            raise DeliveryError(
                f"task {self.name}: {topic}[{chunk.partition}] chunk {chunk.number} came where {self._numbers[tp]} was "
                "due: records were lost on the way from the consumer"
            )
        self._numbers[tp] += 1
        await self._inbox.put(topic, chunk)
        if chunk.seek == self._seek:
            self._received[tp] = max(self._received[tp], chunk.end_offset)

    def wake(self) -> None:
        """Make the loop look around: something other than a chunk has come."""
        self._inbox.wake()

    async def questions(self) -> list[Question]:
        """What the core would have looked up."""
        if self._stopping or not self.ready or not isinstance(self.core, Asking):
            return []
        found: list[Question] = await self._cpu(self.core.questions)
        return found

    def take_answer(self, record: Record) -> None:
        """An answer to a question has come."""
        self._answers.append(record)
        self.wake()

    def confirm(self, sent: list[Upserts]) -> None:
        """The warehouse has these rows."""
        self._ledger.confirmed(sent)
        self._report_dirty()

    @property
    def held(self) -> frozenset[str]:
        """Inputs (logical topics) that wait for another one of this task to be caught up with."""
        return self._inbox.held

    @property
    def outbox(self) -> Sequence[Upserts]:
        """What the warehouse is still to be told."""
        return self._ledger.outbox

    @property
    def offsets(self) -> dict[tuple[str, int], int]:
        """The last manifest's offsets, for lag display."""
        return self._ledger.offsets

    def serve(self) -> None:
        """To be called every now and then, whether or not there is work; never waits."""
        self._store.serve()

    @property
    def received(self) -> dict[tuple[str, int], int]:
        """The first offset not yet taken in of each input."""
        return dict(self._received)

    @property
    def progress(self) -> dict[tuple[str, int], int]:
        """The first offset not yet applied of each input."""
        return dict(self._applied)

    # -- the loop -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._stopping:
                chunks = await self._inbox.take(self._wait_s())
                self._tell_lag()
                came_s = max((chunk.came_s for chunk in chunks if _has_rows(chunk)), default=-math.inf)
                if not self._shared.broadcast.asked_since("models", came_s):
                    await self._io(self._shared.broadcast.refresh, "models")
                read = await self._cpu(self._apply, chunks)
                if self._shared.raw_log is not None and not self._stopping:
                    for held in read:
                        self._shared.raw_log.offer(held)
                if self._wait_s() == 0.0:
                    await self._commit()
            if (self._pace.pending or self._ledger.has_confirmed) and not self._ledger.rereading:
                await self._commit()
        except Exception as error:  # noqa: BLE001  # whatever it is, the process must not go on
            self._shared.on_failed(self, error)

    def _wait_s(self) -> float | None:
        if self._ledger.rereading:
            return None
        lags = self._shared.lags
        own_s = lags.of(self.context.stage, self.context.partition)
        return self._pace.wait_s(max(own_s, lags.most(self._paced_by)) if self._paced_by else own_s)

    def _tell_lag(self) -> None:
        waited_s = self._inbox.waited_ms(wall_ms()) / 1000
        self._shared.lags.tell(self.context.stage, self.context.partition, waited_s)

    def _apply(self, chunks: list[Chunk]) -> list[Stretch]:
        """Hand them to the core; what it has read then."""
        self._activate()
        now_ms = time.time_ns() // 1_000_000
        before = self.core.watermarks()
        answers, self._answers = self._answers, []
        records: list[Input] = [*answers, *(r for topic in self._follows for r in self._followed(topic))]
        rows = len(records)
        read: dict[str, list[RecordBatch]] = {}
        for chunk in chunks:
            topic = chunk.topic.removeprefix(self._kafka.topic_prefix)
            fresh = self._fresh((topic, chunk.partition), chunk.to_batch(topic))
            if len(fresh):
                records.append(fresh)
                read.setdefault(topic, []).append(fresh)
                rows += len(fresh)
        if records:
            failpoint(f"{self.context.stage}.before-apply")
            self.core.apply(records, now_ms)
            failpoint(f"{self.context.stage}.after-apply")
            size = sum(batch.values.size for batches in read.values() for batch in batches)
            self._pace.applied(rows, size, self.core.watermarks() != before)
        # Not before: a core that never comes back has applied nothing.
        self._applied = dict(self._ledger.next)
        logged = self.core.logged() if isinstance(self.core, Logging) else []
        return [stretch_of(of, logged if topic == LOGGED else []) for topic, of in read.items()]

    def _fresh(self, tp: tuple[str, int], records: RecordBatch) -> RecordBatch:
        fresh = self._ledger.fresh(tp, records)
        self._shared.metrics.count("driftline_input_bytes_total", fresh.values.size, **self._labels)
        self._shared.metrics.count("driftline_rows_total", len(fresh), topic=tp[0], **self._labels)
        return fresh

    def _activate(self) -> None:
        broadcast = self._shared.broadcast
        end = broadcast.next_offset("models")
        at = self._ledger.activations.get("models", 0)
        if end > at:
            self.core.activate(model_records(broadcast.since("models", at, end)))
            self._ledger.activations["models"] = end

    def _followed(self, topic: str) -> list[Record]:
        end, at = self._shared.broadcast.next_offset(topic), self._ledger.activations.get(topic, 0)
        self._ledger.activations[topic] = max(end, at)
        return self._shared.broadcast.since(topic, at, end)

    # -- the transaction ------------------------------------------------------------------------------------------

    async def _commit(self) -> None:
        started_s = time.monotonic()
        confirmed = self._ledger.take_confirmed()
        transaction = await self._cpu(self._plan, confirmed)
        await self._io(self._store.commit, transaction)
        self._offer(await self._cpu(self._ledger.committed, transaction))
        self._pace.committed(started_s)
        self._report(transaction, time.monotonic() - started_s)

    def _plan(self, confirmed: list[Upserts]) -> Transaction:
        self._pace.begun()
        return self._ledger.plan(confirmed)

    def _offer(self, upserts: list[Upserts]) -> None:
        self._ledger.offer(upserts)
        if upserts:
            self._report_dirty()
            self._shared.on_upserts()

    def _report_dirty(self) -> None:
        labels = {"partition": self._labels["partition"]}
        self._shared.metrics.set("driftline_warehouse_dirty", self._ledger.waiting, **labels)

    def _note(self, out: Out) -> None:
        extra = {"event": "written", "topic": out.topic, "key": (out.key or b"").decode(errors="replace")}
        trace_id = out.headers[HEADER_TRACE].decode(errors="replace")
        log.info("%s: written to %s", self.context.task, out.topic, extra=extra | {"trace_id": trace_id})

    def _report(self, transaction: Transaction, seconds: float) -> None:
        metrics, labels = self._shared.metrics, self._labels
        metrics.count("driftline_commits_total", 1, **labels)
        metrics.observe("driftline_commit_seconds", seconds, stage=self.context.stage)
        metrics.count("driftline_state_bytes_total", transaction.state_bytes, **labels)
        for source, at_ms in transaction.manifest.watermarks.items():
            metrics.set("driftline_watermark_ms", at_ms, source=source, **labels)
        for out in transaction.outs:
            # Rare, unlike rows that are sent on: one line each leads from a verdict to what was decided on it.
            if out.topic in _TRACED and HEADER_TRACE in out.headers:
                self._note(out)
        if isinstance(self.core, Measured):
            for name, own, value in self.core.measurements():
                if name.endswith("_total"):
                    metrics.count(name, amount=value, **own)
                else:
                    metrics.set(name, value=value, **own)

    async def _cpu(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._shared.cpu, work, *arguments)

    async def _io(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._shared.io, work, *arguments)


def _has_rows(chunk: Chunk) -> bool:
    """Whether there is more in it than ticks."""
    told = chunk.records.headers
    return len(chunk.records) > sum(HEADER_KIND in headers for headers in told.values())
