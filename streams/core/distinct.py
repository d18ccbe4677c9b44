"""The distinct codes of many rows, without sorting them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def distinct(codes: Ints) -> tuple[Ints, Ints]:
    """The distinct codes (from 0 on), ascending, and for each of ``codes`` its place among them."""
    most = int(codes.max(initial=0)) + 1
    if most > 4 * len(codes) + 4_096:
        found, place = np.unique(codes, return_inverse=True)
        return found, place.astype(np.int64)
    there = np.zeros(most, bool)
    there[codes] = True
    found = np.flatnonzero(there)
    place = np.zeros(most, np.int64)
    place[found] = np.arange(len(found))
    return found, place[codes]
