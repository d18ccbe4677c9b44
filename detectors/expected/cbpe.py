"""How well does a classifier do where labels are late or never come: its performance, estimated from its own scores.

Confidence-based performance estimation: a score that is a probability says how often it is wrong, so the confusion
matrix, and every metric made of it, can be expected without a label (NannyML's CBPE; Bialek et al., "Estimating model
performance under covariate shift without labels", 2024). Scores are calibrated first on the labelled sample of the
reference. Each block's estimate is compared with the same estimate of the reference's scores, so what the cells and the
calibration get wrong they get wrong on both sides; ``detectors.expected.cbpe_metrics`` has the formulas and their variances.

Drift: the interval of the difference, ``z`` standard errors of both sides wide, lies wholly beyond the tolerance. The
tolerance is at least ``tolerance_sd`` standard deviations of the same estimate over the reference's own blocks of time.

What it cannot see is concept drift: where the same inputs now mean another label, the scores go on promising the old
performance. It holds under covariate shift if the calibration still does, which nobody can check without labels. So it
has no guarantee and never pages; the paging detector of the same promise is ``loss-above-promise``, which has labels.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> score = ColumnReference(rows=5000, quantiles=tuple(np.linspace(0, 1, 101)))
>>> context = Context(("score",), reference=Reference(score=score))
>>> detector = CbpeSpec(metric="accuracy").build(context)
>>> _ = detector.update(Rows.of(np.linspace(0.4, 0.6, 2000), np.zeros(2000, np.int64)))  # confident no more
>>> verdict = detector.advance(86_400_000)[0].verdict
>>> str(verdict.state), round(verdict.evidence.reference, 2), round(verdict.evidence.current, 2)
('drift', 0.75, 0.55)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from detectors.base import DAY_MS, Change, Context, Detector, Rows, Spec, Stream, pack, undecided, unpack
from detectors.expected.calibration import Calibration, Identity, isotonic, platt
from detectors.expected.cbpe_metrics import METRICS, Metric, Scale, realised
from detectors.expected.estimates import judged
from detectors.gather import OpenBlocks, verdict_bytes, verdict_from
from schemas.bins import Binning
from schemas.contracts import DurationMs, Reference
from schemas.verdicts import Family, Verdict

_SCHEMA = 1
#: Fewer labelled scores, or fewer of one class, calibrate nothing.
_LABELS_MIN = 100
_CLASS_MIN = 10
#: Blocks of the reference that a spread between them needs.
_BLOCKS_MIN = 5

Floats = NDArray[np.float64]


class CbpeSpec(Spec):
    """Options of ``cbpe``. ``metric`` decides; the note tells all of them. ``threshold``: of the positive decision; default: the
    contract's."""

    kind: ClassVar[str] = "cbpe"
    streams: ClassVar[Mapping[Stream, Family]] = {"score": Family.PREDICTION}
    cost_ns: ClassVar[int] = 170
    state_size: ClassVar[str] = "310 numbers an open block"
    sees: ClassVar[str] = (
        "an expected loss of performance that the scores themselves show: harder cases, lost confidence"
    )
    blind_to: ClassVar[str] = "concept drift and every calibration that went wrong: it believes the scores"

    needs_reference: ClassVar[bool] = True

    metric: Metric = "roc_auc"
    threshold: float | None = Field(default=None, ge=0, le=1)
    calibration: Literal["isotonic", "platt", "none"] = "isotonic"
    tolerance: float = Field(default=0.02, gt=0, description="In the metric's own units.")
    tolerance_sd: float = Field(default=2.0, ge=0)
    z: float = Field(default=3.0, gt=0, description="Half width of the interval, standard errors.")
    block_ms: DurationMs = DAY_MS
    block_offset_ms: DurationMs = 0
    rows_min: int = Field(default=100, ge=10)

    @model_validator(mode="after")
    def _fits(self) -> CbpeSpec:
        if self.block_ms <= 0:
            raise ValueError("block_ms must be positive")
        return self

    def build(self, context: Context) -> Detector:
        return Cbpe(self, context)


class _State(msgspec.Struct):
    open: dict[int, list[int]]
    closed_to_ms: int
    late: int
    verdict: bytes


