"""The rollout machine, input by input: what each phase allows, each bound from both sides, an answer for every request."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.core.rollout import DISTRUSTED
from schemas.contracts import CanaryStep
from schemas.control import (
    DeployRequested,
    Outcome,
    OverrideRequested,
    PauseReason,
    PauseRequested,
    Phase,
    PromoteRequested,
    ResumeRequested,
    RetrainRequested,
    RollbackRequested,
    ScorerReport,
    TrainingFinished,
)
from schemas.verdicts import State
from tests.support_rollout import (
    DAY,
    DEADLINE,
    LABELS,
    Play,
    canary,
    promoted,
    rollout_of,
    second_step,
)


def test_the_first_version_takes_all_traffic_at_once() -> None:
    """With nothing to compare it to, there is nothing to wait for."""
    play = Play(delay_ms=DAY)
    assert play.ask(DeployRequested, version="1", at=5).outcome is Outcome.DONE
    assert (play.now.stable, play.now.weights, play.now.previous) == ("1", {"1": 1.0}, None)
    assert (play.now.revision, play.now.phase, play.now.effective_ms) == (1, Phase.SUCCEEDED, 0)
    assert play.kinds() == ["promoted"]


def test_a_canary_goes_from_5_to_25_to_100_percent_in_event_time() -> None:
    """Each step waits for its bake and for outcomes of its own."""
    play = canary()
    assert play.now.weights == {"1": 0.95, "2": 0.05}
    assert play.now.shadow == ("2", "1")
    play.judge(DAY - 1, LABELS)
    play.tick(DAY)
    assert (play.now.weights, play.now.step, play.now.step_since_ms) == ({"1": 0.75, "2": 0.25}, 1, DAY)
    play.judge(3 * DAY - 1, 2 * LABELS, State.STABLE)
    play.tick(3 * DAY)
    assert (play.now.phase, play.now.stable, play.now.previous) == (Phase.SUCCEEDED, "2", "1")
    assert (play.now.weights, play.now.candidate, play.now.warm) == ({"2": 1.0}, None, ("1",))
    assert play.kinds() == ["promoted", "canary-started", "step-passed", "promoted"]


@pytest.mark.parametrize(("at", "passed"), [(DAY - 1, False), (DAY, True)])
def test_a_step_passes_when_its_bake_is_over_and_not_before(at: int, passed: bool) -> None:
    """The bake from both sides."""
    play = canary()
    play.judge(10, LABELS)
    assert (play.tick(at) is not None) is passed
    assert play.now.step == int(passed)


@pytest.mark.parametrize(("rows", "passed"), [(LABELS - 1, False), (LABELS, True)])
def test_a_step_passes_with_enough_outcomes_and_not_with_fewer(rows: int, passed: bool) -> None:
    """``labels_min`` from both sides."""
    play = canary()
    play.judge(10, rows)
    play.tick(DAY)
    assert play.now.step == int(passed)
    assert play.now.pause is (None if passed else PauseReason.MISSING_DATA)


@pytest.mark.parametrize(("rows", "passed"), [(2 * LABELS - 1, False), (2 * LABELS, True)])
def test_outcomes_of_an_earlier_step_do_not_pass_a_later_one(rows: int, passed: bool) -> None:
    """A stream of labels that dries up after the first step pauses the second."""
    play = second_step()
    if rows > LABELS:
        play.judge(2 * DAY, rows, State.STABLE)
    play.tick(3 * DAY)
    assert (play.now.phase is Phase.SUCCEEDED) is passed
    assert (play.now.pause is PauseReason.MISSING_DATA) is not passed


@pytest.mark.parametrize(("at", "failed"), [(DAY + DEADLINE - 1, False), (DAY + DEADLINE, True)])
def test_missing_data_pauses_and_fails_at_the_deadline(at: int, failed: bool) -> None:
    """Never does it pass; the deadline from both sides."""
    play = canary()
    play.tick(DAY)
    assert (play.now.phase, play.now.pause) == (Phase.PAUSED, PauseReason.MISSING_DATA)
    assert play.tick(DAY + 1) is None
    play.tick(at)
    assert play.now.phase is (Phase.FAILED if failed else Phase.PAUSED)
    assert play.now.weights == ({"1": 1.0} if failed else {"1": 0.95, "2": 0.05})
    assert play.now.tripped == (("2",) if failed else ())


def test_a_judge_in_error_is_missing_data() -> None:
    """However many rows it has read."""
    play = canary()
    play.judge(10, 10 * LABELS, State.ERROR)
    play.tick(DAY)
    assert play.now.pause is PauseReason.MISSING_DATA


def test_data_that_comes_late_ends_the_pause() -> None:
    """A pause for missing data needs nobody to resume it."""
    play = canary()
    play.tick(DAY)
    play.judge(2 * DAY, LABELS)
    play.tick(2 * DAY)
    assert (play.now.phase, play.now.pause, play.now.step) == (Phase.PROGRESSING, None, 1)


@pytest.mark.parametrize("paused", [None, PauseReason.MISSING_DATA, PauseReason.REQUESTED])
def test_harm_rolls_back_at_the_next_tick_even_while_paused(paused: PauseReason | None) -> None:
    """Long before a bake is over, and effective at once."""
    play = canary()
    if paused is PauseReason.MISSING_DATA:
        play.tick(DAY)
    if paused is PauseReason.REQUESTED:
        play.ask(PauseRequested)
    play.judge(DAY + 5, 7, State.DRIFT)
    play.tick(DAY + 6)
    assert (play.now.phase, play.now.weights, play.now.effective_ms) == (Phase.ROLLED_BACK, {"1": 1.0}, 0)
    assert (play.now.candidate, play.now.tripped) == (None, ("2",))
    assert play.facts[-1].kind == "rolled-back"
    assert [because.detector for because in play.facts[-1].because] == ["judge"]


def test_harm_rolls_back_before_a_planned_step_takes_effect() -> None:
    """The activation delay holds back changes that were planned, not the judge."""
    play = canary(delay_ms=DAY)
    play.judge(DAY // 2, 7, State.DRIFT)
    play.tick(DAY // 2)
    assert play.now.phase is Phase.ROLLED_BACK


def test_harm_is_not_outdone_by_a_later_analysis() -> None:
    """Both came between two ticks: the first failure decides."""
    play = canary()
    play.judge(10, LABELS, State.DRIFT)
    play.judge(20, LABELS, State.STABLE)
    play.tick(30)
    assert play.now.phase is Phase.ROLLED_BACK


def test_an_analysis_of_the_future_is_not_seen_yet_and_hides_no_earlier_one() -> None:
    """Which analysis a tick sees depends on event time alone."""
    play = canary()
    play.judge(10, LABELS)
    play.judge(DAY + 1, 5 * LABELS, State.DRIFT)
    play.tick(DAY)
    assert (play.now.step, play.now.step_rows) == (1, LABELS)
    play.tick(DAY + 1)
    assert play.now.phase is Phase.ROLLED_BACK


def test_an_analysis_of_another_version_is_not_the_candidates() -> None:
    """Harm by the stable version does not roll the candidate back."""
    play = canary()
    play.judge(10, LABELS, State.DRIFT, version="1")
    play.tick(20)
    assert play.now.candidate == "2"


def test_what_is_not_proven_waits_and_fails_at_the_deadline() -> None:
    """``unproven: wait``, the deadline from both sides."""
    play = second_step()
    play.judge(2 * DAY, 2 * LABELS)
    play.tick(3 * DAY)
    assert play.now.phase is Phase.WAITING
    assert play.tick(3 * DAY + DEADLINE - 1) is None
    play.tick(3 * DAY + DEADLINE)
    assert (play.now.phase, play.now.weights) == (Phase.FAILED, {"1": 1.0})


def test_what_is_proven_late_is_promoted() -> None:
    """Waiting ends when the comparison decides."""
    play = second_step()
    play.judge(2 * DAY, 2 * LABELS)
    play.tick(3 * DAY)
    play.judge(4 * DAY, 3 * LABELS, State.STABLE)
    play.tick(4 * DAY)
    assert play.now.stable == "2"


def test_what_is_not_proven_is_promoted_where_the_contract_says_so() -> None:
    """``unproven: promote``, but never without outcomes."""
    play = canary(rollout_of(unproven="promote", steps=(CanaryStep(weight=0.5, bake=DAY),)))
    play.tick(DAY)
    assert play.now.pause is PauseReason.MISSING_DATA
    play.judge(DAY + 1, LABELS)
    play.tick(DAY + 1)
    assert play.now.stable == "2"


def test_planned_changes_take_effect_later_and_rollbacks_at_once() -> None:
    """Event time of the change plus the activation delay; 0 for a rollback."""
    play = canary(delay_ms=100)
    assert (play.now.effective_ms, play.now.step_since_ms) == (100, 100)
    play.judge(10, LABELS)
    assert play.tick(DAY + 99) is None
    play.tick(DAY + 100)
    assert (play.now.step, play.now.effective_ms, play.now.step_since_ms) == (1, DAY + 200, DAY + 200)
    play.ask(RollbackRequested, version="2", at=DAY + 150)
    assert play.now.effective_ms == 0


def test_a_change_never_takes_effect_in_a_past_that_was_answered() -> None:
    """A training that took a week does not start its canary a week ago, its bake over."""
    play = canary()
    play.ask(RollbackRequested, version="2")
    play.tick(7 * DAY)
    play.ask(DeployRequested, version="3", at=0)
    assert (play.now.effective_ms, play.now.step_since_ms) == (7 * DAY, 7 * DAY)


def test_rollback_of_the_candidate() -> None:
    """Its traffic goes to the stable version; it can never come back."""
    play = canary()
    assert play.ask(RollbackRequested, version="2").outcome is Outcome.DONE
    assert (play.now.weights, play.now.tripped, play.now.candidate) == ({"1": 1.0}, ("2",), None)
    assert play.ask(DeployRequested, version="2").outcome is Outcome.REFUSED


def test_rollback_of_the_stable_version_goes_to_its_predecessor() -> None:
    """Which had been kept warm."""
    play = promoted()
    assert play.now.warm == ("1",)
    assert play.ask(RollbackRequested, version="2", at=9).outcome is Outcome.DONE
    assert (play.now.stable, play.now.previous, play.now.weights) == ("1", None, {"1": 1.0})
    assert (play.now.phase, play.now.effective_ms, play.now.tripped) == (Phase.ROLLED_BACK, 0, ("2",))


def test_rollback_of_the_stable_version_ends_a_rollout_beside_it() -> None:
    """The rollback target is still warm, and the candidate's end is on record."""
    play = promoted()
    play.ask(DeployRequested, version="3")
    assert play.now.warm == ("1",)
    play.ask(RollbackRequested, version="2")
    assert (play.now.weights, play.now.candidate, play.now.step_rows) == ({"1": 1.0}, None, 0)
    assert play.kinds()[-2:] == ["rollout-failed", "rolled-back"]


