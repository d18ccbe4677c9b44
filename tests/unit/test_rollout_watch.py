"""After the promotion the watch goes on: harm at any time, a way back to what was healthy, and never onto what is not."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.contracts import CanaryStep
from schemas.control import (
    DeployRequested,
    Outcome,
    OverrideRequested,
    Phase,
    PromoteRequested,
    RollbackRequested,
    Severity,
)
from schemas.rollout import Metric
from tests.support_rollout import DAY, Play, rollout_of, started, value

HOUR = 3_600_000
P99 = Metric(name="p99", source="latency_p99", limit=100)
CTR = Metric(name="ctr", source="business", compare="change", alert=-0.1, severity="page")


def promoted(*metrics: Metric, **changes: Any) -> Play:
    """v2 stable since day 1, v1 before it, with its metrics measured beside v1's."""
    steps = (CanaryStep(weight=0.5, bake=DAY),)
    play = started(rollout_of(steps=steps, labels_min=0, unproven="promote", metrics=metrics, **changes))
    play.measure(DAY, *(value(m.name, DAY, 50, reference=50, reference_rows=1_000) for m in metrics))
    play.tick(DAY)
    assert play.now.stable == "2"
    return play


@pytest.mark.parametrize("days", [2, 200])
def test_a_breach_rolls_back_at_any_time_of_a_life(days: int) -> None:
    """A day after the promotion as half a year later."""
    play = promoted(P99)
    play.measure(days * DAY, value("p99", days * DAY, 300))
    assert (play.now.stable, play.now.phase, play.now.weights) == ("1", Phase.ROLLED_BACK, {"1": 1.0})
    assert play.now.effective_ms == 0
    assert play.facts[-1].because[0].detector == "metric/p99"


@pytest.mark.parametrize(("failures", "stable"), [(1, "2"), (2, "1")])
def test_failures_long_ago_are_not_held_against_a_version(failures: int, stable: str) -> None:
    """Only failures in a row count in the watch."""
    play = promoted(P99.model_copy(update={"failures_max": 1}))
    for day in range(2, 10, 2):
        play.measure(day * DAY, value("p99", day * DAY, 300))
        if failures == 2:
            play.measure(day * DAY + HOUR, value("p99", day * DAY + HOUR, 300))
            break
        play.measure((day + 1) * DAY, value("p99", (day + 1) * DAY, 50))
    assert play.now.stable == stable


def test_a_breach_without_a_way_back_pages_once_and_keeps_answering() -> None:
    """A slow model is better than none; the page ends when the version does."""
    play = promoted(P99)
    play.altered["1"] = play.unfit["1"] = "its digest differs"
    for day in (2, 3):
        play.measure(day * DAY, value("p99", day * DAY, 300))
    assert play.now.weights == {"2": 1.0}
    assert [(alert.status, alert.severity) for alert in play.alerts] == [("trigger", Severity.PAGE)]
    play.measure(4 * DAY - HOUR, value("p99", 4 * DAY - HOUR, 50))
    assert play.alerts[-1].status == "resolve"
    play.measure(4 * DAY, value("p99", 4 * DAY, 300))
    assert play.alerts[-1].status == "trigger"
    play.ask(DeployRequested, 4 * DAY, version="3", steps=())
    assert play.alerts[-1].status == "resolve"


@pytest.mark.parametrize(("clicks", "alerts"), [(45, []), (44.9, ["trigger"])])
def test_business_is_watched_against_the_version_before(clicks: float, alerts: list[str]) -> None:
    """A tenth less than it was, from both sides; it takes itself back."""
    play = promoted(CTR)
    assert play.now.baseline == {"ctr": 50}
    play.measure(3 * DAY, value("ctr", 3 * DAY, clicks))
    assert [alert.status for alert in play.alerts] == alerts
    play.measure(4 * DAY, value("ctr", 4 * DAY, 50))
    assert [alert.status for alert in play.alerts] == [*alerts, *(["resolve"] if alerts else [])]
    assert play.now.stable == "2"


@pytest.mark.parametrize(("at", "outcome"), [(31 * DAY, "1"), (31 * DAY + 1, None)])
def test_the_fast_path_is_for_what_was_proven_not_long_ago(at: int, outcome: str | None) -> None:
    """``proven_for`` from both sides: within it the bytes are checked, after it everything is."""
    play = promoted()
    play.unfit["1"] = "its smoke test breaks"
    play.ask(RollbackRequested, at, version="2")
    assert play.now.stable == outcome


