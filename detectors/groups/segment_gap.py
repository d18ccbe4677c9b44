"""Does the model treat segments differently? Gaps between every two of them, block by block of event time, with intervals.

Three gaps, each the difference of two shares:

    demographic-parity   share of rows with a positive decision (score >= ``threshold``)
    equal-opportunity    the same, among rows whose label is positive: true positive rate (Hardt, Price and Srebro 2016)
    accuracy             share of rows whose decision is the label

The interval of a difference is Newcombe's hybrid score interval (1998, method 10), made of Wilson's (1927) two; its level
is ``alpha`` a block, divided by the number of pairs and measures that could be read (Bonferroni). Drift: some interval
lies wholly beyond ``gap_max``, and beyond what the reference says of the same two segments (its own gap's interval, where
its sample has rows enough): a gap that was there when the version was approved is no drift. Warning: the same without
the correction for many pairs. Rows of one block depend on each other, so alpha is no promise, and it never pages.
Rare segments are in no pair: a mixture of groups is nobody.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> columns = ("score", "label", "loss", "origin")
>>> detector = SegmentGapSpec(gap_max=0.1).build(Context(columns, (0, 0, 0, 3), stream="loss"))
>>> rng = np.random.default_rng(1)
>>> origin, label = rng.integers(0, 2, 4_000), rng.integers(0, 2, 4_000)
>>> score = rng.uniform(size=4_000) + np.where(origin == 1, 0.3, 0.0)
>>> rows = Rows.of(np.column_stack([score, label, np.zeros(4_000), origin]), np.arange(4_000) * 21_600)
>>> _ = detector.update(rows)
>>> [(str(c.verdict.state), c.verdict.evidence.column) for c in detector.advance(7 * 86_400_000)]
[('drift', 'demographic-parity by origin')]
>>> tuple(round(end, 4) for end in newcombe(56, 70, 48, 80, 1.959964))
(0.0524, 0.3339)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import ndtri

from detectors.base import DAY_MS, Change, Context, Detector, Rows, Spec, Stream, pack, undecided, unpack
from detectors.blocks import BlockState, BlockSums
from detectors.gather import verdict_bytes, verdict_from
from detectors.groups.frequent import Watched, WatchedState
from schemas.contracts import DurationMs, Reference
from schemas.verdicts import Evidence, Family, State, Verdict

Measure = Literal["demographic-parity", "equal-opportunity", "accuracy"]
#: What the share of a measure is called.
_SHARES: Mapping[str, str] = {
    "demographic-parity": "share of positive decisions",
    "equal-opportunity": "true positive rate",
    "accuracy": "accuracy",
}
_SCHEMA = 1


class SegmentGapSpec(Spec):
    """Options of ``segment-gap``. On stream ``predictions`` there are no labels, so only demographic parity is read."""

    kind: ClassVar[str] = "segment-gap"
    streams: ClassVar[Mapping[Stream, Family]] = {
        "loss": Family.CONCEPT,
        "predictions": Family.PREDICTION,
    }
    cost_ns: ClassVar[int] = 60
    state_size: ClassVar[str] = "four numbers a segment and open block"
    sees: ClassVar[str] = "a segment that is decided on, or erred on, more often than another"
    blind_to: ClassVar[str] = (
        "gaps that the reference had, or within gap_max; rare segments; combinations of segments"
    )

    by: str = Field(
        default="", description="A categorical column of the stream; default: the first there is."
    )
    threshold: float | None = Field(
        default=None, description="Scores at or above it are positive decisions; default: the contract's."
    )
    measures: tuple[Measure, ...] = ("demographic-parity", "equal-opportunity", "accuracy")
    gap_max: float = Field(default=0.1, gt=0, lt=1)
    alpha: float = Field(
        default=0.001, gt=0, lt=0.5, description="Of a false drift in a block, over all pairs."
    )
    block_ms: DurationMs = Field(default=7 * DAY_MS, gt=0)
    block_offset_ms: DurationMs = 0
    rows_min: int = Field(
        default=30, ge=2, description="Segments with fewer rows of a share in a block are passed over."
    )
    segments_max: int = Field(default=20, ge=2, le=100)

    def build(self, context: Context) -> Detector:
        return SegmentGap(self, context)


def wilson(hits: int, rows: int, z: float) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927)."""
    share = hits / rows
    middle = share + z * z / (2 * rows)
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def newcombe(hits: int, rows: int, other_hits: int, other_rows: int, z: float) -> tuple[float, float]:
    """Interval of the difference of two independent shares (Newcombe 1998, method 10)."""
    one, two = hits / rows, other_hits / other_rows
    low_one, high_one = wilson(hits, rows, z)
    low_two, high_two = wilson(other_hits, other_rows, z)
    return (
        one - two - math.hypot(one - low_one, high_two - two),
        one - two + math.hypot(high_one - one, two - low_two),
    )


