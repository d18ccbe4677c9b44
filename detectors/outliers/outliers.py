"""What all our outlier detectors share: where they learn from, which rows they read, and how a score becomes a verdict.

A kind brings one function, ``fit(context, sample)``, and gets the rest. It learns from the reference's sample where the
version has one, else from its own first ``warm_up_rows`` rows. Every second row of the sample is kept from the fit: their
scores set the bound, so a score that flatters the rows it was fitted on cannot lower it.

Rows are scored one by one, not in blocks: a row with no finite value is passed over, and so is one taken back. NaN and
infinities are unknown values (an infinity has no size to judge; the quality detectors count them); what a kind does with a
row of which it knows a part, it says.

What was learnt stays: ``adapt`` is off by default because a detector that learns from what it watches takes a slow change,
or outliers that keep coming, for its new normal. Switched on, it learns again from each ``warm_up_rows`` rows, at the end
of a window.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import NEVER_MS, Change, Context, Detector, Rows, Spec, Standing, Stream, pack, unpack
from detectors.outliers.outlier_limits import tail_of
from detectors.outliers.outlier_rate import OutlierRate, RateState, Window
from detectors.transform import sample_of
from schemas.errors import SnapshotError
from schemas.verdicts import Family, Verdict

Floats = NDArray[np.float64]
_SCHEMA = 2
#: A reference sample of fewer rows sets no bound; the detector warms up instead.
_SAMPLE_ROWS_MIN = 50
#: Samples are kept inside what can be squared and added without overflow.
_SAMPLE_MAX = 1e100


class Scorer(Protocol):
    """A fitted score. NaN is an unknown value; every row has a known one, of any finite size."""

    def score(self, values: Floats, first: int) -> Floats:
        """Scores ``(n,)`` of ``values (n, k)``, larger is more outlying; a row's score depends on nothing but the row
        and its number (``first`` is that of the first row)."""

    def blame(self, row: Floats) -> int:
        """The column ``(k,)`` that makes the row outlying."""


class OutlierSpec(Spec):
    """Options of every kind."""

    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.OUTLIER}
    numeric_only: ClassVar[bool] = True
    statistic: ClassVar[str]

    share: float = Field(default=0.01, gt=0, lt=0.5, description="Share of reference rows that are outliers.")
    window_rows: int = Field(default=500, ge=10, description="Rows between verdicts.")
    warm_up_rows: int = Field(
        default=1_000, ge=10, description="Rows to learn from when the version has no reference sample."
    )
    worst: int = Field(default=5, ge=1, le=100, description="Events of a window kept with their ids.")
    effect_min: float = Field(
        default=2.0, ge=1, description="A rate up to this many times the share is no drift."
    )
    adapt: bool = Field(default=False, description="Learn again from every warm_up_rows rows.")

    @abstractmethod
    def fit(self, context: Context, sample: Floats) -> Scorer:
        """Learn from ``sample (m, k)``: NaN is null, every row has a value, sizes below 1e100."""

    def learnt(self, scorer: Scorer) -> bytes:
        """All of a scorer that is small enough to be kept instead of what it learnt from; nothing: that is kept."""
        return b""

    def fitted(self, context: Context, learnt: bytes) -> Scorer:
        """Inverse of :meth:`learnt`. Raises SnapshotError."""
        raise SnapshotError(f"{self.kind!r} keeps what it learnt from")

    def build(self, context: Context) -> Detector:
        return OutlierDetector(self, context)

    def standing(self, context: Context) -> Standing:
        return Standing(
            note="binomial windows of rows: right for rows that do not depend on each other, so it may ticket, never page"
        )


class _State(msgspec.Struct):
    """``sample``: what it learnt from, where that is not the reference; or ``learnt``: what of it. ``held``: what it will
    learn from; float64."""

    rows: int = 0
    sample: bytes = b""
    learnt: bytes = b""
    held: bytes = b""
    rate: RateState = msgspec.field(default_factory=RateState)


class OutlierDetector:
    """The running detector of any kind."""

    def __init__(self, spec: OutlierSpec, context: Context) -> None:
        self._spec = spec
        self._context = context
        self._rate = OutlierRate(
            spec.warm_up_rows,
            spec.window_rows,
            spec.share,
            worst=spec.worst,
            effect_min=spec.effect_min,
            tail=tail_of(context, spec.window_rows),
            statistic=spec.statistic,
        )
        #: Of the reference's sample no more is kept than what was learnt from it.
        self._given: tuple[Scorer, RateState] | None = None
        sample = reference_rows(context)
        if len(sample) >= _SAMPLE_ROWS_MIN:
            scorer, scores = self._learnt(sample)
            assert context.reference is not None
            self._calibrate(scores, max(1.0, context.reference.rows / len(sample)))
            self._given = scorer, self._rate.state
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._rate.verdict

    def reset(self) -> None:
        self._rate.reset()
        self._scorer: Scorer | None = None
        if self._given is not None:
            self._scorer, calibrated = self._given
            self._rate.load(msgspec.structs.replace(calibrated, open=Window()))
        self._state = _State(rate=self._rate.state)

    def _learnt(self, sample: Floats) -> tuple[Scorer, Floats]:
        """The scorer fitted on every second row of a sample, and the scores of all."""
        sample = np.clip(sample, -_SAMPLE_MAX, _SAMPLE_MAX)
        scorer = self._spec.fit(self._context, sample[::2])
        return scorer, scorer.score(sample, 0)

    def _calibrate(self, scores: Floats, step_rows: float) -> None:
        self._rate.calibrate(scores[1::2], scores, step_rows)

    def update(self, rows: Rows) -> list[Change]:
        known = np.isfinite(rows.values)
        places = None
        values = rows.values
        if not (known.all() and (rows.sign > 0).all() and values.shape[1]):
            places = np.flatnonzero(known.any(axis=1) & (rows.sign > 0))
            values = np.where(known, values, np.nan)[places]
            rows = rows.take(places)
        changes, low = [], 0
        while low < len(values):
            if self._scorer is None:
                high = low + self._hold(values[low:])
                if len(self._state.held) == self._held_bytes:
                    self._learn()
            else:
                left = self._spec.window_rows - self._state.rate.open.rows
                high = min(len(values), low + left) if self._spec.adapt else len(values)
                for at, verdict in self._score(rows, values, low, high):
                    row = low + at if places is None else int(places[low + at])
                    changes.append(Change(row, int(rows.time_ms[low + at]), verdict))
            low = high
        return changes

    def _score(self, rows: Rows, values: Floats, low: int, high: int) -> list[tuple[int, Verdict]]:
        """Score rows ``low`` to ``high``; with ``adapt`` they end with the open window at the latest."""
        scorer, part = self._scorer, values[low:high]
        assert scorer is not None
        ended = self._rate.add_many(
            scorer.score(part, self._state.rows),
            rows.identity[low:high],
            rows.time_ms[low:high],
            lambda at: self._context.columns[scorer.blame(part[at])],
        )
        self._state.rows += high - low
        if self._spec.adapt:
            self._hold(part)
            if ended and len(self._state.held) == self._held_bytes:
                self._learn()
        return ended

    @property
    def _held_bytes(self) -> int:
        return 8 * self._spec.warm_up_rows * len(self._context.columns)

    def _hold(self, values: Floats) -> int:
        """Keep rows to learn from, as many as are wanted still; how many."""
        wanted = (self._held_bytes - len(self._state.held)) // (8 * values.shape[1])
        self._state.held += np.ascontiguousarray(values[:wanted]).tobytes()
        return min(wanted, len(values))

    def _learn(self) -> None:
        """Learn from the rows held."""
        self._state.sample, self._state.held = self._state.held, b""
        self._scorer, scores = self._learnt(self._sample())
        self._calibrate(scores, 1.0)
        self._state.learnt = self._spec.learnt(self._scorer)
        if self._state.learnt:
            self._state.sample = b""

    def _sample(self) -> Floats:
        return np.frombuffer(self._state.sample, np.float64).reshape(-1, len(self._context.columns))

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def patience(self) -> tuple[int, int]:
        """A verdict ends a window, and the first window begins when it has learnt."""
        left = self._spec.window_rows - self._state.rate.open.rows
        if self._scorer is None:
            row_bytes = max(1, 8 * len(self._context.columns))
            left += self._spec.warm_up_rows - len(self._state.held) // row_bytes
        return left, NEVER_MS

    def snapshot(self) -> bytes:
        return pack(self._spec.kind, _SCHEMA, self._state)

    def load(self, data: bytes) -> None:
        state = unpack(self._spec.kind, _SCHEMA, _State, data)
        row_bytes = max(1, 8 * len(self._context.columns))
        learns = self._given is None or self._spec.adapt
        if (
            len(state.held) > self._held_bytes
            or len(state.held) % row_bytes
            or len(state.sample) not in ((0, self._held_bytes) if learns else (0,))
        ):
            raise SnapshotError(
                f"the snapshot of {self._spec.kind!r} was taken with other columns or options"
            )
        self._rate.load(state.rate)
        self._state = state
        self._scorer = None if self._given is None else self._given[0]
        if state.learnt:
            self._scorer = self._spec.fitted(self._context, state.learnt)
        elif state.sample:
            self._scorer = self._learnt(self._sample())[0]


def reference_rows(context: Context) -> Floats:
    """The reference's sample of the context's columns ``(m, k)``, rows without any value left out; NaN is null."""
    reference = context.reference
    none = np.empty((0, len(context.columns)))
    if reference is None or not reference.sample or not context.columns:
        return none
    names = list(reference.columns)
    if len(names) != len(reference.sample[0]) or not set(context.columns) <= set(names):
        return none
    sample = sample_of(reference)[:, [names.index(name) for name in context.columns]]
    known = np.isfinite(sample)
    return np.asarray(np.where(known, sample, np.nan)[known.any(axis=1)], np.float64)
