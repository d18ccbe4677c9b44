"""What the page of a deployment draws: from facts or from revisions, in order, without repetition, bounded."""

from __future__ import annotations

from typing import Any

from deploy.controller.view import View
from deploy.http.history import POINTS_KEPT, History
from schemas.control import CanaryAnalysis, Decision, Deployment, Phase
from schemas.measures import MetricState, Standing
from schemas.regions import RegionTraffic
from schemas.verdicts import Evidence, State


def fact(revision: int | None, weights: dict[str, float] | None, kind: str = "step-passed") -> Decision:
    return Decision(
        decision_id=f"d{revision}", model="delay", kind=kind, actor="controller", deployment_revision=revision,
        event_time_ms=10 * (revision or 0), recorded_ms=0, weights=weights,
    )  # fmt: skip


def deployment(revision: int, weights: dict[str, float], **more: Any) -> Deployment:
    return Deployment(
        model="delay", revision=revision, phase=Phase.PROGRESSING, weights=weights, event_time_ms=10 * revision, **more
    )  # fmt: skip


def analysis(at: int, effect: float | None = 0.1, **more: Any) -> CanaryAnalysis:
    evidence = Evidence(effect=effect, rows=at, **more)
    return CanaryAnalysis(
        model="delay", version="2", detector="judge", state=State.STABLE, evidence=evidence, event_time_ms=at
    )


def test_facts_and_revisions_tell_one_story() -> None:
    """In whatever order they are read; a revision that moved no traffic is no point; what led to one is kept."""
    history = History()
    history.deployed(deployment(3, {"1": 0.75, "2": 0.25}))
    history.decided(fact(1, {"1": 1.0}, "promoted"))
    history.decided(fact(2, {"1": 0.95, "2": 0.05}, "canary-started"))
    history.deployed(deployment(2, {"1": 0.95, "2": 0.05}))
    history.deployed(deployment(4, {"1": 0.75, "2": 0.25}))
    history.decided(fact(None, None, "rollback-proven"))
    history.decided(fact(5, None, "alert-opened"))
    points = history.weights(100)
    assert [(p.revision, p.event_time_ms, p.kind) for p in points] == [
        (1, 10, "promoted"),
        (2, 20, "canary-started"),
        (3, 30, ""),
    ]
    assert [p.revision for p in history.weights(2)] == [2, 3]


def test_a_version_that_nobody_serves_is_a_point_too() -> None:
    """No weights at all: the fallback answers."""
    history = History()
    history.decided(fact(1, {"1": 1.0}))
    history.decided(fact(2, {}, "rolled-back"))
    assert [p.weights for p in history.weights(9)] == [{"1": 1.0}, {}]


def test_what_was_measured_is_kept_once() -> None:
    """The judge's word and each metric's standing, with the confidence sequence where there is one; read again in the next
    revision it is no second point."""
    history = History()
    history.analysed(analysis(5, interval=(-0.2, 0.4)))
    standing = MetricState(standing=Standing.PASSED, value=80.0, rows=50, interval=None, event_time_ms=6)
    for revision in (1, 2):
        history.deployed(
            deployment(
                revision,
                {"1": 1.0},
                candidate="2",
                metrics={"p99": standing},
                analysis=analysis(5, interval=(-0.2, 0.4)),
            )
        )
    points = history.analysis(100)
    assert [(p.metric, p.version, p.value, p.low, p.high, p.state, p.rows) for p in points] == [
        ("judge", "2", 0.1, -0.2, 0.4, "stable", 5),
        ("p99", "2", 80.0, None, None, "passed", 50),
    ]
    history.analysed(analysis(7, effect=None))
    assert history.analysis(1)[0].value is None


def test_regions_have_traffic_and_measurements_of_their_own() -> None:
    """What moved in one region is a point; what was measured there is told apart from the same elsewhere."""
    history = History()
    standing = MetricState(standing=Standing.PASSED, value=80.0, rows=50, event_time_ms=6)
    for revision, share in enumerate((0.5, 1.0, 1.0), 1):
        regions = (
            RegionTraffic(region="eu", weights={"1": 1 - share, "2": share}, since_ms=0),
            RegionTraffic(region="us", weights={"1": 1.0}),
        )
        steps = {"regions": regions, "steps": ((0.5, 1), (1.0, 1)) * 2, "step": 2, "candidate": "2"}
        measured = {"metrics": {"p99": standing}, "region_metrics": {"eu": {"p99": standing}}}
        history.deployed(deployment(revision, {"1": 1.0}, **steps, **measured))
    history.decided(fact(4, {"2": 1.0}, "promoted"))
    points = history.weights(9)
    assert [(p.revision, p.regions.get("eu")) for p in points] == [
        (1, {"1": 0.5, "2": 0.5}),
        (2, {"1": 0.0, "2": 1.0}),
        (4, None),
    ]
    assert [(p.metric, p.region) for p in history.analysis(9)] == [("p99", "us"), ("p99", "eu")]


def test_it_is_bounded() -> None:
    """However long a model lives, and however its versions are called."""
    history = History()
    for number in range(POINTS_KEPT + 50):
        history.decided(fact(number, {str(number): 1.0}))
        history.analysed(analysis(number).model_copy(update={"version": str(number)}))
    assert len(history.weights(10_000)) == len(history.analysis(10_000)) == POINTS_KEPT
    assert history.weights(1)[0].revision == POINTS_KEPT + 49
    assert len(history._seen) <= POINTS_KEPT


def test_the_view_has_one_history_a_model() -> None:
    """Measurements between two revisions are seen; a model never heard of has none, and asking makes none."""
    view = View()
    shown = deployment(1, {"1": 1.0})
    view.deployed(shown)
    moved = MetricState(standing=Standing.INCONCLUSIVE, value=1.0, rows=9, event_time_ms=11)
    view.measured(shown.model_copy(update={"metrics": {"p99": moved}}))
    assert [p.metric for p in view.analysis("delay")] == ["p99"]
    assert [p.weights for p in view.weights("delay")] == [{"1": 1.0}]
    assert view.weights("other") == view.analysis("other") == []
