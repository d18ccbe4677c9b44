"""How a new version gets traffic, as a model's owner writes it: strategy, analysis, gates, smoke test.

A part of the model contract (``rollout:``). What runs is in ``deploy.core``; this module says only what may be asked for.
"""

from __future__ import annotations

import operator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.documents import Document, DurationMs
from schemas.events import Name

_MINUTE_MS, _HOUR_MS, _DAY_MS = 60_000, 3_600_000, 86_400_000

#: What a metric measures. ``signal`` sources are live (topic ``signals``); the others come from ClickHouse.
Source = Literal[
    "latency_p50",  # milliseconds from request to answer, of answering roles
    "latency_p99",
    "error_rate",  # share of answers that are errors
    "loss",  # Brier loss of labelled answers; judged: on the requests that both versions scored
    "business",  # share of labelled answers whose label is 1: clicks, conversions
    "segment_gap",  # largest difference of the mean loss between two values of ``segment``
    "drift",  # score over threshold of ``detector``, live: 1 or more is drift
    "query",  # the first row of ``query``: value and rows
]
#: Sources where more is better unless the metric says otherwise.
_HIGHER = frozenset({"business"})
#: Sources that count events among rows, or pair rows: what the judge can work with.
JUDGED = frozenset({"error_rate", "business", "loss"})
GateKind = Literal["confirm-rollout", "confirm-traffic-increase", "confirm-promotion", "rollback"]


class CanaryStep(Document):
    """One step of a rollout: ``weight`` of the traffic for at least ``bake`` of event time."""

    weight: float = Field(gt=0, le=1)
    bake: DurationMs


class Region(Document):
    """One region of a rollout by regions; a scorer says in its settings which one it is of (``scorer.region``)."""

    name: Name
    bake: DurationMs = Field(
        default=_DAY_MS,
        description="How long the version has the whole region before the next one's turn comes.",
    )


class Metric(Document):
    """One thing that must be right while a version is rolled out, and stay right afterwards.

    A measurement passes strictly inside ``limit``, fails strictly beyond ``fail`` (not given: whatever does not pass
    fails) and is inconclusive between the two; strictly beyond ``alert`` somebody is told. With ``judge`` there is no
    limit: the candidate is compared with the stable version by an anytime-valid test (``deploy.core.judge``), and what
    it shows counts. A metric with neither only alerts.
    """

    name: Name
    source: Source
    compare: Literal["value", "difference", "change"] = Field(
        default="value",
        description="The candidate's value; minus the stable version's; or its change relative to that (-0.1: 10 % less).",
    )
    direction: Literal["lower", "higher"] | None = Field(
        default=None, description="Which way is better; by the source when not given."
    )
    limit: float | None = None
    fail: float | None = None
    alert: float | None = None
    severity: Literal["info", "ticket", "page"] = "ticket"
    runbook: str = ""
    judge: bool = False
    effect: float = Field(default=0.01, gt=0, description="Smallest difference that matters to the judge.")
    alpha: float = Field(default=0.05, gt=0, lt=1, description="The judge's risk of a wrong word, ever.")
    block: DurationMs | None = Field(
        default=None,
        description="Judged loss: event time whose rows depend on each other (a day's weather, a campaign); the interval "
        "when not given. Only whole blocks are judged, and two at least.",
    )
    block_rows: int = Field(
        default=100,
        ge=1,
        description="Judged loss: pairs that a block counts for at most, however many it has.",
    )
    detector: str = Field(
        default="", description="``drift``: name of the detector in the monitoring section."
    )
    segment: str = Field(default="", description="``segment_gap``: a segment feature of the contract.")
    query: str = Field(
        default="",
        max_length=4_000,
        description="``query``: SQL with {model:String}, {version:String}, {from_ms:Int64}, {to_ms:Int64} and "
        "{region:String}, which is empty where the rollout does not go by regions.",
    )
    interval: DurationMs = Field(default=_HOUR_MS, description="Event time between two measurements.")
    window: DurationMs | None = Field(default=None, description="Span measured; the interval when not given.")
    delay: DurationMs = Field(
        default=0, description="Event time after the start of a step before it is measured."
    )
    rows_min: int = Field(default=50, ge=1, description="Fewer rows are missing data.")
    failures_max: int = Field(default=0, ge=0, description="Failed measurements a step may have.")
    inconclusive_max: int = Field(default=24, ge=0, description="Inconclusive ones; more pause the rollout.")
    errors_max: int = Field(
        default=3, ge=0, description="Errors and missing data in a row; more pause the rollout."
    )
    successes_min: int = Field(default=1, ge=1, description="Passes in a row that a step must end with.")
    dry_run: bool = Field(default=False, description="Measured and recorded; decides nothing, alerts nobody.")
    watch: bool = Field(
        default=True, description="Goes on after the promotion: a failure rolls back. Judged metrics do not."
    )

    @property
    def lower_is_better(self) -> bool:
        return self.direction == "lower" if self.direction else self.source not in _HIGHER

    @property
    def window_ms(self) -> int:
        return self.interval if self.window is None else self.window

    @property
    def paired(self) -> bool:
        """Whether it compares the two versions' losses on the same requests."""
        return self.judge and self.source == "loss"

    @property
    def block_ms(self) -> int:
        return self.interval if self.block is None else self.block

    @property
    def gates(self) -> bool:
        """Whether a step needs it to pass."""
        return not self.dry_run and (self.judge or self.limit is not None)

    @model_validator(mode="after")
    def _consistent(self) -> Metric:
        where = f"metric {self.name}"
        for source, name, given in (
            ("drift", "detector", self.detector),
            ("segment_gap", "segment", self.segment),
            ("query", "query", self.query),
        ):
            if (self.source == source) != bool(given):
                raise ValueError(f"{where}: {name} belongs to source {source}, and to no other")
        if self.judge and (self.source not in JUDGED or self.limit is not None or self.compare != "value"):
            raise ValueError(
                f"{where}: judge goes with {', '.join(sorted(JUDGED))}, without limit and compare"
            )
        if self.block is not None and not self.paired:
            raise ValueError(f"{where}: block belongs to a judged loss, and to no other")
        if self.fail is not None and self.limit is None:
            raise ValueError(f"{where}: fail needs a limit")
        if self.limit is not None and self.fail is not None:
            ordered = self.limit <= self.fail if self.lower_is_better else self.limit >= self.fail
            if not ordered:
                raise ValueError(f"{where}: fail must lie beyond limit on the side that is worse")
        if not self.judge and self.limit is None and self.alert is None and not self.dry_run:
            raise ValueError(f"{where}: it needs a limit, an alert or judge: true, or be a dry_run")
        if self.interval <= 0 or self.block_ms <= 0:
            raise ValueError(f"{where}: interval and block must be positive")
        return self


