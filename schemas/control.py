"""Commands, answers and facts: how the monitor asks, how the controller answers, what is on record.

Commands and facts are different types. A command may be refused; a fact happened. Every request is answered by a
``Deployment`` revision that names it, so a request without an answer is itself an alarm.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from schemas.ids import Role
from schemas.verdicts import Evidence, State


class Message(BaseModel):
    """Base of commands and facts: immutable; unknown fields are ignored, so an older reader survives a newer writer."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Severity(StrEnum):
    INFO = "info"
    TICKET = "ticket"
    PAGE = "page"


class Because(Message):
    """One signal a decision rests on."""

    signal_id: str
    detector: str
    score: float
    threshold: float
    evidence: Evidence = Evidence()


class Command(Message):
    """What every command carries. Topic ``control``, key ``model``.

    ``deployment_revision`` is the revision the sender had seen; ``event_time_ms`` when, in the data's time, it was
    decided; ``expires_ms`` (event time) after which it must not be obeyed.
    """

    request_id: str
    model: str
    deployment_revision: int = 0
    cause: str
    incident: str = ""
    because: tuple[Because, ...] = ()
    event_time_ms: int
    expires_ms: int
    issued_by: str
    reason: str = ""
    trace_id: str | None = None
    config_hash: str = ""
    signature: str = ""
    key_id: str = ""


class RollbackRequested(Command):
    """Take ``version`` off the traffic now. Scorers trip at once; the controller decides and answers."""

    type: Literal["rollback"] = "rollback"
    version: str


class RetrainRequested(Command):
    """Train a successor of ``version`` (None: the model's first) on labels known by ``event_time_ms``."""

    type: Literal["retrain"] = "retrain"
    version: str | None = None


class DeployRequested(Command):
    """Start a rollout of ``version`` (a person's or the trainer's wish)."""

    type: Literal["deploy"] = "deploy"
    version: str
    steps: tuple[tuple[float, int], ...] | None = Field(
        default=None, description="(weight, bake_ms) steps instead of the contract's; empty: promote at once."
    )


class PromoteRequested(Command):
    """Promote the candidate now, skipping what is left of its bake times (never its verification)."""

    type: Literal["promote"] = "promote"


class PauseRequested(Command):
    """Stop a rollout where it is until resumed."""

    type: Literal["pause"] = "pause"


class ResumeRequested(Command):
    type: Literal["resume"] = "resume"


class TrainingFinished(Command):
    """The trainer's report on ``retrain_id``: a registered version, or why there is none."""

    type: Literal["trained"] = "trained"
    retrain_id: str
    version: str | None
    outcome: Literal["registered", "refused", "failed"]
    detail: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)


class ScorerReport(Command):
    """A scorer instance's fact for the controller: what it serves, what it tripped, golden-set comparisons."""

    type: Literal["scorer"] = "scorer"
    instance: str
    tripped: tuple[str, ...] = ()
    serving: dict[str, float] = Field(default_factory=dict)
    failed: dict[str, str] = Field(
        default_factory=dict, description="Version to the reason it cannot be served."
    )
    golden: dict[str, bool] = Field(
        default_factory=dict, description="Version to: outputs equal those on record."
    )


class CanaryAnalysis(Message):
    """What the comparison of a candidate with the stable version says now. A fact that policy passes on, so that the
    controller reads one ordered topic and its decisions are a function of it."""

    type: Literal["analysis"] = "analysis"
    model: str
    version: str
    detector: str
    state: State
    evidence: Evidence = Evidence()
    score: float = 0.0
    threshold: float = 0.0
    event_time_ms: int
    signal_id: str = ""
    trace_id: str | None = None


class ControlTick(Message):
    """Event time for whoever reads ``control`` and is not a monitor task (controller, notifier, replay)."""

    type: Literal["tick"] = "tick"
    event_time_ms: int
    source: str


AnyCommand = Annotated[
    RollbackRequested
    | RetrainRequested
    | DeployRequested
    | PromoteRequested
    | PauseRequested
    | ResumeRequested
    | TrainingFinished
    | ScorerReport
    | CanaryAnalysis
    | ControlTick,
    Field(discriminator="type"),
]
COMMANDS: TypeAdapter[AnyCommand] = TypeAdapter(AnyCommand)


