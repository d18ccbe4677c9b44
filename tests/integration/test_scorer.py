"""The scorer on a real Kafka: one answer a request under kill -9, and off a bad version within a second."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support_scorer import deploy, requests, running, scorer_settings, wired
from support_streams import Worker

from deploy.local.kafka import LocalKafka
from deploy.models import publish_records
from deploy.process import wall_ms
from deploy.registry import Lineage, Registry
from schemas.contracts import ModelRecord
from schemas.control import COMMANDS, Answer, Outcome, Phase, RollbackRequested, ScorerReport
from schemas.events import PredictionMade, Score
from schemas.observability import Metrics
from schemas.settings import ScorerSettings, SigningSettings
from schemas.signing import Signer
from tests.support_deploy import CONTRACT, Wire, artifact

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> ScorerSettings:
    """A deployment of its own on the shared broker."""
    return scorer_settings(kafka.bootstrap, topic_prefix, tmp_path / "registry")


@pytest.fixture
def wire(settings: ScorerSettings) -> Iterator[Wire]:
    """Its topics, with contract and versions published."""
    made = wired(settings)
    yield made
    made.close()


@contextmanager
def _process(settings: ScorerSettings, failpoint: str = "", **more: str) -> Iterator[Worker]:
    environment = {
        "DRIFTLINE_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "DRIFTLINE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "DRIFTLINE_KAFKA__INPUT_PARTITIONS": str(settings.kafka.input_partitions),
        "DRIFTLINE_KAFKA__SESSION_TIMEOUT": "6s",
        "DRIFTLINE_SCORER__REGISTRY": str(settings.scorer.registry),
        "DRIFTLINE_SCORER__PROVIDER": "cpu",
        "DRIFTLINE_SCORER__BATCH_ROWS_MAX": "64",
        "DRIFTLINE_FAILPOINT": failpoint,
    }
    child = Worker(["-m", "deploy.scoring"], environment | more)
    try:
        yield child
    finally:
        child.kill()


def test_one_answer_a_request_under_kill_9(settings: ScorerSettings, wire: Wire) -> None:
    """Killed twice in the middle of its work and started again: every request has one score and one prediction."""
    total = 30_000
    deploy(wire, 1)
    wire.send("scoring-requests", requests(0, total), spread=True)
    for enough in (300, 6_000):
        with _process(settings) as child:
            wire.wait("scores", lambda found, enough=enough: len(found) >= enough)
            child.kill()
    with _process(settings) as child:
        child.wait_for("ready")
        wire.wait("scores", lambda found: len(found) >= total)
        assert child.terminate() == 0
    scores = [Score.model_validate_json(value) for value in wire.read("scores")]
    predictions = [PredictionMade.model_validate_json(value) for value in wire.read("predictions")]
    wanted = {f"q{at}": 1 for at in range(total)}
    assert Counter(s.request_id for s in scores) == wanted
    assert Counter(p.prediction_id for p in predictions) == wanted
    assert {s.version for s in scores} == {"1"}


POINTS = (
    "gathered:3",
    "scored:3",
    "begun:2",
    "produced:2",
    "before-commit:2",
    "after-commit:2",
    "swapped",
    "tripped",
)


def test_killed_at_every_failpoint_each_request_is_answered_once(
    settings: ScorerSettings, wire: Wire
) -> None:
    """Each scorer takes over from its predecessor's death and dies at the next point; the end is the same as without."""
    deploy(wire, 1)
    sent = 0
    for at, point in enumerate(POINTS):
        with _process(settings, f"scorer.{point}") as child:
            child.wait_for("ready")
            wire.send("scoring-requests", requests(sent, 600), spread=True)
            sent += 600
            if point == "swapped":
                deploy(
                    wire,
                    2,
                    phase=Phase.PROGRESSING,
                    candidate="2",
                    weights={"1": 0.5, "2": 0.5},
                    shadow=("1", "2"),
                )
            if point == "tripped":
                wire.send("control", [("delay", _rollback("rb", "2", 2).model_dump_json().encode())])
            assert child.wait() == 137, f"{at} {point}: {''.join(child.log[-20:])}"
    with _process(settings) as child:
        child.wait_for("ready")
        wire.wait("control", lambda found: any(b'"tripped":["2"]' in value for value in found))
        wire.send("scoring-requests", requests(sent, 600), spread=True)
        sent += 600
        wire.wait("scores", lambda found: len(found) >= sent)
        assert child.terminate() == 0
    scores = [Score.model_validate_json(value) for value in wire.read("scores")]
    answered = [p for p in _predictions(wire) if p.role != "shadow"]
    wanted = {f"q{at}": 1 for at in range(sent)}
    assert Counter(s.request_id for s in scores) == wanted
    assert Counter(p.prediction_id for p in answered) == wanted
    assert {s.version for s in scores if int(s.request_id[1:]) >= sent - 600} == {"1"}, (
        "the trip outlived its death"
    )


