"""``make bench``: prints one JSON line a figure, ``{"figure", "value", "unit", "baseline", "ratio"}``.

``monitor.json.events_per_s``: one monitor worker with everything on, in events per CPU-second of the worker; the baseline is
raw aiokafka consumption of the same topic in the same run, in events per CPU-second of its process.

``scorer.*``: see :mod:`tests.bench.scorer`. ``--quick``: little of everything, to see that it works.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import clickhouse_connect
import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.local.platform import Platform
from deploy.models import publish_records
from schemas.settings import KafkaSettings
from tests.bench.figures import say
from tests.bench.load import Load, records, write
from tests.bench.scorer import __main__ as scorer

WAIT_S = 600.0


async def consume_raw(kafka: KafkaSettings, events: int) -> tuple[float, float]:
    """(wall, CPU) seconds of aiokafka reading the whole topic and looking at nothing."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest", max_poll_records=20_000, fetch_max_bytes=8 << 20,
        max_partition_fetch_bytes=4 << 20, enable_auto_commit=False,
    )  # fmt: skip
    await consumer.start()
    try:
        partitions = [TopicPartition(kafka.topic("predictions"), p) for p in range(kafka.input_partitions)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        wall, cpu, seen = time.perf_counter(), time.process_time(), 0
        while seen < events:
            got = await consumer.getmany(timeout_ms=1_000)
            seen += sum(len(batch) for batch in got.values())
        return time.perf_counter() - wall, time.process_time() - cpu
    finally:
        await consumer.stop()


def counted(client: Any) -> int:
    """Predictions in the windows so far."""
    return int(client.query("SELECT sum(predictions) FROM windows WHERE segment = ''").result_rows[0][0] or 0)


def measure_monitor(platform: Platform, load: Load) -> dict[str, float]:
    """Wall and CPU seconds of the monitor, from its ready line until the aggregates of every event are in ClickHouse."""
    state = json.loads((platform.data_dir / "platform.json").read_text())
    worker = psutil.Process(state["processes"]["monitor"])
    began = worker.cpu_times()
    wall = time.perf_counter()
    with clickhouse_connect.get_client(**platform.clickhouse.client()) as client:
        while counted(client) < load.events:
            if time.perf_counter() - wall > WAIT_S or platform.failure:
                raise SystemExit(f"the monitor did not finish: {platform.failure or 'too slow'}")
            time.sleep(0.1)
    spent = worker.cpu_times()
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": spent.user + spent.system - began.user - began.system,
        "rss_mb": worker.memory_info().rss / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--events", type=int)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    events = options.events or (50_000 if options.quick else 500_000)
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        platform = Platform(
            Path(folder),
            services=(),
            environment={"DRIFTLINE_MONITOR__TICKER": "off"},
            say=lambda service, text: print(f"{service}: {text}", file=sys.stderr),
        )
        with platform:
            publish_records(platform.kafka, records())
            load = write(platform.kafka, events)
            raw_wall, raw_cpu = asyncio.run(consume_raw(platform.kafka, load.events))
            raw = load.events / raw_cpu
            say(
                "aiokafka.raw.events_per_s",
                raw,
                "events/CPU-s",
                wall_events_per_s=round(load.events / raw_wall),
            )
            platform.add("monitor")
            spent = measure_monitor(platform, load)
            value = load.events / spent["cpu_s"]
            say(
                "monitor.json.events_per_s", value, "events/CPU-s", "aiokafka.raw.events_per_s", value / raw,
                wall_events_per_s=round(load.events / spent["wall_s"]), event_bytes=round(load.event_bytes),
                events=load.events, labels=load.labels, rss_mb=round(spent["rss_mb"]),
            )  # fmt: skip
    scorer.run(options.quick)


if __name__ == "__main__":
    main()
