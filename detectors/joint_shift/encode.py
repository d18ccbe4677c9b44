"""Rows of any columns as vectors of whole numbers, so that what is computed of them cannot depend on how rows were cut.

A sum of floats depends on its order, and a matrix product of 3 rows may differ in the last digit from one of 300. Whole
numbers below 2**53 add and multiply exactly in float64: a product of them is the same in any order, on any number of rows,
at the full speed of BLAS. So columns are standardised and rounded to ``1 / UNIT``, weights are rounded too, and sums of
results are kept as integers.

Numeric columns become normal scores of their rank in the reference's sample (bounded, whatever the tails), or plain
standardised values; categorical ones one 0 or 1 for each frequent category (``schemas.bins``). A null is 0: the
reference's middle, no category.

>>> import numpy as np
>>> sample = np.column_stack([np.linspace(0, 10, 101), np.arange(101) % 2])
>>> encoder = Encoder(sample, (0, 3), ranks=True)
>>> np.round(encoder(np.array([[5.0, 1.0], [99.0, np.nan]])) / UNIT, 2).tolist()
[[0.0, 0.0, 1.0, 0.0], [2.58, 0.0, 0.0, 0.0]]
>>> encoder.source.tolist()
[0, 1, 1, 1]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from schemas.bins import Binning
from schemas.contracts import ColumnReference

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Parts of one that encoded values are whole numbers of.
UNIT = 65_536.0
#: Encoded values lie within this many standard deviations: with UNIT 20 bits, which leaves 33 for weights and columns.
Z_MAX = 16.0
#: Parts of one that weights are rounded to, and the largest sum of absolute weights for which products stay exact.
WEIGHT_UNIT = 2.0**16
WEIGHTS_MAX = 2.0**53 / (UNIT * Z_MAX * WEIGHT_UNIT)
#: Ranks are kept this far from 0 and 1: nothing beyond the sample can be ranked.
_RANK_MIN = 0.005
#: With more one-hot columns than this a category is encoded as one number, the normal score of its middle rank.
_ONE_HOT_MAX = 512
#: Numeric columns beyond this many are standardised, not ranked: a rank costs ten times as much.
_RANKED_MAX = 64
#: Samples are kept inside what can be squared and added without overflow.
_SAMPLE_MAX = 1e100
_SD_MIN = 1e-9
_TINY = 1e-300
_QUANTILES = 101


class Encoder:
    """``width``: encoded columns, the first ``numeric`` of them numeric; ``source (width,)``: the column of each."""

    def __init__(self, sample: Floats, categories: Sequence[int], ranks: bool) -> None:
        sample = np.clip(sample, -_SAMPLE_MAX, _SAMPLE_MAX)
        codes = [categories[at] if at < len(categories) else 0 for at in range(sample.shape[1])]
        binnings = {at: _binning(sample[:, at], size) for at, size in enumerate(codes) if size}
        one_hot = sum(binning.size - 1 for binning in binnings.values()) <= _ONE_HOT_MAX
        self._numeric = np.array([at for at, size in enumerate(codes) if not size], np.intp)
        self._all_numeric = len(self._numeric) == len(codes)
        self._ranked = ranks and len(self._numeric) <= _RANKED_MAX
        numeric = sample[:, self._numeric]
        self._middle, self._inverse = _location(numeric, robust=ranks)
        self._knots = [_knots(numeric[:, at]) for at in range(numeric.shape[1])] if self._ranked else []
        #: Of each categorical column its bins and the rows of values (bins, encoded columns) they become.
        self._tables = [
            (at, binning, np.eye(binning.size, binning.size - 1) if one_hot else _scores(binning))
            for at, binning in binnings.items()
        ]
        self.source: Ints = np.concatenate(
            [self._numeric, *(np.full(table.shape[1], at) for at, _, table in self._tables)]
        ).astype(np.int64)
        self.width = len(self.source)
        self.numeric = len(self._numeric)

    def __call__(self, values: Floats) -> Floats:
        """``values (n, k)`` as whole numbers ``(n, width)``, numeric columns first."""
        numeric = values if self._all_numeric else values[:, self._numeric]
        scored = self._by_rank(numeric) if self._ranked else self._by_size(numeric)
        parts = [scored, *(table[binning.codes(values[:, at])] for at, binning, table in self._tables)]
        out = np.concatenate(parts, axis=1) if self._tables else scored
        out *= UNIT
        np.rint(out, out=out)
        return out

    def _by_rank(self, values: Floats) -> Floats:
        out = np.empty(values.shape)
        for at, (places, scores) in enumerate(self._knots):
            out[:, at] = np.interp(values[:, at], places, scores)
        out[~np.isfinite(values)] = 0.0
        return out

    def _by_size(self, values: Floats) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):
            out = values - self._middle
            out *= self._inverse
        # What is no finite number is none of any size.
        out[~np.isfinite(values)] = 0.0
        np.clip(out, -Z_MAX, Z_MAX, out=out)
        return out


def weights(exact: Floats) -> Floats:
    """Weights ``(w, q)`` rounded to whole numbers of ``1 / WEIGHT_UNIT``; columns of too large a sum are scaled down, so
    that ``encoded @ weights`` is exact."""
    largest = float(np.abs(exact).sum(axis=0).max(initial=0.0)) + len(exact) / WEIGHT_UNIT
    return np.asarray(np.rint(exact * min(1.0, WEIGHTS_MAX / largest) * WEIGHT_UNIT), np.float64)


class Projection:
    """Random Gaussian directions of encoded columns, encoded again: distances keep their proportions (Johnson and
    Lindenstrauss 1984) and everything after it costs the same for 384 columns or 1,536."""

    def __init__(self, width: int, to: int, rng: np.random.Generator) -> None:
        self.width = to
        self._weights = weights(rng.normal(size=(width, to)) / np.sqrt(width))

    def __call__(self, encoded: Floats) -> Floats:
        """``(n, width)`` to ``(n, to)``, whole numbers again."""
        out = encoded @ self._weights
        out /= WEIGHT_UNIT
        np.rint(out, out=out)
        return np.asarray(np.clip(out, -Z_MAX * UNIT, Z_MAX * UNIT, out=out), np.float64)


def _binning(codes: Floats, size: int) -> Binning:
    known = codes[np.isfinite(codes)]
    inside = np.where((known >= 0) & (known < size), known, size - 1).astype(np.int64)
    counts = np.bincount(inside, minlength=size)
    shares = tuple(float(count) / max(1, len(known)) for count in counts)
    return Binning(ColumnReference(rows=len(known), shares=shares))


def _scores(binning: Binning) -> Floats:
    middle = np.cumsum(binning.shares) - binning.shares / 2
    scores = ndtri(np.clip(middle, _RANK_MIN, 1 - _RANK_MIN))
    return np.asarray(np.concatenate([scores, [0.0]])[:, None], np.float64)


def _location(values: Floats, robust: bool) -> tuple[Floats, Floats]:
    """Middle and one over the spread of each column: median and quartiles, or mean and standard deviation."""
    middle, inverse = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for at in range(values.shape[1]):
        known = values[np.isfinite(values[:, at]), at]
        if not len(known):
            continue
        spread = float(known.std())
        middle[at] = known.mean()
        if robust:
            low, middle[at], high = np.quantile(known, (0.25, 0.5, 0.75)).tolist()
            # Where half of the values are one value, quartiles say nothing of the spread.
            spread = (high - low) / 1.349 if high > low else spread
        inverse[at] = 1.0 / max(spread, _SD_MIN * abs(float(middle[at])), _TINY)
    return middle, inverse


def _knots(values: Floats) -> tuple[Floats, Floats]:
    """Values in ascending order and the normal scores of their ranks; a value that many rows share has the middle one."""
    known = values[np.isfinite(values)]
    if not len(known):
        return np.zeros(1), np.zeros(1)
    quantiles = np.quantile(known, np.linspace(0, 1, _QUANTILES))
    places, first, count = np.unique(quantiles, return_index=True, return_counts=True)
    ranks = (first + (count - 1) / 2) / (_QUANTILES - 1)
    # Beyond the sample's range: a constant column has no other places than these.
    places = np.concatenate([[np.nextafter(places[0], -np.inf)], places, [np.nextafter(places[-1], np.inf)]])
    ranks = np.concatenate([[0.0], ranks, [1.0]])
    return places, np.asarray(ndtri(np.clip(ranks, _RANK_MIN, 1 - _RANK_MIN)), np.float64)
