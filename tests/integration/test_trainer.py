"""The trainer between a real Kafka and a real ClickHouse engine: a request in, a version or a reason out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import clickhouse_connect
import numpy as np
import pytest
from clickhouse_connect.driver.client import Client
from pydantic import SecretStr

from deploy.local.kafka import LocalKafka
from deploy.local.warehouse import LocalWarehouse
from deploy.models import publish_records
from deploy.registry import Lineage, Registry
from deploy.training.extract import archived_ms, take_snapshot
from deploy.training.service import run
from schemas import migrations
from schemas.contracts import ModelRecord, Monitoring, Training
from schemas.control import COMMANDS, Deployment, Phase, RetrainRequested, TrainingFinished
from schemas.observability import Metrics
from schemas.settings import ClickHouseSettings, KafkaSettings, TrainerSection, TrainerSettings
from tests.support_deploy import CONTRACT as DECLARED
from tests.support_deploy import START_MS, Wire, artifact, feature_row
from tests.support_deploy import rows as drawn

pytestmark = pytest.mark.integration

_ROWS = 2_000
_HOUR_MS = 3_600_000
_ROW_MS = 600_000
CONTRACT = DECLARED.model_copy(
    update={
        "monitoring": Monitoring(label_horizon=6 * _HOUR_MS),
        "training": Training(rows_min=500, weightings=("uniform", "half-life 3d"), block=4 * _HOUR_MS),
    }
)


def rows(count: int, seed: int = 0) -> tuple[dict[str, Any], Any, Any]:
    """One row every ten minutes."""
    table, labels, _ = drawn(count, seed)
    return table, labels, START_MS + _ROW_MS * np.arange(count, dtype=np.int64)


@pytest.fixture
def settings(
    kafka: LocalKafka, warehouse: LocalWarehouse, topic_prefix: str, unique_name: str, tmp_path: Path
) -> TrainerSettings:
    """One registered version, a database of the test's own."""
    registry = tmp_path / "registry"
    Registry(registry).register(CONTRACT, artifact(flip=True), Lineage())
    return TrainerSettings(
        kafka=KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, input_partitions=2),
        clickhouse=ClickHouseSettings(
            host=warehouse.host, port=warehouse.port, database=unique_name, password=SecretStr("")
        ),
        trainer=TrainerSection(registry=registry, archive_timeout=30_000, backoff=100),
    )


@pytest.fixture
def client(settings: TrainerSettings) -> Iterator[Client]:
    """The migrated, empty database."""
    arguments = settings.clickhouse.client()
    with clickhouse_connect.get_client(**(arguments | {"database": "default"})) as admin:
        admin.command(f"CREATE DATABASE {settings.clickhouse.database}")
    with clickhouse_connect.get_client(**arguments) as made:
        migrations.apply(made)
        yield made


@pytest.fixture
def wire(settings: TrainerSettings) -> Iterator[Wire]:
    made = Wire(settings.kafka)
    version = Registry(settings.trainer.registry).record("delay", "1")
    publish_records(settings.kafka, [ModelRecord(contract=CONTRACT), ModelRecord(version=version)])
    yield made
    made.close()


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1_000, UTC)


