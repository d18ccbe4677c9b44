"""Why: "nothing lost, nothing twice" is worth only what an independent computation says.

Recomputes with pandas, straight from the flights and the log of scores on Kafka, what ClickHouse must hold: counts, label
joins and accuracy of every window, version, role and segment. It shares no code with the monitor but the topic names.
What ClickHouse reads off score bins, the AUC, must be as near as it says itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import clickhouse_connect
import msgspec
import numpy as np
import pandas as pd
from confluent_kafka import Consumer, TopicPartition

from deploy.demo.flights import Flights
from schemas.contracts import ModelContract
from schemas.errors import PlatformError
from schemas.events import HEADER_KIND
from schemas.settings import ClickHouseSettings, KafkaSettings

TOLERANCE = 1e-9
KEY = ["window_start_ms", "version", "role", "segment"]
COUNTS = [
    "predictions",
    "fallbacks",
    "labelled",
    "true_positive",
    "false_positive",
    "true_negative",
    "false_negative",
]
FLOATS = ["accuracy", "log_loss", "brier"]
PROBABILITY_MIN = 1e-6
SHOWN_MAX = 20


@dataclass(slots=True)
class Checked:
    """What was compared and what differed. ``log``: the scored log, one row a prediction."""

    log: pd.DataFrame
    compared: int = 0
    mismatches: list[str] = field(default_factory=list)
    count: int = 0

    def differ(self, text: str, times: int = 1) -> None:
        self.count += times
        if len(self.mismatches) < SHOWN_MAX:
            self.mismatches.append(text)


def read_scored_log(kafka: KafkaSettings) -> pd.DataFrame:
    """Every committed prediction on ``predictions``, with its Kafka timestamp."""
    consumer = Consumer(kafka.consumer(None, **{"enable.partition.eof": True}))
    topic = kafka.topic("predictions")
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(kafka.input_partitions)])
    rows: list[tuple[Any, ...]] = []
    ended = 0
    deadline = time.monotonic() + 120
    while ended < kafka.input_partitions:
        if time.monotonic() > deadline:
            raise PlatformError("the scored log could not be read to its end within 120 s")
        for message in consumer.consume(20_000, timeout=1.0):
            error = message.error()
            if error is not None:
                ended += 1
                continue
            if HEADER_KIND in dict(message.headers() or ()):
                continue
            data = msgspec.json.decode(message.value() or b"{}")
            rows.append(
                (
                    data["prediction_id"],
                    data["version"],
                    data.get("role", "stable"),
                    data["event_time_ms"],
                    data.get("score"),
                    data.get("status", "ok"),
                    message.timestamp()[1],
                )
            )
    consumer.close()
    names = ["prediction_id", "version", "role", "event_time_ms", "score", "status", "kafka_ms"]
    return pd.DataFrame(rows, columns=names)


def expected(flights: Flights, log: pd.DataFrame, contract: ModelContract) -> pd.DataFrame:
    """What ClickHouse must hold, indexed by :data:`KEY`."""
    truth = pd.DataFrame({"prediction_id": flights.flight_id, "late": flights.late.astype(float)})
    for name in contract.monitoring.segments:
        truth[name] = flights.features[name]
    rows = log.merge(truth, on="prediction_id", how="left", validate="many_to_one")
    window = contract.monitoring.window
    rows["window_start_ms"] = rows["event_time_ms"] // window * window
    rows["predictions"] = 1
    rows["fallbacks"] = (rows["status"] == "fallback").astype(int)
    labelled = (rows["late"] >= 0) & rows["score"].notna()
    rows["labelled"] = labelled.astype(int)
    positive = rows["score"] >= contract.threshold
    late = rows["late"] == 1
    rows["true_positive"] = (labelled & positive & late).astype(int)
    rows["false_positive"] = (labelled & positive & ~late).astype(int)
    rows["true_negative"] = (labelled & ~positive & ~late).astype(int)
    rows["false_negative"] = (labelled & ~positive & late).astype(int)
    p = rows["score"].clip(PROBABILITY_MIN, 1 - PROBABILITY_MIN)
    rows["log_loss"] = np.where(labelled, -np.where(late, np.log(p), np.log1p(-p)), 0.0)
    rows["brier"] = np.where(labelled, (rows["score"] - late) ** 2, 0.0)
    parts = [rows.assign(segment="")]
    parts += [rows.assign(segment=name + "=" + rows[name]) for name in contract.monitoring.segments]
    table = pd.concat(parts).groupby(KEY)[[*COUNTS, "log_loss", "brier"]].sum()
    n = table["labelled"].where(table["labelled"] > 0)
    ranked = pd.concat(parts)
    table["auc"] = _auc(ranked[ranked["labelled"] == 1]).reindex(table.index)
    table["accuracy"] = (table["true_positive"] + table["true_negative"]) / n
    table["log_loss"] /= n
    table["brier"] /= n
    return table


def _auc(rows: pd.DataFrame) -> pd.Series[float]:
    """Share of the pairs of a late and a punctual flight of a group in which the late one's score is higher."""
    place = rows.groupby(KEY)["score"].rank()
    late = rows["late"] == 1
    of = [rows[name] for name in KEY]
    positive, everything = late.groupby(of).sum(), late.groupby(of).size()
    above = place.where(late, 0.0).groupby(of).sum() - positive * (positive + 1) / 2
    pairs = positive * (everything - positive)
    found: pd.Series[float] = above / pairs.where(pairs > 0)
    return found


