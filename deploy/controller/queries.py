"""The shipped metric templates as ClickHouse queries. Each reads the logs, where a version's rows are exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clickhouse_connect.driver.client import Client

from deploy.core.schedule import Due
from schemas.errors import WarehouseError
from schemas.measures import Measurement
from schemas.rollout import Metric

#: A contract's own query may read, for this long, and this much; 2 is read-only with settings such as these.
QUERY_SETTINGS: dict[str, Any] = {"readonly": 2, "max_execution_time": 20, "max_result_rows": 10}

_SPAN = (
    "model = {model:String} AND event_time > fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC') "
    "AND event_time <= fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC') "
    "AND ({region:String} = '' OR region = {region:String})"
)
_ANSWERS = (
    "SELECT toString(model_version) AS version, prediction_id, role, score, status, latency_ms, categories "
    f"FROM prediction_log FINAL WHERE {_SPAN} AND model_version IN {{versions:Array(String)}} AND "
    "if(model_version = {version:String} AND {shadow:UInt8} = 1, role = 'shadow', role != 'shadow')"
)
_SCORED = (
    "SELECT toString(model_version) AS version, prediction_id, any(score) AS score, "
    "min(toUnixTimestamp64Milli(event_time)) AS ms FROM prediction_log FINAL "
    f"WHERE {_SPAN.replace('to_ms', 'whole_ms')} AND model_version IN {{versions:Array(String)}} AND status = 'ok' "
    "GROUP BY version, prediction_id"
)
_LABELS = (
    "SELECT prediction_id, argMax(label, revision) AS label FROM label_log FINAL WHERE model = {model:String} "
    "AND label_time <= fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC') GROUP BY prediction_id"
)
_LABELLED = f"({_ANSWERS}) AS a INNER JOIN ({_LABELS}) AS l USING (prediction_id) WHERE a.status = 'ok'"
#: (version, value, rows, events) of each version; events where the judge counts them.
TEMPLATES: Mapping[str, str] = {
    "latency_p50": f"SELECT version, quantileExact(0.5)(latency_ms), count(), 0 FROM ({_ANSWERS}) GROUP BY version",
    "latency_p99": f"SELECT version, quantileExact(0.99)(latency_ms), count(), 0 FROM ({_ANSWERS}) GROUP BY version",
    "error_rate": f"SELECT version, avg(status = 'error'), count(), countIf(status = 'error') FROM ({_ANSWERS}) GROUP BY version",
    "business": f"SELECT version, avg(label >= 0.5), count(), countIf(label >= 0.5) FROM {_LABELLED} GROUP BY version",
    "loss": f"SELECT version, avg(pow(score - label, 2)), count(), 0 FROM {_LABELLED} GROUP BY version",
    "segment_gap": (
        "SELECT version, if(count() > 1, max(mean) - min(mean), nan), sum(n), 0 FROM (SELECT version, "
        "categories[{segment:String}] AS value, avg(pow(score - label, 2)) AS mean, count() AS n "
        f"FROM {_LABELLED} GROUP BY version, value HAVING n >= {{rows_min:UInt64}}) GROUP BY version"
    ),
}
#: (pairs, mean of the differences, their standard deviation, blocks, pairs they count for). A block weighs as many pairs
#: as it counts for: a busy day does not outvote the others.
PAIRED_LOSS = (
    "SELECT sum(n), sum(w * mean) / sum(w), sqrt(greatest(0, sum(w * (var + mean * mean)) / sum(w) - "
    "pow(sum(w * mean) / sum(w), 2))), count(), sum(w) FROM (SELECT count() AS n, avg(d) AS mean, varPop(d) AS var, "
    "least(n, {block_rows:UInt64}) AS w FROM (SELECT intDiv(c.ms - {from_ms:Int64} - 1, {block_ms:Int64}) AS block, "
    "pow(c.score - l.label, 2) - pow(s.score - l.label, 2) AS d "
    f"FROM ({_SCORED}) AS c INNER JOIN ({_SCORED}) AS s USING (prediction_id) "
    f"INNER JOIN ({_LABELS}) AS l USING (prediction_id) "
    "WHERE c.version = {version:String} AND s.version = {beside:String}) GROUP BY block)"
)


def measure(warehouse: Client, task: Due, metric: Metric, from_ms: int) -> Measurement:
    """One metric out of the warehouse. What the client raises passes through."""
    span = {"metric": metric.name, "from_ms": from_ms, "to_ms": task.at_ms}
    parameters: dict[str, Any] = {
        "model": task.model,
        "version": task.version,
        "beside": task.beside or "",
        "versions": [task.version, *([] if task.beside is None else [task.beside])],
        "shadow": int(task.shadow),
        "from_ms": from_ms,
        "to_ms": task.at_ms,
        "region": task.region,
        "whole_ms": from_ms + (task.at_ms - from_ms) // metric.block_ms * metric.block_ms,
        "block_ms": metric.block_ms,
        "block_rows": metric.block_rows,
        "segment": metric.segment,
        "rows_min": metric.rows_min,
    }
    if metric.paired:
        (sums,) = warehouse.query(PAIRED_LOSS, parameters=parameters).result_rows
        rows, mean, sd, blocks, counts_for = sums
        if not rows:
            return Measurement(**span)
        return Measurement(
            value=mean, sd=sd, rows=rows, reference_rows=rows, blocks=blocks, counts_for=counts_for, **span
        )
    if metric.source == "query":
        found = warehouse.query(metric.query, parameters=parameters, settings=QUERY_SETTINGS).result_rows
        if not found or len(found[0]) < 2:
            raise WarehouseError(f"metric {metric.name}: its query gives no row of value and rows")
        return Measurement(value=_number(found[0][0]), rows=int(found[0][1] or 0), **span)
    found = warehouse.query(TEMPLATES[metric.source], parameters=parameters).result_rows
    by_version = {
        str(version): (_number(value), int(rows), int(events)) for version, value, rows, events in found
    }
    value, rows, events = by_version.get(task.version, (None, 0, 0))
    theirs, their_rows, their_events = by_version.get(task.beside or "", (None, 0, 0))
    return Measurement(
        value=value,
        reference=theirs,
        rows=rows,
        reference_rows=their_rows,
        events=events if metric.judge else None,
        reference_events=their_events if metric.judge else None,
        **span,
    )


def _number(value: Any) -> float | None:
    """A figure, or None for what is none: NULL, and the NaN of an average over nothing."""
    return None if value is None or value != value else float(value)
