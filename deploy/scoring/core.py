"""One micro-batch of requests to its answers: decode, route, score, fall back. No Kafka, no clock of its own.

Every request gets exactly one answer, whatever happens to it: a score, an error with its reason, or the fallback's
heuristic. What reached a model or the fallback also becomes a prediction on record.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from deploy.core.breaker import Breaker
from deploy.core.routing import Route, Routes, caller_unit
from deploy.core.trips import Trips
from deploy.scoring.engine import Engine
from deploy.scoring.wire import (
    CompiledContract,
    Head,
    Incoming,
    Out,
    PredictionOut,
    ScoreOut,
    dead_letter,
    decode_head,
    encode,
    rescue,
)
from schemas.contracts import ModelContract
from schemas.errors import BadMessage
from schemas.events import HEADER_TRACE
from schemas.ids import partitions_of
from schemas.observability import Metrics

FALLBACK = "fallback"


class Model:
    """What a scorer knows about one model."""

    def __init__(self, name: str) -> None:
        self.routes = Routes(name)
        self.trips = Trips()
        self.breaker = Breaker()
        self.compiled: CompiledContract | None = None
        self.failed: frozenset[str] = frozenset()

    def contract(self, contract: ModelContract) -> None:
        """Use a newer revision of the contract."""
        if self.compiled is None or contract.revision >= self.compiled.contract.revision:
            self.compiled = CompiledContract(contract)

    @property
    def unhealthy(self) -> frozenset[str]:
        """Versions no request may go to now."""
        return self.trips.tripped | self.breaker.open | self.failed


class _Row(msgspec.Struct):
    """One valid request on its way."""

    head: Head
    features: Any
    route: Route
    received_ms: float
    score: float | None = None
    status: str = "ok"
    error: str | None = None


class ScoringCore:
    """Turns batches into answers. ``now_ms`` is wall time for age limits; ``clock_ms`` a monotonic clock for latency."""

    def __init__(
        self,
        engine: Engine,
        input_partitions: int,
        metrics: Metrics,
        *,
        clock_ms: Callable[[], float],
        event_age_max_ms: int = 0,
        on_break: Callable[[str, str, str], None] = lambda _model, _version, _why: None,
    ) -> None:
        self.models: dict[str, Model] = {}
        self._engine = engine
        self._partitions = input_partitions
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._event_age_max_ms = event_age_max_ms
        self._on_break = on_break

    def model(self, name: str) -> Model:
        """The model of this name, made on first mention."""
        if name not in self.models:
            self.models[name] = Model(name)
        return self.models[name]

    def answer(self, batch: Sequence[Incoming], received_ms: Sequence[float], now_ms: int) -> list[Out]:
        """All records to write for ``batch``, in order: one score a request, its prediction, dead letters.

        ``received_ms``: when each record came, on ``clock_ms``'s scale.
        """
        rows: list[_Row] = []
        letters: list[Out] = []
        scores: list[ScoreOut] = []
        for record, received in zip(batch, received_ms, strict=True):
            try:
                rows.append(self._accept(record, received, now_ms))
            except BadMessage as error:
                self._refuse(record, error, received, letters, scores)
        predictions = self._predict(rows)
        scores += [self._score_of(row) for row in rows]
        self._count(scores)
        return self._records(predictions, scores) + letters

    def _accept(self, record: Incoming, received: float, now_ms: int) -> _Row:
        head = decode_head(record.value)
        model = self.models.get(head.model)
        if model is None or model.compiled is None:
            raise BadMessage(
                "unknown-model", f"no contract of model {head.model!r} was published on `models`"
            )
        if self._event_age_max_ms and head.event_time_ms < now_ms - self._event_age_max_ms:
            raise BadMessage(
                "absurd-timestamp", f"event_time_ms {head.event_time_ms} is too old to be answered"
            )
        features = model.compiled.decode(head.features)
        if head.trace_id is None:
            head.trace_id = _trace(record, head.request_id)
        unit = caller_unit(head.model, head.entity or head.request_id)
        return _Row(head, features, model.routes.route(head.event_time_ms, unit, model.unhealthy), received)

    def _refuse(
        self, record: Incoming, error: BadMessage, received: float, letters: list[Out], scores: list[ScoreOut]
    ) -> None:
        self._metrics.count("driftline_dead_letters_total", reason=error.reason)
        key = f"scoring-requests/{record.partition}".encode()
        letters.append(Out("dead-letters", key, dead_letter(record, error).model_dump_json().encode(), 0))
        found = rescue(record.value)
        if found is None:
            return
        identity, model, event_time_ms = found
        latency = round(self._clock_ms() - received, 3)
        scores.append(
            ScoreOut(
                identity, model, None, "stable", None, "error", latency, event_time_ms, 0, error=str(error)
            )
        )

    def _predict(self, rows: list[_Row]) -> list[PredictionOut]:
        answering: dict[tuple[str, str], list[_Row]] = defaultdict(list)
        shadowing: dict[tuple[str, str], list[_Row]] = defaultdict(list)
        for row in rows:
            if row.route.version is None:
                self._fall_back(row)
            else:
                answering[row.head.model, row.route.version].append(row)
            for shadow in row.route.shadows:
                shadowing[row.head.model, shadow].append(row)
        for (name, version), group in answering.items():
            for row, (score, error) in zip(group, self._infer(name, version, group), strict=True):
                row.score, row.error = score, error
                row.status = "ok" if error is None else "error"
        done = self._clock_ms()
        predictions = [
            _prediction(row, row.route.version or FALLBACK, row.route.role, row.score, row.status, done)
            for row in rows
        ]
        for (name, version), group in shadowing.items():
            results = self._infer(name, version, group)
            done = self._clock_ms()
            predictions += [
                _prediction(row, version, "shadow", score, "ok" if error is None else "error", done)
                for row, (score, error) in zip(group, results, strict=True)
            ]
        return predictions

    def _infer(self, name: str, version: str, rows: list[_Row]) -> list[tuple[float | None, str | None]]:
        """Score and error of each row; a batch that fails as a whole counts against the version's breaker."""
        model = self.models[name]
        loaded = self._engine.get(name, version)
        assert model.compiled is not None
        started = self._clock_ms()
        try:
            if loaded is None:
                raise LookupError(f"version {version} is not loaded")
            scores = loaded.score(model.compiled.table([row.features for row in rows])).tolist()
            if len(scores) != len(rows):
                raise ValueError(f"version {version} gave {len(scores)} scores for {len(rows)} rows")
        except Exception as error:  # noqa: BLE001 - whatever a model does, its callers get an answer
            why = f"{type(error).__name__}: {error}"
            self._metrics.count("driftline_errors_total", where="inference")
            if model.breaker.failed(version):
                self._on_break(name, version, why)
            return [(None, why)] * len(rows)
        model.breaker.succeeded(version)
        seconds = (self._clock_ms() - started) / 1_000
        self._metrics.observe("driftline_score_seconds", seconds, model=name, version=version)
        self._metrics.observe("driftline_batch_rows", len(rows), model=name)
        return [(s, None) if math.isfinite(s) else (None, "the model's output is not finite") for s in scores]

    def _fall_back(self, row: _Row) -> None:
        compiled = self.models[row.head.model].compiled
        assert compiled is not None
        row.score, row.status = compiled.contract.fallback_score, "fallback"

    def _score_of(self, row: _Row) -> ScoreOut:
        latency = round(self._clock_ms() - row.received_ms, 3)
        return ScoreOut(
            row.head.request_id,
            row.head.model,
            row.route.version or FALLBACK,
            row.route.role,
            row.score,
            row.status,
            latency,
            row.head.event_time_ms,
            row.route.revision,
            row.error,
            row.head.trace_id,
        )

    def _records(self, predictions: list[PredictionOut], scores: list[ScoreOut]) -> list[Out]:
        predicted = [p.prediction_id.encode() for p in predictions]
        scored = [s.request_id.encode() for s in scores]
        partitions = partitions_of(predicted + scored, self._partitions).tolist()
        keys = predicted + scored
        values: list[Any] = [*predictions, *scores]
        topics = ["predictions"] * len(predictions) + ["scores"] * len(scores)
        return [
            Out(topic, key, encode(value), partition)
            for topic, key, value, partition in zip(topics, keys, values, partitions, strict=True)
        ]

    def _count(self, scores: list[ScoreOut]) -> None:
        counts: dict[tuple[str, str, str], int] = defaultdict(int)
        for score in scores:
            # A refused request may name any model at all: it must not make a new series of metrics.
            known = score.model if score.model in self.models else ""
            counts[known, score.version or "", score.status] += 1
        for (model, version, status), rows in counts.items():
            self._metrics.count("driftline_requests_total", rows, model=model, version=version, status=status)


def _prediction(
    row: _Row, version: str, role: str, score: float | None, status: str, done_ms: float
) -> PredictionOut:
    head = row.head
    return PredictionOut(
        head.request_id,
        head.model,
        version,
        role,
        head.event_time_ms,
        row.features,
        score,
        round(max(0.0, done_ms - row.received_ms), 3),
        status,
        head.entity,
        head.trace_id,
    )


def _trace(record: Incoming, request_id: str) -> str:
    """The caller's trace id from the header, or one that a second delivery of the same request gets again."""
    for name, value in record.headers:
        if name == HEADER_TRACE and value:
            return value.decode("ascii", "replace")[:64]
    return hashlib.blake2b(request_id.encode(), digest_size=16).hexdigest()
