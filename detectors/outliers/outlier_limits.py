"""How many outliers a window may hold by chance: limits from the reference's size, its bursts, and the false-page budget.

With j of m reference scores above a bound, the true share above it is Beta(j + 1, m - j) whatever the scores' distribution
(Wilks, "Determination of sample sizes for setting tolerance limits", 1941); ``rate_upper`` is its upper end. Outliers of
real streams come in bursts (a storm is an hour of them), so the reference's own scores in time order say how much one
outlier makes another likely in the same window, and the count of a window is beta-binomial with that correlation (Skellam,
"A probability distribution derived from the binomial distribution", 1948).

>>> binomial_bound(500, 0.02, 1e-6), beta_binomial_bound(500, 0.02, 0.01, 1e-6)
(29, 86)
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from detectors.base import Context

Floats = NDArray[np.float64]
#: Tail of a window without drift when there is no budget, or no traffic to turn it into windows; and the most it may be.
TAIL_DEFAULT = 1e-6
TAIL_MAX = 1e-3
#: Least scores among which bursts are looked for, so that there are pairs to count.
_HIGH_MIN = 20
#: Standard deviations by which pairs must outnumber chance, else there are no bursts; and least groups to compare.
_BURST_SIGMA = 3.0
_GROUPS_MIN = 10


def _log_ways(rows: int, count: int) -> float:
    return math.lgamma(rows + 1) - math.lgamma(count + 1) - math.lgamma(rows - count + 1)


@lru_cache(maxsize=4_096)
def binomial_bound(rows: int, share: float, tail: float) -> int:
    """Smallest count whose upper tail probability under Binomial(rows, share) is at most ``tail``."""
    log_p, log_q = math.log(share), math.log1p(-share)
    total = 0.0
    for count in range(rows, -1, -1):
        total += math.exp(_log_ways(rows, count) + count * log_p + (rows - count) * log_q)
        if total > tail:
            return count + 1
    return 0


@lru_cache(maxsize=4_096)
def beta_binomial_bound(rows: int, share: float, correlation: float, tail: float) -> int:
    """As ``binomial_bound`` for a count whose rows have ``correlation`` with each other; 0: the binomial's."""
    if correlation <= 0:
        return binomial_bound(rows, share, tail)
    weight = (1 - correlation) / correlation
    a, b = share * weight, (1 - share) * weight
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    total = 0.0
    for count in range(rows, -1, -1):
        log_mass = math.lgamma(count + a) + math.lgamma(rows - count + b) - math.lgamma(rows + a + b)
        total += math.exp(_log_ways(rows, count) + log_mass - log_beta)
        if total > tail:
            return count + 1
    return 0


@lru_cache(maxsize=4_096)
def rate_upper(above: int, rows: int, delta: float) -> float:
    """Upper 1 - ``delta`` bound of the share above a threshold that ``above`` of ``rows`` exceed (Clopper, Pearson 1934)."""
    if above >= rows:
        return 1.0
    ways = [_log_ways(rows, count) for count in range(above + 1)]
    low, high = above / rows, 1.0
    for _ in range(60):
        share = (low + high) / 2
        logs = (
            way + count * math.log(share) + (rows - count) * math.log1p(-share)
            for count, way in enumerate(ways)
        )
        if share < 1.0 and sum(map(math.exp, logs)) > delta:
            low = share
        else:
            high = share
    return high


def burst_correlation(scores: Floats, group_rows: float, share: float) -> float:
    """Correlation between two rows of one stretch of ``group_rows`` in being of the highest ``share``, from scores ``(m,)``
    in time order; 0 unless pairs in a stretch clearly outnumber chance. Stretches are cut so that there are ten at least.
    """
    group = max(2, min(round(group_rows), len(scores) // _GROUPS_MIN))
    groups = len(scores) // group
    if groups < _GROUPS_MIN:
        return 0.0
    part = scores[: groups * group]
    high = part > np.quantile(part, 1 - min(0.5, max(share, _HIGH_MIN / len(part))))
    found = float(high.mean())
    counts = high.reshape(groups, group).sum(axis=1)
    ways = groups * group * (group - 1) / 2
    pairs, chance = float((counts * (counts - 1)).sum()) / 2, ways * found**2
    if pairs <= chance + _BURST_SIGMA * math.sqrt(chance) + 1:
        return 0.0
    return min(0.99, (pairs / ways - found**2) / (found * (1 - found)))


def tail_of(context: Context, window_rows: int) -> float:
    """Chance of a false drift a window that keeps ``context``'s budget at the traffic of its reference."""
    rows = context.budget_rows
    return TAIL_DEFAULT if rows is None else min(TAIL_MAX, window_rows / rows)
