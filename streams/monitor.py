"""The monitor process: starts everything in order, says when it is ready, watches itself, and stops cleanly.

Exit codes: 0 after SIGTERM or SIGINT, 70 when something unexpected happened (the next start goes on from the last
committed manifests, so ending is always safe and staying in doubt never is).
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

from faust.types import TP

from schemas.errors import DeliveryError
from schemas.observability import Metrics
from schemas.settings import MonitorSettings
from streams.app import MonitorApp, TaskSet, wire
from streams.sink import Sink, SinkWriter
from streams.stages import MONITOR_STAGES, Stage
from streams.ticker import Ticker

log = logging.getLogger(__name__)
EXIT_UNEXPECTED = 70
STOP_TIMEOUT_S = 20.0
_WATCH_INTERVAL_S = 1.0
_START_INTERVAL_S = 0.02

OnFatal = Callable[[BaseException], None]


async def run_monitor(
    settings: MonitorSettings, stages: Sequence[Stage] = MONITOR_STAGES, sink: Sink | None = None
) -> int:
    """Run until told to stop; the process's exit code. ``sink`` None: aggregates stay in the tasks' outboxes."""
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
    tasks = TaskSet(settings, stages, metrics, on_fatal)
    app = wire(settings, stages, tasks)
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
        stack.callback(_attend(_watch(settings, app, tasks), "watch", on_fatal))
        try:
            await tasks.start()
            await app.start()
            code = await end
        except Exception as error:  # noqa: BLE001  # whatever it is, the process must not go on
            on_fatal(error)
            code = EXIT_UNEXPECTED
        log.info("stopping", extra={"event": "stopping", "exit_code": code})
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await tasks.stop()
                await app.stop()
        except Exception:
            log.exception("the stop was not clean", extra={"event": "stop-failed"})
            # Threads that wait for a broker that is away would hold the process for a minute; killed is as good.
            os._exit(code or EXIT_UNEXPECTED)
    log.info("stopped", extra={"event": "stopped", "exit_code": code})
    return code


def _attend(work: Coroutine[Any, Any, None], name: str, on_fatal: OnFatal) -> Callable[[], object]:
    """Run ``work`` beside everything else; its failure is the process's. Returns what cancels it."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            on_fatal(error)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    return task.cancel


async def _watch(settings: MonitorSettings, app: MonitorApp, tasks: TaskSet) -> None:
    """Says when the process is ready. Raises DeliveryError when it is not for too long, when Faust has crashed, or
    when the lag of an input grows while its task stands still: Faust can do all of these without a word."""
    limit_s = settings.monitor.ready_timeout / 1000
    unready_since_s: float | None = time.monotonic()
    seen: dict[tuple[str, int], tuple[int, int, float]] = {}
    while True:
        await asyncio.sleep(_WATCH_INTERVAL_S if unready_since_s is None else _START_INTERVAL_S)
        now_s = time.monotonic()
        if app.crashed:
            raise DeliveryError(f"Faust crashed: {app.crash_reason!r}")
        if not tasks.ready:
            unready_since_s = unready_since_s or now_s
            if now_s - unready_since_s > limit_s:
                raise DeliveryError(
                    f"not ready within {limit_s:.0f} s: is the broker up, and do all topics exist?"
                )
            continue
        if unready_since_s is not None:
            names = sorted(task.name for task in tasks.tasks)
            log.info(
                "ready",
                extra={"event": "ready", "tasks": names, "seconds": round(now_s - unready_since_s, 3)},
            )
            unready_since_s = None
        for tp, at, end in _lags(settings, app, tasks):
            before = seen.get(tp)
            if before is None or before[0] != at:
                seen[tp] = (at, end, now_s)
            elif end > before[1] + settings.monitor.chunk_records and now_s - before[2] > limit_s:
                raise DeliveryError(
                    f"{tp[0]}[{tp[1]}] stood at {at} for {limit_s:.0f} s while its end went to {end}"
                )


def _lags(
    settings: MonitorSettings, app: MonitorApp, tasks: TaskSet
) -> list[tuple[tuple[str, int], int, int]]:
    """(input, position, end) of every running task; sets the lag gauges. A transaction marker at the end counts one."""
    lags = []
    for task in tasks.tasks:
        total = 0
        for (topic, partition), at in task.progress.items():
            end = app.consumer.highwater(TP(settings.kafka.topic(topic), partition))
            if end is not None:
                total += max(0, end - at)
                lags.append(((topic, partition), at, end))
        labels = {"stage": task.context.stage, "partition": str(task.context.partition)}
        tasks.metrics.set("driftline_lag_records", total, **labels)
    return lags
