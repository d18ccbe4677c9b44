"""Metrics of a rollout: limits from both sides, separate counts for each standing, and no way past missing data."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.contracts import CanaryStep, Rollout
from schemas.control import (
    DeployRequested,
    Outcome,
    OverrideRequested,
    PauseReason,
    PauseRequested,
    Phase,
    PromoteRequested,
    ResumeRequested,
)
from schemas.measures import Measurement, Standing
from schemas.rollout import Metric
from schemas.verdicts import State
from tests.support_rollout import DAY, DEADLINE, LABELS, Play, rollout_of, started, value

HOUR = 3_600_000
ONE_STEP = (CanaryStep(weight=0.5, bake=DAY),)


def metric(**changes: Any) -> Metric:
    base: dict[str, Any] = {"name": "p99", "source": "latency_p99", "limit": 100}
    return Metric(**(base | changes))


def watched(*metrics: Metric, **changes: Any) -> Play:
    """A canary of one day whose only evidence are ``metrics``."""
    return started(rollout_of(**({"steps": ONE_STEP, "labels_min": 0, "metrics": metrics} | changes)))


@pytest.mark.parametrize(
    ("number", "limit", "fail", "direction", "standing"),
    [
        (99.9, 100, None, "lower", Standing.PASSED),
        (100, 100, None, "lower", Standing.FAILED),
        (100, 100, 200, "lower", Standing.INCONCLUSIVE),
        (200, 100, 200, "lower", Standing.INCONCLUSIVE),
        (200.1, 100, 200, "lower", Standing.FAILED),
        (100.1, 100, None, "higher", Standing.PASSED),
        (100, 100, 50, "higher", Standing.INCONCLUSIVE),
        (49.9, 100, 50, "higher", Standing.FAILED),
    ],
)
def test_a_limit_from_both_sides(
    number: float, limit: float, fail: float | None, direction: str, standing: Standing
) -> None:
    """Strictly inside passes, strictly beyond ``fail`` fails, between the two is inconclusive."""
    play = watched(metric(limit=limit, fail=fail, direction=direction, failures_max=9))
    play.measure(HOUR, value("p99", HOUR, number))
    assert play.now.metrics["p99"].standing is standing


@pytest.mark.parametrize(("compare", "passed"), [("value", False), ("difference", True), ("change", True)])
def test_a_limit_may_be_relative_to_the_stable_version(compare: str, passed: bool) -> None:
    """The candidate's 110 beside 100: as it is, as a difference of 10, as a change of a tenth."""
    limits = {"value": 20.0, "difference": 20.0, "change": 0.2}
    play = watched(metric(limit=limits[compare], compare=compare, failures_max=9))
    play.measure(HOUR, value("p99", HOUR, 110, reference=100, reference_rows=1_000))
    assert (play.now.metrics["p99"].standing is Standing.PASSED) is passed


def test_a_candidate_is_not_compared_with_the_version_before_the_stable_one() -> None:
    """Without enough rows of the stable version beside it there is nothing to compare with."""
    ctr = Metric(name="ctr", source="business", compare="change", limit=-0.1)
    play = watched(ctr)
    play.measure(DAY, value("ctr", DAY, 50, reference=50, reference_rows=1_000))
    play.tick(DAY)
    assert (play.now.stable, play.now.baseline) == ("2", {"ctr": 50})
    play.ask(DeployRequested, DAY, version="3")
    play.measure(DAY + HOUR, value("ctr", DAY + HOUR, 50, reference=9, reference_rows=3), version="3")
    assert play.now.metrics["ctr"].standing is Standing.MISSING


@pytest.mark.parametrize(("allowed", "candidate"), [(0, None), (1, "2")])
def test_failures_have_a_limit(allowed: int, candidate: str | None) -> None:
    """The first beyond it rolls back at once, with the measurement as evidence."""
    play = watched(metric(failures_max=allowed))
    play.measure(HOUR, value("p99", HOUR, 150))
    assert play.now.candidate == candidate
    play.measure(2 * HOUR, value("p99", 2 * HOUR, 150))
    assert (play.now.phase, play.now.weights, play.now.effective_ms) == (Phase.ROLLED_BACK, {"1": 1.0}, 0)
    fact = next(fact for fact in play.facts if fact.kind == "rolled-back")
    assert [(b.detector, b.score, b.threshold) for b in fact.because] == [("metric/p99", 150, 100)]


