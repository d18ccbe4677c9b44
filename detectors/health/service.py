"""The service level as it was delivered: latency, errors and throughput of each block of time against stated limits.

Facts about what happened, not estimates of anything: there is no null hypothesis and no false alarm but a wrong limit.
Of each block: the 99th percentile of the latency of answers (``detectors.health.sketch``: within 1 %, and drift only when the
whole of that error lies above the limit), the share of rows that are errors, the number of rows. A limit that is None
is not checked. A block with fewer than ``rows_min`` rows says nothing of latency and errors. With
``rows_min_per_block`` an empty block counts as one of no rows, except before the first row; the first block, which may
have begun before anybody looked, is not held to it.

Score: the worst quantity as a multiple of its limit (for throughput, the limit as a multiple of the rows, at most
1,000); above 1 is drift, ``warning_share`` of it a warning.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> columns = ("score", "latency_ms", "error")
>>> detector = ServiceSpec(latency_p99_ms=50).build(Context(columns, stream="predictions"))
>>> values = np.column_stack([np.full(500, 0.5), np.linspace(1, 100, 500), np.zeros(500)])
>>> _ = detector.update(Rows.of(values, np.zeros(500, np.int64)))
>>> detector.advance(3_600_000)[0].verdict.evidence.note
'latency p99 99.7 ms (limit 50); errors 0.00 % (limit 5); 500 rows'
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import msgspec
import numpy as np
from pydantic import Field, model_validator

from detectors.base import (
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
from detectors.gather import OpenBlocks, verdict_bytes, verdict_from
from detectors.health.sketch import RELATIVE_ERROR, cells_of, quantile
from schemas.contracts import DurationMs
from schemas.verdicts import Evidence, Family, State, Verdict

_SCHEMA = 1
_SCORE_MAX = 1_000.0
#: Exactly at a limit is within it, for a maximum as for a minimum.
_ABOVE = math.nextafter(1.0, 2.0)
_LATENCY, _ERROR = 1, 2


class ServiceSpec(Spec):
    """Options of ``service-level``; a limit of None is not checked."""

    kind: ClassVar[str] = "service-level"
    streams: ClassVar[Mapping[Stream, Family]] = {"predictions": Family.SERVICE}
    #: Blocks of 2,000 rows within few blocks of time.
    cost_ns: ClassVar[int] = 300
    state_size: ClassVar[str] = "at most 1,383 counts an open block, most often under a hundred"
    sees: ClassVar[str] = "slow answers, failed answers, too few answers"
    blind_to: ClassVar[str] = "requests that never reached the log; what happens within a block"
    pages: ClassVar[bool] = True

    latency_p99_ms: float | None = Field(default=None, gt=0)
    error_rate_max: float | None = Field(default=0.05, gt=0, lt=1)
    rows_min_per_block: int | None = Field(default=None, ge=1, description="Throughput below it is drift.")
    warning_share: float = Field(default=0.8, gt=0, le=1, description="Of a limit; above it: warning.")
    block_ms: DurationMs = 900_000
    block_offset_ms: DurationMs = 0
    rows_min: int = Field(default=100, ge=1, description="Rows of a block that latency and errors need.")

    @model_validator(mode="after")
    def _fits(self) -> ServiceSpec:
        if self.block_ms <= 0:
            raise ValueError("block_ms must be positive")
        if (self.latency_p99_ms, self.error_rate_max, self.rows_min_per_block) == (None, None, None):
            raise ValueError("one of latency_p99_ms, error_rate_max and rows_min_per_block must be given")
        return self

    @property
    def spends_budget(self) -> bool:
        return False  # a stated limit passed or it did not

    def build(self, context: Context) -> Detector:
        return Service(self)

    def standing(self, context: Context) -> Standing:
        return Standing(
            basis="proved",
            pages=True,
            note="measured against a stated limit: a fact, not an estimate; spends none of the false-page budget",
        )


class _Block(msgspec.Struct):
    """``rows`` whose outcome is known, of which ``errors``; ``cells``: latencies of the others by cell."""

    rows: int = 0
    errors: int = 0
    cells: dict[int, int] = {}


class _State(msgspec.Struct):
    open: dict[int, _Block]
    closed_to_ms: int
    late: int
    first_ms: int | None
    judged_to_ms: int
    verdict: bytes


class Service:
    """The running account; see the module."""

    def __init__(self, spec: ServiceSpec) -> None:
        self._spec = spec
        self.reset()

    def reset(self) -> None:
        self._blocks = OpenBlocks(self._spec.block_ms, self._spec.block_offset_ms, _Block)
        self._first_ms: int | None = None
        self._judged_to_ms = 0
        self._verdict: Verdict | None = None

    @property
    def verdict(self) -> Verdict:
        return self._verdict or undecided(_ABOVE, "no block with enough rows yet")

    def update(self, rows: Rows) -> list[Change]:
        error = rows.values[:, _ERROR]
        known = (error == 0) | (error == 1)
        for block, part in self._blocks.parts(rows if known.all() else rows.take(known)):
            failed = part.values[:, _ERROR] == 1
            latency = part.values[:, _LATENCY]
            answered = latency[~failed & (latency >= 0) & np.isfinite(latency)]
            block.rows += len(part)
            block.errors += int(np.count_nonzero(failed))
            cells, counts = np.unique(cells_of(answered), return_counts=True)
            for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
                block.cells[cell] = block.cells.get(cell, 0) + count
        return []

    def advance(self, time_ms: int) -> list[Change]:
        changes = []
        for start, block in self._due(time_ms):
            before = self.verdict.state
            self._judge(start, block)
            if self.verdict.state is not before:
                changes.append(Change(-1, start + self._spec.block_ms, self.verdict))
        return changes

    def patience(self) -> tuple[int, int]:
        return NEVER_ROWS, self._blocks.closes_after_ms

    def _due(self, time_ms: int) -> Iterator[tuple[int, _Block]]:
        """Closed blocks in order; of each run of empty ones the first, which says all that the others would."""
        spec = self._spec
        closed = self._blocks.close(time_ms)
        if closed and self._first_ms is None:
            self._first_ms = self._judged_to_ms = closed[0][0]
        for start, block in closed:
            if start > self._judged_to_ms:
                yield self._judged_to_ms, _Block()
            self._judged_to_ms = start + spec.block_ms
            yield start, block
        if self._first_ms is not None and self._blocks.closed_to_ms > self._judged_to_ms:
            yield self._judged_to_ms, _Block()

    def _judge(self, start_ms: int, block: _Block) -> None:
        spec = self._spec
        found: list[tuple[float, str, str, float, float]] = []
        words = []
        answers = sum(block.cells.values())
        if spec.latency_p99_ms is not None and answers >= spec.rows_min:
            p99 = quantile(block.cells, 0.99)
            least = p99 * (1 - RELATIVE_ERROR)
            words.append(f"latency p99 {p99:.3g} ms (limit {spec.latency_p99_ms:g})")
            found.append(
                (least / spec.latency_p99_ms, "latency_ms", "latency p99, ms", p99, spec.latency_p99_ms)
            )
        if spec.error_rate_max is not None and block.rows >= spec.rows_min:
            rate = block.errors / block.rows
            words.append(f"errors {100 * rate:.2f} % (limit {100 * spec.error_rate_max:g})")
            found.append((rate / spec.error_rate_max, "error", "error rate", rate, spec.error_rate_max))
        least_rows = spec.rows_min_per_block
        if least_rows is not None and start_ms != self._first_ms:
            ratio = least_rows / block.rows if block.rows else _SCORE_MAX
            found.append((ratio, "", "rows in the block", float(block.rows), float(least_rows)))
        if not found:
            return
        words.append(f"{block.rows} rows" + (f" (at least {least_rows})" if least_rows is not None else ""))
        score, column, name, current, limit = max(found, key=lambda entry: entry[0])
        state = (
            State.DRIFT if score >= _ABOVE else State.WARNING if score > spec.warning_share else State.STABLE
        )
        evidence = Evidence(
            column=column or None,
            statistic="multiple of the limit",
            effect=current - limit,
            effect_name=name,
            reference=limit,
            current=current,
            rows=block.rows,
            since_ms=start_ms,
            note="; ".join(words),
        )
        self._verdict = Verdict(
            state=state, score=min(_SCORE_MAX, score), threshold=_ABOVE, evidence=evidence
        )

    def snapshot(self) -> bytes:
        state = _State(
            self._blocks.open,
            self._blocks.closed_to_ms,
            self._blocks.late,
            self._first_ms,
            self._judged_to_ms,
            verdict_bytes(self._verdict),
        )
        return pack(ServiceSpec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(ServiceSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._blocks.open = state.open
        self._blocks.closed_to_ms, self._blocks.late = state.closed_to_ms, state.late
        self._first_ms, self._judged_to_ms = state.first_ms, state.judged_to_ms
        self._verdict = verdict_from(state.verdict)
