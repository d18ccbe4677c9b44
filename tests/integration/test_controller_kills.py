"""kill -9 of the controller at every failpoint, and what its gates and alerts leave on the topics of a real Kafka."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.controller import service
from deploy.local.kafka import LocalKafka
from deploy.models import publish_records
from deploy.registry import Lineage, Registry
from schemas.contracts import ModelRecord, Rollout
from schemas.control import (
    Alert,
    AnyCommand,
    ApproveRequested,
    CanaryAnalysis,
    ControlTick,
    Decision,
    Deployment,
    DeployRequested,
    Measured,
    Outcome,
    Phase,
    RollbackRequested,
    ScorerReport,
)
from schemas.failpoints import EXIT_CODE
from schemas.measures import Measurement
from schemas.observability import Metrics
from schemas.rollout import Metric
from schemas.settings import ControllerSection, ControllerSettings, KafkaSettings
from schemas.verdicts import Evidence, State
from tests.support_deploy import CONTRACT, DAY_MS, Wire, artifact

pytestmark = pytest.mark.integration
P99 = Metric(name="p99", source="latency_p99", limit=100, alert=200, severity="page")
GATED = CONTRACT.model_copy(update={"rollout": Rollout(metrics=(P99,), labels_min=50)})
REVISIONS = 11


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> ControllerSettings:
    """Three versions, the second of medium risk, the third of low."""
    for version, risk in enumerate(("low", "medium", "low")):
        made = Registry(tmp_path / "registry").register(
            GATED, artifact(flip=version == 1), Lineage(risk=risk, cause="cli/ada")
        )
        assert made.version == str(version + 1)
    return ControllerSettings(
        kafka=KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, input_partitions=1),
        controller=ControllerSection(registry=tmp_path / "registry", api_port=0),
    )


@pytest.fixture
def wire(settings: ControllerSettings) -> Iterator[Wire]:
    """Topics made, contract and versions published."""
    made = Wire(settings.kafka)
    registry = Registry(settings.controller.registry)
    records = [ModelRecord(contract=GATED)]
    records += [ModelRecord(version=registry.record("delay", version)) for version in ("1", "2", "3")]
    publish_records(settings.kafka, records)
    yield made
    made.close()


def _command(kind: type[Any], request_id: str, at: int = 0, by: str = "api/ada", **changes: Any) -> Any:
    base = {
        "request_id": request_id,
        "model": "delay",
        "cause": "c",
        "event_time_ms": at,
        "expires_ms": 2**52,
    }
    return kind(**(base | {"issued_by": by} | changes))


def _p99(at: int, version: str, value: float, revision: int) -> Measured:
    found = Measurement(metric="p99", value=value, rows=900, from_ms=0, to_ms=at)
    return _command(
        Measured, f"m{at}", at, version=version, deployment_revision=revision, measurements=(found,)
    )


def _life() -> list[AnyCommand]:
    """A gate with its approvals, a canary with measurements, a promotion, a watch that rolls back, and a fallback."""
    analysis = CanaryAnalysis(
        model="delay", version="2", detector="judge", state=State.STABLE, evidence=Evidence(rows=60),
        event_time_ms=DAY_MS - 1,
    )  # fmt: skip
    later = analysis.model_copy(update={"evidence": Evidence(rows=120), "event_time_ms": 2 * DAY_MS - 1})
    return [
        _command(DeployRequested, "d1", version="1"),
        _command(DeployRequested, "d2", version="2"),
        _command(ApproveRequested, "a1", version="2"),
        _command(ApproveRequested, "a2", by="api/grace", version="2"),
        analysis,
        _p99(DAY_MS - 2, "2", 50, 4),
        ControlTick(event_time_ms=DAY_MS, source="policy/0"),
        later,
        _p99(2 * DAY_MS - 2, "2", 50, 5),
        ControlTick(event_time_ms=2 * DAY_MS, source="policy/0"),
        _p99(3 * DAY_MS, "2", 150, 6),
        _command(ScorerReport, "s1", 3 * DAY_MS, instance="scorer-0", golden={"1": False}),
        _command(RollbackRequested, "rb", 3 * DAY_MS, version="1"),
        _command(DeployRequested, "d3", 3 * DAY_MS, version="3", steps=()),
        _command(DeployRequested, "d1", version="1"),
        _command(DeployRequested, "d4", 3 * DAY_MS, version="2"),
    ]


def _start(settings: ControllerSettings, failpoint: str = "") -> subprocess.Popen[bytes]:
    environment = dict(os.environ) | {
        "DRIFTLINE_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "DRIFTLINE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "DRIFTLINE_KAFKA__INPUT_PARTITIONS": "1",
        "DRIFTLINE_CONTROLLER__REGISTRY": str(settings.controller.registry),
        "DRIFTLINE_CONTROLLER__API_PORT": "0",
    }
    if failpoint:
        environment["DRIFTLINE_FAILPOINT"] = failpoint
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.controller"], env=environment, stderr=subprocess.DEVNULL
    )


def _end(wire: Wire, settings: ControllerSettings) -> tuple[list[Any], list[Any], list[Any]]:
    """What stands on the topics once a controller has come to the end: revisions, facts, alerts."""
    child = _start(settings)
    try:
        wire.wait("deployments", lambda values: len(values) >= REVISIONS)
    finally:
        child.kill()
        child.wait(120)
    revisions = [json.loads(value) for value in wire.read("deployments")]
    for revision in revisions:
        # The digest of a fact covers when it was written.
        revision.pop("facts_head")
    facts = [Decision.model_validate_json(value) for value in wire.read("decisions")]
    alerts = [Alert.model_validate_json(value) for value in wire.read("alerts")]
    return revisions, [(f.decision_id, f.kind, f.sequence) for f in facts], [a.model_dump() for a in alerts]


def test_the_life_of_a_model(settings: ControllerSettings, wire: Wire) -> None:
    """Approval by somebody else, canary, promotion, a breach long after it, an unproven rollback, the fallback, a new
    version: each a revision, and each alert opened and taken back once."""
    wire.send("control", [("delay", message.model_dump_json().encode()) for message in _life()])
    raw, facts, alerts = _end(wire, settings)
    revisions = [Deployment.model_validate(revision | {"facts_head": ""}) for revision in raw]
    assert [(r.phase, r.weights) for r in revisions] == [
        (Phase.SUCCEEDED, {"1": 1.0}),
        (Phase.WAITING, {"1": 1.0}),
        (Phase.WAITING, {"1": 1.0}),
        (Phase.PROGRESSING, {"1": 0.95, "2": 0.05}),
        (Phase.PROGRESSING, {"1": 0.75, "2": 0.25}),
        (Phase.SUCCEEDED, {"2": 1.0}),
        (Phase.ROLLED_BACK, {"1": 1.0}),
        (Phase.ROLLED_BACK, {"1": 1.0}),
        (Phase.ROLLED_BACK, {}),
        (Phase.SUCCEEDED, {"3": 1.0}),
        (Phase.SUCCEEDED, {"3": 1.0}),
    ]
    assert [(a.request_id, a.outcome) for a in revisions[-1].answers] == [
        ("d1", Outcome.DONE), ("d2", Outcome.ACCEPTED), ("a1", Outcome.REFUSED), ("a2", Outcome.DONE),
        ("rb", Outcome.DONE), ("d3", Outcome.DONE), ("d4", Outcome.REFUSED),
    ]  # fmt: skip
    assert [sequence for _, _, sequence in facts] == list(range(1, len(facts) + 1))
    assert [(a["status"], a["cause"]) for a in alerts] == [
        ("trigger", "rolled-back"), ("trigger", "golden"), ("trigger", "fallback"), ("resolve", "golden"),
        ("resolve", "rolled-back"), ("resolve", "fallback"),
    ]  # fmt: skip


def _begin(settings: ControllerSettings, name: str) -> tuple[ControllerSettings, Wire]:
    """Topics of their own with the whole life on `control`, over the same registry."""
    prefix = f"{settings.kafka.topic_prefix}{name}-"
    own = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"topic_prefix": prefix})})
    wire = Wire(own.kafka)
    registry = Registry(settings.controller.registry)
    records = [ModelRecord(contract=GATED)]
    records += [ModelRecord(version=registry.record("delay", version)) for version in ("1", "2", "3")]
    publish_records(own.kafka, records)
    wire.send("control", [("delay", message.model_dump_json().encode()) for message in _life()])
    return own, wire


@pytest.mark.timeout(900)
def test_killed_at_every_failpoint_it_comes_to_the_same_end(settings: ControllerSettings) -> None:
    """The same revisions, facts and alerts, each once, as a controller that was never killed."""
    straight, wire = _begin(settings, "straight")
    expected = _end(wire, straight)
    wire.close()
    for failpoint in (
        "controller.decided:9",
        "controller.produced:1",
        "controller.produced:7",
        "controller.committed:4",
    ):
        own, wire = _begin(settings, failpoint.replace(":", "-"))
        assert _start(own, failpoint).wait(300) == EXIT_CODE
        assert _end(wire, own) == expected, failpoint
        wire.close()


def test_a_model_left_in_peace_costs_a_restart_nothing(
    settings: ControllerSettings, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many records of `control` comes a revision that differs in nothing but where to read on from."""
    monkeypatch.setattr(service, "CHECKPOINT_RECORDS", 20)
    wire.send("control", [("delay", _life()[0].model_dump_json().encode())])
    ticks = [ControlTick(event_time_ms=at, source="policy/0") for at in range(1, 60)]
    wire.send("control", [("delay", tick.model_dump_json().encode()) for tick in ticks])
    controller = service.Controller(settings, Metrics())
    controller.open()
    try:
        while controller.view.event_time_ms() != 59:
            controller.turn()
    finally:
        controller.close()
    first, *others = (Deployment.model_validate_json(value) for value in wire.read("deployments"))
    assert others
    last = others[-1]
    assert last.control_offsets[0] > 40
    kept = {
        "revision": first.revision,
        "control_offsets": first.control_offsets,
        "control_times": first.control_times,
    }
    assert last.model_copy(update=kept) == first
