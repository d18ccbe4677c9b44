"""The deployment controller's mind: one state machine a model, pure and level-triggered.

State is the newest ``Deployment`` and nothing else; inputs are the messages of ``control`` in their order, time,
measurements and webhooks' answers among them. So a controller that died reads on from the offset its last revision
names and decides what it would have decided. Planned changes take effect ``activation_delay_ms`` of event time after
the moment that made them due; a rollback at once.

    phase          what may happen                                                              ends in
    (none)         deploy: first version, promoted after verification and its gates             succeeded, waiting
    progressing    stage over, data there, nothing failed: next | harm or breach: rolled-back   progressing, waiting, ...
    waiting        for a gate: yes, no, expiry | for proof: proven | deadline                   progressing, succeeded, failed
    paused         missing or inconclusive data: data, override, deadline | asked for: resume   progressing, failed
                   registry away, before any traffic: verified | unfit | deadline               progressing, failed
    succeeded, failed, rolled-back     deploy or a finished training starts anew                progressing
"""

from __future__ import annotations

from typing import Any, assert_never

from deploy.core import moves, strategies
from deploy.core.facts import RUNBOOKS
from deploy.core.gates import complete, configured, counted, gate_id, marker, person
from deploy.core.machine import DISTRUSTED, Away, Machine, Reply, Step, World, short, versions
from deploy.core.stages import hold, measured, needs_time, tick
from schemas.control import (
    AnyCommand,
    ApproveRequested,
    CanaryAnalysis,
    Command,
    ControlTick,
    Deployment,
    DeployRequested,
    GateAnswered,
    GateState,
    Measured,
    Outcome,
    OverrideRequested,
    PauseReason,
    PauseRequested,
    Phase,
    PromoteRequested,
    RejectRequested,
    ResumeRequested,
    RetrainRequested,
    RollbackRequested,
    ScorerReport,
    Severity,
    TrainingFinished,
)

__all__ = ["DISTRUSTED", "Step", "World", "decide", "needs_time"]


def decide(
    before: Deployment | None,
    message: AnyCommand,
    address: tuple[int, int],
    world: World,
    refused: str | None = None,
) -> Step:
    """One message of ``control``. ``refused``: why it must not be obeyed (its signature), None if it may.

    Every request is answered by a revision that names it; a request answered before is passed over. An answer to a
    command nobody trusted does not count: or a stranger could use up the id of a command that is yet to come. A fact
    nobody trusted is passed over.
    """
    machine = Machine(before, world)
    match message:
        case ControlTick():
            tick(machine, message.event_time_ms)
        case CanaryAnalysis():
            hold(machine, message)
        case ScorerReport() | GateAnswered() | Measured():
            if refused is None:
                _fact(machine, message)
        case _:
            if before is not None and _handled(before, message, refused):
                return Step(before)
            reply = _command(machine, message, refused)
            machine.answer(message, reply, address, message_name(message))
    return machine.step()


def message_name(message: Command) -> str:
    """The command's type as people write it: ``rollback``."""
    return str(getattr(message, "type", "command"))


def _handled(before: Deployment, message: Command, refused: str | None) -> bool:
    if short(message.request_id) in before.handled:
        return True
    answers = [a for a in before.answers if a.request_id == message.request_id]
    return any(refused is not None or not a.detail.startswith(DISTRUSTED) for a in answers)


# -- commands ---------------------------------------------------------------------------------------------------------


def _command(machine: Machine, message: Any, refused: str | None) -> Reply:
    now, time_ms = machine.now, machine.world.time_ms
    if refused is not None:
        return Reply(Outcome.REFUSED, DISTRUSTED + refused)
    if message.expires_ms < time_ms:
        if isinstance(message, TrainingFinished) and message.retrain_id == now.training:
            machine.set(training=None, reason="the training was over after its request had expired")
        return Reply(Outcome.EXPIRED, f"expired at {message.expires_ms}, it is {time_ms}")
    match message:
        case DeployRequested():
            return _deploy(machine, message, message.version, message.steps)
        case RollbackRequested():
            return _rollback(machine, message)
        case RetrainRequested():
            return _retrain(machine, message)
        case TrainingFinished():
            return _trained(machine, message)
        case PromoteRequested():
            return _promote(machine, message)
        case PauseRequested():
            return _pause(machine, message)
        case ResumeRequested():
            return _resume(machine, message)
        case ApproveRequested():
            return _approve(machine, message)
        case RejectRequested():
            return _reject(machine, message)
        case OverrideRequested():
            return _override(machine, message)
        case _:
            assert_never(message)


