"""One model's state while one message is worked on: what it was, what it becomes, and what is said about it.

The moves themselves are in ``deploy.core.moves`` and its neighbours; this module is what they write on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deploy.core.facts import alert_of, fact_of
from deploy.core.gates import Approvals
from schemas.contracts import ModelContract, Rollout
from schemas.control import (
    Alert,
    Answer,
    Because,
    Command,
    Decision,
    Deployment,
    Outcome,
    Phase,
    Proven,
    Severity,
)
from schemas.ids import content_hash

ANSWERS_KEPT = 64
HANDLED_MAX = 1_024
PROVEN_KEPT = 8
#: How the refusal of a command that nobody trusted begins.
DISTRUSTED = "not trusted: "
#: What a deployment holds of a rollout when none is under way.
NO_ROLLOUT: dict[str, Any] = {
    "steps": (), "step": 0, "step_rows": 0, "pause": None, "analysis": None, "ahead": (), "gate": None,
    "gates_passed": (), "metrics": {}, "regions": (), "region_metrics": {}, "requested_by": "", "entered": 0, "strategy": "canary", "rollout_since_ms": None,
}  # fmt: skip
#: Changes that are held without a revision: they are made again from ``control`` after a restart.
_HELD = ("analysis", "ahead", "metrics", "region_metrics", "watch")


def _nothing_needed(_version: str) -> Approvals:
    return Approvals()


class Away(str):
    """Why a version cannot be looked at now. That says nothing about the version; the same question may be asked again."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class World:
    """What the machine may know beside its state.

    ``verify(version)``: why it must not get traffic, by every check there is (Away: not known), or None. ``intact(version)``: the same by
    checksum and signature alone, for a version that was proven not long ago; ``verify`` when not given.
    ``approvals(version)``: what its risk tier asks for and who has signed. ``time_ms`` is the event time that
    ``control`` has reached, -1 before its first tick.
    """

    contract: ModelContract
    verify: Callable[[str], str | None]
    time_ms: int = -1
    activation_delay_ms: int = 0
    intact: Callable[[str], str | None] | None = None
    approvals: Callable[[str], Approvals] = _nothing_needed

    @property
    def rollout(self) -> Rollout:
        return self.contract.rollout


@dataclass(slots=True)
class Step:
    """What one input led to: a revision to publish (None: nothing to say), facts and alerts, and the state to go on with.

    What is held without a revision is read again after a restart, because offsets move with revisions only. So are
    facts without a revision; their ids repeat, so that whoever records them can pass over the second. Alerts come with
    a revision always.
    """

    state: Deployment
    deployment: Deployment | None = None
    decisions: list[Decision] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reply:
    """How a request is answered."""

    outcome: Outcome
    detail: str


def versions(*names: str | None) -> tuple[str, ...]:
    """The versions among ``names``, each once."""
    return tuple(dict.fromkeys(name for name in names if name is not None))


def short(request_id: str) -> str:
    """What is remembered of a request that was answered."""
    return content_hash(request_id.encode())[:16]


