"""From a score per event to a verdict on their rate, for every outlier detector alike.

The first ``warm_up_rows`` scores set the bound that ``share`` of them exceed; then each window of ``window_rows`` scores is
compared with that share. Drift: as many outliers as chance gives once in a million windows; warning: once in a thousand
(binomial tail; scores of one window depend on each other, so this is a yardstick and no guarantee).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from schemas.verdicts import Evidence, State, Verdict


def binomial_bound(rows: int, share: float, tail: float) -> int:
    """Smallest count whose upper tail probability under Binomial(rows, share) is at most ``tail``."""
    log_p, log_q = math.log(share), math.log1p(-share)
    total = 0.0
    for count in range(rows, -1, -1):
        log_mass = (
            math.lgamma(rows + 1)
            - math.lgamma(count + 1)
            - math.lgamma(rows - count + 1)
            + count * log_p
            + (rows - count) * log_q
        )
        total += math.exp(log_mass)
        if total > tail:
            return count + 1
    return 0


class OutlierRate:
    """Counts scores above the bound; one verdict a window."""

    def __init__(self, warm_up_rows: int, window_rows: int, share: float) -> None:
        self.warm_up_rows = warm_up_rows
        self.window_rows = window_rows
        self.share = share
        self._warning = binomial_bound(window_rows, share, 1e-3)
        self._drift = binomial_bound(window_rows, share, 1e-6)
        self.reset()

    def reset(self) -> None:
        self._first: list[float] = []
        self.bound: float | None = None
        self._seen = 0
        self._outliers = 0

    def add(self, score: float) -> Verdict | None:
        """Take one score; a verdict when it ends a window."""
        if self.bound is None:
            self._first.append(score)
            if len(self._first) >= self.warm_up_rows:
                self.bound = float(np.quantile(np.array(self._first), 1 - self.share))
                self._first = []
            return None
        self._seen += 1
        self._outliers += int(score > self.bound)
        if self._seen < self.window_rows:
            return None
        outliers, self._seen, self._outliers = self._outliers, 0, 0
        state = (
            State.DRIFT
            if outliers >= self._drift
            else State.WARNING
            if outliers >= self._warning
            else State.STABLE
        )
        evidence = Evidence(
            statistic="outliers in a window",
            effect=outliers / self.window_rows,
            effect_name="outlier rate",
            reference=self.share,
            current=outliers / self.window_rows,
            rows=self.window_rows,
        )
        return Verdict(state=state, score=float(outliers), threshold=float(self._drift), evidence=evidence)


def finite_rows(values: NDArray[np.float64], sign: NDArray[np.int8]) -> NDArray[np.int64]:
    """Positions of rows that an outlier detector can read: all values finite, not taken back."""
    return np.flatnonzero(np.isfinite(values).all(axis=1) & (sign > 0))
