"""What may be asked of the controller over HTTP: a body, a command and a role for each verb, in one table."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from deploy.http.callers import ApiRole
from schemas.control import (
    ApproveRequested,
    Command,
    DeployRequested,
    OverrideRequested,
    PauseRequested,
    PromoteRequested,
    RejectRequested,
    ResumeRequested,
    RetrainRequested,
    RollbackRequested,
)
from schemas.rollout import GateKind

#: The last millisecond of the year 9999; what lies beyond is a unit mixed up, not a time.
TIME_MS_MAX = 253_402_300_799_999


class Body(BaseModel):
    """What every command may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str = Field(
        default="anonymous",
        min_length=1,
        max_length=100,
        description="Who asks, where nobody has to show it. A caller with a token or sign-in is known by that name.",
    )
    reason: str = Field(default="", max_length=2_000)
    request_id: str | None = Field(
        default=None, min_length=1, max_length=100, description="Idempotency key; made up if not given."
    )
    event_time_ms: int | None = Field(
        default=None, ge=0, le=TIME_MS_MAX, description="Decided as of this event time; now, if not given."
    )


Weight = Annotated[float, Field(gt=0, le=1)]
BakeMs = Annotated[int, Field(ge=0, le=TIME_MS_MAX)]


class VersionBody(Body):
    version: str = Field(min_length=1, max_length=100)


class DeployBody(VersionBody):
    steps: tuple[tuple[Weight, BakeMs], ...] | None = Field(
        default=None,
        max_length=100,
        description="(weight, bake in ms of event time) instead of the contract's; empty: promote at once.",
    )


class RetrainBody(Body):
    version: str | None = Field(
        default=None, min_length=1, max_length=100, description="The version to be succeeded."
    )


class GateBody(VersionBody):
    gate: GateKind | None = Field(default=None, description="Which gate; the one that waits, if not given.")


class OverrideBody(VersionBody):
    reason: str = Field(min_length=1, max_length=2_000, description="Why; it stays on record.")


class Verb(NamedTuple):
    """One thing to ask for."""

    body: type[Body]
    command: type[Command]
    role: ApiRole
    summary: str


VERBS: dict[str, Verb] = {
    "deploy": Verb(DeployBody, DeployRequested, ApiRole.OPERATOR, "Start a rollout of a version"),
    "promote": Verb(Body, PromoteRequested, ApiRole.OPERATOR, "Promote the candidate now"),
    "pause": Verb(Body, PauseRequested, ApiRole.OPERATOR, "Stop a rollout where it is"),
    "resume": Verb(Body, ResumeRequested, ApiRole.OPERATOR, "Let a paused rollout go on"),
    "rollback": Verb(VersionBody, RollbackRequested, ApiRole.OPERATOR, "Take a version off the traffic now"),
    "retrain": Verb(RetrainBody, RetrainRequested, ApiRole.OPERATOR, "Ask the trainer for a new version"),
    "approve": Verb(GateBody, ApproveRequested, ApiRole.OPERATOR, "Say yes at the gate a rollout waits at"),
    "reject": Verb(GateBody, RejectRequested, ApiRole.OPERATOR, "Say no at a gate: the rollout ends"),
    "override": Verb(
        OverrideBody, OverrideRequested, ApiRole.ADMIN, "Pass a gate or end a pause without what it waits for"
    ),
}
