"""What a model's owner writes down once: its features, its label, and how it is to be watched.

YAML or JSON, published on the compacted topic ``models`` (key ``model`` for the contract, ``model/version`` for a
version). Frozen pydantic models; unknown keys are errors, so a typo in a threshold cannot pass silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from schemas.documents import Document as Document
from schemas.documents import DurationMs as DurationMs
from schemas.documents import parse_duration_ms as parse_duration_ms
from schemas.errors import ContractError
from schemas.events import Name
from schemas.ids import content_hash
from schemas.rollout import CanaryStep as CanaryStep
from schemas.rollout import Rollout as Rollout
from schemas.verdicts import Family, State


class Feature(Document):
    """One input column. A numeric feature is a float; a categorical one a string out of ``categories`` or unknown."""

    name: Name
    kind: Literal["numeric", "categorical"] = "numeric"
    nullable: bool = False
    low: float | None = Field(
        default=None, description="Smallest value that is in range; below counts as invalid."
    )
    high: float | None = None
    categories: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Feature:
        if self.kind == "numeric" and self.categories:
            raise ValueError(f"feature {self.name}: a numeric feature has no categories")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"feature {self.name}: low must be below high")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"feature {self.name}: a category is listed twice")
        return self


class FalsePages(Document):
    """The user's promise to itself: at most ``max`` false pages in any ``per``, for the whole model."""

    max: float = Field(default=1, gt=0)
    per: DurationMs = 30 * 86_400_000


class DetectorConfig(Document):
    """One detector of a model: which kind, on which stream and columns, with which options.

    ``stream`` is ``features`` (one row a prediction), ``score`` (its score), ``predictions`` (both, with latency and
    errors), ``loss`` (one row a joined label) or ``comparison`` (outcomes of the canary beside those of the stable version). ``columns`` names features (``["*"]``:
    all that the kind can read); options are the kind's own, checked against its spec.
    """

    name: Name
    kind: Name
    stream: Literal["features", "score", "predictions", "loss", "comparison"]
    columns: tuple[str, ...] = ("*",)
    options: dict[str, Any] = Field(default_factory=dict)
    roles: tuple[Literal["stable", "canary", "shadow"], ...] = ("stable",)
    sample_every: int = Field(
        default=1, ge=1, description="Reads rows whose identity hash is 0 modulo this number."
    )


#: What ``default`` stands for in a list of detectors: cheap, needs no tuning, pages only within the budget.
DEFAULT_DETECTORS = (
    DetectorConfig(name="harm", kind="loss-above-promise", stream="loss"),
    DetectorConfig(name="judge", kind="paired-judge", stream="comparison", roles=("canary",)),
    DetectorConfig(name="inputs", kind="drift-e-blocks", stream="features"),
    DetectorConfig(name="scores", kind="drift-e-blocks", stream="score"),
    DetectorConfig(name="quality", kind="quality", stream="features"),
    DetectorConfig(name="outliers", kind="robust-z", stream="features"),
    DetectorConfig(name="fresh", kind="freshness", stream="features"),
)


class Rule(Document):
    """Policy: which signals mean what. The first rule that matches a signal decides."""

    name: Name
    detectors: tuple[str, ...] = ("*",)
    families: tuple[Family, ...] = ()
    roles: tuple[Literal["stable", "canary", "shadow"], ...] = ("stable", "canary")
    states: tuple[State, ...] = (State.DRIFT,)
    severity: Literal["info", "ticket", "page"] = "ticket"
    action: Literal["none", "retrain", "rollback"] = "none"
    streak: int = Field(
        default=1, ge=1, description="Distinct detectors that must agree before the rule acts."
    )
    cooldown: DurationMs = 86_400_000
    runbook: str = ""


class Policy(Document):
    """Rules and their limits. ``retrain_interval``: the least event time between two retrain requests of a model."""

    rules: tuple[Rule, ...] = ()
    retrain_interval: DurationMs = 30 * 86_400_000
    commands_per_day_max: int = Field(default=20, ge=1)
    command_ttl: DurationMs = 7 * 86_400_000


#: An event is in at most so many overlapping windows; every query over them reads each row as often.
WINDOW_STEPS_MAX = 1_000
WINDOW_MS_MAX = 366 * 86_400_000


