"""The trainer between a real Kafka and a real ClickHouse engine: a request in, a version or a reason out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clickhouse_connect.driver.client import Client
from support_trainer import (
    CONTRACT,
    DAY_MS,
    LABELS,
    ROWS,
    archive,
    ask,
    at_ms,
    database,
    make_settings,
    progress,
    reports,
    rows,
    running,
    with_training,
)

from deploy.local.kafka import LocalKafka
from deploy.local.warehouse import LocalWarehouse
from deploy.models import publish_records
from deploy.registry import Lineage, Registry
from schemas.contracts import ModelRecord
from schemas.control import COMMANDS, Alert, ControlTick, Deployment, Phase, RetrainRequested
from schemas.observability import Metrics
from schemas.settings import TrainerCommand, TrainerSettings
from tests.support_deploy import Wire, artifact

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(
    kafka: LocalKafka, warehouse: LocalWarehouse, topic_prefix: str, unique_name: str, tmp_path: Path
) -> TrainerSettings:
    """One registered version, a database of the test's own."""
    return make_settings(kafka, warehouse, topic_prefix, unique_name, tmp_path / "registry")


@pytest.fixture
def client(settings: TrainerSettings) -> Iterator[Client]:
    """The migrated, empty database."""
    with database(settings) as made:
        yield made


@pytest.fixture
def wire(settings: TrainerSettings) -> Iterator[Wire]:
    """The topics, with the contract and the version on them."""
    made = Wire(settings.kafka)
    version = Registry(settings.trainer.registry).record("delay", "1")
    publish_records(settings.kafka, [ModelRecord(contract=CONTRACT), ModelRecord(version=version)])
    yield made
    made.close()


