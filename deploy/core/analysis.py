"""What measurements mean for a rollout: one metric at a time, in five standings. Pure.

standing       one measurement                                    in a step
passed         strictly inside the limit; judged: no worse        ``successes_min`` in a row at its end are needed
failed         strictly beyond ``fail``; judged: worse            more than ``failures_max``: rolled back
inconclusive   neither                                            more than ``inconclusive_max``: paused
missing        too few rows, nothing to compare with              with errors: more than ``errors_max`` in a row: paused
error          it could not be taken                              the same; neither ever passes
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from deploy.core import judge
from deploy.core.judge import Finding
from schemas.contracts import Rollout
from schemas.control import Because, PauseReason
from schemas.measures import Measurement, MetricState, Standing
from schemas.rollout import Metric
from schemas.verdicts import Evidence


@dataclass(frozen=True, slots=True)
class Reading:
    """One measurement, judged. ``value`` is what the metric's bounds are compared with."""

    standing: Standing
    value: float | None = None
    reference: float | None = None
    interval: tuple[float, float] | None = None
    better: bool = False
    detail: str = ""


def beyond(metric: Metric, value: float, bound: float) -> bool:
    """Strictly on the worse side of ``bound``."""
    return value > bound if metric.lower_is_better else value < bound


def inside(metric: Metric, value: float, bound: float) -> bool:
    """Strictly on the better side of ``bound``."""
    return value < bound if metric.lower_is_better else value > bound


def read(metric: Metric, m: Measurement, baseline: float | None) -> Reading:
    """One measurement of ``metric``. ``baseline``: the replaced version's value, where there is no stable version beside."""
    if m.error:
        return Reading(Standing.ERROR, detail=m.error)
    if m.value is not None and not math.isfinite(m.value):
        return Reading(Standing.ERROR, detail=f"the measurement is {m.value}")
    if metric.judge:
        return _judged(metric, m)
    if m.value is None or m.rows < metric.rows_min:
        return Reading(Standing.MISSING, detail=f"{m.rows} rows, at least {metric.rows_min} are needed")
    reference = m.reference if m.reference is not None and m.reference_rows >= metric.rows_min else baseline
    value = m.value
    if metric.compare != "value":
        if reference is None or (metric.compare == "change" and reference == 0):
            return Reading(Standing.MISSING, detail="nothing to compare with")
        value = value - reference if metric.compare == "difference" else (value - reference) / abs(reference)
    return Reading(_standing(metric, value), value, reference)


def _standing(metric: Metric, value: float) -> Standing:
    if metric.limit is None:
        return Standing.PASSED
    if inside(metric, value, metric.limit):
        return Standing.PASSED
    if metric.fail is None or beyond(metric, value, metric.fail):
        return Standing.FAILED
    return Standing.INCONCLUSIVE


def _judged(metric: Metric, m: Measurement) -> Reading:
    """Harm counts however few rows show it; to pass there must be ``rows_min``."""
    options = {"lower_is_better": metric.lower_is_better, "effect": metric.effect, "alpha": metric.alpha}
    if m.events is not None and m.reference_events is not None:
        if m.events > m.rows or m.reference_events > m.reference_rows:
            return Reading(Standing.ERROR, detail="more events than rows")
        said = judge.rates(m.events, m.rows, m.reference_events, m.reference_rows, **options)  # type: ignore[arg-type]
        rows = min(m.rows, m.reference_rows)
    elif m.sd is not None and m.value is not None:
        if m.blocks is not None and m.blocks < judge.BLOCKS_MIN:
            detail = f"pairs of {m.blocks} block, of {judge.BLOCKS_MIN} at least they are needed"
            return Reading(Standing.MISSING, detail=detail)
        count = m.rows if m.counts_for is None else m.counts_for
        said = judge.pairs(count, m.value, m.sd, **options)  # type: ignore[arg-type]
        rows = m.rows
    else:
        return Reading(Standing.MISSING, detail="nothing to compare with")
    reading = Reading(
        Standing.INCONCLUSIVE, said.difference, m.reference, said.interval, said.finding is Finding.BETTER
    )
    match said.finding:
        case Finding.WORSE:
            return replace(reading, standing=Standing.FAILED)
        case _ if rows < metric.rows_min:
            detail = f"{rows} rows, at least {metric.rows_min} are needed"
            return replace(reading, standing=Standing.MISSING, better=False, detail=detail)
        case Finding.BETTER | Finding.NO_WORSE:
            return replace(reading, standing=Standing.PASSED)
        case Finding.UNDECIDED:
            return reading
        case _:
            assert_never(said.finding)


