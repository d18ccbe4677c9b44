"""Which measurements are due: a grid of event time, each span once, nothing before there is something to measure."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.core.schedule import due
from schemas.contracts import Rollout
from schemas.control import Deployment, Phase
from schemas.measures import MetricState, Standing
from schemas.rollout import Metric

HOUR = 3_600_000
T0 = 1_000 * HOUR + 7
P99 = Metric(name="p99", source="latency_p99", limit=100)
LOSS = Metric(name="loss", source="loss", judge=True)


def canary(**changes: Any) -> Deployment:
    """v2 at its second step since T0 + a day, v1 stable since long ago."""
    base: dict[str, Any] = {
        "model": "m", "revision": 5, "phase": Phase.PROGRESSING, "stable": "1", "candidate": "2",
        "weights": {"1": 0.75, "2": 0.25}, "rollout_since_ms": T0, "step_since_ms": T0 + 24 * HOUR,
    }  # fmt: skip
    return Deployment(**(base | changes))


def spans(now: Deployment, time_ms: int, *metrics: Metric) -> list[tuple[str, str, int, int]]:
    """(version, metric, start, end) of what is due."""
    return [
        (task.version, metric.name, start, task.at_ms)
        for task in due(now, Rollout(metrics=metrics), time_ms)
        for metric, start in task.metrics
    ]


@pytest.mark.parametrize(("time_ms", "count"), [(T0 + 25 * HOUR - 8, 0), (T0 + 25 * HOUR - 7, 1)])
def test_a_span_is_due_when_it_has_ended(time_ms: int, count: int) -> None:
    """On the hour after the step began, from both sides; not before the step, where the share was another."""
    found = spans(canary(), time_ms, P99)
    assert len(found) == count
    if found:
        assert found == [("2", "p99", T0 + 24 * HOUR, T0 - 7 + 25 * HOUR)]


def test_a_judge_reads_everything_since_the_rollout_began() -> None:
    """Its evidence is cumulative; a limit's is the last window's."""
    at = T0 - 7 + 30 * HOUR
    assert spans(canary(), at, P99, LOSS) == [("2", "p99", at - HOUR, at), ("2", "loss", T0, at)]


def test_what_was_measured_is_not_due_again_and_of_missed_ones_the_last_is() -> None:
    """A controller that was away for a day takes one measurement, not twenty-four."""
    at = T0 - 7 + 30 * HOUR
    state = MetricState(standing=Standing.PASSED, event_time_ms=at)
    held = canary(metrics={"p99": state})
    assert spans(held, at + HOUR - 1, P99) == []
    assert spans(held, at + 20 * HOUR, P99) == [("2", "p99", at + 19 * HOUR, at + 20 * HOUR)]


@pytest.mark.parametrize(("delay", "count"), [(6 * HOUR - 8, 1), (6 * HOUR - 7, 0)])
def test_nothing_is_due_before_the_delay_is_over(delay: int, count: int) -> None:
    """From both sides."""
    assert len(spans(canary(), T0 + 30 * HOUR, P99.model_copy(update={"delay": delay}))) == count


@pytest.mark.parametrize(
    ("block", "time_ms", "count"),
    [
        (None, 2 * HOUR - 8, 0),
        (None, 3 * HOUR - 7, 1),
        (6 * HOUR, 12 * HOUR - 7, 0),
        (6 * HOUR, 13 * HOUR - 7, 1),
    ],
)
def test_paired_losses_are_due_when_two_blocks_are_over(block: int | None, time_ms: int, count: int) -> None:
    """One block shows nothing, so asking sooner would only be missing data; from both sides."""
    now = canary(step_since_ms=T0)
    assert len(spans(now, T0 + time_ms, LOSS.model_copy(update={"block": block}))) == count


def test_nothing_is_due_before_the_first_request() -> None:
    """A rollout that waits at its first gate has nothing to measure."""
    assert spans(canary(rollout_since_ms=None, weights={"1": 1.0}), T0 + 99 * HOUR, P99) == []


def test_the_stable_version_is_watched_beside_a_rollout() -> None:
    """Limits and alerts go on for it; what judges needs two versions."""
    now = canary(promoted_ms=T0 - 500 * HOUR)
    at = T0 - 7 + 30 * HOUR
    assert spans(now, at, P99, LOSS, P99.model_copy(update={"name": "quiet", "watch": False})) == [
        ("2", "p99", at - HOUR, at), ("2", "loss", T0, at), ("2", "quiet", at - HOUR, at), ("1", "p99", at - HOUR, at),
    ]  # fmt: skip


def test_a_version_that_answers_nobody_is_measured_in_its_shadow() -> None:
    """There is nothing else of it."""
    (task,) = due(canary(weights={"1": 1.0}), Rollout(metrics=(P99,)), T0 + 30 * HOUR)
    assert (task.shadow, task.beside) == (True, "1")
