"""Reconstruction error of the reference's principal components: the columns no longer hang together as they did.

Half of the reference's sample (every second row) gives the components V that hold ``variance`` of its variance; a row's
error is what of it they cannot say, ``e = |z|^2 - |V'z|^2``, z the standardised columns. (Jackson and Mudholkar,
"Control procedures for residuals associated with principal component analysis", Technometrics 1979.) The other half says
what errors are usual, for a row that was fitted has a smaller one. A row counts by the rank of its error among those, so
that a few wild rows cannot raise an alarm, and ``detectors.joint_shift.moving`` compares the mean rank with 1/2: errors that became
smaller are drift as well. A mean rank within ``effect_min`` of 1/2 is none.

Null values are taken as the reference's mean, and their share is in the verdict's note: a column that falls silent makes
errors smaller. What moves along the components, however far, does not change the error: a shift of all columns
together is for ``drift-e`` or ``mmd``. It lies when the sample is short for its columns: it then has fewer components than
the data, and the error says little.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> rng = np.random.default_rng(1)
>>> a = rng.normal(size=1_000)
>>> sample = np.column_stack([a, a + rng.normal(size=1_000) / 2, rng.normal(size=1_000)])
>>> columns = {name: ColumnReference(rows=1_000) for name in "abc"}
>>> reference = Reference(columns=columns, sample=tuple(map(tuple, sample.tolist())))
>>> context = Context(("a", "b", "c"), (0, 0, 0), stream="features", reference=reference)
>>> detector = PcaSpec().build(context)
>>> b = np.where(np.arange(1_000) < 500, a + rng.normal(size=1_000) / 2, rng.normal(size=1_000))
>>> rows = Rows.of(np.column_stack([a, b, rng.normal(size=1_000)]), np.arange(1_000))
>>> [(c.index, str(c.verdict.state), c.verdict.evidence.column) for c in detector.update(rows)]
[(31, 'stable', 'b'), (543, 'drift', 'b')]
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import Context
from detectors.joint_shift.encode import UNIT, WEIGHT_UNIT, Encoder, weights
from detectors.joint_shift.moving import Features, MovingSpec
from schemas.verdicts import Evidence

Floats = NDArray[np.float64]
#: With more encoded columns than this, only every 16th row says which column it is that cannot be reconstructed.
_BLAME_ALL_MAX = 32
_BLAME_STEP = 16
#: A direction with less of the variance than this is none.
_SHARE_MIN = 1e-12


class PcaSpec(MovingSpec):
    """Options of ``pca-reconstruction``."""

    kind: ClassVar[str] = "pca-reconstruction"
    cost_ns: ClassVar[int] = 1_000
    state_size: ClassVar[str] = "four numbers a column: 0.6 kB for 10 columns, 25 kB for 768"
    sees: ClassVar[str] = "a broken linear dependence between columns; rows off the plane of the reference"
    blind_to: ClassVar[str] = (
        "moves along the components, as of all columns together; dependence that is not linear"
    )

    variance: float = Field(
        default=0.9, gt=0, lt=1, description="Share of the reference's variance to reconstruct."
    )
    components: int = Field(default=64, ge=1, le=512, description="At most.")
    effect_min: float = Field(
        default=0.02, ge=0, lt=0.5, description="A mean rank this far from 1/2 is no drift."
    )

    def fit(self, context: Context, sample: Floats) -> Features:
        encoder = Encoder(sample[::2], context.categories, ranks=False)
        return Reconstruction(context.columns, encoder, sample, self.variance, self.components)


class Reconstruction:
    """Rows as ranks of their errors. Blames: the error, the number of nulls, the squared residual of each column."""

    blame_unit = UNIT**2

    def __init__(
        self, columns: tuple[str, ...], encoder: Encoder, sample: Floats, variance: float, components: int
    ) -> None:
        self._columns = columns
        self._encoder = encoder
        fitted = encoder(sample[::2])
        self._centre = np.rint(fitted.mean(axis=0))
        self.components = weights(principal(fitted - self._centre, variance, components))
        errors, _ = self.errors(sample[1::2])
        self._errors = np.sort(errors)
        self._sample = self._ranks(errors)
        self.rows = len(errors)
        self.unit = 2.0 * self.rows
        self._step = 1 if encoder.width <= _BLAME_ALL_MAX else _BLAME_STEP

    def errors(self, values: Floats) -> tuple[Floats, tuple[Floats, Floats]]:
        """Errors ``(n,)`` in parts of ``UNIT**2`` of ``values (n, k)``; encoded rows and their scores."""
        encoded = self._encoder(values)
        encoded -= self._centre
        scores = encoded @ self.components
        scores /= WEIGHT_UNIT
        np.rint(scores, out=scores)
        # All whole numbers: the difference is exact, whatever the order of addition.
        total = np.einsum("ij,ij->i", encoded, encoded) - np.einsum("ij,ij->i", scores, scores)
        return np.maximum(total, 0.0), (encoded, scores)

    def __call__(self, values: Floats, first: int) -> tuple[Floats, Floats]:
        errors, (encoded, scores) = self.errors(values)
        blames = np.zeros((len(values), 2 + self._encoder.width))
        blames[:, 0] = errors
        blames[:, 1] = (values.shape[1] - np.count_nonzero(np.isfinite(values), axis=1)) * self.blame_unit
        asked = slice(-first % self._step, None, self._step)
        back = scores[asked] @ self.components.T
        back /= WEIGHT_UNIT
        np.rint(back, out=back)
        np.square(encoded[asked] - back, out=blames[asked, 2:])
        return self._ranks(errors), blames

    def reference(self) -> Floats:
        return self._sample

    def _ranks(self, errors: Floats) -> Floats:
        low, high = (np.searchsorted(self._errors, errors, side) for side in ("left", "right"))
        return np.asarray((low + high)[:, None], np.float64)

    def explain(self, moved: Floats, blame: Floats, rows: int) -> Evidence:
        usual = float(self._errors.mean()) / self.blame_unit
        residuals = blame[2:]
        at = int(residuals.argmax()) if len(residuals) else 0
        share = float(residuals[at] / max(float(residuals.sum()), 1e-300))
        nulls = float(blame[1]) / max(1, len(self._columns))
        return Evidence(
            column=self._columns[int(self._encoder.source[at])],
            statistic="mean rank of the reconstruction error",
            effect=float(moved[0]),
            effect_name="mean rank less 1/2",
            reference=0.5,
            current=0.5 + float(moved[0]),
            note=f"mean error {blame[0]:.3g} where {usual:.3g} is usual, {100 * share:.0f} % of it this column's; "
            f"{self.components.shape[1]} components; {100 * nulls:.1f} % of the values null, taken as the mean",
        )


def principal(centred: Floats, variance: float, most: int) -> Floats:
    """Directions ``(w, q)`` of greatest variance that hold ``variance`` of it, at most ``most`` and fewer than columns.

    The largest weight of each is positive, so that equal data give equal directions.
    """
    _, singular, rows = np.linalg.svd(centred / UNIT, full_matrices=False)
    shares = np.cumsum(singular**2) / max(float((singular**2).sum()), 1e-300)
    real = int(np.count_nonzero(singular**2 > _SHARE_MIN * max(float((singular**2).sum()), 1e-300)))
    wanted = int(np.searchsorted(shares, variance - 1e-12)) + 1
    kept = rows[: min(wanted, most, real, max(0, centred.shape[1] - 1))]
    signs = np.sign(kept[np.arange(len(kept)), np.abs(kept).argmax(axis=1)])
    return np.asarray((kept * signs[:, None]).T, np.float64)
