"""Two-sample comparisons of each block of event time with the reference: one running class, one spec for each statistic.

Rows are counted in the cells of their columns (``detectors.shift.cells``), so a window is a few integers however many rows it
has, and closing it costs a formula (``detectors.shift.statistics``). Two families:

- distances (``psi``, ``jensen-shannon``, ``hellinger``, ``wasserstein``): drift when the distance exceeds a bound after
  what sampling alone would give was taken off. By default the bounds of all four lie where a normal column has moved by
  about 0.5 standard deviations, the warnings at about 0.3.
- tests (``ks``, ``cramer-von-mises``, ``chi-squared``, ``fisher``, ``categories``): the score is -log10 of the p-value, by
  Bonferroni over the columns; the reference enters as a sample of its own size. The threshold comes from the false-page
  budget (alpha of a window = block / budget, at most 0.05), else ``alpha``. Significance alone is no drift: the effect
  must reach ``effect_min`` too, so ten times the traffic does not turn an immaterial shift into drift.

What cells lose: an ordered column has a cell a percentile, so a shift that stays between two percentiles is not seen; the
KS distance is at most one cell's share (0.01) below that of the raw samples. Values beyond the reference's range
count as at its end. ``cost_ns``: ten columns, blocks of 2,000; closing a block takes 0.5 ms, for ``fisher`` up to 45,
``cramer-von-mises`` 8. A p-value holds for exchangeable rows, and rows of one day share their weather, so none of these
pages by its own bound: ``drift`` or ``alpha`` is a knob that is fitted to the budget, and what the reference did in time
order decides. (Yurdakul 2018 for PSI; Hodges 1958; Anderson
1962; Choulakian, Lockhart and Stephens 1994.)

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> reference = Reference(columns={"x": ColumnReference(rows=1000, quantiles=tuple(np.linspace(0, 1, 101)))})
>>> detector = KsSpec().build(Context(("x",), (0,), stream="features", reference=reference))
>>> _ = detector.update(Rows.of(np.linspace(0.5, 1, 500), np.zeros(500, np.int64)))
>>> verdict = detector.advance(8 * 86_400_000)[0].verdict
>>> str(verdict.state), round(verdict.evidence.effect, 2)
('drift', 0.5)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from detectors.base import Context, Stream
from detectors.shift import statistics
from detectors.shift.cells import Cells, Floats, short_tails
from detectors.shift.windowed import Finding, WindowedSpec
from schemas.verdicts import Family

_ALPHA_MAX = 0.05


class DistanceSpec(WindowedSpec):
    """A distance against fixed bounds, what sampling alone gives taken off."""

    sees: ClassVar[str] = "any change of a column's distribution over its cells"
    blind_to: ClassVar[str] = "changes within a cell, dependence between columns, shifts shorter than a block"
    knob: ClassVar[str | None] = "drift"

    warning: float = Field(gt=0)
    drift: float = Field(gt=0)

    @model_validator(mode="after")
    def _fits(self) -> DistanceSpec:
        if self.warning > self.drift:
            raise ValueError("warning must be at most drift")
        return self

    def bounds(self, context: Context) -> tuple[float, float]:
        return self.warning, self.drift


class BinnedDistanceSpec(DistanceSpec):
    """A distance over few cells."""

    bins: int = Field(default=10, ge=2, le=100)

    @property
    def cells_wanted(self) -> int | None:
        return self.bins


class PsiSpec(BinnedDistanceSpec):
    """Options of ``psi``."""

    kind: ClassVar[str] = "psi"
    cost_ns: ClassVar[int] = 170
    statistic: ClassVar[str] = "PSI above sampling noise"
    effect_name: ClassVar[str] = "PSI"

    warning: float = Field(default=0.1, gt=0)
    drift: float = Field(default=0.25, gt=0)

    def measure(self, now: Floats, cells: Cells) -> Finding:
        effect = statistics.psi(now, cells.reference)
        noise = _cells_noise(now, cells)
        return Finding(effect, effect - noise, _moved(now, cells), noise)


class JensenShannonSpec(BinnedDistanceSpec):
    """Options of ``jensen-shannon``: the distance in bits, 0 to 1."""

    kind: ClassVar[str] = "jensen-shannon"
    cost_ns: ClassVar[int] = 170
    statistic: ClassVar[str] = "Jensen-Shannon distance above sampling noise"
    effect_name: ClassVar[str] = "Jensen-Shannon distance"

    warning: float = Field(default=0.13, gt=0)
    drift: float = Field(default=0.2, gt=0)

    def measure(self, now: Floats, cells: Cells) -> Finding:
        effect = statistics.jensen_shannon(now, cells.reference)
        return _rooted(effect, _cells_noise(now, cells) / (8 * math.log(2)), _moved(now, cells))


class HellingerSpec(BinnedDistanceSpec):
    """Options of ``hellinger``: 0 to 1."""

    kind: ClassVar[str] = "hellinger"
    cost_ns: ClassVar[int] = 170
    statistic: ClassVar[str] = "Hellinger distance above sampling noise"
    effect_name: ClassVar[str] = "Hellinger distance"

    warning: float = Field(default=0.11, gt=0)
    drift: float = Field(default=0.17, gt=0)

    def measure(self, now: Floats, cells: Cells) -> Finding:
        effect = statistics.hellinger(now, cells.reference)
        return _rooted(effect, _cells_noise(now, cells) / 8, _moved(now, cells))


class WassersteinSpec(DistanceSpec):
    """Options of ``wasserstein``, in standard deviations of the reference."""

    kind: ClassVar[str] = "wasserstein"
    cost_ns: ClassVar[int] = 180
    numeric_only: ClassVar[bool] = True
    reads: ClassVar[Literal["all", "numeric", "categorical"]] = "numeric"
    ordered: ClassVar[bool] = True
    statistic: ClassVar[str] = "Wasserstein distance above sampling noise"
    effect_name: ClassVar[str] = "Wasserstein-1 distance in reference sd"
    sees: ClassVar[str] = "how far a numeric column's values have moved, within the reference's range"
    blind_to: ClassVar[str] = "how far beyond the reference's range values lie, dependence between columns"

    warning: float = Field(default=0.3, gt=0)
    drift: float = Field(default=0.5, gt=0)

    def reads_column(self, cells: Cells) -> bool:
        # A column that was one value has no scale, and so no distance in it.
        return cells.numeric and cells.sd > 0

    def measure(self, now: Floats, cells: Cells) -> Finding:
        borders, counts, reference = short_tails(cells.edges / cells.sd, now, cells.reference)
        effect = statistics.wasserstein(counts, reference, borders)
        noise = statistics.wasserstein_noise(counts, reference, borders)
        return Finding(effect, effect - noise, _moved(now, cells, ordered=True), noise)


class TestSpec(WindowedSpec):
    """A test against a threshold on its p-value and a least effect."""

    __test__: ClassVar[bool] = False
    blind_to: ClassVar[str] = (
        "effects below effect_min, dependence between columns, shifts shorter than a block"
    )
    knob: ClassVar[str | None] = "alpha"

    alpha: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Chance of a false alarm in one block; None: the budget's, else 1e-4.",
    )
    effect_min: float = Field(ge=0)

    def bounds(self, context: Context) -> tuple[float, float]:
        alpha = self.alpha
        if alpha is None:
            budget = context.budget_ms
            alpha = 1e-4 if budget is None else min(_ALPHA_MAX, self.block_ms / budget)
        warning = max(alpha, min(10 * alpha, _ALPHA_MAX))
        return -math.log10(warning), -math.log10(alpha)

    def knob_value(self, context: Context) -> float:
        return math.pow(10.0, -self.bounds(context)[1])

    def score(self, finding: Finding, columns: int) -> float:
        if finding.effect < self.effect_min:
            return 0.0
        return max(0.0, finding.evidence - math.log10(columns))

    def remark(self, finding: Finding, columns: int, warning: float) -> str:
        beyond = finding.evidence - math.log10(columns) >= warning and finding.effect < self.effect_min
        return f"; beyond chance, but the effect is below {self.effect_min}" if beyond else ""


class KsSpec(TestSpec):
    """Options of ``ks``: Kolmogorov-Smirnov."""

    kind: ClassVar[str] = "ks"
    cost_ns: ClassVar[int] = 180
    numeric_only: ClassVar[bool] = True
    reads: ClassVar[Literal["all", "numeric", "categorical"]] = "numeric"
    ordered: ClassVar[bool] = True
    statistic: ClassVar[str] = "-log10 p of Kolmogorov-Smirnov"
    effect_name: ClassVar[str] = "KS distance"
    sees: ClassVar[str] = "any shift of a numeric column's distribution function"

    effect_min: float = Field(default=0.05, ge=0)

    def measure(self, now: Floats, cells: Cells) -> Finding:
        effect, log10_p = statistics.kolmogorov_smirnov(now, cells.reference)
        return Finding(effect, -log10_p, _moved(now, cells, ordered=True))


class CramerVonMisesSpec(TestSpec):
    """Options of ``cramer-von-mises``."""

    kind: ClassVar[str] = "cramer-von-mises"
    cost_ns: ClassVar[int] = 180
    closing_ns: ClassVar[int] = 8_000_000
    numeric_only: ClassVar[bool] = True
    reads: ClassVar[Literal["all", "numeric", "categorical"]] = "numeric"
    ordered: ClassVar[bool] = True
    statistic: ClassVar[str] = "-log10 p of Cramer-von Mises"
    effect_name: ClassVar[str] = "root mean squared gap of the distribution functions"
    sees: ClassVar[str] = "any shift of a numeric column's distribution function, small and broad ones best"

    effect_min: float = Field(default=0.04, ge=0)

    def measure(self, now: Floats, cells: Cells) -> Finding:
        found, log10_p = statistics.cramer_von_mises(now, cells.reference)
        effect = math.sqrt(max(0.0, found * statistics.size_factor(now, cells.reference)))
        return Finding(effect, -log10_p, _moved(now, cells, ordered=True))


class ChiSquaredSpec(TestSpec):
    """Options of ``chi-squared``. Its effect is Cohen's w against the mean of both distributions."""

    kind: ClassVar[str] = "chi-squared"
    cost_ns: ClassVar[int] = 170
    statistic: ClassVar[str] = "-log10 p of chi-squared"
    effect_name: ClassVar[str] = "Cohen's w"
    sees: ClassVar[str] = "any change of shares over categories or bins"

    bins: int = Field(default=10, ge=2, le=100)
    effect_min: float = Field(default=0.12, ge=0)

    @property
    def cells_wanted(self) -> int | None:
        return self.bins

    def measure(self, now: Floats, cells: Cells) -> Finding:
        _, log10_p, _ = statistics.chi_squared(now, cells.reference)
        p, q = statistics.shares(now), statistics.shares(cells.reference)
        used = p + q > 0
        effect = math.sqrt(float(((p - q)[used] ** 2 / ((p + q)[used] / 2)).sum()))
        return Finding(effect, -log10_p, _moved(now, cells))