def test_a_dry_run_decides_nothing() -> None:
    """However it fails; its standing is there to be read."""
    play = watched(metric(dry_run=True, alert=100), metric(name="other"))
    play.measure(DAY, value("p99", DAY, 900), value("other", DAY, 5))
    assert play.now.metrics["p99"].standing is Standing.FAILED
    assert play.alerts == []
    play.tick(DAY)
    assert play.now.stable == "2"


@pytest.mark.parametrize(("count", "paused"), [(2, False), (3, True)])
def test_inconclusive_measurements_have_a_limit(count: int, paused: bool) -> None:
    """Beyond it a person has to look; resumed, they are counted anew."""
    play = watched(metric(fail=200, inconclusive_max=2))
    for hour in range(1, count + 1):
        play.measure(hour * HOUR, value("p99", hour * HOUR, 150))
    play.tick(count * HOUR)
    assert (play.now.pause is PauseReason.INCONCLUSIVE) is paused
    if paused:
        assert play.ask(ResumeRequested).outcome is Outcome.DONE
        play.tick(count * HOUR + 1)
        assert play.now.pause is None


@pytest.mark.parametrize(("count", "paused"), [(2, False), (3, True)])
@pytest.mark.parametrize("broken", [{"error": "timed out"}, {"rows": 3}])
def test_errors_and_missing_rows_in_a_row_have_a_limit(
    count: int, paused: bool, broken: dict[str, Any]
) -> None:
    """Beyond it the rollout pauses for data; the next good measurement ends the pause."""
    play = watched(metric(errors_max=2))
    for hour in range(1, count + 1):
        play.measure(hour * HOUR, value("p99", hour * HOUR, 50, **({"rows": 1_000} | broken)))
    play.tick(count * HOUR)
    assert (play.now.pause is PauseReason.MISSING_DATA) is paused
    play.measure(5 * HOUR, value("p99", 5 * HOUR, 50))
    play.tick(5 * HOUR)
    assert (play.now.pause, play.now.phase) == (None, Phase.PROGRESSING)


@pytest.mark.parametrize(("last", "passed"), [(2, False), (3, True)])
def test_a_step_ends_with_so_many_passes_in_a_row(last: int, passed: bool) -> None:
    """``successes_min`` from both sides; an inconclusive one starts the count again."""
    play = watched(metric(fail=200, successes_min=3, failures_max=5))
    numbers = [50, 150, 50, 50, 50][: 2 + last]
    for at, number in enumerate(numbers, 20):
        play.measure(at * HOUR, value("p99", at * HOUR, number))
    play.tick(DAY)
    assert (play.now.stable == "2") is passed
    assert (play.now.phase is Phase.WAITING) is not passed


@pytest.mark.parametrize("measured", [None, "error", "sparse", "stale"])
def test_missing_data_pauses_and_never_passes(measured: str | None) -> None:
    """Not at the bake's end, not at the deadline, where the rollout fails."""
    play = watched(metric(errors_max=99), unproven="promote")
    if measured is not None:
        rows = 3 if measured == "sparse" else 1_000
        at = HOUR if measured == "stale" else DAY
        play.measure(at, value("p99", at, 50, rows, error="no" if measured == "error" else ""))
    play.tick(DAY)
    assert (play.now.phase, play.now.pause) == (Phase.PAUSED, PauseReason.MISSING_DATA)
    assert play.tick(DAY + DEADLINE - 1) is None
    play.tick(DAY + DEADLINE)
    assert (play.now.phase, play.now.weights) == (Phase.FAILED, {"1": 1.0})


@pytest.mark.parametrize(("at", "seen"), [(6 * HOUR, False), (6 * HOUR + 1, True)])
def test_measuring_begins_after_the_delay(at: int, seen: bool) -> None:
    """A cold start is not held against a version; the delay from both sides."""
    play = watched(metric(delay=6 * HOUR))
    play.measure(at, value("p99", at, 900))
    assert (play.now.candidate is None) is seen


def test_what_was_measured_in_an_earlier_step_or_already_is_no_news() -> None:
    """A repeated or late fact changes nothing."""
    play = watched(metric(failures_max=1), steps=(*ONE_STEP, CanaryStep(weight=0.75, bake=DAY)))
    play.measure(HOUR, value("p99", HOUR, 150))
    play.measure(HOUR, value("p99", HOUR, 150))
    assert play.now.metrics["p99"].failures == 1
    play.measure(DAY, value("p99", DAY, 50))
    play.tick(DAY)
    assert (play.now.step, play.now.metrics) == (1, {})
    play.measure(DAY + HOUR, value("p99", DAY, 150))
    assert play.now.metrics == {}


