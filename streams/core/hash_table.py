"""A hash table over rows that live in somebody else's columns: whole batches are found, claimed and dropped at once.

Open addressing with linear probing, in numpy: each round looks at one slot of every key that is still undecided, so a
batch takes as many rounds as its unluckiest key and almost all of them are small. A slot takes four bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Keys = NDArray[np.uint64]
Checks = NDArray[np.uint32]

_EMPTY, _DROPPED = -1, -2
#: Slots for each row there is room for: at half of them taken, a key is found in one or two looks.
SLOTS_PER_ROW = 2
SLOT_BYTES = 4


class HashTable:
    """From a key of 64 bits and a check of 32 to a row. ``keys`` and ``checks`` are the columns rows point into."""

    def __init__(self) -> None:
        self._slots = np.full(64, _EMPTY, np.int32)
        self._taken = 0

    def has_room(self, rows: int) -> bool:
        """Whether so many more can be claimed."""
        return (self._taken + rows) * SLOTS_PER_ROW <= len(self._slots)

    def clear(self, rows: int) -> None:
        """Forget everything, with room for ``rows`` rows."""
        self._slots = np.full(max(64, 1 << (rows * SLOTS_PER_ROW - 1).bit_length()), _EMPTY, np.int32)
        self._taken = 0

    def find(self, key: Keys, check: Checks, keys: Keys, checks: Checks) -> Rows:
        """The row of each key, -1 where there is none; shape (n,)."""
        slots, mask = self._slots, len(self._slots) - 1
        place = self._places(key)
        at = slots[place]
        found = np.where((at >= 0) & (keys[at] == key) & (checks[at] == check), at, -1).astype(np.int64)
        todo = np.flatnonzero((found < 0) & (at != _EMPTY))
        while len(todo):
            place[todo] = (place[todo] + 1) & mask
            at = slots[place[todo]]
            same = (at >= 0) & (keys[at] == key[todo]) & (checks[at] == check[todo])
            found[todo[same]] = at[same]
            todo = todo[~same & (at != _EMPTY)]
        return found

    def claim(self, key: Keys, check: Checks, row: Rows, keys: Keys, checks: Checks) -> Rows:
        """Enter ``row[i]`` for each key that is not there; the row that has it already, -1 where it is now ``row[i]``.

        Of equal keys the first gets in, and is what the others find. There must be room.
        """
        slots, mask = self._slots, len(self._slots) - 1
        other = np.full(len(key), -1, np.int64)
        place = self._places(key)
        todo = np.arange(len(key))
        while len(todo):
            here = place[todo]
            at = slots[here]
            free = np.flatnonzero(at == _EMPTY)
            if len(free):
                # Of two that want the same slot the one written last has it: that must be the first.
                slots[here[free][::-1]] = row[todo[free][::-1]]
                at = slots[here]
            mine = at == row[todo]
            same = ~mine & (at >= 0) & (keys[at] == key[todo]) & (checks[at] == check[todo])
            other[todo[same]] = at[same]
            todo = todo[~mine & ~same]
            place[todo] = (place[todo] + 1) & mask
        self._taken += int(np.count_nonzero(other < 0))
        return other

    def drop(self, key: Keys, row: Rows) -> None:
        """Take out rows that are there under these keys."""
        slots, mask = self._slots, len(self._slots) - 1
        place = self._places(key)
        todo = np.arange(len(key))
        while len(todo):
            here = slots[place[todo]] == row[todo]
            slots[place[todo[here]]] = _DROPPED
            todo = todo[~here]
            place[todo] = (place[todo] + 1) & mask

    def replace(self, key: int, row: int, by: int) -> None:
        """``by`` takes the place of ``row``."""
        slots, mask = self._slots, len(self._slots) - 1
        place = int(self._places(np.array([key], np.uint64))[0])
        while slots[place] != row:
            place = (place + 1) & mask
        slots[place] = by

    def _places(self, key: Keys) -> Rows:
        spread = (key ^ key >> np.uint64(32)) * np.uint64(0x9E3779B97F4A7C15)
        return (spread >> np.uint64(65 - len(self._slots).bit_length())).astype(np.int64)
