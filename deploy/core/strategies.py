"""How each strategy walks: its stages, who scores beside, and what the end of the last stage means. Pure.

A stage is (share of the traffic, least event time). Shares of 0 mean that the candidate is scored beside the stable
version and answers nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.contracts import Rollout

Stages = tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A rollout as it will be walked."""

    strategy: str
    stages: Stages


def plan_of(rollout: Rollout, asked: Stages | None, *, first: bool) -> Plan:
    """The plan of a deploy. ``asked``: the command's own canary steps. ``first``: there is no stable version yet."""
    if first:
        return Plan("canary" if asked is not None else rollout.strategy, ())
    if asked is not None:
        return Plan("canary", asked)
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
    return {stable: 1.0} if share == 0 else {stable: 1 - share, candidate: share}


def shadows(stable: str, candidate: str, share: float) -> tuple[str, ...]:
    """Who is scored beside the answer. With traffic on both, both: the comparison is paired, whoever answers."""
    return (candidate,) if share == 0 else (candidate, stable)