def _deploy(machine: Machine, cause: Command, version: str, asked: strategies.Stages | None) -> Reply:
    now = machine.now
    if now.candidate is not None:
        return Reply(Outcome.REFUSED, f"a rollout of v{now.candidate} is under way; roll it back or wait")
    if version == now.stable:
        return Reply(Outcome.REFUSED, f"v{version} is the stable version already")
    if version in now.tripped:
        return Reply(Outcome.REFUSED, f"v{version} was rolled back; register it anew under another version")
    if asked is not None and (why := strategies.fault(asked)):
        return Reply(Outcome.REFUSED, why)
    reason = machine.world.verify(version)
    if reason is not None and not isinstance(reason, Away):
        return Reply(Outcome.REFUSED, f"v{version} must not get traffic: {reason}")
    moves.enter(machine, cause, version, strategies.plan_of(machine.rollout, asked, first=now.stable is None))
    return moves.start(machine, cause, cause.event_time_ms, reason)


def _rollback(machine: Machine, message: RollbackRequested) -> Reply:
    now, version = machine.now, message.version
    why = message.reason or message.cause
    if version == now.candidate:
        if 0 < message.deployment_revision < now.entered:
            return Reply(Outcome.STALE, f"it is about an earlier rollout of v{version}")
        moves.drop(machine, message, Phase.ROLLED_BACK, f"rolled back: {why}")
        left = "the fallback" if machine.now.stable is None else f"v{machine.now.stable}"
        return Reply(Outcome.DONE, f"all traffic is back on {left}")
    if version != now.stable:
        return Reply(Outcome.STALE, f"v{version} has no traffic")
    impossible = moves.leave_stable(machine, message, version, message.event_time_ms, why)
    if impossible is None:
        return Reply(Outcome.DONE, f"all traffic is back on v{machine.now.stable}")
    if machine.rollout.no_target == "keep":
        return Reply(Outcome.REFUSED, impossible)
    moves.to_fallback(machine, message, version, message.event_time_ms, why)
    return Reply(Outcome.DONE, f"the fallback answers: {impossible}")


def _retrain(machine: Machine, message: RetrainRequested) -> Reply:
    now = machine.now
    if now.training is not None:
        return Reply(Outcome.REFUSED, f"training for {now.training} is under way")
    if now.candidate is not None:
        return Reply(Outcome.REFUSED, f"a rollout of v{now.candidate} is under way")
    machine.set(training=message.request_id, reason=f"training: {message.reason or message.cause}")
    machine.fact("training-started", message, message.reason or message.cause)
    return Reply(Outcome.ACCEPTED, "training")


def _trained(machine: Machine, message: TrainingFinished) -> Reply:
    if machine.now.training != message.retrain_id:
        return Reply(Outcome.STALE, f"no training for {message.retrain_id} is open")
    machine.set(training=None)
    if message.version is None or message.outcome != "registered":
        machine.fact("training-failed", message, f"{message.outcome}: {message.detail}")
        machine.set(reason=f"training {message.outcome}: {message.detail}")
        return Reply(Outcome.DONE, f"training {message.outcome}")
    figures = ", ".join(f"{name} {value:.3g}" for name, value in sorted(message.metrics.items())[:6])
    machine.fact("version-registered", message, f"v{message.version} ({figures})", version=message.version)
    return _deploy(machine, message, message.version, None)


