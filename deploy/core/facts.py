"""The facts a rollout leaves behind: who or what caused a change, on which evidence. Pure; ids are content hashes."""

from __future__ import annotations

from typing import Any, Literal

from schemas.contracts import ModelContract
from schemas.control import Alert, Because, CanaryAnalysis, Decision, Deployment, Severity
from schemas.ids import content_hash

ACTOR = "controller"
RUNBOOKS = {
    "rollback-unproven": "After the rollback the version does not compute what was recorded at its approval. Compare the "
    "artifact's digest and the scorer's provider; deploy a version that proves.",
    "ended": "A rollout ended without success. The decision holds the evidence; a version that was rolled back comes again "
    "under a new name only.",
    "sick": "Nothing is rolled back onto this version until its golden set is proven or somebody overrides with a reason. "
    "Look at the scorer's log for why it cannot be loaded or run.",
    "awaited": "The store that versions are kept in does not answer this scorer, or refuses it; its log says why. It serves "
    "what it has loaded, the fallback where that is nothing, and loads the rest by itself when the store is back.",
    "fallback": "No healthy version is left: the fallback score answers. Deploy a version or ask for a retrain.",
    "rollback-impossible": "The version on the traffic is in breach and there is none to go back to. Deploy another.",
}


def fact_of(
    now: Deployment,
    contract: ModelContract,
    kind: str,
    cause: Any,
    detail: str,
    version: str | None,
    at_ms: int,
    evidence: tuple[Because, ...] = (),
) -> Decision:
    """One fact about ``now``. ``cause``: the command, report or analysis that led to it, or None for time alone."""
    request = getattr(cause, "request_id", None)
    because: tuple[Because, ...] = evidence or getattr(cause, "because", ())
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


def alert_of(
    now: Deployment,
    key: str,
    *,
    status: Literal["trigger", "resolve"],
    severity: Severity,
    version: str,
    title: str,
    summary: str,
    at_ms: int,
    runbook: str = "",
    because: tuple[Because, ...] = (),
) -> Alert:
    """What an SRE is told of ``key`` (``metric/2/latency``); ids repeat when the same message is read again."""
    dedup = f"controller/{now.model}/{key}"
    return Alert(
        alert_id=content_hash(f"{dedup}/{status}/{at_ms}/{now.revision}".encode())[:24],
        dedup_key=dedup,
        status=status,
        severity=severity,
        model=now.model,
        version=version,
        role="stable" if version == now.stable else "canary",
        title=title,
        summary=summary,
        cause=key.split("/", 1)[0],
        runbook=runbook,
        because=because,
        event_time_ms=at_ms,
        incident=content_hash(dedup.encode())[:16],
    )
