"""One micro-batch of requests to its answers: check, route, score, fall back. No Kafka, no clock of its own.

Every request gets exactly one answer, whatever happens to it: a score, an error with its reason, or the fallback's
heuristic. What reached a model or the fallback also becomes a prediction on record. Shadows are told apart from the
answers here and scored elsewhere, when nobody waits any more (:mod:`deploy.scoring.shadow`).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploy.core.breaker import Breaker
from deploy.core.ratelimit import TokenBucket
from deploy.core.routing import Plan, Routes, caller_unit
from deploy.core.trips import Trips
from deploy.scoring.answers import FALLBACK, Row, Scored, ShadowJob, prediction
from deploy.scoring.engine import Engine
from deploy.scoring.wire import (
    CompiledContract,
    PredictionOut,
    Record,
    ScoreOut,
    dead_letter,
    decode_head,
    rescue,
)
from schemas.contracts import ModelContract
from schemas.errors import BadMessage, RegistryError
from schemas.events import HEADER_TRACE
from schemas.observability import Metrics

__all__ = ["FALLBACK", "Model", "ScoringCore"]

#: Model calls that may be spent on finding the rows of a failed batch that it fails on.
_CALLS_MAX = 64
_Result = tuple[float | None, str | None]


class Model:
    """What a scorer knows about one model."""

    def __init__(
        self, name: str, cache_rows: int = 0, limit: TokenBucket | None = None, region: str = ""
    ) -> None:
        self.routes = Routes(name, region)
        self.trips = Trips()
        self.breaker = Breaker()
        self.limit = limit
        self.compiled: CompiledContract | None = None
        self.failed: frozenset[str] = frozenset()
        self._cache_rows = cache_rows

    def contract(self, contract: ModelContract) -> None:
        """Use a newer revision of the contract."""
        if self.compiled is None or contract.revision >= self.compiled.contract.revision:
            self.compiled = CompiledContract(contract, self._cache_rows)

    @property
    def unhealthy(self) -> frozenset[str]:
        """Versions no request may go to now."""
        return self.trips.tripped | self.breaker.open | self.failed


class _Known:
    """A model as one batch sees it: between two rows nothing changes."""

    __slots__ = ("compiled", "limit", "plan", "splits")

    def __init__(self, model: Model, compiled: CompiledContract) -> None:
        self.compiled = compiled
        self.plan: Plan = model.routes.plan(model.unhealthy)
        self.splits = self.plan.splits
        self.limit = model.limit


class ScoringCore:
    """Turns batches into answers. ``now_ms`` is wall time for age limits; ``clock_ms`` a monotonic clock for latency.

    ``shadows_inline``: score shadows with the answers and not after them. ``limits``: requests a second and burst by
    model, ``*`` for every other one. ``region``: of this instance, whose weights it obeys.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        clock_ms: Callable[[], float],
        event_age_max_ms: int = 0,
        cache_rows: int = 0,
        limits: Mapping[str, tuple[float, int]] | None = None,
        region: str = "",
        shadows_inline: bool = False,
        on_break: Callable[[str, str, str], None] = lambda _model, _version, _why: None,
    ) -> None:
        self.models: dict[str, Model] = {}
        self._engine = engine
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._event_age_max_ms = event_age_max_ms
        self._cache_rows = cache_rows
        self._limits = limits or {}
        self._region = region
        self._shadows_inline = shadows_inline
        self._on_break = on_break

    def model(self, name: str) -> Model:
        """The model of this name, made on first mention."""
        if name not in self.models:
            limit = self._limits.get(name, self._limits.get("*"))
            bucket = None if limit is None else TokenBucket(*limit)
            self.models[name] = Model(name, self._cache_rows, bucket, self._region)
        return self.models[name]

    def forget_arrivals(self) -> None:
        """Requests are read again: what they took of their model's rate is given back, and more."""
        for model in self.models.values():
            if model.limit is not None:
                model.limit.refill()

    def score(self, batch: Sequence[Record], received_ms: Sequence[float], now_ms: int) -> Scored:
        """Everything there is to say about ``batch``, ready to be written.

        ``received_ms``: when each record came, on ``clock_ms``'s scale.
        """
        scored = Scored()
        known: dict[str, _Known] = {}
        rows = scored.rows
        for record, received in zip(batch, received_ms, strict=True):
            try:
                row = self._accept(record, received, now_ms, known, scored)
            except BadMessage as error:
                self._refuse(record, error, received, scored)
            else:
                if row is not None:
                    rows.append(row)
        self._answer(scored, rows, now_ms)
        return scored

    def reroute(self, scored: Scored, now_ms: int) -> None:
        """Score again what a version answered that must not be served any more; the rest stays as it is."""
        away = [row for row in scored.rows if row.route.version in self.models[row.head.model].unhealthy]
        if not away:
            return
        for row in away:
            head, model = row.head, self.models[row.head.model]
            plan = model.routes.plan(model.unhealthy)
            unit = caller_unit(head.model, head.entity or head.request_id) if plan.splits else 0.0
            row.route = plan.route(head.event_time_ms, unit)
            row.score, row.status, row.error = None, "ok", None
        shadowed, scored.shadowed = scored.shadowed, []
        self._answer(scored, away, now_ms)
        again = {row.head.request_id for row in away}
        scored.shadowed += [one for one in shadowed if one.prediction_id not in again]

    def shadow(self, job: ShadowJob) -> list[PredictionOut]:
        """What a shadow makes of requests that were answered; its latency is its own, without the wait for its turn.

        Safe beside :meth:`score` in another thread. A shadow that fails says so in the log and harms nobody.
        """
        started = self._clock_ms()
        results, _ = self._infer(job.model, job.version, job.rows)
        took_ms = self._clock_ms() - started
        return [
            prediction(row, job.version, "shadow", score, "ok" if error is None else "error", took_ms)
            for row, (score, error) in zip(job.rows, results, strict=True)
        ]

    def _accept(
        self, record: Record, received: float, now_ms: int, known: dict[str, _Known], scored: Scored
    ) -> Row | None:
        """The request as a row with its route; None when it was answered already. Raises BadMessage."""
        head = decode_head(record.value())
        name = head.model
        model = known.get(name)
        if model is None:
            model = known[name] = self._known(name)
        if self._event_age_max_ms and head.event_time_ms < now_ms - self._event_age_max_ms:
            raise BadMessage(
                "absurd-timestamp", f"event_time_ms {head.event_time_ms} is too old to be answered"
            )
        if model.limit is not None and (wait_ms := model.limit.take(record.timestamp()[1])):
            self._metrics.count("driftline_rate_limited_total", model=name)
            why = (
                f"rate-limited: model {name} takes {model.limit.rate_per_s:g} requests a second here; "
                f"ask again in {wait_ms} ms"
            )
            latency = round(self._clock_ms() - received, 3)
            time_ms = head.event_time_ms
            scored.refuse(
                ScoreOut(head.request_id, name, None, "stable", None, "error", latency, time_ms, 0, why), name
            )
            return None
        features = model.compiled.decode(head.features)
        if head.trace_id is None:
            head.trace_id = _trace(record, head.request_id)
        unit = caller_unit(name, head.entity or head.request_id) if model.splits else 0.0
        return Row(head, features, model.plan.route(head.event_time_ms, unit), received)

    def _known(self, name: str) -> _Known:
        model = self.models.get(name)
        if model is None or model.compiled is None:
            raise BadMessage("unknown-model", f"no contract of model {name!r} was published on `models`")
        return _Known(model, model.compiled)

    def _refuse(self, record: Record, error: BadMessage, received: float, scored: Scored) -> None:
        key = f"scoring-requests/{record.partition()}".encode()
        scored.letters.append((key, error.reason, dead_letter(record, error).model_dump_json().encode()))
        found = rescue(record.value())
        if found is None:
            return
        identity, model, event_time_ms = found
        latency = round(self._clock_ms() - received, 3)
        # A refused request may name any model at all: it must not make a new series of metrics.
        scored.refuse(
            ScoreOut(identity, model, None, "stable", None, "error", latency, event_time_ms, 0, str(error)),
            model if model in self.models else "",
        )

    def _answer(self, scored: Scored, rows: Sequence[Row], now_ms: int) -> None:
        """Give ``rows``, which are some or all of ``scored``'s, their scores, and say what shadows are owed for all."""
        answering: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in rows:
            if row.route.version is None:
                self._fall_back(row)
            else:
                answering[row.head.model, row.route.version].append(row)
        for (name, version), group in answering.items():
            results, why = self._infer(name, version, group)
            for row, (score, error) in zip(group, results, strict=True):
                row.score = score
                if error is not None:
                    row.error, row.status = error, "error"
            self._judge(name, version, why, now_ms)
        scored.done_ms = self._clock_ms()
        if self._shadows_inline:
            scored.shadowed = [one for job in _shadow_jobs(rows) for one in self.shadow(job)]
        else:
            scored.shadows = _shadow_jobs(scored.rows)

    def _judge(self, name: str, version: str, why: str | None, now_ms: int) -> None:
        """A batch of which no row got a score counts against its version's breaker."""
        breaker = self.models[name].breaker
        if why is None:
            breaker.succeeded(version)
            return
        self._metrics.count("driftline_errors_total", where="inference")
        if breaker.failed(version, now_ms):
            self._on_break(name, version, why)

    def _infer(self, name: str, version: str, rows: Sequence[Row]) -> tuple[list[_Result], str | None]:
        """Score and error of each row; and why no row at all has a score, if none has."""
        compiled, loaded = self.models[name].compiled, self._engine.get(name, version)
        assert compiled is not None
        started = self._clock_ms()
        budget = [_CALLS_MAX]

        def attempt(part: Sequence[Row]) -> list[_Result]:
            """A model may fail on one row: the rows around it still get their scores."""
            budget[0] -= 1
            try:
                if loaded is None:
                    raise RegistryError(f"version {version} is not loaded")
                scores = loaded.score([row.features for row in part], compiled).tolist()
                if len(scores) != len(part):
                    raise RegistryError(f"version {version} gave {len(scores)} scores for {len(part)} rows")
            except Exception as error:  # noqa: BLE001 - whatever a model does, its callers get an answer
                if len(part) == 1 or loaded is None or budget[0] <= 0:
                    return [(None, f"{type(error).__name__}: {error}")] * len(part)
                middle = len(part) // 2
                return attempt(part[:middle]) + attempt(part[middle:])
            return [
                (score, None) if math.isfinite(score) else (None, "the model's output is not finite")
                for score in scores
            ]

        results = attempt(rows)
        self._metrics.observe(
            "driftline_score_seconds", (self._clock_ms() - started) / 1_000, model=name, version=version
        )
        self._metrics.observe("driftline_batch_rows", len(rows), model=name)
        failed = all(error is not None for _, error in results)
        return results, results[0][1] if failed else None

    def _fall_back(self, row: Row) -> None:
        compiled = self.models[row.head.model].compiled
        assert compiled is not None
        row.score, row.status = compiled.contract.fallback_score, "fallback"


def _shadow_jobs(rows: Sequence[Row]) -> list[ShadowJob]:
    owed: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for version in row.route.shadows:
            owed[row.head.model, version].append(row)
    return [ShadowJob(name, version, group) for (name, version), group in owed.items()]


def _trace(record: Record, request_id: str) -> str:
    """The caller's trace id from the header, or one that a second delivery of the same request gets again."""
    headers: Any = record.headers()
    for name, value in headers or ():
        if name == HEADER_TRACE and value:
            return str(value.decode("ascii", "replace"))[:64]
    return hashlib.blake2b(request_id.encode(), digest_size=16).hexdigest()