def advance(before: MetricState | None, reading: Reading, rows: int, at_ms: int) -> MetricState:
    """The metric's state after one more reading."""
    held = before or MetricState(standing=reading.standing, event_time_ms=at_ms)
    standing = reading.standing
    lost = standing in (Standing.ERROR, Standing.MISSING)
    return MetricState(
        standing=standing,
        value=reading.value,
        reference=held.reference if reading.reference is None else reading.reference,
        rows=rows,
        interval=reading.interval,
        better=reading.better,
        failures=held.failures + (standing is Standing.FAILED),
        inconclusive=held.inconclusive + (standing is Standing.INCONCLUSIVE),
        errors_running=held.errors_running + 1 if lost else 0,
        successes_running=held.successes_running + 1 if standing is Standing.PASSED else 0,
        event_time_ms=at_ms,
        detail=reading.detail,
    )


def breached(metric: Metric, state: MetricState) -> bool:
    """Whether the metric has failed more often than it may."""
    return not metric.dry_run and state.failures > metric.failures_max


def alarming(metric: Metric, state: MetricState) -> bool:
    """Whether the value is beyond the alert's bound."""
    return (
        not metric.dry_run
        and metric.alert is not None
        and state.value is not None
        and beyond(metric, state.value, metric.alert)
    )


def trouble(rollout: Rollout, states: Mapping[str, MetricState]) -> tuple[PauseReason, str] | None:
    """Why a step cannot go on, before its time is over or after."""
    for metric in rollout.metrics:
        state = states.get(metric.name)
        if not metric.gates or state is None:
            continue
        if state.errors_running > metric.errors_max:
            return (
                PauseReason.MISSING_DATA,
                f"{metric.name}: {state.errors_running} in a row: {state.detail or state.standing}",
            )
        # A judge is undecided until it is not; that is no reason to stop.
        if not metric.judge and state.inconclusive > metric.inconclusive_max:
            return PauseReason.INCONCLUSIVE, f"{metric.name}: {state.inconclusive} inconclusive measurements"
    return None


def lacking(
    rollout: Rollout, states: Mapping[str, MetricState], time_ms: int, needed: frozenset[str]
) -> str | None:
    """What data a step still lacks at ``time_ms``, which is after its bake; None when all of ``needed`` are there."""
    for metric in rollout.metrics:
        if metric.name not in needed:
            continue
        state = states.get(metric.name)
        if state is None:
            return f"{metric.name} was not measured"
        if state.standing in (Standing.ERROR, Standing.MISSING):
            return f"{metric.name}: {state.detail or state.standing}"
        if state.event_time_ms < time_ms - 2 * metric.interval:
            return (
                f"{metric.name} was last measured {(time_ms - state.event_time_ms) / 3_600_000:.3g} h before"
            )
    return None


def unproven(rollout: Rollout, states: Mapping[str, MetricState], *, last: bool) -> str | None:
    """The metric that does not let a step pass yet. A judge must have decided by the end of the ``last`` one only, and
    not there when the contract promotes what is not proven."""
    for metric in rollout.metrics:
        if not metric.gates:
            continue
        if metric.judge and not (last and rollout.unproven == "wait"):
            continue
        state = states.get(metric.name)
        if state is None or state.successes_running < metric.successes_min:
            return metric.name
    return None


def because(metric: Metric, state: MetricState) -> Because:
    """A metric's standing as evidence of a decision."""
    bound = metric.limit if metric.limit is not None else metric.alert if metric.alert is not None else 0.0
    return Because(
        signal_id="",
        detector=f"metric/{metric.name}",
        score=state.value if state.value is not None else 0.0,
        threshold=bound,
        evidence=Evidence(
            column=metric.name,
            statistic=metric.source,
            effect=state.value,
            reference=state.reference,
            current=state.value,
            rows=state.rows,
            interval=state.interval,
            note=state.detail,
        ),
    )
