"""What tests of the join stage share: one contract, and records as a task would see them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from schemas.blocks import ObservationBlock, decode_block
from schemas.contracts import Feature, ModelContract, ModelRecord, Monitoring
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, KIND_TICK, DeadLetter
from schemas.settings import MonitorSettings
from streams.core.delivery import Out, StageContext
from streams.core.pipeline import JoinCore, create
from streams.core.records import Record

HOUR = 3_600_000
T0 = 1_700_000_000_000 // HOUR * HOUR
CONTRACT = ModelContract(
    model="flights",
    features=(
        Feature(name="distance", low=0.0, high=5000.0),
        Feature(name="wind", nullable=True),
        Feature(name="origin", kind="categorical", categories=("EWR", "JFK", "LGA")),
    ),
    monitoring=Monitoring(segments=("origin",), label_horizon=24 * HOUR),
)


def prediction(prediction_id: str = "p1", **changes: Any) -> dict[str, Any]:
    """One good prediction, with ``changes``."""
    event = {
        "prediction_id": prediction_id,
        "model": "flights",
        "version": "v1",
        "event_time_ms": T0,
        "features": {"distance": 500.0, "wind": None, "origin": "JFK"},
        "score": 0.75,
    }
    return event | changes


def truth(prediction_id: str = "p1", **changes: Any) -> dict[str, Any]:
    """One good ground truth, with ``changes``."""
    event = {"prediction_id": prediction_id, "model": "flights", "label": 1.0, "label_time_ms": T0 + HOUR}
    return event | changes


class Stream:
    """Records with consecutive offsets for one partition."""

    def __init__(self, partition: int = 0) -> None:
        self._partition = partition
        self._next = {"predictions": 0, "feedback": 0}

    def raw(
        self, value: bytes | None, topic: str = "predictions", key: bytes | None = None, **headers: bytes
    ) -> Record:
        """A record of exactly these bytes; header names are written with ``_`` for ``-``."""
        offset = self._next[topic]
        self._next[topic] += 1
        named = {name.replace("_", "-"): header for name, header in headers.items()}
        return Record(topic, self._partition, offset, key, value, named, 1234)

    def event(self, event: Mapping[str, Any]) -> Record:
        """A prediction or, when it has a label, a ground truth, under its own key."""
        topic = "feedback" if "label" in event else "predictions"
        return self.raw(json.dumps(event).encode(), topic, event["prediction_id"].encode())

    def arrow(self, value: bytes | None, topic: str = "predictions") -> Record:
        """A batch."""
        return self.raw(value, topic, None, **{HEADER_FORMAT: FORMAT_ARROW})

    def tick(self, event_time_ms: int, topic: str = "predictions") -> Record:
        """Time."""
        value = json.dumps({"event_time_ms": event_time_ms, "source": "ticker"}).encode()
        return self.raw(value, topic, None, **{HEADER_KIND: KIND_TICK})


def join_core(partition: int = 0, partitions: int = 1, contract: ModelContract = CONTRACT) -> JoinCore:
    """A fresh core that knows one contract."""
    core = create(StageContext("join", partition, partitions, MonitorSettings()))
    core.activate([ModelRecord(contract=contract)])
    return core


def blocks(outs: list[Out]) -> list[ObservationBlock]:
    """Observation blocks among outputs."""
    return [
        decode_block(o.value)
        for o in outs
        if o.topic == "observations" and HEADER_KIND not in o.headers and o.value
    ]


def dead(outs: list[Out]) -> list[DeadLetter]:
    """Dead letters among outputs."""
    return [DeadLetter.model_validate_json(o.value) for o in outs if o.topic == "dead-letters" and o.value]
