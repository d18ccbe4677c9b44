"""Did a column move from the reference? An e-detector over all columns at once, row by row.

For each column, bets against "no more than the zone" (``detectors.shift.bets``): location, spread, regions, categories, missing
values; and the same for columns made of all (``detectors.shift.joint``). A bet's e-value over a cell of rows is the product over
the rows. Shiryaev-Roberts restarts weigh each cell by the event time it opens,

    R <- (R + time since the cell before) * E,        S = sum of weight * R over bets and columns,

so that under the null S grows by at most the time that passes, whatever the columns' dependence and however many there
are: the expected time to ``S >= run length`` is at least the run length, and ten times the traffic buys no more false
alarms. A verdict of drift ends when S has fallen to a tenth; the threshold is raised by that tenth so that the RATE of
alarms keeps the promise (Doob's upcrossings). E-detectors: Shin, Ramdas and Rinaldo 2022, arXiv 2203.03532.

The promise needs each row's distribution, given the past, to lie in the null. Rows of one hour share their weather, and
then it is void: unless the owner states ``rows_independent`` this kind tickets and never pages; ``drift-e-blocks`` takes
whole blocks of time as evidence and may. With probability ``1 - delta`` over the reference the null covers its sampling
error.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> grid = tuple(np.linspace(0, 1, 101))
>>> reference = Reference(columns={"x": ColumnReference(rows=10_000, quantiles=grid)})
>>> detector = DriftESpec(run="1h").build(Context(("x",), (0,), stream="features", reference=reference))
>>> rng = np.random.default_rng(1)
>>> x = np.concatenate([rng.uniform(0, 1, 2_000), rng.uniform(0.3, 1, 600)])
>>> [(c.index, str(c.verdict.state)) for c in detector.update(Rows.of(x, 1_000 * np.arange(2_600)))]
[(127, 'stable'), (2083, 'warning'), (2087, 'stable'), (2091, 'warning'), (2123, 'drift')]
>>> detector.verdict.evidence.column, detector.verdict.evidence.statistic
('x', 'higher')
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import Change, Context, Detector, Rows, Spec, Standing, Stream, pack, undecided, unpack
from detectors.evidence import LOW, next_state, run_length_ms, threshold_ms
from detectors.shift.bets import UNIT, Bets, bets_on, stacked
from detectors.shift.joint import Joint
from detectors.shift.levels import Coder, Codes, Levels
from detectors.transform import column_reference, sample_of
from schemas.contracts import DurationMs
from schemas.verdicts import Evidence, Family, State, Verdict

_SCHEMA = 1
#: Evidence is cut down to this many times the threshold: less than it might be, so the promise holds, and it can ebb away.
_CEILING = 1e3
#: Cells between two such cuts; what they can gain meanwhile stays far from overflow.
_CUT_CELLS = 8
#: Levels are counted over the last one to two times so many cells, for what people read.
_RECENT_CELLS = 64
_JOINT_WEIGHT = 0.05
#: A pause in the traffic opens no more than this share of the run length for a change to begin in.
_GAP_SHARE = 1e-2


class DriftESpec(Spec):
    """Options of ``drift-e``."""

    kind: ClassVar[str] = "drift-e"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.INPUT, "score": Family.PREDICTION}
    cost_ns: ClassVar[int] = 1_600
    state_size: ClassVar[str] = (
        "one number a bet (13 a numeric column, 24 a categorical one), counts of 1,024 rows"
    )
    sees: ClassVar[str] = (
        "location, spread, shape, categories, missing values of every column; all of them moving together"
    )
    blind_to: ClassVar[str] = (
        "moves within the zone; a changed dependence between columns, unless along the reference's main directions"
    )
    pages: ClassVar[bool] = True
    finds_unreadable: ClassVar[bool] = True

    run: DurationMs | None = Field(
        default=None, description="Event time to a false alarm, at least; default: from the model's budget."
    )
    zone: float = Field(
        default=0.07, ge=0, lt=1,
        description="A shift this small is none, in reference standard deviations (0.07: mean rank 0.52).",
    )  # fmt: skip
    scale_zone: float = Field(default=0.07, ge=0, lt=1, description="As ``zone``, for the ratio of spreads.")
    delta: float = Field(
        default=0.05, gt=0, lt=0.5, description="Probability that the reference misleads the promise."
    )
    cell_rows: int = Field(default=4, ge=1, le=16, description="Smaller: sooner for large moves, dearer.")
    rows_min: int = Field(default=128, ge=1, description="Silent for so many rows.")
    joint: bool = True
    rows_independent: bool = Field(default=False, description="The owner states it; only then may it page.")

    @property
    def spends_budget(self) -> bool:
        return self.rows_independent

    def build(self, context: Context) -> Detector:
        return DriftE(self, context)

    def standing(self, context: Context) -> Standing:
        run = run_length_ms(self.run, context)
        if self.rows_independent:
            return Standing(
                "proved", run, pages=True, note="for independent rows, which the owner states these are"
            )
        return Standing(
            "proved", run, note="for independent rows; rows in time order are not, so it does not page"
        )


class _State(msgspec.Struct):
    rows: int
    pending: list[list[float]]
    pending_ms: list[int]
    last_ms: int | None
    evidence: list[list[float]]
    state: str
    score: float
    recent: list[list[int]]


class DriftE:
    """The running e-detector; see the module. Evidence has shape (columns and made columns, bets)."""

    _said: Verdict | None

    def __init__(self, spec: DriftESpec, context: Context) -> None:
        self._spec = spec
        found = [(at, column_reference(context.reference, name)) for at, name in enumerate(context.columns)]
        self._places = np.array(
            [at for at, column in found if column is not None and column.rows > 0], np.intp
        )
        self._names = [context.columns[at] for at in self._places]
        discrete, sample = _sample_of(context, self._names)
        columns = [
            Levels(column, name in discrete)
            for (_, column), name in zip(
                ((a, c) for a, c in found if c is not None and c.rows > 0), self._names, strict=True
            )
        ]
        self._coder = Coder(columns)
        joint = Joint(self._coder, sample, spec.zone, spec.scale_zone) if spec.joint else None
        self._joint = joint if joint is not None and joint.names else None
        self._made = Coder(self._joint.levels) if self._joint is not None else None
        everything = [*columns, *(self._joint.levels if self._joint is not None else ())]
        self._all = [*self._names, *(self._joint.names if self._joint is not None else ())]
        delta = spec.delta / max(1, len(everything))
        zones = [(spec.zone, spec.scale_zone)] * len(columns)
        zones += self._joint.zones if self._joint is not None else ()
        bets: list[Bets] = [
            bets_on(levels, *zone, delta) for levels, zone in zip(everything, zones, strict=True)
        ]
        total = self._coder.total + (self._made.total if self._made is not None else 0)
        self._table, weights, self._bet_names = stacked(bets, total)
        self._run_ms = run_length_ms(spec.run, context)
        self._threshold_ms = threshold_ms(self._run_ms)
        self._weights = (
            weights * self._column_weights(len(columns), len(everything))[:, None] / self._threshold_ms
        )
        self._flat = self._weights.ravel()
        self._total = total
        self.reset()

    @staticmethod
    def _column_weights(single: int, everything: int) -> NDArray[np.float64]:
        made = everything - single
        share = _JOINT_WEIGHT if made else 0.0
        return np.concatenate(
            [np.full(single, (1 - share) / max(1, single)), np.full(made, share / max(1, made))]
        )

    @property
    def verdict(self) -> Verdict:
        if self._said is None:
            self._said = self._judge(self._state, self._score, self._evidence, self._recent.sum(axis=0))
        return self._said

    def reset(self) -> None:
        self._rows = 0
        self._pending: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
        self._held = 0
        self._last_ms: int | None = None
        self._evidence = np.zeros(self._weights.size)
        self._state = State.INCONCLUSIVE
        self._score = 0.0
        self._recent = np.zeros((2, self._total), np.int64)
        self._said = None

    def update(self, rows: Rows) -> list[Change]:
        if not len(self._names):
            return []
        keep = np.flatnonzero(rows.sign > 0)
        whole = len(keep) == len(rows)
        taken = rows if whole else rows.take(keep)
        held, cell = self._held, self._spec.cell_rows
        ready = (held + len(keep)) // cell * cell
        self._pending.append((taken.values, taken.time_ms))
        self._held = held + len(keep) - ready
        if not ready:
            return []
        values, times = self._joined()
        self._pending = [(values[ready:].copy(), times[ready:].copy())]
        ours = values[:ready] if len(self._places) == values.shape[1] else values[:ready, self._places]
        codes = self._coder.codes(ours)
        changes: list[Change] = []
        start = 0
        while start < ready:
            # Counts begin anew at fixed rows, so that where the calls end does not show.
            stop = min(ready, start + self._until_border())
            for at, verdict in self._cells(codes[start:stop], times[start:stop]):
                row = start + at
                index = row - held if whole else int(keep[row - held])
                changes.append(Change(index, int(times[row]), verdict))
            start = stop
        self._said = None
        return changes

    def _joined(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Rows that wait for their cell to fill, as one array."""
        if not self._pending:
            return np.empty((0, 0)), np.empty(0, np.int64)
        values, times = zip(*self._pending, strict=True)
        return np.concatenate(values), np.concatenate(times)

    def _until_border(self) -> int:
        span = _RECENT_CELLS * self._spec.cell_rows
        return span - self._rows % span

    def _cells(self, codes: Codes, times: NDArray[np.int64]) -> list[tuple[int, Verdict]]:
        """Take whole cells; last row of the cell and verdict wherever the state changed."""
        if self._joint is not None and self._made is not None:
            made = self._made.codes(self._joint.values(codes)) + self._coder.total
            codes = np.concatenate([codes, made], axis=1)
        if self._until_border() == _RECENT_CELLS * self._spec.cell_rows:
            self._recent[0], self._recent[1] = self._recent[1], 0
        evidence = self._grown(codes, times)
        scores = (evidence * self._flat).sum(axis=1)
        changes = []
        for at, score, state in self._states(scores):
            last = (at + 1) * self._spec.cell_rows
            recent = self._recent.sum(axis=0) + self._counts(codes[:last])
            changes.append((last - 1, self._judge(state, score, evidence[at], recent)))
        self._recent[1] += self._counts(codes)
        self._rows += len(codes)
        self._evidence = evidence[-1].copy()
        self._score = float(scores[-1])
        return changes

    def _grown(self, codes: Codes, times: NDArray[np.int64]) -> NDArray[np.float64]:
        """Evidence after each cell, shape (cells, columns x bets)."""
        size = self._spec.cell_rows
        count = len(codes) // size
        width = self._table.shape[1]
        said = self._table.take(codes, axis=0).reshape(count, size, codes.shape[1] * width)
        out = np.add.reduce(said, axis=1, dtype=np.int32) * UNIT
        np.exp(out, out=out)
        opened = self._opened(times[::size])
        first = self._rows // size
        held = self._evidence
        for at in range(count):
            here = out[at]
            np.multiply(held + opened[at], here, out=here)
            held = here
            if (first + at) % _CUT_CELLS == 0:
                np.minimum(held, _CEILING * self._threshold_ms, out=held)
        return np.asarray(out, np.float64)

    def _opened(self, starts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Event time from one cell's first row to the next one's: what a restart in it weighs."""
        before = starts[0] if self._last_ms is None else self._last_ms
        gaps = np.diff(starts, prepend=before)
        self._last_ms = int(starts[-1])
        return np.clip(gaps, 0, _GAP_SHARE * self._run_ms).astype(np.float64)

    def _counts(self, codes: Codes) -> NDArray[np.int64]:
        return np.bincount(codes.ravel(), minlength=self._total)

    def _states(self, scores: NDArray[np.float64]) -> list[tuple[int, float, State]]:
        """Cells at which the state changes; where nothing comes near a border there is nothing to walk through."""
        if self._state is State.STABLE and float(scores.max()) < LOW:
            return []
        size = self._spec.cell_rows
        changes = []
        for at, score in enumerate(scores.tolist()):
            if self._rows + (at + 1) * size < self._spec.rows_min:
                continue
            state = next_state(self._state, score)
            if state is not self._state:
                self._state = state
                changes.append((at, score, state))
        return changes

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def _judge(
        self, state: State, score: float, evidence: NDArray[np.float64], recent: NDArray[np.int64]
    ) -> Verdict:
        if state is State.INCONCLUSIVE:
            note = "warming up" if self._names else "the version has no reference for these columns"
            return undecided(1.0, note)
        said = (evidence * self._flat).reshape(self._weights.shape)
        row, bet = divmod(int(said.argmax()), said.shape[1])
        name = self._bet_names[row][bet] if bet < len(self._bet_names[row]) else ""
        levels, counts = self._recent_of(row, recent)
        present = int(counts[:-1].sum())
        if name.startswith("more missing") or not present:
            effect_name, reference, rows = (
                "share missing among the last rows",
                levels.missing,
                int(counts.sum()),
            )
            current = float(counts[-1] / rows) if rows else 0.0
        else:
            effect_name, reference, rows = "mean rank of the last rows in the reference", 0.5, present
            current = float((counts[:-1] * levels.ranks).sum() / rows)
        found = Evidence(
            column=self._all[row],
            statistic=name,
            effect=current - reference,
            effect_name=effect_name,
            reference=reference,
            current=current,
            rows=rows,
            note=f"{100 * float(said[row].sum()) / max(float(said.sum()), 1e-300):.0f} % of the evidence; "
            f"{len(self._names)} columns",
        )
        return Verdict(state=state, score=score, threshold=1.0, evidence=found)

    def _recent_of(self, row: int, recent: NDArray[np.int64]) -> tuple[Levels, NDArray[np.int64]]:
        """A column's levels and how many recent rows were in each, missing last."""
        coder, at, start = self._coder, row, 0
        if row >= len(self._names) and self._made is not None:
            coder, at, start = self._made, row - len(self._names), self._coder.total
        levels = coder.columns[at]
        first = start + int(coder.offsets[at])
        return levels, recent[first : first + levels.size]

    def snapshot(self) -> bytes:
        values, times = self._joined()
        state = _State(
            self._rows,
            values.tolist(),
            times.tolist(),
            self._last_ms,
            self._evidence.reshape(self._weights.shape).tolist(),
            self._state.value,
            self._score,
            self._recent.tolist(),
        )
        return pack(DriftESpec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(DriftESpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._rows = state.rows
        self._held = len(state.pending_ms)
        if self._held:
            self._pending = [(np.array(state.pending, np.float64), np.array(state.pending_ms, np.int64))]
        self._last_ms = state.last_ms
        self._evidence = np.array(state.evidence, np.float64).ravel()
        self._state, self._score = State(state.state), state.score
        self._recent = np.array(state.recent, np.int64).reshape(2, -1)


def _sample_of(context: Context, names: list[str]) -> tuple[set[str], NDArray[np.float64]]:
    """Columns that hold few distinct values, and the sample's rows of the columns ``names`` (empty without them all)."""
    reference = context.reference
    if reference is None or not reference.sample or context.stream != "features":
        return set(), np.empty((0, len(names)))
    order = {name: at for at, name in enumerate(reference.columns)}
    if any(name not in order for name in names):
        return set(), np.empty((0, len(names)))
    whole = sample_of(reference)[:, [order[name] for name in names]]
    discrete = set()
    for at, name in enumerate(names):
        known = whole[np.isfinite(whole[:, at]), at]
        if len(known) and len(np.unique(known)) < 0.9 * len(known):
            discrete.add(name)
    return discrete, whole
