"""What one micro-batch came to, and how it is written: answers, prediction log, dead letters, and what shadows are owed.

Scoring and writing are two threads' work; this is what one hands to the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from deploy.core.routing import Route
from deploy.scoring.wire import Features, Head, PredictionOut, ScoreOut, encode
from schemas.ids import Role, partitions_of
from schemas.observability import Metrics

FALLBACK = "fallback"
#: Records by logical topic, as ``confluent_kafka.Producer.produce_batch`` takes them.
Records = dict[str, list[dict[str, Any]]]


class Row(msgspec.Struct, gc=False):
    """One valid request on its way."""

    head: Head
    features: Features
    route: Route
    received_ms: float
    score: float | None = None
    status: str = "ok"
    error: str | None = None


class ShadowJob(msgspec.Struct, frozen=True):
    """Requests that a version is to score without anybody hearing of it but the log."""

    model: str
    version: str
    rows: Sequence[Row]


class Scored:
    """One scored batch. ``letters``: key, reason and dead letter of what could not be used."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.refused: list[ScoreOut] = []
        self.letters: list[tuple[bytes, str, bytes]] = []
        self.shadows: list[ShadowJob] = []
        self.shadowed: list[PredictionOut] = []
        self.done_ms = 0.0
        self._refused_of: Counter[str] = Counter()

    def refuse(self, answer: ScoreOut, model: str) -> None:
        """Answer a request without a prediction. ``model``: for the metrics, empty when the scorer does not know it."""
        self.refused.append(answer)
        self._refused_of[model] += 1

    def records(self, partitions: int) -> Records:
        """Every record to write: one answer a request that has an id, its prediction, dead letters."""
        done_ms, answers, predictions = self.done_ms, self.refused, []
        if self.rows:
            answers = answers.copy()
        for row in self.rows:
            head, route = row.head, row.route
            version, role, score = route.version or FALLBACK, route.role, row.score
            latency = round(done_ms - row.received_ms, 3) if done_ms > row.received_ms else 0.0
            predictions.append(
                PredictionOut(
                    head.request_id, head.model, version, role, head.event_time_ms, row.features.raw, score,
                    latency, row.status, head.entity, head.trace_id, route.region,
                )
            )  # fmt: skip
            answers.append(
                ScoreOut(
                    head.request_id, head.model, version, role, score, row.status, latency,
                    head.event_time_ms, route.revision, row.error, head.trace_id,
                )
            )  # fmt: skip
        # Refused first, then the rows in order: the last keys of the answers are those of the predictions.
        keys = [answer.request_id.encode() for answer in answers]
        where = partitions_of(keys, partitions).tolist()
        skip = len(answers) - len(predictions)
        return {
            "scores": _laid_out(answers, keys, where),
            "predictions": _laid_out(predictions, keys[skip:], where[skip:])
            + shadow_records(self.shadowed, partitions),
            "dead-letters": [
                {"value": value, "key": key, "partition": 0} for key, _reason, value in self.letters
            ],
        }

    def count(self, metrics: Metrics) -> None:
        """Export what was answered; once it is committed, so that a batch that is read again counts once."""
        counts = Counter({(model, "", "error"): rows for model, rows in self._refused_of.items()})
        for row in self.rows:
            counts[row.head.model, row.route.version or FALLBACK, row.status] += 1
        for (model, version, status), rows in counts.items():
            metrics.count("driftline_requests_total", rows, model=model, version=version, status=status)
        for _key, reason, _value in self.letters:
            metrics.count("driftline_dead_letters_total", reason=reason)


def prediction(
    row: Row, version: str, role: Role, score: float | None, status: str, latency_ms: float
) -> PredictionOut:
    """What goes on record about ``row`` in this role."""
    head = row.head
    return PredictionOut(
        head.request_id, head.model, version, role, head.event_time_ms, row.features.raw, score,
        round(max(0.0, latency_ms), 3), status, head.entity, head.trace_id, row.route.region,
    )  # fmt: skip


def shadow_records(predictions: Sequence[PredictionOut], partitions: int) -> list[dict[str, Any]]:
    """Records of predictions that nobody was answered with."""
    keys = [one.prediction_id.encode() for one in predictions]
    return _laid_out(predictions, keys, partitions_of(keys, partitions).tolist())


def _laid_out(
    values: Sequence[PredictionOut] | Sequence[ScoreOut], keys: list[bytes], partitions: list[int]
) -> list[dict[str, Any]]:
    return [
        {"value": encode(value), "key": key, "partition": partition}
        for value, key, partition in zip(values, keys, partitions, strict=True)
    ]