class Gate(Document):
    """A point at which a rollout waits for people or another system. ``webhook`` None: for people's approvals.

    confirm-rollout           before the first request; approvals that the version's risk tier asks for count here
    confirm-traffic-increase  before every further step
    confirm-promotion         before all traffic
    rollback                  never waits: it is asked every ``interval``, and its yes rolls back
    """

    kind: GateKind
    approvals: int = Field(
        default=1, ge=1, description="Different people, none of them who asked for the rollout."
    )
    webhook: str | None = Field(default=None, pattern=r"^https?://\S+$", max_length=1_000)
    timeout: DurationMs = 5_000
    retries_max: int = Field(default=3, ge=0, le=10)
    interval: DurationMs = Field(
        default=_MINUTE_MS, description="Wall-clock time between two questions while there is no answer."
    )
    expires: DurationMs = Field(
        default=7 * _DAY_MS, description="Event time after which waiting ends the rollout."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Gate:
        if self.kind == "rollback" and self.webhook is None:
            raise ValueError("gate rollback needs a webhook; people ask for a rollback with a command")
        if self.timeout < 1 or self.interval < 1_000:
            raise ValueError(f"gate {self.kind}: timeout is at least 1 ms, interval at least 1 s")
        return self


class Smoke(Document):
    """The test on recorded requests before any traffic: outputs finite, in [0, 1], as recorded, in time."""

    latency_max: DurationMs = Field(
        default=1_000, description="Longest median time for one recorded request; 0: not looked at."
    )
    tolerance: float = Field(default=1e-5, ge=0, description="Difference to the recorded outputs.")


class Rollout(Document):
    """How a new version gets traffic: steps, the analysis between them, what happens when data is missing.

    strategy     traffic on the way                    ends in
    canary       ``steps``, one after the other        all traffic
    blue-green   ``preview`` for ``bake``              all traffic at once; the old version stays warm for ``keep_warm``
    shadow       none; scored beside and compared      ``then``: all traffic, a canary, or a stop with the verdict on record
    ab           ``split`` for ``bake`` at most        the winner has all traffic; undecided: the stable version stays
    dark         none; scored beside, not compared     a stop after ``bake``

    With ``regions``, canary, blue-green and shadow are gone through in the first of them, which then belongs to the version
    for its bake, then in the next; after the last one's bake the version is promoted. A breach in any region that has
    begun rolls back all of them.
    """

    strategy: Literal["canary", "blue-green", "shadow", "ab", "dark"] = "canary"
    steps: tuple[CanaryStep, ...] = (
        CanaryStep(weight=0.05, bake=_DAY_MS),
        CanaryStep(weight=0.25, bake=_DAY_MS),
    )
    bake: DurationMs = Field(
        default=_DAY_MS, description="Length of the one stage of the strategies without steps."
    )
    preview: float = Field(
        default=0, ge=0, lt=1, description="blue-green: share of the traffic before the switch."
    )
    split: float = Field(default=0.5, gt=0, lt=1, description="ab: the candidate's share of the traffic.")
    winner: str = Field(
        default="", description="ab: the judged metric that decides; the first when not given."
    )
    then: Literal["promote", "canary", "stop"] = Field(
        default="promote", description="shadow: what a candidate that was shown to be no worse gets."
    )
    regions: tuple[Region, ...] = Field(
        default=(),
        max_length=50,
        exclude_if=operator.not_,
        description="In the order of the rollout; none: everywhere at once.",
    )
    metrics: tuple[Metric, ...] = Field(default=(), max_length=50)
    gates: tuple[Gate, ...] = ()
    smoke: Smoke = Smoke()
    labels_min: int = Field(
        default=50,
        ge=0,
        description="Joined outcomes of the candidate that a step with traffic needs; 0: the comparison is not needed.",
    )
    deadline: DurationMs = Field(
        default=21 * _DAY_MS, description="A step without enough data pauses, then fails."
    )
    unproven: Literal["wait", "promote"] = Field(
        default="wait",
        description="What the last step does when harm is not shown and neither is its absence: wait until the deadline "
        "(then fail), or promote when its bake is over.",
    )
    keep_warm: DurationMs = Field(
        default=14 * _DAY_MS, description="How long the replaced version is kept in the scorers' memory."
    )
    proven_for: DurationMs = Field(
        default=30 * _DAY_MS,
        description="So long after its own time on the traffic a version may be rolled back to without a new smoke test.",
    )
    no_target: Literal["fallback", "keep"] = Field(
        default="fallback",
        description="Asked to roll the stable version back, and none healthy to go back to: the fallback answers, or the "
        "request is refused. A candidate's traffic never goes back onto a sick stable version, whatever this says.",
    )

    @field_validator("metrics", mode="after")
    @classmethod
    def _named_once(cls, value: tuple[Metric, ...]) -> tuple[Metric, ...]:
        if len({metric.name for metric in value}) != len(value):
            raise ValueError("rollout.metrics: two metrics have the same name")
        return value

    @field_validator("regions", mode="after")
    @classmethod
    def _each_region_once(cls, value: tuple[Region, ...]) -> tuple[Region, ...]:
        names = [region.name for region in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rollout.regions: {', '.join(twice)} is named twice; a region has one turn")
        return value

    @field_validator("gates", mode="after")
    @classmethod
    def _one_gate_of_a_kind(cls, value: tuple[Gate, ...]) -> tuple[Gate, ...]:
        if len({gate.kind for gate in value}) != len(value):
            raise ValueError("rollout.gates: two gates of one kind")
        return value

    @model_validator(mode="before")
    @classmethod
    def _judged_by_default(cls, data: Any) -> Any:
        """What compares without the monitor's comparison, which needs traffic, has a judge: where no metric is judged the
        loss is, so that a contract says what runs."""
        if not isinstance(data, dict):
            return data
        strategy = data.get("strategy")
        dark_preview = strategy == "blue-green" and not data.get("preview") and data.get("labels_min") != 0
        if strategy not in ("shadow", "ab") and not dark_preview:
            return data
        listed = list(data.get("metrics") or ())
        judged = [m for m in listed if (m.get("judge") if isinstance(m, dict) else m.judge)]
        return (
            data
            if judged
            else data | {"metrics": [*listed, Metric(name="judged-loss", source="loss", judge=True)]}
        )

    @model_validator(mode="after")
    def _consistent(self) -> Rollout:
        judged = [metric.name for metric in self.metrics if metric.judge]
        if self.winner and self.winner not in judged:
            raise ValueError(f"rollout.winner {self.winner!r} is not a judged metric; there are: {judged}")
        if self.regions and (
            self.strategy in ("ab", "dark") or (self.strategy, self.then) == ("shadow", "stop")
        ):
            how = f"{self.strategy} with then: stop" if self.strategy == "shadow" else self.strategy
            raise ValueError(
                f"rollout.regions: {how} does not end in all traffic of a region, so there is no next one; regions go with "
                "canary, blue-green and shadow (then: promote or canary)"
            )
        return self

    @property
    def deciding(self) -> str:
        """The judged metric that decides an A/B test."""
        return self.winner or next(metric.name for metric in self.metrics if metric.judge)
