"""The facts a rollout leaves behind: who or what caused a change, on which evidence. Pure; ids are content hashes."""

from __future__ import annotations

from typing import Any

from schemas.contracts import ModelContract
from schemas.control import Because, CanaryAnalysis, Decision, Deployment
from schemas.ids import content_hash

ACTOR = "controller"


def fact_of(
    now: Deployment,
    contract: ModelContract,
    kind: str,
    cause: Any,
    detail: str,
    version: str | None,
    at_ms: int,
) -> Decision:
    """One fact about ``now``. ``cause``: the command, report or analysis that led to it, or None for time alone."""
    request = getattr(cause, "request_id", None)
    because: tuple[Because, ...] = getattr(cause, "because", ())
    if isinstance(cause, CanaryAnalysis):
        because = (
            Because(
                signal_id=cause.signal_id,
                detector=cause.detector,
                score=cause.score,
                threshold=cause.threshold,
                evidence=cause.evidence,
            ),
        )
    identity = f"{now.model}/{kind}/{request}/{at_ms}/{version}/{now.revision}/{detail}"
    return Decision(
        decision_id=content_hash(identity.encode())[:24],
        model=now.model,
        version=version or getattr(cause, "version", None) or now.candidate,
        kind=kind,
        actor=getattr(cause, "issued_by", None) or ACTOR,
        request_id=request,
        incident=getattr(cause, "incident", None) or None,
        detail=detail,
        because=because,
        config_hash=contract.hash,
        event_time_ms=at_ms,
        recorded_ms=0,
        trace_id=getattr(cause, "trace_id", None),
    )