@pytest.mark.parametrize("unfit", [False, True])
@pytest.mark.parametrize("no_target", ["fallback", "keep"])
def test_rollback_without_a_healthy_target(unfit: bool, no_target: str) -> None:
    """No predecessor, or one that was altered on disk: the fallback answers, or it is kept; traffic is never put onto it."""
    play = Play(rollout_of(no_target=no_target))
    play.ask(DeployRequested, version="1")
    if unfit:
        play.ask(DeployRequested, version="2", steps=())
        play.unfit["1"] = play.altered["1"] = "its digest differs"
    sick = play.now.stable
    answer = play.ask(RollbackRequested, version=sick)
    assert answer.outcome is (Outcome.DONE if no_target == "fallback" else Outcome.REFUSED)
    assert play.now.weights == ({} if no_target == "fallback" else {sick: 1.0})
    assert "rollback-impossible" in play.kinds()
    assert [alert.dedup_key for alert in play.alerts] == (
        [f"controller/m/fallback/{sick}"] if no_target == "fallback" else []
    )
    play.ask(DeployRequested, version="3")
    if no_target == "fallback":
        assert (play.now.stable, play.now.weights) == ("3", {"3": 1.0})
        assert play.alerts[-1].status == "resolve"


def test_rollback_of_a_version_without_traffic_is_stale() -> None:
    """It changes nothing but the answer."""
    play = promoted()
    assert play.ask(RollbackRequested, version="1").outcome is Outcome.STALE
    assert play.now.weights == {"2": 1.0}


