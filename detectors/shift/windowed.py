"""Blocks of event time beside the reference: the running machine under every windowed kind (``windowed_kinds``).

Rows are counted in the cells of their columns, so a window is a few integers however many rows it has, and neither their
order nor where a stream was cut can show. When a block ends, its kind's formula compares each column; the largest score
among the columns is the verdict.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from detectors.base import (
    DAY_MS,
    NEVER_ROWS,
    Change,
    Context,
    Detector,
    Rows,
    Spec,
    Standing,
    Stream,
    pack,
    undecided,
    unpack,
)
from detectors.blocks import BlockState, BlockSums, Which
from detectors.shift import statistics
from detectors.shift.cells import Cells, Floats, cells_of
from schemas.contracts import DurationMs
from schemas.verdicts import Evidence, Family, State, Verdict

_SCHEMA = 2
_NO_PROMISE = "its bound holds for exchangeable rows; rows of one stretch of time are not, so unfitted it may ticket and never pages"


class Finding(NamedTuple):
    """One column of one block. ``evidence``: distance above noise, or -log10 p; ``cell``: where it moved most."""

    effect: float
    evidence: float
    cell: int
    noise: float = 0.0


class WindowedSpec(Spec):
    """What all windowed kinds share."""

    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.INPUT, "score": Family.PREDICTION}
    state_size: ClassVar[str] = "one integer for each cell of each column and open block"
    #: Columns it reads; others have no verdict.
    reads: ClassVar[Literal["all", "numeric", "categorical"]] = "all"
    #: Whether cells are fine and compared by distribution function.
    ordered: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    counts_blocks: ClassVar[bool] = True
    #: Of ten columns.
    closing_ns: ClassVar[int] = 500_000
    statistic: ClassVar[str]
    effect_name: ClassVar[str]

    block_ms: DurationMs = 7 * DAY_MS
    block_offset_ms: DurationMs = 0
    rows_min: int = Field(default=200, ge=2)

    @model_validator(mode="after")
    def _positive(self) -> WindowedSpec:
        if self.block_ms <= 0:
            raise ValueError("block_ms must be positive")
        return self

    def build(self, context: Context) -> Detector:
        return Windowed(self, context)

    def standing(self, context: Context) -> Standing:
        return Standing(note=_NO_PROMISE)

    @property
    def cells_wanted(self) -> int | None:
        """Cells of a numeric column; None for one a percentile."""
        return None

    @abstractmethod
    def measure(self, now: Floats, cells: Cells) -> Finding:
        """Compare a column's counts with the reference's."""

    @abstractmethod
    def bounds(self, context: Context) -> tuple[float, float]:
        """Scores of a warning and of drift."""

    def score(self, finding: Finding, columns: int) -> float:
        """The column's part in the verdict, among ``columns``."""
        return finding.evidence

    def reads_column(self, cells: Cells) -> bool:
        """Whether the statistic means anything for the column."""
        if self.reads == "numeric":
            return cells.numeric
        return self.reads == "all" or not cells.numeric

    def remark(self, finding: Finding, columns: int, warning: float) -> str:
        """What a reader of the evidence must know besides; empty or beginning with a semicolon."""
        return ""


class _State(msgspec.Struct):
    blocks: BlockState
    start_ms: int | None
    sums: list[int]


