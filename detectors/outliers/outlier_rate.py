"""From a score per event to a verdict on their rate, for every outlier detector alike: ours and the libraries'.

Calibration scores (a reference sample's, else the first ``warm_up_rows``) set the bound that ``share`` of them exceed.
Rows are then counted in windows of ``window_rows`` by their number, so neither the cuts of a stream nor its pace show, and
each window keeps its ``worst`` events with their ids. What a window may hold without being drift:

    a rate up to effect_min * share        the zone: a smaller rise does not matter, however much traffic shows it
    or up to what the bound's own sampling error allows, with probability 1 - DELTA over the calibration scores
    bursts as the calibration scores have  in time order, over stretches as long as a window

and drift is a count whose tail under that is at most ``tail``: from the false-page budget at the reference's traffic where
both are known (``outlier_limits.tail_of``), else one in a million windows. Warning: the square root of that. A burst longer
than the reference ever saw is drift to it: a yardstick, no guarantee.

>>> import numpy as np
>>> rate = OutlierRate(warm_up_rows=1_000, window_rows=100, share=0.01, worst=2)
>>> usual = np.random.default_rng(1).exponential(size=1_000)
>>> scores = np.concatenate([usual, np.full(60, 2_000.0), np.full(40, 1.0)])
>>> [(at, verdict)] = rate.add_many(scores, np.arange(1_100, dtype=np.uint64), np.arange(1_100))
>>> at, str(verdict.state), [w.identity for w in verdict.evidence.worst]
(1099, 'drift', [1000, 1001])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import undecided
from detectors.outliers.outlier_limits import TAIL_DEFAULT, beta_binomial_bound, burst_correlation, rate_upper
from schemas.errors import SnapshotError
from schemas.verdicts import Evidence, State, Verdict, Worst

Floats = NDArray[np.float64]
#: Chance that the bound's true rate lies beyond what the null allows for it.
DELTA = 0.01
_FLOAT_MAX = float(np.finfo(np.float64).max)


class WorstEvent(msgspec.Struct, array_like=True):
    """One of the k worst; ``column`` is named for the first of them only."""

    score: float
    time_ms: int
    identity: int
    column: str | None = None


class Window(msgspec.Struct):
    """A window's rows so far: how many, how many above the bound, the worst of them, worst first."""

    rows: int = 0
    outliers: int = 0
    since_ms: int | None = None
    worst: list[WorstEvent] = []


class RateState(msgspec.Struct):
    """``first``: calibration scores held until there are enough, as float64; then ``bound``, the
    ``null`` rate and the correlation of its ``bursts``."""

    first: bytes = b""
    bound: float | None = None
    null: float = 1.0
    bursts: float = 0.0
    open: Window = msgspec.field(default_factory=Window)
    closed: Window | None = None


