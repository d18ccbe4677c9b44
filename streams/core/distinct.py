"""The distinct codes of many rows, without sorting them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.json_text import Whole

Ints = NDArray[np.int64]


def few(codes: int, rows: int) -> bool:
    """Whether so many codes, of which not all need be there, are few enough beside so many rows to have a place each."""
    return codes <= 4 * rows + 4_096


def distinct(codes: Ints) -> tuple[Ints, Ints]:
    """The distinct codes (from 0 on), ascending, and for each of ``codes`` its place among them."""
    most = int(codes.max(initial=0)) + 1
    if not few(most, len(codes)):
        found, place = np.unique(codes, return_inverse=True)
        return found, place.astype(np.int64)
    places, found, of_row = np.zeros(most, np.int64), np.empty(most, np.int64), np.empty(len(codes), np.int64)
    count = _distinct(np.ascontiguousarray(codes), places, found, of_row)
    return found[:count], of_row


@compiled
def _distinct(codes: Ints, places: Ints, found: Ints, of_row: Ints) -> Whole:
    """How many there are. ``places``: zeros, one for each code that there may be."""
    for i in range(len(codes)):
        places[codes[i]] = 1
    count = 0
    for code in range(len(places)):
        if places[code]:
            places[code], found[count] = count, code
            count += 1
    for i in range(len(codes)):
        of_row[i] = places[codes[i]]
    return count