class Monitoring(Document):
    """How a model is watched.

    Windows begin at multiples of their step since 1970 (UTC). With a ``window_step`` they overlap: what is counted and
    closed is one step, of which the warehouse's ``hopping_`` views put ``window / window_step`` together, so an event is
    counted once however many windows it is in. Rows and labels are late by the step they are in.
    """

    window: DurationMs = 3_600_000
    window_step: DurationMs | None = Field(
        default=None,
        description="Distance between the starts of two windows, a whole part of ``window``; without it, ``window``.",
    )
    allowed_lateness: DurationMs = 600_000
    label_horizon: DurationMs = Field(
        default=7 * 86_400_000,
        description="How long after a window's end labels are waited for: then the window is final, and leaves memory.",
    )
    late_label_horizon: DurationMs = Field(
        default=0,
        description="How long after a window's end labels still count, by their own time. Where this is longer than "
        "``label_horizon``, those that come between the two are looked up in the warehouse and correct a final window.",
    )
    event_age_max: DurationMs = 30 * 86_400_000
    event_ahead_max: DurationMs = 600_000
    segments: tuple[str, ...] = Field(
        default=(), description="Categorical features whose values are segments."
    )
    segments_max: int = Field(default=200, ge=1, description="Further segment values count under ``other``.")
    histogram_bins: int = Field(default=20, ge=2, le=200)
    false_pages: FalsePages = FalsePages()
    detectors: tuple[DetectorConfig, ...] = Field(
        default=(), description="Detectors; ``default`` in the list stands for the set that needs no tuning."
    )
    bad_share_max: float = Field(
        default=0.5, gt=0, le=1, description="Above it the consumer halts and alerts."
    )

    @property
    def last_label(self) -> int:
        """Milliseconds after a window's end beyond which a label does not count."""
        return max(self.label_horizon, self.late_label_horizon)

    @field_validator("detectors", mode="before")
    @classmethod
    def _with_defaults(cls, value: Any) -> Any:
        """``default``, alone or in the list, becomes the default set, so that a contract says what runs."""
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or "default" not in listed:
            return value
        return [found for one in listed for found in (DEFAULT_DETECTORS if one == "default" else (one,))]

    @model_validator(mode="after")
    def _consistent(self) -> Monitoring:
        names = [d.name for d in self.detectors]
        if len(set(names)) != len(names):
            raise ValueError("monitoring.detectors: two detectors have the same name")
        if self.window <= 0:
            raise ValueError("monitoring.window must be positive")
        step_ms = self.window if self.window_step is None else self.window_step
        if step_ms <= 0 or self.window % step_ms:
            raise ValueError(
                f"monitoring.window_step must be a whole part of monitoring.window: {step_ms} ms does not divide "
                f"{self.window} ms"
            )
        if self.window // step_ms > WINDOW_STEPS_MAX:
            raise ValueError(
                f"monitoring.window has {self.window // step_ms} steps, more than {WINDOW_STEPS_MAX}: make "
                "monitoring.window_step longer"
            )
        if self.window > WINDOW_MS_MAX:
            raise ValueError(f"monitoring.window is longer than {WINDOW_MS_MAX // 86_400_000} days")
        return self

    @property
    def pane_ms(self) -> int:
        """What is counted as one: the step, which is the window when windows do not overlap."""
        return self.window if self.window_step is None else self.window_step


class TrainingChecks(Document):
    """Thresholds of the checks that may refuse a snapshot; each refusal carries the name of its check.

    Shares are of rows, 0 to 1. A part is a fifth of the snapshot's rows in time order. What a label can be told from its
    features is measured as AUC - 0.5, so it is compared as a ratio.
    """

    duplicates_max: float = Field(
        default=0.05, ge=0, le=1, description="Rows equal to another in features, label and time."
    )
    repeats_step_max: float = Field(
        default=0.2, ge=0, le=1, description="Growth of the share of rows that repeat features and label."
    )
    entity_max: float = Field(default=0.2, gt=0, le=1, description="Rows of one entity.")
    out_of_contract_max: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Rows with a value outside its range; those below it are left out.",
    )
    unknown_max: float = Field(
        default=0.2, ge=0, le=1, description="Values of a category that the contract does not list."
    )
    missing_max: float = Field(
        default=0.5, ge=0, le=1, description="Missing values of a feature that must not be."
    )
    segment_step_max: float = Field(
        default=0.2, gt=0, le=1, description="Change of one category's share in the latest part."
    )
    label_step_max: float = Field(
        default=0.35, gt=0, le=1, description="Change of the positive share from a part to the next."
    )
    information_min: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Least share of what labels are told by their neighbours, in each part compared with the other parts, "
        "in the whole with what the incumbent reached when it was validated. 0 turns the check off.",
    )
    against_scores_min: float = Field(
        default=0.45,
        ge=0,
        le=0.5,
        description="Below this AUC of the incumbent's scores, in a part or category, labels run against them. 0: off.",
    )