class OutlierRate:
    """Counts scores above the bound; one verdict a window."""

    def __init__(
        self,
        warm_up_rows: int,
        window_rows: int,
        share: float,
        *,
        worst: int = 5,
        effect_min: float = 2.0,
        tail: float = TAIL_DEFAULT,
        statistic: str = "outlier score",
    ) -> None:
        self.warm_up_rows = warm_up_rows
        self.window_rows = window_rows
        self.share = share
        self.worst = worst
        self.effect_min = effect_min
        self.tail = tail
        self.statistic = statistic
        self.reset()

    def reset(self) -> None:
        self.load(RateState())

    @property
    def state(self) -> RateState:
        """The whole running state; a struct to be part of the detector's snapshot."""
        return self._state

    def load(self, state: RateState) -> None:
        """Become ``state``. Raises SnapshotError when it is none of these options'."""
        if len(state.first) % 8 or len(state.first) // 8 > self.warm_up_rows:
            raise SnapshotError("an outlier rate's snapshot holds more scores than its warm-up is long")
        self._state = state
        self._set_limits()
        self.verdict = self._said(state.closed) if state.closed else undecided(self.window_rows, "warming up")

    @property
    def bound(self) -> float | None:
        """Scores above it are outliers; None while warming up."""
        return self._state.bound

    def calibrate(self, scores: Floats, in_order: Floats | None = None, step_rows: float = 1.0) -> None:
        """Set the bound from scores ``(m,)`` of rows like those to come, which nothing was fitted on; and what bursts are
        usual from scores ``in_order`` of time (None: the same), of which there is one for ``step_rows`` rows of traffic.
        """
        m = len(scores)
        above = min(int(self.share * m), m - 1)
        state = self._state
        state.bound = float(np.partition(scores, m - 1 - above)[m - 1 - above])
        state.null = min(max(self.effect_min * self.share, rate_upper(above, m, DELTA)), 0.999)
        ordered = scores if in_order is None else in_order
        state.bursts = burst_correlation(ordered, self.window_rows / step_rows, self.share)
        state.first = b""
        self._set_limits()

    def _set_limits(self) -> None:
        null, bursts, rows = self._state.null, self._state.bursts, self.window_rows
        self._warning = self._drift = rows
        if null < 1.0:
            self._warning = min(rows, beta_binomial_bound(rows, null, bursts, math.sqrt(self.tail)))
            self._drift = min(rows, beta_binomial_bound(rows, null, bursts, self.tail))

    def add(self, score: float, identity: int | None = None, time_ms: int | None = None) -> Verdict | None:
        """Take one score; a verdict when it ends a window. Without an identity no event is kept."""
        ended = self.add_many(
            np.array([score]),
            None if identity is None else np.array([identity], np.uint64),
            None if time_ms is None else np.array([time_ms]),
        )
        return ended[-1][1] if ended else None

    def add_many(
        self,
        scores: Floats,
        identity: NDArray[np.uint64] | None,
        time_ms: NDArray[np.int64] | None,
        blame: Callable[[int], str | None] | None = None,
    ) -> list[tuple[int, Verdict]]:
        """Take scores ``(n,)`` of rows in order; the index at which each window ended, with its verdict.

        NaN is no score and counts as no row; infinite ones are as large as a number can be. Without
        ``identity`` and ``time_ms`` no events are kept. ``blame(index)`` names the
        column to hold against a row; it is asked only for rows that become their window's worst.
        """
        state = self._state
        known = None
        if np.isnan(scores).any():
            known = np.flatnonzero(~np.isnan(scores))
            scores = scores[known]
            identity = None if identity is None else identity[known]
            time_ms = None if time_ms is None else time_ms[known]
        at, n, ended = 0, len(scores), []
        if state.bound is None:
            at = min(n, self.warm_up_rows - len(state.first) // 8)
            state.first += scores[:at].tobytes()
            if len(state.first) < 8 * self.warm_up_rows:
                return []
            self.calibrate(np.frombuffer(state.first, np.float64))
        closes = range(at + self.window_rows - state.open.rows, n, self.window_rows)
        for low, high in pairwise(dict.fromkeys((at, *closes, n))):
            self._count(scores, identity, time_ms, low, high, known, blame)
            if state.open.rows == self.window_rows:
                state.closed, state.open = state.open, Window()
                self.verdict = self._said(state.closed)
                ended.append((high - 1 if known is None else int(known[high - 1]), self.verdict))
        return ended

    def _count(
        self,
        scores: Floats,
        identity: NDArray[np.uint64] | None,
        time_ms: NDArray[np.int64] | None,
        low: int,
        high: int,
        known: NDArray[np.int64] | None,
        blame: Callable[[int], str | None] | None,
    ) -> None:
        """Add rows ``low`` to ``high`` to the open window. Of equal scores the earlier row is the worse."""
        window, part, bound = self._state.open, scores[low:high], self._state.bound
        assert bound is not None
        if not window.rows and time_ms is not None:
            window.since_ms = int(time_ms[low])
        window.rows += high - low
        window.outliers += int(np.count_nonzero(part > bound))
        if identity is None or time_ms is None:
            return
        full = len(window.worst) == self.worst
        if len(part) > self.worst:
            least = np.partition(part, len(part) - self.worst)[len(part) - self.worst]
            places = np.flatnonzero(part >= least)
        else:
            places = np.arange(len(part))
        if full:
            places = places[part[places] > window.worst[-1].score]
        if not len(places):
            return
        places = places[np.argsort(-part[places], kind="stable")[: self.worst]]
        found = []
        for place in (places + low).tolist():
            score = max(-_FLOAT_MAX, min(_FLOAT_MAX, float(scores[place])))
            found.append(WorstEvent(score, int(time_ms[place]), int(identity[place])))
        if blame is not None and (not window.worst or found[0].score > window.worst[0].score):
            first = int(places[0]) + low
            found[0].column = blame(first if known is None else int(known[first]))
        window.worst = sorted((*window.worst, *found), key=lambda event: -event.score)[: self.worst]
        for event in window.worst[1:]:
            event.column = None

    def _said(self, window: Window) -> Verdict:
        outliers, rate = window.outliers, window.outliers / self.window_rows
        state = State.STABLE
        if outliers >= self._drift:
            state = State.DRIFT
        elif outliers >= self._warning:
            state = State.WARNING
        worst = tuple(
            Worst(identity=event.identity, time_ms=event.time_ms, score=event.score) for event in window.worst
        )
        evidence = Evidence(
            column=window.worst[0].column if window.worst else None,
            statistic="outliers in a window",
            effect=rate,
            effect_name="outlier rate",
            reference=self.share,
            current=rate,
            rows=window.rows,
            since_ms=window.since_ms,
            interval=_wilson(rate, self.window_rows),
            worst=worst,
            note=f"outlier: {self.statistic} above {self._state.bound:.6g}; a lasting rate up to {self._state.null:.4g} is no drift, "
            f"nor are bursts as in the reference (correlation {self._state.bursts:.2g})",
        )
        return Verdict(state=state, score=float(outliers), threshold=float(self._drift), evidence=evidence)


def _wilson(rate: float, rows: int) -> tuple[float, float]:
    """95% confidence interval of a share (Wilson, 1927)."""
    z2 = 1.96**2 / rows
    middle, half = rate + z2 / 2, math.sqrt(z2 * (rate * (1 - rate) + z2 / 4))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def finite_rows(values: NDArray[np.float64], sign: NDArray[np.int8]) -> NDArray[np.int64]:
    """Positions of rows that an outlier detector can read: all values finite, not taken back."""
    return np.flatnonzero(np.isfinite(values).all(axis=1) & (sign > 0))
