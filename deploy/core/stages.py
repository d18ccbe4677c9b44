"""What time and measurements do to a rollout: the stage it is in, and whether it may go on.

Everything here is level-triggered: a tick looks at the state as it stands, so it does not matter which tick it is. The
order in which it looks is the order of what matters: harm, a person's pause, a gate, missing data, then progress.
"""

from __future__ import annotations

from deploy.core import analysis, moves, strategies
from deploy.core.facts import RUNBOOKS
from deploy.core.gates import marker
from deploy.core.machine import Machine
from schemas.contracts import Rollout
from schemas.control import Because, CanaryAnalysis, Deployment, Measured, PauseReason, Phase, Severity
from schemas.measures import MetricState, Standing
from schemas.rollout import Metric
from schemas.verdicts import State

AHEAD_KEPT = 64


def needs_time(now: Deployment) -> bool:
    """Whether a tick could change anything: a rollout is open, or a version is kept in memory for a while."""
    return now.candidate is not None or bool(now.warm)


def hold(machine: Machine, message: CanaryAnalysis) -> None:
    """An analysis waits for the first tick at or after its time: which one a tick sees must not depend on who was
    faster."""
    if message.version == machine.now.candidate:
        machine.set(ahead=(*machine.now.ahead, message)[-AHEAD_KEPT:])


def tick(machine: Machine, time_ms: int) -> None:
    """Event time moved: look at the rollout as it stands."""
    now = machine.now
    if now.candidate is None:
        if now.warm and time_ms >= now.event_time_ms + machine.rollout.keep_warm:
            machine.set(warm=())
        return
    seen = _look(machine, time_ms)
    if seen is not None and seen.state is State.DRIFT and now.strategy != "dark":
        moves.drop(machine, seen, Phase.ROLLED_BACK, f"harm shown by {seen.detector}", time_ms)
        return
    if now.pause is PauseReason.REQUESTED:
        return
    if now.pause is PauseReason.REGISTRY:
        moves.start(machine, None, time_ms, machine.world.verify(now.candidate))
        return
    if now.gate is not None:
        if time_ms > now.gate.expires_ms:
            why = f"nobody opened {now.gate.kind} in time"
            moves.drop(machine, None, Phase.FAILED, why, time_ms, trip=False)
        return
    if now.steps:
        _stage(machine, seen, time_ms)


def _look(machine: Machine, time_ms: int) -> CanaryAnalysis | None:
    """The newest analysis of the time reached; one that shows harm is not outdone by a later one."""
    now = machine.now
    due = sorted((a for a in now.ahead if a.event_time_ms <= time_ms), key=lambda a: a.event_time_ms)
    if not due:
        return now.analysis
    harm = next((a for a in due if a.state is State.DRIFT), None)
    machine.set(analysis=harm or due[-1], ahead=tuple(a for a in now.ahead if a.event_time_ms > time_ms))
    return machine.now.analysis


def _stage(machine: Machine, seen: CanaryAnalysis | None, time_ms: int) -> None:
    """A rollout with nothing in its way: is its stage over, does it have its data, has it proven itself?"""
    now, rollout = machine.now, strategies.measurable(machine.rollout, machine.now)
    weight, bake_ms = now.steps[now.step]
    over = time_ms >= now.step_since_ms + bake_ms
    late = time_ms >= now.step_since_ms + bake_ms + rollout.deadline
    last = now.step + 1 == len(now.steps)
    if marker(now, "promote") in now.gates_passed:
        _to_all(machine, seen, time_ms, "asked for")
        return
    if now.strategy == "dark":
        if over:
            moves.stop(machine, None, time_ms, "its dark launch is over")
        return
    if now.strategy == "ab" and _decided(machine, time_ms, over):
        return
    overridden = marker(now, "data") in now.gates_passed
    if not overridden:
        trouble = analysis.trouble(rollout, now.metrics)
        if trouble is not None:
            _pause(machine, trouble[0], trouble[1], late, time_ms)
            return
        if now.pause is not None and not over:
            machine.set(phase=Phase.PROGRESSING, pause=None, event_time_ms=time_ms, reason="data is back")
    if not over or now.strategy == "ab":
        return
    compared = rollout.labels_min > 0 and weight > 0
    if not overridden:
        lack = _lack(machine, rollout, seen, compared, time_ms)
        if lack is not None:
            _pause(machine, PauseReason.MISSING_DATA, lack, late, time_ms)
            return
        open_question = _open_question(machine, rollout, seen, compared)
        if open_question is not None:
            _wait(machine, seen, open_question, late, time_ms)
            return
    if not last:
        if moves.passes(machine, "confirm-traffic-increase", now.steps[now.step + 1][0], time_ms):
            moves.next_stage(machine, seen, time_ms)
    else:
        _end(machine, seen, overridden, compared, time_ms)


