"""Events per CPU-second of one monitor worker with everything on, and what its peers do on the same topic."""

from __future__ import annotations

import signal
import time

import clickhouse_connect

from deploy.local.platform import Platform
from schemas.contracts import ModelRecord
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
    """JSON beside the peers, then Arrow with everything on and with detectors off."""
    _json(size.events)
    _arrow("monitor.arrow.events_per_s", load.records(), size.events)
    _arrow("monitor.arrow.plain.events_per_s", [_without_detectors(r) for r in load.records()], size.events)


def _without_detectors(record: ModelRecord) -> ModelRecord:
    if record.contract is None:
        return record
    monitoring = record.contract.monitoring.model_copy(update={"detectors": ()})
    return ModelRecord(contract=record.contract.model_copy(update={"monitoring": monitoring}))


def _json(events: int) -> None:
    with platform_with(load.records()) as platform:
        written = written_ahead(platform, events)
        others = dict(peers.measure(platform.kafka, written))
        for name, rate in others.items():
            say(f"{name}.events_per_s", rate, "events/CPU-s")
        value, more = measured(platform, written)
        say(
            "monitor.json.events_per_s",
            value,
            "events/CPU-s",
            "peer.aiokafka",
            value / others["peer.aiokafka"],
            **more,
        )
        for name, rate in others.items():
            say(f"monitor.json.vs_{name.removeprefix('peer.')}", value / rate, "ratio", name, value / rate)
        archive = _archived(platform, written)
        say(
            "archive.json.events_per_s", archive, "events/CPU-s", "monitor.json.events_per_s", archive / value
        )
        both = 1 / (1 / value + 1 / archive)
        say(
            "monitor.json.with_archive.events_per_s",
            both,
            "events/CPU-s",
            "peer.aiokafka",
            both / others["peer.aiokafka"],
        )


def _arrow(figure: str, records: list[ModelRecord], events: int) -> None:
    with platform_with(records) as platform:
        written = written_ahead(platform, events, arrow=True)
        value, more = measured(platform, written)
        say(figure, value, "events/CPU-s", **more)


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


def measured(platform: Platform, written: load.Load) -> tuple[float, dict[str, object]]:
    """From the moment at which the worker is ready, as the peers are from their first event on; to the one at which the
    detectors, too, have seen all."""
    platform.kill("monitor")
    wait_restarted(platform)
    worker = process_of(platform)
    others = {name: process_of(platform, name) for name in ("kafka", "warehouse")}
    before, before_others = used_s(worker), {name: used_s(p) for name, p in others.items()}
    began = time.perf_counter()
    wait_for(platform, WARM_UP_EVENTS + written.events)
    wait_watched(platform, written.end_ms)
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


def _archived(platform: Platform, written: load.Load) -> float:
    """The raw log's share: the archive process over the same topic."""
    platform.add("archive")
    worker = process_of(platform, "archive")
    before = used_s(worker)
    with clickhouse_connect.get_client(**platform.clickhouse.client()) as client:
        while (
            int(client.query("SELECT count() FROM prediction_log").result_rows[0][0])
            < WARM_UP_EVENTS + written.events
        ):
            if platform.failure:
                raise SystemExit(f"the archive did not finish: {platform.failure}")
            time.sleep(0.2)
    return (WARM_UP_EVENTS + written.events) / (used_s(worker) - before)
