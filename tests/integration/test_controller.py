"""The controller on a real Kafka: killed between any two messages it decides the same, and there is only ever one."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.children import free_port
from deploy.local.kafka import LocalKafka
from deploy.models import publish_records
from deploy.registry import Lineage, Registry
from schemas.contracts import ModelRecord
from schemas.control import (
    CanaryAnalysis,
    Command,
    ControlTick,
    Decision,
    Deployment,
    DeployRequested,
    Outcome,
    Phase,
    RollbackRequested,
    ScorerReport,
)
from schemas.settings import ControllerSection, ControllerSettings, KafkaSettings
from schemas.signing import Signer, Verifier
from schemas.verdicts import Evidence, State
from tests.support_deploy import CONTRACT, DAY_MS, Wire, artifact

pytestmark = pytest.mark.integration


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    """The one key everybody trusts."""
    return Signer.create(tmp_path / "key.pem")


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str, tmp_path: Path, signer: Signer) -> ControllerSettings:
    """Two signed versions registered; no HTTP API."""
    for flip in (False, True):
        Registry(tmp_path / "registry", signer).register(CONTRACT, artifact(flip=flip), Lineage())
    return ControllerSettings(
        kafka=KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, input_partitions=2),
        controller=ControllerSection(registry=tmp_path / "registry", api_port=0),
    )


@pytest.fixture
def wire(settings: ControllerSettings) -> Iterator[Wire]:
    """Topics made, contract and both versions published."""
    made = Wire(settings.kafka)
    registry = Registry(settings.controller.registry)
    records = [ModelRecord(contract=CONTRACT)]
    records += [ModelRecord(version=registry.record("delay", version)) for version in ("1", "2")]
    publish_records(settings.kafka, records)
    yield made
    made.close()


@contextmanager
def _controller(settings: ControllerSettings, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ready; killed with SIGKILL when the block ends, unless it has ended."""
    environment = dict(os.environ) | {
        "DRIFTLINE_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "DRIFTLINE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "DRIFTLINE_KAFKA__INPUT_PARTITIONS": str(settings.kafka.input_partitions),
        "DRIFTLINE_CONTROLLER__REGISTRY": str(settings.controller.registry),
        "DRIFTLINE_CONTROLLER__API_PORT": "0",
    }
    command = [sys.executable, "-m", "deploy.controller"]
    with subprocess.Popen(command, env=environment | more, stderr=subprocess.PIPE) as child:
        try:
            assert child.stderr is not None
            lines = iter(child.stderr.readline, b"")
            seen: list[bytes] = []
            for line in lines:
                seen.append(line)
                if b'"event": "ready"' in line:
                    break
            else:
                pytest.fail(f"the controller ended: {b''.join(seen).decode()}")
            yield child
        finally:
            if child.poll() is None:
                child.kill()
            child.communicate(timeout=120)


def _command(kind: type[Any], request_id: str, at: int = 0, **changes: Any) -> Any:
    base: dict[str, Any] = {
        "request_id": request_id,
        "model": "delay",
        "cause": "c",
        "event_time_ms": at,
        "expires_ms": 2**52,
        "issued_by": "p",
    }
    return kind(**(base | changes))


def _send(wire: Wire, *messages: Command | CanaryAnalysis | ControlTick) -> None:
    wire.send("control", [("delay", message.model_dump_json().encode()) for message in messages])


def _ticks(at: int) -> tuple[ControlTick, ControlTick]:
    return (
        ControlTick(event_time_ms=at, source="policy/0"),
        ControlTick(event_time_ms=at, source="policy/1"),
    )


def _analysis(at: int, rows: int, state: State = State.INCONCLUSIVE) -> CanaryAnalysis:
    return CanaryAnalysis(
        model="delay", version="2", detector="judge", state=state, evidence=Evidence(rows=rows), event_time_ms=at
    )  # fmt: skip


def _revisions(wire: Wire, count: int) -> list[Deployment]:
    """All revisions, once ``count`` are there."""
    found = wire.wait("deployments", lambda values: len(values) >= count)
    return [Deployment.model_validate_json(value) for value in found]


def _decisions(wire: Wire) -> list[Decision]:
    return [Decision.model_validate_json(value) for value in wire.read("decisions")]