def _archive(client: Client, count: int = _ROWS) -> int:
    """Log ``count`` answers of version 1 with their labels an hour later; returns the last label's time."""
    table, labels, event_ms = rows(count, seed=3)
    predictions, outcomes = [], []
    for at in range(count):
        row = feature_row(table, at)
        numbers = {n: float(v) for n, v in row.items() if not isinstance(v, str) and v is not None}
        categories = {n: v for n, v in row.items() if isinstance(v, str)}
        moment, known = _time(int(event_ms[at])), _time(int(event_ms[at]) + 3_600_000)
        source = [at % 2, at // 2, 0]
        predictions.append(
            [
                "delay",
                "1",
                "stable",
                f"p{at:05}",
                moment,
                numbers,
                categories,
                0.5,
                1.0,
                "ok",
                "",
                "",
                *source,
            ]
        )
        outcomes.append(["delay", f"p{at:05}", float(labels[at]), known, 0, "", *source])
    client.insert("prediction_log", predictions, column_names=_PREDICTIONS)
    client.insert("label_log", outcomes, column_names=_LABELS)
    return int(event_ms[-1]) + 3_600_000


_SOURCE = ["source_partition", "source_offset", "source_row"]
_PREDICTIONS = [
    "model", "model_version", "role", "prediction_id", "event_time", "numbers", "categories", "score", "latency_ms",
    "status", "entity", "trace_id", *_SOURCE,
]  # fmt: skip
_LABELS = ["model", "prediction_id", "label", "label_time", "revision", "trace_id", *_SOURCE]


def _progress(client: Client, event_ms: int) -> None:
    client.insert(
        "archive_progress",
        [
            [topic, partition, 1_000_000, event_ms]
            for topic in ("predictions", "feedback")
            for partition in (0, 1)
        ],
        column_names=["topic", "partition", "next_offset", "event_time_ms"],
    )


def _ask(wire: Wire, event_ms: int, revision: int = 2, request_id: str = "r1") -> None:
    request = RetrainRequested(
        request_id=request_id, model="delay", version="1", cause="concept", event_time_ms=event_ms,
        expires_ms=event_ms + 10**9, issued_by="policy", trace_id="a" * 32,
    )  # fmt: skip
    wire.send("control", [("delay", request.model_dump_json().encode())])
    wanted = Deployment(
        model="delay",
        revision=revision,
        phase=Phase.STEADY,
        stable="1",
        weights={"1": 1.0},
        training=request_id,
    )
    wire.send("deployments", [("delay", wanted.model_dump_json().encode())])


@contextmanager
def _running(settings: TrainerSettings, metrics: Metrics | None = None) -> Iterator[None]:
    stop = threading.Event()
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(run(settings, stop, metrics)))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert status == [0]


def _reports(wire: Wire, count: int) -> list[TrainingFinished]:
    def reports(values: list[bytes]) -> list[TrainingFinished]:
        found = [COMMANDS.validate_json(value) for value in values]
        return [command for command in found if isinstance(command, TrainingFinished)]

    return reports(wire.wait("control", lambda values: len(reports(values)) >= count, timeout_s=90))


