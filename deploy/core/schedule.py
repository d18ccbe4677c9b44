"""Which measurements are due: on a grid of event time, so that a restarted controller takes the same ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.core.judge import BLOCKS_MIN
from deploy.core.strategies import measurable, whole_rules
from schemas.contracts import Rollout
from schemas.control import Deployment
from schemas.measures import MetricState
from schemas.rollout import Metric


@dataclass(frozen=True, slots=True)
class Due:
    """Measure ``metrics`` of ``version`` as of ``at_ms``; ``beside``: the version to compare with, if there is one.

    Each metric comes with the start of its span (event time, exclusive); the end is ``at_ms`` (inclusive).
    ``shadow``: the version answers nobody, so its shadow's rows are what there is. ``region``: rows of these instances
    only; empty: of all.
    """

    model: str
    version: str
    beside: str | None
    shadow: bool
    revision: int
    at_ms: int
    metrics: tuple[tuple[Metric, int], ...]
    region: str = ""


def due(now: Deployment, rollout: Rollout, time_ms: int) -> list[Due]:
    """What is to be measured at ``time_ms``: the candidate, and the stable version it may have to outlive."""
    found = []
    if now.candidate is not None and now.rollout_since_ms is not None:
        found += _of_candidate(now, now.candidate, rollout, now.rollout_since_ms, time_ms)
    if now.stable is not None and now.promoted_ms is not None:
        watched = tuple(m for m in rollout.metrics if m.watch and not m.judge)
        since = (now.promoted_ms, now.promoted_ms)
        found += _grouped(now, now.stable, None, False, _due(watched, now.watch, since, time_ms))
    return found


def _of_candidate(
    now: Deployment, candidate: str, rollout: Rollout, rollout_since_ms: int, time_ms: int
) -> list[Due]:
    """Everywhere; or in the region under way, and in those that have baked: harm there is harm."""
    here, rules = now.here, measurable(rollout, now).metrics
    weights = now.weights if here is None else here.weights
    since = (now.step_since_ms, rollout_since_ms if here is None else here.since_ms or now.step_since_ms)
    metrics = _due(rules, now.metrics, since, time_ms)
    where = "" if here is None else here.region
    found = _grouped(now, candidate, now.stable, weights.get(candidate, 0.0) == 0, metrics, where)
    for past in now.regions[: now.turn]:
        assert past.since_ms is not None
        assert past.until_ms is not None
        held = now.region_metrics.get(past.region, {})
        metrics = _due(whole_rules(rollout), held, (past.until_ms, past.since_ms), time_ms)
        found += _grouped(now, candidate, now.stable, False, metrics, past.region)
    return found


def _due(
    metrics: tuple[Metric, ...], states: Mapping[str, MetricState], since: tuple[int, int], time_ms: int
) -> list[tuple[Metric, int, int]]:
    """(metric, start, end) of spans that have ended and were not measured yet; of several missed ones the last."""
    step_ms, rollout_ms = since
    found = []
    for metric in metrics:
        at = time_ms // metric.interval * metric.interval
        before = states.get(metric.name)
        if at <= step_ms + metric.delay or (before is not None and before.event_time_ms >= at):
            continue
        if metric.paired and at < rollout_ms + BLOCKS_MIN * metric.block_ms:
            continue
        found.append((metric, rollout_ms if metric.judge else max(at - metric.window_ms, step_ms), at))
    return found


def _grouped(
    now: Deployment,
    version: str,
    beside: str | None,
    shadow: bool,
    metrics: list[tuple[Metric, int, int]],
    region: str = "",
) -> list[Due]:
    return [
        Due(
            model=now.model,
            version=version,
            beside=beside,
            shadow=shadow,
            revision=now.revision,
            at_ms=at,
            metrics=tuple((metric, start) for metric, start, end in metrics if end == at),
            region=region,
        )
        for at in sorted({end for _, _, end in metrics})
    ]
