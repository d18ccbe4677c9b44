"""The monitor process: starts everything in order, says when it is ready, watches itself, and stops cleanly.

Exit codes: 0 after SIGTERM or SIGINT, 70 when something unexpected happened (the next start goes on from the last
committed manifests, so ending is always safe and staying in doubt never is). What is no doubt is sat out: a broker or a
warehouse that is away, and an input of which most is bad (its task halts, the process is not ready, the others go on).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

from schemas.errors import DeliveryError
from schemas.observability import Metrics
from schemas.presence import Absence
from schemas.settings import MonitorSettings
from streams.app import MonitorApp, TaskSet, wire
from streams.broker import Ends
from streams.lookup import LabelIndex, Lookup
from streams.raw_log import RawLog
from streams.sink import ClickHouseSink, Sink, SinkWriter
from streams.stages import MONITOR_STAGES, Stage
from streams.ticker import Ticker
from streams.watchdog import Reading, Watchdog

log = logging.getLogger(__name__)
EXIT_UNEXPECTED = 70
STOP_TIMEOUT_S = 20.0
_WATCH_INTERVAL_S = 1.0
_START_INTERVAL_S = 0.02
_ASK_INTERVAL_S = 2.0

OnFatal = Callable[[BaseException], None]


async def run_monitor(
    settings: MonitorSettings,
    stages: Sequence[Stage] = MONITOR_STAGES,
    sink: Sink | None = None,
    index: LabelIndex | None = None,
    raw_sink: ClickHouseSink | None = None,
) -> int:
    """Run until told to stop; the process's exit code. ``sink`` None: aggregates stay in the tasks' outboxes. ``index`` None:
    labels that find nobody wait for ever. ``raw_sink`` None: somebody else writes the raw log."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[int] = loop.create_future()

    def finish(code: int) -> None:
        if not end.done():
            end.set_result(code)

    def on_fatal(error: BaseException) -> None:
        log.error(
            "ending: %s", error, exc_info=error, extra={"event": "fatal", "error": type(error).__name__}
        )
        loop.call_soon_threadsafe(finish, EXIT_UNEXPECTED)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, finish, 0)
    metrics = Metrics()
    raw_log = RawLog(settings, raw_sink, metrics) if raw_sink is not None else None
    tasks = TaskSet(settings, stages, metrics, on_fatal, raw_log)
    app = wire(settings, stages, tasks)
    ticker: Ticker | None = None
    async with AsyncExitStack() as stack:
        if settings.metrics_port:
            server = metrics.serve(settings.metrics_host, settings.metrics_port, lambda: tasks.ready)
            stack.callback(server.shutdown)
        if settings.monitor.ticker == "wall" and any(stage.ticked for stage in stages):
            ticker = Ticker(settings, tasks.inputs)
            stack.callback(ticker.stop)
            ticker.start()
        if sink is not None:
            stack.callback(sink.close)
            writer = SinkWriter(sink, lambda: tasks.tasks, tasks.dirty, metrics)
            stack.callback(_attend(writer.run(), "sink", on_fatal))
        if index is not None and settings.monitor.label_lookup_interval:
            stack.callback(index.close)
            lookup = Lookup(index, lambda: tasks.tasks, settings.monitor, metrics)
            stack.callback(_attend(lookup.run(), "lookup", on_fatal))
        if raw_log is not None:
            stack.callback(raw_log.close)
            stack.callback(_attend(raw_log.run(), "raw-log", on_fatal))
            stack.callback(_attend(raw_log.read_again(), "raw-log-again", on_fatal))
        stack.callback(_attend(_watch(settings, app, tasks, ticker), "watch", on_fatal))
        starting = asyncio.create_task(_start(app, tasks), name="start")
        starting.add_done_callback(_told(on_fatal))
        code = await end
        log.info("stopping", extra={"event": "stopping", "exit_code": code})
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await tasks.stop()
                await asyncio.wait({starting})
                await app.stop()
        except Exception:
            log.exception("the stop was not clean", extra={"event": "stop-failed"})
            # Threads that wait for a broker that is away would hold the process for a minute; killed is as good.
            os._exit(code or EXIT_UNEXPECTED)
    log.info("stopped", extra={"event": "stopped", "exit_code": code})
    return code


async def _start(app: MonitorApp, tasks: TaskSet) -> None:
    await tasks.start()
    await app.start()


def _attend(work: Coroutine[Any, Any, None], name: str, on_fatal: OnFatal) -> Callable[[], object]:
    """Run ``work`` beside everything else; its failure is the process's. Returns what cancels it."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_told(on_fatal))
    return task.cancel


def _told(on_fatal: OnFatal) -> Callable[[asyncio.Task[None]], None]:
    """A failure is the process's; being cancelled is none."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            on_fatal(error)

    return ended


async def _watch(settings: MonitorSettings, app: MonitorApp, tasks: TaskSet, ticker: Ticker | None) -> None:
    """Says when the process is ready. Raises DeliveryError when Faust has crashed, time has stopped, or the watchdog
    finds that a task hangs: all of these can come without a word."""
    ends = Ends(settings.kafka)
    watchdog = Watchdog(settings.monitor.ready_timeout / 1000, settings.monitor.chunk_records)
    absence = Absence("watch")
    unready_since_s: float | None = time.monotonic()
    looked_s = 0.0
    while True:
        await asyncio.sleep(_WATCH_INTERVAL_S if unready_since_s is None else _START_INTERVAL_S)
        now_s = time.monotonic()
        if app.crashed:
            raise DeliveryError(f"Faust crashed: {app.crash_reason!r}")
        if tasks.broadcast.error is not None:
            raise DeliveryError(f"the follower of broadcast topics has ended: {tasks.broadcast.error!r}")
        if ticker is not None and not ticker.alive:
            raise DeliveryError("the thread that writes ticks has ended: event time would stand still")
        if not tasks.ready:
            unready_since_s = unready_since_s or now_s
        elif unready_since_s is not None:
            names = sorted(task.name for task in tasks.tasks)
            log.info(
                "ready",
                extra={"event": "ready", "tasks": names, "seconds": round(now_s - unready_since_s, 3)},
            )
            unready_since_s = None
        if now_s - looked_s >= _ASK_INTERVAL_S:
            looked_s = now_s
            for task in tasks.tasks:
                task.serve()
            readings = await _read(settings, tasks, ends)
            absence.note(readings is not None)
            tasks.metrics.set("driftline_broker_up", int(readings is not None))
            watchdog.look(time.monotonic(), ready=tasks.settled, readings=readings)


async def _read(
    settings: MonitorSettings, tasks: TaskSet, ends: Ends
) -> dict[tuple[str, int], Reading] | None:
    """Where every running task stands, by input; None when no broker answers. Sets the lag gauges."""
    kafka = settings.kafka
    inputs = [(kafka.topic(topic), p) for task in tasks.tasks for topic, p in task.inputs]
    found = await asyncio.to_thread(ends.ask, inputs)
    if found is None:
        return None
    readings: dict[tuple[str, int], Reading] = {}
    for task in tasks.tasks:
        total = 0
        taken = task.received
        for (topic, partition), at in task.progress.items():
            end = found.get((kafka.topic(topic), partition))
            if end is not None:
                total += max(0, end - at)
            if end is not None and topic not in task.held:
                readings[topic, partition] = Reading(taken.get((topic, partition), at), at, end)
        labels = {"stage": task.context.stage, "partition": str(task.context.partition)}
        tasks.metrics.set("driftline_lag_records", total, **labels)
    return readings
