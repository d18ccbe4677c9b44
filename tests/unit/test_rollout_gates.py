"""Gates: whose yes counts, what a no, silence or a breach does, and that a reason is needed to pass them by."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.core.gates import Approvals, gate_id, person
from schemas.contracts import CanaryStep
from schemas.control import (
    ApproveRequested,
    DeployRequested,
    Outcome,
    OverrideRequested,
    PauseRequested,
    Phase,
    PromoteRequested,
    RejectRequested,
    ResumeRequested,
    RollbackRequested,
)
from schemas.rollout import Gate, Metric
from schemas.verdicts import State
from tests.support_rollout import DAY, LABELS, Play, rollout_of, value

STEPS = (CanaryStep(weight=0.25, bake=DAY), CanaryStep(weight=0.5, bake=DAY))
HOOK = "https://gates.example.org/driftline"


def gated(*gates: Gate, tier: Approvals | None = None, **changes: Any) -> Play:
    """v1 stable; v2 asked for by ada, at the first gate if that is one before the rollout."""
    play = Play(rollout_of(steps=STEPS))
    play.tick(0)
    play.ask(DeployRequested, version="1", steps=())
    play.contract = rollout_of(**({"steps": STEPS, "gates": gates} | changes))
    if tier is not None:
        play.tiers["2"] = tier
    play.ask(DeployRequested, version="2", issued_by="api/ada")
    return play


def approve(play: Play, by: str, at: int = 0, **more: Any) -> Outcome:
    return play.ask(ApproveRequested, at, version="2", issued_by=by, **more).outcome


def before_the_second_step(*gates: Gate, **changes: Any) -> Play:
    play = gated(*gates, **changes)
    play.judge(DAY - 1, LABELS)
    play.tick(DAY)
    return play


def test_no_traffic_before_confirm_rollout() -> None:
    """Not even in the shadow, however long it takes; then the first step begins where the yes came."""
    play = gated(Gate(kind="confirm-rollout"))
    assert (play.now.phase, play.now.weights, play.now.shadow) == (Phase.WAITING, {"1": 1.0}, ())
    assert play.tick(3 * DAY) is None
    assert approve(play, "api/grace", 3 * DAY) is Outcome.DONE
    assert (play.now.weights, play.now.step_since_ms) == ({"1": 0.75, "2": 0.25}, 3 * DAY)


@pytest.mark.parametrize("by", ["api/ada", "cli/Ada", "ada"])
def test_who_asked_does_not_count(by: str) -> None:
    """Whichever way they come."""
    assert person(by) == "ada"
    assert approve(gated(Gate(kind="confirm-rollout")), by) is Outcome.REFUSED


def test_who_registered_the_version_does_not_count() -> None:
    """It is their wish too."""
    play = gated(tier=Approvals(needed=1, author="cli/grace"))
    assert approve(play, "api/grace") is Outcome.REFUSED
    assert approve(play, "api/mary") is Outcome.DONE


@pytest.mark.parametrize(
    ("needed", "on_file", "yes", "started"),
    [
        (0, (), (), True),
        (1, (), (), False),
        (1, (), ("grace",), True),
        (1, ("grace",), (), True),
        (1, ("ada",), (), False),
        (2, ("grace",), (), False),
        (2, ("grace", "cli/Grace"), (), False),
        (2, ("grace",), ("mary",), True),
        (2, (), ("grace", "mary"), True),
        (2, (), ("grace", "grace"), False),
    ],
)
def test_approvals_by_risk_tier(
    needed: int, on_file: tuple[str, ...], yes: tuple[str, ...], started: bool
) -> None:
    """Low none, medium one, high two different people; those in the registry and those at the gate count together."""
    play = gated(tier=Approvals(needed, on_file))
    for name in yes:
        approve(play, name)
    assert ("2" in play.now.weights) is started


def test_the_same_person_twice_is_one() -> None:
    """And is told so."""
    play = gated(Gate(kind="confirm-rollout", approvals=2))
    assert approve(play, "grace") is Outcome.ACCEPTED
    assert approve(play, "grace") is Outcome.DUPLICATE
    assert approve(play, "mary") is Outcome.DONE


def test_a_gate_before_more_traffic_and_one_before_all_of_it() -> None:
    """Each waits for its own yes; one given for the other does not open it."""
    play = before_the_second_step(Gate(kind="confirm-traffic-increase"), Gate(kind="confirm-promotion"))
    assert (play.now.phase, play.now.weights) == (Phase.WAITING, {"1": 0.75, "2": 0.25})
    assert approve(play, "grace", DAY, gate="confirm-promotion") is Outcome.REFUSED
    assert approve(play, "grace", DAY, gate="confirm-traffic-increase") is Outcome.DONE
    play.tick(DAY + 1)
    assert play.now.weights == {"1": 0.5, "2": 0.5}
    play.judge(2 * DAY, 3 * LABELS, State.STABLE)
    play.tick(3 * DAY)
    assert (play.now.phase, play.now.gate is not None and play.now.gate.kind) == (
        Phase.WAITING,
        "confirm-promotion",
    )
    approve(play, "grace", 3 * DAY)
    play.tick(3 * DAY + 1)
    assert play.now.stable == "2"


@pytest.mark.parametrize("how", ["analysis", "metric", "request", "scorer"])
def test_a_breach_while_a_gate_waits_rolls_back(how: str) -> None:
    """Nobody's yes is waited for."""
    p99 = Metric(name="p99", source="latency_p99", limit=100)
    play = gated(Gate(kind="confirm-traffic-increase"), metrics=(p99,))
    play.judge(DAY - 1, LABELS)
    play.measure(DAY, value("p99", DAY, 50))
    play.tick(DAY)
    assert play.now.phase is Phase.WAITING
    if how == "analysis":
        play.judge(DAY + 1, 2 * LABELS, State.DRIFT)
        play.tick(DAY + 2)
    elif how == "metric":
        play.measure(DAY + 1, value("p99", DAY + 1, 500))
    elif how == "request":
        play.ask(RollbackRequested, DAY + 1, version="2")
    else:
        play.report(DAY + 1, failed={"2": "out of memory"})
    assert (play.now.weights, play.now.gate, play.now.candidate) == ({"1": 1.0}, None, None)
    assert approve(play, "grace", DAY + 3) is Outcome.STALE
    assert "2" in play.now.tripped


