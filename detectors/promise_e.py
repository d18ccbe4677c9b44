"""Harm without a reference: the model is wrong more often than it says it is.

A model that answers ``p`` promises an expected Brier loss of ``p (1 - p)``. Per labelled row the excess over that
promise is ``x = (y - p)^2 - p (1 - p) = (y - p)(1 - 2 p)``, never below -1/8. Null: the expected mean excess of a block
of time, given the past, is at most ``tolerance``. For each bet ``L`` the block's e-value is
``max(0, 1 + L (mean - tolerance))``, and Shiryaev-Roberts restarts make an e-detector of it (Shin, Ramdas and Rinaldo,
"E-detectors: a nonparametric framework for sequential change detection", 2022):

    R_k <- (R_k + 1) max(0, 1 + L_k (mean - tolerance)),    drift when mean_k R_k >= threshold

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
from detectors.blocks import BlockState, BlockSums, blocks_to_alarm
from schemas.contracts import DurationMs
from schemas.verdicts import Evidence, Family, State, Verdict

#: Smallest possible excess over the promise, at p = 1/4 and p = 3/4.
_EXCESS_MIN = -0.125
#: Evidence is held at this multiple of the threshold: less than an e-detector may reach, so still one; and what has
#: passed can ebb away.
_CEILING = 1e6
_SCHEMA = 1


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
        threshold = blocks_to_alarm(self.threshold, context.false_pages, context.share, self.block_ms)
        return PromiseDetector(self, threshold)


class _State(msgspec.Struct):
    blocks: BlockState
    evidence: list[float]
    since_ms: int | None
    rows: int
    excess: int
    closed: int
    invalid: int


class PromiseDetector:
    """The running e-detector; see the module."""

    def __init__(self, spec: PromiseSpec, threshold: float) -> None:
        self._spec = spec
        self._threshold = threshold
        self._bets = np.array(spec.bets) / (spec.tolerance - _EXCESS_MIN)
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._blocks = BlockSums(self._spec.block_ms, self._spec.block_offset_ms, 1)
        self._evidence = np.zeros(len(self._bets))
        self._since_ms: int | None = None
        self._rows = self._excess = self._closed = self._invalid = 0
        self._verdict = undecided(self._threshold, "no block with enough outcomes yet")

    def update(self, rows: Rows) -> list[Change]:
        score, label = rows.values[:, 0], rows.values[:, 1]
        valid = (score >= 0) & (score <= 1) & ((label == 0) | (label == 1))
        self._invalid += int(len(rows) - np.count_nonzero(valid))
        score, label = score[valid], label[valid]
        excess = np.rint((label - score) * (1 - 2 * score) * FIXED_POINT).astype(np.int64)
        self._blocks.add(rows.time_ms[valid], rows.sign[valid], excess[:, None])
        return []

    def advance(self, time_ms: int) -> list[Change]:
        changes: list[Change] = []
        for start, (count, excess) in self._blocks.close(time_ms):
            if count < self._spec.rows_min:
                continue
            before = self._verdict.state
            self._take(start, count, excess)
            if self._verdict.state is not before:
                changes.append(Change(-1, start + self._spec.block_ms, self._verdict))
        return changes

    def _take(self, start_ms: int, count: int, excess: int) -> None:
        if self._since_ms is None or float(self._evidence.mean()) <= 1.0:
            self._since_ms, self._rows, self._excess = start_ms, 0, 0
        self._rows += count
        self._excess += excess
        self._closed += 1
        gain = np.maximum(0.0, 1 + self._bets * (excess / FIXED_POINT / count - self._spec.tolerance))
        self._evidence = np.minimum((self._evidence + 1) * gain, _CEILING * self._threshold)
        self._verdict = self._judge()

    def _judge(self) -> Verdict:
        score = float(self._evidence.mean())
        if score >= self._threshold:
            state = State.DRIFT
        elif score >= self._threshold * self._spec.warning_share:
            state = State.WARNING
        else:
            state = State.STABLE
        excess = self._excess / FIXED_POINT / self._rows
        evidence = Evidence(
            column="loss",
            statistic="e-detector of loss above promise",
            effect=excess,
            effect_name="Brier loss above what the scores promise",
            reference=0.0,
            current=excess,
            rows=self._rows,
            since_ms=self._since_ms,
            note=f"{self._closed} blocks; one false alarm in {self._threshold:.0f} blocks at most, if calibrated to "
            f"within {self._spec.tolerance}",
        )
        return Verdict(state=state, score=score, threshold=self._threshold, evidence=evidence)

    def snapshot(self) -> bytes:
        return pack(
            PromiseSpec.kind,
            _SCHEMA,
            _State(
                self._blocks.state,
                self._evidence.tolist(),
                self._since_ms,
                self._rows,
                self._excess,
                self._closed,
                self._invalid,
            ),
        )

    def load(self, data: bytes) -> None:
        state = unpack(PromiseSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._blocks.state = state.blocks
        self._evidence = np.array(state.evidence)
        self._since_ms, self._rows, self._excess = state.since_ms, state.rows, state.excess
        self._closed, self._invalid = state.closed, state.invalid
        if self._closed:
            self._verdict = self._judge()
