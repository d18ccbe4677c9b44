"""Fingerprints of predictions that had to leave before their window was settled: eight bytes each, twice."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Marks = NDArray[np.uint64]
#: One in the sorted arrays by which it is looked up, one in the piece of state it came with.
FINGERPRINT_BYTES = 16
_PARTS_MAX = 8


class Fingerprints:
    """A set of 64-bit numbers that grows by batches: a few sorted arrays, made one when they are many."""

    def __init__(self) -> None:
        self._parts: list[Marks] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def add(self, marks: Iterable[int] | Marks) -> int:
        """Take marks in; how many of them are new."""
        fresh = np.unique(np.asarray(marks, np.uint64))
        fresh = fresh[~self.contains(fresh)]
        if len(fresh):
            self._parts.append(fresh)
        if len(self._parts) > _PARTS_MAX:
            self._parts = [np.sort(np.concatenate(self._parts))]
        return len(fresh)

    def contains(self, marks: Marks) -> NDArray[np.bool_]:
        """Which of these are in the set."""
        found = np.zeros(len(marks), bool)
        for part in self._parts:
            at = np.minimum(np.searchsorted(part, marks), len(part) - 1)
            found |= part[at] == marks
        return found

    def all(self) -> Marks:
        """All marks, sorted."""
        return np.sort(np.concatenate(self._parts)) if self._parts else np.zeros(0, np.uint64)