@pytest.mark.parametrize(("expires", "outcome"), [(DAY - 1, Outcome.EXPIRED), (DAY, Outcome.DONE)])
def test_an_expired_command_is_not_obeyed(expires: int, outcome: Outcome) -> None:
    """Expiry, in event time, from both sides."""
    play = canary()
    play.tick(DAY // 2)
    play.time_ms = DAY
    assert play.ask(RollbackRequested, version="2", expires_ms=expires).outcome is outcome


def test_a_training_that_ends_after_its_request_expired_is_over() -> None:
    """Its version is not deployed, and the next retrain is accepted; found by a chaos run."""
    play = promoted()
    assert play.ask(RetrainRequested, version="2", request_id="t1").outcome is Outcome.ACCEPTED
    play.time_ms = 100 * DAY
    finished = {"retrain_id": "t1", "outcome": "registered", "version": "3", "expires_ms": DAY}
    assert play.ask(TrainingFinished, **finished).outcome is Outcome.EXPIRED
    assert (play.now.training, play.now.candidate) == (None, None)
    assert play.ask(RetrainRequested, version="2").outcome is Outcome.ACCEPTED


def test_a_request_that_was_answered_is_passed_over() -> None:
    """The same id a second time: no revision, no action."""
    play = canary()
    command = RollbackRequested(
        request_id="once", model="m", version="2", cause="c", event_time_ms=0, expires_ms=9, issued_by="p"
    )
    assert play.send(command) is not None
    before = play.now
    assert play.send(command) is None
    assert play.now == before


def test_a_command_nobody_trusts_is_refused_and_uses_up_no_id() -> None:
    """A stranger cannot keep the real command from being obeyed by being first with its id."""
    play = canary()
    answer = play.ask(RollbackRequested, version="2", request_id="rb", refused="unknown key")
    assert (answer.outcome, answer.detail) == (Outcome.REFUSED, f"{DISTRUSTED}unknown key")
    assert play.now.candidate == "2"
    assert play.ask(RollbackRequested, version="2", request_id="rb").outcome is Outcome.DONE
    assert play.now.candidate is None


@pytest.mark.parametrize(
    "steps", [((0.0, 1),), ((1.1, 1),), ((-0.5, 1),), ((0.5, -1),), ((float("nan"), 1),)]
)
def test_steps_that_are_no_shares_are_refused(steps: tuple[tuple[float, int], ...]) -> None:
    """A person's own steps are checked like the contract's."""
    play = Play()
    play.ask(DeployRequested, version="1")
    assert play.ask(DeployRequested, version="2", steps=steps).outcome is Outcome.REFUSED
    assert play.now.weights == {"1": 1.0}


def test_no_steps_promote_at_once() -> None:
    """If a person says so."""
    play = Play()
    play.ask(DeployRequested, version="1")
    assert play.ask(DeployRequested, version="2", steps=()).outcome is Outcome.DONE
    assert (play.now.stable, play.now.previous) == ("2", "1")


@pytest.mark.parametrize("version", ["1", "3", "bad"])
def test_what_cannot_be_deployed_is_refused(version: str) -> None:
    """The stable version, a second candidate, a version that does not verify."""
    play = Play()
    play.ask(DeployRequested, version="1")
    play.unfit["bad"] = "altered"
    if version == "3":
        play.ask(DeployRequested, version="2")
    before = play.now.weights
    assert play.ask(DeployRequested, version=version).outcome is Outcome.REFUSED
    assert play.now.weights == before


def test_one_training_at_a_time_and_none_beside_a_rollout() -> None:
    """Refused, and said why."""
    play = Play()
    play.ask(DeployRequested, version="1")
    assert play.ask(RetrainRequested, version="1", request_id="t1").outcome is Outcome.ACCEPTED
    assert play.now.training == "t1"
    assert play.ask(RetrainRequested, version="1").outcome is Outcome.REFUSED
    assert play.now.training == "t1"
    busy = canary()
    assert busy.ask(RetrainRequested, version="1").outcome is Outcome.REFUSED


@pytest.mark.parametrize(("outcome", "version"), [("registered", "2"), ("refused", None), ("failed", None)])
def test_a_finished_training_starts_a_canary_or_clears_the_way(outcome: Any, version: str | None) -> None:
    """Either way the next retrain may be asked for."""
    play = Play()
    play.ask(DeployRequested, version="1")
    play.ask(RetrainRequested, version="1", request_id="t1")
    play.ask(TrainingFinished, retrain_id="t1", outcome=outcome, version=version)
    assert (play.now.training, play.now.candidate) == (None, version)
    again = play.ask(TrainingFinished, retrain_id="t1", outcome=outcome, version=version)
    assert again.outcome is Outcome.STALE


def test_a_person_promotes_what_verifies() -> None:
    """Skips the bakes, never the verification."""
    play = canary()
    play.unfit["2"] = "altered"
    assert play.ask(PromoteRequested).outcome is Outcome.REFUSED
    play.unfit.clear()
    assert play.ask(PromoteRequested).outcome is Outcome.DONE
    assert play.now.stable == "2"
    assert play.ask(PromoteRequested).outcome is Outcome.REFUSED


def test_a_person_pauses_and_resumes() -> None:
    """While paused no step passes; resumed, the due step passes at the next tick."""
    play = canary()
    play.judge(10, LABELS)
    assert play.ask(PauseRequested).outcome is Outcome.DONE
    assert play.tick(DAY) is None
    assert play.ask(ResumeRequested).outcome is Outcome.DONE
    assert play.now.phase is Phase.PROGRESSING
    play.tick(DAY + 1)
    assert play.now.step == 1
    assert play.ask(ResumeRequested).outcome is Outcome.REFUSED


@pytest.mark.parametrize(("same", "kind"), [(True, "rollback-proven"), (False, "rollback-unproven")])
def test_a_golden_report_is_a_fact_and_no_revision(same: bool, kind: str) -> None:
    """What a scorer proved goes on record; its id repeats when it is read again."""
    play = promoted()
    report = ScorerReport(
        request_id="s", model="m", cause="c", event_time_ms=0, expires_ms=9, issued_by="scorer-0",
        instance="scorer-0", golden={"1": same},
    )  # fmt: skip
    assert play.send(report) is None
    assert play.send(report) is None
    assert [fact.kind for fact in play.facts[-2:]] == [kind, kind]
    assert play.facts[-1].decision_id == play.facts[-2].decision_id


def test_a_candidate_that_cannot_be_served_fails() -> None:
    """The same report about the stable version makes it no target; somebody can vouch for it."""
    play = canary()
    report = ScorerReport(
        request_id="s", model="m", cause="c", event_time_ms=0, expires_ms=9, issued_by="scorer-0",
        instance="scorer-0", failed={"1": "no file"},
    )  # fmt: skip
    assert play.send(report) is not None
    assert (play.now.sick, play.now.candidate, play.now.weights) == (("1",), "2", {"1": 0.95, "2": 0.05})
    play.ask(OverrideRequested, version="1", reason="the disk was full; it is not")
    play.send(report.model_copy(update={"failed": {"2": "no file"}}))
    assert (play.now.phase, play.now.weights) == (Phase.FAILED, {"1": 1.0})