def test_a_request_becomes_a_registered_version(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """It waits for the archive, trains on what was known by then, registers, publishes, reports; a restart finds nothing
    left to do."""
    until = archive(client)
    ask(wire, until)
    with running(settings):
        assert Registry(settings.trainer.registry).versions("delay") == ["1"]
        progress(client, until)
        report = reports(wire, 1)[0]
    assert (report.retrain_id, report.version, report.outcome) == ("r1", "2", "registered")
    assert (report.event_time_ms, report.trace_id) == (until, "a" * 32)
    assert report.metrics["log_loss"] < report.metrics["incumbent_log_loss"]
    record, made = Registry(settings.trainer.registry).load("delay", "2")
    assert (record.parent, record.cause, record.metrics["rows"]) == ("1", "r1", ROWS)
    assert made.reference.columns["hour"].rows == round(ROWS * CONTRACT.training.holdout)
    origin, judged = (json.loads(made.notes[name]) for name in ("snapshot.json", "training.json"))
    assert (origin["content"], origin["rows"]) == (record.snapshot, ROWS)
    assert (origin["backed_off_ms"], origin["backed_off_by"]) == (3_600_000, "measured")
    assert judged["against_incumbent"]["verdict"] == "better"
    published = [ModelRecord.model_validate_json(value) for value in wire.read("models")]
    assert record in [p.version for p in published]
    with running(settings):
        pass
    assert Registry(settings.trainer.registry).versions("delay") == ["1", "2"]
    assert len(reports(wire, 1)) == 1


def test_a_crash_after_registration_leads_to_one_version(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """The version is there, the report is not: the next start reports it without training again."""
    until = archive(client)
    progress(client, until)
    Registry(settings.trainer.registry).register(CONTRACT, artifact(), Lineage(cause="r1"))
    ask(wire, until)
    with running(settings):
        report = reports(wire, 1)[0]
    assert (report.outcome, report.version) == ("registered", "2")
    assert Registry(settings.trainer.registry).versions("delay") == ["1", "2"]


def test_too_few_rows_are_refused_and_not_tried_again(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """The reason is on record; the same request is not worked on a second time."""
    until = archive(client, 300)
    progress(client, until)
    ask(wire, until)
    metrics = Metrics()
    with running(settings, metrics):
        report = reports(wire, 1)[0]
        ask(wire, until, revision=3, request_id="r2")
        second = reports(wire, 2)[1]
    assert (report.outcome, report.version) == ("refused", None)
    assert "at least 500" in report.detail
    assert second.retrain_id == "r2"
    assert metrics.value("driftline_trainings_total", model="delay", outcome="refused") == 2


def test_an_archive_that_stands_still_is_a_failure_with_its_reason(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """After the stated time, not for ever."""
    until = archive(client, 10)
    progress(client, until - 1)
    short = settings.model_copy(
        update={"trainer": settings.trainer.model_copy(update={"archive_timeout": 1_000})}
    )
    ask(wire, until)
    with running(short):
        report = reports(wire, 1)[0]
    assert report.outcome == "failed"
    assert "does who writes it run" in report.detail


def _alerts(wire: Wire, count: int) -> list[Alert]:
    return [Alert.model_validate_json(v) for v in wire.wait("alerts", lambda found: len(found) >= count)]


def test_a_poisoned_snapshot_is_an_incident_until_a_training_works(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """The alert names the check; once the labels are corrected, a person's request succeeds and resolves it."""
    _, labels, _ = rows(ROWS, seed=3)
    until = archive(
        client, labels=np.where(np.arange(ROWS) >= 1_600, 1 - labels, labels), scores=0.2 + 0.5 * labels
    )
    progress(client, until + DAY_MS)
    ask(wire, until)
    with running(settings):
        report = reports(wire, 1)[0]
        assert (report.outcome, report.version) == ("refused", None)
        corrected = [
            ["delay", f"p{at:05}", float(labels[at]), at_ms(until + 1), 1, "", at % 2, 500_000 + at, 0]
            for at in range(1_600, ROWS)
        ]
        client.insert("label_log", corrected, column_names=LABELS)
        ask(wire, until + 3_600_000, 3, "r2", "api/ann")
        assert reports(wire, 2)[1].version == "2"
        raised, resolved = _alerts(wire, 2)
    assert report.detail.startswith(
        "labels-against-scores: labels run against the scores of version 1 in part 5"
    )
    assert (raised.status, resolved.status) == ("trigger", "resolve")
    assert raised.dedup_key == resolved.dedup_key == "delay/training"
    assert report.detail in raised.summary
    assert Registry(settings.trainer.registry).versions("delay") == ["1", "2"]


def test_a_candidate_that_is_not_better_is_registered_and_not_handed_over(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """The reason is in the report; a machine that asks again at once is put off; neither is an incident."""
    table, _, _ = rows(ROWS, seed=3)
    chance = 0.1 + 0.5 * (table["hour"] > 16) + 0.3 * (table["carrier"] == "B6")
    until = archive(client, scores=chance)
    progress(client, until + DAY_MS)
    ask(wire, until)
    with running(settings):
        report = reports(wire, 1)[0]
        ask(wire, until + 3_600_000, 3, "r2")
        soon = reports(wire, 2)[1]
    assert (report.outcome, report.version) == ("refused", "2")
    assert report.detail.startswith(
        "not-better: registered as 2, not handed over: against version 1: log loss"
    )
    assert (soon.outcome, soon.version) == ("refused", None)
    assert soon.detail.startswith("too-soon: the last training was 3600000 ms of event time before")
    assert wire.read("alerts") == []
    published = [ModelRecord.model_validate_json(value).version for value in wire.read("models")]
    assert [version.version for version in published if version is not None] == ["1", "2"]


def _command(settings: TrainerSettings, tmp_path: Path, body: str) -> TrainerSettings:
    script = tmp_path / "fit.py"
    script.write_text(body)
    command = TrainerCommand(argv=(sys.executable, str(script)))
    return settings.model_copy(
        update={"trainer": settings.trainer.model_copy(update={"commands": {"mine": command}})}
    )


def test_what_may_come_right_is_tried_again_and_not_for_ever(
    settings: TrainerSettings, wire: Wire, client: Client, tmp_path: Path
) -> None:
    """A command that always fails is run as often as the settings say, with a growing wait, and is then an incident with
    its standard error; a restart does not begin anew."""
    counted = tmp_path / "runs"
    body = f"import sys; open({str(counted)!r}, 'a').write('x'); sys.exit('the licence has run out')"
    until = archive(client)
    progress(client, until)
    contract = with_training(trainer="command", options={"command": "mine"})
    publish_records(settings.kafka, [ModelRecord(contract=contract)])
    ask(wire, until)
    flaky = _command(settings, tmp_path, body)
    with running(flaky):
        report = reports(wire, 1)[0]
        alert = _alerts(wire, 1)[0]
    with running(flaky):
        pass
    assert (report.outcome, counted.read_text()) == ("failed", "xxx")
    assert report.detail.startswith(
        "given up after 3 attempts: TrainerCommandError: trainer command mine ended with status 1"
    )
    assert "the licence has run out" in alert.summary
    assert len(reports(wire, 1)) == 1
    assert list((settings.trainer.registry / ".training").iterdir()) == []


def test_the_schedule_asks_by_event_time_and_once(settings: TrainerSettings, wire: Wire) -> None:
    """When every policy task has reached the time; a restart before the controller's answer does not ask again."""
    publish_records(settings.kafka, [ModelRecord(contract=with_training(every=30 * DAY_MS))])
    steady = Deployment(model="delay", revision=1, phase=Phase.STEADY, stable="1", weights={"1": 1.0})
    wire.send("deployments", [("delay", steady.model_dump_json().encode())])

    def requests(values: list[bytes]) -> list[RetrainRequested]:
        return [c for value in values if isinstance(c := COMMANDS.validate_json(value), RetrainRequested)]

    with running(settings):
        for source in ("policy/0", "policy/1"):
            assert requests(wire.read("control")) == []
            tick = ControlTick(event_time_ms=40 * DAY_MS, source=source)
            wire.send("control", [("delay", tick.model_dump_json().encode())])
        found = requests(wire.wait("control", lambda values: bool(requests(values))))
    with running(settings):
        pass
    assert requests(wire.read("control")) == found
    assert [(r.version, r.cause, r.issued_by, r.event_time_ms) for r in found] == [
        ("1", "schedule", "trainer", 40 * DAY_MS)
    ]
