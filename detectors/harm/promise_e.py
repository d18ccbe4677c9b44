"""Harm without a reference: the model is wrong more often than it says it is.

A model that answers ``p`` promises an expected Brier loss of ``p (1 - p)``. Per labelled row the excess over that
promise is ``x = (y - p)^2 - p (1 - p) = (y - p)(1 - 2 p)``, never below -1/8. Null: the expected mean excess of a block
of time, given the past, is at most ``tolerance``. The evidence is that of ``block_evidence``,

    R <- (R + 1) (1 + f (mean - tolerance) / (tolerance + 1/8)),    drift when the mean of R over the bets f >= threshold,

so the expected number of blocks to a false alarm is at least ``threshold``, whatever depends on what within a block.
The guarantee is conditional on the model being calibrated to within the tolerance when nothing is wrong; it needs no
reference data and no base rate. A season that moves the loss by one standard deviation of its daily value is seen,
because the yardstick is the model's own confidence and not last spring's weather.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> detector = PromiseSpec(threshold=100).build(Context(("score", "label", "loss"), stream="loss"))
>>> days = np.repeat(np.arange(40), 50)
>>> rows = np.column_stack([np.full(2000, 0.1), np.arange(2000) % 2, np.zeros(2000)])  # says 10 %, is 50 %
>>> _ = detector.update(Rows.of(rows, days * 86_400_000))
>>> [(change.time_ms // 86_400_000, str(change.verdict.state)) for change in detector.advance(41 * 86_400_000)]
[(1, 'stable'), (3, 'warning'), (5, 'drift')]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from detectors.base import DAY_MS, Context, Detector, Rows, Spec, Stream
from detectors.blocks import blocks_to_alarm
from detectors.harm.block_evidence import BlockEvidenceDetector, BlocksAbove
from detectors.harm.loss import answered, score_and_label
from schemas.contracts import DurationMs
from schemas.verdicts import Evidence, Family

Floats = NDArray[np.float64]
#: Smallest possible excess over the promise, at p = 1/4 and p = 3/4.
_EXCESS_MIN = -0.125


class PromiseSpec(Spec):
    """Options of ``loss-above-promise``. ``threshold``: expected blocks to a false alarm."""

    kind: ClassVar[str] = "loss-above-promise"
    streams: ClassVar[Mapping[Stream, Family]] = {"loss": Family.CONCEPT}
    cost_ns: ClassVar[int] = 60
    state_size: ClassVar[str] = "five numbers, and three for each open block"
    sees: ClassVar[str] = (
        "a loss above what the model's own scores promise: over-confidence, a broken feature"
    )
    blind_to: ClassVar[str] = (
        "lost discrimination while scores stay calibrated; over-prediction that lowers the loss"
    )
    pages: ClassVar[bool] = True

    tolerance: float = Field(default=0.01, ge=0, lt=0.5)
    threshold: float | None = Field(default=None, gt=1)
    warning_share: float = Field(default=0.1, gt=0, le=1, description="Of the threshold; above it: warning.")
    bets: tuple[float, ...] = Field(
        default=(0.07, 0.14, 0.27, 0.54, 0.95),
        description="As parts of the largest bet that cannot lose all, ``1 / (1/8 + tolerance)``.",
    )
    block_ms: DurationMs = DAY_MS
    block_offset_ms: DurationMs = Field(default=0, description="Blocks begin this long after UTC midnight.")
    rows_min: int = Field(default=20, ge=1, description="Blocks with fewer outcomes are skipped.")

    @model_validator(mode="after")
    def _bets_fit(self) -> PromiseSpec:
        if not self.bets or not all(0 < bet <= 1 for bet in self.bets):
            raise ValueError("bets must lie in (0, 1]: they are parts of the largest that cannot lose all")
        if self.block_ms <= 0:
            raise ValueError("block_ms must be positive")
        return self

    def build(self, context: Context) -> Detector:
        return PromiseDetector(self, context)


class PromiseDetector(BlockEvidenceDetector):
    """The running e-detector; see the module."""

    kind = PromiseSpec.kind
    schema = 3

    def __init__(self, spec: PromiseSpec, context: Context) -> None:
        self._tolerance = spec.tolerance
        self._score, self._label = score_and_label(context)
        super().__init__(
            bound=spec.tolerance,
            floor=_EXCESS_MIN,
            fractions=spec.bets,
            threshold=blocks_to_alarm(spec.threshold, context.false_pages, context.share, spec.block_ms),
            warning_share=spec.warning_share,
            block_ms=spec.block_ms,
            block_offset_ms=spec.block_offset_ms,
            rows_min=spec.rows_min,
        )

    def values(self, rows: Rows) -> tuple[NDArray[np.bool_], Floats]:
        score, label = rows.values[:, self._score], rows.values[:, self._label]
        valid = answered(score, label)
        score, label = score[valid], label[valid]
        return valid, (label - score) * (1 - 2 * score)

    def describe(self, above: BlocksAbove) -> Evidence:
        return Evidence(
            column="loss",
            statistic="e-detector of loss above promise",
            effect=above.mean,
            effect_name="Brier loss above what the scores promise",
            reference=0.0,
            current=above.mean,
            rows=above.rows,
            since_ms=above.since_ms,
            note=f"{above.closed} blocks; one false alarm in {self.threshold:.0f} blocks at most, if calibrated to "
            f"within {self._tolerance}",
        )
