"""The cores alone, without Kafka, in one process: what an event costs against features, models, segments and windows.

CPU time of the join stage (decode, validate, join, windows, state, upserts) and of the detect stage with the default
detectors, after a warm-up; no fetch, no transaction. Events are JSON with as many features as the row says.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from schemas.contracts import (
    ColumnReference,
    Feature,
    ModelContract,
    ModelRecord,
    ModelVersion,
    Monitoring,
    Reference,
)
from schemas.events import HEADER_KIND, KIND_TICK
from schemas.settings import MonitorSettings
from schemas.spans import Spans
from streams.core import detect, pipeline
from streams.core.delivery import StageContext
from streams.core.join_rows import ROW_BYTES
from streams.core.records import RecordBatch
from tests.bench.figures import say, table
from tests.bench.monitor.worker import Size

START_MS = 1_767_225_600_000
ROUND_EVENTS = 20_000
ROUNDS, WARM_UP = 5, 2
ROUND_MS = 60_000


@dataclass(frozen=True, slots=True)
class Shape:
    """One row of the table."""

    features: int = 10
    models: int = 1
    segments: int = 5
    window_ms: int = 60_000


def shapes(quick: bool) -> list[Shape]:
    """Each axis by itself."""
    found = [Shape(features=k) for k in (10, 100, 1_000)]
    found += [Shape(models=m) for m in (100, 10_000)]
    found += [Shape(segments=s) for s in (1, 50, 200)]
    found += [Shape(window_ms=w) for w in (1_000, 10_000, 3_600_000)]
    return found[:1] + found[3:4] if quick else found


def run(size: Size) -> None:
    """One JSON line a shape, and the table."""
    rows = []
    for shape in shapes(size.quick):
        cost = measured(shape)
        name = f"features {shape.features}, models {shape.models}, segments {shape.segments}, window {shape.window_ms} ms"
        say("monitor.core.us_per_event", cost.join_us + cost.detect_us, "us", shape=name, **cost.more())
        rows.append((name, cost.join_us, cost.detect_us, cost.state_share, cost.model_kb))
    head = ("shape", "join us", "detect us", "state written / read", "KB a model")
    print(table("What an event costs", head, rows))
    say(
        "monitor.index.bytes_per_pending",
        ROW_BYTES,
        "bytes",
        "the bound beside loss inputs",
        ROW_BYTES / (64 + 46),
    )


@dataclass(frozen=True, slots=True)
class Cost:
    """Per event; ``state_share``: bytes of state written by bytes read; ``model_kb``: memory of a model's detectors and
    windows."""

    join_us: float
    detect_us: float
    state_share: float
    model_kb: float

    def more(self) -> dict[str, float]:
        """The parts, for the JSON line."""
        return {"join_us": round(self.join_us, 2), "detect_us": round(self.detect_us, 2),
                "state_share": round(self.state_share, 3), "model_kb": round(self.model_kb, 1)}  # fmt: skip


def measured(shape: Shape) -> Cost:
    """Rounds of events through both cores."""
    settings = MonitorSettings()
    records = [r for m in range(shape.models) for r in _model(f"m{m}", shape)]
    join = pipeline.create(StageContext("join", 0, 1, settings))
    detector = detect.create(StageContext("detect", 0, 1, settings))
    for core in (join, detector):
        core.activate(records)
    join_s = detect_s = 0.0
    read = written = 0
    offset = 0
    for number, batch in enumerate(_rounds(shape)):
        at_s = time.process_time()
        join.apply([batch], 0)
        outs = join.outputs()
        pieces = join.changed_pieces()
        join.committed(number)
        join.confirm(join.upserts())
        join_spent = time.process_time() - at_s
        observed = [o for o in outs if o.topic == "observations"]
        offsets = np.arange(offset, offset + len(observed))
        offset += len(observed)
        headers = {i: o.headers for i, o in enumerate(observed) if o.headers}
        given = RecordBatch(
            "observations",
            0,
            offsets,
            Spans.of([o.key for o in observed]),
            Spans.of([o.value for o in observed]),
            headers,
            np.zeros(len(observed), np.int64),
        )
        at_s = time.process_time()
        detector.apply([given], 0)
        detector.outputs()
        own = detector.changed_pieces()
        detect_spent = time.process_time() - at_s
        if number >= WARM_UP:
            join_s, detect_s = join_s + join_spent, detect_s + detect_spent
            read += sum(len(value or b"") for value in batch.values)
            written += sum(len(data or b"") for data in [*pieces.values(), *own.values()])
    events = ROUND_EVENTS * (ROUNDS - WARM_UP)
    return Cost(
        join_s / events * 1e6, detect_s / events * 1e6, written / read, _kept(detector) / shape.models / 1e3
    )


def _kept(detector: detect.DetectCore) -> float:
    """Bytes of the snapshots of all detectors: what a model's detectors hold."""
    for running in detector._running.values():
        running.touched, running.checksum = True, b""
    return float(sum(len(data or b"") for data in detector.changed_pieces().values()))