class Cbpe:
    """The running estimate. ``estimates``: metric to (estimate, variance) of the last judged block, for whoever plots."""

    def __init__(self, spec: CbpeSpec, context: Context) -> None:
        self._spec = spec
        self._decision = context.decision if spec.threshold is None else spec.threshold
        reference = context.reference
        self._scale: Scale | None = None
        self._calibrated = "no labels to calibrate on, scores taken as they are"
        self._expected: dict[Metric, tuple[float, float]] = {}
        self._realised: dict[Metric, float] = {}
        self._tolerance = spec.tolerance
        if reference is not None and reference.score is not None and reference.score.quantiles:
            self._learn(reference, np.asarray(reference.score.quantiles, np.float64))
        self.reset()

    def _learn(self, reference: Reference, quantiles: Floats) -> None:
        scores = np.asarray(reference.sample_score, np.float64)
        spec = self._spec
        calibration = self._calibrate(scores, np.asarray(reference.sample_label, np.float64))
        self._scale = scale = Scale(quantiles, self._decision, calibration)
        if len(scores) >= _LABELS_MIN:
            weights = None
        else:
            # The middles of the steps between percentiles stand for as many rows as the reference has.
            scores = (quantiles[1:] + quantiles[:-1]) / 2
            rows = reference.score.rows if reference.score is not None else 0
            weights = np.full(len(scores), max(1, rows) / max(1, len(scores)))
        inside = (scores >= 0) & (scores <= 1)
        if not inside.all() or not len(scores):
            self._scale = None
            return
        tally = scale.tally(scores, weights)
        self._expected = scale.estimates(tally)
        self._tolerance = max(spec.tolerance, spec.tolerance_sd * self._spread(reference, scores, weights))

    def _calibrate(self, scores: Floats, labels: Floats) -> Calibration:
        if len(scores) == len(labels):
            known = ((labels == 0) | (labels == 1)) & (scores >= 0) & (scores <= 1)
            scores, labels = scores[known], labels[known]
        paired = len(scores) == len(labels) >= _LABELS_MIN
        if paired:
            self._realised = realised(scores, labels, self._decision)
        if self._spec.calibration == "none":
            self._calibrated = "scores taken as they are"
        elif paired and _CLASS_MIN <= labels.sum() <= len(labels) - _CLASS_MIN:
            self._calibrated = f"{self._spec.calibration} calibration on {len(labels)} labels"
            fit = isotonic if self._spec.calibration == "isotonic" else platt
            return fit(scores, labels)
        return Identity()

    def _spread(self, reference: Reference, scores: Floats, weights: Floats | None) -> float:
        """Standard deviation over the reference's blocks: its rows weighted to each block's histogram of scores."""
        assert self._scale is not None
        assert reference.score is not None
        binning = Binning(reference.score)
        codes = binning.codes(scores)
        held = np.bincount(codes, weights=weights, minlength=binning.size).astype(np.float64)
        values = []
        for block in reference.bins.get("score", ()):
            if sum(block) < self._spec.rows_min or len(block) != binning.size:
                continue
            share = np.divide(np.asarray(block, np.float64), held, out=np.zeros(len(held)), where=held > 0)
            by_row = share[codes] if weights is None else share[codes] * weights
            found = self._scale.estimates(self._scale.tally(scores, by_row)).get(self._spec.metric)
            if found is not None:
                values.append(found[0])
        return float(np.std(values, ddof=1)) if len(values) >= _BLOCKS_MIN else 0.0

    @property
    def verdict(self) -> Verdict:
        return self._verdict or undecided(self._tolerance, self._why_not())

    def _why_not(self) -> str:
        if self._scale is None:
            return "the version has no reference of scores that are probabilities"
        if self._spec.metric not in self._expected:
            return f"the reference's scores give no {self._spec.metric}"
        return "no block with enough scores yet"

    def reset(self) -> None:
        width = self._scale.width if self._scale is not None else 0
        self._blocks = OpenBlocks(
            self._spec.block_ms, self._spec.block_offset_ms, lambda: np.zeros(width, np.int64)
        )
        self._verdict: Verdict | None = None
        self.estimates: dict[Metric, tuple[float, float]] = {}

    def update(self, rows: Rows) -> list[Change]:
        if self._scale is None:
            return []
        score = rows.values[:, 0]
        known = (score >= 0) & (score <= 1)
        for block, part in self._blocks.parts(rows if known.all() else rows.take(known)):
            block += self._scale.tally(np.ascontiguousarray(part.values[:, 0])).astype(np.int64)
        return []

    def advance(self, time_ms: int) -> list[Change]:
        changes: list[Change] = []
        for start, tally in self._blocks.close(time_ms):
            if self._scale is None or self._spec.metric not in self._expected:
                continue
            rows = int(tally[: self._scale.cells].sum())
            if rows < self._spec.rows_min:
                continue
            before = self.verdict.state
            self.estimates = self._scale.estimates(tally.astype(np.float64))
            self._verdict = self._judge(start, rows)
            if self._verdict.state is not before:
                changes.append(Change(-1, start + self._spec.block_ms, self._verdict))
        return changes

    def _judge(self, start_ms: int, rows: int) -> Verdict:
        metric = self._spec.metric
        if metric not in self.estimates:
            return undecided(self._tolerance, f"the block's scores give no {metric}")
        current, variance = self.estimates[metric]
        expected, reference_variance = self._expected[metric]
        words = [f"{name} {self.estimates[name][0]:.4f}" for name in METRICS if name in self.estimates]
        known = (
            f"; the reference's labels gave {self._realised[metric]:.4f}" if metric in self._realised else ""
        )
        return judged(
            column="score",
            name=f"estimated {metric} less the reference's",
            current=current,
            reference=expected,
            error=self._spec.z * math.sqrt(variance + reference_variance),
            tolerance=self._tolerance,
            rows=rows,
            since_ms=start_ms,
            note=f"estimated: {', '.join(words)}{known}; {self._calibrated}",
        )

    def snapshot(self) -> bytes:
        blocks = {start: tally.tolist() for start, tally in self._blocks.open.items()}
        state = _State(blocks, self._blocks.closed_to_ms, self._blocks.late, verdict_bytes(self._verdict))
        return pack(CbpeSpec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(CbpeSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._blocks.open = {start: np.array(tally, np.int64) for start, tally in state.open.items()}
        self._blocks.closed_to_ms, self._blocks.late = state.closed_to_ms, state.late
        self._verdict = verdict_from(state.verdict)
