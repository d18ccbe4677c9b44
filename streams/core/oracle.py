"""The offline oracle: what the join stage must come to, worked out from a plain list of events by the simplest code.

It shares nothing with the pipeline but ``schemas``: rows are dictionaries, a window is a list comprehension, nothing is
incremental, nothing is fast. Tests hold the pipeline to it after any order, cut, repetition and restart.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from schemas.contracts import Feature, ModelContract, Reference
from schemas.rows import (
    CALIBRATION_BINS,
    DELAY_GAMMA,
    LATENCY_GAMMA,
    MICRO,
    NANO,
    OUTCOME_BINS,
    PROBABILITY_MIN,
    SCORE_BINS,
)

Event = Mapping[str, Any]
Key = tuple[Any, ...]
BEGINNING_MS = -(2**62)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that arrives: a ``prediction``, a ``label`` or a ``tick`` (``topic`` says of which input)."""

    kind: str
    event: Event
    topic: str = "predictions"
    payload_bytes: int = 0


@dataclass(slots=True)
class Prediction:
    """One counted prediction and what became known of it. ``labels``: those that counted, the last one stands."""

    event: Event
    start_ms: int
    late: bool
    payload_bytes: int
    labels: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class Expected:
    """``tables``: table to key to row, as ``schemas.rows`` has them, without the version. ``outcomes``: (prediction id,
    version, role, label) of everything that is joined at the end."""

    tables: dict[str, dict[Key, Key]]
    predictions: list[Prediction]
    outcomes: list[tuple[str, str, str, float]]
    duplicates: int = 0
    too_late: int = 0


def expected(
    contract: ModelContract,
    steps: Iterable[Step],
    partition: int = 0,
    references: Mapping[str, Reference] | None = None,
) -> Expected:
    """What is to be known after ``steps``, in the order in which one partition's task sees them.

    ``references``: those of the versions that have one; the borders of their histograms are its quantiles.
    """
    monitoring = contract.monitoring
    counted: list[Prediction] = []
    of_id: dict[str, list[Prediction]] = {}
    waiting: dict[str, list[Event]] = {}
    clock = {"predictions": BEGINNING_MS, "feedback": BEGINNING_MS}
    duplicates = too_late = 0

    def settled(start_ms: int) -> bool:
        end_ms = start_ms + monitoring.pane_ms
        return (
            clock["predictions"] >= end_ms + monitoring.allowed_lateness
            and clock["feedback"] >= end_ms + monitoring.label_horizon
        )

    def in_horizon(label: Event, p: Prediction) -> bool:
        last_ms = max(monitoring.label_horizon, monitoring.late_label_horizon)
        return bool(label["label_time_ms"] <= p.start_ms + monitoring.pane_ms + last_ms)

    corrects_settled = monitoring.late_label_horizon > monitoring.label_horizon

    for step in steps:
        event = step.event
        if step.kind == "tick":
            clock[step.topic] = max(clock[step.topic], event["event_time_ms"])
            # A prediction still to come is not younger than its label: its window begins by then.
            alive = {i: [w for w in held if not settled(w["label_time_ms"])] for i, held in waiting.items()}
            waiting = {i: held for i, held in alive.items() if held}
        elif step.kind == "prediction":
            start_ms = event["event_time_ms"] // monitoring.pane_ms * monitoring.pane_ms
            same = [p for p in of_id.get(event["prediction_id"], []) if not settled(p.start_ms)]
            if settled(start_ms):
                too_late += 1
            elif any(_identity(p.event) == _identity(event) for p in same):
                duplicates += 1
            else:
                closes_ms = start_ms + monitoring.pane_ms + monitoring.allowed_lateness
                late = clock["predictions"] >= closes_ms
                one = Prediction(event, start_ms, late, step.payload_bytes)
                if same:
                    one.labels = [w for w in same[0].labels if in_horizon(w, one)]
                elif event["prediction_id"] in waiting:
                    one.labels = [w for w in waiting.pop(event["prediction_id"]) if in_horizon(w, one)]
                counted.append(one)
                of_id.setdefault(event["prediction_id"], []).append(one)
        else:
            known = of_id.get(event["prediction_id"], [])
            same = known if corrects_settled else [p for p in known if not settled(p.start_ms)]
            held = waiting.get(event["prediction_id"], [])
            for p in same:
                if in_horizon(event, p) and (not p.labels or event["revision"] > p.labels[-1]["revision"]):
                    p.labels = [*p.labels, event]
            in_time = not settled(event["label_time_ms"])
            if not same and in_time and (not held or held[-1]["revision"] < event["revision"]):
                waiting[event["prediction_id"]] = [*held, event]

    tables = _tables(contract, counted, clock["predictions"], settled, partition, references or {})
    outcomes = [
        (p.event["prediction_id"], p.event["version"], p.event["role"], p.labels[-1]["label"])
        for p in counted
        if p.labels and p.event.get("score") is not None
    ]
    return Expected(tables, counted, outcomes, duplicates, too_late)