def test_a_rollback_passes_by_what_fails_its_checks() -> None:
    """The newest healthy predecessor that is still what it was."""
    play = promoted()
    play.ask(DeployRequested, 2 * DAY, version="3", steps=())
    play.altered["2"] = "its digest differs"
    assert play.ask(RollbackRequested, 3 * DAY, version="3").outcome is Outcome.DONE
    assert (play.now.stable, play.now.tripped) == ("1", ("3",))


def test_two_rollbacks_in_a_row_go_back_two_versions() -> None:
    """And a third leaves the fallback."""
    play = promoted()
    play.ask(DeployRequested, 2 * DAY, version="3", steps=())
    for sick, target in (("3", "2"), ("2", "1"), ("1", None)):
        assert play.now.stable == sick
        play.ask(RollbackRequested, 3 * DAY, version=sick)
        assert play.now.stable == target
    assert (play.now.weights, play.alerts[-1].severity) == ({}, Severity.PAGE)


@pytest.mark.parametrize("golden", [True, False])
def test_a_rollback_that_is_not_proven_is_an_incident(golden: bool) -> None:
    """Outputs on the golden set differ: a page, and the version is no target until it proves."""
    play = promoted()
    play.ask(RollbackRequested, 2 * DAY, version="2")
    play.report(2 * DAY, golden={"1": golden})
    assert [alert.severity for alert in play.alerts] == ([] if golden else [Severity.PAGE])
    assert play.now.sick == (() if golden else ("1",))
    if not golden:
        play.report(2 * DAY, golden={"1": True})
        assert (play.now.sick, play.alerts[-1].status) == ((), "resolve")


@pytest.mark.parametrize("proven", [True, False])
def test_a_sick_stable_version_is_no_target(proven: bool) -> None:
    """The candidate's traffic goes to a healthy predecessor, or to the fallback, never onto the sick one."""
    play = promoted() if proven else started(rollout_of())
    if proven:
        play.ask(DeployRequested, 2 * DAY, version="3")
    sick, candidate = play.now.stable, play.now.candidate
    play.report(2 * DAY, failed={sick: "cannot allocate memory"})
    play.ask(RollbackRequested, 2 * DAY, version=candidate)
    assert play.now.weights == ({"1": 1.0} if proven else {})
    assert {candidate} <= set(play.now.tripped)
    assert sick not in play.now.weights


def test_a_sick_version_that_is_vouched_for_is_a_target_again() -> None:
    """By a person with a reason, on record."""
    play = started(rollout_of())
    play.report(DAY, failed={"1": "cannot allocate memory"})
    assert play.alerts[-1].severity is Severity.TICKET
    assert play.ask(OverrideRequested, DAY, version="1").outcome is Outcome.REFUSED
    assert (
        play.ask(OverrideRequested, DAY, version="1", reason="another process had it").outcome is Outcome.DONE
    )
    play.ask(RollbackRequested, DAY, version="2")
    assert play.now.weights == {"1": 1.0}


def test_a_sick_stable_version_is_no_target_after_its_successors_promotion() -> None:
    """What left in bad health was not proven."""
    play = started(rollout_of())
    play.report(DAY, failed={"1": "cannot allocate memory"})
    play.ask(PromoteRequested, DAY)
    assert (play.now.stable, play.now.previous, play.now.proven) == ("2", None, ())


def test_a_rollback_of_an_earlier_stay_is_stale() -> None:
    """A version that was stopped without a fault comes again; what was said of its first time does not count."""
    play = started(rollout_of(strategy="dark", bake=DAY))
    seen = play.now.revision
    play.tick(DAY)
    play.ask(DeployRequested, DAY, version="2")
    late = play.ask(RollbackRequested, DAY, version="2", deployment_revision=seen)
    assert (late.outcome, play.now.candidate) == (Outcome.STALE, "2")


def test_a_request_handled_long_ago_does_not_act_again() -> None:
    """Its answer is no longer shown, its id is remembered until it has expired."""
    play = promoted()
    play.ask(DeployRequested, 2 * DAY, version="3", steps=(), request_id="once")
    play.ask(RollbackRequested, 2 * DAY, version="3")
    for _ in range(100):
        play.ask(RollbackRequested, 2 * DAY, version="9")
    assert "once" not in [answer.request_id for answer in play.now.answers]
    command = DeployRequested(**(play.fields(2 * DAY) | {"request_id": "once", "version": "4", "steps": ()}))
    assert play.send(command) is None
    assert play.now.stable == "2"
