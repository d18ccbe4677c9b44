"""The moves of a rollout: begin, next step, promote, stop, roll back. Each leaves a consistent state and its facts."""

from __future__ import annotations

from typing import Any

from deploy.core import strategies
from deploy.core.facts import RUNBOOKS
from deploy.core.gates import waiting
from deploy.core.machine import NO_ROLLOUT, Away, Machine, Reply, versions
from schemas.control import Because, Command, Deployment, Measured, Outcome, PauseReason, Phase, Severity
from schemas.rollout import GateKind


def enter(machine: Machine, cause: Command, version: str, plan: strategies.Plan) -> None:
    """A version becomes the candidate, without any traffic yet."""
    machine.set(
        phase=Phase.PROGRESSING,
        candidate=version,
        strategy=plan.strategy,
        steps=plan.stages,
        regions=strategies.waiting_regions(plan.regions, machine.now.stable),
        region_metrics={},
        step=0,
        step_rows=0,
        pause=None,
        analysis=None,
        ahead=(),
        metrics={},
        gates_passed=(),
        gate=None,
        requested_by=cause.issued_by,
        entered=machine.before.revision + 1,
        # The rollback target of the stable version stays at hand: the stable one can fall ill meanwhile.
        warm=versions(machine.now.previous),
        event_time_ms=cause.event_time_ms,
    )


def start(machine: Machine, cause: Any, time_ms: int, reason: str | None) -> Reply:
    """From a candidate to its first traffic, once it is known to be fit (``reason``: why it is not) and past its gate."""
    now = machine.now
    version = now.candidate
    assert version is not None
    if isinstance(reason, Away):
        await_registry(machine, cause, time_ms, reason)
        return Reply(Outcome.ACCEPTED, f"waits for the registry: {reason}")
    if reason is not None:
        drop(machine, cause, Phase.FAILED, f"must not get traffic: {reason}", time_ms, trip=False)
        return Reply(Outcome.REFUSED, f"v{version} must not get traffic: {reason}")
    if now.pause is PauseReason.REGISTRY:
        machine.set(phase=Phase.PROGRESSING, pause=None, event_time_ms=time_ms, reason="the registry is back")
        machine.fact("resumed", None, f"v{version} is verified: the registry is back", time_ms=time_ms)
    if not passes(machine, "confirm-rollout", now.steps[0][0] if now.steps else 1.0, time_ms):
        return Reply(Outcome.ACCEPTED, "waits for confirm-rollout")
    return begin(machine, cause, time_ms)


def await_registry(machine: Machine, cause: Any, time_ms: int, why: str) -> None:
    """Nothing can be said of the candidate: it waits, without traffic, and not for ever."""
    now = machine.now
    if now.pause is not PauseReason.REGISTRY:
        machine.set(
            phase=Phase.PAUSED,
            pause=PauseReason.REGISTRY,
            event_time_ms=time_ms,
            reason="the registry is away",
        )
        machine.fact(
            "paused", cause, f"{PauseReason.REGISTRY}: {why}", version=now.candidate, time_ms=time_ms
        )
    elif time_ms > now.event_time_ms + machine.rollout.deadline:
        drop(machine, None, Phase.FAILED, "the registry was away until the deadline", time_ms, trip=False)


def begin(machine: Machine, cause: Any, time_ms: int) -> Reply:
    """The first stage, or all traffic where there are no stages."""
    now = machine.now
    version = now.candidate
    assert version is not None
    if now.stable is None or not now.steps:
        if not passes(machine, "confirm-promotion", 1.0, time_ms):
            return Reply(Outcome.ACCEPTED, "waits for confirm-promotion")
        first = now.stable is None
        promote(machine, cause, time_ms, "the first version" if first else "asked to skip all steps")
        return Reply(Outcome.DONE, f"v{version} takes all traffic")
    share = now.steps[0][0]
    effective = machine.effective(time_ms)
    where = of_region(now, 0)
    machine.set(
        phase=Phase.PROGRESSING,
        step=0,
        step_since_ms=effective,
        rollout_since_ms=effective,
        effective_ms=effective,
        **_traffic(now, 0, effective),
        event_time_ms=time_ms,
        reason=f"{now.strategy} of v{version} at {share:.0%}{where}",
    )
    machine.fact(f"{now.strategy}-started", cause, f"v{version} gets {share:.0%}{where} beside v{now.stable}",
                 version=version, time_ms=time_ms)  # fmt: skip
    return Reply(Outcome.ACCEPTED, f"{now.strategy} at {share:.0%}")


def _traffic(now: Deployment, step: int, effective_ms: int) -> dict[str, Any]:
    """Who has the traffic once stage ``step`` begins. In a rollout by regions nothing changes outside them."""
    assert now.stable is not None
    assert now.candidate is not None
    if now.regions:
        return {"regions": strategies.with_share(now, step, effective_ms)}
    share = now.steps[step][0]
    return {
        "weights": strategies.weights(now.stable, now.candidate, share),
        "shadow": strategies.shadows(now.stable, now.candidate, share),
    }