def _tables(
    contract: ModelContract,
    counted: list[Prediction],
    watermark_ms: int,
    settled: Callable[[int], bool],
    partition: int,
    references: Mapping[str, Reference],
) -> dict[str, dict[Key, Key]]:
    monitoring = contract.monitoring
    tables: dict[str, dict[Key, Key]] = {"window_counts": {}, "window_features": {}, "window_outcomes": {}}
    for (start_ms, version, role, segment), rows in _cells(contract, counted).items():
        end_ms = start_ms + monitoring.pane_ms
        start = datetime.fromtimestamp(start_ms / 1000, UTC)
        key = (start, monitoring.pane_ms, contract.model, version, role, segment, partition)
        closed = watermark_ms >= end_ms + monitoring.allowed_lateness
        tables["window_counts"][key] = _counts(contract, rows, closed)
        tables["window_outcomes"][key] = _outcomes(contract, rows, closed, settled(start_ms))
        if not segment:
            for feature in contract.features:
                edges = _edges(contract, feature, references.get(version))
                tables["window_features"][(*key, feature.name)] = _feature(
                    feature, rows, edges, monitoring.window
                )
    return tables


def _identity(event: Event) -> tuple[str, str, str]:
    return event["prediction_id"], event["version"], event["role"]


def _cells(
    contract: ModelContract, predictions: Iterable[Prediction]
) -> dict[tuple[int, str, str, str], list[Prediction]]:
    cells: dict[tuple[int, str, str, str], list[Prediction]] = {}
    for p in predictions:
        segments = [""]
        for name in contract.monitoring.segments:
            feature = next(f for f in contract.features if f.name == name)
            value = p.event["features"].get(name)
            if value is None:
                shown = "(null)"
            elif value in feature.categories[: contract.monitoring.segments_max]:
                shown = str(value)
            else:
                shown = "(other)"
            segments.append(f"{name}={shown}")
        for segment in segments:
            cells.setdefault((p.start_ms, p.event["version"], p.event["role"], segment), []).append(p)
    return cells


def _bin(value: float, bins: int) -> int:
    return min(int(min(max(value, 0.0), 1.0) * bins), bins - 1)


def _bins(values: Iterable[float], bins: int) -> list[int]:
    found = Counter(_bin(v, bins) for v in values)
    return [found[b] for b in range(bins)]


def _counts(contract: ModelContract, rows: list[Prediction], closed: bool) -> Key:
    events = [p.event for p in rows]
    scores = [e["score"] for e in events if e.get("score") is not None]
    latencies = [round(e["latency_ms"] * 1000) for e in events]
    buckets = Counter(math.ceil(math.log(max(us, 1)) / math.log(LATENCY_GAMMA)) for us in latencies)
    return (
        len(events),
        sum(e["status"] == "error" for e in events),
        sum(e["status"] == "fallback" for e in events),
        sum(p.late for p in rows),
        sum(s >= contract.threshold for s in scores),
        sum(p.payload_bytes for p in rows),
        sum(latencies),
        dict(sorted(buckets.items())),
        _bins(scores, SCORE_BINS),
        contract.monitoring.window,
        int(closed),
    )


def _edges(contract: ModelContract, feature: Feature, reference: Reference | None) -> list[float]:
    """Borders of a numeric feature's histogram: every n-th of the reference's quantiles, or the range in equal parts."""
    bins, low, high = contract.monitoring.histogram_bins, feature.low, feature.high
    column = reference.columns.get(feature.name) if reference is not None else None
    if column is not None and len(column.quantiles) > 1:
        found = []
        for at in range(1, bins):
            below, part = divmod(at * (len(column.quantiles) - 1) / bins, 1.0)
            left, right = column.quantiles[int(below)], column.quantiles[int(below) + (part > 0)]
            found.append(left + (right - left) * part)
        return sorted(set(found))
    if low is not None and high is not None:
        return [low + (high - low) / bins * at for at in range(1, bins)]
    return []