def _promote(machine: Machine, message: PromoteRequested) -> Reply:
    """Skips what is left of the bakes and their data; verification, a waiting gate and confirm-promotion are not skipped."""
    now = machine.now
    candidate = now.candidate
    if candidate is None:
        return Reply(Outcome.REFUSED, "no rollout is under way")
    if now.gate is not None:
        return Reply(Outcome.REFUSED, f"{now.gate.kind} waits: approve or override it first")
    if now.rollout_since_ms is None:
        return Reply(Outcome.REFUSED, f"the rollout of v{candidate} has not begun: {now.reason}")
    reason = machine.world.verify(candidate)
    if reason is not None:
        return Reply(Outcome.REFUSED, f"v{candidate} must not get traffic: {reason}")
    machine.set(gates_passed=(*now.gates_passed, marker(now, "promote")), pause=None)
    if not moves.passes(machine, "confirm-promotion", 1.0, message.event_time_ms):
        return Reply(Outcome.ACCEPTED, "waits for confirm-promotion")
    moves.promote(machine, message, message.event_time_ms, f"asked for by {message.issued_by}")
    return Reply(Outcome.DONE, f"v{candidate} takes all traffic")


def _pause(machine: Machine, message: PauseRequested) -> Reply:
    if machine.now.candidate is None:
        return Reply(Outcome.REFUSED, "no rollout is under way")
    machine.set(phase=Phase.PAUSED, pause=PauseReason.REQUESTED, reason=f"paused by {message.issued_by}")
    machine.fact("paused", message, message.reason or f"asked for by {message.issued_by}")
    return Reply(Outcome.DONE, "paused")


def _resume(machine: Machine, message: ResumeRequested) -> Reply:
    """A person has looked: inconclusive measurements are counted anew. Data that is missing pauses again."""
    now = machine.now
    if now.phase is not Phase.PAUSED:
        return Reply(Outcome.REFUSED, "nothing is paused")
    _go_on(machine, f"resumed by {message.issued_by}")
    counts = {name: state.model_copy(update={"inconclusive": 0}) for name, state in now.metrics.items()}
    machine.set(metrics=counts)
    machine.fact("resumed", message, message.reason or f"asked for by {message.issued_by}")
    _begin_if_open(machine, message, message.event_time_ms)
    return Reply(Outcome.DONE, "resumed")


def _go_on(machine: Machine, reason: str) -> None:
    waits = machine.now.gate is not None
    machine.set(phase=Phase.WAITING if waits else Phase.PROGRESSING, pause=None, reason=reason)


# -- gates ------------------------------------------------------------------------------------------------------------


def _at_gate(
    machine: Machine, message: ApproveRequested | RejectRequested | OverrideRequested
) -> GateState | Reply:
    """The gate the rollout waits at, if the command is about that rollout and that gate."""
    now = machine.now
    if message.version != now.candidate:
        return Reply(Outcome.STALE, f"no rollout of v{message.version} is under way")
    if 0 < message.deployment_revision < now.entered:
        return Reply(Outcome.STALE, f"it is about an earlier rollout of v{message.version}")
    if now.gate is None:
        return Reply(Outcome.REFUSED, "no gate is waiting")
    wanted = getattr(message, "gate", None)
    if wanted is not None and wanted != now.gate.kind:
        return Reply(Outcome.REFUSED, f"{now.gate.kind} is waiting, not {wanted}")
    return now.gate


def _approve(machine: Machine, message: ApproveRequested) -> Reply:
    gate = _at_gate(machine, message)
    if isinstance(gate, Reply):
        return gate
    who = person(message.issued_by)
    if not gate.approvals_needed:
        return Reply(Outcome.REFUSED, f"{gate.kind} is answered by its webhook; override it with a reason")
    author = machine.world.approvals(gate.version).author
    if not counted((who,), machine.now.requested_by, author):
        return Reply(
            Outcome.REFUSED, f"{who or 'nobody'} asked for this version: somebody else must approve it"
        )
    if who in gate.approved_by:
        return Reply(Outcome.DUPLICATE, f"{who} has approved already")
    gate = gate.model_copy(update={"approved_by": (*gate.approved_by, who)})
    machine.set(gate=gate)
    have = f"{len(gate.approved_by)} of {gate.approvals_needed}"
    machine.fact("gate-approved", message, f"{gate.kind}: {who}, {have}", version=gate.version)
    if not complete(gate):
        return Reply(Outcome.ACCEPTED, f"{have} approvals of {gate.kind}")
    _open(machine, gate, message, message.event_time_ms)
    return Reply(Outcome.DONE, f"{gate.kind} is open")