def of_region(now: Deployment, step: int) -> str:
    """`` of REGION`` for sentences, of the region that ``step`` is in; empty without regions."""
    here = now.model_copy(update={"step": step}).here
    return "" if here is None else f" of {here.region}"


def passes(machine: Machine, kind: GateKind, weight: float, time_ms: int) -> bool:
    """Whether the gate before ``weight`` is open; else the rollout waits there."""
    now = machine.now
    assert now.candidate is not None
    tier = machine.world.approvals(now.candidate)
    gate = waiting(now, machine.rollout, kind, tier, weight, time_ms)
    if gate is None:
        return True
    machine.set(
        phase=Phase.WAITING, pause=None, gate=gate, event_time_ms=time_ms, reason=f"waiting for {kind}"
    )
    needs = "its webhook" if gate.webhook else f"{gate.approvals_needed - len(gate.approved_by)} approvals"
    where = f" of {gate.region}" if gate.region else ""
    machine.fact("gate-waiting", None, f"{kind} before {weight:.0%}{where}: waits for {needs}",
                 version=now.candidate, time_ms=time_ms)  # fmt: skip
    return False


def next_stage(machine: Machine, cause: Any, time_ms: int) -> None:
    """More traffic."""
    now = machine.now
    assert now.candidate is not None
    assert now.stable is not None
    step = now.step + 1
    weight = now.steps[step][0]
    effective, where = machine.effective(time_ms), of_region(now, step)
    machine.set(
        phase=Phase.PROGRESSING,
        pause=None,
        step=step,
        step_rows=0 if now.analysis is None else now.analysis.evidence.rows,
        step_since_ms=effective,
        effective_ms=effective,
        metrics={},
        **_traffic(now, step, effective),
        event_time_ms=time_ms,
        reason=f"v{now.candidate} at {weight:.0%}{where}",
    )
    change = f"from {now.steps[now.step][0]:.0%} to {weight:.0%}{where}"
    kind, detail = "step-passed", f"v{now.candidate} {change}"
    if now.here is not None and machine.now.turn > now.turn:
        kind, detail = (
            "region-passed",
            f"v{now.candidate} has baked in {now.here.region}: {weight:.0%}{where} next",
        )
    machine.fact(kind, cause, detail, version=now.candidate, time_ms=time_ms)


def promote(machine: Machine, cause: Any, time_ms: int, why: str, because: tuple[Because, ...] = ()) -> None:
    """All traffic to the candidate, at one instant; the version it replaces stays at hand."""
    now = machine.now
    version = now.candidate
    assert version is not None
    proven = machine.proven_with(now.stable, time_ms)
    baseline = {name: m.reference for name, m in now.metrics.items() if m.reference is not None}
    machine.set(
        phase=Phase.SUCCEEDED,
        stable=version,
        candidate=None,
        previous=None,
        proven=proven,
        weights={version: 1.0},
        shadow=(),
        warm=versions(now.stable),
        sick=tuple(v for v in now.sick if v != version),
        **NO_ROLLOUT,
        watch={},
        baseline=baseline,
        promoted_ms=time_ms,
        # Where nothing healthy answered before, there is nothing to wait for.
        effective_ms=0 if now.stable is None else machine.effective(time_ms),
        event_time_ms=time_ms,
        reason=f"v{version} promoted: {why}",
    )
    machine.set(previous=next(iter(machine.targets(version)), None))
    machine.fact("promoted", cause, f"v{version}: {why}", version=version, time_ms=time_ms, because=because)


def drop(
    machine: Machine,
    cause: Any,
    phase: Phase,
    why: str,
    time_ms: int | None = None,
    *,
    trip: bool = True,
    kind: str | None = None,
    because: tuple[Because, ...] = (),
) -> None:
    """The candidate leaves; ``trip``: for good. The stable version has all traffic, unless it is the sick one."""
    now = machine.now
    version = now.candidate
    assert version is not None
    at = time_ms if time_ms is not None else getattr(cause, "event_time_ms", now.event_time_ms)
    had_traffic = version in now.answering
    machine.set(
        phase=phase,
        candidate=None,
        weights={} if now.stable is None else {now.stable: 1.0},
        shadow=(),
        warm=versions(version, now.previous),
        tripped=(*now.tripped, version) if trip else now.tripped,
        **NO_ROLLOUT,
        effective_ms=0,
        event_time_ms=at,
        reason=f"v{version} {why}",
    )
    machine.set(proven=tuple(p for p in now.proven if p.version not in machine.now.tripped))
    default = "rolled-back" if phase is Phase.ROLLED_BACK else "rollout-failed"
    machine.fact(kind or default, cause, f"v{version}: {why}", version=version, time_ms=at, because=because)
    if kind is None and (cause is None or isinstance(cause, Measured)):
        tell_of_end(machine, default, version, why, at, because)
    if now.stable is not None and now.stable in now.sick and had_traffic:
        _leave_sick(machine, cause, now.stable, at)


