"""A training that gives no model is an incident: what an SRE is told of it, and when it is over. Pure."""

from __future__ import annotations

from schemas.contracts import ModelContract
from schemas.control import Alert, RetrainRequested, Severity, TrainingFinished
from schemas.ids import content_hash

RUNBOOK = (
    "The model in service has not changed. Read the reason: a refused snapshot is looked at before its thresholds "
    "(training.checks) are; a failed trainer has its error in the trainer's log. Then ask for a retrain."
)


def raised(
    request: RetrainRequested, report: TrainingFinished, contract: ModelContract, failures: int
) -> Alert:
    """The alert of a failed or refused training. ``failures``: how many in a row, this one included."""
    waits = contract.training.every is not None and failures >= contract.training.failures_max
    return Alert(
        alert_id=_id(report, "trigger"),
        dedup_key=_key(request.model),
        status="trigger",
        severity=Severity.TICKET,
        model=request.model,
        version=request.version,
        title=f"{request.model}: the retrain was {report.outcome}",
        summary=f"{report.detail} ({failures} in a row{'; the schedule waits for a person' if waits else ''})",
        cause=request.cause,
        runbook=RUNBOOK,
        because=request.because,
        event_time_ms=request.event_time_ms,
        incident=_key(request.model),
        trace_id=request.trace_id,
    )


def resolved(request: RetrainRequested, report: TrainingFinished) -> Alert:
    """The end of the incident: a training worked again."""
    return Alert(
        alert_id=_id(report, "resolve"),
        dedup_key=_key(request.model),
        status="resolve",
        severity=Severity.TICKET,
        model=request.model,
        version=report.version,
        title=f"{request.model}: a retrain has worked again",
        summary=report.detail,
        cause=request.cause,
        event_time_ms=request.event_time_ms,
        incident=_key(request.model),
        trace_id=request.trace_id,
    )


def _key(model: str) -> str:
    return f"{model}/training"


def _id(report: TrainingFinished, status: str) -> str:
    return content_hash(f"{report.retrain_id}/{status}".encode())[:32]
