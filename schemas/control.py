"""Commands, answers and facts: how the monitor asks, how the controller answers, what is on record.

Commands and facts are different types. A command may be refused; a fact happened. Every request is answered by a
``Deployment`` revision that names it, so a request without an answer is itself an alarm.
"""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from schemas.base import Message
from schemas.ids import Role
from schemas.measures import Measurement, MetricState
from schemas.regions import RegionTraffic
from schemas.rollout import GateKind
from schemas.verdicts import Evidence, State

FLOAT_MAX = sys.float_info.max
#: For fields that came later to what is signed: an empty one is not written, so an older signature holds and an older
#: reader's does too.
LATER: dict[str, Any] = {"exclude_if": operator.not_}


class Severity(StrEnum):
    INFO = "info"
    TICKET = "ticket"
    PAGE = "page"


def _bounded(score: float) -> float:
    return max(-FLOAT_MAX, min(FLOAT_MAX, score))


#: A score without bound is the largest number there is: JSON has no infinity, and ``null`` could not be read back.
Score = Annotated[float, AfterValidator(_bounded)]


class Because(Message):
    """One signal a decision rests on."""

    signal_id: str
    detector: str
    score: Score
    threshold: Score
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


class ApproveRequested(Command):
    """One person's yes at the gate a rollout waits at. ``issued_by`` is who; nobody who asked for the rollout counts.

    ``gate`` None: whichever gate is waiting. A yes for a gate that is not waiting is refused, never kept for later.
    """

    type: Literal["approve"] = "approve"
    version: str
    gate: GateKind | None = None


class RejectRequested(Command):
    """One person's no: the rollout ends, the version may be deployed again."""

    type: Literal["reject"] = "reject"
    version: str
    gate: GateKind | None = None


class OverrideRequested(Command):
    """Pass the gate, or end the pause for missing or inconclusive data, without what it waits for. ``reason`` must say why.

    It never passes verification or harm. On record as an override, with who and why.
    """

    type: Literal["override"] = "override"
    version: str


class GateAnswered(Command):
    """What a gate's webhook said to one question: a fact of the controller's shell. ``approved`` None: it gave no answer."""

    type: Literal["gate-answer"] = "gate-answer"
    version: str
    gate_id: str
    gate: GateKind
    approved: bool | None
    status: int = Field(default=0, description="HTTP status; 0 when there was none.")
    attempts: int = Field(default=1, ge=1)
    detail: str = ""