class Phase(StrEnum):
    """Where a model's rollout stands; persisted, and the only vocabulary for it."""

    INITIALIZING = "initializing"
    STEADY = "steady"
    PROGRESSING = "progressing"
    WAITING = "waiting"
    PROMOTING = "promoting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"
    PAUSED = "paused"


class PauseReason(StrEnum):
    """Why a rollout stands still. Each has one way out."""

    REQUESTED = "requested"
    MISSING_DATA = "missing-data"
    INCONCLUSIVE = "inconclusive"
    UNVERIFIED = "unverified"


class Outcome(StrEnum):
    """How a request was answered."""

    ACCEPTED = "accepted"
    DONE = "done"
    REFUSED = "refused"
    EXPIRED = "expired"
    STALE = "stale"
    DUPLICATE = "duplicate"


class Answer(Message):
    """The controller's answer to one request, and the ``control`` address up to which it has read."""

    request_id: str
    outcome: Outcome
    detail: str = ""
    control_partition: int = -1
    control_offset: int = -1


class Deployment(Message):
    """The routing state of a model. Topic ``deployments``, key ``model``, compacted: the newest revision is the truth.

    ``weights`` maps version to share of traffic, sums to 1 (empty: no healthy version, the fallback answers).
    Requests with ``event_time_ms >= effective_ms`` follow this revision, earlier ones the one before; a rollback has
    ``effective_ms`` 0. ``tripped`` versions are never served, whatever the weights say.
    """

    model: str
    revision: int
    phase: Phase
    stable: str | None = None
    candidate: str | None = None
    previous: str | None = Field(default=None, description="The rollback target: last proven stable version.")
    weights: dict[str, float] = Field(default_factory=dict)
    shadow: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()
    tripped: tuple[str, ...] = ()
    step: int = 0
    steps: tuple[tuple[float, int], ...] = ()
    step_since_ms: int = 0
    pause: PauseReason | None = None
    training: str | None = Field(
        default=None, description="Id of the retrain request that is being worked on."
    )
    effective_ms: int = 0
    event_time_ms: int = 0
    answers: tuple[Answer, ...] = ()
    analysis: CanaryAnalysis | None = Field(
        default=None, description="The candidate's newest, of the time reached."
    )
    ahead: tuple[CanaryAnalysis, ...] = Field(default=(), description="Analyses of a time not reached yet.")
    step_rows: int = Field(default=0, description="Outcomes the analysis rested on when the step began.")
    control_offsets: dict[int, int] = Field(
        default_factory=dict, description="Next offset to read on ``control``."
    )
    control_times: dict[str, int] = Field(
        default_factory=dict, description="Event time by source of ticks, as of ``control_offsets``."
    )
    reason: str = ""
    trace_id: str | None = None
    contract_hash: str = ""


class Decision(Message):
    """One append-only fact: who or which rule did what, on which evidence. Topic ``decisions``, key ``model``."""

    decision_id: str
    model: str
    version: str | None = None
    kind: str = Field(
        description="E.g. alert-opened, retrain-requested, canary-started, step-passed, rolled-back."
    )
    actor: str
    request_id: str | None = None
    incident: str | None = None
    deployment_revision: int | None = None
    detail: str = ""
    because: tuple[Because, ...] = ()
    config_hash: str = ""
    model_digest: str = ""
    event_time_ms: int
    recorded_ms: int
    trace_id: str | None = None
    signature: str = ""
    key_id: str = ""


class Alert(Message):
    """What an SRE subscribes to. Topic ``alerts``, key ``dedup_key``: a trigger, and later its resolve."""

    alert_id: str
    dedup_key: str
    status: Literal["trigger", "resolve"]
    severity: Severity
    model: str
    version: str | None = None
    role: Role | None = None
    title: str
    summary: str
    cause: str
    runbook: str = ""
    action: str = "none"
    because: tuple[Because, ...] = ()
    event_time_ms: int
    incident: str
    links: dict[str, str] = Field(default_factory=dict)
    trace_id: str | None = None


def signable(message: Message) -> bytes:
    """The bytes a signature covers: canonical JSON of everything but the signature itself."""
    data: dict[str, Any] = message.model_dump(mode="json", exclude={"signature", "key_id"})
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
