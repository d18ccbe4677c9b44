"""Each strategy with a good and with a bad candidate: how much traffic it ever has, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.contracts import CanaryStep, Rollout
from schemas.control import DeployRequested, Outcome, PauseReason, Phase, RollbackRequested
from schemas.measures import Measurement
from schemas.rollout import Metric
from schemas.verdicts import State
from tests.support_rollout import DAY, DEADLINE, LABELS, Play, rollout_of, started

LOSS = Metric(name="loss", source="loss", judge=True, effect=0.01)
CLICKS = Metric(name="ctr", source="business", judge=True, effect=0.01)


def loss(to_ms: int, mean: float, rows: int = 5_000) -> Measurement:
    """Paired differences of the loss, candidate minus stable."""
    return Measurement(metric="loss", value=mean, sd=0.2, rows=rows, reference_rows=rows, to_ms=to_ms)


def clicks(to_ms: int, mine: int, theirs: int, rows: int = 2_000) -> Measurement:
    """Clicks among ``rows`` answers of each side."""
    return Measurement(
        metric="ctr", value=mine / rows, events=mine, rows=rows, reference_events=theirs, reference_rows=rows,
        to_ms=to_ms,
    )  # fmt: skip


def shadow(then: str = "promote", **changes: Any) -> Play:
    return started(
        rollout_of(**({"strategy": "shadow", "then": then, "metrics": (LOSS,), "bake": DAY} | changes))
    )


def most_traffic(play: Play, version: str = "2") -> float:
    """The largest share of the traffic the version ever had."""
    return max(revision.weights.get(version, 0.0) for revision in play.published)


@pytest.mark.parametrize(
    ("blocks", "counts_for", "phase"),
    [(1, 5_000, Phase.PROGRESSING), (2, 100, Phase.PROGRESSING), (2, 5_000, Phase.ROLLED_BACK)],
)
def test_pairs_are_evidence_of_what_they_count_for(blocks: int, counts_for: int, phase: Phase) -> None:
    """5,000 pairs that would be harm: not of one block, nor when they count for a hundred."""
    play = shadow()
    pairs = loss(DAY // 2, 0.05).model_copy(update={"blocks": blocks, "counts_for": counts_for})
    play.measure(DAY // 2, pairs)
    assert play.now.phase is phase


@pytest.mark.parametrize(
    ("then", "stable", "candidate", "kind"),
    [
        ("promote", "2", None, "promoted"),
        ("stop", "1", None, "rollout-stopped"),
        ("canary", "1", "2", "step-passed"),
    ],
)
def test_a_good_shadow_ends_as_the_contract_says(
    then: str, stable: str, candidate: str | None, kind: str
) -> None:
    """Scored by both, compared, only the stable version's answers given, until the verdict."""
    play = shadow(then)
    assert (play.now.weights, play.now.shadow) == ({"1": 1.0}, ("2",))
    play.measure(DAY, loss(DAY, -0.02))
    assert play.tick(DAY - 1) is None
    play.tick(DAY)
    assert (play.now.stable, play.now.candidate, play.kinds()[-1]) == (stable, candidate, kind)
    assert "2" not in play.now.tripped
    if then == "canary":
        assert (play.now.strategy, play.now.weights) == ("canary", {"1": 0.95, "2": 0.05})
        play.measure(2 * DAY, loss(2 * DAY, -0.02))
        play.judge(2 * DAY, LABELS)
        play.tick(2 * DAY)
        assert play.now.weights == {"1": 0.75, "2": 0.25}


