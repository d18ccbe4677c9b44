"""Is the data still data: nulls, impossible values, frozen columns, repeated rows, block by block against the reference.

Checks, each a line of evidence of its own where it finds something:

    missing        share of nulls above the reference's (or its worst block's), or above none where the contract allows none
    invalid        infinite numbers; category codes that are unknown or impossible, above the reference's share
    out of range   outside the contract's ``low`` and ``high``, above the reference's share
    with fraction  a column of integers that holds fractions; ``integers only``: one of fractions that holds none
    frozen         one value in the whole block; ``a handful``: so few that the reference makes it incredible
    repeated       rows whose identity the block already had, exact up to ``identities_max``, from a sample beyond

A rate of c in n rows counts ``n KL(c/n || bound + effect_min)`` nats, the bound being an upper confidence bound of the
reference's rate, so a small reference is held against nobody; d values in n rows count minus the log of the chance that
rows from the reference would hold so few. Drift: the largest, less the log of how many checks there were, reaches
``ln(1 / tail)``. Chernoff (1952) makes that a bound for rows that come one by one; rows of one hour share their faults,
so it is a yardstick and no guarantee, and this kind never pages.

Rows too late or too far ahead of the stream's time never come here: the join refuses them as dead letters with the
reason ``absurd-timestamp``, counted by ``driftline_dead_letters_total``. Answers that are errors have no score; on the
stream of predictions their nulls are the service level's concern and are not counted.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> reference = Reference(columns={"x": ColumnReference(rows=1000, quantiles=tuple(np.linspace(0, 1, 101)))})
>>> detector = QualitySpec().build(Context(("x",), (0,), stream="features", reference=reference))
>>> values = np.where(np.arange(300) % 10 == 0, np.nan, np.linspace(0, 1, 300))
>>> _ = detector.update(Rows.of(values, np.zeros(300, np.int64)))
>>> detector.advance(86_400_000)[0].verdict.evidence.note
'x: missing 0.1 of 300 rows, at most 0.006976 expected'
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

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
    Stream,
    pack,
    undecided,
    unpack,
)
from detectors.gather import OpenBlocks, verdict_bytes, verdict_from
from detectors.health.quality_checks import (
    Allowed,
    Finding,
    allowed,
    integers_finding,
    rate_finding,
    variety_finding,
)
from detectors.health.repeats import Repeats, RepeatsState
from schemas.contracts import DurationMs
from schemas.verdicts import Evidence, Family, State, Verdict

_SCHEMA = 1
#: Rows of ``counts``.
_ROWS, _MISSING, _INVALID, _OUTSIDE, _FRACTIONAL = range(5)
_LINES_MAX = 6


class QualitySpec(Spec):
    """Options of ``quality``. ``tail``: chance of a false alarm a block, were rows independent."""

    kind: ClassVar[str] = "quality"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.QUALITY, "predictions": Family.QUALITY}
    #: Ten numeric columns in blocks of 2,000.
    cost_ns: ClassVar[int] = 270
    state_size: ClassVar[str] = (
        "five numbers a column and open block, and 12 bytes an identity up to 1,024 of them"
    )
    sees: ClassVar[str] = (
        "nulls, infinities, unknown categories, values out of range, changed types, frozen columns, repeated rows"
    )
    blind_to: ClassVar[str] = (
        "plausible but wrong values, faults of fewer rows than effect_min, repeats a block apart; without a reference, "
        "all but the contract's own bounds"
    )
    finds_unreadable: ClassVar[bool] = True

    effect_min: float = Field(default=0.01, ge=0, lt=1, description="Share of rows that is worth a word.")
    tail: float = Field(default=1e-6, gt=0, lt=0.1)
    warning_tail: float = Field(default=1e-3, gt=0, lt=1)
    block_ms: DurationMs = DAY_MS
    block_offset_ms: DurationMs = 0
    rows_min: int = Field(default=50, ge=2)
    identities_max: int = Field(default=1_024, ge=2, le=65_536)

    @model_validator(mode="after")
    def _fits(self) -> QualitySpec:
        if self.block_ms <= 0 or self.warning_tail < self.tail:
            raise ValueError("block_ms must be positive and warning_tail at least tail")
        return self

    def build(self, context: Context) -> Detector:
        return Quality(self, context)


class _BlockState(msgspec.Struct):
    counts: list[list[int]]
    values: list[list[float] | None]
    rows: int
    repeats: RepeatsState


class _State(msgspec.Struct):
    open: dict[int, _BlockState]
    closed_to_ms: int
    late: int
    verdict: bytes


class _Block:
    """What is known of one open block: ``counts (5, columns)``; ``values``: distinct ones a column, None for many."""

    def __init__(self, columns: list[Allowed], identities_max: int) -> None:
        self.counts = np.zeros((5, len(columns)), np.int64)
        self.values: list[list[float] | None] = [[] if c.variety else None for c in columns]
        self.rows = 0
        self.repeats = Repeats(identities_max)


class Quality:
    """The running checks; see the module."""

    def __init__(self, spec: QualitySpec, context: Context) -> None:
        self._spec = spec
        self._columns = [
            allowed(context, at, spec.block_ms, spec.block_offset_ms) for at in range(len(context.columns))
        ]
        self._coded = np.array([c.categories > 0 for c in self._columns], bool)
        self._low = np.array([c.low for c in self._columns])
        self._high = np.array([c.high for c in self._columns])
        self._unknown = np.array([c.categories - 1 for c in self._columns], np.float64)
        answers = [context.columns.index(name) for name in ("score", "latency_ms") if name in context.columns]
        errors = "error" in context.columns and context.stream == "predictions"
        self._answers = np.array(answers if errors else [], np.int64)
        self._error = context.columns.index("error") if errors else -1
        self._threshold = math.log(1 / spec.tail)
        self._warning = math.log(1 / spec.warning_tail)
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict or undecided(self._threshold, "no block with enough rows yet")

    def reset(self) -> None:
        spec = self._spec
        self._blocks = OpenBlocks(
            spec.block_ms, spec.block_offset_ms, lambda: _Block(self._columns, spec.identities_max)
        )
        self._verdict: Verdict | None = None

    def update(self, rows: Rows) -> list[Change]:
        for block, part in self._blocks.parts(rows):
            self._count(block, part)
        return []

    def _count(self, block: _Block, rows: Rows) -> None:
        values, coded = rows.values, self._coded
        finite = np.isfinite(values)
        null = np.isnan(values)
        whole = values == np.rint(values)
        invalid = ~finite & ~null
        outside = finite & ((values < self._low) | (values > self._high))
        fractional = finite & ~whole
        if coded.any():
            known = finite & whole & (values >= 0) & (values < self._unknown)
            invalid = np.where(coded, ~known & ~null, invalid)
            outside &= ~coded
            fractional &= ~coded
            finite = np.where(coded, known, finite)
        if len(self._answers):
            # An answer that is an error has neither score nor latency: such rows do not exist for these columns.
            absent = (values[:, self._error] == 1)[:, None] & ~finite[:, self._answers]
            null[:, self._answers] &= ~absent
            invalid[:, self._answers] &= ~absent
            block.counts[_ROWS, self._answers] -= np.count_nonzero(absent, axis=0)
        block.rows += len(rows)
        block.counts[_ROWS] += len(rows)
        for at, found in (
            (_MISSING, null),
            (_INVALID, invalid),
            (_OUTSIDE, outside),
            (_FRACTIONAL, fractional),
        ):
            block.counts[at] += np.count_nonzero(found, axis=0)
        for at, held in enumerate(block.values):
            if held is not None:
                block.values[at] = self._more(held, values[finite[:, at], at], self._columns[at].variety)
        block.repeats.add(rows.identity)

    @staticmethod
    def _more(held: list[float], values: NDArray[np.float64], variety: int) -> list[float] | None:
        """Distinct values in order; None once there are too many. Zero has one sign, or the first to come would show."""
        distinct = np.union1d(np.array(held), values + 0.0)
        return None if len(distinct) > variety else distinct.tolist()

    def advance(self, time_ms: int) -> list[Change]:
        changes = []
        for start, block in self._blocks.close(time_ms):
            if block.rows < self._spec.rows_min:
                continue
            before = self.verdict.state
            self._verdict = self._judge(start, block)
            if self._verdict.state is not before:
                changes.append(Change(-1, start + self._spec.block_ms, self._verdict))
        return changes

    def patience(self) -> tuple[int, int]:
        return NEVER_ROWS, self._blocks.closes_after_ms

    def _findings(self, block: _Block) -> list[Finding]:
        """Every check that was made, findings or none."""
        effect = self._spec.effect_min
        made = []
        for at, column in enumerate(self._columns):
            rows, missing, invalid, outside, fractional = block.counts[:, at].tolist()
            present = rows - missing
            if column.missing is not None and rows:
                made.append(rate_finding(column.name, "missing", missing, rows, column.missing, effect))
            if present < self._spec.rows_min:
                continue
            made.append(rate_finding(column.name, "invalid", invalid, present, column.invalid, effect))
            readable = present - invalid
            if column.outside is not None:
                made.append(
                    rate_finding(column.name, "out of range", outside, present, column.outside, effect)
                )
            if column.fractional is not None:
                found = rate_finding(
                    column.name, "with fraction", fractional, present, column.fractional, effect
                )
                made.append(found)
            if column.integers is not None and not fractional and readable:
                made.append(integers_finding(column, readable))
            held = block.values[at]
            if held is not None and readable >= max(1.0, column.whole_rows):
                made.append(variety_finding(column, len(held), readable))
        return made

    def _judge(self, start_ms: int, block: _Block) -> Verdict:
        made = self._findings(block)
        if not made:
            return undecided(
                self._threshold, "no column has enough readable rows, or a reference to hold nulls against"
            )
        repeats = block.repeats
        exact = "repeated" if repeats.exact else "repeated (sampled identities)"
        made.append(
            rate_finding("identity", exact, repeats.repeated, repeats.rows, 0.0, self._spec.effect_min)
        )
        # Ties go to the first, so that equal blocks give equal evidence.
        made.sort(key=lambda finding: -finding.nats)
        crowd = math.log(len(made))
        worst = made[0]
        score = max(0.0, worst.nats - crowd)
        lines = [finding.line for finding in made if finding.nats - crowd >= self._warning]
        more = f"; and {len(lines) - _LINES_MAX} more" if len(lines) > _LINES_MAX else ""
        found = score >= self._warning
        state = State.DRIFT if score >= self._threshold else State.WARNING if found else State.STABLE
        evidence = Evidence(
            column=worst.column if found else None,
            statistic="nats against the reference's rate",
            effect=worst.current - worst.allowed if found else None,
            effect_name=worst.check if found else "",
            reference=worst.allowed if found else None,
            current=worst.current if found else None,
            rows=block.rows,
            since_ms=start_ms,
            note="; ".join(lines[:_LINES_MAX]) + more if lines else f"{len(made)} checks, no finding",
        )
        return Verdict(state=state, score=score, threshold=self._threshold, evidence=evidence)

    def snapshot(self) -> bytes:
        blocks = {
            start: _BlockState(block.counts.tolist(), block.values, block.rows, block.repeats.state())
            for start, block in self._blocks.open.items()
        }
        state = _State(blocks, self._blocks.closed_to_ms, self._blocks.late, verdict_bytes(self._verdict))
        return pack(QualitySpec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(QualitySpec.kind, _SCHEMA, _State, data)
        self.reset()
        for start, held in state.open.items():
            block = self._blocks.open[start] = _Block(self._columns, self._spec.identities_max)
            block.counts = np.array(held.counts, np.int64)
            block.values, block.rows = list(held.values), held.rows
            block.repeats = Repeats.of(self._spec.identities_max, held.repeats)
        self._blocks.closed_to_ms, self._blocks.late = state.closed_to_ms, state.late
        self._verdict = verdict_from(state.verdict)
