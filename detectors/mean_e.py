"""Did a column move from the reference? An e-detector on the mean of its probability transform, day by day.

Each value becomes ``u = F_ref(x)`` in [0, 1] (``detectors.transform``), whose mean is 1/2 while nothing moved. Null: the
conditional mean of a block's mean u lies within ``1/2 +- zone``; per column and direction, for bets k,
``1 + k (mean - 1/2 - zone)`` and ``1 + k (1/2 - zone - mean)``. Shiryaev-Roberts restarts each block; the average over
bets, directions and columns is an e-detector whatever the dependence between them (Shin, Ramdas and Rinaldo 2022), so
one threshold bounds the expected number of blocks to a false alarm for one column or a thousand. The zone is never below
``zone_sd`` standard deviations of the reference's own block means: a season is not drift, and what the reference did by
itself from day to day is no evidence.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> grid = tuple(np.linspace(0, 1, 101))
>>> reference = Reference(columns={"x": ColumnReference(rows=1000, quantiles=grid)})
>>> spec = MeanESpec(threshold=50, rows_min=10)
>>> detector = spec.build(Context(("x",), (0,), stream="features", reference=reference))
>>> days = np.repeat(np.arange(30), 20) * 86_400_000
>>> _ = detector.update(Rows.of(np.full(600, 0.95), days))
>>> detector.advance(30 * 86_400_000)[-1].verdict.evidence.column
'x'
>>> str(detector.verdict.state)
'drift'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
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
from detectors.transform import column_reference, mid_rank
from schemas.contracts import DurationMs
from schemas.verdicts import Evidence, Family, State, Verdict

_CEILING = 1e6
_SCHEMA = 1


class MeanESpec(Spec):
    """Options of ``mean-e``. ``threshold``: expected blocks to a false alarm; without it, the model's budget."""

    kind: ClassVar[str] = "mean-e"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.INPUT, "score": Family.PREDICTION}
    cost_ns: ClassVar[int] = 150
    state_size: ClassVar[str] = "six numbers a column, and two for each open block"
    sees: ClassVar[str] = "a lasting shift of a column's location, numeric or categorical"
    blind_to: ClassVar[str] = (
        "changes of spread or of dependence that leave each column's mean rank where it was"
    )
    pages: ClassVar[bool] = True

    zone: float = Field(default=0.02, ge=0, lt=0.5)
    zone_sd: float = Field(default=2.0, ge=0)
    threshold: float | None = Field(default=None, gt=1)
    warning_share: float = Field(default=0.1, gt=0, le=1)
    bets: tuple[float, ...] = (0.5, 1.0, 1.8)
    block_ms: DurationMs = DAY_MS
    block_offset_ms: DurationMs = 0
    rows_min: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> MeanESpec:
        if self.block_ms <= 0:
            raise ValueError("block_ms must be positive")
        if not self.bets or not all(0 < bet < 2 for bet in self.bets):
            raise ValueError("bets must lie in (0, 2): larger ones can lose all")
        return self

    def build(self, context: Context) -> Detector:
        return MeanE(self, context)


class _State(msgspec.Struct):
    blocks: BlockState
    evidence: list[list[float]]
    since_ms: list[int]
    rows: list[int]
    sums: list[int]
    closed: int


