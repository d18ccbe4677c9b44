"""Takes a snapshot out of the warehouse by time, so that what it holds depends on the request alone.

A retrain request names a moment of event time. Whenever the trainer gets to it, and however often, it sees each
prediction as it was first logged, with the newest revision of its label that was known at that moment. Predictions
whose labels have not had time to come are not there at all: neither as negatives, nor with the early labels alone,
which are not like the late ones (a delayed flight lands later).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from clickhouse_connect.driver.client import Client
from numpy.typing import NDArray

from deploy.training.snapshot import Origin, Snapshot
from schemas.contracts import ModelContract

#: Topics whose rows a snapshot is made of.
SOURCES = ("predictions", "feedback")
#: Labelled predictions past their horizon that are needed to measure how long labels take.
DELAYS_MIN = 100


def archived_ms(client: Client, partitions: int) -> int | None:
    """Event time up to which the warehouse holds every prediction and label; None while a partition has not spoken."""
    result = client.query(
        "SELECT topic, partition, max(event_time_ms) FROM archive_progress WHERE topic IN {topics:Array(String)} "
        "GROUP BY topic, partition",
        parameters={"topics": list(SOURCES)},
    )
    reached = {
        (str(topic), int(partition)): int(event_ms) for topic, partition, event_ms in result.result_rows
    }
    wanted = [(topic, partition) for topic in SOURCES for partition in range(partitions)]
    if any(address not in reached for address in wanted):
        return None
    return min(reached[address] for address in wanted)


def take_snapshot(client: Client, contract: ModelContract, event_time_ms: int) -> Snapshot:
    """The model's predictions of the contract's span before ``event_time_ms``, as far as their labels are mature.

    Only answers that reached a caller count (no shadow); a prediction logged twice counts once.
    """
    origin = _sampled(client, contract, _origin(client, contract, event_time_ms))
    columns, parameters = [], {}
    for at, feature in enumerate(contract.features):
        parameters[f"name_{at}"] = feature.name
        key = f"{{name_{at}:String}}"
        if feature.kind == "numeric":
            columns.append(f"if(mapContains(numbers, {key}), numbers[{key}], nan) AS f{at}")
        else:
            columns.append(f"toString(categories[{key}]) AS f{at}")
    features = ", ".join(columns)
    names = ", ".join(f"f{at}" for at in range(len(columns)))
    query = f"""
        SELECT prediction_id, event_ms, version, score, entity, if(known, label, nan), {names}
        FROM (
            SELECT prediction_id, toUnixTimestamp64Milli(event_time) AS event_ms, toString(model_version) AS version,
                   ifNull(score, nan) AS score, entity, {features}
            FROM prediction_log
            WHERE {_ANSWERED}
            ORDER BY source_partition, source_offset, source_row
            LIMIT 1 BY prediction_id
        ) AS p
        LEFT JOIN (
            SELECT prediction_id, argMax(label, (revision, -source_offset, -toInt64(source_row))) AS label,
                   toUInt8(1) AS known
            FROM label_log
            WHERE {_KNOWN}
            GROUP BY prediction_id
        ) AS l USING (prediction_id)
        ORDER BY event_ms, prediction_id
    """
    span = _span(contract, origin, origin.to_ms)
    result = client.query(query, parameters=parameters | span, column_oriented=True)
    # A result without rows has no columns either.
    found = result.result_columns or [[] for _ in range(6 + len(columns))]
    identities, event_ms, versions, scores, entities, labels, *values = found
    table: dict[str, NDArray[Any]] = {}
    for feature, column in zip(contract.features, values, strict=True):
        table[feature.name] = np.array(column, np.float64 if feature.kind == "numeric" else object)
    outcome = np.asarray(labels, np.float64)
    labelled = ~np.isnan(outcome)
    snapshot = Snapshot(
        table,
        (np.nan_to_num(outcome) >= 0.5).astype(np.int8),
        np.asarray(event_ms, np.int64),
        np.asarray(scores, np.float64),
        np.array(versions, object),
        np.array(identities, object),
        np.array(entities, object),
        replace(origin, predictions=len(outcome), unlabelled=int((~labelled).sum())),
    )
    return snapshot if contract.training.unlabelled == "negative" else snapshot.take(labelled)


def _origin(client: Client, contract: ModelContract, event_time_ms: int) -> Origin:
    training, horizon = contract.training, contract.monitoring.label_horizon
    whole = Origin(
        requested_ms=event_time_ms,
        from_ms=event_time_ms - training.span,
        maturity=training.maturity,
        label_horizon_ms=horizon,
        unlabelled_are=training.unlabelled,
    )
    delays = 0
    if training.unlabelled == "negative":
        # Only after its horizon does the absence of a label say anything.
        back, by = horizon, "label horizon"
    elif training.labels_after is not None:
        back, by = training.labels_after, "configuration"
    else:
        back, delays = _measured(
            client, contract, _sampled(client, contract, replace(whole, to_ms=event_time_ms))
        )
        by = "measured" if delays >= DELAYS_MIN else "label horizon"
    return replace(whole, to_ms=event_time_ms - back, backed_off_ms=back, backed_off_by=by, delays=delays)


def _sampled(client: Client, contract: ModelContract, origin: Origin) -> Origin:
    """The rows of a busy model would not fit into memory: its predictions are thinned by the hash of their ids, which is
    the same for prediction and label, at every attempt and in every order."""
    result = client.query(
        f"SELECT uniq(prediction_id) FROM prediction_log WHERE {_ANSWERED}",
        parameters=_span(contract, origin, origin.to_ms),
    )
    count = int(result.result_rows[0][0]) if result.result_rows else 0
    return replace(origin, sampled_every=max(1, -(-count // contract.training.rows_max)))


def _span(contract: ModelContract, origin: Origin, to_ms: int) -> dict[str, Any]:
    return {
        "model": contract.model,
        "from_ms": origin.from_ms,
        "to_ms": to_ms,
        "now_ms": origin.requested_ms,
        "every": origin.sampled_every,
        # A label may come before its prediction, but not long before.
        "labels_from_ms": origin.from_ms - origin.label_horizon_ms,
    }


def _measured(client: Client, contract: ModelContract, origin: Origin) -> tuple[int, int]:
    """The time after which the contract's share of labels was in, at most the horizon, and on how many it was measured:
    those predictions of the span whose horizon has passed, so that slow labels are among them."""
    horizon = origin.label_horizon_ms
    result = client.query(
        f"""
        SELECT count(), quantileExactHigh({{maturity:Float64}})(greatest(0, first_ms - event_ms))
        FROM (
            SELECT prediction_id, min(toUnixTimestamp64Milli(event_time)) AS event_ms
            FROM prediction_log
            WHERE {_ANSWERED}
            GROUP BY prediction_id
        ) AS p
        INNER JOIN (
            SELECT prediction_id, min(toUnixTimestamp64Milli(label_time)) AS first_ms
            FROM label_log
            WHERE {_KNOWN}
            GROUP BY prediction_id
        ) AS l USING (prediction_id)
        """,
        parameters=_span(contract, origin, origin.requested_ms - horizon)
        | {"maturity": contract.training.maturity},
    )
    rows = result.result_rows
    delays = int(rows[0][0]) if rows else 0
    return (min(horizon, int(rows[0][1])), delays) if delays >= DELAYS_MIN else (horizon, delays)


_ANSWERED = """model = {model:String} AND role != 'shadow' AND cityHash64(prediction_id) % {every:UInt64} = 0
              AND event_time > fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
              AND event_time <= fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC')"""
_KNOWN = """model = {model:String} AND cityHash64(prediction_id) % {every:UInt64} = 0
              AND label_time > fromUnixTimestamp64Milli({labels_from_ms:Int64}, 'UTC')
              AND label_time <= fromUnixTimestamp64Milli({now_ms:Int64}, 'UTC')"""