def test_a_bad_shadow_never_answers_anybody() -> None:
    """Shown to be worse: it ends long before its bake, and can not come back."""
    play = shadow()
    play.measure(DAY // 4, loss(DAY // 4, 0.05))
    assert (play.now.phase, play.now.weights, play.now.tripped) == (Phase.ROLLED_BACK, {"1": 1.0}, ("2",))
    assert most_traffic(play) == 0


def test_an_undecided_shadow_waits_and_fails() -> None:
    """A tie is no verdict."""
    play = shadow(keep_warm=365 * DAY)
    play.measure(DAY, loss(DAY, 0.005, rows=200))
    play.tick(DAY)
    assert play.now.phase is Phase.WAITING
    play.measure(DAY + DEADLINE, loss(DAY + DEADLINE, 0.005, rows=210))
    play.tick(DAY + DEADLINE)
    assert (play.now.phase, most_traffic(play)) == (Phase.FAILED, 0)


def test_a_dark_launch_is_not_compared_and_stops() -> None:
    """Whatever it says about the loss; its version may be deployed again."""
    play = started(rollout_of(strategy="dark", metrics=(LOSS,), bake=DAY))
    play.measure(DAY // 4, loss(DAY // 4, 0.5))
    play.judge(DAY // 4, LABELS, State.DRIFT)
    play.tick(DAY // 2)
    assert (play.now.candidate, play.now.shadow) == ("2", ("2",))
    play.tick(DAY)
    assert (play.now.phase, play.now.stable, play.now.tripped) == (Phase.SUCCEEDED, "1", ())
    assert most_traffic(play) == 0
    assert play.ask(DeployRequested, version="2").outcome is Outcome.ACCEPTED


@pytest.mark.parametrize("preview", [0.0, 0.1])
def test_blue_green_switches_at_one_instant_and_back_at_one(preview: float) -> None:
    """After its analysis; the loser is warm and is the rollback target."""
    play = started(
        rollout_of(strategy="blue-green", preview=preview, metrics=(LOSS,), bake=DAY, labels_min=0)
    )
    assert play.now.weights == ({"1": 1.0} if preview == 0 else {"1": 0.9, "2": 0.1})
    play.measure(DAY, loss(DAY, 0.0))
    play.tick(DAY)
    assert (play.now.weights, play.now.warm, play.now.previous) == ({"2": 1.0}, ("1",), "1")
    assert most_traffic(play) == 1
    play.unfit["1"] = "the full check would refuse it"
    assert play.ask(RollbackRequested, version="2", at=2 * DAY).outcome is Outcome.DONE
    assert (play.now.weights, play.now.effective_ms) == ({"1": 1.0}, 0)


@pytest.mark.parametrize(("after", "warm"), [(5 * DAY - 1, ("1",)), (5 * DAY, ())])
def test_the_loser_is_kept_warm_for_so_long(after: int, warm: tuple[str, ...]) -> None:
    """``keep_warm`` from both sides; it stays the rollback target for ever."""
    play = started(
        rollout_of(strategy="blue-green", metrics=(LOSS,), bake=DAY, labels_min=0, keep_warm=5 * DAY)
    )
    play.measure(DAY, loss(DAY, 0.0))
    play.tick(DAY)
    play.tick(DAY + after)
    assert (play.now.warm, play.now.previous) == (warm, "1")
    assert play.ask(RollbackRequested, version="2", at=300 * DAY).outcome is Outcome.DONE


def test_a_bad_blue_green_candidate_is_never_switched_to() -> None:
    """Its most is its preview."""
    play = started(rollout_of(strategy="blue-green", preview=0.1, metrics=(LOSS,), bake=DAY, labels_min=0))
    play.measure(DAY // 2, loss(DAY // 2, 0.05))
    assert (play.now.weights, most_traffic(play)) == ({"1": 1.0}, 0.1)


def ab(**changes: Any) -> Play:
    return started(
        rollout_of(**({"strategy": "ab", "split": 0.3, "metrics": (CLICKS,), "bake": 7 * DAY} | changes))
    )


def test_an_ab_winner_takes_all_as_soon_as_it_has_won() -> None:
    """Anytime-valid: there is no need to wait for the end."""
    play = ab()
    assert play.now.weights == {"1": 0.7, "2": 0.3}
    play.measure(DAY, clicks(DAY, 300, 200))
    play.tick(DAY)
    assert (play.now.stable, play.now.phase) == ("2", Phase.SUCCEEDED)
    assert play.facts[-1].because[0].evidence.interval is not None


def test_an_ab_loser_leaves_at_once() -> None:
    """Its split is the most it ever had."""
    play = ab()
    play.measure(DAY, clicks(DAY, 200, 300))
    assert (play.now.weights, play.now.phase) == ({"1": 1.0}, Phase.ROLLED_BACK)
    assert most_traffic(play) == 0.3


@pytest.mark.parametrize(("at", "over"), [(7 * DAY - 1, False), (7 * DAY, True)])
@pytest.mark.parametrize("measured", [True, False])
def test_an_undecided_ab_test_ends_at_its_deadline_with_the_stable_version(
    at: int, over: bool, measured: bool
) -> None:
    """Inconclusive is an answer: nobody is harmed, nobody is promoted, both may run again."""
    play = ab()
    if measured:
        play.measure(6 * DAY, clicks(6 * DAY, 201, 200))
    play.tick(at)
    assert (play.now.candidate is None) is over
    if over:
        assert (play.now.stable, play.now.phase, play.now.tripped) == ("1", Phase.SUCCEEDED, ())
        assert (play.kinds()[-1], "undecided" in play.facts[-1].detail) == ("rollout-stopped", True)


def test_another_metrics_failure_ends_an_ab_test_too() -> None:
    """Winning clicks with answers that come late is not winning."""
    slow = Metric(name="p99", source="latency_p99", limit=100)
    play = ab(metrics=(CLICKS, slow))
    late = Measurement(metric="p99", value=300, rows=900, to_ms=DAY)
    play.measure(DAY, clicks(DAY, 300, 200), late)
    assert play.now.phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("strategy", ["shadow", "ab", "blue-green"])
def test_what_compares_without_a_judged_metric_gets_one(strategy: str) -> None:
    """And the contract says so."""
    rollout = Rollout(strategy=strategy)
    assert [(m.name, m.judge) for m in rollout.metrics] == [("judged-loss", True)]
    assert Rollout.model_validate(rollout.model_dump()) == rollout


def test_the_winner_is_a_judged_metric() -> None:
    """One that is not cannot decide."""
    with pytest.raises(ValidationError, match="not a judged metric"):
        Rollout(strategy="ab", winner="p99", metrics=(CLICKS,))


def test_labels_may_not_be_needed_but_something_must_be_shown() -> None:
    """No outcomes, no metrics, ``unproven: wait``: it waits, and fails at the deadline."""
    play = started(rollout_of(labels_min=0, steps=(CanaryStep(weight=0.5, bake=DAY),)))
    play.tick(DAY)
    assert (play.now.phase, play.now.pause) == (Phase.WAITING, None)
    play.tick(DAY + DEADLINE)
    assert play.now.phase is Phase.FAILED


def test_a_shadow_without_pairs_pauses_for_data() -> None:
    """No label has come for what both have scored."""
    play = shadow()
    play.measure(DAY, Measurement(metric="loss", to_ms=DAY))
    play.tick(DAY)
    assert play.now.pause is PauseReason.MISSING_DATA
