"""Events per CPU-second of one monitor worker with everything on, and what its peers do on the same topic."""

from __future__ import annotations

import signal
import time

import clickhouse_connect
from confluent_kafka import Consumer, TopicPartition

from deploy.local.platform import Platform
from schemas.contracts import ModelRecord
from streams.core.archive import EVENTS
from tests.bench.figures import say
from tests.bench.monitor import load, peers
from tests.bench.monitor.worker import (
    Size,
    platform_with,
    process_of,
    used_s,
    wait_for,
    wait_restarted,
    wait_watched,
)

WARM_UP_EVENTS = 50_000


def run(size: Size) -> None:
    """JSON beside the peers, and with the raw log left to the archive; then Arrow with everything on and with detectors off."""
    _one("monitor.json", load.records(), size.events, peers.JSON_PEERS)
    _one("monitor.json.without_raw_log", load.records(), size.events, DRIFTLINE_CLICKHOUSE__RAW_LOG="archive")
    _one("monitor.arrow", load.records(), size.events, peers.ARROW_PEERS, arrow=True)
    plain = [_without_detectors(record) for record in load.records()]
    _one("monitor.arrow.plain", plain, size.events, peers.ARROW_PEERS, arrow=True)


def _without_detectors(record: ModelRecord) -> ModelRecord:
    if record.contract is None:
        return record
    monitoring = record.contract.monitoring.model_copy(update={"detectors": ()})
    return ModelRecord(contract=record.contract.model_copy(update={"monitoring": monitoring}))


def _one(
    figure: str,
    records: list[ModelRecord],
    events: int,
    beside: peers.Peers = (),
    *,
    arrow: bool = False,
    **environment: str,
) -> None:
    """One worker, and on the same topic those who are ``beside`` it, the first of which is its limit."""
    with platform_with(records, **environment) as platform:
        written = written_ahead(platform, events, arrow=arrow)
        others = dict(peers.measure(platform.kafka, written, beside))
        for name, rate in others.items():
            say(f"{name}.events_per_s", rate, "events/CPU-s")
        value, more = measured(platform, written, with_log=not environment)
        limit = next(iter(others), None)
        say(
            f"{figure}.events_per_s",
            value,
            "events/CPU-s",
            limit,
            None if limit is None else value / others[limit],
            **more,
        )
        for name, rate in others.items():
            say(f"{figure}.vs_{name.removeprefix('peer.')}", value / rate, "ratio", name, value / rate)


def written_ahead(platform: Platform, events: int, arrow: bool = False) -> load.Load:
    """The load, behind a little of it from which the worker has built the detectors, as it does once in a version's life.

    Nobody reads meanwhile: the worker is stopped, and the next one begins with everything before it.
    """
    few = load.write(platform.kafka, WARM_UP_EVENTS, arrow=arrow)
    platform.add("monitor")
    wait_for(platform, few.events)
    wait_watched(platform, few.end_ms)
    platform.kill("monitor", signal.SIGSTOP)
    return load.write(platform.kafka, events, after=few, arrow=arrow)


def measured(
    platform: Platform, written: load.Load, with_log: bool = True
) -> tuple[float, dict[str, object]]:
    """From the moment at which the worker is ready, as the peers are from their first event on; to the one at which the
    detectors, too, have seen all, and the raw log has it."""
    platform.kill("monitor")
    wait_restarted(platform)
    worker = process_of(platform)
    others = {name: process_of(platform, name) for name in ("kafka", "warehouse")}
    before, before_others = used_s(worker), {name: used_s(p) for name, p in others.items()}
    began = time.perf_counter()
    wait_for(platform, WARM_UP_EVENTS + written.events)
    wait_watched(platform, written.end_ms)
    if with_log:
        _wait_logged(platform)
    wall_s = time.perf_counter() - began
    cpu_s = used_s(worker) - before
    beside = {f"{name}_cpu_s": round(used_s(p) - before_others[name], 2) for name, p in others.items()}
    return written.events / cpu_s, {
        "wall_events_per_s": round(written.events / wall_s),
        "event_bytes": round(written.event_bytes),
        "events": written.events,
        "labels": written.labels,
        "rss_mb": round(worker.memory_info().rss / 1e6),
        **beside,
    }


def _wait_logged(platform: Platform) -> None:
    """Until the raw log has everything on its topics."""
    kafka = platform.kafka
    ends = {}
    reader = Consumer(kafka.consumer())
    try:
        for topic in EVENTS:
            for partition in range(kafka.input_partitions):
                place = TopicPartition(kafka.topic(topic), partition)
                ends[topic, partition] = reader.get_watermark_offsets(place, timeout=10)[1]
    finally:
        reader.close()
    with clickhouse_connect.get_client(**platform.clickhouse.client()) as client:
        while True:
            rows = client.query(
                "SELECT topic, partition, max(next_offset) FROM archive_progress GROUP BY ALL"
            )
            reached = {(topic, partition): offset for topic, partition, offset in rows.result_rows}
            if all(reached.get(tp, 0) >= end for tp, end in ends.items()):
                return
            if platform.failure:
                raise SystemExit(f"the raw log was not finished: {platform.failure}")
            time.sleep(0.1)
