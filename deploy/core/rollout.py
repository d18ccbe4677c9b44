"""The deployment controller's mind: one state machine a model, pure and level-triggered.

State is the newest ``Deployment`` and nothing else; inputs are the messages of ``control`` in their order, time among them.
So a controller that died reads on from the offset its last revision names and decides what it would have decided.
Planned changes take effect ``activation_delay_ms`` of event time after the moment that made them due; a rollback at once.

    phase          what may happen                                                    ends in
    (none)         deploy: first version, promoted after verification                 succeeded
    progressing    bake over and labels enough: next step | harm: rolled-back         progressing, waiting, succeeded
    waiting        last bake over, not proven: proven → succeeded | deadline          succeeded, failed
    paused         missing data: data → progressing | deadline → failed; or resumed   progressing, failed
    succeeded, failed, rolled-back     deploy or a finished training starts anew      progressing
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, assert_never

from deploy.core.facts import fact_of
from schemas.contracts import ModelContract
from schemas.control import (
    Answer,
    AnyCommand,
    CanaryAnalysis,
    Command,
    ControlTick,
    Decision,
    Deployment,
    DeployRequested,
    Outcome,
    PauseReason,
    PauseRequested,
    Phase,
    PromoteRequested,
    ResumeRequested,
    RetrainRequested,
    RollbackRequested,
    ScorerReport,
    TrainingFinished,
)
from schemas.verdicts import State

ANSWERS_KEPT = 64
AHEAD_KEPT = 64
#: How the refusal of a command that nobody trusted begins.
DISTRUSTED = "not trusted: "


@dataclass(frozen=True, slots=True)
class World:
    """What the machine may know beside its state. ``verify(version)``: why it must not get traffic, or None.

    ``time_ms`` is the event time that ``control`` has reached, -1 before its first tick.
    """

    contract: ModelContract
    verify: Callable[[str], str | None]
    time_ms: int = -1
    activation_delay_ms: int = 0


@dataclass(slots=True)
class Step:
    """What one input led to: a revision to publish (None: nothing to say), facts to record, and the state to go on with.

    An analysis is held without a revision: it is read again after a restart, because offsets move with revisions only.
    So are facts without a revision; their ids repeat, so that whoever records them can pass over the second.
    """

    state: Deployment
    deployment: Deployment | None = None
    decisions: list[Decision] = field(default_factory=list)


def decide(
    before: Deployment | None,
    message: AnyCommand,
    address: tuple[int, int],
    world: World,
    refused: str | None = None,
) -> Step:
    """One message of ``control``. ``refused``: why it must not be obeyed (its signature), None if it may.

    Every request is answered by a revision that names it; a request answered before is passed over. An answer to a
    command nobody trusted does not count: or a stranger could use up the id of a command that is yet to come.
    """
    machine = _Machine(before, world)
    if isinstance(message, ControlTick):
        machine.tick(message.event_time_ms)
    elif isinstance(message, CanaryAnalysis):
        machine.analysis(message)
    elif isinstance(message, ScorerReport):
        machine.report(message)
    else:
        known = [] if before is None else [a for a in before.answers if a.request_id == message.request_id]
        if before is not None and any(
            refused is not None or not a.detail.startswith(DISTRUSTED) for a in known
        ):
            return Step(before)
        machine.command(message, refused)
        machine.settle(message, address)
    return machine.step()


#: What a deployment holds of a rollout when none is under way.
_NO_ROLLOUT: dict[str, Any] = {
    "steps": (), "step": 0, "step_rows": 0, "pause": None, "analysis": None, "ahead": (),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Reply:
    outcome: Outcome
    detail: str


def _initial(contract: ModelContract) -> Deployment:
    return Deployment(model=contract.model, revision=0, phase=Phase.INITIALIZING)


class _Machine:
    def __init__(self, before: Deployment | None, world: World) -> None:
        self._world = world
        self._before = before
        self._now = before or _initial(world.contract)
        self._facts: list[Decision] = []
        self._reply = _Reply(Outcome.REFUSED, "")

    def step(self) -> Step:
        before = self._before or _initial(self._world.contract)
        now = self._now
        if now.model_copy(update={"analysis": before.analysis, "ahead": before.ahead}) == before:
            return Step(now, None, self._facts)
        revision = now.revision + 1
        stamped = now.model_copy(update={"revision": revision, "contract_hash": self._world.contract.hash})
        facts = [f.model_copy(update={"deployment_revision": revision}) for f in self._facts]
        return Step(stamped, stamped, facts)

    def settle(self, message: Command, address: tuple[int, int]) -> None:
        """Put the answer into the revision."""
        answer = Answer(
            request_id=message.request_id,
            outcome=self._reply.outcome,
            detail=self._reply.detail,
            control_partition=address[0],
            control_offset=address[1],
        )
        self._set(answers=(*self._now.answers, answer)[-ANSWERS_KEPT:])
        if self._reply.outcome in (Outcome.REFUSED, Outcome.EXPIRED, Outcome.STALE):
            self._fact(f"{message_name(message)}-{self._reply.outcome}", message, self._reply.detail)

    # -- commands -------------------------------------------------------------------------------------------------

    def command(self, message: Any, refused: str | None) -> None:
        if refused is not None:
            self._reply = _Reply(Outcome.REFUSED, DISTRUSTED + refused)
            return
        if message.expires_ms < self._world.time_ms:
            if isinstance(message, TrainingFinished) and message.retrain_id == self._now.training:
                self._set(training=None, reason="the training was over after its request had expired")
            self._reply = _Reply(
                Outcome.EXPIRED, f"expired at {message.expires_ms}, it is {self._world.time_ms}"
            )
            return
        match message:
            case DeployRequested():
                self._reply = self._deploy(message, message.version, message.steps, message.event_time_ms)
            case RollbackRequested():
                self._reply = self._rollback(message)
            case RetrainRequested():
                self._reply = self._retrain(message)
            case TrainingFinished():
                self._reply = self._trained(message)
            case PromoteRequested():
                self._reply = self._promote_now(message)
            case PauseRequested():
                self._reply = self._pause(message)
            case ResumeRequested():
                self._reply = self._resume(message)
            case _:
                assert_never(message)

    def _deploy(
        self, cause: Command, version: str, steps: tuple[tuple[float, int], ...] | None, event_time_ms: int
    ) -> _Reply:
        now = self._now
        if now.candidate is not None:
            return _Reply(
                Outcome.REFUSED, f"a rollout of v{now.candidate} is under way; roll it back or wait"
            )
        if version == now.stable:
            return _Reply(Outcome.REFUSED, f"v{version} is the stable version already")
        if version in now.tripped:
            return _Reply(
                Outcome.REFUSED, f"v{version} was rolled back; register it anew under another version"
            )
        reason = self._world.verify(version)
        if reason is not None:
            return _Reply(Outcome.REFUSED, f"v{version} must not get traffic: {reason}")
        plan = (
            tuple((s.weight, s.bake) for s in self._world.contract.rollout.steps) if steps is None else steps
        )
        if not all(0 < weight <= 1 and bake_ms >= 0 for weight, bake_ms in plan):
            return _Reply(
                Outcome.REFUSED, f"steps {plan}: weights are above 0 and at most 1, bakes not negative"
            )
        if now.stable is None or not plan:
            self._set(candidate=version)
            self._promote(
                cause, event_time_ms, "the first version" if now.stable is None else "asked to skip all steps"
            )
            return _Reply(Outcome.DONE, f"v{version} takes all traffic")
        effective = self._effective(event_time_ms)
        self._set(
            phase=Phase.PROGRESSING,
            candidate=version,
            steps=plan,
            step=0,
            step_since_ms=effective,
            effective_ms=effective,
            weights={now.stable: 1 - plan[0][0], version: plan[0][0]},
            # Whoever answers, both score: the comparison is paired, and 5 % of the traffic is enough to see harm.
            shadow=(version, now.stable),
            # The rollback target of the stable version stays at hand: the stable one can fall ill meanwhile.
            warm=_versions(now.previous),
            pause=None,
            analysis=None,
            ahead=(),
            step_rows=0,
            event_time_ms=event_time_ms,
            reason=f"canary of v{version} at {plan[0][0]:.0%}",
        )
        self._fact(
            "canary-started", cause, f"v{version} gets {plan[0][0]:.0%} beside v{now.stable}", version=version
        )
        return _Reply(Outcome.ACCEPTED, f"canary at {plan[0][0]:.0%}")

    def _rollback(self, message: RollbackRequested) -> _Reply:
        now = self._now
        version = message.version
        if version not in now.weights:
            return _Reply(Outcome.STALE, f"v{version} has no traffic")
        if version == now.candidate:
            self._drop_candidate(
                message, Phase.ROLLED_BACK, f"rolled back: {message.reason or message.cause}"
            )
            return _Reply(Outcome.DONE, f"all traffic is back on v{now.stable}")
        target = now.previous
        if target is None or target in now.tripped:
            self._fact(
                "rollback-impossible",
                message,
                f"v{version} is sick and there is no healthy version to go back to",
            )
            return _Reply(Outcome.REFUSED, "no healthy version to go back to")
        reason = self._world.verify(target)
        if reason is not None:
            self._fact("rollback-impossible", message, f"v{target} must not get traffic: {reason}")
            return _Reply(Outcome.REFUSED, f"v{target} must not get traffic: {reason}")
        if now.candidate is not None:
            self._fact("rollout-failed", message, f"v{now.candidate}: its rollout ends with that of v{version}",
                       version=now.candidate)  # fmt: skip
        self._set(
            phase=Phase.ROLLED_BACK,
            stable=target,
            candidate=None,
            previous=None,
            weights={target: 1.0},
            shadow=(),
            warm=(version,),
            tripped=(*now.tripped, version),
            **_NO_ROLLOUT,
            effective_ms=0,
            event_time_ms=message.event_time_ms,
            reason=f"v{version} rolled back to v{target}: {message.reason or message.cause}",
        )
        self._fact(
            "rolled-back",
            message,
            f"v{version} to v{target}: {message.reason or message.cause}",
            version=version,
        )
        return _Reply(Outcome.DONE, f"all traffic is back on v{target}")

    def _retrain(self, message: RetrainRequested) -> _Reply:
        now = self._now
        if now.training is not None:
            return _Reply(Outcome.REFUSED, f"training for {now.training} is under way")
        if now.candidate is not None:
            return _Reply(Outcome.REFUSED, f"a rollout of v{now.candidate} is under way")
        self._set(training=message.request_id, reason=f"training: {message.reason or message.cause}")
        self._fact("training-started", message, message.reason or message.cause)
        return _Reply(Outcome.ACCEPTED, "training")

    def _trained(self, message: TrainingFinished) -> _Reply:
        if self._now.training != message.retrain_id:
            return _Reply(Outcome.STALE, f"no training for {message.retrain_id} is open")
        self._set(training=None)
        if message.version is None or message.outcome != "registered":
            self._fact("training-failed", message, f"{message.outcome}: {message.detail}")
            self._set(reason=f"training {message.outcome}: {message.detail}")
            return _Reply(Outcome.DONE, f"training {message.outcome}")
        figures = ", ".join(f"{name} {value:.3g}" for name, value in sorted(message.metrics.items())[:6])
        self._fact("version-registered", message, f"v{message.version} ({figures})", version=message.version)
        return self._deploy(message, message.version, None, message.event_time_ms)

    def _promote_now(self, message: PromoteRequested) -> _Reply:
        candidate = self._now.candidate
        if candidate is None:
            return _Reply(Outcome.REFUSED, "no rollout is under way")
        reason = self._world.verify(candidate)
        if reason is not None:
            return _Reply(Outcome.REFUSED, f"v{candidate} must not get traffic: {reason}")
        self._promote(message, message.event_time_ms, f"asked for by {message.issued_by}")
        return _Reply(Outcome.DONE, f"v{candidate} takes all traffic")

    def _pause(self, message: PauseRequested) -> _Reply:
        if self._now.candidate is None:
            return _Reply(Outcome.REFUSED, "no rollout is under way")
        self._set(phase=Phase.PAUSED, pause=PauseReason.REQUESTED, reason=f"paused by {message.issued_by}")
        self._fact("paused", message, message.reason or f"asked for by {message.issued_by}")
        return _Reply(Outcome.DONE, "paused")

    def _resume(self, message: ResumeRequested) -> _Reply:
        if self._now.phase is not Phase.PAUSED:
            return _Reply(Outcome.REFUSED, "nothing is paused")
        self._set(phase=Phase.PROGRESSING, pause=None, reason=f"resumed by {message.issued_by}")
        self._fact("resumed", message, message.reason or f"asked for by {message.issued_by}")
        return _Reply(Outcome.DONE, "resumed")

    # -- facts ----------------------------------------------------------------------------------------------------

    def analysis(self, message: CanaryAnalysis) -> None:
        """Held for the first tick at or after its time: which one a tick sees must not depend on who was faster."""
        if message.version == self._now.candidate:
            self._set(ahead=(*self._now.ahead, message)[-AHEAD_KEPT:])

    def _look(self, time_ms: int) -> CanaryAnalysis | None:
        """The newest analysis of the time reached; one that shows harm is not outdone by a later one."""
        now = self._now
        due = sorted((a for a in now.ahead if a.event_time_ms <= time_ms), key=lambda a: a.event_time_ms)
        if not due:
            return now.analysis
        harm = next((a for a in due if a.state is State.DRIFT), None)
        self._set(analysis=harm or due[-1], ahead=tuple(a for a in now.ahead if a.event_time_ms > time_ms))
        return self._now.analysis

    def report(self, message: ScorerReport) -> None:
        """A scorer's fact: it never makes a revision by itself, but for a candidate that cannot be served."""
        for version, same in sorted(message.golden.items()):
            kind = "rollback-proven" if same else "rollback-unproven"
            text = (
                "its outputs on the golden set equal" if same else "ITS OUTPUTS ON THE GOLDEN SET DIFFER FROM"
            )
            self._fact(
                kind, message, f"v{version}: {text} those on record ({message.instance})", version=version
            )
        candidate = self._now.candidate
        if candidate is not None and candidate in message.failed:
            self._drop_candidate(
                message, Phase.FAILED, f"{message.instance} cannot serve it: {message.failed[candidate]}"
            )

    # -- time -----------------------------------------------------------------------------------------------------

    def tick(self, time_ms: int) -> None:
        """Event time moved: look at the rollout as it stands."""
        now = self._now
        if now.candidate is None:
            return
        analysis = self._look(time_ms)
        if analysis is not None and analysis.state is State.DRIFT:
            self._drop_candidate(analysis, Phase.ROLLED_BACK, f"harm shown by {analysis.detector}", time_ms)
            return
        if now.pause is PauseReason.REQUESTED:
            return
        _, bake_ms = now.steps[now.step]
        over = time_ms >= now.step_since_ms + bake_ms
        late = time_ms >= now.step_since_ms + bake_ms + self._world.contract.rollout.deadline
        # Outcomes of this step: those of the steps before say nothing about its share of the traffic.
        rows = 0 if analysis is None else analysis.evidence.rows - now.step_rows
        enough = analysis is not None and rows >= self._world.contract.rollout.labels_min
        if not over:
            return
        if not enough or analysis is None or analysis.state is State.ERROR:
            self._lacks_data(late, time_ms)
            return
        if now.step + 1 < len(now.steps):
            self._next_step(analysis, time_ms)
        elif analysis.state is State.STABLE or self._world.contract.rollout.unproven == "promote":
            proven = "shown to be no worse" if analysis.state is State.STABLE else "no harm shown"
            self._promote(analysis, time_ms, f"{proven} on {analysis.evidence.rows} outcomes")
        elif late:
            self._drop_candidate(
                analysis, Phase.FAILED, "not shown to be as good within the deadline", time_ms
            )
        elif now.phase is not Phase.WAITING:
            self._set(
                phase=Phase.WAITING, pause=None, event_time_ms=time_ms, reason="waiting for the comparison"
            )
            self._fact("waiting", analysis, "bakes are over; the comparison has not decided", time_ms=time_ms)

    def _lacks_data(self, late: bool, time_ms: int) -> None:
        if late:
            self._drop_candidate(None, Phase.FAILED, "too few outcomes within the deadline", time_ms)
        elif self._now.pause is not PauseReason.MISSING_DATA:
            self._set(
                phase=Phase.PAUSED,
                pause=PauseReason.MISSING_DATA,
                event_time_ms=time_ms,
                reason="too few outcomes",
            )
            self._fact("paused", None, "too few outcomes to judge the candidate", time_ms=time_ms)

    def _next_step(self, analysis: CanaryAnalysis, time_ms: int) -> None:
        now = self._now
        assert now.candidate is not None
        assert now.stable is not None
        step = now.step + 1
        weight = now.steps[step][0]
        effective = self._effective(time_ms)
        self._set(
            phase=Phase.PROGRESSING,
            pause=None,
            step=step,
            step_rows=analysis.evidence.rows,
            step_since_ms=effective,
            effective_ms=effective,
            weights={now.stable: 1 - weight, now.candidate: weight},
            event_time_ms=time_ms,
            reason=f"v{now.candidate} at {weight:.0%}",
        )
        self._fact("step-passed", analysis, f"v{now.candidate} from {now.steps[now.step][0]:.0%} to {weight:.0%}",
                   version=now.candidate, time_ms=time_ms)  # fmt: skip

    def _promote(self, cause: Any, time_ms: int, why: str) -> None:
        now = self._now
        version = now.candidate
        assert version is not None
        self._set(
            phase=Phase.SUCCEEDED,
            stable=version,
            candidate=None,
            previous=now.stable,
            weights={version: 1.0},
            shadow=(),
            warm=_versions(now.stable),
            **_NO_ROLLOUT,
            # Where nothing healthy answered before, there is nothing to wait for.
            effective_ms=0 if now.stable is None else self._effective(time_ms),
            event_time_ms=time_ms,
            reason=f"v{version} promoted: {why}",
        )
        self._fact("promoted", cause, f"v{version}: {why}", version=version, time_ms=time_ms)

    def _drop_candidate(self, cause: Any, phase: Phase, why: str, time_ms: int | None = None) -> None:
        now = self._now
        version = now.candidate
        assert version is not None
        at = time_ms if time_ms is not None else getattr(cause, "event_time_ms", now.event_time_ms)
        self._set(
            phase=phase,
            candidate=None,
            weights={} if now.stable is None else {now.stable: 1.0},
            shadow=(),
            warm=_versions(version, now.previous),
            tripped=(*now.tripped, version),
            **_NO_ROLLOUT,
            effective_ms=0,
            event_time_ms=at,
            reason=f"v{version} {why}",
        )
        self._fact("rolled-back" if phase is Phase.ROLLED_BACK else "rollout-failed", cause, f"v{version}: {why}",
                   version=version, time_ms=at)  # fmt: skip

    # -- helpers --------------------------------------------------------------------------------------------------

    def _effective(self, at_ms: int) -> int:
        """When a planned change that was due at ``at_ms`` takes effect: never in a past that has been answered."""
        return max(at_ms + self._world.activation_delay_ms, self._world.time_ms)

    def _set(self, **changes: Any) -> None:
        self._now = self._now.model_copy(update=changes)

    def _fact(
        self, kind: str, cause: Any, detail: str, *, version: str | None = None, time_ms: int | None = None
    ) -> None:
        at = time_ms if time_ms is not None else getattr(cause, "event_time_ms", self._world.time_ms)
        self._facts.append(fact_of(self._now, self._world.contract, kind, cause, detail, version, at))


def _versions(*versions: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(version for version in versions if version is not None))


def message_name(message: Command) -> str:
    """The command's type as people write it: ``rollback``."""
    return str(getattr(message, "type", "command"))