def actual(clickhouse: ClickHouseSettings, model: str) -> pd.DataFrame:
    """What the analysts' views say, in the same shape."""
    with clickhouse_connect.get_client(**clickhouse.client()) as client:
        counts = client.query_df(
            "SELECT toUnixTimestamp64Milli(window_start) AS window_start_ms, model_version AS version, role, segment, "
            "predictions, fallbacks FROM windows WHERE model = {model:String}",
            parameters={"model": model},
        )
        outcomes = client.query_df(
            "SELECT toUnixTimestamp64Milli(window_start) AS window_start_ms, model_version AS version, role, segment, "
            "labelled, true_positive, false_positive, true_negative, false_negative, accuracy, log_loss, brier, auc, "
            "auc_error FROM accuracy WHERE model = {model:String}",
            parameters={"model": model},
        )
    if counts.empty:
        raise PlatformError("ClickHouse holds no windows of the model; see `driftline logs monitor`")
    counts = counts.set_index(KEY).apply(pd.to_numeric)
    if outcomes.empty:
        return counts
    return counts.join(outcomes.set_index(KEY).apply(pd.to_numeric), how="outer")


def verify(
    flights: Flights, contract: ModelContract, kafka: KafkaSettings, clickhouse: ClickHouseSettings
) -> Checked:
    """Compare everything; each difference is counted, the first few are named."""
    checked = Checked(read_scored_log(kafka))
    duplicated = int(checked.log.duplicated(["prediction_id", "version", "role"]).sum())
    if duplicated:
        checked.differ(f"{duplicated} predictions stand twice in the scored log", duplicated)
    compare(checked, expected(flights, checked.log, contract), actual(clickhouse, contract.model))
    return checked


def compare(checked: Checked, want: pd.DataFrame, have: pd.DataFrame) -> None:
    """Each figure of each window: counts to the row, losses to ``TOLERANCE``, the AUC as near as ClickHouse says."""
    for name, group in (
        ("missing in", want.index.difference(have.index)),
        ("only in", have.index.difference(want.index)),
    ):
        if len(group):
            checked.differ(f"{len(group)} windows {name} ClickHouse, first {group[0]}", len(group))
    both = want.index.intersection(have.index)
    for column in (*COUNTS, *FLOATS, "auc"):
        if column not in have:
            checked.differ(f"ClickHouse has no {column}")
            continue
        left = want.loc[both, column].to_numpy(dtype=float)
        right = have.loc[both, column].to_numpy(dtype=float)
        tolerance = np.full(len(both), 0.0 if column in COUNTS else TOLERANCE)
        if column in COUNTS:
            right = np.nan_to_num(right)
        if column == "auc":
            tolerance += np.nan_to_num(have.loc[both, "auc_error"].to_numpy(dtype=float))
        unlike = ~((np.abs(left - right) <= tolerance) | (np.isnan(left) & np.isnan(right)))
        checked.compared += len(both)
        for at in np.flatnonzero(unlike)[:SHOWN_MAX].tolist():
            checked.differ(f"{column} of {both[at]}: expected {left[at]!r}, ClickHouse has {right[at]!r}", 0)
        checked.count += int(unlike.sum())


def wait_for_warehouse(
    clickhouse: ClickHouseSettings, settled_ms: int, predictions: int, timeout_s: float = 60.0
) -> None:
    """Until the archive has passed ``settled_ms`` on its inputs and the windows hold every prediction.

    Does not raise when they never do: the comparison that follows says what is missing.
    """
    with clickhouse_connect.get_client(**clickhouse.client()) as client:

        def archived() -> bool:
            rows = client.query(
                "SELECT min(reached) FROM (SELECT topic, partition, max(event_time_ms) AS reached FROM archive_progress "
                "WHERE topic IN ('predictions', 'feedback') GROUP BY topic, partition)"
            ).result_rows
            return bool(rows) and rows[0][0] is not None and int(rows[0][0]) >= settled_ms

        def counted() -> bool:
            rows = client.query("SELECT sum(predictions) FROM windows WHERE segment = ''").result_rows
            return int(rows[0][0] or 0) >= predictions

        def final() -> bool:
            rows = client.query("SELECT countIf(maturity != 'final') FROM accuracy").result_rows
            return int(rows[0][0] or 0) == 0

        deadline = time.monotonic() + timeout_s
        for condition in (archived, counted, final):
            _until(condition, deadline)


def _until(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.25)