@pytest.mark.parametrize(("at", "over"), [(7 * DAY, False), (7 * DAY + 1, True)])
def test_a_gate_expires(at: int, over: bool) -> None:
    """From both sides; nobody has rejected the version, so it may be asked for again."""
    play = gated(Gate(kind="confirm-rollout"))
    play.tick(at)
    assert (play.now.candidate is None) is over
    if over:
        assert (play.now.phase, play.now.tripped, play.now.weights) == (Phase.FAILED, (), {"1": 1.0})
        assert play.ask(DeployRequested, version="2").outcome is Outcome.ACCEPTED


def test_a_no_ends_the_rollout_for_good() -> None:
    """A rejected version gets no traffic, however often it is asked for."""
    play = gated(Gate(kind="confirm-rollout"))
    assert play.ask(RejectRequested, version="2", reason="not on a Friday").outcome is Outcome.DONE
    assert (play.now.phase, play.now.weights, play.now.tripped) == (Phase.FAILED, {"1": 1.0}, ("2",))
    assert play.ask(DeployRequested, version="2").outcome is Outcome.REFUSED


def test_a_yes_for_an_earlier_rollout_does_not_open_this_ones_gate() -> None:
    """It names the revision it was given on."""
    play = gated(Gate(kind="confirm-rollout"))
    seen = play.now.revision
    play.tick(8 * DAY)
    play.ask(DeployRequested, 8 * DAY, version="2")
    assert approve(play, "grace", 8 * DAY, deployment_revision=seen) is Outcome.STALE
    assert approve(play, "grace", 8 * DAY, deployment_revision=play.now.revision) is Outcome.DONE


def test_a_gate_is_overridden_with_a_reason_on_record() -> None:
    """Without one it stays shut."""
    play = gated(Gate(kind="confirm-rollout", approvals=2))
    assert play.ask(OverrideRequested, version="2").outcome is Outcome.REFUSED
    assert play.ask(OverrideRequested, version="2", reason="both are on a plane").outcome is Outcome.DONE
    assert "2" in play.now.weights
    fact = next(fact for fact in play.facts if fact.kind == "gate-overridden")
    assert (fact.actor, "on a plane" in fact.detail) == ("somebody", True)


