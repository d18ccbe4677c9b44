"""Population stability index of each column against the reference, block by block.

``PSI = sum (p - q) ln(p / q)`` over cells, p the block's shares and q the reference's. Cells are the reference's deciles
or its categories. With n rows in the block and m in the reference, sampling alone gives about ``(cells - 1)(1/n + 1/m)``,
so the usual bounds 0.1 and 0.25 are raised by that much: a small block is no drift. There is no bound on how often it
alarms without drift, so it never pages. (Yurdakul, "Statistical properties of population stability index", 2018.)

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> reference = Reference(columns={"x": ColumnReference(rows=1000, quantiles=tuple(np.linspace(0, 1, 101)))})
>>> detector = PsiSpec().build(Context(("x",), (0,), stream="features", reference=reference))
>>> _ = detector.update(Rows.of(np.linspace(0.5, 1, 500), np.zeros(500, np.int64)))
>>> str(detector.advance(8 * 86_400_000)[0].verdict.state)
'drift'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from detectors.base import DAY_MS, Change, Context, Detector, Rows, Spec, Stream, pack, undecided, unpack
from detectors.blocks import BlockState, BlockSums
from detectors.transform import column_reference, decile_edges
from schemas.contracts import ColumnReference, DurationMs
from schemas.verdicts import Evidence, Family, State, Verdict

_SHARE_MIN = 1e-4
_SCHEMA = 1


class PsiSpec(Spec):
    """Options of ``psi``."""

    kind: ClassVar[str] = "psi"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.INPUT, "score": Family.PREDICTION}
    cost_ns: ClassVar[int] = 100
    state_size: ClassVar[str] = "one number for each cell of each column and open block"
    sees: ClassVar[str] = "any change of a column's distribution over its cells"
    blind_to: ClassVar[str] = "changes within a cell, dependence between columns, shifts shorter than a block"

    bins: int = Field(default=10, ge=2, le=100)
    warning: float = Field(default=0.1, gt=0)
    drift: float = Field(default=0.25, gt=0)
    block_ms: DurationMs = 7 * DAY_MS
    block_offset_ms: DurationMs = 0
    rows_min: int = Field(default=200, ge=2)

    @model_validator(mode="after")
    def _fits(self) -> PsiSpec:
        if self.block_ms <= 0 or self.warning > self.drift:
            raise ValueError("block_ms must be positive and warning at most drift")
        return self

    def build(self, context: Context) -> Detector:
        return Psi(self, context)


class _State(msgspec.Struct):
    blocks: BlockState
    psi: list[float]
    noise: list[float]
    rows: int
    start_ms: int | None


class Psi:
    """The running comparison; a block's counts are the only state besides the last verdict."""

    def __init__(self, spec: PsiSpec, context: Context) -> None:
        self._spec = spec
        self._names = context.columns
        self._columns = [column_reference(context.reference, name) for name in context.columns]
        self._edges = [_edges(c, spec.bins) if c is not None else np.empty(0) for c in self._columns]
        self._shares = [
            _shares(c, e) if c is not None else np.ones(1)
            for c, e in zip(self._columns, self._edges, strict=True)
        ]
        self._at = np.concatenate([[0], np.cumsum([len(s) for s in self._shares])]).astype(np.int64)
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._blocks = BlockSums(self._spec.block_ms, self._spec.block_offset_ms, int(self._at[-1]))
        self._psi = [0.0] * len(self._names)
        self._noise = [0.0] * len(self._names)
        self._rows = 0
        self._start_ms: int | None = None
        known = any(column is not None for column in self._columns)
        note = "no whole block yet" if known else "the version has no reference for these columns"
        self._verdict = undecided(self._spec.drift, note)

    def update(self, rows: Rows) -> list[Change]:
        sums = np.zeros((len(rows), int(self._at[-1])), np.int64)
        for at, column in enumerate(self._columns):
            if column is None:
                continue
            values = rows.values[:, at]
            known = np.flatnonzero(np.isfinite(values))
            cells = (
                np.clip(values[known], 0, len(column.shares) - 1).astype(np.int64)
                if column.shares
                else np.searchsorted(self._edges[at], values[known], "right")
            )
            sums[known, self._at[at] + cells] = 1
        self._blocks.add(rows.time_ms, rows.sign, sums)
        return []

    def advance(self, time_ms: int) -> list[Change]:
        changes = []
        for start, (count, *sums) in self._blocks.close(time_ms):
            if count < self._spec.rows_min or all(column is None for column in self._columns):
                continue
            before = self._verdict.state
            self._measure(start, count, np.array(sums, np.float64))
            self._verdict = self._judge()
            if self._verdict.state is not before:
                changes.append(Change(-1, start + self._spec.block_ms, self._verdict))
        return changes

    def _measure(self, start_ms: int, count: int, sums: NDArray[np.float64]) -> None:
        self._rows, self._start_ms = 0, start_ms
        for at, (column, shares) in enumerate(zip(self._columns, self._shares, strict=True)):
            counts = sums[self._at[at] : self._at[at + 1]]
            total = float(counts.sum())
            if column is None or total < self._spec.rows_min:
                self._psi[at], self._noise[at] = float("nan"), 0.0
                continue
            self._rows = count
            p, q = np.maximum(counts / total, _SHARE_MIN), np.maximum(shares, _SHARE_MIN)
            self._psi[at] = float(((p - q) * np.log(p / q)).sum())
            self._noise[at] = (np.count_nonzero(shares) - 1) * (1 / total + 1 / max(1, column.rows))

    def _judge(self) -> Verdict:
        if self._rows == 0:
            return undecided(self._spec.drift, "no column of the last block had enough values")
        excess = np.array(self._psi) - np.array(self._noise)
        at = int(np.nanargmax(excess))
        score = float(excess[at])
        state = (
            State.DRIFT
            if score >= self._spec.drift
            else State.WARNING
            if score >= self._spec.warning
            else State.STABLE
        )
        evidence = Evidence(
            column=self._names[at],
            statistic="PSI above sampling noise",
            effect=self._psi[at],
            effect_name="PSI",
            rows=self._rows,
            since_ms=self._start_ms,
            note=f"sampling alone gives about {self._noise[at]:.3f}",
        )
        return Verdict(state=state, score=score, threshold=self._spec.drift, evidence=evidence)

    def snapshot(self) -> bytes:
        state = _State(self._blocks.state, self._psi, self._noise, self._rows, self._start_ms)
        return pack(PsiSpec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(PsiSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._blocks.state = state.blocks
        self._psi, self._noise, self._rows, self._start_ms = (
            state.psi,
            state.noise,
            state.rows,
            state.start_ms,
        )
        if self._start_ms is not None:
            self._verdict = self._judge()


def _edges(column: ColumnReference, bins: int) -> NDArray[np.float64]:
    return np.empty(0) if column.shares else decile_edges(column, bins)


def _shares(column: ColumnReference, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the reference in the cells, read off its quantiles."""
    if column.shares:
        return np.asarray(column.shares)
    quantiles = np.asarray(column.quantiles)
    # Each step between neighbouring quantiles holds an equal share of the reference; its middle says in which cell.
    middles = (quantiles[1:] + quantiles[:-1]) / 2 if len(quantiles) > 1 else quantiles
    cells = np.searchsorted(edges, middles, "right")
    return np.bincount(cells, minlength=len(edges) + 1) / len(middles)