class Machine:
    """The state ``now`` and what is said on the way to it."""

    def __init__(self, before: Deployment | None, world: World) -> None:
        self.world = world
        self._before = before or Deployment(model=world.contract.model, revision=0, phase=Phase.INITIALIZING)
        self.now = self._before
        self._facts: list[Decision] = []
        self._alerts: list[Alert] = []

    @property
    def rollout(self) -> Rollout:
        return self.world.rollout

    @property
    def before(self) -> Deployment:
        return self._before

    def step(self) -> Step:
        """What the message led to."""
        self._resolve_alerts()
        now, before = self.now, self._before
        if now.model_copy(update={name: getattr(before, name) for name in _HELD}) == before:
            return Step(now, None, self._facts)
        revision = now.revision + 1
        contract = self.world.contract.hash
        stamped = now.model_copy(update={"revision": revision, "contract_hash": contract})
        facts = [f.model_copy(update={"deployment_revision": revision}) for f in self._facts]
        return Step(stamped, stamped, facts, self._alerts)

    def set(self, **changes: Any) -> None:
        self.now = self.now.model_copy(update=changes)

    def answer(self, message: Command, reply: Reply, address: tuple[int, int], name: str) -> None:
        """Put the answer into the revision, and remember that the request was handled until it has expired."""
        answer = Answer(
            request_id=message.request_id,
            outcome=reply.outcome,
            detail=reply.detail,
            control_partition=address[0],
            control_offset=address[1],
        )
        self.set(answers=(*self.now.answers, answer)[-ANSWERS_KEPT:])
        if not reply.detail.startswith(DISTRUSTED):
            kept = {k: at for k, at in self.now.handled.items() if at >= self.world.time_ms}
            kept[short(message.request_id)] = message.expires_ms
            newest = sorted(kept.items(), key=lambda item: item[1])[-HANDLED_MAX:]
            self.set(handled=dict(newest))
        if reply.outcome in (Outcome.REFUSED, Outcome.EXPIRED, Outcome.STALE):
            self.fact(f"{name}-{reply.outcome}", message, reply.detail)

    def fact(
        self,
        kind: str,
        cause: Any,
        detail: str,
        *,
        version: str | None = None,
        time_ms: int | None = None,
        because: tuple[Because, ...] = (),
    ) -> None:
        """Record a fact about the state as it is now."""
        at = time_ms if time_ms is not None else getattr(cause, "event_time_ms", self.world.time_ms)
        self._facts.append(fact_of(self.now, self.world.contract, kind, cause, detail, version, at, because))

    def alert(
        self,
        key: str,
        severity: Severity,
        version: str,
        title: str,
        summary: str,
        at_ms: int,
        *,
        runbook: str = "",
        because: tuple[Because, ...] = (),
    ) -> None:
        """Tell somebody, unless they know; ``key`` stands until :meth:`resolve`."""
        if key in self.now.alerting:
            return
        self.set(alerting=(*self.now.alerting, key))
        self._alerts.append(
            alert_of(
                self.now, key, status="trigger", severity=severity, version=version, title=title, summary=summary,
                at_ms=at_ms, runbook=runbook, because=because,
            )
        )  # fmt: skip

    def resolve(self, key: str, version: str, at_ms: int, why: str) -> None:
        """Take an alert back, if it stands."""
        if key not in self.now.alerting:
            return
        self.set(alerting=tuple(k for k in self.now.alerting if k != key))
        self._alerts.append(
            alert_of(
                self.now, key, status="resolve", severity=Severity.INFO, version=version, title=why, summary=why,
                at_ms=at_ms,
            )
        )  # fmt: skip

    def _resolve_alerts(self) -> None:
        """What is said of a version ends when it has left; the fallback's when a version answers again, a rollout's end
        when another begins."""
        on = versions(self.now.stable, self.now.candidate)
        for key in self.now.alerting:
            kind, version = key.split("/", 2)[:2]
            if kind == "fallback":
                gone = self.now.stable is not None
            elif kind in ("rolled-back", "rollout-failed"):
                gone = self.now.phase not in (Phase.ROLLED_BACK, Phase.FAILED)
            else:
                gone = version not in on
            if gone:
                self.resolve(key, version, max(self.now.event_time_ms, self.world.time_ms, 0), "over")

    def effective(self, at_ms: int) -> int:
        """When a planned change that was due at ``at_ms`` takes effect: never in a past that has been answered."""
        return max(at_ms + self.world.activation_delay_ms, self.world.time_ms)

    def proven_with(self, version: str | None, until_ms: int) -> tuple[Proven, ...]:
        """The healthy predecessors when ``version`` leaves the traffic in good health."""
        now = self.now
        kept = [p for p in now.proven if p.version != version and p.version not in now.tripped]
        if version is not None and version not in now.sick and version not in now.tripped:
            kept.append(Proven(version=version, until_ms=until_ms))
        return tuple(kept[-PROVEN_KEPT:])

    def targets(self, leaving: str | None) -> list[str]:
        """Versions a rollback may go to, best first: healthy ones that had all traffic before ``leaving``."""
        now = self.now
        barred = {leaving, *now.tripped, *now.sick}
        listed = versions(now.previous, *(p.version for p in reversed(now.proven)))
        return [version for version in listed if version not in barred]

    def unfit_target(self, version: str, at_ms: int) -> str | None:
        """Why a rollback must not go there. What was proven not long ago is only checked to be the same bytes."""
        until = next((p.until_ms for p in self.now.proven if p.version == version), None)
        recent = until is not None and at_ms <= until + self.rollout.proven_for
        look = self.world.intact if recent and self.world.intact is not None else self.world.verify
        return look(version)
