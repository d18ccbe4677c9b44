"""Where a rollout waits for a yes, whose yes counts, and when it has enough of them. Pure.

A gate has an id that names the rollout and the step, so that no answer can open a gate it was not given for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from schemas.contracts import Rollout
from schemas.control import Deployment, GateState
from schemas.rollout import Gate, GateKind


@dataclass(frozen=True, slots=True)
class Approvals:
    """What a version's risk tier asks for, who has signed for these bytes in the registry, and who registered them."""

    needed: int = 0
    by: tuple[str, ...] = ()
    author: str = ""


def person(issued_by: str) -> str:
    """Who somebody is, whichever way they came: ``api/Ada`` and ``ada`` are one person."""
    return issued_by.rsplit("/", 1)[-1].strip().casefold()


def configured(rollout: Rollout, kind: GateKind) -> Gate | None:
    """The contract's gate of that kind."""
    return next((gate for gate in rollout.gates if gate.kind == kind), None)


def gate_id(now: Deployment, kind: GateKind) -> str:
    """The gate of this rollout at this step. A promotion is asked for once, whatever step it comes from."""
    step = now.step if kind == "confirm-traffic-increase" else 0
    return f"{now.model}/{now.entered}/{kind}/{step}"


def marker(now: Deployment, what: str) -> str:
    """The name under which a rollout remembers that a person passed ``what`` at this step."""
    return f"{now.model}/{now.entered}/{what}/{now.step}"


def waiting(
    now: Deployment, rollout: Rollout, kind: GateKind, tier: Approvals, weight: float, time_ms: int
) -> GateState | None:
    """The gate before ``weight`` of the traffic, or None when there is none or it has opened.

    Approvals that the risk tier asks for count before the rollout; those in the registry are there already.
    """
    identity = gate_id(now, kind)
    gate = configured(rollout, kind)
    needed = 0 if gate is None or gate.webhook is not None else gate.approvals
    signed = counted(tier.by, now.requested_by, tier.author) if kind == "confirm-rollout" else ()
    if kind == "confirm-rollout":
        needed = max(needed, tier.needed)
    webhook = "" if gate is None or gate.webhook is None else gate.webhook
    if identity in now.gates_passed or (not webhook and len(signed) >= needed):
        return None
    expires = Gate(kind="confirm-rollout").expires if gate is None else gate.expires
    return GateState(
        gate_id=identity,
        kind=kind,
        version=now.candidate or "",
        since_ms=time_ms,
        expires_ms=time_ms + expires,
        approvals_needed=needed,
        approved_by=signed,
        webhook=webhook,
        weight=weight,
        region=_region(now, kind),
    )


def _region(now: Deployment, kind: GateKind) -> str:
    """Where the traffic changes when the gate opens; a promotion is of everywhere."""
    at = {"confirm-rollout": 0, "confirm-traffic-increase": now.step + 1}.get(kind)
    here = None if at is None else now.model_copy(update={"step": at}).here
    return "" if here is None else here.region


def counted(names: Iterable[str], *interested: str) -> tuple[str, ...]:
    """The different people among ``names``, without those whose own wish it is."""
    barred = {"", *(person(name) for name in interested)}
    return tuple(name for name in dict.fromkeys(person(name) for name in names) if name not in barred)


def complete(gate: GateState) -> bool:
    """Whether everybody has said yes: the webhook, if there is one, and as many people as it needs."""
    return (not gate.webhook or gate.answered) and len(gate.approved_by) >= gate.approvals_needed
