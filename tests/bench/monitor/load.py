"""The load: JSON predictions of about 570 bytes with 10 features, a label for every fifth, ticks as time goes by.

As Arrow: the same rows, in batches of 2,000 for each partition, and their labels in one batch a tick and partition.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from schemas.arrow import encode_arrow_labels, encode_arrow_predictions
from schemas.bins import Binning
from schemas.contracts import (
    ColumnReference,
    ModelContract,
    ModelRecord,
    ModelVersion,
    Reference,
    load_contract,
)
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, KIND_TICK, Tick
from schemas.ids import partitions_of
from schemas.settings import KafkaSettings

START_MS = 1_767_225_600_000
SPAN_MS = 600_000
TICKS = 20
LABEL_EVERY = 5
BATCH_ROWS = 2_000
COUNTRIES = ("de", "fr", "it", "es", "pl")


@dataclass(frozen=True, slots=True)
class Load:
    """What was written: ``events`` predictions of ``event_bytes`` on average, ``labels`` labels, up to ``end_ms``."""

    events: int
    labels: int
    event_bytes: float
    end_ms: int
    first: int = 0


def contract() -> ModelContract:
    """The committed configuration of the benchmark."""
    return load_contract(Path(__file__).with_name("bench.yaml"))


def records() -> list[ModelRecord]:
    """Contract and one version whose reference is what the load is drawn from."""
    declared = contract()
    rng = np.random.default_rng(1)
    normal = np.quantile(rng.normal(size=20_000), np.linspace(0, 1, 101))
    columns = {f"f{i}": ColumnReference(rows=20_000, quantiles=tuple(normal.tolist())) for i in range(9)}
    columns["country"] = ColumnReference(rows=20_000, shares=(0.2, 0.2, 0.2, 0.2, 0.2, 0.0))
    score = ColumnReference(rows=20_000, quantiles=tuple(np.linspace(0, 1, 101).tolist()))
    bins = {}
    for name, column in (columns | {"score": score}).items():
        shares = Binning(column).shares
        bins[name] = tuple((*rng.multinomial(2_000, shares / shares.sum()).tolist(), 0) for _ in range(30))
    version = ModelVersion(
        model=declared.model,
        version="1",
        uri="bench/1",
        sha256="0" * 64,
        reference=Reference(columns=columns, score=score, bins=bins, block_ms=60_000),
    )
    return [ModelRecord(contract=declared), ModelRecord(version=version)]


def write(
    kafka: KafkaSettings, events: int, *, after: Load | None = None, seed: int = 7, arrow: bool = False
) -> Load:
    """Write the load to ``predictions`` and ``feedback``; everything is on the broker when this returns.

    ``after``: a load before it, which it follows in numbers and in time.
    """
    first, start_ms = (0, START_MS) if after is None else (after.first + after.events, after.end_ms)
    rng = np.random.default_rng(seed)
    # Arrow batches are compressed already.
    producer = Producer(kafka.producer(**{"linger.ms": 50, "queue.buffering.max.messages": 2_000_000, "acks": "1",
                                          "enable.idempotence": False,
                                          "compression.type": "none" if arrow else "lz4"}))  # fmt: skip
    per_tick = events // TICKS
    total = written = labels = 0
    for tick in range(TICKS):
        count = per_tick if tick < TICKS - 1 else events - written
        ids = [f"{first + written + i:08d}-bench-5a1e-4a1b-prediction-identifier" for i in range(count)]
        where = partitions_of([i.encode() for i in ids], kafka.input_partitions).tolist()
        times = (
            np.sort(rng.integers(tick * SPAN_MS // TICKS, (tick + 1) * SPAN_MS // TICKS, count)) + start_ms
        )
        values = rng.normal(size=(count, 9)).tolist()
        scores = rng.uniform(0.01, 0.99, count)
        outcomes = rng.random(count) < scores
        if arrow:
            total += _write_batches(producer, kafka, ids, times, values, scores, written)
            labels += _write_label_batches(producer, kafka, ids, times, outcomes)
        for at, identity in enumerate(ids) if not arrow else ():
            features: dict[str, object] = {f"f{i}": value for i, value in enumerate(values[at])}
            features["country"] = COUNTRIES[(written + at) % 5]
            event = {
                "prediction_id": identity,
                "model": "bench",
                "version": "1",
                "event_time_ms": int(times[at]),
                "features": features,
                "score": float(scores[at]),
                "latency_ms": 3.25,
                "entity": "customer-" + identity[:8],
                "trace_id": "0123456789abcdef0123456789abcdef",
                "role": "stable",
                "status": "ok",
            }
            body = msgspec.json.encode(event)
            total += len(body)
            _send(producer, kafka.topic("predictions"), body, identity.encode(), where[at])
            if at % LABEL_EVERY == 0:
                label = {
                    "prediction_id": identity,
                    "model": "bench",
                    "label": float(outcomes[at]),
                    "label_time_ms": int(times[at]) + 1_000,
                }
                body = msgspec.json.encode(label)
                _send(producer, kafka.topic("feedback"), body, identity.encode(), where[at])
                labels += 1
        written += count
        send_tick(producer, kafka, start_ms + (tick + 1) * SPAN_MS // TICKS - 1)
    producer.flush(120)
    return Load(events, labels, total / events, start_ms + SPAN_MS, first)


def _write_batches(
    producer: Producer,
    kafka: KafkaSettings,
    ids: list[str],
    times: NDArray[np.int64],
    values: list[list[float]],
    scores: NDArray[np.float64],
    written: int,
) -> int:
    """As an SDK would: one batch for each partition, every so many rows. Bytes sent."""
    total = 0
    for start in range(0, len(ids), BATCH_ROWS * kafka.input_partitions):
        rows = slice(start, start + BATCH_ROWS * kafka.input_partitions)
        n = len(ids[rows])
        columns: dict[str, Any] = {
            "prediction_id": ids[rows],
            "version": ["1"] * n,
            "event_time_ms": times[rows],
            "score": scores[rows],
            "latency_ms": np.full(n, 3.25),
            "country": [COUNTRIES[(written + start + at) % 5] for at in range(n)],
        }
        for at, column in enumerate(np.array(values[rows]).T):
            columns[f"f{at}"] = column
        for partition, body in encode_arrow_predictions("bench", columns, kafka.input_partitions).items():
            total += len(body)
            _send_batch(producer, kafka.topic("predictions"), body, partition)
    return total


def _send(producer: Producer, topic: str, value: bytes, key: bytes | None, partition: int) -> None:
    while True:
        try:
            producer.produce(topic, value, key, partition)
        except BufferError:
            producer.poll(0.1)
        else:
            return


def _write_label_batches(
    producer: Producer, kafka: KafkaSettings, ids: list[str], times: NDArray[np.int64], outcomes: NDArray[np.bool_]
) -> int:  # fmt: skip
    """The labels of some predictions, one batch for each partition. How many."""
    told = ids[::LABEL_EVERY]
    columns: dict[str, Any] = {
        "prediction_id": told,
        "model": ["bench"] * len(told),
        "label": outcomes[::LABEL_EVERY].astype(np.float64),
        "label_time_ms": times[::LABEL_EVERY] + 1_000,
    }
    for partition, body in encode_arrow_labels(columns, kafka.input_partitions).items():
        _send_batch(producer, kafka.topic("feedback"), body, partition)
    return len(told)


def _send_batch(producer: Producer, topic: str, body: bytes, partition: int) -> None:
    producer.produce(topic, body, partition=partition, headers=[(HEADER_FORMAT, FORMAT_ARROW)])
    producer.poll(0)


def send_tick(producer: Producer, kafka: KafkaSettings, time_ms: int) -> None:
    value = Tick(event_time_ms=time_ms, source="bench").model_dump_json().encode()
    for topic in ("predictions", "feedback"):
        for partition in range(kafka.input_partitions):
            producer.produce(
                kafka.topic(topic), value, partition=partition, headers=[(HEADER_KIND, KIND_TICK)]
            )
