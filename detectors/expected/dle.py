"""How large is the loss where labels are late or never come: learned from the inputs, at which the loss is large.

Direct loss estimation: a second model learns, on the reference's labelled sample, what loss the monitored one makes
where; the mean of its predictions over a block estimates the block's mean loss (NannyML's DLE; also "loss prediction",
Yoo and Kweon, "Learning loss for active learning", CVPR 2019). Unlike ``cbpe`` it needs no score that is a probability,
so it serves regression, and it knows where the monitored model is over-confident. Here the second model is boosted trees
of depth two on binned features and score (``detectors.expected.boosting``), fitted at build on one random half of the sample; the
other half says how many trees, corrects their mean, and gives the spread of the losses about the prediction.

Of a block with n rows: estimate ``mean f(x)``; its variance ``sum v(f(x)) / n^2 + V / m + R / M``, with v the held-out
squared residual in a fifth of the predictions, V its mean over the m held-out rows, R the variance of the M reference
losses. Drift: ``z`` of these standard errors about the difference to the reference's mean loss lie wholly beyond the
tolerance, at least ``tolerance_sd`` standard deviations between the reference's own blocks (of the estimate, less what
sampling of their rows explains).

It holds where the loss at given inputs and score is what it was: under covariate shift within the reference's range. It
cannot see concept drift, and beyond the range it repeats the loss of the border. No guarantee; never pages.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> rng = np.random.default_rng(0)
>>> x = rng.uniform(size=2000)  # answers are right for small x and wrong for large
>>> label = (rng.uniform(size=2000) < np.where(x < 0.7, 0.1, 0.9)).astype(float)
>>> grid = np.linspace(0, 1, 101)
>>> reference = Reference(
...     columns={"x": ColumnReference(rows=2000, quantiles=tuple(grid))},
...     score=ColumnReference(rows=2000, quantiles=(0.1,) * 101),
...     sample=tuple((v,) for v in x), sample_score=(0.1,) * 2000, sample_label=tuple(label))
>>> columns = ("score", "latency_ms", "error", "x")
>>> detector = DleSpec().build(Context(columns, (0,) * 4, "predictions", reference))
>>> block = np.column_stack([np.full(500, 0.1), np.ones(500), np.zeros(500), rng.uniform(0.6, 1, 500)])
>>> _ = detector.update(Rows.of(block, np.zeros(500, np.int64)))
>>> verdict = detector.advance(86_400_000)[0].verdict
>>> str(verdict.state), round(verdict.evidence.reference, 1), round(verdict.evidence.current, 1)
('drift', 0.3, 0.6)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np
from pydantic import Field, model_validator

from detectors.base import (
    DAY_MS,
    FIXED_POINT,
    Change,
    Context,
    Detector,
    Rows,
    Spec,
    Stream,
    pack,
    undecided,
    unpack,
)
from detectors.blocks import BlockState, BlockSums
from detectors.expected.estimates import judged
from detectors.expected.loss_model import ERROR, LABELS_MIN, SCORE, VARIANCE_FIXED, Loss, LossModel, learn
from detectors.gather import verdict_bytes, verdict_from
from schemas.contracts import DurationMs
from schemas.verdicts import Family, Verdict

_SCHEMA = 1


class DleSpec(Spec):
    """Options of ``dle``. ``loss``: of answer and label; ``brier`` is ``squared`` for answers that are probabilities."""

    kind: ClassVar[str] = "dle"
    streams: ClassVar[Mapping[Stream, Family]] = {"predictions": Family.PREDICTION}
    #: Ten features in blocks of 2,000.
    cost_ns: ClassVar[int] = 450
    state_size: ClassVar[str] = "three numbers an open block"
    sees: ClassVar[str] = "inputs moving to where the model was wrong, or right, on the reference"
    blind_to: ClassVar[str] = "concept drift; losses where the reference has no rows"

    needs_reference: ClassVar[bool] = True

    loss: Loss = "brier"
    tolerance: float = Field(default=0.1, gt=0, description="Share of the reference's mean loss.")
    tolerance_sd: float = Field(default=2.0, ge=0)
    z: float = Field(default=3.0, gt=0, description="Half width of the interval, standard errors.")
    features_max: int = Field(default=32, ge=1, le=256, description="Columns the second model may read.")
    block_ms: DurationMs = DAY_MS
    block_offset_ms: DurationMs = 0
    rows_min: int = Field(default=100, ge=10)

    @model_validator(mode="after")
    def _fits(self) -> DleSpec:
        if self.block_ms <= 0:
            raise ValueError("block_ms must be positive")
        return self

    def build(self, context: Context) -> Detector:
        return Dle(self, context)


class _State(msgspec.Struct):
    blocks: BlockState
    verdict: bytes


class Dle:
    """The running estimate; see the module."""

    def __init__(self, spec: DleSpec, context: Context) -> None:
        self._spec = spec
        self._learned = learn(context, spec.loss, spec.features_max, spec.block_ms, spec.block_offset_ms)
        learned = self._learned
        self._tolerance = (
            spec.tolerance
            if learned is None
            else max(spec.tolerance, spec.tolerance_sd * learned.spread) * learned.unit
        )
        self.reset()

    @property
    def verdict(self) -> Verdict:
        why = (
            f"the version has no reference with {LABELS_MIN} labelled answers"
            if self._learned is None
            else "no block with enough answers yet"
        )
        return self._verdict or undecided(self._tolerance, why)

    def reset(self) -> None:
        self._blocks = BlockSums(self._spec.block_ms, self._spec.block_offset_ms, 2)
        self._verdict: Verdict | None = None

    def update(self, rows: Rows) -> list[Change]:
        if self._learned is None:
            return []
        score, error = rows.values[:, SCORE], rows.values[:, ERROR]
        known = np.isfinite(score) & (error == 0)
        if self._spec.loss == "brier":
            known &= (score >= 0) & (score <= 1)
        part = rows if known.all() else rows.take(known)
        if len(part):
            self._blocks.add(part.time_ms, part.sign, self._learned.estimate(part.values))
        return []

    def advance(self, time_ms: int) -> list[Change]:
        changes = []
        for start, (count, expected, variance) in self._blocks.close(time_ms):
            if count < self._spec.rows_min or self._learned is None:
                continue
            before = self.verdict.state
            self._verdict = self._judge(self._learned, start, count, expected, variance)
            if self._verdict.state is not before:
                changes.append(Change(-1, start + self._spec.block_ms, self._verdict))
        return changes

    def _judge(self, learned: LossModel, start_ms: int, rows: int, expected: int, variance: int) -> Verdict:
        current = expected / FIXED_POINT / rows
        error = math.sqrt(variance / VARIANCE_FIXED / rows**2 + learned.error)
        return judged(
            column="score",
            name=f"estimated mean {self._spec.loss} loss less the reference's",
            current=current * learned.unit,
            reference=learned.unit,
            error=self._spec.z * error * learned.unit,
            tolerance=self._tolerance,
            rows=rows,
            since_ms=start_ms,
            note=f"{learned.tables.trees} trees on {len(learned.tables.columns)} columns, "
            f"learned from {learned.rows} labelled answers",
        )

    def snapshot(self) -> bytes:
        return pack(DleSpec.kind, _SCHEMA, _State(self._blocks.state, verdict_bytes(self._verdict)))

    def load(self, data: bytes) -> None:
        state = unpack(DleSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._blocks.state = state.blocks
        self._verdict = verdict_from(state.verdict)