@dataclass(frozen=True, slots=True)
class _Gap:
    """The difference between two segments' shares, and how it compares. ``reach``: its interval's near end over
    ``limit``; ``lax``: the same without the correction for many pairs."""

    measure: str
    places: tuple[int, int]
    shares: tuple[float, float]
    rows: int
    interval: tuple[float, float]
    known: float | None
    reach: float
    lax: float


class _State(msgspec.Struct):
    watched: WatchedState
    blocks: BlockState | None
    verdict: bytes


class SegmentGap:
    """The running detector. A row is one of four cells of its segment: decision and label, each no or yes."""

    def __init__(self, spec: SegmentGapSpec, context: Context) -> None:
        self._spec = spec
        self._watched = Watched(context, spec.by, spec.segments_max)
        self._score = context.columns.index("score") if "score" in context.columns else 0
        self._label = context.columns.index("label") if "label" in context.columns else None
        self._measures = [m for m in spec.measures if self._label is not None or m == "demographic-parity"]
        self._reference = context.reference
        self._decision = context.decision if spec.threshold is None else spec.threshold
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._watched.reset()
        self._blocks: BlockSums | None = None
        self._known: list[tuple[int, int, int, int]] | None = None
        self._verdict = undecided(1.0, "no block with enough rows of two segments yet")
        self._begin()

    def _begin(self, state: BlockState | None = None) -> None:
        """Sums, once it is known which segments there are; ``state``: of those that went before."""
        if self._watched.codes is not None and (self._blocks is None or state is not None):
            width = 4 * len(self._watched.codes)
            self._blocks = BlockSums(self._spec.block_ms, self._spec.block_offset_ms, width)
            self._blocks.state = state or self._blocks.state
            self._known = self._counted_in(self._reference)

    def _cells(self, values: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.int64]:
        """Cell of each row, ``4 * segments`` for what has no score, no label, or no segment of its own."""
        score, places = values[:, self._score], self._watched.places(values)
        none = len(self._watched.codes or ())
        readable = np.isfinite(score) & ((labels == 0) | (labels == 1)) & (places < none)
        cells = 4 * places + 2 * (score >= self._decision) + (labels == 1)
        return np.where(readable, cells, 4 * none)

    def update(self, rows: Rows) -> list[Change]:
        taken = self._watched.learn(rows.values)
        self._begin()
        if self._blocks is None:
            return []
        if taken:
            rows = rows.take(slice(taken, None))
        labels = np.zeros(len(rows)) if self._label is None else rows.values[:, self._label]
        cells = self._cells(rows.values, labels)
        read = cells < self._blocks.width
        if read.any():
            self._blocks.count(rows.time_ms[read], rows.sign[read], cells[read][:, None])
        return []

    def advance(self, time_ms: int) -> list[Change]:
        changes = []
        for start, sums in self._blocks.close(time_ms) if self._blocks is not None else ():
            gaps = list(self._gaps(sums[1:]))
            if not gaps:
                continue
            before, self._verdict = self._verdict, self._judge(gaps, start)
            if self._verdict.state is not before.state:
                changes.append(Change(-1, start + self._spec.block_ms, self._verdict))
        return changes

    def _shares(self, sums: list[int], measure: str) -> list[tuple[int, int]]:
        """(hits, rows) of each segment. What was taken back from another block may leave less than nothing."""
        found = []
        for at in range(0, len(sums), 4):
            no_no, no_yes, yes_no, yes_yes = (max(0, n) for n in sums[at : at + 4])
            found.append(
                {
                    "demographic-parity": (yes_no + yes_yes, no_no + no_yes + yes_no + yes_yes),
                    "equal-opportunity": (yes_yes, no_yes + yes_yes),
                    "accuracy": (no_no + yes_yes, no_no + no_yes + yes_no + yes_yes),
                }[measure]
            )
        return found

    def _gaps(self, sums: list[int]) -> Iterator[_Gap]:
        least = self._spec.rows_min
        pairs = []
        for measure in self._measures:
            shares = self._shares(sums, measure)
            enough = [at for at, (_, rows) in enumerate(shares) if rows >= least]
            pairs += [(measure, shares, pair) for pair in combinations(enough, 2)]
        for measure, shares, (one, two) in pairs:
            z = float(-ndtri(self._spec.alpha / (2 * len(pairs))))
            interval = newcombe(*shares[one], *shares[two], z)
            known, low, high = self._own(measure, one, two, z)
            alone = newcombe(*shares[one], *shares[two], float(-ndtri(self._spec.alpha / 2)))
            yield _Gap(
                measure,
                (one, two),
                (shares[one][0] / shares[one][1], shares[two][0] / shares[two][1]),
                shares[one][1] + shares[two][1],
                interval,
                known,
                _reach(interval, low, high),
                _reach(alone, low, high),
            )

    def _own(self, measure: str, one: int, two: int, z: float) -> tuple[float | None, float, float]:
        """The reference's gap of two segments, and the range in which a gap is none."""
        most = self._spec.gap_max
        if self._known is None:
            return None, -most, most
        shares = self._shares([n for cells in self._known for n in cells], measure)
        (hits, rows), (other_hits, other_rows) = shares[one], shares[two]
        if min(rows, other_rows) < self._spec.rows_min:
            return None, -most, most
        low, high = newcombe(hits, rows, other_hits, other_rows, z)
        return hits / rows - other_hits / other_rows, min(-most, low), max(most, high)

    def _counted_in(self, reference: Reference | None) -> list[tuple[int, int, int, int]] | None:
        """The four cells of each segment in the reference's sample; None without scores, or without labels that count."""
        if reference is None or self._watched.name not in reference.columns:
            return None
        n = len(reference.sample)
        labels = np.array(reference.sample_label if self._label is not None else np.zeros(n), np.float64)
        if not n or len(reference.sample_score) != n or len(labels) != n:
            return None
        place = list(reference.columns).index(self._watched.name)
        values = np.full((n, max(self._watched.column, self._score) + 1), np.nan)
        values[:, self._score] = reference.sample_score
        values[:, self._watched.column] = [
            np.nan if row[place] is None else row[place] for row in reference.sample
        ]
        cells = self._cells(values, labels)
        codes = self._watched.codes or ()
        table = np.bincount(cells, minlength=4 * len(codes) + 1)[:-1].reshape(-1, 4)
        return [(int(a), int(b), int(c), int(d)) for a, b, c, d in table.tolist()]

    def _judge(self, gaps: list[_Gap], start_ms: int) -> Verdict:
        worst = max(gaps, key=lambda gap: (gap.reach, gap.lax))
        if worst.reach >= 1:
            state = State.DRIFT
        elif max(gap.lax for gap in gaps) >= 1:
            state, worst = State.WARNING, max(gaps, key=lambda gap: gap.lax)
        else:
            state = State.STABLE
        one, two = (self._watched.label(place) for place in worst.places)
        evidence = Evidence(
            column=f"{worst.measure} by {self._watched.name}",
            statistic="near end of the gap's interval, over the largest gap allowed",
            effect=worst.shares[0] - worst.shares[1],
            effect_name=f"{_SHARES[worst.measure]}, {one} less {two}",
            reference=worst.known,
            current=worst.shares[0] - worst.shares[1],
            rows=worst.rows,
            since_ms=start_ms,
            interval=worst.interval,
            note=f"{worst.shares[0]:.3f} of {one}, {worst.shares[1]:.3f} of {two}; {len(gaps)} gaps read, at most "
            f"{self._spec.gap_max:g} allowed or what the reference shows"
            + ("" if worst.known is not None else " (it shows too few rows of these)"),
        )
        return Verdict(state=state, score=worst.reach, threshold=1.0, evidence=evidence)

    def snapshot(self) -> bytes:
        blocks = None if self._blocks is None else self._blocks.state
        said = b"" if self._verdict.state is State.INCONCLUSIVE else verdict_bytes(self._verdict)
        return pack(SegmentGapSpec.kind, _SCHEMA, _State(self._watched.state, blocks, said))

    def load(self, data: bytes) -> None:
        state = unpack(SegmentGapSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._watched.load(state.watched)
        self._begin(state.blocks)
        self._verdict = verdict_from(state.verdict) or self._verdict


def _reach(interval: tuple[float, float], low: float, high: float) -> float:
    """1 where the interval begins at the end of what is allowed, more beyond; 0 where it holds no gap at all."""
    return max(interval[0] / high, interval[1] / low, 0.0)
