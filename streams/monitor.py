"""The monitor process: starts everything in order, says when it is ready, watches itself, and stops cleanly.

Exit codes: 0 after SIGTERM or SIGINT, 70 when something unexpected happened (the next start goes on from the last
committed manifests, so ending is always safe and staying in doubt never is).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from schemas.observability import Metrics
from schemas.settings import MonitorSettings
from streams.app import MonitorApp, TaskSet, wire
from streams.sink import Sink, SinkWriter
from streams.stages import MONITOR_STAGES, Stage
from streams.ticker import Ticker

log = logging.getLogger(__name__)
EXIT_UNEXPECTED = 70
WATCH_INTERVAL_S = 1.0
STOP_TIMEOUT_S = 20.0


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
    app.on_init_dependencies()
    async with AsyncExitStack() as stack:
        if settings.metrics_port:
            server = metrics.serve(settings.metrics_host, settings.metrics_port, lambda: tasks.ready)
            stack.callback(server.shutdown)
        if settings.monitor.ticker == "wall" and any(stage.ticked for stage in stages):
            ticker = Ticker(settings, tasks.inputs)
            ticker.start()
            stack.callback(ticker.stop)
        watcher = asyncio.create_task(_watch(settings, app, tasks, on_fatal), name="watch")
        stack.callback(watcher.cancel)
        if sink is not None:
            writer = asyncio.create_task(
                SinkWriter(sink, lambda: tasks.tasks, tasks.dirty, metrics).run(), name="sink"
            )
            writer.add_done_callback(
                lambda t: None if t.cancelled() or not t.exception() else on_fatal(t.exception())
            )  # type: ignore[arg-type]
            stack.callback(sink.close)
            stack.callback(writer.cancel)
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
    log.info("stopped", extra={"event": "stopped", "exit_code": code})
    return code


async def _watch(settings: MonitorSettings, app: MonitorApp, tasks: TaskSet, on_fatal: object) -> None:
    """Says when the process is ready; ends it when it is not for too long or its lag grows while nothing moves."""
    assert callable(on_fatal)
    limit_s = settings.monitor.ready_timeout / 1000
    unready_since_s: float | None = time.monotonic()
    stuck: dict[tuple[str, int], tuple[int, int, float]] = {}
    interval_s = 0.02
    while True:
        await asyncio.sleep(interval_s)
        now_s = time.monotonic()
        if app.crashed:
            on_fatal(RuntimeError(f"the Faust app crashed: {app.crash_reason!r}"))
            return
        if not tasks.ready:
            unready_since_s = unready_since_s or now_s
            if now_s - unready_since_s > limit_s:
                on_fatal(
                    RuntimeError(
                        f"not ready within {limit_s:.0f} s; is the broker reachable and do all topics exist?"
                    )
                )
                return
            continue
        if unready_since_s is not None:
            names = sorted(task.name for task in tasks.tasks)
            log.info(
                "ready",
                extra={"event": "ready", "tasks": names, "seconds": round(now_s - unready_since_s, 3)},
            )
            unready_since_s, interval_s = None, WATCH_INTERVAL_S
        for tp, at, end in _lags(settings, app, tasks):
            before = stuck.get(tp)
            if before is None or before[0] != at:
                stuck[tp] = (at, end, now_s)
            elif end > before[1] + settings.monitor.chunk_records and now_s - before[2] > limit_s:
                on_fatal(
                    RuntimeError(
                        f"{tp[0]}[{tp[1]}] stands at {at} for {limit_s:.0f} s while its end is {end}"
                    )
                )
                return


def _lags(
    settings: MonitorSettings, app: MonitorApp, tasks: TaskSet
) -> list[tuple[tuple[str, int], int, int]]:
    """(input, position, end) of every running task; sets the lag gauges. A transaction marker at the end counts one."""
    from faust.types import TP

    lags = []
    for task in tasks.tasks:
        total = 0
        for (topic, partition), at in task.progress.items():
            end = app.consumer.highwater(TP(settings.kafka.topic(topic), partition))
            if end is not None:
                total += max(0, end - at)
                lags.append(((topic, partition), at, end))
        tasks.metrics.set(
            "driftline_lag_records", total, stage=task.context.stage, partition=str(task.context.partition)
        )
    return lags