def test_a_request_becomes_a_registered_version(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """It waits for the archive, trains on what was known by then, registers, publishes, reports; a restart finds nothing
    left to do."""
    until = _archive(client)
    _ask(wire, until)
    with _running(settings):
        assert Registry(settings.trainer.registry).versions("delay") == ["1"]
        _progress(client, until)
        report = _reports(wire, 1)[0]
    assert (report.retrain_id, report.version, report.outcome) == ("r1", "2", "registered")
    assert (report.event_time_ms, report.trace_id) == (until, "a" * 32)
    assert report.metrics["log_loss"] < report.metrics["incumbent_log_loss"]
    record, made = Registry(settings.trainer.registry).load("delay", "2")
    assert (record.parent, record.cause, record.metrics["rows"]) == ("1", "r1", _ROWS)
    assert made.reference.columns["hour"].rows == round(_ROWS * CONTRACT.training.holdout)
    published = [ModelRecord.model_validate_json(value) for value in wire.read("models")]
    assert record in [p.version for p in published]
    with _running(settings):
        pass
    assert Registry(settings.trainer.registry).versions("delay") == ["1", "2"]
    assert len(_reports(wire, 1)) == 1


def test_a_crash_after_registration_leads_to_one_version(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """The version is there, the report is not: the next start reports it without training again."""
    until = _archive(client)
    _progress(client, until)
    Registry(settings.trainer.registry).register(CONTRACT, artifact(), Lineage(cause="r1"))
    _ask(wire, until)
    with _running(settings):
        report = _reports(wire, 1)[0]
    assert (report.outcome, report.version) == ("registered", "2")
    assert Registry(settings.trainer.registry).versions("delay") == ["1", "2"]


def test_too_few_rows_are_refused_and_not_tried_again(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """The reason is on record; the same request is not worked on a second time."""
    until = _archive(client, 300)
    _progress(client, until)
    _ask(wire, until)
    metrics = Metrics()
    with _running(settings, metrics):
        report = _reports(wire, 1)[0]
        _ask(wire, until, revision=3, request_id="r2")
        second = _reports(wire, 2)[1]
    assert (report.outcome, report.version) == ("refused", None)
    assert "at least 500" in report.detail
    assert second.retrain_id == "r2"
    assert metrics.value("driftline_trainings_total", model="delay", outcome="refused") == 2


def test_an_archive_that_stands_still_is_a_failure_with_its_reason(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """After the stated time, not for ever."""
    until = _archive(client, 10)
    _progress(client, until - 1)
    short = settings.model_copy(
        update={"trainer": settings.trainer.model_copy(update={"archive_timeout": 1_000})}
    )
    _ask(wire, until)
    with _running(short):
        report = _reports(wire, 1)[0]
    assert report.outcome == "failed"
    assert "is the archive process running" in report.detail


def _late_changes(client: Client, until: int) -> None:
    """What a snapshot must not be moved by: repeats, shadows, late labels, other models; and a revision that counts."""
    table, _, event_ms = rows(_ROWS, seed=3)
    row: dict[str, Any] = {n: v for n, v in feature_row(table, 0).items() if isinstance(v, float)}
    base = [_time(int(event_ms[0])), row, {"carrier": "AA"}, 0.9, 1.0, "ok", "", ""]
    client.insert(
        "prediction_log",
        [
            ["delay", "1", "stable", "p00000", *base, 0, 900_000, 0],
            ["delay", "2", "shadow", "p00001", *base, 1, 900_000, 0],
            ["other", "1", "stable", "p99999", *base, 0, 900_001, 0],
        ],
        column_names=_PREDICTIONS,
    )
    client.insert(
        "label_log",
        [
            ["delay", "p00002", 1.0, _time(until + 1), 9, "", 0, 900_000, 0],
            ["delay", "p00003", 1.0, _time(until), 1, "", 1, 900_001, 0],
            ["delay", "p00004", 1.0, _time(until), 0, "", 0, 900_002, 0],
            ["delay", "unknown", 1.0, _time(until), 0, "", 0, 900_003, 0],
        ],
        column_names=_LABELS,
    )


def test_a_snapshot_depends_on_the_request_alone(client: Client) -> None:
    """Values come back as they were logged, in a fixed order; what came later or twice changes nothing; a higher
    revision of a label, known by then, does."""
    until = _archive(client)
    first = take_snapshot(client, CONTRACT, until)
    table, labels, event_ms = rows(_ROWS, seed=3)
    np.testing.assert_array_equal(first.table["hour"], table["hour"])
    np.testing.assert_array_equal(first.table["wind.speed"], table["wind.speed"])
    assert first.table["carrier"].tolist() == table["carrier"].tolist()
    np.testing.assert_array_equal(first.labels, labels)
    np.testing.assert_array_equal(first.event_ms, event_ms)
    _late_changes(client, until)
    second = take_snapshot(client, CONTRACT, until)
    labels[3] = 1
    np.testing.assert_array_equal(second.labels, labels)
    assert len(second) == _ROWS
    assert second.scores[0] == 0.5
    early = take_snapshot(client, CONTRACT, int(event_ms[299]) + 3_600_000)
    assert len(early) == 300
    assert len(take_snapshot(client, CONTRACT, 0)) == 0
    assert archived_ms(client, 2) is None
    _progress(client, 77)
    assert (archived_ms(client, 2), archived_ms(client, 3)) == (77, None)
