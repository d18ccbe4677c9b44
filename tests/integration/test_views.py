"""The warehouse's tables fit the row types, and its views tell analysts what the offline oracle says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import clickhouse_connect
import numpy as np
import pytest

from deploy.local.warehouse import LocalWarehouse
from schemas import migrations
from schemas.hashing import key_hashes
from schemas.ids import partition_of
from schemas.rows import TABLES
from schemas.settings import ClickHouseSettings
from schemas.spans import Spans
from schemas.verdicts import Evidence, Family, SignalChanged, State, Verdict, Worst
from streams.core import oracle
from streams.core.archive import log_rows
from streams.core.oracle import Step
from streams.core.records import Record
from streams.sink import ClickHouseSink
from tests.support_join import CONTRACT, HOUR, T0, Stream, join_core, prediction, truth

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def settings(warehouse: LocalWarehouse) -> ClickHouseSettings:
    """A migrated database of this module's own."""
    settings = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database="views")
    with clickhouse_connect.get_client(host=warehouse.host, port=warehouse.port) as client:
        client.command("CREATE DATABASE IF NOT EXISTS views")
    with clickhouse_connect.get_client(**settings.client()) as client:
        assert migrations.apply(client) == migrations.migrations()
        assert migrations.apply(client) == []
    return settings


@pytest.fixture(scope="module")
def client(settings: ClickHouseSettings) -> Iterator[Any]:
    """A reader."""
    with clickhouse_connect.get_client(**settings.client()) as reader:
        yield reader


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_table_has_the_columns_of_its_row_type(table: str, client: Any) -> None:
    """Names, order and types; and its sorting key tells rows apart exactly as the row type's key does."""
    described = client.query(f"DESCRIBE TABLE {table}").result_rows
    assert [(name, kind) for name, kind, *_ in described] == list(TABLES[table].columns)
    engine, key = client.query(
        f"SELECT engine_full, sorting_key FROM system.tables WHERE database = currentDatabase() AND name = '{table}'"
    ).result_rows[0]
    assert engine.startswith("ReplacingMergeTree")
    # A log's key may be led by columns that go with the address; it must hold all of the address.
    assert set(TABLES[table].key) <= {part.strip() for part in key.split(",")}


VIEWS = {
    "windows", "feature_windows", "accuracy", "predictions", "labels", "outcomes", "signals", "alerts", "commands",
    "deployments", "decisions", "dead_letters", "prediction_identities", "worst_events", "windows_all",
    "feature_windows_all", "accuracy_all", "decision_evidence", "decision_predictions", "live_accuracy",
    "live_accuracy_inputs", "label_delay_history", "calibration_history",
}  # fmt: skip


def test_every_view_can_be_read(client: Any) -> None:
    """Empty or not, under the session's defaults."""
    rows = client.query(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View'"
    ).result_rows
    assert {name for (name,) in rows} == VIEWS
    for view in VIEWS:
        client.query(f"SELECT * FROM {view} LIMIT 1")


@pytest.fixture(scope="module")
def steps(settings: ClickHouseSettings) -> list[Step]:
    """600 predictions and their labels through two partitions' cores, each value written several times as it grew."""
    rng = np.random.default_rng(5)
    events: list[Step] = []
    for at in range(600):
        score = float(rng.integers(0, 256)) / 256
        event = prediction(
            f"p{at}",
            version=f"v{at % 2 + 1}",
            role="stable",
            event_time_ms=T0 + int(rng.integers(0, 3 * HOUR)),
            features={
                "distance": float(rng.integers(0, 6000)),
                "wind": None if at % 5 == 0 else 2.5,
                "origin": "EJ"[at % 2],
            },
            score=score,
            latency_ms=float(rng.integers(1, 4000)) / 4,
            status="ok",
        )
        event["features"]["origin"] = {"E": "EWR", "J": "JFK"}[event["features"]["origin"]]
        events.append(Step("prediction", event, payload_bytes=len(json.dumps(event))))
        if at % 3:
            late = truth(f"p{at}", label=float(rng.random() < score), label_time_ms=T0 + 4 * HOUR, revision=0)
            events.append(Step("label", late, "feedback"))
    events += [
        Step("tick", {"event_time_ms": T0 + 2 * HOUR + 600_000}, topic)
        for topic in ("predictions", "feedback")
    ]
    sink = ClickHouseSink(settings)
    for partition in range(2):
        core, stream = join_core(partition, 2), Stream(partition)
        mine = [
            s
            for s in events
            if s.kind == "tick" or partition_of(s.event["prediction_id"].encode(), 2) == partition
        ]
        for sequence, start in enumerate(range(0, len(mine), 100), 1):
            part = mine[start : start + 100]
            core.apply(
                [
                    stream.tick(s.event["event_time_ms"], s.topic)
                    if s.kind == "tick"
                    else stream.event(s.event)
                    for s in part
                ],
                0,
            )
            core.committed(sequence)
            for upserts in core.upserts():
                sink.write_blocks(upserts.table, [upserts.block])
    sink.close()
    return events


