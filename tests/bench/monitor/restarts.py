"""From kill -9 of the worker to caught up, against how many predictions its state holds."""

from __future__ import annotations

import time

import clickhouse_connect
import psutil

from tests.bench.figures import say
from tests.bench.monitor import load
from tests.bench.monitor.worker import Size, counted, platform_with, process_of, wait_for


def run(size: Size) -> None:
    """The service is started again by the platform; caught up: an event sent after the kill is in an aggregate."""
    for held in (20_000,) if size.quick else (20_000, 100_000, 500_000):
        with platform_with(load.records()) as platform:
            before_it = load.write(platform.kafka, held)
            platform.add("monitor")
            wait_for(platform, held)
            before = process_of(platform).pid
            began = time.perf_counter()
            psutil.Process(before).kill()
            load.write(platform.kafka, 1_000, seed=8, after=before_it)
            with clickhouse_connect.get_client(**platform.clickhouse.client()) as client:
                while counted(client) < held + 1_000:
                    if time.perf_counter() - began > 300 or platform.failure:
                        raise SystemExit(f"the worker did not come back: {platform.failure}")
                    time.sleep(0.05)
            say("monitor.restart_s", time.perf_counter() - began, "s", pending_predictions=held)
