"""From a decision to the predictions it rests on, and from a prediction to the decisions it fed.

A signal is computed from thousands of predictions, so none of them has a pointer to it. What ties them is on record: a
fact names its signals, a signal the version and the span of event time its evidence covers, and the archive has every
prediction with its trace id. The view ``decision_predictions`` is that sentence as a query.
"""

from __future__ import annotations

from typing import Any

from deploy.audit.source import rows
from schemas.errors import RecordError
from schemas.settings import ClickHouseSettings

PREDICTIONS_MAX = 20
DECISIONS_MAX = 200

_PREDICTIONS = """
SELECT prediction_id, model, model_version, role, toUnixTimestamp64Milli(event_time), trace_id
FROM predictions WHERE trace_id = {id:String} OR prediction_id = {id:String} ORDER BY event_time LIMIT {most:UInt32}
"""
_EVIDENCE = """
SELECT decision_id, model, version, kind, actor, detail, trace_id, toUnixTimestamp64Milli(decided), detector, score,
       threshold, rows, toUnixTimestamp64Milli(since), toUnixTimestamp64Milli(until), worst
FROM decision_evidence
WHERE $where ORDER BY decided, decision_id LIMIT {most:UInt32}
"""
_NAMED = "{id:String} IN (decision_id, trace_id, request_id, incident, signal_id)"
_COVERING = """
model = {model:String} AND version = {version:String}
AND since <= fromUnixTimestamp64Milli({at:Int64}) AND until >= fromUnixTimestamp64Milli({at:Int64})
"""
_COUNT = """
SELECT count() FROM prediction_log FINAL WHERE model = {model:String} AND model_version = {version:String}
AND event_time >= fromUnixTimestamp64Milli({since:Int64}) AND event_time <= fromUnixTimestamp64Milli({until:Int64})
"""
_WORST = """
SELECT prediction_id, trace_id FROM prediction_identities WHERE model = {model:String} AND model_version = {version:String}
AND event_time >= fromUnixTimestamp64Milli({since:Int64}) AND event_time <= fromUnixTimestamp64Milli({until:Int64})
AND identity IN {worst:Array(UInt64)} LIMIT {most:UInt32}
"""
_FIELDS = (
    "decision_id", "model", "version", "kind", "actor", "detail", "trace_id", "event_time_ms", "detector", "score",
    "threshold", "rows", "since_ms", "until_ms", "worst",
)  # fmt: skip


def trace(clickhouse: ClickHouseSettings, text: str) -> dict[str, Any]:
    """``predictions`` and ``decisions`` of the id ``text``: of a decision (its id, trace, request, incident or signal) the
    evidence, or of a prediction (its id or trace) what was decided on evidence that covers it.

    Raises RecordError when nothing has that id, WarehouseError when ClickHouse does not answer.
    """
    decisions = _evidence(clickhouse, _NAMED, {"id": text})
    predictions = [
        dict(
            zip(("prediction_id", "model", "version", "role", "event_time_ms", "trace_id"), row, strict=True)
        )
        for row in rows(clickhouse, _PREDICTIONS, {"id": text, "most": PREDICTIONS_MAX})
    ]
    for place in {(p["model"], p["version"], p["event_time_ms"]) for p in predictions}:
        model, version, at = place
        decisions += _evidence(clickhouse, _COVERING, {"model": model, "version": version, "at": at})
    if not decisions and not predictions:
        raise RecordError(
            f"no decision, signal, request or prediction in ClickHouse has the id {text!r}; the archive may still be behind"
        )
    return {
        "id": text,
        "predictions": predictions,
        "decisions": [_looked_up(clickhouse, d) for d in decisions],
    }


def _evidence(clickhouse: ClickHouseSettings, where: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    found = rows(clickhouse, _EVIDENCE.replace("$where", where), parameters | {"most": DECISIONS_MAX})
    return [dict(zip(_FIELDS, row, strict=True)) for row in found]


def _looked_up(clickhouse: ClickHouseSettings, decision: dict[str, Any]) -> dict[str, Any]:
    """``decision`` with how many predictions its evidence covers, and which of them were the worst."""
    span = {
        "model": decision["model"],
        "version": decision["version"],
        "since": decision["since_ms"],
        "until": decision["until_ms"],
    }
    ((count,),) = rows(clickhouse, _COUNT, span)
    worst: list[dict[str, str]] = []
    if decision["worst"]:
        named = span | {"worst": list(decision["worst"]), "most": PREDICTIONS_MAX}
        worst = [{"prediction_id": i, "trace_id": t} for i, t in rows(clickhouse, _WORST, named)]
    return decision | {"predictions": count, "worst": worst}
