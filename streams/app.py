"""Wires settings into a running monitor: the Faust app, the tasks of its assignment, the threads they share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faust
from faust.types.auth import AuthProtocol, SASLMechanism

from schemas.errors import DeliveryError, Fenced, Halted
from schemas.observability import Metrics
from schemas.settings import KafkaSettings, MonitorSettings
from streams.agents import add_agents
from streams.batches import BatchTransport, Chunk, StageAssignor, chunk_scheduler
from streams.broadcast import Broadcast
from streams.core.delivery import StageContext
from streams.pace import Lags
from streams.raw_log import RawLog
from streams.reader import ssl_context
from streams.stages import Stage
from streams.task import Services, Task

log = logging.getLogger(__name__)
FETCH_BYTES_MAX = 2 * 1024 * 1024
FETCH_RESPONSES_MAX = 1_000
IO_THREADS = 16
#: How long the end of a worker waits for a broker that may be away.
STOP_PATIENCE_S = 5.0


class MonitorApp(faust.App):
    """A Faust app whose offsets belong to the tasks."""

    stage_assignor: StageAssignor
    monitor_tasks: TaskSet

    def positions(self, seek: int) -> dict[tuple[str, int], int]:
        return self.monitor_tasks.positions(seek)

    def commit_offsets(self) -> dict[tuple[str, int], int]:
        return self.monitor_tasks.offsets()

    def _create_directories(self) -> None:
        """No tables, so nothing on disk."""


def create_app(settings: MonitorSettings, stages: Sequence[Stage]) -> MonitorApp:
    """The Faust app for ``stages``; not started, without agents."""
    kafka, monitor = settings.kafka, settings.monitor
    session_s = kafka.session_timeout / 1000
    app = MonitorApp(
        f"{kafka.topic_prefix}driftline-monitor",
        broker=[f"kafka://{address.strip()}" for address in kafka.bootstrap.split(",")],
        broker_client_id=kafka.client_id,
        broker_credentials=_credentials(kafka),
        broker_session_timeout=session_s,
        broker_heartbeat_interval=session_s / 5,
        broker_rebalance_timeout=max(60.0, session_s),
        # Longer than a rebalance may hold an answer; a broker that is gone without a word is given up after it.
        broker_request_timeout=max(90.0, 1.5 * session_s),
        broker_commit_interval=1.0,
        # Of fetch responses: each is bounded in bytes.
        broker_max_poll_records=FETCH_RESPONSES_MAX,
        broker_commit_livelock_soft_timeout=3600.0,
        stream_processing_timeout=3600.0,
        consumer_max_fetch_size=FETCH_BYTES_MAX,
        consumer_group_instance_id=f"{kafka.topic_prefix}{monitor.instance}" if monitor.instance else None,
        stream_buffer_maxsize=monitor.queue_batches_max,
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        store="memory://",
        datadir=Path("/nonexistent"),
        ConsumerScheduler=chunk_scheduler(monitor.chunk_records),
    )
    app.transport = BatchTransport(app.conf.broker_consumer, app)
    app.stage_assignor = StageAssignor(
        {stage.name: [kafka.topic(name) for name in stage.inputs] for stage in stages}, kafka.input_partitions
    )
    return app


def _credentials(kafka: KafkaSettings) -> Any:
    if kafka.security == "PLAINTEXT":
        return None
    context = ssl_context(kafka) if kafka.security.endswith("SSL") else None
    if kafka.security == "SSL":
        return faust.SSLCredentials(context)
    credentials = faust.SASLCredentials(
        username=kafka.username or "",
        password=kafka.password.get_secret_value() if kafka.password else "",
        mechanism=SASLMechanism(kafka.sasl_mechanism or "PLAIN"),
        ssl_context=context,
    )
    credentials.protocol = AuthProtocol(kafka.security)
    return credentials


class TaskSet:
    """The tasks of the present assignment."""

    def __init__(
        self,
        settings: MonitorSettings,
        stages: Sequence[Stage],
        metrics: Metrics,
        on_fatal: Callable[[BaseException], None],
        raw_log: RawLog | None = None,
    ) -> None:
        self._settings = settings
        self._stages = {stage.name: stage for stage in stages}
        self._owner = {topic: stage.name for stage in stages for topic in stage.inputs}
        self._tasks: dict[tuple[str, int], Task] = {}
        self._assigned: set[tuple[str, int]] | None = None
        self._on_fatal = on_fatal
        self._closing: set[asyncio.Task[None]] = set()
        self._stopping = False
        #: Of tasks that stopped because most of their input is bad: the next offset of ``models`` at that moment.
        self._halted: dict[tuple[str, int], int] = {}
        self.metrics = metrics
        self.dirty = asyncio.Event()
        self.broadcast = Broadcast(settings.kafka)
        self._cpu = ThreadPoolExecutor(1, "cpu")
        self._io = ThreadPoolExecutor(IO_THREADS, "io")
        self._loop = asyncio.get_running_loop()
        self._shared = Services(
            self._cpu, self._io, self.broadcast, metrics, self._failed, self.dirty.set, raw_log, Lags()
        )

    async def start(self) -> None:
        await self._loop.run_in_executor(self._io, self.broadcast.start)
        self.broadcast.on_new = self._on_broadcast

    async def stop(self) -> None:
        """Commit what was applied and let every task go. Without a broker what was applied is given up."""
        self._stopping = True
        self._loop.call_later(STOP_PATIENCE_S if self._tasks else 0.0, self.broadcast.give_up)
        tasks, self._tasks = list(self._tasks.values()), {}
        await asyncio.gather(*(task.close() for task in tasks), *self._closing)
        await self._loop.run_in_executor(self._io, self.broadcast.stop)
        self._cpu.shutdown()
        self._io.shutdown()

    @property
    def ready(self) -> bool:
        """Whether every assigned task has loaded its state. False before the first assignment."""
        return self._assigned is not None and all(
            name in self._tasks and self._tasks[name].ready for name in self._assigned
        )

    @property
    def settled(self) -> bool:
        """Whether nothing is still to come up: every assigned task is ready, or has halted."""
        return self._assigned is not None and all(
            name in self._halted or (name in self._tasks and self._tasks[name].ready)
            for name in self._assigned
        )

    @property
    def halted(self) -> list[str]:
        """Names of assigned tasks that stopped because most of their input is bad: they wait for people."""
        return sorted(f"{stage}/{partition}" for stage, partition in self._halted)

    @property
    def tasks(self) -> list[Task]:
        return list(self._tasks.values())

    def inputs(self) -> list[tuple[str, int]]:
        """Ticked inputs, as (topic on the broker, partition), of running tasks."""
        return [
            (self._settings.kafka.topic(topic), partition)
            for (stage, _), task in list(self._tasks.items())
            if self._stages[stage].ticked
            for topic, partition in task.inputs
        ]

    async def assign(self, assigned: set[tuple[str, int]]) -> None:
        """Close what is not among the assigned (topic on the broker, partition) any more and open what is new."""
        prefix = self._settings.kafka.topic_prefix
        wanted = {(self._owner[topic.removeprefix(prefix)], partition) for topic, partition in assigned}
        self._assigned = wanted
        for name in self._halted.keys() - wanted:
            self._show_halted(name, None)
        gone = [self._tasks.pop(name) for name in list(self._tasks) if name not in wanted]
        fresh = [self._create(*name) for name in sorted(wanted - self._tasks.keys() - self._halted.keys())]
        try:
            await asyncio.gather(*(task.close() for task in gone), *(task.open() for task in fresh))
        except Exception as error:  # whatever it is, the process must not go on
            self._on_fatal(error)
            raise
        for task in fresh:
            self._tasks[(task.context.stage, task.context.partition)] = task
            task.start()

    def _create(self, name: str, partition: int) -> Task:
        stage = self._stages[name]
        context = StageContext(name, partition, self._settings.kafka.input_partitions, self._settings)
        return Task(context, stage.create(context), stage.inputs, stage.follows, self._shared, stage.paced_by)

    async def deliver(self, topic: str, chunk: Chunk) -> None:
        """Hand a chunk to its task; one for a task that is gone is left to the task's next owner."""
        task = self._tasks.get((self._owner[topic], chunk.partition))
        if task is None:
            return
        try:
            await task.put(topic, chunk)
        except Exception as error:  # noqa: BLE001  # whatever it is, the process must not go on
            self._failed(task, error)

    def positions(self, seek: int) -> dict[tuple[str, int], int]:
        found = {tp: offset for task in self._tasks.values() for tp, offset in task.positions(seek).items()}
        return {
            (self._settings.kafka.topic(topic), partition): offset
            for (topic, partition), offset in found.items()
        }

    def offsets(self) -> dict[tuple[str, int], int]:
        kafka = self._settings.kafka
        return {
            (kafka.topic(topic), partition): offset
            for task in self._tasks.values()
            for (topic, partition), offset in task.offsets.items()
        }

    def _on_broadcast(self) -> None:
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for task in self._tasks.values():
            task.wake()
        # What a halted task had taken in is gone; a new process reads it again, under what is in force then.
        for name, at in self._halted.items():
            if self.broadcast.next_offset("models") > at and not self._stopping:
                self._on_fatal(
                    DeliveryError(
                        f"contracts have changed: {name[0]}/{name[1]}, which had halted, is tried again"
                    )
                )
                return

    def _failed(self, task: Task, error: BaseException) -> None:
        name = (task.context.stage, task.context.partition)
        if isinstance(error, Halted):
            log.error("%s", error, extra={"event": "halted", "task": task.name})
            self._show_halted(name, self.broadcast.next_offset("models"))
        elif isinstance(error, Fenced):
            log.warning(
                "task taken over by another worker, let go",
                extra={"event": "fenced", "task": task.name, "detail": str(error)},
            )
            # The rebalance that moved it is usually still to be heard of. If it is not, and the group says it is ours,
            # only a fresh start gets it back: this consumer's position is no longer to be trusted.
            patience_s = 2 * self._settings.kafka.session_timeout / 1000
            self._loop.call_later(patience_s, self._require, name)
        else:
            self._on_fatal(error)
            return
        if self._tasks.get(name) is task:
            del self._tasks[name]
        closing = asyncio.create_task(task.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _show_halted(self, name: tuple[str, int], models_offset: int | None) -> None:
        """Remember that a task has halted, or (None) that it is no longer this worker's to say."""
        if models_offset is None:
            del self._halted[name]
        else:
            self._halted[name] = models_offset
        self.metrics.set(
            "driftline_halted", int(models_offset is not None), stage=name[0], partition=str(name[1])
        )

    def _require(self, name: tuple[str, int]) -> None:
        if (
            self._assigned is not None
            and name in self._assigned
            and name not in self._tasks
            and not self._stopping
        ):
            self._on_fatal(
                Fenced(
                    f"task {name[0]}/{name[1]} was taken over, yet the group still gives it to this worker"
                )
            )


def wire(settings: MonitorSettings, stages: Sequence[Stage], tasks: TaskSet) -> MonitorApp:
    """The app, its agents and its assignment hooked to ``tasks``."""
    app = create_app(settings, stages)
    app.monitor_tasks = tasks
    names = [(name, settings.kafka.topic(name)) for stage in stages for name in stage.inputs]
    add_agents(app, names, tasks.deliver)

    async def on_complete(*_: Any, **__: Any) -> None:
        await tasks.assign({(tp.topic, tp.partition) for tp in app.consumer.assignment()})

    app.on_rebalance_complete.connect(on_complete, weak=False)
    return app