def _reject(machine: Machine, message: RejectRequested) -> Reply:
    gate = _at_gate(machine, message)
    if isinstance(gate, Reply):
        return gate
    why = message.reason or f"by {message.issued_by}"
    moves.drop(machine, message, Phase.FAILED, f"rejected at {gate.kind}: {why}")
    return Reply(Outcome.DONE, f"the rollout of v{gate.version} is over")


def _override(machine: Machine, message: OverrideRequested) -> Reply:
    """Neither harm nor what a risk tier asks for can be overridden; the latter takes the people it takes."""
    if not message.reason.strip():
        return Reply(Outcome.REFUSED, "an override needs a reason")
    if message.version == machine.now.stable and message.version in machine.now.sick:
        machine.set(sick=tuple(v for v in machine.now.sick if v != message.version))
        machine.fact("sickness-overridden", message, message.reason, version=message.version)
        for kind in ("golden", "sick"):
            machine.resolve(
                f"{kind}/{message.version}", message.version, message.event_time_ms, message.reason
            )
        return Reply(Outcome.DONE, f"v{message.version} counts as healthy again")
    gate = _at_gate(machine, message)
    if isinstance(gate, GateState):
        tier = machine.world.approvals(gate.version)
        have = counted((*gate.approved_by, *tier.by), machine.now.requested_by, tier.author)
        if gate.kind == "confirm-rollout" and len(have) < tier.needed:
            detail = (
                f"its risk tier asks for {tier.needed} approvals, and has {len(have)}: that is not overridden"
            )
            return Reply(Outcome.REFUSED, detail)
        machine.fact("gate-overridden", message, f"{gate.kind}: {message.reason}", version=gate.version)
        _open(machine, gate, message, message.event_time_ms)
        return Reply(Outcome.DONE, f"{gate.kind} is open")
    now = machine.now
    if gate.outcome is Outcome.STALE:
        return gate
    waits = now.phase is Phase.WAITING or now.pause in (PauseReason.MISSING_DATA, PauseReason.INCONCLUSIVE)
    if not waits:
        return Reply(Outcome.REFUSED, "nothing waits that an override could pass")
    machine.set(gates_passed=(*now.gates_passed, marker(now, "data")))
    _go_on(machine, f"overridden by {message.issued_by}")
    machine.fact("analysis-overridden", message, message.reason, version=now.candidate)
    return Reply(Outcome.DONE, "this step goes on without what it waited for")


def _open(machine: Machine, gate: GateState, cause: Command, time_ms: int) -> None:
    """The gate is open. What it held back happens now if nothing else has to be looked at, else at the next tick."""
    now = machine.now
    paused = now.pause is PauseReason.REQUESTED
    machine.set(
        gate=None,
        gates_passed=(*now.gates_passed, gate.gate_id),
        phase=now.phase if paused else Phase.PROGRESSING,
        reason=f"{gate.kind} is open",
    )
    machine.fact(
        "gate-opened", cause, f"{gate.kind} before {gate.weight:.0%}", version=gate.version, time_ms=time_ms
    )
    if not paused:
        _begin_if_open(machine, cause, time_ms)


def _begin_if_open(machine: Machine, cause: Command, time_ms: int) -> None:
    """The first stage, if nothing but its gate, a person or the registry has kept the rollout from it."""
    now = machine.now
    if now.candidate is not None and now.gate is None and now.rollout_since_ms is None:
        moves.start(machine, cause, time_ms, machine.world.verify(now.candidate))


# -- facts ------------------------------------------------------------------------------------------------------------


def _fact(machine: Machine, message: ScorerReport | GateAnswered | Measured) -> None:
    match message:
        case ScorerReport():
            _report(machine, message)
        case GateAnswered():
            _answered(machine, message)
        case Measured():
            measured(machine, message)


