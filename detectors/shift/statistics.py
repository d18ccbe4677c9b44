"""Two-sample statistics on counts, so that every windowed detector is a formula here and a line of options there.

All take the counts of both samples over the same cells, ``now`` and ``then``, shape ``(k,)``; the ones on distribution
functions want cells in ascending order. Tests also give log10 of their p-value, whose tail matters more than its middle:
thresholds lie at 1e-4 and below. With one cell for each distinct value (:func:`tally`) they equal scipy's on the samples;
with wider cells the distribution functions are compared at fewer points, so a KS or CvM statistic gets smaller.

>>> import numpy as np
>>> now, then, _ = tally(np.array([1.0, 2, 2, 4]), np.array([0.0, 1, 1, 2]))
>>> kolmogorov_smirnov(now, then)[0]
0.5
"""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.special import chdtrc, gammaln, kolmogorov, log_ndtr

Floats = NDArray[np.float64]
#: The share that an empty cell is taken to have where a logarithm of it is needed.
SHARE_MIN = 1e-4
#: Expected rows below which a cell joins the others of its kind in a chi-squared test (Cochran 1954).
EXPECTED_MIN = 5.0
#: Effective size of a KS test above which the finite distribution costs milliseconds and says the same as its limit.
KS_LIMIT_ROWS = 5_000
#: Possible tables up to which Fisher's test sums their chances here, in logarithms; more are left to scipy.
EXACT_ROWS_MAX = 20_000
#: log10 of the least p-value told from zero.
LOG10_P_MIN = -300.0


def tally(now: Floats, then: Floats) -> tuple[Floats, Floats, Floats]:
    """Counts of two samples over their distinct values, and these values in ascending order."""
    values = np.unique(np.concatenate([now, then]))
    counts = [np.bincount(np.searchsorted(values, x), minlength=len(values)) for x in (now, then)]
    return counts[0].astype(np.float64), counts[1].astype(np.float64), values


def shares(counts: Floats) -> Floats:
    """Counts over their sum."""
    return np.asarray(counts / max(1.0, float(counts.sum())), np.float64)


def size_factor(now: Floats, then: Floats) -> float:
    """``1/n + 1/m``: the variance of a difference of two means, in variances of a row."""
    return 1.0 / max(1.0, float(now.sum())) + 1.0 / max(1.0, float(then.sum()))


# -- distances --------------------------------------------------------------------------------------------------------


def psi(now: Floats, then: Floats) -> float:
    """Population stability index ``sum (p - q) ln(p / q)``; empty cells count as 1e-4."""
    p, q = np.maximum(shares(now), SHARE_MIN), np.maximum(shares(then), SHARE_MIN)
    return float(((p - q) * np.log(p / q)).sum())


def jensen_shannon(now: Floats, then: Floats) -> float:
    """Jensen-Shannon distance: root of the mean divergence from the middle, in bits; 0 to 1."""
    p, q = shares(now), shares(then)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / middle), 0.0) + np.where(q > 0, q * np.log2(q / middle), 0.0)
    return math.sqrt(max(0.0, float(terms.sum()) / 2))


def hellinger(now: Floats, then: Floats) -> float:
    """Hellinger distance ``sqrt(sum (sqrt p - sqrt q)^2 / 2)``; 0 to 1."""
    return math.sqrt(float(((np.sqrt(shares(now)) - np.sqrt(shares(then))) ** 2).sum()) / 2)


def wasserstein(now: Floats, then: Floats, points: Floats) -> float:
    """First Wasserstein distance: the area between the distribution functions, in the unit of ``points``.

    ``points (k,)``: where the rows of each cell lie, as from :func:`tally`. ``points (k - 1,)``: the borders between the
    cells; the functions are taken to be straight between two borders, and what lies beyond the outermost ones to lie on
    them.
    """
    gap = np.cumsum(shares(now) - shares(then))[:-1]
    if len(points) < 2:
        return 0.0
    if len(points) == len(now):
        return float((np.diff(points) * np.abs(gap)).sum())
    left, right = np.abs(gap[:-1]), np.abs(gap[1:])
    both = left + right
    # Straight lines between gaps of opposite sign enclose two triangles.
    area = np.where(gap[:-1] * gap[1:] < 0, (left**2 + right**2) / np.where(both > 0, both, 1.0), both)
    return float((np.diff(points) * area).sum() / 2)


