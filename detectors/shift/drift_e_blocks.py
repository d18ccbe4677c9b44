"""Did a column move from the reference, day by day? The e-detector whose unit of evidence is a block of time.

Rows of one day share their weather, their fares and their outages; a thousand of them may be one event. So a block of
event time gives one number for each facet of a column: mean rank (location), mean distance from the middle rank
(spread), share missing, share of each frequent category. The reference has the same numbers for each of its own blocks,
in time order. Null, for every block given the past: a facet's mean lies within ``zone`` of the reference's, and its
variance is at most that between the reference's blocks (its upper confidence bound). The zone is at least ``zone_sd``
standard deviations of those blocks, plus the standard error of their mean: a season is not drift. With
``x = min(move - zone, c)`` and any bet L, Bennett's inequality (1962) gives

    E exp(L x) <= max over a in [0, 2 zone] of exp(-L a) (1 + v (exp(L b) - 1 - L b) / b^2),    b = c + a

and exp(L x) divided by that bound is an e-value, whatever happens within the block. Shiryaev-Roberts restarts, averaging
over bets, directions, facets and columns, and the threshold are those of ``detectors.shift.drift_e``: the expected event time to
a false alarm is at least the promised run, for one column or a thousand (Shin, Ramdas and Rinaldo 2022).

It pages only if the reference's second half, in time order, raised no alarm against its first half; a promise longer
than that half is unverified beyond it, and ``standing`` says so.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> grid = tuple(np.linspace(0, 1, 101))
>>> rng = np.random.default_rng(1)
>>> days = tuple((*(int(n) for n in rng.multinomial(200, [0.01, 0.09, *[0.1] * 8, 0.09, 0.01])), 0) for _ in range(40))
>>> reference = Reference(columns={"x": ColumnReference(rows=8_000, quantiles=grid)}, bins={"x": days})
>>> detector = DriftEBlocksSpec().build(Context(("x",), (0,), stream="features", reference=reference))
>>> x = np.concatenate([rng.uniform(0, 1, 2_000), rng.uniform(0.2, 1, 2_000)])
>>> _ = detector.update(Rows.of(x, np.repeat(np.arange(20), 200) * 86_400_000))
>>> [(c.time_ms // 86_400_000, str(c.verdict.state)) for c in detector.advance(20 * 86_400_000)]
[(1, 'stable'), (13, 'warning'), (16, 'drift')]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import chdtri, stdtrit

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
from detectors.blocks import BlockState, BlockSums
from detectors.evidence import next_state, run_length_ms, threshold_ms
from detectors.shift.levels import Coder
from detectors.transform import column_reference
from schemas.bins import Binning
from schemas.contracts import DurationMs
from schemas.verdicts import Evidence, Family, State, Verdict

Floats = NDArray[np.float64]

_SCHEMA = 1
#: Fewer reference blocks than this say nothing about how blocks vary.
BLOCKS_MIN = 10
#: What a block may say is cut off at so many standard deviations beyond the zone.
_CLIP_SD = 4.0
#: Bets, in parts of one over the standard deviation; small ones for small moves.
_BETS = (0.2, 0.45, 0.9)
#: Where within the zone an e-value is bounded.
_EIGHTHS = np.arange(9.0)[:, None] / 8
#: A reference whose blocks hardly vary is not taken at its word.
_SD_MIN = 0.002
#: Evidence is cut down to this many times the threshold, so that it can ebb away.
_CEILING = 1e3
#: How much of a column's weight each sort of facet gets, and the least zone of each.
_SORTS = {
    "location": (0.5, 1.0), "spread": (0.2, 2.0), "tail": (0.2, 1.0), "category": (0.9, 1.0), "missing": (0.1, 0.5)
}  # fmt: skip


class DriftEBlocksSpec(Spec):
    """Options of ``drift-e-blocks``."""

    kind: ClassVar[str] = "drift-e-blocks"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.INPUT, "score": Family.PREDICTION}
    cost_ns: ClassVar[int] = 150
    state_size: ClassVar[str] = "nine numbers a facet, and one for each bin of each column and open block"
    sees: ClassVar[str] = (
        "lasting shifts of location, spread, categories, missing values beyond what blocks do by themselves"
    )
    blind_to: ClassVar[str] = (
        "what lasts less than a few blocks, or stays within the reference's own variation; dependence"
    )
    pages: ClassVar[bool] = True
    finds_unreadable: ClassVar[bool] = True

    run: DurationMs | None = Field(
        default=None, description="Event time to a false alarm, at least; default: from the model's budget."
    )
    zone: float = Field(default=0.02, ge=0, lt=0.5, description="A move of the mean rank this small is none.")
    zone_sd: float = Field(
        default=1.0, ge=0, description="Standard deviations of the reference's blocks in the zone."
    )
    delta: float = Field(
        default=0.05, gt=0, lt=0.5, description="Probability that the reference misleads the promise."
    )
    block_offset_ms: DurationMs = Field(default=0, description="Blocks begin this long after UTC midnight.")
    rows_min: int = Field(default=20, ge=1, description="Columns with fewer rows in a block are passed over.")

    def build(self, context: Context) -> Detector:
        return DriftEBlocks(self, context)

    def standing(self, context: Context) -> Standing:
        return _verified(self, context)


@dataclass(frozen=True, slots=True)
class _Facet:
    """A function of a column's bins: ``payoff (bins,)`` averaged over the rows of ``counted`` bins."""

    column: int
    name: str
    weight: float
    zone: float
    payoff: Floats
    counted: NDArray[np.bool_]

    def means(self, counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Mean and number of counted rows of each block; ``counts (blocks, bins)``. No rows: 0."""
        rows = (counts * self.counted).sum(axis=1).astype(np.float64)
        return (counts * self.payoff).sum(axis=1) / np.maximum(rows, 1.0), rows


class _State(msgspec.Struct):
    blocks: BlockState
    evidence: list[list[float]]
    since_ms: list[int]
    rows: list[int]
    moved: list[float]
    closed: int
    state: str
    score: float


class DriftEBlocks:
    """The running e-detector; see the module. Evidence has shape (facets, directions x bets)."""

    _said: Verdict | None

    def __init__(self, spec: DriftEBlocksSpec, context: Context, fit: slice = slice(None)) -> None:
        self._spec = spec
        reference = context.reference
        self._block_ms = reference.block_ms if reference is not None else 86_400_000
        self._run_ms = run_length_ms(spec.run, context)
        self._threshold_ms = threshold_ms(self._run_ms)
        self._names: list[str] = []
        self._places: list[int] = []
        binnings: list[Binning] = []
        facets: list[_Facet] = []
        history: list[NDArray[np.int64]] = []
        for place, name in enumerate(context.columns):
            column = column_reference(reference, name)
            blocks = np.array(() if reference is None else reference.bins.get(name, ()), np.int64)[fit]
            if column is None or len(blocks) < BLOCKS_MIN:
                continue
            binning = Binning(column)
            if blocks.shape[1] != binning.size:
                continue
            made = _facets(len(self._names), binning, spec.zone)
            facets += made
            history += [blocks] * len(made)
            self._names.append(name)
            self._places.append(place)
            binnings.append(binning)
        self._facets = facets
        self._coder = Coder(binnings)
        self._offsets = np.append(self._coder.offsets, self._coder.total)
        self._fit(history)
        self.reset()

    def _fit(self, history: list[NDArray[np.int64]]) -> None:
        """Centre, variance and zone of each facet, from the reference's blocks."""
        count = len(self._facets)
        self._centre, self._sd, self._zone = np.zeros(count), np.full(count, _SD_MIN), np.zeros(count)
        self._within, self._usual = np.zeros(count), np.ones(count)
        part = self._spec.delta / max(1, 4 * count)
        for at, (facet, counts) in enumerate(zip(self._facets, history, strict=True)):
            means, rows = facet.means(counts)
            means, rows = means[rows > 0], rows[rows > 0]
            size = len(means)
            if size < BLOCKS_MIN:
                self._zone[at] = 1.0
                continue
            spread = max(float(means.std(ddof=1)), _SD_MIN)
            # Blocks that follow each other are alike: fewer independent ones stand behind the mean.
            off = means - means.mean()
            along = float((off[1:] * off[:-1]).sum() / max(float((off * off).sum()), 1e-12))
            inflate = min(5.0, max(1.0, (1 + along) / max(1 - along, 0.2)))
            error = float(stdtrit(size - 1, 1 - part)) * spread * np.sqrt(inflate / size)
            upper = spread * float(np.sqrt((size - 1) / chdtri(size - 1, 1 - part)))
            self._centre[at] = float(means.mean())
            self._sd[at] = upper
            self._zone[at] = max(facet.zone, self._spec.zone_sd * spread) + error
            self._within[at] = max(self._centre[at] * (1 - self._centre[at]), 0.0)
            self._usual[at] = float(rows.mean())
        weights = np.array([facet.weight for facet in self._facets])
        columns = max(1, len(self._names))
        each = 2 * len(_BETS)
        self._weights = np.repeat(weights[:, None] / (columns * each), each, axis=1) / self._threshold_ms

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads: those of which the reference has blocks."""
        return tuple(self._names)

    @property
    def verdict(self) -> Verdict:
        if self._said is None:
            self._said = self._judge()
        return self._said

    def reset(self) -> None:
        count = len(self._facets)
        self._blocks = BlockSums(self._block_ms, self._spec.block_offset_ms, int(self._offsets[-1]))
        self._evidence = np.zeros((count, 2 * len(_BETS)))
        self._since = [0] * count
        self._rows = [0] * count
        self._moved = [0.0] * count
        self._closed = 0
        self._state = State.INCONCLUSIVE
        self._score = 0.0
        self._said = None

    def update(self, rows: Rows) -> list[Change]:
        if self._names:
            whole = len(self._places) == rows.values.shape[1]
            values = rows.values if whole else rows.values[:, self._places]
            self._blocks.count_rows(rows.time_ms, rows.sign, lambda which: self._coder.counts(values[which]))
        return []

    def advance(self, time_ms: int) -> list[Change]:
        changes = []
        for start, (_count, *sums) in self._blocks.close(time_ms):
            before = self._state
            if self.take(start, np.array(sums, np.int64)) and self._state is not before:
                changes.append(Change(-1, start + self._block_ms, self.verdict))
        return changes

    def patience(self) -> tuple[int, int]:
        return NEVER_ROWS, self._blocks.closes_after_ms

    def take(self, start_ms: int, counts: NDArray[np.int64]) -> bool:
        """One closed block: rows in each bin of each column. False when no column had enough of them."""
        used = False
        for at, facet in enumerate(self._facets):
            low, high = self._offsets[facet.column], self._offsets[facet.column + 1]
            means, rows = facet.means(counts[None, low:high])
            if rows[0] >= self._spec.rows_min:
                used = True
                self._grow(at, start_ms, float(means[0]) - float(self._centre[at]), int(rows[0]))
        if used:
            self._closed += 1
            self._score = float((self._evidence * self._weights).sum())
            self._state = next_state(self._state, self._score)
            self._said = None
        return used

    def _grow(self, at: int, start_ms: int, moved: float, rows: int) -> None:
        if (
            float((self._evidence[at] * self._weights[at]).sum())
            <= float(self._weights[at].sum()) * self._block_ms
        ):
            self._since[at], self._rows[at], self._moved[at] = start_ms, 0, 0.0
        self._rows[at] += rows
        self._moved[at] += moved * rows
        sd = float(np.sqrt(self._sd[at] ** 2 + self._within[at] * max(0.0, 1 / rows - 1 / self._usual[at])))
        gains = _gains(moved, float(self._zone[at]), sd)
        grown = (self._evidence[at] + self._block_ms) * gains
        self._evidence[at] = np.minimum(grown, _CEILING * self._threshold_ms)

    def _judge(self) -> Verdict:
        if self._state is State.INCONCLUSIVE:
            note = (
                "no block with enough rows yet"
                if self._names
                else "the version's reference has no time blocks of these columns: register it with event times"
            )
            return undecided(1.0, note)
        said = self._evidence * self._weights
        at = int(said.sum(axis=1).argmax())
        facet = self._facets[at]
        moved = self._moved[at] / self._rows[at] if self._rows[at] else 0.0
        centre = float(self._centre[at])
        evidence = Evidence(
            column=self._names[facet.column],
            statistic=facet.name,
            effect=moved,
            effect_name=f"{facet.name}, against the reference's blocks",
            reference=centre,
            current=centre + moved,
            rows=self._rows[at],
            since_ms=self._since[at],
            note=f"zone {self._zone[at]:.3f}; {self._closed} blocks; {len(self._names)} columns",
        )
        return Verdict(state=self._state, score=self._score, threshold=1.0, evidence=evidence)

    def snapshot(self) -> bytes:
        state = _State(
            self._blocks.state,
            self._evidence.tolist(),
            self._since,
            self._rows,
            self._moved,
            self._closed,
            self._state.value,
            self._score,
        )
        return pack(DriftEBlocksSpec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(DriftEBlocksSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._blocks.state = state.blocks
        self._evidence = np.array(state.evidence, np.float64).reshape(self._weights.shape)
        self._since, self._rows, self._moved = state.since_ms, state.rows, state.moved
        self._closed, self._state, self._score = state.closed, State(state.state), state.score


def _facets(column: int, binning: Binning, zone: float) -> list[_Facet]:
    known = np.ones(binning.size, bool)
    known[-1] = False
    missing = np.zeros(binning.size)
    missing[-1] = 1.0
    made: list[tuple[str, str, float, Floats, NDArray[np.bool_]]] = []
    if binning.numeric:
        upto = np.cumsum(binning.shares)
        ranks = np.append(upto - binning.shares / 2, 0.0)
        made.append(("location", "mean rank", 1.0, ranks, known))
        if binning.size > 3:
            made.append(
                ("spread", "mean distance from the middle rank", 1.0, np.abs(2 * ranks - 1) * known, known)
            )
    else:
        for at in range(binning.size - 1):
            payoff = np.zeros(binning.size)
            payoff[at] = 1.0
            made.append(("category", f"share of category {at}", 1 / (binning.size - 1), payoff, known))
    made.append(("missing", "share missing", 1.0, missing, np.ones(binning.size, bool)))
    total = sum(_SORTS[sort][0] * part for sort, _, part, _, _ in made)
    return [
        _Facet(column, name, _SORTS[sort][0] * part / total, _SORTS[sort][1] * zone, payoff, counted)
        for sort, name, part, payoff, counted in made
    ]


def _gains(moved: float, zone: float, sd: float) -> Floats:
    """E-values of a block, one a bet on each direction, up first; see the module."""
    bets = np.array(_BETS) / sd
    clip = _CLIP_SD * sd
    inside = _EIGHTHS * (2 * zone)
    reach = bets * (clip + inside)
    bound = np.exp(-bets * inside) * (1 + sd**2 * (np.expm1(reach) - reach) / (clip + inside) ** 2)
    worst = bound.max(axis=0)
    return np.concatenate([np.exp(bets * min(way - zone, clip)) / worst for way in (moved, -moved)])


def _verified(spec: DriftEBlocksSpec, context: Context) -> Standing:
    """Fitted on the first half of the reference's blocks, played over the second: an alarm there forbids paging."""
    run = run_length_ms(spec.run, context)
    reference = context.reference
    blocks = max((len(found) for found in reference.bins.values()), default=0) if reference is not None else 0
    if reference is None or blocks < 2 * BLOCKS_MIN:
        return Standing(
            "proved", run, note=f"{blocks} reference blocks are too few to check it on, so it does not page"
        )
    half = blocks // 2
    detector = DriftEBlocks(spec, context, slice(0, half))
    alarms = 0
    for at in range(half, blocks):
        counts = [np.array(reference.bins[name][at], np.int64) for name in detector.columns]
        before = detector.verdict.state
        if counts and detector.take(at * reference.block_ms, np.concatenate(counts)):
            alarms += detector.verdict.state is State.DRIFT and before is not State.DRIFT
    span = (blocks - half) * float(reference.block_ms)
    return Standing("proved", run, span, alarms, not alarms, "so it does not page" if alarms else "")
