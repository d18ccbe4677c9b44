"""Did a column move, row by row? Page's two-sided CUSUM of every column at once.

Each value becomes the normal score z of its rank in the reference (clipped at 3, centred). Per column and direction

    S <- max(0, S + shift z - psi),    psi = log of the reference's mean of exp(shift z), raised by its sampling error

is the log-likelihood ratio of a move by ``shift`` standard deviations since the row that explains it best. While nothing
moved, exp(shift z - psi) has mean at most 1, so the sum of the 2k statistics' Shiryaev-Roberts companions grows by at
most 2k a row, and ``threshold = log(2k x rows to a false alarm)`` bounds the run length for whatever dependence BETWEEN
columns (Page 1954; Lorden 1971; Pollak 1987). Between ROWS it needs independence, which hours and seasons break: so the
threshold is a knob, raised until resampled reference fits the budget, and it pages only where the reference in time
order holds as well. A move of less than about half of ``shift`` lets S fall back to zero: it is no evidence.

The loss has the reference's sample of scores and labels as its reference; else the reference's mean and standard
deviation and Bennett's bound for psi; else its own first ``warm_up_rows``. Rows taken back (sign -1) are not read: what
was revised was evidence on its day.

At an alarm the sums begin again. After ``hold_rows`` more the drift goes on if one of them is above the threshold again,
and else is over. Increments are integers (2^-20 nats), so where a stream is cut cannot show. ``cost_ns``: ten columns,
blocks of 2,000.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> reference = Reference(columns={"x": ColumnReference(rows=1000, quantiles=tuple(np.linspace(0, 1, 101)))})
>>> detector = CusumSpec().build(Context(("x",), (0,), stream="features", reference=reference))
>>> changes = detector.update(Rows.of(np.linspace(0.6, 1, 200), np.arange(200)))
>>> [(change.index, str(change.verdict.state)) for change in changes]
[(29, 'stable'), (116, 'drift')]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import ndtri

from detectors.base import Change, Context, Detector, Rows, Spec, Standing, Stream, pack, undecided, unpack
from detectors.shift.cells import NONE, SAMPLE_ROWS_MIN, Cells, Floats, cells_of
from schemas.contracts import ColumnReference, Reference
from schemas.verdicts import Evidence, Family, State, Verdict

Ints = NDArray[np.int64]
_SCHEMA = 1
_UNIT = 2**20
_CLIP = 3.0
#: Standard errors of the reference's mean of exp(shift z) that psi is raised by.
_ERRORS = 3.0
#: Numbers handled at once: more would leave the processor's cache.
_NUMBERS = 16_384
_LOSS_CLIP = 1e-6


class CusumSpec(Spec):
    """Options of ``cusum``. ``threshold`` in nats; without it, the budget's event time in rows at the reference's pace,
    else ``run_rows``."""

    kind: ClassVar[str] = "cusum"
    streams: ClassVar[Mapping[Stream, Family]] = {
        "features": Family.INPUT,
        "score": Family.PREDICTION,
        "loss": Family.CONCEPT,
    }
    cost_ns: ClassVar[int] = 330
    state_size: ClassVar[str] = "six integers a column; the loss without a reference: also its first rows"
    knob: ClassVar[str | None] = "threshold"
    sees: ClassVar[str] = "a shift of a column's location from one row on, fastest for the size it is set to"
    blind_to: ClassVar[str] = (
        "shifts below half of the size, changes of spread or dependence, categories that trade places around the middle"
    )

    shift: float = Field(default=0.5, ge=0.1, le=2, description="Standard deviations of a normal column.")
    threshold: float | None = Field(default=None, gt=0)
    run_rows: int = Field(default=1_000_000, ge=10, description="Rows to a false alarm without a budget.")
    rows_min: int = Field(default=30, ge=1)
    hold_rows: int = Field(default=1_000, ge=1, description="Rows after which a drift is looked at again.")
    warm_up_rows: int = Field(default=500, ge=30, le=1_000)

    def build(self, context: Context) -> Detector:
        return Cusum(self, context)

    def standing(self, context: Context) -> Standing:
        return Standing(
            note="its run length holds for independent rows; rows of one stretch of time are not, so unfitted it never pages"
        )


class _Alarm(msgspec.Struct):
    """The last alarm: which series, and what it had seen by then."""

    row: int
    series: int
    score: float
    rows: int
    since_ms: int


class _State(msgspec.Struct):
    sums: list[int]
    rows: list[int]
    since_ms: list[int]
    seen: int
    readable: int
    alarm: _Alarm | None
    first: list[float]


class _Table:
    """What each cell of one column adds to the two sums, in units; the entry past the last cell is for no value."""

    def __init__(self, cells: Cells, scores: Floats, psi: tuple[float, float], shift: float) -> None:
        self.cells = cells
        self.psi = psi
        steps = np.stack([shift * scores - psi[0], -shift * scores - psi[1]])
        # Rounded down: never more evidence than the bound allows.
        self.steps = np.append(np.floor(steps * _UNIT), np.zeros((2, 1)), axis=1).astype(np.int64)


class Cusum:
    """The running sums: series 2j and 2j + 1 are column j upwards and downwards."""

    def __init__(self, spec: CusumSpec, context: Context) -> None:
        self._spec = spec
        self._names = context.columns
        self._loss = context.stream == "loss"
        self._fixed: dict[int, _Table] = {}
        if self._loss:
            at = context.columns.index("loss")
            table = _loss_table(context.reference, spec.shift)
            self._read = [at]
            if table is not None:
                self._fixed[at] = table
        else:
            for at, name in enumerate(context.columns):
                cells = cells_of(context.reference, name)
                if cells is not None:
                    self._fixed[at] = _table(cells, spec.shift)
            self._read = sorted(self._fixed)
        self._threshold = _threshold(spec, context, max(1, 2 * len(self._read)))
        self._bar = math.ceil(self._threshold * _UNIT)
        self._window = max(16, _NUMBERS // max(1, 2 * len(self._read)))
        self.reset()

    def reset(self) -> None:
        series = 2 * len(self._read)
        self._tables = dict(self._fixed)
        self._sums = np.zeros(series, np.int64)
        self._rows = np.zeros(series, np.int64)
        self._since = np.zeros(series, np.int64)
        self._seen = 0
        self._readable = 0
        self._alarm: _Alarm | None = None
        self._first: list[float] = []

    @property
    def verdict(self) -> Verdict:
        if not self._read:
            return undecided(self._threshold, "the version has no reference for these columns")
        if len(self._tables) < len(self._read):
            return undecided(
                self._threshold,
                f"no reference for the loss: learning from its first {self._spec.warm_up_rows} rows",
            )
        if self._readable < self._spec.rows_min:
            return undecided(self._threshold, f"fewer than {self._spec.rows_min} rows with a value yet")
        if self._alarm is not None:
            a = self._alarm
            return self._said(State.DRIFT, a.series, a.score, a.rows, a.since_ms)
        at = int(self._sums.argmax())
        # Only rows since the evidence began count; a sum of zero has none.
        rows, score = int(self._rows[at]), float(self._sums[at]) / _UNIT
        return self._said(State.STABLE, at, score, rows, int(self._since[at]) if rows else None)

    def update(self, rows: Rows) -> list[Change]:
        if not self._read:
            return []
        kept = np.flatnonzero(rows.sign > 0)
        start = self._warm(rows, kept) if len(self._tables) < len(self._read) else 0
        if len(self._tables) < len(self._read):
            return []
        kept = kept[start:]
        codes = [self._tables[at].cells.codes(rows.values[kept, at]) for at in self._read]
        changes: list[Change] = []
        start = 0
        while start < len(kept):
            window = slice(start, start + self._window)
            start += self._take(rows, kept[window], [column[window] for column in codes], changes)
        return changes

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def _warm(self, rows: Rows, kept: Ints) -> int:
        """Collect the first losses; the place among ``kept`` of the first row that is none of them."""
        losses = rows.values[kept, self._read[0]]
        known = np.flatnonzero(np.isfinite(losses))[: self._spec.warm_up_rows - len(self._first)]
        self._first += losses[known].tolist()
        if len(self._first) < self._spec.warm_up_rows:
            return len(kept)
        self._learn()
        return int(known[-1]) + 1

    def _learn(self) -> None:
        self._tables[self._read[0]] = _table(_cells(np.array(self._first)), self._spec.shift)

    def _take(self, rows: Rows, mine: Ints, codes: list[Ints], changes: list[Change]) -> int:
        """Sums over a window of rows, up to the first that may change the verdict; how many rows that were."""
        length = len(mine)
        steps = np.empty((len(self._sums), length), np.int64)
        readable = np.zeros(length, np.bool_)
        for line, (at, cells) in enumerate(zip(self._read, codes, strict=True)):
            up, down = self._tables[at].steps
            up.take(cells, out=steps[2 * line], mode="wrap")
            down.take(cells, out=steps[2 * line + 1], mode="wrap")
            readable |= cells != NONE
        # The row from which on there are enough; if that is yet to come, the verdict may change with it.
        settled, settles = 0, length
        if self._readable < self._spec.rows_min:
            settled = int(np.searchsorted(self._readable + np.cumsum(readable), self._spec.rows_min))
            settles = settled
        sums = np.cumsum(steps, axis=1)
        # S = C - min(-S0, least C so far), all rows at once.
        floor = np.minimum.accumulate(sums, axis=1)
        np.minimum(floor, -self._sums[:, None], out=floor)
        sums -= floor
        crossed = over = length
        if self._alarm is not None:
            over = min(length, self._alarm.row + self._spec.hold_rows - self._seen)
            crossed = over if over < length and int(sums[:, over].max()) >= self._bar else length
        elif settled < length and int(sums[:, settled:].max()) >= self._bar:
            crossed = settled + int((sums[:, settled:] >= self._bar).any(axis=0).argmax())
        end = min(length, 1 + min(crossed, over, settles))
        before = self._state
        self._keep(sums[:, :end], rows.time_ms[mine[:end]])
        self._seen += end
        self._readable += int(np.count_nonzero(readable[:end]))
        if crossed < end:
            at = int(self._sums.argmax())
            score = float(self._sums[at]) / _UNIT
            self._alarm = _Alarm(self._seen, at, score, int(self._rows[at]), int(self._since[at]))
            self._sums[:], self._rows[:], self._since[:] = 0, 0, 0
        elif over < end:
            self._alarm = None
        if self._state is not before:
            index = int(mine[end - 1])
            changes.append(Change(index, int(rows.time_ms[index]), self.verdict))
        return end

    @property
    def _state(self) -> State:
        if self._readable < self._spec.rows_min:
            return State.INCONCLUSIVE
        return State.STABLE if self._alarm is None else State.DRIFT

    def _keep(self, sums: Ints, time_ms: Ints) -> None:
        """Take over the last sums, and since when each is above zero."""
        length = sums.shape[1]
        zero = sums == 0
        back = zero[:, ::-1].argmax(axis=1)
        touched = zero.any(axis=1)
        # A sum that was zero before the window, or in it, began with the row after.
        begun = np.where(touched, length - back, 0)
        fresh = (touched | (self._rows == 0)) & (begun < length)
        self._since[fresh] = time_ms[begun[fresh]]
        self._rows = np.where(touched, back, self._rows + length)
        self._since[self._rows == 0] = 0
        self._sums = sums[:, -1].copy()

    def _said(self, state: State, series: int, score: float, rows: int, since_ms: int | None) -> Verdict:
        at = self._read[series // 2]
        down = series % 2
        # The sum is rows x (shift x mean score - psi).
        shift = (score / rows + self._tables[at].psi[down]) / self._spec.shift if rows else 0.0
        evidence = Evidence(
            column=self._names[at],
            statistic="CUSUM in nats",
            effect=-shift if down else shift,
            effect_name="mean normal score above the reference's",
            reference=0.0,
            current=-shift if down else shift,
            rows=rows,
            since_ms=since_ms,
            note=f"{'down' if down else 'up'}; largest of {len(self._read)} columns; holds for independent rows",
        )
        return Verdict(state=state, score=score, threshold=self._threshold, evidence=evidence)

    def snapshot(self) -> bytes:
        state = _State(
            self._sums.tolist(),
            self._rows.tolist(),
            self._since.tolist(),
            self._seen,
            self._readable,
            self._alarm,
            self._first,
        )
        return pack(CusumSpec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(CusumSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._sums = np.array(state.sums, np.int64)
        self._rows = np.array(state.rows, np.int64)
        self._since = np.array(state.since_ms, np.int64)
        self._seen, self._readable, self._alarm = state.seen, state.readable, state.alarm
        self._first = state.first
        if len(self._first) >= self._spec.warm_up_rows:
            self._learn()


def _threshold(spec: CusumSpec, context: Context, series: int) -> float:
    if spec.threshold is not None:
        return spec.threshold
    within = context.budget_rows
    rows = float(spec.run_rows) if within is None else max(10.0, within)
    return math.log(rows * series)


def _table(cells: Cells, shift: float) -> _Table:
    """Steps by normal scores of the cells' middle ranks; psi by the reference's own shares."""
    counts = cells.reference
    rows = max(1.0, float(counts.sum()))
    # What the reference never had has a chance all the same: half a row for each cell (Krichevsky and Trofimov 1981).
    shares = (counts + 0.5) / (rows + 0.5 * cells.size)
    scores = np.clip(ndtri(np.clip(np.cumsum(shares) - shares / 2, 0.0, 1.0)), -_CLIP, _CLIP)
    scores = scores - float((shares * scores).sum())
    psi = []
    for side in (1.0, -1.0):
        grown = np.exp(side * shift * scores)
        mean = float((shares * grown).sum())
        spread = math.sqrt(max(0.0, float((shares * grown**2).sum()) - mean**2))
        psi.append(math.log(mean + _ERRORS * spread / math.sqrt(rows)))
    return _Table(cells, scores, (psi[0], psi[1]), shift)


def _cells(values: Floats) -> Cells:
    quantiles = np.quantile(values, np.linspace(0.0, 1.0, 101))
    column = ColumnReference(rows=len(values), quantiles=tuple(float(q) for q in quantiles))
    return Cells(column, sample=values if len(values) >= SAMPLE_ROWS_MIN else None)


def _loss_table(reference: Reference | None, shift: float) -> _Table | None:
    """From the sample's own losses, else from the mean and standard deviation; None without either."""
    if reference is None:
        return None
    if len(reference.sample_label) == len(reference.sample_score) >= SAMPLE_ROWS_MIN:
        score = np.clip(np.asarray(reference.sample_score, np.float64), _LOSS_CLIP, 1 - _LOSS_CLIP)
        label = np.asarray(reference.sample_label, np.float64)
        known = np.isfinite(score) & np.isin(label, (0.0, 1.0))
        if np.count_nonzero(known) >= SAMPLE_ROWS_MIN:
            losses = -np.where(label == 1, np.log(score), np.log1p(-score))[known]
            return _table(_cells(losses), shift)
    if reference.loss_mean is None or not reference.loss_sd or reference.loss_rows < SAMPLE_ROWS_MIN:
        return None
    places = np.linspace(-_CLIP, _CLIP, 101)
    column = ColumnReference(
        rows=reference.loss_rows,
        quantiles=tuple(float(q) for q in reference.loss_mean + reference.loss_sd * places),
    )
    scores = np.concatenate([[-_CLIP], (places[1:] + places[:-1]) / 2, [_CLIP]])
    # Largest mean of exp(shift z) for mean 0, variance 1, z <= 3 (Bennett 1962); and the most that clipping the other side
    # can lift the mean, for any distribution (Scarf 1958).
    share = 1 / (1 + _CLIP**2)
    bound = math.log((1 - share) * math.exp(-shift / _CLIP) + share * math.exp(shift * _CLIP))
    lifted = (math.sqrt(1 + _CLIP**2) - _CLIP) / 2
    psi = bound + shift * (lifted + _ERRORS / math.sqrt(reference.loss_rows))
    return _Table(Cells(column), scores, (psi, psi), shift)
