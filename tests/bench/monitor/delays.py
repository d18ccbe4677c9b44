"""From an event in Kafka to its aggregate in ClickHouse and to a verdict on ``signals``, at shares of the highest rate.

A probe is the first events of a version of a model of its own, sent among the load, on which the monitor must say what it
thinks. It has arrived when a window counts them, and when a verdict on its version is on ``signals``. Ticks go
by every 100 ms, as fast as event time may move here; the highest rate is what the worker did with a backlog just before.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field

import clickhouse_connect
import msgspec
import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from deploy.local.platform import Platform
from schemas.contracts import DetectorConfig, ModelRecord
from schemas.ids import partition_of, partitions_of
from schemas.settings import KafkaSettings
from tests.bench.figures import say
from tests.bench.monitor import load
from tests.bench.monitor.rates import measured, written_ahead
from tests.bench.monitor.worker import Size, counted, platform_with

PROBES = 12
#: Events of a probe: the least that a detector says something about.
ROWS = 3
SHARES = (0.1, 0.5, 0.9)
TICK_S = 0.1
BURST_S = 0.01
LOOK_S = 0.02
_ID = "event-000000000000"


def run(size: Size) -> None:
    """p50 and p99 at each share."""
    contract = load.contract()
    # Says "stable" of a version at so many rows.
    fresh = DetectorConfig(
        name="fresh", kind="freshness", stream="features", options={"silence_max": "1h", "rows_min": ROWS}
    )
    probe = contract.model_copy(
        update={
            "model": "probe",
            "monitoring": contract.monitoring.model_copy(update={"detectors": (fresh,)}),
        }
    )
    with platform_with([*load.records(), ModelRecord(contract=probe)]) as platform:
        backlog = written_ahead(platform, size.events)
        _, more = measured(platform, backlog)
        highest = float(str(more["wall_events_per_s"]))
        traffic = Traffic(platform.kafka, backlog.end_ms)
        for share in SHARES[:1] if size.quick else SHARES:
            found = _delays(platform, traffic, share * highest, 5 if size.quick else PROBES)
            for what, delays in found.items():
                for name, q in (("p50", 0.5), ("p99", 0.99)):
                    say(
                        f"monitor.{what}_delay.{name}_s", float(np.quantile(delays, q)), "s",
                        share_of_highest_rate=share, events_per_s=round(share * highest), probes=len(delays),
                        events_per_s_sent=round(traffic.rate),
                    )  # fmt: skip


@dataclass(slots=True)
class Traffic:
    """Events of the bench's model at a steady rate, from a thread; event time goes on with the clock."""

    kafka: KafkaSettings
    start_ms: int
    sent: int = 0
    #: What was really sent a second, the last time.
    rate: float = 0.0
    began_s: float = field(default_factory=time.perf_counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    def now_ms(self) -> int:
        """The event time of what is sent now."""
        return self.start_ms + int((time.perf_counter() - self.began_s) * 1_000)

    def send(self, rate: float) -> None:
        """Until ``stop``."""
        producer = Producer(self.kafka.producer(**{"linger.ms": 5, "acks": "1", "enable.idempotence": False,
                                                   "queue.buffering.max.messages": 2_000_000}))  # fmt: skip
        self._stop.clear()
        topic, first, began_s = self.kafka.topic("predictions"), self.sent, time.perf_counter()
        ticked_s = 0.0
        while not self._stop.wait(BURST_S):
            due = int((time.perf_counter() - began_s) * rate) - (self.sent - first)
            body = _event("bench", "1", _ID, self.now_ms())
            before, behind = body.split(_ID.encode())
            keys = [b"event-%012d" % n for n in range(self.sent, self.sent + due)]
            for key, partition in zip(
                keys, partitions_of(keys, self.kafka.input_partitions).tolist(), strict=True
            ):
                _send(producer, topic, before + key + behind, key, partition)
            self.sent += due
            producer.poll(0)
            if time.perf_counter() - ticked_s > TICK_S:
                ticked_s = time.perf_counter()
                load.send_tick(producer, self.kafka, self.now_ms())
        self.rate = (self.sent - first) / (time.perf_counter() - began_s)
        producer.flush(60)

    def stop(self) -> None:
        """Let ``send`` end."""
        self._stop.set()


def _send(producer: Producer, topic: str, value: bytes, key: bytes, partition: int) -> None:
    """Waits while there is no room: more than the broker takes cannot be sent."""
    while True:
        try:
            producer.produce(topic, value, key, partition)
        except BufferError:
            producer.poll(0.05)
        else:
            return


def _delays(platform: Platform, traffic: Traffic, rate: float, probes: int) -> dict[str, list[float]]:
    kafka = platform.kafka
    producer = Producer(kafka.producer(**{"linger.ms": 0}))
    signals = _at_end(kafka)
    found: dict[str, list[float]] = {"aggregate": [], "verdict": []}
    thread = threading.Thread(target=traffic.send, args=(rate,), daemon=True)
    thread.start()
    with clickhouse_connect.get_client(**platform.clickhouse.client()) as client:
        before = counted(client, "probe") // ROWS
        for number in range(before, before + probes):
            version = f"v{number}"
            at_s = time.perf_counter()
            for row in range(ROWS):
                key = b"probe-%d-%d" % (number, row)
                body = _event("probe", version, key.decode(), traffic.now_ms())
                where = partition_of(key, kafka.input_partitions)
                producer.produce(kafka.topic("predictions"), body, key, where)
            producer.poll(0)
            seen: dict[str, float] = {}
            while len(seen) < 2:
                # Without a pause whoever looks takes the processor that the monitor would use.
                time.sleep(LOOK_S)
                passed_s = time.perf_counter() - at_s
                if "verdict" not in seen and _names(signals, version):
                    seen["verdict"] = time.perf_counter() - at_s
                if "aggregate" not in seen and counted(client, "probe") >= ROWS * (number + 1):
                    seen["aggregate"] = time.perf_counter() - at_s
                if passed_s > 60:
                    raise SystemExit(f"of a probe only {sorted(seen)} arrived within a minute")
            for what, delay_s in seen.items():
                found[what].append(delay_s)
    traffic.stop()
    thread.join()
    signals.close()
    return found


def _at_end(kafka: KafkaSettings) -> Consumer:
    """Reads what comes on ``signals`` from now on."""
    consumer = Consumer(kafka.consumer("bench-delays"))
    topic = kafka.topic("signals")
    partitions = [TopicPartition(topic, p) for p in consumer.list_topics(topic, 10).topics[topic].partitions]
    for one in partitions:
        one.offset = consumer.get_watermark_offsets(one, timeout=10)[1]
    consumer.assign(partitions)
    return consumer


def _names(signals: Consumer, version: str) -> bool:
    """Whether the verdict on this version is among what has come."""
    for message in signals.consume(1_000, 0.002):
        said = json.loads(message.value() or b"{}") if message.error() is None else {}
        if said.get("version") == version:
            if said["verdict"]["state"] != "stable":
                raise SystemExit(f"not what was to be measured: {said}")
            return True
    return False


def _event(model: str, version: str, identity: str, time_ms: int) -> bytes:
    features: dict[str, object] = {f"f{i}": 0.123456789 * i for i in range(9)}
    return msgspec.json.encode(
        {"prediction_id": identity, "model": model, "version": version, "event_time_ms": time_ms,
         "features": features | {"country": "de"}, "score": 0.5, "latency_ms": 3.25,
         "entity": "customer-12345678", "trace_id": "0123456789abcdef0123456789abcdef"}
    )  # fmt: skip