def test_a_rollout_under_kill_9(settings: ControllerSettings, wire: Wire) -> None:
    """Killed after every step of a whole rollout, messages coming while it is away: one sequence of revisions, each
    request answered once, each fact recorded once, also those that make no revision."""
    report = _command(ScorerReport, "s1", instance="scorer-0", golden={"1": True})
    stages: list[tuple[int, list[Any]]] = [
        (1, [_command(DeployRequested, "d1", version="1")]),
        (2, [_command(DeployRequested, "d2", version="2"), report]),
        (3, [_analysis(DAY_MS - 1, 50), *_ticks(DAY_MS)]),
        (4, [_analysis(2 * DAY_MS - 1, 99), *_ticks(2 * DAY_MS)]),
        (5, [_analysis(3 * DAY_MS - 1, 100, State.STABLE), *_ticks(3 * DAY_MS)]),
        (6, [_command(DeployRequested, "d1", version="1"), _command(DeployRequested, "d3", version="7")]),
        (7, [_command(RollbackRequested, "rb", version="2")]),
    ]
    for count, messages in stages:
        _send(wire, *messages)
        with _controller(settings):
            _revisions(wire, count)
    with _controller(settings):
        _send(wire, _command(RollbackRequested, "late", version="2", at=5, expires_ms=3 * DAY_MS - 1))
        revisions = _revisions(wire, 8)
    assert [r.revision for r in revisions] == list(range(1, 9))
    assert [r.weights for r in revisions[:4]] == [
        {"1": 1.0},
        {"1": 0.95, "2": 0.05},
        {"1": 0.75, "2": 0.25},
        {"1": 0.75, "2": 0.25},
    ]
    assert [r.phase for r in revisions[3:]] == [
        Phase.PAUSED, Phase.SUCCEEDED, Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.ROLLED_BACK,
    ]  # fmt: skip
    assert revisions[-1].weights == {"1": 1.0}
    assert [(a.request_id, a.outcome) for a in revisions[-1].answers] == [
        ("d1", Outcome.DONE),
        ("d2", Outcome.ACCEPTED),
        ("d3", Outcome.REFUSED),
        ("rb", Outcome.DONE),
        # Time is remembered: no tick has come since the last start.
        ("late", Outcome.EXPIRED),
    ]
    decisions = _decisions(wire)
    assert [d.kind for d in decisions] == [
        "promoted", "canary-started", "rollback-proven", "step-passed", "paused", "promoted", "deploy-refused",
        "rolled-back", "rollback-expired",
    ]  # fmt: skip
    assert len({d.decision_id for d in decisions}) == len(decisions)


def test_a_fact_without_a_revision_is_recorded_once(settings: ControllerSettings, wire: Wire) -> None:
    """It is read again after every restart, until a revision moves the offsets."""
    _send(wire, _command(DeployRequested, "d1", version="1"))
    _send(wire, _command(ScorerReport, "s1", instance="scorer-0", golden={"1": True}))
    for _ in range(2):
        with _controller(settings):
            wire.wait("decisions", lambda found: len(found) >= 2)
    with _controller(settings):
        _send(wire, _command(DeployRequested, "d2", version="1"))
        _revisions(wire, 2)
    assert [d.kind for d in _decisions(wire)] == ["promoted", "rollback-proven", "deploy-refused"]


def test_a_second_controller_fences_the_first(settings: ControllerSettings, wire: Wire) -> None:
    """The first ends with status 3 at its next decision, which only the second one publishes."""
    with _controller(settings) as first:
        _send(wire, _command(DeployRequested, "d1", version="1"))
        _revisions(wire, 1)
        with _controller(settings) as second:
            _send(wire, _command(DeployRequested, "d2", version="2"))
            _revisions(wire, 2)
            assert first.wait(120) == 3
            assert second.poll() is None
            _send(wire, _command(RollbackRequested, "rb", version="2"))
            revisions = _revisions(wire, 3)
    assert [r.revision for r in revisions] == [1, 2, 3]
    assert [a.request_id for a in revisions[-1].answers] == ["d1", "d2", "rb"]


def test_the_api_asks_and_shows_and_a_stop_is_orderly(settings: ControllerSettings, wire: Wire) -> None:
    """A deploy over HTTP is a command on ``control`` whose answer the API shows; SIGTERM ends with status 0."""
    port = free_port()
    with (
        _controller(settings, DRIFTLINE_CONTROLLER__API_PORT=str(port)) as child,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8)) as api,
    ):
        asked = api.post("/v1/deployments/delay/deploy", json={"version": "1"})
        assert asked.is_success, asked.text
        (revision,) = _revisions(wire, 1)
        assert [a.outcome for a in revision.answers] == [Outcome.DONE]
        # The controller's view is set after its transaction; the next answered request is after that.
        api.post("/v1/deployments/delay/deploy", json={"version": "7"})
        _revisions(wire, 2)
        shown = api.get("/v1/deployments/delay")
        assert shown.json()["stable"] == "1"
        child.terminate()
        assert child.wait(120) == 0


def test_only_signed_commands_are_obeyed(
    settings: ControllerSettings, wire: Wire, signer: Signer, tmp_path: Path
) -> None:
    """A stranger's command is answered with a refusal and does not use up its id; decisions carry a signature."""
    public = base64.b64encode(signer.public).decode()
    deploy = _command(DeployRequested, "d1", version="1")
    stranger = Signer.create(tmp_path / "stranger.pem")
    trust = {
        "DRIFTLINE_SIGNING__TRUSTED": json.dumps([public]),
        "DRIFTLINE_SIGNING__KEY_FILE": str(tmp_path / "key.pem"),
    }
    with _controller(settings, **trust):
        _send(
            wire, deploy, stranger.sign(deploy.model_copy(update={"request_id": "d0"})), signer.sign(deploy)
        )
        revisions = _revisions(wire, 3)
    assert [a.outcome for a in revisions[-1].answers] == [Outcome.REFUSED, Outcome.REFUSED, Outcome.DONE]
    assert [r.weights for r in revisions] == [{}, {}, {"1": 1.0}]
    for decision in _decisions(wire):
        Verifier([public]).verify(decision)


def test_an_altered_version_gets_no_traffic(settings: ControllerSettings, wire: Wire) -> None:
    """One byte of the artifact differs from what was registered."""
    path = settings.controller.registry / "delay" / "2" / "model.onnx"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with _controller(settings):
        _send(
            wire, _command(DeployRequested, "d1", version="1"), _command(DeployRequested, "d2", version="2")
        )
        revisions = _revisions(wire, 2)
    assert [a.outcome for a in revisions[-1].answers] == [Outcome.DONE, Outcome.REFUSED]
    assert revisions[-1].weights == {"1": 1.0}
