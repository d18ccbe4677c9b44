"""Maximum mean discrepancy of the last rows from the reference: any change of the joint distribution, by a kernel.

The mean embedding of a distribution P is ``mu_P = E k(x, .)``; ``MMD^2(P, Q) = |mu_P - mu_Q|^2`` is zero only for P = Q
when k is Gaussian (Gretton et al., "A kernel two-sample test", JMLR 2012). Random features make the embedding a short
vector: with frequencies ``w ~ N(0, I / sigma^2)``,

    k(x, y) = exp(-|x - y|^2 / (2 sigma^2)) ~ 1/F sum_f cos(w_f (x - y)),   phi(x) = (cos w_f x, sin w_f x)_f / sqrt(F)

(Rahimi and Recht, NIPS 2007), so the embedding of any number of rows is a mean that is kept up to date (NEWMA: Keriven,
Garreau and Poli 2020). ``sigma`` is the median distance of the reference's rows. Means, bounds and memory: see
``detectors.joint_shift.moving``. Cosines come from a table by a phase in whole numbers, so cuts cannot show.

With more than ``project`` encoded columns (embeddings) rows are first projected to so many random directions: what a row
costs then grows with the columns by one product with ``project`` weights, and sees about what all columns see (768 columns,
shifts of 0.2 to 0.3 in all: the same median delay). A change of few columns among many is for ``drift-e``.

It lies when the reference's sample does not show the seasons of the stream: rows of one hour are alike, and every hour
differs from the mean of the year. Half a year of real flights against its own sample, in time order: 19 alarms where six
were promised, and none when shuffled. For the same reason it is deaf to what is smaller than the usual difference between
two days. Of a null it knows only that the value is like the column's middle.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> rng = np.random.default_rng(1)
>>> sample = tuple(map(tuple, rng.normal(size=(1_000, 2)).tolist()))
>>> columns = {name: ColumnReference(rows=1_000) for name in ("a", "b")}
>>> reference = Reference(columns=columns, sample=sample)
>>> detector = MmdSpec().build(Context(("a", "b"), (0, 0), stream="features", reference=reference))
>>> a = rng.normal(size=2_000)
>>> b = np.where(np.arange(2_000) < 1_000, rng.normal(size=2_000), a)  # from row 1,000 on b is a
>>> rows = Rows.of(np.column_stack([a, b]), np.arange(2_000))
>>> [(c.index, str(c.verdict.state)) for c in detector.update(rows)]
[(31, 'stable'), (1087, 'warning'), (1183, 'drift')]
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import Context
from detectors.joint_shift.encode import UNIT, WEIGHT_UNIT, Encoder, Projection, weights
from detectors.joint_shift.moving import Features, MovingSpec
from schemas.verdicts import Evidence

Floats = NDArray[np.float64]
#: Places of the table of cosines; a quarter of them is from cosine to sine.
_PLACES = 4_096
#: Parts of one that features are whole numbers of.
_PARTS = 2.0**20
_COSINE = np.rint(np.cos((np.arange(_PLACES) + 0.5) * (2 * np.pi / _PLACES)) * _PARTS)
#: Rows whose pairs give the median distance.
_MEDIAN_ROWS = 400


class MmdSpec(MovingSpec):
    """Options of ``mmd``."""

    kind: ClassVar[str] = "mmd"
    cost_ns: ClassVar[int] = 1_700
    state_size: ClassVar[str] = (
        "four numbers a random feature and a column: 5 kB for 10 columns, 29 kB for 768"
    )
    sees: ClassVar[str] = (
        "any change of the joint distribution that is not small: also of dependence, of embeddings"
    )
    blind_to: ClassVar[str] = "a small move of one column among many; what is finer than the median distance"

    features: int = Field(default=128, ge=8, le=4_096, description="Random features: two a frequency.")
    project: int = Field(default=64, ge=2, le=1_024, description="Columns beyond this many are projected.")

    def fit(self, context: Context, sample: Floats) -> Features:
        rng = np.random.default_rng([context.seed, 1])
        encoder = Encoder(sample, context.categories, ranks=True)
        projection = Projection(encoder.width, self.project, rng) if encoder.width > self.project else None
        return RandomFeatures(context.columns, encoder, projection, sample, max(1, self.features // 2), rng)


class RandomFeatures:
    """Rows as cosines and sines of random frequencies; blames are the encoded columns."""

    blame_unit = UNIT

    def __init__(
        self,
        columns: tuple[str, ...],
        encoder: Encoder,
        projection: Projection | None,
        sample: Floats,
        frequencies: int,
        rng: np.random.Generator,
    ) -> None:
        self._columns = columns
        self._encoder = encoder
        self._projection = projection
        self._frequencies = frequencies
        # A feature is a cosine over the root of the frequencies, so that squares add up to MMD^2.
        self.unit = _PARTS * np.sqrt(frequencies)
        encoded = encoder(sample)
        self._centre = encoded.mean(axis=0) / UNIT
        self._noise = np.maximum(encoded.std(axis=0) / UNIT, 1e-6)
        points = (encoded if projection is None else projection(encoded)) / UNIT
        self.sigma = median_distance(points[:: -(-len(points) // _MEDIAN_ROWS)])
        #: Frequencies ``(w, f)`` in whole numbers of 1 / WEIGHT_UNIT.
        self.weights = weights(rng.normal(size=(points.shape[1], frequencies)) / self.sigma)
        self._scale = _PLACES / (2 * np.pi * UNIT * WEIGHT_UNIT)
        self._sample = self._of(encoded)
        self.rows = len(sample)

    def __call__(self, values: Floats, first: int) -> tuple[Floats, Floats]:
        encoded = self._encoder(values)
        return self._of(encoded), encoded

    def reference(self) -> Floats:
        return self._sample

    def _of(self, encoded: Floats) -> Floats:
        phase = (encoded if self._projection is None else self._projection(encoded)) @ self.weights
        phase *= self._scale
        place = np.floor(phase, out=phase).astype(np.int64)
        f = self._frequencies
        out = np.empty((len(encoded), 2 * f))
        place &= _PLACES - 1
        np.take(_COSINE, place, out=out[:, :f], mode="clip")
        place -= _PLACES // 4
        place &= _PLACES - 1
        np.take(_COSINE, place, out=out[:, f:], mode="clip")
        return out

    def explain(self, moved: Floats, blame: Floats, rows: int) -> Evidence:
        distance = float(np.sqrt(np.add.reduce(moved**2)))
        shift = (blame - self._centre) / self._noise
        at = int(np.abs(shift).argmax()) if len(shift) else 0
        column = self._columns[int(self._encoder.source[at])] if len(shift) else None
        return Evidence(
            column=column,
            statistic="maximum mean discrepancy",
            effect=distance,
            effect_name="distance of mean embeddings",
            reference=0.0,
            current=distance,
            note=f"largest shift of one column: {float(shift[at]) if len(shift) else 0.0:.2f} standard deviations",
        )


def median_distance(points: Floats) -> float:
    """Median Euclidean distance between rows ``(m, w)``; 1 where most are the same."""
    squares = (points**2).sum(axis=1)
    distance = squares[:, None] + squares[None, :] - 2 * points @ points.T
    found = np.sqrt(max(0.0, float(np.median(distance[np.triu_indices(len(points), 1)]))))
    return float(found) if found > 1e-6 else 1.0