def tell_of_end(
    machine: Machine, kind: str, version: str, why: str, at_ms: int, because: tuple[Because, ...]
) -> None:
    """What the controller ended by itself, nobody else tells of; it stands until the next rollout."""
    machine.alert(
        f"{kind}/{version}", Severity.TICKET, version, f"{machine.now.model}: v{version} {kind}", why, at_ms,
        runbook=RUNBOOKS["ended"], because=because,
    )  # fmt: skip


def _leave_sick(machine: Machine, cause: Any, stable: str, at_ms: int) -> None:
    """The traffic would go back onto a version no scorer can vouch for: it goes to a healthy one, or to the fallback."""
    why = "it is sick, and nothing is rolled back onto it"
    if leave_stable(machine, cause, stable, at_ms, why, trip=False) is not None:
        to_fallback(machine, cause, stable, at_ms, "it is sick", trip=False)


def leave_stable(
    machine: Machine,
    cause: Any,
    version: str,
    at_ms: int,
    why: str,
    *,
    trip: bool = True,
    because: tuple[Because, ...] = (),
) -> str | None:
    """Roll the stable ``version`` back to the newest healthy predecessor. Returns why it was not possible, or None.

    A target that cannot be looked at now had traffic before, so it was looked at then; it is taken when there is no other,
    and each scorer checks its bytes before it serves them."""
    now = machine.now
    faults: list[str] = []
    unseen: list[tuple[str, str]] = []
    for target in machine.targets(version):
        fault = machine.unfit_target(target, at_ms)
        if fault is None:
            break
        if isinstance(fault, Away):
            unseen.append((target, fault))
        faults.append(f"v{target} must not get traffic: {fault}")
    else:
        target = unseen[0][0] if unseen else ""
        text = "; ".join(faults) or "no healthy version to go back to"
        if not target:
            machine.fact("rollback-impossible", cause, f"v{version} is sick: {text}", version=version,
                         time_ms=at_ms, because=because)  # fmt: skip
            return text
        why = f"{why}; v{target} was not looked at again: {unseen[0][1]}"
    if now.candidate is not None:
        machine.fact("rollout-failed", cause, f"v{now.candidate}: its rollout ends with that of v{version}",
                     version=now.candidate, time_ms=at_ms)  # fmt: skip
    machine.set(
        phase=Phase.ROLLED_BACK,
        stable=target,
        candidate=None,
        previous=None,
        weights={target: 1.0},
        shadow=(),
        warm=versions(version),
        tripped=(*now.tripped, version) if trip else now.tripped,
        **NO_ROLLOUT,
        watch={},
        baseline={},
        promoted_ms=at_ms,
        effective_ms=0,
        event_time_ms=at_ms,
        reason=f"v{version} rolled back to v{target}: {why}",
    )
    machine.set(proven=tuple(p for p in now.proven if p.version not in {target, *machine.now.tripped}))
    machine.set(previous=next(iter(machine.targets(target)), None))
    machine.fact("rolled-back", cause, f"v{version} to v{target}: {why}", version=version,
                 time_ms=at_ms, because=because)  # fmt: skip
    if isinstance(cause, Measured):
        tell_of_end(machine, "rolled-back", version, why, at_ms, because)
    return None


def to_fallback(
    machine: Machine, cause: Any, version: str, at_ms: int, why: str, *, trip: bool = True
) -> None:
    """Nobody healthy is left: the fallback answers, which is less than a model and more than a harmful one."""
    now = machine.now
    if now.candidate is not None:
        machine.fact("rollout-failed", cause, f"v{now.candidate}: its rollout ends with that of v{version}",
                     version=now.candidate, time_ms=at_ms)  # fmt: skip
    machine.set(
        phase=Phase.ROLLED_BACK,
        stable=None,
        candidate=None,
        previous=None,
        weights={},
        shadow=(),
        warm=versions(version),
        tripped=(*now.tripped, version) if trip else now.tripped,
        **NO_ROLLOUT,
        watch={},
        baseline={},
        effective_ms=0,
        event_time_ms=at_ms,
        reason=f"v{version} rolled back to the fallback: {why}",
    )
    machine.fact(
        "fallback", cause, f"v{version}: {why}; no healthy version is left", version=version, time_ms=at_ms
    )
    machine.alert(
        f"fallback/{version}", Severity.PAGE, version, f"{now.model}: the fallback answers",
        f"v{version} was taken off the traffic ({why}) and no healthy version is left", at_ms,
        runbook=RUNBOOKS["fallback"],
    )  # fmt: skip


def stop(machine: Machine, cause: Any, time_ms: int, why: str, because: tuple[Because, ...] = ()) -> None:
    """A rollout that was never meant to end in traffic, or was not decided, ends; the version may come again."""
    drop(machine, cause, Phase.SUCCEEDED, why, time_ms, trip=False, kind="rollout-stopped", because=because)