def _lack(
    machine: Machine, rollout: Rollout, seen: CanaryAnalysis | None, compared: bool, time_ms: int
) -> str | None:
    """What data the stage lacks. Outcomes of the stages before say nothing about this one's share of the traffic."""
    now = machine.now
    if compared:
        rows = 0 if seen is None else seen.evidence.rows - now.step_rows
        if seen is None or seen.state is State.ERROR or rows < rollout.labels_min:
            return "too few outcomes"
    needed = frozenset(metric.name for metric in rollout.metrics if metric.gates)
    return analysis.lacking(rollout, now.metrics, time_ms, needed)


def _open_question(
    machine: Machine, rollout: Rollout, seen: CanaryAnalysis | None, compared: bool
) -> str | None:
    """What has not been shown yet; None when the stage may end. Between stages it is enough that no harm is shown."""
    last = strategies.proof_is_due(machine.now)
    open_metric = analysis.unproven(rollout, machine.now.metrics, last=last)
    if open_metric is not None:
        return open_metric
    if not last or rollout.unproven == "promote":
        return None
    if compared:
        return None if seen is not None and seen.state is State.STABLE else "the comparison"
    return None if any(metric.gates for metric in rollout.metrics) else "anything that shows it to be as good"


def _end(
    machine: Machine, seen: CanaryAnalysis | None, overridden: bool, compared: bool, time_ms: int
) -> None:
    """The last stage has passed."""
    now, rollout = machine.now, machine.rollout
    if now.strategy == "shadow" and rollout.then == "stop":
        moves.stop(machine, None, time_ms, "shown to be no worse in the shadow", _evidence(machine))
        return
    if now.strategy == "shadow" and rollout.then == "canary" and not now.regions:
        stages = (*now.steps, *strategies.canary_stages(rollout))
        if len(stages) > len(now.steps):
            if moves.passes(machine, "confirm-traffic-increase", stages[len(now.steps)][0], time_ms):
                machine.set(strategy="canary", steps=stages)
                moves.next_stage(machine, None, time_ms)
            return
    if overridden:
        why = "its missing evidence was overridden"
    elif compared and seen is not None:
        proven = "shown to be no worse" if seen.state is State.STABLE else "no harm shown"
        why = f"{proven} on {seen.evidence.rows} outcomes"
    else:
        why = "all its metrics passed"
    _to_all(machine, seen, time_ms, why)


def _to_all(machine: Machine, seen: CanaryAnalysis | None, time_ms: int, why: str) -> None:
    if moves.passes(machine, "confirm-promotion", 1.0, time_ms):
        cause = seen if machine.now.steps and machine.now.steps[machine.now.step][0] > 0 else None
        moves.promote(machine, cause, time_ms, why, _evidence(machine))


def _evidence(machine: Machine) -> tuple[Because, ...]:
    """The standing of every metric, beside what the comparison said."""
    states = machine.now.metrics
    found = [analysis.because(m, states[m.name]) for m in machine.rollout.metrics if m.name in states]
    seen = machine.now.analysis
    if found and seen is not None:
        found.append(
            Because(
                signal_id=seen.signal_id, detector=seen.detector, score=seen.score, threshold=seen.threshold,
                evidence=seen.evidence,
            )
        )  # fmt: skip
    return tuple(found)