def _feature(feature: Feature, rows: list[Prediction], edges: list[float], span_ms: int) -> Key:
    values = [p.event["features"].get(feature.name) for p in rows]
    known = [v for v in values if v is not None]
    missing = len(values) - len(known)
    if feature.kind == "categorical":
        names = Counter(v if v in feature.categories else "(other)" for v in known)
        return (
            (len(values), missing, names["(other)"], 0, math.inf, -math.inf, [], [0])
            + (dict(sorted((n, c) for n, c in names.items() if c)), span_ms)
        )  # fmt: skip
    low, high = feature.low, feature.high
    invalid = sum((low is not None and v < low) or (high is not None and v > high) for v in known)
    places = Counter(bisect_right(edges, v) for v in known)
    histogram = [places[at] for at in range(len(edges) + 1)]
    total = sum(round(v * MICRO) for v in known)
    least, most = min(known, default=math.inf), max(known, default=-math.inf)
    return (len(values), missing, invalid, total, least, most, edges, histogram, {}, span_ms)


def _outcomes(contract: ModelContract, rows: list[Prediction], closed: bool, settled: bool) -> Key:
    joined = [
        (
            min(max(p.event["score"], 0.0), 1.0),
            p.event["score"] >= contract.threshold,
            p.labels[-1]["label"] == 1.0,
        )
        for p in rows
        if p.labels and p.event.get("score") is not None
    ]
    kinds = Counter((said, true) for _, said, true in joined)
    revisions = sum(len(p.labels) - 1 for p in rows if p.labels and p.event.get("score") is not None)
    losses = []
    for score, _, true in joined:
        p = min(max(score, PROBABILITY_MIN), 1 - PROBABILITY_MIN)
        losses.append(round(-(math.log(p) if true else math.log1p(-p)) * NANO))
    coarse = [(_bin(score, CALIBRATION_BINS), score, true) for score, _, true in joined]
    return (
        len(rows),
        len(joined),
        revisions,
        kinds[(True, True)],
        kinds[(True, False)],
        kinds[(False, False)],
        kinds[(False, True)],
        sum(losses),
        sum(round((score - true) ** 2 * NANO) for score, _, true in joined),
        _bins([score for score, _, true in joined if true], OUTCOME_BINS),
        _bins([score for score, _, true in joined if not true], OUTCOME_BINS),
        [sum(b == at for b, _, _ in coarse) for at in range(CALIBRATION_BINS)],
        [sum(round(s * NANO) for b, s, _ in coarse if b == at) for at in range(CALIBRATION_BINS)],
        [sum(true for b, _, true in coarse if b == at) for at in range(CALIBRATION_BINS)],
        *_maturity(contract, rows, losses, closed, settled),
    )


def _maturity(
    contract: ModelContract, rows: list[Prediction], losses: list[int], closed: bool, settled: bool
) -> Key:
    """What the positives lost, when labels came by the class they said first, and when no more could come."""
    monitoring = contract.monitoring
    joined = [p for p in rows if p.labels and p.event.get("score") is not None]
    true = [p.labels[-1]["label"] == 1.0 for p in joined]
    misses = [1 - min(max(p.event["score"], 0.0), 1.0) for p in joined]
    delays: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for p in joined:
        delay_ms = max(p.labels[0]["label_time_ms"] - p.start_ms, 1)
        delays[p.labels[0]["label"] == 1.0][math.ceil(math.log(delay_ms) / math.log(DELAY_GAMMA))] += 1
    times = [label["label_time_ms"] for p in joined for label in p.labels]
    end_ms = rows[0].start_ms + monitoring.pane_ms
    closes_ms = end_ms + monitoring.allowed_lateness
    settles_ms = max(closes_ms, end_ms + monitoring.label_horizon)
    complete = closed and len(joined) == len(rows)
    settled_ms = settles_ms if settled else 0
    return (
        sum(loss for loss, positive in zip(losses, true, strict=True) if positive),
        sum(round(miss**2 * NANO) for miss, positive in zip(misses, true, strict=True) if positive),
        dict(sorted(delays[True].items())),
        dict(sorted(delays[False].items())),
        min(times, default=0),
        max(times, default=0),
        max(closes_ms, *times) if complete else settled_ms,
        settled_ms,
        monitoring.window,
        int(settled or complete),
    )