class Training(Document):
    """What a retrain may use, when it is asked for, and what becomes of a candidate."""

    span: DurationMs = 60 * 86_400_000
    rows_min: int = Field(default=1_000, ge=10)
    rows_max: int = Field(
        default=500_000, ge=10, description="Of more predictions, every k-th by the hash of its id is taken."
    )
    holdout: float = Field(
        default=0.2, gt=0, lt=0.9, description="Latest share of the rows, kept to judge on."
    )
    trainer: str = Field(default="sklearn", description="Name of an entry point in group driftline.trainers.")
    options: dict[str, Any] = Field(default_factory=dict, description="What that trainer takes.")
    seed: int = 7
    unlabelled: Literal["drop", "negative"] = Field(
        default="drop",
        description="What a prediction without a label is once its label horizon has passed: left out, or a negative.",
    )
    maturity: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="The span ends so long before the request that this share of labels had time to come, at most a "
        "label horizon before.",
    )
    labels_after: DurationMs | None = Field(
        default=None, description="End the span so long before the request instead of measuring it."
    )
    weightings: tuple[str, ...] = Field(
        default=("uniform", "half-life 21d", "half-life 7d", "recent 21d"),
        min_length=1,
        description="Ways to weigh rows by age; validation chooses. One alone is used without a choice.",
    )
    block: DurationMs = Field(
        default=86_400_000, gt=0, description="Rows of one block depend on each other: the unit of evidence."
    )
    blocks_min: int = Field(default=5, ge=2, description="Fewer blocks than this decide nothing.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    effect_min: float = Field(
        default=0.005, ge=0, description="Smallest gain that matters, as a share of the incumbent's loss."
    )
    not_better: Literal["register", "refuse", "hand-over"] = Field(
        default="register",
        description="A candidate not shown to be better: registered but not handed to the controller, not registered, or "
        "handed over all the same. One shown to be worse is never handed over.",
    )
    checks: TrainingChecks = TrainingChecks()
    every: DurationMs | None = Field(
        default=None, gt=0, description="Ask for a retrain this much event time after the last training."
    )
    interval_min: DurationMs = Field(
        default=86_400_000, description="Least event time between two trainings that no person asked for."
    )
    failures_max: int = Field(
        default=3, ge=1, description="After so many failures in a row the schedule waits for a person."
    )

    @field_validator("weightings")
    @classmethod
    def _readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            kind, _, length = text.partition(" ")
            if kind != "uniform" and (kind not in ("half-life", "recent") or not parse_duration_ms(length)):
                raise ValueError(f"{text!r} is no weighting; write uniform, half-life 21d or recent 14d")
        if len(set(value)) != len(value):
            raise ValueError("a weighting is listed twice")
        return value


class ModelContract(Document):
    """Everything a model's owner declares. The hash of its JSON names it in every decision."""

    model: Name
    task: Literal["binary"] = "binary"
    description: str = ""
    owner: str = ""
    features: tuple[Feature, ...]
    threshold: float = Field(default=0.5, description="A score at or above it is a positive decision.")
    fallback_score: float = Field(
        default=0.5, description="The heuristic's answer when no version is healthy."
    )
    monitoring: Monitoring = Monitoring()
    policy: Policy = Policy()
    rollout: Rollout = Rollout()
    training: Training = Training()
    revision: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> ModelContract:
        names = [f.name for f in self.features]
        if not names:
            raise ValueError("a contract needs at least one feature")
        if len(set(names)) != len(names):
            raise ValueError("two features have the same name")
        kinds = {f.name: f.kind for f in self.features}
        for segment in self.monitoring.segments:
            if kinds.get(segment) != "categorical":
                raise ValueError(f"segment {segment!r} is not a categorical feature of this contract")
        for detector in self.monitoring.detectors:
            for column in detector.columns:
                if column != "*" and detector.stream == "features" and column not in kinds:
                    raise ValueError(f"detector {detector.name}: no feature {column!r} in this contract")
        watched = {detector.name for detector in self.monitoring.detectors}
        for metric in self.rollout.metrics:
            if metric.detector and metric.detector not in watched:
                raise ValueError(f"metric {metric.name}: no detector {metric.detector!r} in this contract")
            if metric.segment and metric.segment not in self.monitoring.segments:
                raise ValueError(f"metric {metric.name}: {metric.segment!r} is not in monitoring.segments")
        return self

    @property
    def hash(self) -> str:
        """Content hash of the whole contract."""
        return content_hash(self.model_dump_json().encode())

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features)


