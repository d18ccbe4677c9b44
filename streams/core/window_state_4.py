"""Cells as windows of schema 4 stored them, read when a monitor of this code takes over the state of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from streams.core.aggregates import Cell, unpack, unpacked
from streams.core.layouts import (
    HEAD,
    INVALID,
    LEAST,
    LOWER,
    MISSING,
    MOST,
    OTHER,
    ROWS,
    UPPER,
    Ints,
    Layout,
    Part,
)


class Named(Protocol):
    """Layouts by name."""

    def __getitem__(self, name: str) -> Layout: ...


def cell_of_4(stored: Sequence[Any], layouts: Named) -> Cell:
    """A cell from its counts, outcomes, the name of its layout, which knows no categories, and what was counted of its features.

    Raises what is raised when that is something else.
    """
    counts, outcomes, layout, features = stored
    cell = Cell()
    *numbers, cell.latencies, scores = counts
    cell.counts = np.concatenate([np.array(numbers, np.int64), unpacked(scores)])
    found = unpack(outcomes)
    found.predictions = 0
    cell.outcomes = found if len(outcomes) > 1 else None
    if layout:
        parts = []
        for part, (*_, categories) in zip(layouts[layout].parts, features, strict=True):
            names = tuple(name for name in categories if name != OTHER)
            parts.append(part._replace(categories=(*names, OTHER)) if categories else part)
        cell.layout = _layout(tuple(parts))
        cell.sums = cell.layout.empty.copy()
        for place, of in enumerate(features):
            _fill(cell.layout.of(cell.sums, place), parts[place], of)
    return cell


@lru_cache(maxsize=1_024)
def _layout(parts: tuple[Part, ...]) -> Layout:
    return Layout(parts)


def _fill(sums: Ints, part: Part, stored: Sequence[Any]) -> None:
    rows, missing, invalid, sum_micro, low, high, histogram, categories = stored
    total = int(sum_micro)
    sums[[ROWS, MISSING, INVALID, UPPER, LOWER]] = rows, missing, invalid, total >> 32, total & 0xFFFFFFFF
    sums.view(np.float64)[[LEAST, MOST]] = low, high
    if part.categories:
        sums[HEAD:] = [categories.get(name, 0) for name in part.categories]
    else:
        sums[HEAD:] = unpacked(histogram)