def _report(machine: Machine, message: ScorerReport) -> None:
    """A scorer's fact. What it cannot serve or prove is sick: a candidate fails by it, and nothing is rolled back onto it."""
    for version, same in sorted(message.golden.items()):
        kind = "rollback-proven" if same else "rollback-unproven"
        text = "its outputs on the golden set equal" if same else "ITS OUTPUTS ON THE GOLDEN SET DIFFER FROM"
        detail = f"v{version}: {text} those on record ({message.instance})"
        machine.fact(kind, message, detail, version=version)
        if version != machine.now.stable:
            continue
        key = f"golden/{version}"
        if same:
            machine.set(sick=tuple(v for v in machine.now.sick if v != version))
            machine.resolve(
                key, version, message.event_time_ms, "the golden set's outputs equal those on record"
            )
        else:
            _fall_ill(machine, version)
            machine.alert(
                key, Severity.PAGE, version, f"{machine.now.model}: the rollback is not proven", detail,
                message.event_time_ms, runbook=RUNBOOKS["rollback-unproven"],
            )  # fmt: skip
    if message.awaiting is not None:
        _tell_of_awaited(machine, message.instance, message.awaiting, message.event_time_ms)
    now = machine.now
    if now.stable is not None and now.stable in message.failed:
        _fall_ill(machine, now.stable)
        machine.alert(
            f"sick/{now.stable}", Severity.TICKET, now.stable, f"{now.model}: a scorer cannot serve v{now.stable}",
            f"{message.instance}: {message.failed[now.stable]}", message.event_time_ms, runbook=RUNBOOKS["sick"],
        )  # fmt: skip
    if now.candidate is not None and now.candidate in message.failed:
        why = f"{message.instance} cannot serve it: {message.failed[now.candidate]}"
        moves.drop(machine, message, Phase.FAILED, why)


def _tell_of_awaited(machine: Machine, instance: str, awaiting: dict[str, str], at_ms: int) -> None:
    """A scorer lacks what it should serve, for no fault of the version's: somebody must know, and nobody is sick."""
    now = machine.now
    for key in now.alerting:
        kind, version, *who = key.split("/", 2)
        if (kind, who) == ("awaited", [instance]) and version not in awaiting:
            machine.resolve(key, version, at_ms, f"{instance} has loaded v{version}")
    for version in versions(now.stable, now.candidate):
        if version in awaiting:
            machine.alert(
                f"awaited/{version}/{instance}", Severity.TICKET, version, f"{now.model}: a scorer waits for v{version}",
                f"{instance}: {awaiting[version]}", at_ms, runbook=RUNBOOKS["awaited"],
            )  # fmt: skip


def _fall_ill(machine: Machine, version: str) -> None:
    if version not in machine.now.sick:
        machine.set(sick=(*machine.now.sick, version)[-16:])


def _answered(machine: Machine, message: GateAnswered) -> None:
    """A webhook's answer to the question that is open; an answer to any other is passed over."""
    now = machine.now
    if message.version != now.candidate or message.expires_ms < machine.world.time_ms:
        return
    said = f"{message.gate}: status {message.status} after {message.attempts} attempts: {message.detail}"
    if message.gate == "rollback":
        if (
            message.gate_id == gate_id(now, "rollback")
            and message.approved
            and configured(machine.rollout, "rollback")
        ):
            moves.drop(machine, message, Phase.ROLLED_BACK, f"its rollback gate said so: {message.detail}")
        return
    gate = now.gate
    if gate is None or gate.gate_id != message.gate_id or not gate.webhook or gate.answered:
        return
    if message.approved is None:
        machine.fact("gate-unanswered", message, said, version=gate.version)
        return
    machine.fact(
        "gate-answered", message, f"{'yes' if message.approved else 'no'}; {said}", version=gate.version
    )
    if not message.approved:
        moves.drop(machine, message, Phase.FAILED, f"rejected at {gate.kind}: {message.detail}")
        return
    gate = gate.model_copy(update={"answered": True})
    machine.set(gate=gate)
    if complete(gate):
        _open(machine, gate, message, message.event_time_ms)
