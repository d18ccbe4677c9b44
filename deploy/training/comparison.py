"""Which of two answers to the same rows was better, beyond doubt? Pure.

Rows of one day share its weather, its campaign, its outage; taking them for independent makes any difference look
certain. So the unit of evidence is a block of event time (a day by default): the mean paired difference of losses is a
ratio of sums over blocks, its standard error is that of the blocks, and its interval that of Student's t with as many
degrees of freedom as blocks but one (cluster-robust inference with few clusters: Cameron and Miller 2015, Journal of Human
Resources 50). Blocks are taken to be independent of each other: where bad days come in rows, state a longer block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.contracts import Training
from schemas.reference import log_losses


class Verdict(StrEnum):
    """What the interval says. Undecided covers too few blocks, and a gain too small to matter."""

    BETTER = "better"
    UNDECIDED = "undecided"
    WORSE = "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Log losses of a candidate and of what it is compared with, on the same ``rows`` in ``blocks`` of event time.

    ``difference``: candidate - other, in nats; ``low`` and ``high`` bound it with the stated confidence (two-sided).
    ``effect``: the smallest difference that matters. ``blocks_better``: in how many blocks the candidate lost less.
    """

    rows: int
    blocks: int
    candidate_loss: float
    other_loss: float
    difference: float
    low: float
    high: float
    effect: float
    blocks_better: int
    verdict: Verdict

    def describe(self) -> str:
        """In one line, for facts and reports."""
        bounds = f", between {self.low:+.4f} and {self.high:+.4f}" if math.isfinite(self.low) else ""
        return (
            f"log loss {self.candidate_loss:.4f} against {self.other_loss:.4f} on {self.rows} held-out rows in "
            f"{self.blocks} blocks ({self.blocks_better} of them better): {self.difference:+.4f}{bounds}; "
            f"{self.effect:.4f} matters: {self.verdict}"
        )

    def document(self) -> dict[str, Any]:
        """As JSON types; a bound that is not known is null."""
        names = ("rows", "blocks", "candidate_loss", "other_loss", "difference", "low", "high", "effect", "blocks_better")  # fmt: skip
        found = {name: getattr(self, name) for name in names}
        return {n: v if math.isfinite(v) else None for n, v in found.items()} | {
            "verdict": self.verdict.value
        }


def compare(
    labels: NDArray[Any],
    candidate: NDArray[Any],
    other: NDArray[Any],
    event_ms: NDArray[np.int64],
    rules: Training,
) -> Comparison | None:
    """Compare two columns of scores ``(n,)`` for the same rows. Rows without a score of the other (NaN) do not count; None
    when there are no others."""
    known = np.isfinite(other)
    rows = int(known.sum())
    if not rows:
        return None
    mine, theirs = log_losses(candidate[known], labels[known]), log_losses(other[known], labels[known])
    _, block_of = np.unique(np.asarray(event_ms)[known] // rules.block, return_inverse=True)
    blocks = int(block_of.max()) + 1
    sums = np.bincount(block_of, weights=mine - theirs, minlength=blocks)
    counts = np.bincount(block_of, minlength=blocks)
    difference = float(sums.sum() / rows)
    low, high = _interval(sums, counts, difference, rules)
    effect = rules.effect_min * float(theirs.mean())
    if low > 0:
        verdict = Verdict.WORSE
    elif high < 0 and difference <= -effect:
        verdict = Verdict.BETTER
    else:
        verdict = Verdict.UNDECIDED
    return Comparison(
        rows, blocks, float(mine.mean()), float(theirs.mean()), difference, low, high, effect,
        int((sums < 0).sum()), verdict,
    )  # fmt: skip


def _interval(sums: NDArray[Any], counts: NDArray[Any], mean: float, rules: Training) -> tuple[float, float]:
    from scipy.stats import t

    blocks = len(sums)
    if blocks < rules.blocks_min:
        return -math.inf, math.inf
    residuals = sums - mean * counts
    error = math.sqrt(blocks / (blocks - 1) * float(residuals @ residuals)) / float(counts.sum())
    reach = float(t.ppf(0.5 + rules.confidence / 2.0, blocks - 1)) * error
    return mean - reach, mean + reach