def _predictions(wire: Wire) -> list[PredictionMade]:
    return [PredictionMade.model_validate_json(value) for value in wire.read("predictions")]


def _rollback(request_id: str, version: str, revision: int) -> RollbackRequested:
    return RollbackRequested(
        request_id=request_id, model="delay", version=version, deployment_revision=revision, cause="c",
        event_time_ms=0, expires_ms=2**52, issued_by="policy",
    )  # fmt: skip


def test_shadows_of_a_killed_scorer_are_written_once_or_not_at_all(
    settings: ScorerSettings, wire: Wire
) -> None:
    """Dead between scoring a shadow and writing it: no answer is missing or doubled, no shadow is doubled."""
    deploy(wire, 1, shadow=("2",))
    with _process(settings, "scorer.shadow-scored:3") as child:
        child.wait_for("ready")
        wire.send("scoring-requests", requests(0, 600), spread=True)
        assert child.wait() == 137
    with _process(settings) as child:
        child.wait_for("ready")
        wire.send("scoring-requests", requests(600, 600), spread=True)
        wire.wait("scores", lambda found: len(found) >= 1_200)
        wire.wait("predictions", lambda found: sum(b'"q11' in v and b'"shadow"' in v for v in found) >= 100)
        assert child.terminate() == 0
    predictions = _predictions(wire)
    assert Counter(p.prediction_id for p in predictions if p.role == "stable") == {
        f"q{at}": 1 for at in range(1_200)
    }
    shadows = Counter(p.prediction_id for p in predictions if p.role == "shadow")
    assert set(shadows.values()) == {1}
    assert {f"q{at}" for at in range(600, 1_200)} <= set(shadows)


def test_off_a_bad_version_within_a_second(settings: ScorerSettings, wire: Wire) -> None:
    """From the request's Kafka timestamp to the last answer of the version; the answer keeps it off; the stable
    version is proven unchanged, and a restart does not fall for the old request."""
    deploy(wire, 1)
    deploy(wire, 2, phase=Phase.PROGRESSING, candidate="2", weights={"1": 0.5, "2": 0.5})
    command = _rollback("rb", "2", 2)
    metrics = Metrics()
    with running(settings, metrics):
        wire.send("scoring-requests", requests(0, 200), spread=True)
        wire.wait("scores", lambda found: len(found) >= 200)
        sent_ms = wall_ms()
        wire.send("control", [("delay", command.model_dump_json().encode())])
        wire.wait("control", lambda found: any(b'"tripped":["2"]' in value for value in found))
        tripped_ms = wall_ms() - sent_ms
        wire.send("scoring-requests", requests(200, 200), spread=True)
        scores = [Score.model_validate_json(v) for v in wire.wait("scores", lambda found: len(found) >= 400)]
        assert {s.version for s in scores[:0]} | {
            s.version for s in scores if int(s.request_id[1:]) < 200
        } == {"1", "2"}
        assert {s.version for s in scores if int(s.request_id[1:]) >= 200} == {"1"}
        assert tripped_ms < 1_000
        assert metrics.value("driftline_trips_total", model="delay", version="2") == 1
        answer = Answer(request_id="rb", outcome=Outcome.DONE, control_partition=0, control_offset=0)
        deploy(wire, 3, phase=Phase.ROLLED_BACK, tripped=("2",), answers=(answer,), control_offsets={0: 1})
        facts = [
            COMMANDS.validate_json(v)
            for v in wire.wait("control", lambda found: any(b'"golden":{"1":' in value for value in found))
        ]
    assert [f.golden for f in facts if isinstance(f, ScorerReport) and f.golden] == [{"1": True}]
    deploy(wire, 4, phase=Phase.PROGRESSING, candidate="2", weights={"2": 1.0}, control_offsets={0: 1})
    with running(settings):
        wire.send("scoring-requests", requests(400, 50), spread=True)
        scores = [Score.model_validate_json(v) for v in wire.wait("scores", lambda found: len(found) >= 450)]
    assert {s.version for s in scores if int(s.request_id[1:]) >= 400} == {"2"}