def test_metrics_and_the_comparison_must_both_pass() -> None:
    """Neither stands in for the other."""
    play = watched(metric(), labels_min=LABELS)
    play.measure(DAY, value("p99", DAY, 50))
    play.tick(DAY)
    assert play.now.pause is PauseReason.MISSING_DATA
    play.judge(DAY, LABELS, State.STABLE)
    play.tick(DAY + 1)
    assert play.now.stable == "2"


def judged(**changes: Any) -> Metric:
    return Metric(name="errors", source="error_rate", judge=True, effect=0.01, **changes)


def test_seven_errors_in_ten_beside_none_roll_back() -> None:
    """The golden case through the whole machine, far below ``rows_min``, long before the bake is over."""
    play = watched(judged())
    play.measure(HOUR, counts(HOUR, 7, 10, 0, 10))
    assert (play.now.phase, play.now.weights) == (Phase.ROLLED_BACK, {"1": 1.0})
    assert play.facts[-1].because[0].evidence.interval is not None


def counts(to_ms: int, events: int, rows: int, theirs: int, their_rows: int) -> Measurement:
    return Measurement(
        metric="errors", value=0.0, events=events, rows=rows, reference_events=theirs, reference_rows=their_rows,
        to_ms=to_ms,
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "reason"), [(10, Phase.PAUSED), (1_000, Phase.WAITING)])
def test_sparse_counts_are_missing_and_tied_ones_undecided(rows: int, reason: Phase) -> None:
    """Neither passes: one pauses for data, the other waits for proof."""
    play = watched(judged())
    play.measure(DAY, counts(DAY, rows // 10, rows, rows // 10, rows))
    play.tick(DAY)
    assert play.now.phase is reason


def test_a_person_overrides_what_is_missing_with_a_reason() -> None:
    """Not without one; never harm; and it is on record as an override."""
    play = watched(metric())
    play.tick(DAY)
    assert play.ask(OverrideRequested, version="2", reason=" ").outcome is Outcome.REFUSED
    assert play.ask(OverrideRequested, version="1", reason="why").outcome is Outcome.STALE
    assert play.ask(OverrideRequested, version="2", reason="the archive is down").outcome is Outcome.DONE
    assert play.kinds()[-1] == "analysis-overridden"
    play.tick(DAY + 1)
    assert play.now.stable == "2"


def test_an_override_does_not_pass_harm() -> None:
    """A breach after it rolls back as ever."""
    play = watched(metric())
    play.tick(DAY)
    play.ask(OverrideRequested, version="2", reason="the archive is down")
    play.measure(DAY + HOUR, value("p99", DAY + HOUR, 500))
    assert play.now.phase is Phase.ROLLED_BACK
    assert play.ask(OverrideRequested, version="2", reason="again").outcome is Outcome.STALE


def test_nothing_to_override_is_refused() -> None:
    """A rollout that simply bakes waits for nothing."""
    play = watched(metric())
    assert play.ask(OverrideRequested, version="2", reason="impatience").outcome is Outcome.REFUSED
    play.ask(PauseRequested)
    assert play.ask(OverrideRequested, version="2", reason="impatience").outcome is Outcome.REFUSED


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "latency_p99"},
        {"source": "latency_p99", "limit": 1, "fail": 0.5},
        {"source": "business", "limit": 1, "fail": 2},
        {"source": "latency_p99", "judge": True},
        {"source": "error_rate", "judge": True, "limit": 0.1},
        {"source": "error_rate", "judge": True, "block": "1d"},
        {"source": "loss", "judge": True, "block": "0s"},
        {"source": "drift", "limit": 1},
        {"source": "error_rate", "limit": 0.1, "detector": "harm"},
        {"source": "query", "limit": 1},
        {"source": "error_rate", "fail": 0.1, "alert": 1},
        {"source": "error_rate", "limit": 0.1, "interval": "0s"},
    ],
)
def test_a_metric_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    """In the contract, by name, before anything runs."""
    with pytest.raises(ValidationError, match="metric m"):
        Metric(name="m", **wrong)


def test_metrics_are_named_once() -> None:
    """Their states are kept by name."""
    with pytest.raises(ValidationError, match="same name"):
        Rollout(metrics=(metric(), metric()))


def test_a_promotion_asked_for_by_a_person_needs_no_data() -> None:
    """But what the metrics said goes on record with it."""
    play = watched(metric())
    assert play.ask(PromoteRequested).outcome is Outcome.DONE
