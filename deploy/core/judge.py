"""Is the candidate worse than the stable version, better, or neither yet? Anytime-valid: look as often as you like.

Counts (errors, clicks) are compared as two streams of events: given that an event happened, it is the candidate's with
the candidate's share of the requests if both have the same rate (Lindon, Sanden, Shirikian, "Rapid regression detection
in software deployments through sequential testing", KDD 2022, arXiv 2205.14762). The mixture of the likelihood ratios
over all larger shares is a test martingale, so by Ville's inequality it reaches ``1 / alpha`` with probability at most
``alpha``. The share is the realised one, which is its expectation plus what the router's hash leaves to chance. The
interval of the difference is made of a Beta-mixture confidence sequence for each rate, at ``alpha / 2`` each.

Paired differences (losses on the same requests) have the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha,
Kennedy and Ramdas ("Time-uniform central limit theory", Annals of Statistics 2024). Differences that are all equal say
little: the standard deviation is taken to be at least that of one pair in n that differs by 1. Pairs of one stretch of
time share what they depend on (a day of storms), and taking each for evidence of its own errs far more often than
``alpha``: whoever measures says how many pairs of a block count (``rollout.Metric.block_rows``), which covers what a block
shares up to ``1 / sqrt(block_rows)`` of one pair's deviation, and one block alone shows nothing. The monitor's paired judge
does likewise. Counts need no such care: what moves both versions' rates alike leaves their shares as they are.

Whatever is shown must also have a size that matters: ``effect``. Sparse and tied data show nothing.

>>> rates(7, 10, 0, 10, lower_is_better=True, effect=0.01, alpha=0.05).finding.value
'worse'
>>> rates(1, 10, 1, 10, lower_is_better=True, effect=0.01, alpha=0.05).finding.value
'undecided'
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from scipy.special import betainc, betaln

#: The number of pairs at which the sequence for means is tightest.
TIGHT_AT = 1_000
#: Of paired differences: in fewer blocks nothing can be told from what happened in one of them.
BLOCKS_MIN = 2
_BISECTIONS = 60


class Finding(StrEnum):
    """What the data show of the candidate beside the stable version."""

    WORSE = "worse"
    BETTER = "better"
    NO_WORSE = "no-worse"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Judgement:
    """``difference``: candidate minus stable; ``interval`` its confidence sequence at this moment."""

    finding: Finding
    difference: float
    interval: tuple[float, float]


def rates(
    events: int,
    rows: int,
    reference_events: int,
    reference_rows: int,
    *,
    lower_is_better: bool,
    effect: float,
    alpha: float,
) -> Judgement:
    """Compare ``events`` among ``rows`` of the candidate with the stable version's; all cumulative since the start.

    Events may not outnumber rows. ``effect``: smallest difference of the rates that matters.
    """
    if rows == 0 or reference_rows == 0:
        return Judgement(Finding.UNDECIDED, 0.0, (-1.0, 1.0))
    share = rows / (rows + reference_rows)
    difference = events / rows - reference_events / reference_rows
    low, high = _rate_interval(events, rows, alpha / 2)
    reference_low, reference_high = _rate_interval(reference_events, reference_rows, alpha / 2)
    interval = (low - reference_high, high - reference_low)
    matters = abs(difference) >= effect
    if _more_often(events, reference_events, share) >= 1 / alpha:
        interval = (max(interval[0], 0.0), interval[1])
        above = matters
    else:
        above = False
    if _more_often(reference_events, events, 1 - share) >= 1 / alpha:
        interval = (interval[0], min(interval[1], 0.0))
        below = matters
    else:
        below = False
    return Judgement(_finding(above, below, interval, lower_is_better, effect), difference, interval)


def pairs(
    count: int, mean: float, sd: float, *, lower_is_better: bool, effect: float, alpha: float
) -> Judgement:
    """Judge ``count`` paired differences in [-1, 1], candidate minus stable, by their mean and standard deviation."""
    if count < 2:
        return Judgement(Finding.UNDECIDED, mean, (-1.0, 1.0))
    spread = max(sd, 1 / math.sqrt(count))
    rho2 = (2 * math.log(1 / alpha) + math.log(1 + 2 * math.log(1 / alpha))) / TIGHT_AT
    scale = count * rho2 + 1
    half = spread * math.sqrt(2 * scale / (count * count * rho2) * math.log(math.sqrt(scale) / alpha))
    interval = (max(-1.0, mean - half), min(1.0, mean + half))
    above = interval[0] > 0 and mean >= effect
    below = interval[1] < 0 and -mean >= effect
    return Judgement(_finding(above, below, interval, lower_is_better, effect), mean, interval)


def _finding(
    above: bool, below: bool, interval: tuple[float, float], lower_is_better: bool, effect: float
) -> Finding:
    worse, better = (above, below) if lower_is_better else (below, above)
    no_worse = interval[1] < effect if lower_is_better else interval[0] > -effect
    if worse:
        return Finding.WORSE
    if better:
        return Finding.BETTER
    return Finding.NO_WORSE if no_worse else Finding.UNDECIDED


def _more_often(mine: int, theirs: int, share: float) -> float:
    """E-value against "each event is mine with probability ``share`` at most": uniform mixture over larger shares."""
    beyond = float(betainc(theirs + 1, mine + 1, 1 - share))
    if beyond <= 0:
        return 0.0
    null = mine * math.log(share) + theirs * math.log(1 - share)
    log_e = float(betaln(mine + 1, theirs + 1)) + math.log(beyond) - math.log(1 - share) - null
    return math.exp(min(log_e, 600.0))


def _rate_interval(events: int, rows: int, alpha: float) -> tuple[float, float]:
    """The rates p whose likelihood is above ``alpha`` times that of the uniform mixture of all rates."""
    bound = float(betaln(events + 1, rows - events + 1)) + math.log(alpha)

    def inside(p: float) -> bool:
        likelihood = (events * math.log(p) if events else 0.0) + (
            (rows - events) * math.log1p(-p) if rows > events else 0.0
        )
        return likelihood > bound

    best = events / rows
    low = 0.0 if events == 0 else _edge(inside, best if events < rows else 1 - 1e-12, 0.0)
    high = 1.0 if events == rows else _edge(inside, best if events else 1e-12, 1.0)
    return low, high


def _edge(inside: Callable[[float], bool], within: float, without: float) -> float:
    """Where ``inside`` ends between a point within and one without."""
    for _ in range(_BISECTIONS):
        middle = (within + without) / 2
        if inside(middle):
            within = middle
        else:
            without = middle
    return without