class Measured(Command):
    """Measurements of the version that is rolled out or watched, taken by the controller's shell: a fact it tells itself
    on ``control``, so that what is decided on them is a function of that topic, and is decided again after a crash."""

    type: Literal["measured"] = "measured"
    version: str
    measurements: tuple[Measurement, ...] = Field(max_length=100)
    region: str = Field(default="", description="Where, if the rollout goes by regions.", **LATER)


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
    awaiting: dict[str, str] | None = Field(
        default=None, description="Version to why the registry cannot be asked for it; None: nothing new."
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
    score: Score = 0.0
    threshold: Score = 0.0
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
    | ApproveRequested
    | RejectRequested
    | OverrideRequested
    | GateAnswered
    | Measured
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
    REGISTRY = "registry-away"


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


class GateState(Message):
    """The gate a rollout waits at. ``approved_by``: who has said yes so far, as names without the way they came."""

    gate_id: str
    kind: GateKind
    version: str
    since_ms: int
    expires_ms: int
    approvals_needed: int = 0
    approved_by: tuple[str, ...] = ()
    webhook: str = ""
    answered: bool = Field(default=False, description="The webhook has said yes; people have not yet.")
    weight: float = Field(default=0, description="Share of the traffic the version gets when the gate opens.")
    region: str = Field(default="", description="Where it gets it; empty: everywhere.")


class Proven(Message):
    """A version that had all traffic and left it in good health, at ``until_ms``: what may be rolled back to."""

    version: str
    until_ms: int


class Deployment(Message):
    """The routing state of a model. Topic ``deployments``, key ``model``, compacted: the newest revision is the truth.

    ``weights`` maps version to share of traffic, sums to 1 (empty: no healthy version, the fallback answers).
    Requests with ``event_time_ms >= effective_ms`` follow this revision, earlier ones the one before; a rollback has
    ``effective_ms`` 0. ``tripped`` versions are never served, whatever the weights say. ``regions`` are those of a rollout
    by regions, in its order: ``steps`` are then the stages of the first, of the next, and so on, and ``weights`` and
    ``shadow`` count where no region of the list is.
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
    regions: tuple[RegionTraffic, ...] = ()
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
    strategy: str = "canary"
    requested_by: str = Field(default="", description="Who asked for the rollout that is under way.")
    entered: int = Field(default=0, description="Revision at which the candidate came in.")
    rollout_since_ms: int | None = Field(
        default=None, description="Event time of the first stage; None before it."
    )
    gate: GateState | None = None
    gates_passed: tuple[str, ...] = Field(default=(), description="Ids of this rollout's gates that opened.")
    metrics: dict[str, MetricState] = Field(
        default_factory=dict, description="Newest standing of each metric of the candidate."
    )
    region_metrics: dict[str, dict[str, MetricState]] = Field(
        default_factory=dict, description="The same of each region whose turn is over, since then."
    )
    watch: dict[str, MetricState] = Field(
        default_factory=dict, description="The same of the stable version, after its promotion."
    )
    alerting: tuple[str, ...] = Field(
        default=(), description="What somebody was told of and stands: ``metric/VERSION/NAME`` and the like."
    )
    baseline: dict[str, float] = Field(
        default_factory=dict, description="The replaced version's value of each metric, as last measured."
    )
    promoted_ms: int | None = Field(
        default=None, description="Event time at which the stable version got all traffic."
    )
    proven: tuple[Proven, ...] = Field(default=(), description="Healthy predecessors, newest last.")
    sick: tuple[str, ...] = Field(
        default=(), description="Versions a scorer cannot serve or prove: never a rollback's target."
    )
    handled: dict[str, int] = Field(
        default_factory=dict, description="Short hash of every request answered, until it has expired."
    )
    control_offsets: dict[int, int] = Field(
        default_factory=dict, description="Next offset to read on ``control``."
    )
    control_times: dict[str, int] = Field(
        default_factory=dict, description="Event time by source of ticks, as of ``control_offsets``."
    )
    reason: str = ""
    trace_id: str | None = None
    contract_hash: str = ""
    facts: int = Field(default=0, description="How many facts the controller had recorded of this model.")
    facts_head: str = Field(default="", description="Digest of the last of them; see ``schemas.record``.")

    @property
    def turn(self) -> int:
        """Place of the region under way in ``regions``; 0 without any. Each has as many stages."""
        return self.step // (len(self.steps) // len(self.regions)) if self.regions else 0

    @property
    def here(self) -> RegionTraffic | None:
        """The region under way."""
        return self.regions[self.turn] if self.regions else None

    def traffic_in(self, region: str) -> tuple[dict[str, float], tuple[str, ...]]:
        """Weights and shadows that an instance of ``region`` obeys."""
        found = next((r for r in self.regions if r.region == region), None)
        return (self.weights, self.shadow) if found is None else (found.weights, found.shadow)

    @property
    def regional_weights(self) -> dict[str, dict[str, float]]:
        """Weights by region; empty outside a rollout by regions."""
        return {region.region: region.weights for region in self.regions}

    @property
    def answering(self) -> frozenset[str]:
        """Versions with a share of the traffic of any region."""
        shares = (self.weights, *(r.weights for r in self.regions))
        return frozenset(version for weights in shares for version, weight in weights.items() if weight > 0)

    @property
    def reached(self) -> frozenset[str]:
        """Versions that requests of any region reach, answered by them or not."""
        return self.answering.union(self.shadow, *(r.shadow for r in self.regions))


class Decision(Message):
    """One append-only fact: who or which rule did what, on which evidence. Topic ``decisions``, key ``model``.

    ``writer``, ``sequence`` and ``previous`` make the facts of one writer about one model a chain (``schemas.record``).
    """

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
    weights: dict[str, float] | None = Field(
        default=None, description="Share of traffic by version after this, when it made a revision."
    )
    regions: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="The same by region, in a rollout by regions.", **LATER
    )
    writer: str = Field(default="", description="Which service recorded it; each keeps a chain a model.")
    sequence: int = Field(default=0, ge=0, description="Place in the chain, from 1.")
    previous: str = Field(default="", description="Digest of the fact before; empty for the first.")
    witnessed: dict[str, str] = Field(
        default_factory=dict,
        description="Other writers' chains as read so far: writer to ``sequence:digest``.",
    )
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
    return canonical(json.loads(message.model_dump_json()))


def canonical(document: Mapping[str, Any]) -> bytes:
    """The same of a message as it came over the wire, with whatever fields a newer writer gave it."""
    data = {name: value for name, value in document.items() if name not in ("signature", "key_id")}
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
