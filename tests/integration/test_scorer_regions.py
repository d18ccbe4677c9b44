"""Two scorers of different regions on one real broker: each obeys its own region, a rollback is obeyed by both."""

from __future__ import annotations

from pathlib import Path

import pytest
from support_scorer import deploy, requests, running, scorer_settings, wired

from deploy.local.kafka import LocalKafka
from schemas.control import Phase, RollbackRequested
from schemas.events import PredictionMade, Score
from schemas.observability import Metrics
from schemas.regions import RegionTraffic
from schemas.settings import ScorerSettings
from tests.support_deploy import Wire

pytestmark = pytest.mark.integration

EU = RegionTraffic(region="eu", weights={"2": 1.0}, shadow=("2", "1"), since_ms=0)
US = RegionTraffic(region="us", weights={"1": 1.0})


def _of_region(settings: ScorerSettings, region: str) -> ScorerSettings:
    changes = {"instance": f"scorer-{region}", "region": region}
    return settings.model_copy(update={"scorer": settings.scorer.model_copy(update=changes)})


def _answered(wire: Wire, first: int, revision: int = 1) -> tuple[int, dict[str, set[str]]]:
    """Ask until scorers of both regions have answered by ``revision`` or a later one: the next free number, and by region
    the versions that they did it with."""
    for start in range(first, first + 10_000, 100):
        wire.send("scoring-requests", requests(start, 100), spread=True)
        scores = [
            Score.model_validate_json(v)
            for v in wire.wait("scores", lambda found, n=start: len(found) >= n + 100)
        ]
        asked = [score for score in scores if int(score.request_id[1:]) >= first]
        newest = {score.request_id for score in asked if score.revision >= revision}
        predictions = [PredictionMade.model_validate_json(v) for v in wire.read("predictions")]
        found: dict[str, set[str]] = {}
        for one in predictions:
            if one.prediction_id in newest and one.role != "shadow":
                found.setdefault(one.region or "", set()).add(one.version)
        if set(found) == {"eu", "us"}:
            return start + 100, found
    raise AssertionError(f"only scorers of {sorted(found)} answered")


def test_each_scorer_obeys_its_region_and_every_one_a_rollback(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """The candidate has all of eu, and us its turn to come: no answer of us is the candidate's. A rollback request is
    obeyed in both, and so is a rollout that names neither."""
    settings = scorer_settings(kafka.bootstrap, topic_prefix, tmp_path / "registry")
    wire = wired(settings)
    deploy(wire, 1)
    metrics = Metrics()
    rollout = {"phase": Phase.PROGRESSING, "candidate": "2", "steps": ((1.0, 1), (1.0, 1))}
    with running(_of_region(settings, "eu")), running(_of_region(settings, "us"), metrics):
        asked, versions = _answered(wire, 0)
        assert versions == {"eu": {"1"}, "us": {"1"}}
        deploy(wire, 2, regions=(EU, US), **rollout)
        asked, versions = _answered(wire, asked, 2)
        assert versions == {"eu": {"2"}, "us": {"1"}}
        assert metrics.value("driftline_region_unlisted", model="delay") == 0
        command = RollbackRequested(
            request_id="rb", model="delay", version="2", deployment_revision=2, cause="c", event_time_ms=0,
            expires_ms=2**52, issued_by="policy",
        )  # fmt: skip
        wire.send("control", [("delay", command.model_dump_json().encode())])
        wire.wait("control", lambda found: sum(b'"tripped":["2"]' in value for value in found) == 2)
        asked, versions = _answered(wire, asked, 2)
        assert versions == {"eu": {"1"}, "us": {"1"}}
        asia = RegionTraffic(region="asia", weights={"2": 1.0}, since_ms=0)
        deploy(wire, 3, regions=(asia,), entered=3, **(rollout | {"steps": ((1.0, 1),)}))
        _, versions = _answered(wire, asked, 3)
        assert versions == {"eu": {"1"}, "us": {"1"}}
        assert metrics.value("driftline_region_unlisted", model="delay") == 1
    shadows = [
        p for p in map(PredictionMade.model_validate_json, wire.read("predictions")) if p.role == "shadow"
    ]
    assert {(p.region, p.version) for p in shadows} == {("eu", "1")}
    wire.close()
