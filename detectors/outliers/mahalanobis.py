"""Mahalanobis distance of a row from the reference: odd combinations of values that are each usual.

``d2 = z' R^-1 z``, z the standardised columns and R their correlations, shrunk towards independence as far as the sample is
short for its columns: ``R = (1 - s) S + s I``, s after Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
covariance matrices", 2004. Of a normal row d2 is chi-squared with as many degrees of freedom as columns are known, and the
score is the cube root that makes it a normal deviate (Wilson and Hilferty, 1931):

    score = ((d2 / k) ** (1/3) - 1 + 2 / (9 k)) / sqrt(2 / (9 k))

A row with nulls is judged by the columns it has: their marginal distribution, their degrees of freedom, one scale. Nothing
rests on normality but the score's name, the bound is that of the held-out rows. Each row keeps its place on a grid of
``_CELL_ROWS`` by its number, and the same matrix product of one fixed shape serves a cell whether a call brings one row of
it or all, so cuts cannot show in the last digit.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> rng = np.random.default_rng(1)
>>> a = rng.normal(size=1_500)
>>> x = np.column_stack([a, a + rng.normal(size=1_500) / 10])
>>> x[1_200] = 1.0, -1.0
>>> detector = MahalanobisSpec().build(Context(("a", "b"), (0, 0), stream="features"))
>>> [change] = detector.update(Rows.of(x, np.arange(1_500)))
>>> change.verdict.evidence.worst[0].identity
1200
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import Context
from detectors.outliers.outliers import OutlierSpec, Scorer

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
#: Rows of one matrix product.
_CELL_ROWS = 32
#: Values that are worked on together, and least rows: larger temporary arrays are fetched from the system each time.
_CHUNK_VALUES = 12_288
_CHUNK_ROWS_MIN = 256
#: Standardised values are cut here: far beyond any bound, and their squares can be added.
_Z_MAX = 1e6
#: Numbers in the whitening matrices that are kept for patterns of nulls, and least matrices; others are made again.
_WHITENERS_MAX = 1_000_000
_WHITENERS_MIN = 4
#: Least standard deviation, relative to the mean and absolute, so that a constant column can be divided by.
_SD_MIN = 1e-9
_TINY = 1e-300
#: Least shrinkage: columns that are copies of each other still have an inverse.
_SHRINK_MIN = 1e-6


class MahalanobisSpec(OutlierSpec):
    """Options of ``mahalanobis``."""

    kind: ClassVar[str] = "mahalanobis"
    cost_ns: ClassVar[int] = 310
    state_size: ClassVar[str] = "the window's counts and worst events; without a reference its first rows"
    sees: ClassVar[str] = "events far from the bulk as a whole, odd combinations of usual values included"
    blind_to: ClassVar[str] = (
        "outliers between two clusters; dependence that is not linear; one odd column among very many"
    )
    statistic: ClassVar[str] = "normal deviate of the squared Mahalanobis distance"

    shrink: float | None = Field(
        default=None, ge=0, le=1, description="Weight of independence; None: by Ledoit and Wolf's rule."
    )

    def fit(self, context: Context, sample: Floats) -> Scorer:
        known = ~np.isnan(sample)
        counts = np.maximum(known.sum(axis=0), 1)
        filled = np.where(known, sample, 0.0)
        mean = filled.sum(axis=0) / counts
        away = np.where(known, sample - mean, 0.0)
        sd = np.sqrt((away**2).sum(axis=0) / counts)
        sd = np.maximum(np.maximum(sd, _SD_MIN * np.abs(mean)), _TINY)
        return Mahalanobis(mean, sd, shrunk_correlation(away / sd, self.shrink))


def shrunk_correlation(z: Floats, shrink: float | None = None) -> Floats:
    """Correlations ``(k, k)`` of standardised ``z (m, k)``, nulls as 0, weighted with independence by ``shrink``.

    None: ``b2 / d2`` of Ledoit and Wolf, the weight that is best in mean squared error as m and k grow together. Nulls pull
    a column's correlations towards 0, never its variance, which is 1 again at the end.
    """
    m, k = z.shape
    raw = z.T @ z / m
    if shrink is None:
        square = z**2
        noise = float((square.T @ square / m - raw**2).sum()) / m
        distance = float(((raw - np.trace(raw) / k * np.eye(k)) ** 2).sum())
        shrink = min(noise, distance) / distance if distance > 0 else 1.0
    shrink = max(shrink, _SHRINK_MIN)
    scale = np.sqrt(np.maximum(np.diag(raw), _TINY))
    found = np.asarray((1.0 - shrink) * raw / scale[:, None] / scale, np.float64)
    np.fill_diagonal(found, 1.0)
    return found


class Mahalanobis:
    """``mean`` and ``sd (k,)``, ``correlation (k, k)`` positive definite."""

    def __init__(self, mean: Floats, sd: Floats, correlation: Floats) -> None:
        self._mean = mean
        self._inverse = 1.0 / sd
        self._correlation = correlation
        self._k = len(mean)
        self._ones = np.ones((self._k, 1))
        self._whitening: OrderedDict[bytes, Floats] = OrderedDict()

    def score(self, values: Floats, first: int) -> Floats:
        step = max(_CHUNK_ROWS_MIN, _CHUNK_VALUES // self._k)
        if len(values) <= step:
            return self._score(values, first)
        parts = [self._score(values[at : at + step], first + at) for at in range(0, len(values), step)]
        return np.concatenate(parts)

    def _score(self, values: Floats, first: int) -> Floats:
        z, known = self._standardised(values)
        if known is None:
            return normal_deviate(self._squares(z, first, np.ones(self._k, bool)), self._k)
        squares = np.empty(len(values))
        for rows in _by_pattern(known):
            for part in _cells_together(rows, first):
                low = int(part[0])
                squares[part] = self._squares(z[low : part[-1] + 1], first + low, known[low])[part - low]
        return normal_deviate(squares, known.sum(axis=1))

    def squared_distance(self, values: Floats) -> Floats:
        """``d2 (n,)`` of rows without nulls."""
        return self._squares(self._standardised(values)[0], 0, np.ones(self._k, bool))

    def blame(self, row: Floats) -> int:
        """The column without which the distance would be the smallest: ``(P z)_j^2 / P_jj`` is what each adds."""
        z, _ = self._standardised(row[None, :])
        places = np.flatnonzero(~np.isnan(row))
        precision = np.linalg.inv(self._correlation[np.ix_(places, places)])
        adds = (precision @ z[0, places]) ** 2 / np.diag(precision)
        return int(places[np.argmax(adds)])

    def _standardised(self, values: Floats) -> tuple[Floats, Bools | None]:
        """z with nulls as 0, and which values are known; None: all."""
        with np.errstate(over="ignore"):
            z = (values - self._mean) * self._inverse
        np.clip(z, -_Z_MAX, _Z_MAX, out=z)
        null = np.isnan(z)
        if not null.any():
            return z, None
        z[null] = 0.0
        return z, ~null

    def _squares(self, z: Floats, first: int, pattern: Bools) -> Floats:
        """``d2`` of consecutive rows by the columns of one pattern of nulls; the first row has the number ``first``."""
        lead = first % _CELL_ROWS
        cells = -(-(lead + len(z)) // _CELL_ROWS)
        grid = np.zeros((cells * _CELL_ROWS, self._k))
        grid[lead : lead + len(z)] = z
        white = np.matmul(grid.reshape(cells, _CELL_ROWS, self._k), self._whitener(pattern))
        np.square(white, out=white)
        squares: Floats = np.matmul(white, self._ones).reshape(-1)[lead : lead + len(z)]
        return squares

    def _whitener(self, pattern: Bools) -> Floats:
        """``W (k, k)`` with ``|z W|^2 = z' R^-1 z`` over the pattern's columns, zero elsewhere."""
        key = pattern.tobytes()
        found = self._whitening.get(key)
        if found is None:
            places = np.ix_(pattern, pattern)
            root = np.linalg.cholesky(self._correlation[places])
            found = np.zeros((self._k, self._k))
            found[places] = np.linalg.inv(root).T
            self._whitening[key] = found
            if len(self._whitening) > max(_WHITENERS_MIN, _WHITENERS_MAX // self._k**2):
                self._whitening.popitem(last=False)
        return found


def normal_deviate(squares: Floats, k: int | NDArray[np.int64]) -> Floats:
    """Chi-squared values of ``k`` degrees of freedom as standard normal ones (Wilson and Hilferty)."""
    noise = 2.0 / (9.0 * k)
    deviate: Floats = (np.cbrt(squares / k) - (1.0 - noise)) / np.sqrt(noise)
    return deviate


def _by_pattern(known: Bools) -> list[NDArray[np.int64]]:
    """Positions of the rows of each pattern of ``known (n, k)``, ascending."""
    packed = np.packbits(known, axis=1)
    if packed.shape[1] <= 8:
        words = np.zeros((len(packed), 8), np.uint8)
        words[:, : packed.shape[1]] = packed
        key = words.view(np.uint64)[:, 0]
    else:
        key = np.unique(packed, axis=0, return_inverse=True)[1].reshape(-1).astype(np.uint64)
    order = np.argsort(key, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(key[order])) + 1)


def _cells_together(rows: NDArray[np.int64], first: int) -> list[NDArray[np.int64]]:
    """Rows of one pattern in runs that share or touch cells, so that few rows do not pay for the whole call."""
    if len(rows) == 1:
        return [rows]
    cell = (rows + first) // _CELL_ROWS
    return np.split(rows, np.flatnonzero(np.diff(cell) > 1) + 1)
