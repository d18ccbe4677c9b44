"""What a detector says, and how it travels: the one vocabulary between mathematics, policy and people.

Verdicts have five values, never two: a detector that cannot know says so (``inconclusive``), one that broke says so
(``error``), and neither ever triggers an action.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from schemas.ids import Role


class State(StrEnum):
    """What the evidence says now."""

    STABLE = "stable"
    WARNING = "warning"
    DRIFT = "drift"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


class Family(StrEnum):
    """What kind of harm or shift a detector looks for; policy rules select by it."""

    INPUT = "input"
    PREDICTION = "prediction"
    CONCEPT = "concept"
    OUTLIER = "outlier"
    QUALITY = "quality"
    SERVICE = "service"
    COMPARISON = "comparison"


class Worst(BaseModel):
    """One of a window's most outlying events."""

    model_config = ConfigDict(frozen=True)

    identity: int = Field(
        description="64-bit hash of the prediction id; the view ``worst_events`` finds it in the raw log."
    )
    time_ms: int
    score: float


class Evidence(BaseModel):
    """Why: enough for a person to check the verdict without the detector."""

    model_config = ConfigDict(frozen=True)

    column: str | None = Field(default=None, description="Feature, score or loss column that moved most.")
    statistic: str = Field(
        default="", description="Name of the score's statistic, e.g. ``log e-value``, ``PSI``."
    )
    effect: float | None = Field(default=None, description="Size of the change in the column's own units.")
    effect_name: str = Field(default="", description="What ``effect`` measures, e.g. ``mean difference``.")
    reference: float | None = None
    current: float | None = None
    rows: int = Field(default=0, description="Rows the verdict rests on.")
    since_ms: int | None = Field(default=None, description="Event time at which the evidence starts.")
    interval: tuple[float, float] | None = Field(
        default=None, description="Confidence interval of ``effect``."
    )
    worst: tuple[Worst, ...] = Field(
        default=(), description="Most outlying events of the window, worst first."
    )
    note: str = ""


class Verdict(BaseModel):
    """One detector's judgement at one row. Score and threshold are comparable: drift means score >= threshold."""

    model_config = ConfigDict(frozen=True)

    state: State
    score: float
    threshold: float
    evidence: Evidence = Evidence()


class SignalChanged(BaseModel):
    """A detector's verdict changed. Topic ``signals``, key ``model``. Facts only: policy decides what it means."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    signal_id: str = Field(
        description="Content hash of (model, version, role, detector, row): a replay repeats it."
    )
    model: str
    version: str
    role: Role
    detector: str = Field(description="Name of the detector in the model's monitoring configuration.")
    kind: str = Field(description="Registry name of the detector, e.g. ``adwin``, ``drift-e``.")
    family: Family
    previous: State
    verdict: Verdict
    event_time_ms: int = Field(description="Event time of the row at which the verdict changed.")
    row: str = Field(description="Address of that row, ``topic/partition/offset/row``.")
    config_hash: str = ""
    pages: bool = Field(default=False, description="Whether this detector is calibrated well enough to page.")
    standing: str = Field(
        default="",
        description="What is known of the detector's false alarms: promised, verified, unverified beyond.",
    )
    trace_id: str | None = None
