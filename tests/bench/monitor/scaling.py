"""What more workers bring: the same load, on the topic beforehand, read by 1, 2, ... of them in one group."""

from __future__ import annotations

import os
import signal
import time

import clickhouse_connect

from deploy.local.platform import Platform
from tests.bench.figures import say
from tests.bench.monitor import load
from tests.bench.monitor.rates import WARM_UP_EVENTS
from tests.bench.monitor.worker import (
    Size,
    counted,
    platform_with,
    process_of,
    used_s,
    wait_for,
    wait_restarted,
    wait_watched,
)

#: Broker and warehouse: where workers, too, have cores of their own, there are so many more.
STORES = 2
#: As many workers as partitions; two are tried wherever they run.
WORKERS_MAX, WORKERS_MIN = 4, 2
#: Workers wait, stopped, while the load is written; the group must not give their partitions away meanwhile.
SESSION = "4m"


def run(size: Size) -> None:
    """Up to as many workers as there are cores for; beyond that the line says so."""
    cores = len(os.sched_getaffinity(0))
    alone = 0.0
    for workers in range(1, max(WORKERS_MIN, min(WORKERS_MAX, cores - STORES)) + 1):
        rate, cpu_s = _measured(workers, size.events)
        alone = alone or rate
        say(
            "monitor.scaling.wall_events_per_s",
            rate,
            "events/s",
            "one worker",
            rate / alone,
            workers=workers,
            cpu_s=round(cpu_s, 2),
            cores=cores,
            note="broker and warehouse share the cores with them" if workers + STORES > cores else None,
        )


def _measured(workers: int, events: int) -> tuple[float, float]:
    """(events per second of the wall, CPU-seconds of all workers), from when the last one is ready on."""
    names = ("monitor", *(f"monitor-{number}" for number in range(1, workers)))
    with platform_with(load.records(), DRIFTLINE_KAFKA__SESSION_TIMEOUT=SESSION) as platform:
        few = load.write(platform.kafka, WARM_UP_EVENTS)
        platform.add(*names)
        wait_for(platform, few.events)
        wait_watched(platform, few.end_ms, names)
        for name in names:
            platform.kill(name, signal.SIGSTOP)
        written = load.write(platform.kafka, events, after=few)
        for name in names:
            platform.kill(name)
        for name in names:
            wait_restarted(platform, name)
        return _used(platform, names, few.events + events, written.end_ms)


def _used(platform: Platform, names: tuple[str, ...], events: int, end_ms: int) -> tuple[float, float]:
    processes = [process_of(platform, name) for name in names]
    before_s = sum(used_s(process) for process in processes)
    with clickhouse_connect.get_client(**platform.clickhouse.client()) as client:
        done = counted(client)
    began = time.perf_counter()
    wait_for(platform, events)
    wait_watched(platform, end_ms, names)
    seconds = time.perf_counter() - began
    return (events - done) / seconds, sum(used_s(process) for process in processes) - before_s