def test_an_unsigned_rollback_request_is_not_obeyed(
    settings: ScorerSettings, wire: Wire, tmp_path: Path
) -> None:
    """With trusted keys named, a request by nobody trips nothing, and one by a known key trips; that nobody answers it
    is exported, and the version stays off."""
    import base64

    signer = Signer.create(tmp_path / "key.pem")
    trusting = settings.model_copy(
        update={
            "signing": SigningSettings(trusted=(base64.b64encode(signer.public).decode(),)),
            "scorer": settings.scorer.model_copy(update={"trip_answer_timeout": 200}),
        }
    )
    for path in (settings.scorer.registry / "delay").iterdir():
        record = signer.sign_bytes((path / "manifest.json").read_bytes())
        (path / "signature.json").write_text(json.dumps({"signature": record, "key_id": signer.key_id}))
    deploy(wire, 1)
    command = RollbackRequested(
        request_id="rb",
        model="delay",
        version="1",
        cause="c",
        event_time_ms=0,
        expires_ms=2**52,
        issued_by="policy",
    )
    metrics = Metrics()
    with running(trusting, metrics):
        wire.send("control", [("delay", command.model_dump_json().encode())])
        signed = signer.sign(command.model_copy(update={"request_id": "rb-2"}))
        wire.send("control", [("delay", signed.model_dump_json().encode())])
        wire.wait("control", lambda found: any(b'"tripped":["1"]' in value for value in found))
        wire.wait("control", lambda _: metrics.value("driftline_trip_unanswered", model="delay") == 1)
        wire.send("scoring-requests", requests(0, 20), spread=True)
        scores = [Score.model_validate_json(v) for v in wire.wait("scores", lambda found: len(found) >= 20)]
    assert metrics.value("driftline_errors_total", where="signature") == 1
    assert metrics.value("driftline_trips_total", model="delay", version="1") == 1
    assert {s.status for s in scores} == {"fallback"}


def test_two_scorers_share_the_requests_and_one_leaves(settings: ScorerSettings, wire: Wire) -> None:
    """A second instance joins, the first one ends: still one answer a request."""
    other = settings.model_copy(
        update={"scorer": settings.scorer.model_copy(update={"instance": "scorer-1"})}
    )
    deploy(wire, 1)
    with running(other):
        with running(settings):
            wire.send("scoring-requests", requests(0, 2_000), spread=True)
            wire.wait("scores", lambda found: len(found) >= 500)
        wire.send("scoring-requests", requests(2_000, 1_000), spread=True)
        wire.wait("scores", lambda found: len(found) >= 3_000)
    identities = Counter(Score.model_validate_json(value).request_id for value in wire.read("scores"))
    assert identities == {f"q{at}": 1 for at in range(3_000)}


def test_a_version_that_comes_late_is_served_once_it_is_there(settings: ScorerSettings, wire: Wire) -> None:
    """Until then the fallback answers and the controller is told why; no restart is needed."""
    deploy(wire, 1, stable="3", weights={"3": 1.0})
    with running(settings):
        wire.send("scoring-requests", requests(0, 20), spread=True)
        early = [Score.model_validate_json(v) for v in wire.wait("scores", lambda found: len(found) >= 20)]
        told = wire.wait("control", lambda found: any(b'"failed":{"3":' in value for value in found))
        record = Registry(settings.scorer.registry).register(CONTRACT, artifact(), Lineage())
        publish_records(settings.kafka, [ModelRecord(version=record)])
        answered: list[Score] = []
        for first in range(100, 2_000, 20):
            wire.send("scoring-requests", requests(first, 20), spread=True)
            count = 40 + first - 100
            answered = [
                Score.model_validate_json(v) for v in wire.wait("scores", lambda f, c=count: len(f) >= c)
            ]
            if answered[-1].status == "ok":
                break
    assert {s.status for s in early} == {"fallback"}
    assert len(told) == 1
    assert answered[-1].version == "3"