class FisherSpec(TestSpec):
    """Options of ``fisher``: each category or bin against the rest, exactly."""

    kind: ClassVar[str] = "fisher"
    cost_ns: ClassVar[int] = 170
    closing_ns: ClassVar[int] = 45_000_000
    statistic: ClassVar[str] = "-log10 p of Fisher's exact test"
    effect_name: ClassVar[str] = "difference of shares"
    sees: ClassVar[str] = "one category or bin that became more or less frequent, rare ones exactly"

    bins: int = Field(default=10, ge=2, le=100)
    effect_min: float = Field(default=0.02, ge=0)

    @property
    def cells_wanted(self) -> int | None:
        return self.bins

    def measure(self, now: Floats, cells: Cells) -> Finding:
        cell, log10_p = statistics.fisher(now, cells.reference)
        effect = abs(float(statistics.shares(now)[cell] - statistics.shares(cells.reference)[cell]))
        return Finding(effect, -log10_p, cell)


class CategoriesSpec(TestSpec):
    """Options of ``categories``. ``effect_min``: least share of a new category's rows now, or of a vanished one's in the
    reference, that matters."""

    kind: ClassVar[str] = "categories"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.INPUT}
    cost_ns: ClassVar[int] = 110
    reads: ClassVar[Literal["all", "numeric", "categorical"]] = "categorical"
    #: What it looks for, the bins have merged.
    counts_blocks: ClassVar[bool] = False
    statistic: ClassVar[str] = "-log10 p of so many rows of a new category, or of none of an old one"
    effect_name: ClassVar[str] = "share of rows"
    sees: ClassVar[str] = (
        "categories that the reference had none of, unknown ones, and categories that stay away"
    )
    blind_to: ClassVar[str] = (
        "changes of shares among known categories, numeric columns, rarer ones than effect_min"
    )

    effect_min: float = Field(default=0.01, ge=0)

    def measure(self, now: Floats, cells: Cells) -> Finding:
        n, m = float(now.sum()), float(cells.reference.sum())
        found = Finding(0.0, 0.0, cells.size - 1)
        tests = math.log10(cells.size)
        for cell, (a, b) in enumerate(zip(now.tolist(), cells.reference.tolist(), strict=True)):
            if a > 0 and (b == 0 or cell == cells.size - 1):
                effect, log10_p = a / n, statistics.as_many(a, n, b, m)
            elif a == 0 and b > 0:
                effect, log10_p = b / max(1.0, m), statistics.none_left(b, n, m)
            else:
                continue
            if (effect >= self.effect_min, -log10_p - tests) > (
                found.effect >= self.effect_min,
                found.evidence,
            ):
                found = Finding(effect, max(0.0, -log10_p - tests), cell)
        return found


def _cells_noise(now: Floats, cells: Cells) -> float:
    return (np.count_nonzero(cells.reference) - 1) * statistics.size_factor(now, cells.reference)


def _rooted(effect: float, noise_squared: float, cell: int) -> Finding:
    """A distance whose square is additive in sampling noise."""
    above = math.sqrt(max(0.0, effect**2 - noise_squared))
    return Finding(effect, above, cell, math.sqrt(noise_squared))


def _moved(now: Floats, cells: Cells, ordered: bool = False) -> int:
    gap = statistics.shares(now) - statistics.shares(cells.reference)
    return int(np.abs(np.cumsum(gap) if ordered else gap).argmax())