class ColumnReference(Document):
    """What one column looked like in the reference the version was validated on.

    Numeric: ``quantiles`` at evenly spaced probabilities 0..1 (101 of them by default) of the ``rows`` that were not
    null. Categorical: ``shares`` by category, in the contract's order, the last one for unknown values.
    """

    rows: int = Field(ge=0)
    missing: float = 0.0
    quantiles: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    mean: float | None = None
    sd: float | None = None


class Reference(Document):
    """The reference of one version, made by its training: what "no drift" means.

    ``loss_blocks`` are the mean losses of consecutive time blocks (``loss_block_ms`` of event time each) of the
    held-out span in time order: their spread is the reference's own block-to-block variation, which no detector may
    page on. ``sample`` is a bounded sample of whole rows in time order, row-major, features in contract order, NaN as
    null: for detectors of many columns at once, and for calibration.
    """

    columns: dict[str, ColumnReference] = Field(default_factory=dict)
    score: ColumnReference | None = None
    loss_mean: float | None = None
    loss_sd: float | None = None
    loss_rows: int = 0
    loss_blocks: tuple[float, ...] = ()
    loss_block_ms: int = 86_400_000
    block_ms: int = 86_400_000
    block_starts_ms: tuple[int, ...] = Field(
        default=(), description="Starts of the time blocks that ``bins`` counts, in order."
    )
    bins: dict[str, tuple[tuple[int, ...], ...]] = Field(
        default_factory=dict,
        description="Per column, rows of each time block in each of the bins of ``schemas.bins``.",
    )
    rows: int = Field(default=0, ge=0, description="Rows the reference was made of.")
    from_ms: int | None = Field(default=None, description="Event time of its first row.")
    to_ms: int | None = None
    segments: dict[str, dict[int, Reference]] = Field(
        default_factory=dict,
        description="By segment feature and category code: the same of these rows alone, without a sample.",
    )
    sample: tuple[tuple[float | None, ...], ...] = ()
    sample_time_ms: tuple[int, ...] = Field(
        default=(), description="Event times of the sample's rows, ascending."
    )
    sample_score: tuple[float, ...] = Field(
        default=(), description="The version's answers to the sample's rows."
    )
    sample_label: tuple[float, ...] = Field(default=(), description="Their labels; empty when not known.")


class ModelVersion(Document):
    """One immutable version: where its artifact is, what it must hash to, where it came from."""

    model: Name
    version: Name
    uri: str = Field(description="Directory of the artifact, relative to the registry's root.")
    sha256: str = Field(min_length=64, max_length=64)
    contract_revision: int = 1
    parent: str | None = None
    snapshot: str | None = Field(default=None, description="Content hash of the training data.")
    trained_from_ms: int | None = None
    trained_to_ms: int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    reference: Reference = Reference()
    risk: Literal["low", "medium", "high"] = "low"
    cause: str = Field(default="", description="Request id or person that asked for it.")
    created_event_ms: int = 0
    signature: str = ""
    key_id: str = ""


class ModelRecord(Document):
    """Value on topic ``models``: exactly one of the two."""

    contract: ModelContract | None = None
    version: ModelVersion | None = None

    @model_validator(mode="after")
    def _one(self) -> ModelRecord:
        if (self.contract is None) == (self.version is None):
            raise ValueError("a record on `models` carries a contract or a version, not both and not neither")
        return self

    @property
    def key(self) -> str:
        if self.contract is not None:
            return self.contract.model
        assert self.version is not None
        return f"{self.version.model}/{self.version.version}"


def load_contract(path: Path) -> ModelContract:
    """Read a contract from YAML or JSON. Raises ContractError that names the file and every wrong key."""
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ContractError(f"{path}: cannot be read as YAML: {error}") from error
    try:
        return ModelContract.model_validate(data)
    except ValueError as error:
        raise ContractError(f"{path}: {error}") from error