def _decided(machine: Machine, time_ms: int, over: bool) -> bool:
    """Whether an A/B test has ended: a winner at any time, or its deadline without one. Losing is a breach elsewhere."""
    now = machine.now
    state = now.metrics.get(machine.rollout.deciding)
    if state is not None and state.better and state.rows > 0:
        if analysis.trouble(machine.rollout, now.metrics) is None:
            _to_all(machine, None, time_ms, f"it won by {machine.rollout.deciding}")
            return True
    elif over:
        why = "undecided: no difference that matters was shown"
        moves.stop(machine, None, time_ms, why, _evidence(machine))
        return True
    return False


def _pause(machine: Machine, reason: PauseReason, why: str, late: bool, time_ms: int) -> None:
    """Stand still until it is mended; the deadline ends it. Missing data never passes."""
    if late:
        end = (
            "too few outcomes within the deadline"
            if why == "too few outcomes"
            else f"{why}, until the deadline"
        )
        moves.drop(machine, None, Phase.FAILED, end, time_ms)
    elif machine.now.pause is not reason:
        machine.set(phase=Phase.PAUSED, pause=reason, event_time_ms=time_ms, reason=why)
        detail = "too few outcomes to judge the candidate" if why == "too few outcomes" else why
        machine.fact("paused", None, f"{reason}: {detail}", time_ms=time_ms, because=_evidence(machine))


def _wait(machine: Machine, seen: CanaryAnalysis | None, what: str, late: bool, time_ms: int) -> None:
    """The stage is over and something is not shown yet."""
    if late:
        moves.drop(machine, seen, Phase.FAILED, "not shown to be as good within the deadline", time_ms)
    elif machine.now.phase is not Phase.WAITING:
        machine.set(phase=Phase.WAITING, pause=None, event_time_ms=time_ms, reason=f"waiting for {what}")
        machine.fact("waiting", seen, f"bakes are over; {what} has not decided", time_ms=time_ms)


# -- measurements -------------------------------------------------------------------------------------------------


def measured(machine: Machine, message: Measured) -> None:
    """Measurements of the candidate, or of the stable version after its promotion. A breach acts at once."""
    now = machine.now
    if message.version == now.candidate and message.deployment_revision >= now.entered:
        _measured_candidate(machine, message)
    elif message.version == now.stable and now.promoted_ms is not None:
        _measured_stable(machine, message, now.promoted_ms)


def _read(
    machine: Machine,
    message: Measured,
    held: dict[str, MetricState],
    since_ms: int,
    baseline: dict[str, float],
) -> list[tuple[Metric, MetricState]]:
    """The metrics that this message moved on. What was measured before, or partly before ``since_ms``, is no news."""
    known = {metric.name: metric for metric in machine.rollout.metrics}
    moved = []
    for m in message.measurements:
        metric, before = known.get(m.metric), held.get(m.metric)
        if metric is None or m.to_ms <= since_ms + metric.delay:
            continue
        if before is not None and message.event_time_ms <= before.event_time_ms:
            continue
        reading = analysis.read(metric, m, baseline.get(metric.name))
        moved.append((metric, analysis.advance(before, reading, m.rows, message.event_time_ms)))
    return moved


def _measured_candidate(machine: Machine, message: Measured) -> None:
    now = machine.now
    if now.rollout_since_ms is None:
        return
    here = now.here
    if here is None or message.region == here.region:
        baseline = here.baseline if here is not None and strategies.whole(now) else {}
        moved = _read(machine, message, now.metrics, now.step_since_ms, baseline)
        machine.set(metrics=now.metrics | {metric.name: state for metric, state in moved})
    else:
        moved = _read_past(machine, message)
    at = message.event_time_ms
    for metric, state in moved:
        _tell(machine, metric, state, message.version, at, message.region)
    for metric, state in moved:
        if analysis.breached(metric, state) and now.strategy != "dark":
            because = (analysis.because(metric, state),)
            why = _failed(metric, state) + (f" in {message.region}" if message.region else "")
            moves.drop(machine, message, Phase.ROLLED_BACK, why, at, because=because)
            return


