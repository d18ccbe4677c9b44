"""The farthest column of a row, in robust standard deviations: the cheapest outlier score there is.

``z = |x - median| / (1.4826 MAD)`` for each column, the row's score is the largest. A column whose tail in the reference is
heavier than a normal's is divided by how much heavier (its 99.5% point over the normal's), else it would be the largest in
every odd row and hide the rest: on three months of flights with one value moved by six standard deviations, 84% instead of 12% of
the rows were among the highest 1%. Median and MAD are those of the reference's quantiles, or of the sample where a column has none; a column of which more than half the values are equal has
a MAD of zero and takes 1.2533 times the mean absolute deviation instead, and for one that was constant any other value is
far out. Up to half of the reference may be outliers before the scale follows them. Nulls are passed over, the row is
judged by its known columns. (Iglewicz and Hoaglin, "How to detect and handle outliers", 1993.)

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> rng = np.random.default_rng(1)
>>> x = rng.normal(size=(1_500, 2))
>>> x[1_200, 1] = 50.0
>>> detector = RobustZSpec().build(Context(("a", "b"), (0, 0), stream="features"))
>>> [change] = detector.update(Rows.of(x, np.arange(1_500)))
>>> change.verdict.evidence.column, change.verdict.evidence.worst[0].identity
('b', 1200)
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import Context
from detectors.outliers.outliers import OutlierSpec, Scorer
from detectors.transform import column_reference
from schemas.errors import SnapshotError

Floats = NDArray[np.float64]
#: A normal's standard deviation over its median, and over its mean, absolute deviation.
_OF_MEDIAN = 1.482602218505602
_OF_MEAN = 1.2533141373155001
#: Where tails are compared: a share of the reference, and what of a normal's absolute values is below it.
_TAIL_SHARE = 0.995
_TAIL_NORMAL = 2.807033768343811
#: Points at which the reference's quantiles are read between; their midpoints are a sample of equal weights.
_POINTS = 4_000
#: Least scale, relative to the median and absolute, so that a constant column can be divided by.
_SCALE_MIN = 1e-9
_TINY = 1e-300


class RobustZSpec(OutlierSpec):
    """Options of ``robust-z``."""

    kind: ClassVar[str] = "robust-z"
    cost_ns: ClassVar[int] = 150
    state_size: ClassVar[str] = "the window's counts and worst events; without a reference its first rows"
    sees: ClassVar[str] = "events with one column far from where it mostly lies, and which column"
    blind_to: ClassVar[str] = "odd combinations of usual values; values in a gap of a column's distribution"
    statistic: ClassVar[str] = "robust z"

    even_tails: bool = Field(
        default=True,
        description="Divide columns with heavy tails by how much heavier than a normal's they are.",
    )

    def fit(self, context: Context, sample: Floats) -> Scorer:
        scales = []
        for at, name in enumerate(context.columns):
            column = column_reference(context.reference, name)
            if column is not None and column.quantiles:
                values = np.interp(*_places(len(column.quantiles)), np.asarray(column.quantiles))
            else:
                values = sample[:, at][~np.isnan(sample[:, at])]
            scales.append(median_scale(values))
        scorer = RobustZ(np.array(scales).reshape(-1, 2))
        return scorer.even_tailed(sample) if self.even_tails and len(sample) else scorer

    def learnt(self, scorer: Scorer) -> bytes:
        return scorer.scales.tobytes() if isinstance(scorer, RobustZ) else b""

    def fitted(self, context: Context, learnt: bytes) -> Scorer:
        if len(learnt) != 16 * len(context.columns):
            raise SnapshotError(f"the snapshot of {self.kind!r} was taken with other columns")
        return RobustZ(np.frombuffer(learnt, np.float64).reshape(-1, 2))


@lru_cache(maxsize=64)
def _places(quantiles: int) -> tuple[Floats, Floats]:
    """Where between so many quantiles the points are, and the quantiles' own places."""
    return (np.arange(_POINTS) + 0.5) / _POINTS * (quantiles - 1), np.arange(quantiles, dtype=np.float64)


def _median(values: Floats) -> float:
    """``np.median`` of at least one number, without what it does for all else."""
    half, odd = divmod(len(values), 2)
    if (values[1:] >= values[:-1]).all():  # points between quantiles are in order
        return float(values[half]) if odd else float(values[half - 1] + values[half]) / 2.0
    if odd:
        return float(np.partition(values, half)[half])
    middle = np.partition(values, (half - 1, half))[half - 1 : half + 1]
    return float(middle[0] + middle[1]) / 2.0


def median_scale(values: Floats) -> tuple[float, float]:
    """Median and robust standard deviation of ``(n,)``, the latter above zero; (0, 1) of nothing."""
    if not len(values):
        return 0.0, 1.0
    middle = _median(values)
    away = np.abs(values - middle)
    scale = _OF_MEDIAN * _median(away) or _OF_MEAN * float(away.mean())
    return middle, max(scale, _SCALE_MIN * abs(middle), _TINY)


class RobustZ:
    """``scales (k, 2)``: median and scale of each column."""

    def __init__(self, scales: Floats) -> None:
        self.scales = scales
        self._middle = np.ascontiguousarray(scales[:, :1])
        self._inverse = 1.0 / scales[:, 1:]

    def even_tailed(self, sample: Floats) -> RobustZ:
        """The same, each column divided by its tail's weight in ``sample (m, k)``; lighter tails than a normal's stay."""
        away = self._away(sample.T)
        weights = np.ones(len(away))
        if not np.isnan(away).any():
            weights = np.maximum(1.0, np.quantile(away, _TAIL_SHARE, axis=1) / _TAIL_NORMAL)
            return RobustZ(np.column_stack([self._middle[:, 0], weights / self._inverse[:, 0]]))
        for at, z in enumerate(away):
            known = z[~np.isnan(z)]
            if len(known):
                weights[at] = max(1.0, float(np.quantile(known, _TAIL_SHARE)) / _TAIL_NORMAL)
        return RobustZ(np.column_stack([self._middle[:, 0], weights / self._inverse[:, 0]]))

    def score(self, values: Floats, first: int) -> Floats:
        z = self._away(values.T)
        scores: Floats = np.fmax.reduce(z, axis=0)
        return scores

    def blame(self, row: Floats) -> int:
        return int(np.nanargmax(self._away(row[:, None])))

    def _away(self, columns: Floats) -> Floats:
        """Robust z of ``(k, n)``; what is too large for a number is as large as one can be."""
        with np.errstate(over="ignore"):
            z = np.subtract(columns, self._middle, order="C")
            z *= self._inverse
        return np.asarray(np.abs(z, out=z), np.float64)
