"""What arrives: one model's predictions and labels over a day, in the ways they go wrong, and what must come of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from schemas.contracts import Feature, ModelContract, ModelRecord, Monitoring
from schemas.events import HEADER_KIND, HEADER_ORIGIN, KIND_TICK
from schemas.ids import ROLES, partition_of
from streams.core import oracle
from streams.core.cold import ANSWERS
from streams.core.delivery import TopicPartition
from streams.core.oracle import Step
from streams.core.records import Record

MINUTE = 60_000
T0 = 1_700_000_000_000 // 3_600_000 * 3_600_000
PARTITIONS = 2
INPUTS = ("predictions", "feedback")
CONTRACT = ModelContract(
    model="m",
    features=(
        Feature(name="x", nullable=True, low=-2.0, high=2.0),
        Feature(name="where", kind="categorical", nullable=True, categories=("EWR", "JFK", "LGA")),
    ),
    monitoring=Monitoring(
        window=60 * MINUTE,
        allowed_lateness=10 * MINUTE,
        label_horizon=180 * MINUTE,
        event_ahead_max=20 * 86_400_000,
        segments=("where",),
        segments_max=2,
        histogram_bins=5,
    ),
)
MODEL = [ModelRecord(contract=CONTRACT)]
#: After this every window is settled.
END_MS = T0 + 10 * 86_400_000


@dataclass(frozen=True, slots=True)
class Message:
    """One record that somebody outside sends."""

    tp: TopicPartition
    key: bytes | None
    value: bytes
    tick: bool = False

    @property
    def headers(self) -> dict[str, bytes]:
        return {HEADER_KIND: KIND_TICK} if self.tick else {}


def tick(tp: TopicPartition, event_time_ms: int) -> Message:
    """Time for one partition."""
    value = json.dumps({"event_time_ms": event_time_ms, "source": "ticker"}).encode()
    return Message(tp, None, value, tick=True)


def ticks(event_time_ms: int) -> list[Message]:
    """Time for every input partition."""
    return [tick((topic, p), event_time_ms) for topic in INPUTS for p in range(PARTITIONS)]


def _sent(topic: str, event: dict[str, Any], rng: Random) -> Message:
    partition = partition_of(event["prediction_id"].encode(), PARTITIONS)
    if rng.random() < 0.08:  # another client's partitioner
        partition = 1 - partition
    return Message((topic, partition), event["prediction_id"].encode(), json.dumps(event).encode())


def _prediction(number: int, at_ms: int, rng: Random) -> dict[str, Any]:
    # Quarters have exact products with 1e6 and 1000, so that rounding is the same by any method.
    return {
        "prediction_id": f"p{number}",
        "model": "m",
        "version": rng.choice(("v1", "v2")),
        "role": rng.choice(ROLES),
        "event_time_ms": at_ms,
        "features": {
            "x": rng.choice((None, rng.randint(-12, 12) / 4)),
            "where": rng.choice((None, "EWR", "JFK", "LGA", "BOS")),
        },
        "score": rng.choice((None, *[rng.randint(0, 64) / 64] * 5)),
        "latency_ms": rng.randint(0, 4000) / 4,
        "status": rng.choice(("ok", "ok", "error", "fallback")),
    }


def messages(rng: Random) -> list[Message]:
    """Everything that is sent, in the order of its sending.

    Predictions come in time, late or when their window is settled, once or twice, in one role or three; labels come
    before them, after them, weeks after them, twice, revised, or never; some messages cannot be read.
    """
    sent: list[tuple[int, int, Message]] = []

    def send(at_ms: int, message: Message) -> None:
        sent.append((at_ms, len(sent), message))

    span_ms = rng.choice((90, 200, 500)) * MINUTE
    for number in range(rng.randint(3, 12)):
        at_ms = T0 + rng.randrange(span_ms)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            event = _prediction(number, at_ms, rng)
            arrives_ms = at_ms + rng.choice((0, 0, 0, 30, 75, 400)) * MINUTE
            message = _sent("predictions", event, rng)
            send(arrives_ms, message)
            if rng.random() < 0.25:
                send(arrives_ms + rng.choice((0, 20, 90)) * MINUTE, message)
        for revision in range(rng.choice((0, 1, 1, 1, 2, 3))):
            label = {
                "prediction_id": f"p{number}",
                "model": "m",
                "label": float(rng.random() < 0.5),
                "label_time_ms": at_ms + rng.choice((0, 20, 120, 240)) * MINUTE,
                "revision": revision,
            }
            arrives_ms = at_ms + rng.choice((-60, 0, 20, 130, 250, 600)) * MINUTE
            message = _sent("feedback", label, rng)
            send(arrives_ms, message)
            if rng.random() < 0.25:
                send(arrives_ms + rng.choice((0, 20, 200)) * MINUTE, message)
    if rng.random() < 0.2:
        send(T0 + rng.randrange(span_ms), Message(("predictions", 0), b"bad", b"{not json"))
    step_ms = (span_ms + 300 * MINUTE) // rng.choice((2, 4, 8))
    for at_ms in range(T0, T0 + span_ms + 300 * MINUTE, step_ms):
        for message in ticks(at_ms):
            send(at_ms + rng.choice((0, 0, 15)) * MINUTE, message)
    return [message for _, _, message in sorted(sent, key=lambda one: one[:2])]


# -- the offline answer ------------------------------------------------------------------------------------------------


def steps(partition: int, records: Iterable[Record]) -> list[Step]:
    """What one partition's task has seen, as the oracle takes it: without what is sent on and what cannot be read."""
    found = []
    for record in records:
        assert record.value is not None
        if record.headers.get(HEADER_KIND) == KIND_TICK:
            found.append(Step("tick", json.loads(record.value), record.topic))
            continue
        assert record.key is not None
        if record.key == b"bad":
            continue
        if partition_of(record.key, PARTITIONS) != partition and HEADER_ORIGIN not in record.headers:
            continue
        if record.topic == ANSWERS:
            continue
        kind = "prediction" if record.topic == "predictions" else "label"
        found.append(Step(kind, json.loads(record.value), record.topic, len(record.value)))
    return found


def expected(
    partition: int, records: Iterable[Record], contract: ModelContract = CONTRACT
) -> oracle.Expected:
    """What is to be known of one partition after ``records``."""
    return oracle.expected(contract, steps(partition, records), partition)


def observed(
    wanted: oracle.Expected,
) -> tuple[Counter[tuple[str, str, str]], Counter[tuple[str, str, str, float]]]:
    """Predictions and outcomes that detectors are to be told, as (id, version, role) and with the label."""
    told = Counter(
        (str(p.event["prediction_id"]), str(p.event["version"]), str(p.event["role"]))
        for p in wanted.predictions
    )
    return told, Counter(wanted.outcomes)