def _model(name: str, shape: Shape) -> list[ModelRecord]:
    numeric = [Feature(name=f"f{i}", low=-10, high=10) for i in range(shape.features - 1)]
    categories = tuple(f"c{i}" for i in range(shape.segments))
    features = (*numeric, Feature(name="group", kind="categorical", categories=categories))
    monitoring = Monitoring(
        window=shape.window_ms, allowed_lateness=shape.window_ms, label_horizon=3_600_000, segments=("group",),
        detectors="default",
    )  # fmt: skip
    contract = ModelContract(model=name, features=features, monitoring=monitoring)
    normal = tuple(np.quantile(np.random.default_rng(1).normal(size=20_000), np.linspace(0, 1, 101)).tolist())
    columns = {f"f{i}": ColumnReference(rows=20_000, quantiles=normal) for i in range(shape.features - 1)}
    share = 1 / shape.segments
    columns["group"] = ColumnReference(rows=20_000, shares=(*([share] * shape.segments), 0.0))
    score = ColumnReference(rows=20_000, quantiles=tuple(np.linspace(0, 1, 101).tolist()))
    version = ModelVersion(
        model=name,
        version="1",
        uri="bench/1",
        sha256="0" * 64,
        reference=Reference(columns=columns, score=score, rows=20_000),
    )
    return [ModelRecord(contract=contract), ModelRecord(version=version)]


def _rounds(shape: Shape) -> Iterator[RecordBatch]:
    rng = np.random.default_rng(7)
    width = shape.features - 1
    for number in range(ROUNDS):
        values, at = [], number * ROUND_EVENTS
        times = np.sort(rng.integers(0, ROUND_MS, ROUND_EVENTS)) + START_MS + number * ROUND_MS
        # Wide rows are drawn once: what a value is does not matter here, only that it is read.
        drawn = rng.normal(size=(2_000 if width > 50 else ROUND_EVENTS, width)).tolist()
        scores = rng.uniform(0.01, 0.99, ROUND_EVENTS)
        keys = [f"{at + i:08d}-bench-5a1e-4a1b-prediction-identifier" for i in range(ROUND_EVENTS)]
        for i in range(ROUND_EVENTS):
            features: dict[str, object] = {f"f{j}": v for j, v in enumerate(drawn[i % len(drawn)])}
            features["group"] = f"c{(at + i) % shape.segments}"
            values.append(
                msgspec.json.encode(
                    {
                        "prediction_id": keys[i],
                        "model": f"m{(at + i) % shape.models}",
                        "version": "1",
                        "event_time_ms": int(times[i]),
                        "features": features,
                        "score": float(scores[i]),
                        "latency_ms": 3.25,
                    }
                )
            )
        tick = msgspec.json.encode(
            {"event_time_ms": START_MS + (number + 1) * ROUND_MS - 1, "source": "bench"}
        )
        first = number * (ROUND_EVENTS + 1)
        yield RecordBatch(
            "predictions", 0, np.arange(first, first + ROUND_EVENTS + 1), Spans.of([*(k.encode() for k in keys), None]),
            Spans.of([*values, tick]), {ROUND_EVENTS: {HEADER_KIND: KIND_TICK}}, np.zeros(ROUND_EVENTS + 1, np.int64),
        )  # fmt: skip
