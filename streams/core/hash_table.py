"""A hash table over rows that live in somebody else's columns: whole batches are found, claimed and dropped at once.

Open addressing with linear probing, compiled. A slot takes four bytes: a row, -1 (free) or -2 (its row was dropped).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, fetch_early
from schemas.json_text import Whole

Rows = NDArray[np.int64]
Keys = NDArray[np.uint64]
Checks = NDArray[np.uint32]
Slots = NDArray[np.int32]

_EMPTY = -1
#: Slots and rows lie all over memory, and to wait for one costs more than to look at it: so many keys ahead of its turn a key's
#: slot is sent for, and so many ahead so many of the rows that are in it and behind it.
_SLOTS_AHEAD, _ROWS_AHEAD, _ROWS_FETCHED = 32, 16, 3
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
        found = np.empty(len(key), np.int64)
        _find(self._slots, key, check, keys, checks, found)
        return found

    def claim(self, first: int, end: int, keys: Keys, checks: Checks) -> Rows:
        """Enter the rows from ``first`` to below ``end`` whose key is not there; for each the row that has its key already, -1
        where it is now this one.

        Of equal keys the first gets in, and is what the others find. There must be room.
        """
        other = np.empty(end - first, np.int64)
        self._taken += _claim(self._slots, first, keys, checks, other)
        return other

    def drop(self, key: Keys, row: Rows) -> None:
        """Take out rows that are there under these keys."""
        _drop(self._slots, key, row)

    def replace(self, key: int, row: int, by: int) -> None:
        """``by`` takes the place of ``row``."""
        _replace(self._slots, np.uint64(key), row, by)


@compiled
def _shift(slots: Slots) -> np.uint64:
    """By how much a spread key is shifted to be a place."""
    bits = 0
    while 1 << bits < len(slots):
        bits += 1
    return np.uint64(64 - bits)


@compiled
def _place(key: np.uint64, shift: np.uint64) -> Whole:
    """Where a key is looked for first."""
    spread = (key ^ key >> np.uint64(32)) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(spread >> shift)


@compiled
def _slot_of(slots: Slots, place: int, key: np.uint64, check: np.uint32, keys: Keys, checks: Checks) -> Whole:
    """The slot that has this key's row, or the free one where it would be, from ``place`` on."""
    at = slots[place]
    while at != -1 and not (at >= 0 and keys[at] == key and checks[at] == check):
        place = (place + 1) & (len(slots) - 1)
        at = slots[place]
    return place


@compiled
def _find(slots: Slots, key: Keys, check: Checks, keys: Keys, checks: Checks, found: Rows) -> None:
    shift, n = _shift(slots), len(key)
    for i in range(-_SLOTS_AHEAD, n):
        if i + _SLOTS_AHEAD < n:
            fetch_early(slots, _place(key[i + _SLOTS_AHEAD], shift))
        if 0 <= i + _ROWS_AHEAD < n:
            _fetch_row(slots, _place(key[i + _ROWS_AHEAD], shift), keys, checks)
        if i >= 0:
            found[i] = slots[_slot_of(slots, _place(key[i], shift), key[i], check[i], keys, checks)]


@compiled
def _claim(slots: Slots, first: int, keys: Keys, checks: Checks, other: Rows) -> Whole:
    shift, entered, n = _shift(slots), 0, len(other)
    for i in range(-_SLOTS_AHEAD, n):
        if i + _SLOTS_AHEAD < n:
            fetch_early(slots, _place(keys[first + i + _SLOTS_AHEAD], shift))
        if 0 <= i + _ROWS_AHEAD < n:
            _fetch_row(slots, _place(keys[first + i + _ROWS_AHEAD], shift), keys, checks)
        if i < 0:
            continue
        key = keys[first + i]
        place = _slot_of(slots, _place(key, shift), key, checks[first + i], keys, checks)
        other[i] = slots[place]
        if other[i] == -1:
            slots[place] = first + i
            entered += 1
    return entered


@compiled
def _fetch_row(slots: Slots, place: int, keys: Keys, checks: Checks) -> None:
    """The first rows that will be looked at: the key that is looked for may be behind those of others."""
    for _ in range(_ROWS_FETCHED):
        if slots[place] < 0:
            break
        fetch_early(keys, slots[place])
        fetch_early(checks, slots[place])
        place = (place + 1) & (len(slots) - 1)


@compiled
def _drop(slots: Slots, key: Keys, row: Rows) -> None:
    for i in range(len(key)):
        _replace(slots, key[i], row[i], -2)


@compiled
def _replace(slots: Slots, key: np.uint64, row: int, by: int) -> None:
    place = _place(key, _shift(slots))
    while slots[place] != row:
        place = (place + 1) & (len(slots) - 1)
    slots[place] = by
