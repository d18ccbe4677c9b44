"""The labelled rows a training may see: taken from the warehouse by time, in a fixed order, named by their content.

What a snapshot holds depends on the request alone, not on when the trainer got to it: predictions within the span
before the request's event time, each with the newest revision of its label that was known by then. Two runs of one
request therefore train on the same bytes, and the hash says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from clickhouse_connect.driver.client import Client
from numpy.typing import NDArray

from schemas.contracts import ModelContract

#: Topics whose rows a snapshot is made of.
SOURCES = ("predictions", "feedback")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``n`` labelled predictions in order of (event time, prediction id).

    ``table``: raw columns ``(n,)`` by feature name; numbers float64 with NaN as null, categories text with "" as null.
    ``scores``: what answered then, NaN if nothing did; ``versions``: who. ``labels``: 0 or 1.
    """

    table: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int8]
    event_ms: NDArray[np.int64]
    scores: NDArray[np.float64]
    versions: NDArray[Any]
    prediction_ids: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def content_hash(self) -> str:
        """SHA-256 over every value in order, hex."""
        digest = hashlib.sha256()
        columns: list[tuple[str, NDArray[Any]]] = [
            ("prediction_id", self.prediction_ids),
            ("event_ms", self.event_ms),
            ("label", self.labels),
            *sorted(self.table.items()),
        ]
        for name, column in columns:
            digest.update(name.encode() + b"\0")
            if column.dtype.kind in "OU":
                for value in column.tolist():
                    raw = str(value).encode()
                    digest.update(len(raw).to_bytes(4, "little") + raw)
            else:
                digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


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
    """Labelled predictions of the model, answered in the contract's span before ``event_time_ms``.

    Only answers that reached a caller count (no shadow); a prediction logged twice counts once.
    """
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
        SELECT prediction_id, event_ms, version, score, label, {names}
        FROM (
            SELECT prediction_id, toUnixTimestamp64Milli(event_time) AS event_ms, toString(model_version) AS version,
                   ifNull(score, nan) AS score, {features}
            FROM prediction_log
            WHERE model = {{model:String}} AND role != 'shadow'
              AND event_time > fromUnixTimestamp64Milli({{from_ms:Int64}}, 'UTC')
              AND event_time <= fromUnixTimestamp64Milli({{to_ms:Int64}}, 'UTC')
            ORDER BY source_partition, source_offset, source_row
            LIMIT 1 BY prediction_id
        ) AS p
        INNER JOIN (
            SELECT prediction_id, argMax(label, (revision, -source_offset, -toInt64(source_row))) AS label
            FROM label_log
            WHERE model = {{model:String}} AND label_time <= fromUnixTimestamp64Milli({{to_ms:Int64}}, 'UTC')
            GROUP BY prediction_id
        ) AS l USING (prediction_id)
        ORDER BY event_ms, prediction_id
    """
    span = {
        "model": contract.model,
        "from_ms": event_time_ms - contract.training.span,
        "to_ms": event_time_ms,
    }
    result = client.query(query, parameters=parameters | span, column_oriented=True)
    # A result without rows has no columns either.
    found = result.result_columns or [[] for _ in range(5 + len(columns))]
    identities, event_ms, versions, scores, labels, *values = found
    table: dict[str, NDArray[Any]] = {}
    for feature, column in zip(contract.features, values, strict=True):
        table[feature.name] = np.array(column, np.float64 if feature.kind == "numeric" else object)
    return Snapshot(
        table,
        (np.asarray(labels, np.float64) >= 0.5).astype(np.int8),
        np.asarray(event_ms, np.int64),
        np.asarray(scores, np.float64),
        np.array(versions, object),
        np.array(identities, object),
    )
