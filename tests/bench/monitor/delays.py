"""From an event in Kafka to its aggregate in ClickHouse, at a tenth, a half and nine tenths of the highest rate.

A probe in the stream is an event of a model of its own, sent among the load; it has arrived when a window of that model
counts it. The highest rate is what the worker did with a backlog just before.
"""

from __future__ import annotations

import time

import clickhouse_connect
import msgspec
import numpy as np
from confluent_kafka import Producer

from deploy.local.platform import Platform
from schemas.contracts import ModelRecord
from schemas.ids import partition_of
from schemas.settings import KafkaSettings
from tests.bench.figures import say
from tests.bench.monitor import load
from tests.bench.monitor.worker import Size, counted, platform_with, wait_for

PROBES = 40
SHARES = (0.1, 0.5, 0.9)


def run(size: Size) -> None:
    """p50 and p99 at each share."""
    contract = load.contract()
    probe = contract.model_copy(
        update={"model": "probe", "monitoring": contract.monitoring.model_copy(update={"detectors": ()})}
    )
    with platform_with([*load.records(), ModelRecord(contract=probe)]) as platform:
        backlog = load.write(platform.kafka, min(size.events, 200_000))
        platform.add("monitor")
        highest = backlog.events / wait_for(platform, backlog.events)
        sent = backlog.events
        for share in SHARES[:1] if size.quick else SHARES:
            rate = share * highest
            delays, sent = _delays(platform, rate, sent, 5 if size.quick else PROBES)
            for name, q in (("p50", 0.5), ("p99", 0.99)):
                say(
                    f"monitor.aggregate_delay.{name}_s", float(np.quantile(delays, q)), "s",
                    share_of_highest_rate=share, events_per_s=round(rate), probes=len(delays),
                )  # fmt: skip


def _delays(platform: Platform, rate: float, sent: int, probes: int) -> tuple[list[float], int]:
    kafka = platform.kafka
    producer = Producer(kafka.producer(**{"linger.ms": 5}))
    found: list[float] = []
    before = 0
    with clickhouse_connect.get_client(**platform.clickhouse.client()) as client:
        before = counted(client, "probe")
        for _ in range(probes):
            _event(producer, kafka, "probe", before + 1)
            at_s, pushed = time.perf_counter(), 0
            while counted(client, "probe") <= before:
                due = int((time.perf_counter() - at_s) * rate)
                while pushed < due:
                    _event(producer, kafka, "bench", sent)
                    sent, pushed = sent + 1, pushed + 1
                producer.poll(0)
                if time.perf_counter() - at_s > 120:
                    raise SystemExit("a probe did not arrive within two minutes")
            found.append(time.perf_counter() - at_s)
            before += 1
    producer.flush(60)
    return found, sent


def _event(producer: Producer, kafka: KafkaSettings, model: str, number: int) -> None:
    identity = f"{model}-{number}"
    features: dict[str, object] = {f"f{i}": 0.1 * i for i in range(9)}
    event = {"prediction_id": identity, "model": model, "version": "1", "event_time_ms": load.START_MS + load.SPAN_MS,
             "features": features | {"country": "de"}, "score": 0.5, "latency_ms": 3.25}  # fmt: skip
    key = identity.encode()
    while True:
        try:
            producer.produce(
                kafka.topic("predictions"),
                msgspec.json.encode(event),
                key,
                partition_of(key, kafka.input_partitions),
            )
        except BufferError:
            producer.poll(0.05)
        else:
            return