def wasserstein_noise(now: Floats, then: Floats, borders: Floats) -> float:
    """What :func:`wasserstein` is on average between samples of one distribution, the reference's."""
    below = np.cumsum(shares(then))[:-1]
    spread = np.sqrt(np.clip(below * (1 - below), 0.0, None))
    area = float((np.diff(borders) * (spread[1:] + spread[:-1])).sum() / 2)
    return math.sqrt(2 / math.pi * size_factor(now, then)) * area


# -- tests ------------------------------------------------------------------------------------------------------------


def kolmogorov_smirnov(now: Floats, then: Floats) -> tuple[float, float]:
    """Largest gap between the distribution functions, and log10 p (Hodges 1958; scipy's ``asymp``, above an effective
    size of 5,000 its limit, which is at most 3 % larger).

    Ties, and so cells, make the true p-value smaller than this one.
    """
    n, m = float(now.sum()), float(then.sum())
    if min(n, m) < 1:
        return 0.0, 0.0
    gap = float(np.abs(np.cumsum(shares(now) - shares(then))).max())
    size = n * m / (n + m)
    large = size > KS_LIMIT_ROWS
    p = kolmogorov(math.sqrt(size) * gap) if large else scipy.stats.kstwo.sf(gap, max(1, round(size)))
    return gap, _log10(float(p))


def cramer_von_mises(now: Floats, then: Floats) -> tuple[float, float]:
    """``T = nm / N^2 sum (F - G)^2`` over the joint sample (Anderson 1962), and log10 p.

    The limit of T under equality is a weighted sum of chi-squared variables; its weights are computed for these cells, so
    a column of three values has as honest a p-value as one without ties (Choulakian, Lockhart and Stephens 1994).
    """
    n, m = float(now.sum()), float(then.sum())
    if min(n, m) < 1:
        return 0.0, 0.0
    both = now + then
    used = both > 0
    weight = both[used] / (n + m)
    gap = np.cumsum(now[used] / n - then[used] / m)
    statistic = n * m / (n + m) * float((weight * gap**2).sum())
    below = np.cumsum(weight)
    covariance = np.minimum.outer(below, below) - np.outer(below, below)
    root = np.sqrt(weight)
    weights = np.linalg.eigvalsh(covariance * np.outer(root, root))
    return statistic, chi_squared_mixture(statistic, weights[weights > 1e-9])


def chi_squared(now: Floats, then: Floats) -> tuple[float, float, int]:
    """Pearson's statistic of the 2 x k table, log10 p and degrees of freedom. Empty cells are left out; cells in which
    either sample expects fewer than 5 rows are one cell."""
    now, then = _merged(now, then)
    n, m = float(now.sum()), float(then.sum())
    if min(n, m) < 1 or len(now) < 2:
        return 0.0, 0.0, 0
    both = (now + then) / (n + m)
    statistic = float(
        ((now - n * both) ** 2 / (n * both)).sum() + ((then - m * both) ** 2 / (m * both)).sum()
    )
    return statistic, _log10(float(chdtrc(len(now) - 1, statistic))), len(now) - 1


def fisher(now: Floats, then: Floats) -> tuple[int, float]:
    """Fisher's exact test: each cell against the rest, two-sided; the cell with the least p-value and its log10, by
    Bonferroni for the number of tables. Two cells are one table."""
    n, m = round(float(now.sum())), round(float(then.sum()))
    cells = np.flatnonzero(now + then > 0)
    if min(n, m) < 1 or len(cells) < 2:
        return 0, 0.0
    tables = cells[:1] if len(cells) == 2 else cells
    found = []
    for cell in tables.tolist():
        a, b = round(float(now[cell])), round(float(then[cell]))
        found.append(exact(a, n, b, m))
    at = int(np.argmin(found))
    return int(tables[at]), min(0.0, found[at] + math.log10(len(tables)))