class MeanE:
    """The running e-detector; see the module. ``evidence`` has shape (columns, 2 directions x bets)."""

    def __init__(self, spec: MeanESpec, context: Context) -> None:
        self._spec = spec
        self._names = context.columns
        self._columns = [column_reference(context.reference, name) for name in context.columns]
        self._threshold = blocks_to_alarm(spec.threshold, context.false_pages, context.share, spec.block_ms)
        blocks = {} if context.reference is None else context.reference.column_blocks
        spread = [float(np.std(blocks[n])) if len(blocks.get(n, ())) > 1 else 0.0 for n in self._names]
        self._zones = np.maximum(spec.zone, spec.zone_sd * np.array(spread))
        self._bets = bets_within(np.array(spec.bets), self._zones)
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        k = len(self._names)
        self._blocks = BlockSums(self._spec.block_ms, self._spec.block_offset_ms, 2 * k)
        self._evidence = np.zeros((k, 2 * self._bets.shape[1]))
        self._since = [0] * k
        self._rows = [0] * k
        self._sums = [0] * k
        self._closed = 0
        known = any(column is not None for column in self._columns)
        note = "no block with enough rows yet" if known else "the version has no reference for these columns"
        self._verdict = undecided(self._threshold, note)

    def update(self, rows: Rows) -> list[Change]:
        k = len(self._names)
        sums = np.zeros((len(rows), 2 * k), np.int64)
        for at, column in enumerate(self._columns):
            if column is None:
                continue
            values = np.where(np.isfinite(rows.values[:, at]), rows.values[:, at], np.nan)
            ranks = mid_rank(values, column)
            known = ~np.isnan(ranks)
            sums[:, at] = np.rint(np.where(known, ranks, 0.0) * FIXED_POINT).astype(np.int64)
            sums[:, k + at] = known
        self._blocks.add(rows.time_ms, rows.sign, sums)
        return []

    def advance(self, time_ms: int) -> list[Change]:
        changes = []
        k = len(self._names)
        for start, (_count, *sums) in self._blocks.close(time_ms):
            used = [at for at in range(k) if sums[k + at] >= self._spec.rows_min]
            if not used:
                continue
            before = self._verdict.state
            for at in used:
                self._take(at, start, sums[at], sums[k + at])
            self._closed += 1
            self._verdict = self._judge()
            if self._verdict.state is not before:
                changes.append(Change(-1, start + self._spec.block_ms, self._verdict))
        return changes

    def _take(self, at: int, start_ms: int, total: int, count: int) -> None:
        if float(self._evidence[at].mean()) <= 1.0:
            self._since[at], self._rows[at], self._sums[at] = start_ms, 0, 0
        self._rows[at] += count
        self._sums[at] += total
        off = total / FIXED_POINT / count - 0.5
        zone = float(self._zones[at])
        bets = self._bets[at]
        gains = np.concatenate([1 + bets * (off - zone), 1 + bets * (-off - zone)])
        grown = (self._evidence[at] + 1) * np.maximum(gains, 0.0)
        self._evidence[at] = np.minimum(grown, _CEILING * self._threshold)

    def _judge(self) -> Verdict:
        by_column = self._evidence.mean(axis=1)
        score = float(by_column.mean())
        at = int(by_column.argmax())
        if score >= self._threshold:
            state = State.DRIFT
        elif score >= self._threshold * self._spec.warning_share:
            state = State.WARNING
        else:
            state = State.STABLE
        current = self._sums[at] / FIXED_POINT / self._rows[at] if self._rows[at] else 0.5
        evidence = Evidence(
            column=self._names[at],
            statistic="e-detector of the mean rank",
            effect=current - 0.5,
            effect_name="mean rank in the reference",
            reference=0.5,
            current=current,
            rows=self._rows[at],
            since_ms=self._since[at],
            note=f"zone {self._zones[at]:.3f}; {self._closed} blocks; {len(self._names)} columns",
        )
        return Verdict(state=state, score=score, threshold=self._threshold, evidence=evidence)

    def snapshot(self) -> bytes:
        state = _State(
            self._blocks.state, self._evidence.tolist(), self._since, self._rows, self._sums, self._closed
        )
        return pack(MeanESpec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(MeanESpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._blocks.state = state.blocks
        self._evidence = np.array(state.evidence)
        self._since, self._rows, self._sums = state.since_ms, state.rows, state.sums
        self._closed = state.closed
        if self._closed:
            self._verdict = self._judge()


def bets_within(bets: NDArray[np.float64], zones: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each column's bets, shape (columns, bets), none so large that a block could lose more than all: cutting such a
    loss off at 0 would make the expectation larger than 1, and the promise void. A wide zone allows smaller bets only."""
    return np.minimum(bets[None, :], 1 / (0.5 + zones)[:, None])
