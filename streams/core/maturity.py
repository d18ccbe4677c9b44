"""What a partial figure needs to be corrected: when labels of each class came, and what each class lost.

Labels do not come at random: a flight that is late is also late to say so. So each cell keeps, of positive and negative
labels apart, how long after the window's start they came, and the sums of losses. The views of the warehouse make the rest
of these integers: how much of each class is in at a given age, and what is still to come (``schemas/clickhouse``).

A delay is counted once, when a prediction has its first label, under the class that label said: a revision moves the
outcome, not the time at which it was first known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.rows import DELAY_GAMMA, NANO
from streams.core.aggregates import Cell
from streams.core.outcomes import OutcomeRows

Ints = NDArray[np.int64]
_LOG_GAMMA = np.log(DELAY_GAMMA)


def delay_bucket(delay_ms: Ints) -> Ints:
    """Bucket of each delay: b holds (GAMMA**(b-1), GAMMA**b] milliseconds, one millisecond and less fall in 0."""
    raw: Ints = np.ceil(np.log(np.maximum(delay_ms, 1)) / _LOG_GAMMA).astype(np.int64)
    return raw


def count_labels(
    cells: Sequence[Cell], starts_ms: Ints, member: Ints, outcomes: OutcomeRows, losses_nano: Ints
) -> None:
    """Add row i of ``outcomes`` to each of the cells ``cells[member[i, :]]``, whose windows begin at ``starts_ms``."""
    positive = outcomes.label == 1.0
    losses = np.where(positive, losses_nano * outcomes.sign, 0)
    brier = np.rint((np.clip(outcomes.score, 0.0, 1.0) - 1.0) ** 2 * NANO).astype(np.int64)
    briers = np.where(positive, brier * outcomes.sign, 0)
    first = (outcomes.sign > 0) & (outcomes.replaces == 0)
    buckets = delay_bucket(outcomes.label_time_ms - starts_ms[member[:, 0]])
    n, unset = len(cells), np.iinfo(np.int64)
    loss_of, brier_of = np.zeros(n, np.int64), np.zeros(n, np.int64)
    earliest, latest = np.full(n, unset.max), np.full(n, unset.min)
    for column in member.T:
        np.add.at(loss_of, column, losses)
        np.add.at(brier_of, column, briers)
        np.minimum.at(earliest, column, outcomes.label_time_ms)
        np.maximum.at(latest, column, outcomes.label_time_ms)
        code = (column << 17 | buckets << 1 | positive)[first]
        for pair, times in zip(*map(np.ndarray.tolist, np.unique(code, return_counts=True)), strict=True):
            kept, bucket = cells[pair >> 17].outcomes, pair >> 1 & 0xFFFF
            delays = kept.positive_delays if pair & 1 else kept.negative_delays
            delays[bucket] = delays.get(bucket, 0) + times
    for at, cell in enumerate(cells):
        kept = cell.outcomes
        kept.positive_log_loss_nano += int(loss_of[at])
        kept.positive_brier_nano += int(brier_of[at])
        seen_ms = kept.first_label_ms or unset.max
        kept.first_label_ms = min(seen_ms, int(earliest[at]))
        kept.last_label_ms = max(kept.last_label_ms, int(latest[at]))
