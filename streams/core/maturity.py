"""What a partial figure needs to be corrected: when labels of each class came, and what each class lost.

Labels do not come at random: a flight that is late is also late to say so. So each cell keeps, of positive and negative
labels apart, how long after the window's start they came, and the sums of losses. The views of the warehouse make the rest
of these integers: how much of each class is in at a given age, and what is still to come (``schemas/clickhouse``).

A delay is counted once, when a prediction has its first label, under the class that label said: a revision moves the
outcome, not the time at which it was first known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.rows import DELAY_GAMMA

Ints = NDArray[np.int64]
_LOG_GAMMA = np.log(DELAY_GAMMA)


def delay_bucket(delay_ms: Ints) -> Ints:
    """Bucket of each delay: b holds (GAMMA**(b-1), GAMMA**b] milliseconds, one millisecond and less fall in 0."""
    raw: Ints = np.ceil(np.log(np.maximum(delay_ms, 1)) / _LOG_GAMMA).astype(np.int64)
    return raw
