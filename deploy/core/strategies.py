"""How each strategy walks: its stages, who scores beside, and what the end of the last stage means. Pure.

A stage is (share of the traffic, least event time). Shares of 0 mean that the candidate is scored beside the stable
version and answers nobody. In a rollout by regions each of them has the strategy's stages and one more, in which the
candidate has the whole region while it bakes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from schemas.contracts import Rollout
from schemas.control import Deployment
from schemas.regions import RegionTraffic
from schemas.rollout import Metric

Stages = tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A rollout as it will be walked."""

    strategy: str
    stages: Stages
    regions: tuple[str, ...] = ()


def plan_of(rollout: Rollout, asked: Stages | None, *, first: bool) -> Plan:
    """The plan of a deploy. ``asked``: the command's own canary steps. ``first``: there is no stable version yet."""
    if first:
        return Plan("canary" if asked is not None else rollout.strategy, ())
    everywhere = Plan("canary", asked) if asked is not None else _of_strategy(rollout)
    if not rollout.regions or asked == ():
        return everywhere
    stages = everywhere.stages
    if everywhere.strategy == "shadow" and rollout.then == "canary":
        stages += canary_stages(rollout)
    walked = tuple(stage for region in rollout.regions for stage in (*stages, (1.0, region.bake)))
    return replace(everywhere, stages=walked, regions=tuple(region.name for region in rollout.regions))


def _of_strategy(rollout: Rollout) -> Plan:
    match rollout.strategy:
        case "canary":
            return Plan("canary", canary_stages(rollout))
        case "blue-green":
            return Plan("blue-green", ((rollout.preview, rollout.bake),))
        case "ab":
            return Plan("ab", ((rollout.split, rollout.bake),))
        case "shadow" | "dark":
            return Plan(rollout.strategy, ((0.0, rollout.bake),))


def canary_stages(rollout: Rollout) -> Stages:
    """The contract's steps."""
    return tuple((step.weight, step.bake) for step in rollout.steps)


def fault(stages: Stages) -> str | None:
    """Why these stages, asked for by a command, cannot be walked."""
    if all(0 < weight <= 1 and bake_ms >= 0 for weight, bake_ms in stages):
        return None
    return f"steps {stages}: weights are above 0 and at most 1, bakes not negative"


def weights(stable: str | None, candidate: str, share: float) -> dict[str, float]:
    """Shares of the traffic by version; who has none is not named."""
    if stable is None:
        return {}
    shares = {stable: 1 - share, candidate: share}
    return {version: weight for version, weight in shares.items() if weight > 0}


def shadows(stable: str, candidate: str, share: float) -> tuple[str, ...]:
    """Who is scored beside the answer. With traffic on both, both: the comparison is paired, whoever answers."""
    return (candidate,) if share == 0 else (candidate, stable)


def whole(now: Deployment) -> bool:
    """Whether the stage is a region's last: the candidate has all of it, and no answer is the stable version's."""
    return bool(now.regions) and (now.step + 1) % (len(now.steps) // len(now.regions)) == 0


def measurable(rollout: Rollout, now: Deployment) -> Rollout:
    """The rules as far as the stage lets them be measured."""
    return rollout.model_copy(update={"metrics": whole_rules(rollout)}) if whole(now) else rollout


def whole_rules(rollout: Rollout) -> tuple[Metric, ...]:
    """What can be measured of a version that has a whole region: no other answers there can be counted against its own at
    the same time. Pairs still can: the stable version is scored beside."""
    return tuple(metric for metric in rollout.metrics if not metric.judge or metric.source == "loss")


def proof_is_due(now: Deployment) -> bool:
    """Whether the stage is the last before all traffic, of the region if there are any: what is to be shown is shown now."""
    if not now.regions:
        return now.step + 1 == len(now.steps)
    return (now.step + 2) % (len(now.steps) // len(now.regions)) == 0


def waiting_regions(names: tuple[str, ...], stable: str | None) -> tuple[RegionTraffic, ...]:
    """Regions whose turn has not come."""
    only = {} if stable is None else {stable: 1.0}
    return tuple(RegionTraffic(region=name, weights=only) for name in names)


def with_share(now: Deployment, step: int, effective_ms: int) -> tuple[RegionTraffic, ...]:
    """The regions once stage ``step`` begins: its region has the share, one that has baked keeps the whole."""
    assert now.stable is not None
    assert now.candidate is not None
    then = now.model_copy(update={"step": step})
    share, found = now.steps[step][0], list(now.regions)
    here = found[then.turn]
    changes = {
        "weights": weights(now.stable, now.candidate, share),
        "shadow": shadows(now.stable, now.candidate, share),
        "since_ms": effective_ms if here.since_ms is None else here.since_ms,
    }
    if whole(then):
        measured = {name: state.reference for name, state in now.metrics.items()}
        changes["baseline"] = {name: value for name, value in measured.items() if value is not None}
    found[then.turn] = here.model_copy(update=changes)
    if then.turn > now.turn:
        found[now.turn] = found[now.turn].model_copy(update={"until_ms": effective_ms})
    return tuple(found)
