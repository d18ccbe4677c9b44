"""A registry that is away says nothing about a version: a rollout waits for it, and a rollback does not."""

from __future__ import annotations

import pytest

from deploy.core.gates import Approvals
from deploy.core.machine import Away
from schemas.control import (
    DeployRequested,
    Outcome,
    OverrideRequested,
    PauseReason,
    PauseRequested,
    Phase,
    PromoteRequested,
    ResumeRequested,
    RollbackRequested,
    Severity,
)
from tests.support_rollout import DAY, DEADLINE, Play, canary, promoted

AWAY = Away("the bucket does not answer")


def waiting() -> Play:
    """v1 stable; v2 was asked for at 0, and the registry is away."""
    play = Play()
    play.tick(0)
    play.ask(DeployRequested, version="1")
    play.unfit["2"] = AWAY
    answer = play.ask(DeployRequested, version="2")
    assert (answer.outcome, AWAY in answer.detail) == (Outcome.ACCEPTED, True)
    assert (play.now.phase, play.now.pause) == (Phase.PAUSED, PauseReason.REGISTRY)
    assert (play.now.candidate, play.now.weights) == ("2", {"1": 1.0})
    return play


def test_a_rollout_waits_and_begins_when_the_registry_is_back() -> None:
    """Nothing is said while nothing changes; then it is verified and gets its first step."""
    play = waiting()
    assert [play.tick(at) for at in (1, 2, 3)] == [None, None, None]
    del play.unfit["2"]
    play.tick(4)
    assert (play.now.phase, play.now.pause, play.now.weights) == (
        Phase.PROGRESSING,
        None,
        {"1": 0.95, "2": 0.05},
    )
    assert play.now.step_since_ms == 4
    assert play.kinds()[-3:] == ["paused", "resumed", "canary-started"]


def test_what_the_registry_then_says_counts() -> None:
    """An unfit version gets no traffic; it is not condemned, so mended it may come again."""
    play = waiting()
    play.unfit["2"] = "altered"
    play.tick(4)
    assert (play.now.phase, play.now.candidate, play.now.tripped) == (Phase.FAILED, None, ())
    assert "altered" in play.now.reason
    del play.unfit["2"]
    assert play.ask(DeployRequested, version="2").outcome is Outcome.ACCEPTED


def test_it_does_not_wait_for_ever() -> None:
    """The contract's deadline ends it, from both sides; the version may come again."""
    play = waiting()
    assert play.tick(DEADLINE) is None
    play.tick(DEADLINE + 1)
    assert (play.now.phase, play.now.candidate, play.now.tripped) == (Phase.FAILED, None, ())
    assert "registry was away" in play.now.reason


@pytest.mark.parametrize("kind", [PromoteRequested, OverrideRequested])
def test_nobody_talks_it_past_the_registry(kind: type) -> None:
    """Neither a promotion nor an override gives traffic to what nobody has looked at."""
    play = waiting()
    assert play.ask(kind, version="2", reason="I know it").outcome is Outcome.REFUSED
    assert play.now.weights == {"1": 1.0}


def test_a_persons_pause_and_resume_lead_back_to_the_wait() -> None:
    """A promotion in between is refused too, and so is it when the registry is back but the rollout has not begun."""
    play = waiting()
    play.ask(PauseRequested)
    del play.unfit["2"]
    play.tick(1)
    assert play.now.pause is PauseReason.REQUESTED
    assert play.ask(PromoteRequested).outcome is Outcome.REFUSED
    play.unfit["2"] = AWAY
    play.ask(ResumeRequested)
    assert (play.now.phase, play.now.pause) == (Phase.PAUSED, PauseReason.REGISTRY)
    del play.unfit["2"]
    play.tick(2)
    assert play.now.weights == {"1": 0.95, "2": 0.05}


def test_the_gate_comes_after_the_registry() -> None:
    """Approvals of the risk tier are asked for once the version can be looked at."""
    play = waiting()
    play.tiers["2"] = Approvals(needed=1)
    del play.unfit["2"]
    play.tick(1)
    assert play.now.gate is not None
    assert (play.now.phase, play.now.weights) == (Phase.WAITING, {"1": 1.0})


def test_a_waiting_rollout_can_be_called_off() -> None:
    """As any other."""
    play = waiting()
    assert play.ask(RollbackRequested, version="2").outcome is Outcome.DONE
    assert (play.now.candidate, play.now.weights) == (None, {"1": 1.0})


def test_a_rollback_does_not_wait() -> None:
    """The target had the traffic before; that it was not looked at again is on record."""
    play = promoted()
    play.unfit["1"] = play.altered["1"] = AWAY
    assert play.ask(RollbackRequested, DAY, version="2").outcome is Outcome.DONE
    assert play.now.weights == {"1": 1.0}
    assert "not looked at again: the bucket does not answer" in play.facts[-1].detail


def test_of_two_targets_the_one_that_was_looked_at_is_taken() -> None:
    """Even when the other is the newer one; a version known to be altered is none."""
    for fault, target in ((None, "1"), ("altered", "2")):
        play = promoted()
        play.ask(DeployRequested, DAY, version="3")
        play.ask(PromoteRequested, DAY)
        play.unfit["2"] = play.altered["2"] = AWAY
        if fault is not None:
            play.unfit["1"] = play.altered["1"] = fault
        play.ask(RollbackRequested, DAY, version="3")
        assert play.now.stable == target


def test_a_candidate_with_traffic_keeps_it() -> None:
    """It was looked at when it got it."""
    play = canary()
    play.unfit["2"] = AWAY
    play.tick(1)
    assert play.now.weights == {"1": 0.95, "2": 0.05}


def test_a_scorer_that_waits_is_a_ticket_and_nobody_is_sick() -> None:
    """Told once, taken back when it has loaded the version; a report about something else takes nothing back."""
    play = promoted()
    play.report(1, awaiting={"2": "the bucket does not answer", "9": "not routed"})
    play.report(2, awaiting={"2": "the bucket does not answer"})
    play.report(3, golden={"2": True})
    assert (play.now.sick, play.now.stable, play.now.alerting) == ((), "2", ("awaited/2/scorer-0",))
    play.report(4, instance="scorer-1", awaiting={})
    assert play.now.alerting == ("awaited/2/scorer-0",)
    play.report(5, awaiting={})
    assert [(alert.status, alert.severity) for alert in play.alerts if "awaited" in alert.dedup_key] == [
        ("trigger", Severity.TICKET),
        ("resolve", Severity.INFO),
    ]
    assert play.now.alerting == ()


def test_a_candidate_is_not_dropped_for_a_scorer_that_waits() -> None:
    """It keeps its share where it is loaded."""
    play = canary()
    play.report(1, awaiting={"2": "the bucket does not answer"})
    assert (play.now.candidate, play.now.weights) == ("2", {"1": 0.95, "2": 0.05})
    assert play.now.alerting == ("awaited/2/scorer-0",)
