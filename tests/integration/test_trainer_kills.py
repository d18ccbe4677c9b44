"""The trainer killed as by ``kill -9`` at every step: what is there in the end is what an undisturbed run leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from support_trainer import (
    CONTRACT,
    ROWS,
    archive,
    ask,
    database,
    make_settings,
    progress,
    reports,
    rows,
    running,
)

from deploy.local.children import PROJECT_ROOT
from deploy.local.kafka import LocalKafka
from deploy.local.warehouse import LocalWarehouse
from deploy.models import publish_records
from deploy.registry import Lineage, Registry
from deploy.training.runner import Runner
from schemas.contracts import ModelRecord
from schemas.control import Alert, RetrainRequested
from schemas.failpoints import EXIT_CODE
from schemas.settings import TrainerSettings
from tests.support_deploy import Wire, artifact

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

#: In the order in which a run passes them.
POINTS = (
    "taken-up", "attempt-noted", "snapshot-taken", "trained", "registered", "announced", "before-commit", "after-commit",
)  # fmt: skip


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


def _start(settings: TrainerSettings, failpoint: str = "") -> subprocess.Popen[str]:
    kafka, clickhouse, trainer = settings.kafka, settings.clickhouse, settings.trainer
    environment = {
        "DRIFTLINE_KAFKA__BOOTSTRAP": kafka.bootstrap,
        "DRIFTLINE_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
        "DRIFTLINE_KAFKA__INPUT_PARTITIONS": str(kafka.input_partitions),
        "DRIFTLINE_CLICKHOUSE__HOST": clickhouse.host,
        "DRIFTLINE_CLICKHOUSE__PORT": str(clickhouse.port),
        "DRIFTLINE_CLICKHOUSE__DATABASE": clickhouse.database,
        "DRIFTLINE_TRAINER__REGISTRY": str(trainer.registry),
        "DRIFTLINE_TRAINER__ATTEMPTS_MAX": "20",
        "DRIFTLINE_TRAINER__BACKOFF": "1",
        "DRIFTLINE_FAILPOINT": f"training.{failpoint}" if failpoint else "",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.training"],
        env={**os.environ, **environment},
        cwd=PROJECT_ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def _killed_at(settings: TrainerSettings, failpoint: str) -> None:
    process = _start(settings, failpoint)
    try:
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == EXIT_CODE, (failpoint, said[-3_000:])


def _undisturbed(settings: TrainerSettings) -> None:
    """Start, wait until it has read the topics, and end it: it works off what it found first."""
    process = _start(settings)
    try:
        assert process.stderr is not None
        while '"event": "ready"' not in (line := process.stderr.readline()):
            assert line, "it ended before it was ready"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3_000:]
    finally:
        process.kill()


def _expected(settings: TrainerSettings, request: RetrainRequested, directory: Path) -> str:
    """The digest of the version that a run makes that nobody disturbs, in a registry of its own."""
    registry = Registry(directory)
    registry.register(CONTRACT, artifact(flip=True), Lineage())
    alone = settings.model_copy(
        update={"trainer": settings.trainer.model_copy(update={"registry": directory})}
    )
    connect = lambda: clickhouse_connect.get_client(**settings.clickhouse.client())  # noqa: E731
    result = Runner(alone, registry, connect, threading.Event()).run(request, CONTRACT)
    assert result is not None and result.version is not None
    return result.version.sha256


def test_killed_at_every_step_one_version_and_one_report_are_left(
    settings: TrainerSettings, wire: Wire, client: Client, tmp_path: Path
) -> None:
    """One request, and a process that dies at each step in turn: the version is the very one of an undisturbed run, it is
    announced, it is reported once, and nothing is left to do."""
    until = archive(client)
    progress(client, until)
    request = ask(wire, until)
    for failpoint in POINTS:
        _killed_at(settings, failpoint)
    _undisturbed(settings)
    registry = Registry(settings.trainer.registry)
    assert registry.versions("delay") == ["1", "2"]
    assert [(r.outcome, r.version) for r in reports(wire, 1)] == [("registered", "2")]
    records = [ModelRecord.model_validate_json(value).version for value in wire.read("models")]
    announced = {(v.version, v.sha256) for v in records if v is not None}
    made = registry.record("delay", "2").sha256
    assert announced == {("1", registry.record("delay", "1").sha256), ("2", made)}
    assert made == _expected(settings, request, tmp_path / "alone")
    assert wire.read("alerts") == []
    assert list((settings.trainer.registry / ".training").iterdir()) == []


def test_killed_over_a_refusal_its_alert_is_raised_once(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """Report and alert are in one transaction: killed before its end there is neither, after it there are both."""
    _, labels, _ = rows(ROWS, seed=3)
    until = archive(client, labels=labels * 0)
    progress(client, until)
    ask(wire, until)
    for failpoint in ("before-commit", "before-commit", "after-commit"):
        assert wire.read("alerts") == []
        _killed_at(settings, failpoint)
    _undisturbed(settings)
    [report] = reports(wire, 1)
    [alert] = [Alert.model_validate_json(value) for value in wire.read("alerts")]
    assert report.detail.startswith("one-class")
    assert report.detail in alert.summary


def test_a_training_that_kills_its_process_is_given_up(
    settings: TrainerSettings, wire: Wire, client: Client
) -> None:
    """Attempts are counted before they begin, so the count outlives the process; the last start reports without trying."""
    until = archive(client)
    progress(client, until)
    ask(wire, until)
    for _ in range(20):
        journal = settings.trainer.registry / ".training"
        if journal.is_dir() and '"begun": 3' in "".join(f.read_text() for f in journal.glob("*.json")):
            break
        _killed_at(settings, "snapshot-taken")
    with running(settings):
        report = reports(wire, 1)[0]
    assert (report.outcome, report.version) == ("failed", None)
    assert report.detail == "given up after 3 attempts: 3 died with the process"
