"""Predictions that had to leave the index before their window was settled, by the fingerprints they left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.core.evicted import Fingerprints, Marks
from streams.core.join_kinds import Kinds, key_marks
from streams.core.join_state import WindowKey


class Gone(dict[WindowKey, Fingerprints]):
    """Fingerprints by window, ``count`` of them. With ``roles`` each prediction id has one more, whatever its role."""

    def __init__(self, kinds: Kinds) -> None:
        super().__init__()
        self.count = 0
        self.roles = False
        self._kinds = kinds

    def mark(self, window: WindowKey, marks: Marks) -> None:
        """Know evicted rows of a window by these."""
        held = self.get(window)
        if held is None:
            held = self[window] = Fingerprints()
        self.count += held.add(marks)

    def forget(self, window: WindowKey) -> int:
        """Let a window's go; how many."""
        held = self.pop(window, None)
        if held is None:
            return 0
        self.count -= len(held)
        return len(held)

    def marks(
        self, key: NDArray[np.uint64], check: NDArray[np.uint32], codes: NDArray[Any]
    ) -> list[tuple[WindowKey, Marks]]:
        """By which rows that leave are to be known."""
        marks = self._kinds.marks(key, check, codes)
        found = []
        for window, own in self._kinds.by_window(codes):
            left = marks[own]
            if self.roles:
                left = np.concatenate([left, key_marks(key[own], check[own])])
            found.append((window, left))
        return found

    def were_here(
        self, key: NDArray[np.uint64], check: NDArray[np.uint32], codes: NDArray[Any]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Of rows that come, which were here before; and which were not, but another role of theirs was."""
        same, other = np.zeros(len(key), bool), np.zeros(len(key), bool)
        if self.count:
            marks, ids = self._kinds.marks(key, check, codes), key_marks(key, check)
            for code in np.unique(codes).tolist():
                held = self.get(self._kinds[code].window)
                if held is not None:
                    mine = codes == code
                    same[mine] = held.contains(marks[mine])
                    if self.roles:
                        other[mine] = ~same[mine] & held.contains(ids[mine])
        return same, other

    def of_model(self, model: str, key: NDArray[np.uint64], check: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which predictions of a model were here, in any role."""
        found, marks = np.zeros(len(key), bool), key_marks(key, check)
        for window, held in self.items():
            if window.model == model:
                found |= held.contains(marks)
        return found