def exact(a: int, n: int, b: int, m: int) -> float:
    """log10 p of Fisher's exact test, two-sided, for ``a`` of ``n`` rows against ``b`` of ``m``: the chance of all splits
    that are no likelier than this one."""
    low, high = max(0, a + b - m), min(a + b, n)
    if high - low > EXACT_ROWS_MAX:
        return _log10(float(scipy.stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue))
    x = np.arange(low, high + 1, dtype=np.float64)
    ways = -(gammaln(x + 1) + gammaln(a + b - x + 1) + gammaln(n - x + 1) + gammaln(m - a - b + x + 1))
    most = float(ways.max())
    here = float(ways[a - low])
    # Equal chances may differ in their last digits; the margin is scipy's.
    rarer = np.exp(ways[ways <= here + 1e-7] - here).sum()
    log_p = here - most + math.log(float(rarer)) - math.log(float(np.exp(ways - most).sum()))
    return max(LOG10_P_MIN, min(0.0, log_p / math.log(10)))


def as_many(a: float, n: float, b: float, m: float) -> float:
    """log10 of the chance that at least ``a`` of the ``a + b`` rows of a kind are among the ``n``, when ``n + m`` rows are
    split at random: Fisher's exact test, one-sided."""
    return _log10(float(scipy.stats.hypergeom.sf(a - 1, round(n + m), round(a + b), round(n))))


def none_left(b: float, n: float, m: float) -> float:
    """log10 of the chance that all ``b`` rows of a kind are among the ``m`` when ``n + m`` rows are split at random."""
    if b > m:
        return 0.0
    ways = gammaln(n + m - b + 1) - gammaln(m - b + 1) - gammaln(n + m + 1) + gammaln(m + 1)
    return max(LOG10_P_MIN, min(0.0, float(ways) / math.log(10)))


def chi_squared_mixture(value: float, weights: Floats) -> float:
    """log10 of the chance that ``sum w_i Z_i^2`` exceeds ``value``, Z standard normal, by saddlepoint (Kuonen 1999):
    within a few per cent of the probability, far into the tail."""
    if not len(weights) or value <= 0:
        return 0.0
    if len(weights) == 1:
        return _log10(float(chdtrc(1, value / weights[0])))
    mean = float(weights.sum())
    highest = 1 / (2 * float(weights.max()))
    low, high = -len(weights) / (2 * value), highest * (1 - 1e-12)
    for _ in range(100):
        t = (low + high) / 2
        slope = float((weights / (1 - 2 * t * weights)).sum())
        low, high = (t, high) if slope < value else (low, t)
    t = (low + high) / 2
    factor = 1 - 2 * t * weights
    curvature = 2 * float(((weights / factor) ** 2).sum())
    exponent = 2 * (t * value + 0.5 * float(np.log(factor).sum()))
    if abs(value - mean) < 1e-4 * mean or exponent <= 0 or t == 0:
        skew = 8 * float((weights**3).sum()) / (2 * float((weights**2).sum())) ** 1.5
        return math.log10(0.5 - skew / (6 * math.sqrt(2 * math.pi)))
    w = math.copysign(math.sqrt(exponent), t)
    v = t * math.sqrt(curvature)
    return max(LOG10_P_MIN, min(0.0, float(log_ndtr(-(w + math.log(v / w) / w))) / math.log(10)))


def _merged(now: Floats, then: Floats) -> tuple[Floats, Floats]:
    n, m = float(now.sum()), float(then.sum())
    least = (now + then) / max(1.0, n + m) * min(n, m)
    rare = least < EXPECTED_MIN
    if not rare.any():
        return now, then
    now = np.append(now[~rare], now[rare].sum())
    then = np.append(then[~rare], then[rare].sum())
    # A cell for the rare ones that is rare itself joins the smallest of the others.
    if len(now) > 1 and (now[-1] + then[-1]) / max(1.0, n + m) * min(n, m) < EXPECTED_MIN:
        at = int(np.argmin(now[:-1] + then[:-1]))
        now[at], then[at] = now[at] + now[-1], then[at] + then[-1]
        now, then = now[:-1], then[:-1]
    return now, then


def _log10(p: float) -> float:
    return LOG10_P_MIN if p <= 10.0**LOG10_P_MIN else min(0.0, math.log10(p))
