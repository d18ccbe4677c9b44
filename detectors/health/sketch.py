"""Quantiles of a positive quantity in bounded memory, with a relative error that is stated.

Cells grow by ``gamma = (1 + a) / (1 - a)``: every value of a cell lies within ``a`` of the value that is answered for it
(Masson, Rim and Lee, "DDSketch", VLDB 2019). Values below ``LOW`` share the first cell and those above ``HIGH`` the
last, so there are at most ``CELLS`` of them. Counts are integers by cell: the order of rows cannot show, and sketches
of parts add up.

>>> import numpy as np
>>> cells = cells_of(np.arange(1, 1001, dtype=float))
>>> counts = dict(zip(*(part.tolist() for part in np.unique(cells, return_counts=True))))
>>> abs(quantile(counts, 0.99) / 990 - 1) <= RELATIVE_ERROR
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

RELATIVE_ERROR = 0.01
LOW, HIGH = 1e-3, 1e9
_LOG_GAMMA = math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
CELLS = math.ceil(math.log(HIGH / LOW) / _LOG_GAMMA) + 1


def cells_of(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The cell of each finite value, shape ``(n,)``."""
    inside = np.clip(values, LOW, HIGH)
    return np.asarray(np.ceil(np.log(inside / LOW) / _LOG_GAMMA), np.int64)


def value_of(cell: int) -> float:
    """The value answered for a cell: all of its values lie within ``RELATIVE_ERROR`` of it, but for the first and last."""
    return LOW * math.exp((cell - 1) * _LOG_GAMMA) * 2 / (1 + math.exp(-_LOG_GAMMA))


def quantile(counts: Mapping[int, int], probability: float) -> float:
    """Within ``RELATIVE_ERROR`` of the value at rank ``floor(probability (n - 1))`` from below; 0.0 of nothing."""
    total = sum(counts.values())
    rank = math.floor(probability * (total - 1))
    seen = 0
    for cell in sorted(counts):
        seen += counts[cell]
        if seen > rank:
            return value_of(cell)
    return 0.0
