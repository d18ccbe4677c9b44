"""What tests of the join stage share: one contract, and records as a task would see them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.blocks import ObservationBlock, decode_block
from schemas.contracts import DetectorConfig, Feature, ModelContract, ModelRecord, Monitoring
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, KIND_TICK, DeadLetter
from schemas.hashing import key_hashes
from schemas.labels import Label, LabelColumns
from schemas.settings import MonitorSettings
from schemas.spans import Spans
from streams.core.delivery import Out, StageContext
from streams.core.join import BYTES_MAX, Arrivals, JoinIndex, LabelRows
from streams.core.join_pieces import JoinPieces
from streams.core.join_state import Kind, WindowKey
from streams.core.outcomes import OutcomeRows
from streams.core.pipeline import JoinCore, create
from streams.core.records import Record

#: Of columns of Arrow batches that hold texts.
TEXT_TYPES = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view())
HOUR = 3_600_000
T0 = 1_700_000_000_000 // HOUR * HOUR
WINDOW = WindowKey("m", T0, HOUR)
CONTRACT = ModelContract(
    model="flights",
    features=(
        Feature(name="distance", low=0.0, high=5000.0),
        Feature(name="wind", nullable=True),
        Feature(name="origin", kind="categorical", categories=("EWR", "JFK", "LGA")),
    ),
    monitoring=Monitoring(
        segments=("origin",),
        label_horizon=24 * HOUR,
        detectors=(DetectorConfig(name="psi", kind="psi", stream="features"),),
    ),
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


def label_rows(labels: list[Label]) -> LabelRows:
    """Labels of one model as the index takes them."""
    columns = LabelColumns.of((labels[0].model,), labels, [(0, 0)] * len(labels))
    hashes = key_hashes(columns.keys)
    return LabelRows(columns, hashes.identity, hashes.check)


class OneByOne:
    """A join index that is given predictions and labels of model ``m`` one at a time; state goes to ``pieces``."""

    def __init__(self, early_max: int = 10, bytes_max: int = BYTES_MAX) -> None:
        self.index = JoinIndex(early_max, bytes_max)
        self.state = JoinPieces(self.index)
        self.pieces: dict[str, bytes] = {}

    def add(
        self,
        prediction_id: str,
        role: int = 0,
        window: WindowKey = WINDOW,
        version: str = "v1",
        score: float = 0.5,
    ) -> list[tuple[int, float | None, float]] | None:
        """(role, label before, label) of each outcome; None when the prediction is no new one."""
        hashes = key_hashes(Spans.of([prediction_id.encode()]))
        zero = np.zeros(1, np.int64)
        arrival = Arrivals(
            [Kind(window, version, role, ("a=b",))], [window.end_ms + HOUR], zero, hashes.identity, hashes.check, zero + window.start_ms,
            np.array([score]), np.zeros(1, np.int8), zero, zero + 1, zero,
        )  # fmt: skip
        new, outcomes = self.index.add(arrival)
        return [one for _, rows in outcomes for one in told(rows)] if new[0] else None

    def label(
        self, prediction_id: str, revision: int = 0, value: float = 1.0, at_ms: int = T0, oldest_ms: int = 0
    ) -> list[tuple[int, float | None, float]]:
        """(role, label before, label) of each outcome."""
        rows = label_rows([Label(prediction_id, "m", value, at_ms, revision)])
        return told(self.index.label(rows, oldest_ms, HOUR))

    def commit(self) -> dict[str, bytes | None]:
        """What changed, which is now in ``pieces`` too."""
        changed = self.state.changed()
        self.pieces = {name: data for name, data in (self.pieces | changed).items() if data is not None}
        return changed

    def restarted(self, floor_ms: int | None = None) -> OneByOne:
        """Another one, restored from ``pieces``."""
        fresh = OneByOne(self.index.early_max, self.index.bytes_max)
        fresh.pieces = dict(self.pieces)
        fresh.state.restore(self.pieces, {} if floor_ms is None else {"m": floor_ms}, {})
        return fresh

    def holds(self, prediction_id: str) -> bool:
        """Whether a row of this prediction is in the index."""
        key = self.index.key_of(Label(prediction_id, "m", 0.0, 0))
        at = self.index.rows.find(np.array([key.key], np.uint64), np.array([key.check], np.uint32))
        return bool(at[0] >= 0)

    def facts(self) -> list[tuple[int, ...]]:
        """Number, key, revision, label and its time of every living row."""
        rows = self.index.rows
        at = rows.living(0, self.index.next_number)
        return list(
            zip(
                *(
                    getattr(rows, name)[at].tolist()
                    for name in ("number", "key", "revision", "label", "label_time_ms")
                ),
                strict=True,
            )
        )


def told(outcomes: OutcomeRows) -> list[tuple[int, float | None, float]]:
    """(role, label before, label) of each outcome."""
    found: list[tuple[int, float | None, float]] = []
    before: float | None = None
    for at in range(len(outcomes)):
        if outcomes.sign[at] < 0:
            before = float(outcomes.label[at])
            continue
        assert (before is not None) == bool(outcomes.replaces[at])
        found.append((outcomes.kinds[int(outcomes.kind[at])].role, before, float(outcomes.label[at])))
        before = None
    return found