def _read_past(machine: Machine, message: Measured) -> list[tuple[Metric, MetricState]]:
    """The same of a region that has baked: what it lacks holds up nobody, harm there is harm."""
    now = machine.now
    region = next((r for r in now.regions if r.region == message.region and r.until_ms is not None), None)
    if region is None or region.until_ms is None:
        return []
    held = now.region_metrics.get(region.region, {})
    moved = _forgiven(held, _read(machine, message, held, region.until_ms, region.baseline))
    states = held | {metric.name: state for metric, state in moved}
    machine.set(region_metrics=now.region_metrics | {region.region: states})
    return moved


def _forgiven(
    held: dict[str, MetricState], moved: list[tuple[Metric, MetricState]]
) -> list[tuple[Metric, MetricState]]:
    """A life is longer than a step: a failure long ago is not held against it."""
    return [
        (
            metric,
            state
            if state.failures > _failures(held.get(metric.name))
            else state.model_copy(update={"failures": 0}),
        )
        for metric, state in moved
    ]


def _measured_stable(machine: Machine, message: Measured, since_ms: int) -> None:
    now = machine.now
    at = message.event_time_ms
    moved = _forgiven(now.watch, _read(machine, message, now.watch, since_ms, now.baseline))
    machine.set(watch=now.watch | {metric.name: state for metric, state in moved})
    for metric, state in moved:
        _tell(machine, metric, state, message.version, at)
    for metric, state in moved:
        if state.standing is Standing.PASSED:
            key = f"breach/{message.version}/{metric.name}"
            machine.resolve(key, message.version, at, f"{metric.name} is within its limit again")
        if not (metric.watch and metric.gates and not metric.judge and analysis.breached(metric, state)):
            continue
        because = (analysis.because(metric, state),)
        key = f"breach/{message.version}/{metric.name}"
        if key in machine.now.alerting:
            continue
        why = _failed(metric, state)
        if machine.targets(message.version) and (
            moves.leave_stable(machine, message, message.version, at, why, because=because) is None
        ):
            return
        machine.alert(
            key, Severity.PAGE, message.version, f"{now.model}: {metric.name} is in breach, and there is no way back",
            _failed(metric, state), at, runbook=RUNBOOKS["rollback-impossible"], because=because,
        )  # fmt: skip


def _failures(state: MetricState | None) -> int:
    return 0 if state is None else state.failures


def _failed(metric: Metric, state: MetricState) -> str:
    value = "" if state.value is None else f" is {state.value:.4g}"
    bound = "" if metric.limit is None else f", its limit {metric.limit:.4g}"
    against = "" if not metric.judge else ": worse than the stable version"
    return f"{metric.name}{value}{bound}{against} ({state.rows} rows)"


def _tell(
    machine: Machine, metric: Metric, state: MetricState, version: str, at_ms: int, region: str = ""
) -> None:
    key = f"metric/{version}/{metric.name}" + (f"/{region}" if region else "")
    if analysis.alarming(metric, state):
        where = f" in {region}" if region else ""
        summary = f"v{version}: {metric.name} is {state.value:.4g}{where}, its alert bound {metric.alert:.4g}"
        machine.alert(
            key, Severity(metric.severity), version, f"{machine.now.model}: {metric.name}", summary, at_ms,
            runbook=metric.runbook, because=(analysis.because(metric, state),),
        )  # fmt: skip
    elif state.value is not None:
        machine.resolve(key, version, at_ms, f"{metric.name} is back within its bound")
