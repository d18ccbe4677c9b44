"""Is a share of rows above what the reference allows? Binomial tails by Chernoff's bound, in nats.

``P(Bin(n, p) >= c) <= exp(-n KL(c/n || p))`` for ``c/n >= p``: an upper bound at every n, without special functions, so
"nats of evidence against a rate of at most p" are comparable over checks, columns and block sizes, and a threshold of
``ln(1 / tail)`` bounds the chance that rows drawn one by one cross it. (Chernoff 1952; Hoeffding 1963, theorem 1.)

>>> round(rate_nats(9, 100, 0.02), 2)
6.79
>>> round(rate_upper(0.0, 1000, 6.9), 4)
0.0069
"""

from __future__ import annotations

import math
from functools import lru_cache

#: What is impossible counts this much: verdicts hold finite numbers only.
NATS_MAX = 1e6


def kl_bernoulli(p: float, q: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(p) from Bernoulli(q), nats; infinite where q excludes what p allows."""
    total = 0.0
    for mine, theirs in ((p, q), (1 - p, 1 - q)):
        if mine > 0:
            if theirs <= 0:
                return math.inf
            total += mine * math.log(mine / theirs)
    return max(0.0, total)


def rate_nats(count: int, rows: int, rate: float) -> float:
    """Evidence of ``count`` in ``rows`` against a rate of at most ``rate``; 0 where there is none."""
    share = count / rows if rows else 0.0
    return 0.0 if share <= rate else min(NATS_MAX, rows * kl_bernoulli(share, rate))


@lru_cache(maxsize=16_384)
def rate_upper(share: float, rows: int, nats: float) -> float:
    """Upper confidence bound of the rate behind ``share`` of ``rows``: wrong with probability at most ``exp(-nats)``."""
    if rows <= 0:
        return 1.0
    low, high = share, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if rows * kl_bernoulli(share, middle) < nats:
            low = middle
        else:
            high = middle
    return high