def _by_segment(client: Any, view: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    result = client.query(f"SELECT * FROM {view}")
    rows = [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]
    return {
        (r["window_start"].timestamp() * 1000, r["model_version"], r["role"], r["segment"]): r for r in rows
    }


def _cells(steps: list[Step]) -> dict[tuple[Any, ...], list[oracle.Prediction]]:
    predictions = oracle.expected(CONTRACT, steps).predictions
    cells: dict[tuple[Any, ...], list[oracle.Prediction]] = {}
    for p in predictions:
        for segment in ("", f"origin={p.event['features']['origin']}"):
            cells.setdefault((p.start_ms, p.event["version"], p.event["role"], segment), []).append(p)
    return cells


def test_windows_are_one_row_each_with_partitions_and_repeats_merged(steps: list[Step], client: Any) -> None:
    """Counts to the row; latency quantiles to one percent."""
    seen, wanted = _by_segment(client, "windows"), _cells(steps)
    assert set(seen) == set(wanted)
    assert len(seen) == client.query("SELECT count() FROM windows").result_rows[0][0]
    for key, rows in wanted.items():
        row = seen[key]
        latencies = sorted(p.event["latency_ms"] for p in rows)
        assert row["predictions"] == len(rows)
        assert row["positives"] == sum(p.event["score"] >= 0.5 for p in rows)
        assert row["payload_bytes"] == sum(p.payload_bytes for p in rows)
        assert row["latency_mean_ms"] == pytest.approx(sum(latencies) / len(rows))
        assert row["latency_p50_ms"] == pytest.approx(latencies[math.ceil(0.5 * len(rows)) - 1], rel=0.01)
        assert row["latency_p99_ms"] == pytest.approx(latencies[math.ceil(0.99 * len(rows)) - 1], rel=0.01)
        assert sum(row["score_histogram"]) == len(rows)
        assert row["closed"] == (key[0] + HOUR + 600_000 <= T0 + 2 * HOUR + 600_000)


def _auc(pairs: list[tuple[float, float]]) -> float:
    good = [s for s, y in pairs if y]
    bad = [s for s, y in pairs if not y]
    return sum((g > b) + 0.5 * (g == b) for g in good for b in bad) / (len(good) * len(bad))


def test_accuracy_says_what_the_joined_labels_say(steps: list[Step], client: Any) -> None:
    """All exact, but for the AUC, which is read off 200 score bins."""
    seen, wanted = _by_segment(client, "accuracy"), _cells(steps)
    assert set(seen) == set(wanted)
    for key, rows in wanted.items():
        row = seen[key]
        pairs = [(p.event["score"], p.labels[-1]["label"]) for p in rows if p.labels]
        hits = [(s >= 0.5) == (y == 1.0) for s, y in pairs]
        true = sum(s >= 0.5 and y == 1.0 for s, y in pairs)
        losses = [oracle_loss(s, y) for s, y in pairs]
        assert (row["predictions"], row["labelled"], row["true_positive"]) == (len(rows), len(pairs), true)
        assert row["labelled_share"] == pytest.approx(len(pairs) / len(rows))
        assert row["accuracy"] == pytest.approx(sum(hits) / len(hits))
        assert row["precision"] == pytest.approx(true / sum(s >= 0.5 for s, _ in pairs))
        assert row["recall"] == pytest.approx(true / sum(y for _, y in pairs))
        assert row["f1"] == pytest.approx(
            2 * true / (sum(s >= 0.5 for s, _ in pairs) + sum(y for _, y in pairs))
        )
        assert row["log_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-9)
        assert row["brier"] == pytest.approx(sum((s - y) ** 2 for s, y in pairs) / len(pairs), abs=1e-9)
        assert abs(row["auc"] - _auc(pairs)) <= row["auc_error"] + 1e-12 < 0.01
        bins = [[(s, y) for s, y in pairs if min(int(s * 10), 9) == b] for b in range(10)]
        gap = sum(abs(sum(s for s, _ in b) - sum(y for _, y in b)) for b in bins) / len(pairs)
        assert row["calibration_error"] == pytest.approx(gap, abs=1e-8)
        assert row["maturity"] == "partial"


def oracle_loss(score: float, label: float) -> float:
    """Log loss with the stated clip."""
    p = min(max(score, 1e-6), 1 - 1e-6)
    return -math.log(p if label == 1.0 else 1 - p)


def test_feature_windows_are_one_row_a_feature(steps: list[Step], client: Any) -> None:
    """Missing and invalid rates, mean, range, histogram."""
    result = client.query("SELECT * FROM feature_windows")
    rows = [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]
    wanted = {key: rows for key, rows in _cells(steps).items() if key[-1] == ""}
    assert len(rows) == 3 * len(wanted)
    for row in rows:
        key = (row["window_start"].timestamp() * 1000, row["model_version"], row["role"], "")
        values = [p.event["features"][row["feature"]] for p in wanted[key]]
        known = [v for v in values if v is not None]
        assert (row["rows"], row["missing"]) == (len(values), len(values) - len(known))
        if row["feature"] == "origin":
            assert row["categories"] == {name: known.count(name) for name in set(known)}
            continue
        assert row["mean"] == pytest.approx(sum(known) / len(known))
        assert (row["low"], row["high"]) == (min(known), max(known))
        assert row["invalid"] == (sum(v > 5000 for v in known) if row["feature"] == "distance" else 0)
        assert sum(row["histogram"]) == len(known)


def test_labels_and_outcomes_take_the_highest_revision(settings: ClickHouseSettings, client: Any) -> None:
    """A prediction has one outcome for each role, whatever was said about it and however often."""
    when = datetime.fromtimestamp(T0 / 1000, UTC)
    sink = ClickHouseSink(settings)
    logged = [
        (
            "flights",
            "v1",
            role,
            "x1",
            when,
            {"distance": 1.0},
            {"origin": "JFK"},
            0.25,
            1.0,
            "ok",
            "",
            "t",
            "",
            0,
            at,
            0,
        )
        for at, role in enumerate(("stable", "shadow"))
    ]
    labels = [
        ("flights", "x1", value, when, revision, "", 0, at, 0)
        for at, (value, revision) in enumerate([(1.0, 0), (0.0, 2), (1.0, 1)])
    ]
    for _ in range(2):
        sink.write("prediction_log", logged)
        sink.write("label_log", labels)
    sink.close()
    rows = client.query(
        "SELECT role, prediction_id, score, label, revision FROM outcomes ORDER BY role"
    ).result_rows
    assert [tuple(row) for row in rows] == [("shadow", "x1", 0.25, 0.0, 2), ("stable", "x1", 0.25, 0.0, 2)]
    assert client.query("SELECT count() FROM predictions").result_rows[0][0] == 2
    assert client.query("SELECT count() FROM labels").result_rows[0][0] == 1


def test_a_signals_worst_events_are_found_in_the_log(settings: ClickHouseSettings, client: Any) -> None:
    """By the identity that detectors know: every one of 500 ids, its highest bits set or not, and nothing else."""
    ids = [f"flight-{at}-\u00e9" for at in range(500)]
    keys = [name.encode() for name in ids]
    hashes = key_hashes(Spans.of(keys)).identity.tolist()
    assert len({identity >> 63 for identity in hashes}) == 2
    worst = tuple(
        Worst(identity=i, time_ms=T0 + at, score=float(at)) for at, i in enumerate(hashes) if at % 100 == 7
    )
    signal = SignalChanged(
        signal_id="s", model="worst", version="v1", role="stable", detector="odd", kind="robust-z",
        family=Family.OUTLIER, previous=State.STABLE, event_time_ms=T0 + HOUR, row="predictions/0/1/0",
        verdict=Verdict(state=State.DRIFT, score=2.0, threshold=1.0, evidence=Evidence(worst=worst)),
    )  # fmt: skip
    sink = ClickHouseSink(settings)
    for version in ("v1", "v2"):
        sink.write(
            "prediction_log",
            [
                (
                    "worst", version, "stable", name, datetime.fromtimestamp((T0 + at) / 1000, UTC), {"distance": 1.0 * at},
                    {}, 0.5, 1.0, "ok", "", "", "", 0, at + 1_000 * (version == "v2"), 0,
                )
                for at, name in enumerate(ids)
            ],
        )  # fmt: skip
    table, (logged,) = log_rows(Record("signals", 0, 1, b"worst", signal.model_dump_json().encode()))
    at_ms = [name for name, _ in TABLES[table].columns].index("event_time")
    when = datetime.fromtimestamp(logged[at_ms] / 1000, UTC)
    for _ in range(2):
        sink.write(table, [(*logged[:at_ms], when, *logged[at_ms + 1 :])])
    sink.close()
    found = client.query(
        "SELECT prediction_id, model_version, outlier_score, numbers['distance'], toUnixTimestamp64Milli(event_time) "
        "FROM worst_events WHERE model = 'worst' ORDER BY outlier_score"
    ).result_rows
    assert [tuple(row) for row in found] == [
        (ids[at], "v1", float(at), float(at), T0 + at) for at in (7, 107, 207, 307, 407)
    ]
    one = client.query(
        f"SELECT DISTINCT prediction_id FROM prediction_identities WHERE model = 'worst' "
        f"AND identity = bitAnd({hashes[3]}, 9223372034707292159)"
    ).result_rows
    assert one == [(ids[3],)]
