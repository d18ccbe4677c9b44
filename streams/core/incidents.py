"""Incidents: one cause of one version, which detectors agree on it, and the messages it becomes. Pure."""

from __future__ import annotations

import fnmatch
from typing import Any, Literal

from pydantic import BaseModel, Field

from schemas.contracts import ModelContract, Rule
from schemas.control import Alert, Because, Decision, Deployment, Severity
from schemas.events import HEADER_TRACE
from schemas.ids import content_hash
from schemas.record import Head
from schemas.verdicts import SignalChanged


class Incident(BaseModel):
    """One cause of one version: which detectors agree, what was done."""

    incident: str
    model: str
    version: str
    role: Literal["stable", "canary", "shadow"]
    rule: str
    opened_ms: int
    trace_id: str | None = None
    agreeing: dict[str, SignalChanged] = Field(default_factory=dict)
    seen: dict[str, SignalChanged] = Field(default_factory=dict)
    severity: Severity | None = Field(
        default=None, description="As last alerted; None before the first alert."
    )
    wanted: bool = Field(default=False, description="Whether the action was ever called for.")
    pending: bool = False
    request_id: str | None = Field(default=None, description="The newest command, until it is answered.")
    acted_ms: int | None = None
    resolved_ms: int | None = None

    @property
    def evidence(self) -> tuple[Because, ...]:
        signals = self.agreeing or self.seen
        return tuple(because_of(signals[name]) for name in sorted(signals))


class ModelState(BaseModel):
    """What policy remembers of one model; one piece of state."""

    incidents: dict[str, Incident] = Field(default_factory=dict)
    held: dict[str, SignalChanged] = Field(
        default_factory=dict,
        description="Verdicts that stand but may open no incident yet, by version/detector.",
    )
    asked: tuple[str, int] | None = Field(
        default=None, description="A retrain request that is not answered yet: its id, when it was made."
    )
    retrained_ms: int | None = Field(
        default=None, description="When the last one that was accepted was asked for."
    )
    commands: dict[int, int] = Field(default_factory=dict, description="Commands by day of event time.")
    deployment: Deployment | None = None
    record: Head = Field(
        default=Head(), description="The end of this stage's chain of facts about the model."
    )


def matching_rule(contract: ModelContract, signal: SignalChanged) -> Rule | None:
    """The first rule of the contract that speaks of this signal."""
    for rule in contract.policy.rules:
        if (
            signal.verdict.state in rule.states
            and signal.role in rule.roles
            and (not rule.families or signal.family in rule.families)
            and any(fnmatch.fnmatchcase(signal.detector, pattern) for pattern in rule.detectors)
        ):
            return rule
    return None


def place(signal: SignalChanged) -> str:
    """Where a verdict stands: version and detector."""
    return f"{signal.version}/{signal.detector}"


def served(deployment: Deployment, version: str) -> bool:
    """Whether requests reach the version, answered by it or not."""
    return version in {deployment.stable, deployment.candidate, *deployment.reached}


def known(deployment: Deployment, version: str) -> bool:
    """Whether the version may still get traffic (again); what is held of others is of no use."""
    return version not in deployment.tripped


def because_of(signal: SignalChanged) -> Because:
    """A signal as evidence of a decision."""
    return Because(
        signal_id=signal.signal_id,
        detector=signal.detector,
        score=signal.verdict.score,
        threshold=signal.verdict.threshold,
        evidence=signal.verdict.evidence,
    )


def rule_named(contract: ModelContract, name: str) -> Rule | None:
    """The contract's rule ``name``, if it still has one."""
    return next((rule for rule in contract.policy.rules if rule.name == name), None)


def headline(incident: Incident) -> str:
    """One line a person understands: which detector, on what, how strong."""
    parts = []
    for because in incident.evidence[:3]:
        evidence = because.evidence
        text = because.detector
        if evidence.column:
            text += f" on {evidence.column}"
        if evidence.current is not None and evidence.reference is not None:
            text += f" ({evidence.effect_name or 'value'} {evidence.reference:.3g} → {evidence.current:.3g})"
        elif evidence.effect is not None:
            text += f" ({evidence.effect_name or 'effect'} {evidence.effect:+.3g})"
        parts.append(text)
    return f"{incident.rule}: {', '.join(parts)}"


def summary(incident: Incident) -> str:
    """The headline, and how far the word of each detector that agrees can be trusted."""
    known = [
        f"{name}: {signal.standing}" for name, signal in sorted(incident.agreeing.items()) if signal.standing
    ]
    return headline(incident) + (f". False alarms of {'; of '.join(known[:3])}" if known else "")


def trace_headers(trace_id: str | None) -> dict[str, bytes]:
    """Kafka headers that carry the trace."""
    return {} if trace_id is None else {HEADER_TRACE: trace_id.encode()}


def command_fields(
    kind: str, contract: ModelContract, incident: Incident, deployment: Deployment, event_time_ms: int
) -> dict[str, Any]:
    """What every command of an incident carries; its id is a content hash, so a replay asks the same."""
    return {
        "request_id": content_hash(f"{kind}/{incident.incident}/{event_time_ms}".encode())[:24],
        "model": contract.model,
        "deployment_revision": deployment.revision,
        "cause": incident.rule,
        "incident": incident.incident,
        "because": incident.evidence,
        "event_time_ms": event_time_ms,
        "expires_ms": event_time_ms + contract.policy.command_ttl,
        "issued_by": f"policy/{incident.rule}",
        "reason": headline(incident),
        "trace_id": incident.trace_id,
        "config_hash": contract.hash,
    }


def fact_of(
    contract: ModelContract,
    incident: Incident,
    deployment: Deployment | None,
    kind: str,
    event_time_ms: int,
    detail: str,
    digest: str,
    request_id: str | None,
) -> Decision:
    """What is on record of an incident; ``digest``: SHA-256 of its version's artifact, empty where none was announced."""
    return Decision(
        decision_id=content_hash(f"{incident.incident}/{kind}/{event_time_ms}".encode())[:24],
        model=contract.model,
        version=incident.version,
        kind=kind,
        actor=f"policy/{incident.rule}",
        request_id=request_id,
        incident=incident.incident,
        deployment_revision=None if deployment is None else deployment.revision,
        detail=detail,
        because=incident.evidence,
        config_hash=contract.hash,
        model_digest=digest,
        event_time_ms=event_time_ms,
        recorded_ms=0,
        trace_id=incident.trace_id,
    )


def alert_of(
    incident: Incident,
    rule: Rule,
    severity: Severity,
    status: Literal["trigger", "resolve"],
    event_time_ms: int,
    summary: str,
) -> Alert:
    """The alert that opens, raises or resolves an incident."""
    return Alert(
        alert_id=content_hash(f"{incident.incident}/{status}/{severity}/{event_time_ms}".encode())[:24],
        dedup_key=incident.incident,
        status=status,
        severity=severity,
        model=incident.model,
        version=incident.version,
        role=incident.role,
        title=f"{incident.model} v{incident.version}: {headline(incident)}"
        if status == "trigger"
        else f"{incident.model} v{incident.version}: {incident.rule} is over, {summary}",
        summary=summary,
        cause=incident.rule,
        runbook=rule.runbook,
        action=rule.action,
        because=incident.evidence,
        event_time_ms=event_time_ms,
        incident=incident.incident,
        trace_id=incident.trace_id,
    )