def test_a_risk_tiers_approvals_are_not_overridden() -> None:
    """They take the people they take."""
    play = gated(tier=Approvals(needed=2, by=("grace",)))
    assert play.ask(OverrideRequested, version="2", reason="now").outcome is Outcome.REFUSED
    assert approve(play, "mary") is Outcome.DONE


@pytest.mark.parametrize(("approved", "weight"), [(True, 0.25), (False, 0.0), (None, 0.0)])
def test_a_webhooks_answer(approved: bool | None, weight: float) -> None:
    """Yes opens, no rejects, no answer leaves it waiting; each is on record."""
    play = gated(Gate(kind="confirm-rollout", webhook=HOOK))
    assert approve(play, "grace") is Outcome.REFUSED
    play.answer(1, approved)
    assert play.now.weights.get("2", 0.0) == weight
    assert (play.now.candidate is None) is (approved is False)
    assert "gate-unanswered" in play.kinds() if approved is None else "gate-answered" in play.kinds()


def test_an_answer_for_another_gate_opens_nothing() -> None:
    """Nor does the right one a second time."""
    play = before_the_second_step(Gate(kind="confirm-traffic-increase", webhook=HOOK))
    waits = play.now.gate
    assert play.answer(DAY, True, gate="m/99/confirm-traffic-increase/0") is None
    assert play.now.gate == waits
    assert play.answer(DAY, True) is not None
    assert waits is not None
    assert play.answer(DAY, True, gate=waits.gate_id) is None


def test_a_webhook_does_not_stand_in_for_people() -> None:
    """A risk tier's approvals and the webhook's yes are both needed."""
    play = gated(Gate(kind="confirm-rollout", webhook=HOOK), tier=Approvals(needed=1))
    play.answer(1, True)
    assert "2" not in play.now.weights
    assert approve(play, "grace") is Outcome.DONE
    assert "2" in play.now.weights


@pytest.mark.parametrize("approved", [True, False, None])
def test_the_rollback_gates_yes_rolls_back(approved: bool | None) -> None:
    """Its no and its silence change nothing."""
    play = gated(Gate(kind="rollback", webhook=HOOK))
    play.answer(5, approved, gate=gate_id(play.now, "rollback"))
    assert (play.now.phase is Phase.ROLLED_BACK) is (approved is True)
    assert play.answer(6, True, gate="m/77/rollback/0") is None


def test_promote_skips_bakes_and_not_the_gate_before_all_traffic() -> None:
    """Asked for twice: first the gate, then, once it is open, the promotion without another wait."""
    play = gated(Gate(kind="confirm-promotion"))
    assert play.ask(PromoteRequested).outcome is Outcome.ACCEPTED
    assert play.now.weights == {"1": 0.75, "2": 0.25}
    assert play.ask(PromoteRequested).outcome is Outcome.REFUSED
    approve(play, "grace", 1)
    play.tick(2)
    assert play.now.stable == "2"


def test_the_first_version_waits_at_its_gates_too() -> None:
    """Nothing answers yet, and nothing is let through for that."""
    play = Play(rollout_of(gates=(Gate(kind="confirm-rollout"), Gate(kind="confirm-promotion"))))
    assert play.ask(DeployRequested, version="2", issued_by="ada").outcome is Outcome.ACCEPTED
    assert (play.now.phase, play.now.weights) == (Phase.WAITING, {})
    approve(play, "grace")
    assert play.now.weights == {}
    approve(play, "grace")
    assert (play.now.stable, play.now.weights) == ("2", {"2": 1.0})


def test_a_pause_holds_at_a_gate() -> None:
    """The yes is kept, and counts when a person lets the rollout go on."""
    play = gated(Gate(kind="confirm-rollout"))
    play.ask(PauseRequested)
    assert approve(play, "grace") is Outcome.DONE
    play.tick(DAY)
    assert (play.now.phase, play.now.weights) == (Phase.PAUSED, {"1": 1.0})
    play.ask(ResumeRequested, DAY)
    assert (play.now.phase, play.now.weights) == (Phase.PROGRESSING, {"1": 0.75, "2": 0.25})