class Windowed:
    """The running comparison. The counts of the last whole block are kept, and say the verdict again after a restart."""

    def __init__(self, spec: WindowedSpec, context: Context) -> None:
        self._spec = spec
        self._names = context.columns
        self._cells: list[Cells | None] = []
        for name in context.columns:
            feature = context.features.get(name)
            names = () if feature is None else feature.categories
            found = cells_of(context.reference, name, spec.cells_wanted, names)
            self._cells.append(found if found is not None and spec.reads_column(found) else None)
        self._at = np.cumsum([0, *(0 if cells is None else cells.size for cells in self._cells)]).tolist()
        self._read = [at for at, cells in enumerate(self._cells) if cells is not None]
        self._warning, self._drift = spec.bounds(context)
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._blocks = BlockSums(self._spec.block_ms, self._spec.block_offset_ms, self._at[-1])
        self._start_ms: int | None = None
        self._sums: list[int] = []
        note = "no whole block yet" if self._read else "the version has no reference for columns of this kind"
        self._verdict = undecided(self._drift, note)

    def update(self, rows: Rows) -> list[Change]:
        def counts(which: Which) -> NDArray[np.int64]:
            values, found = rows.values[which], np.zeros(self._at[-1], np.int64)
            for at in self._read:
                cells = self._cells[at]
                assert cells is not None
                cells.count(values[:, at], found[self._at[at] : self._at[at + 1]])
            return found

        self._blocks.count_rows(rows.time_ms, rows.sign, counts)
        return []

    def advance(self, time_ms: int) -> list[Change]:
        changes = []
        for start, (count, *sums) in self._blocks.close(time_ms):
            if count < self._spec.rows_min or not self._read:
                continue
            before = self._verdict.state
            self._start_ms, self._sums = start, sums
            self._verdict = self._judge(start, sums)
            if self._verdict.state is not before:
                changes.append(Change(-1, start + self._spec.block_ms, self._verdict))
        return changes

    def patience(self) -> tuple[int, int]:
        return NEVER_ROWS, self._blocks.closes_after_ms

    def _judge(self, start_ms: int, sums: list[int]) -> Verdict:
        best: tuple[tuple[float, float, float], int, Finding, Floats] | None = None
        for at in self._read:
            cells = self._cells[at]
            assert cells is not None
            # A retraction whose row came before the block leaves less than nothing.
            now = np.maximum(np.array(sums[self._at[at] : self._at[at + 1]], np.float64), 0.0)
            if now.sum() < self._spec.rows_min:
                continue
            finding = self._spec.measure(now, cells)
            score = self._spec.score(finding, len(self._read))
            # Where p-values are too small to tell apart, the larger effect is the one to show.
            rank = (score, finding.evidence, finding.effect)
            if best is None or rank > best[0]:
                best = (rank, at, finding, now)
        if best is None:
            return undecided(self._drift, "no column of the last block had enough values")
        (score, _, _), at, finding, now = best
        state = State.STABLE
        if score >= self._warning:
            state = State.DRIFT if score >= self._drift else State.WARNING
        return Verdict(
            state=state,
            score=score,
            threshold=self._drift,
            evidence=self._evidence(at, finding, now, start_ms),
        )

    def _evidence(self, at: int, finding: Finding, now: Floats, start_ms: int) -> Evidence:
        cells = self._cells[at]
        assert cells is not None
        p, q = statistics.shares(now), statistics.shares(cells.reference)
        if self._spec.ordered:
            current, reference = float(p[: finding.cell + 1].sum()), float(q[: finding.cell + 1].sum())
            place = (
                f"below {cells.edges[finding.cell]:.6g}" if finding.cell < len(cells.edges) else "everywhere"
            )
        else:
            current, reference = float(p[finding.cell]), float(q[finding.cell])
            place = cells.name(finding.cell)
        note = f"{place}: {current:.3f} of the rows, {reference:.3f} in the reference"
        if finding.noise:
            note += f"; sampling alone gives about {finding.noise:.3f}"
        note += self._spec.remark(finding, len(self._read), self._warning)
        return Evidence(
            column=self._names[at],
            statistic=self._spec.statistic,
            effect=finding.effect,
            effect_name=self._spec.effect_name,
            reference=reference,
            current=current,
            rows=round(float(now.sum())),
            since_ms=start_ms,
            note=f"{note}; largest of {len(self._read)} columns",
        )

    def snapshot(self) -> bytes:
        return pack(self._spec.kind, _SCHEMA, _State(self._blocks.state, self._start_ms, self._sums))

    def load(self, data: bytes) -> None:
        state = unpack(self._spec.kind, _SCHEMA, _State, data)
        self.reset()
        self._blocks.state = state.blocks
        self._start_ms, self._sums = state.start_ms, state.sums
        if self._start_ms is not None:
            self._verdict = self._judge(self._start_ms, self._sums)
