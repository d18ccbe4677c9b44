"""Where values lie among ascending borders: the cells of histograms and of detectors, found by compiled code.

The range of the borders is cut into equal steps, and a table says how many borders lie in the steps before each; so a value is
compared with the few of its own step, as often as the fullest step asks for: no branch depends on it that no processor foresees,
as those of bisection do. Where only counts are wanted and borders are few, how many values reach each is counted instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, inlined
from schemas.json_text import Whole

STEPS = 512
#: With no more borders than this it is cheaper to compare all values with each.
_REACHED_MAX = 24
_AT_HAND = 2_048
Floats = NDArray[np.float64]


class Edges:
    """Ascending borders: ``edges (m + 1,)``, infinity behind them. ``before (STEPS,)``: how many of them lie in the steps of
    their range before each, ``scale`` steps to the unit from ``first`` on; ``looks``: how many lie in one step at most. Which
    step a value is in is monotone in the value, rounding included."""

    __slots__ = ("before", "edges", "first", "looks", "scale")

    def __init__(self, edges: Sequence[float] | Floats) -> None:
        self.edges: Floats = np.append(np.array(edges, np.float64), np.inf)
        borders = self.edges[:-1]
        span = float(borders[-1]) - float(borders[0]) if len(borders) > 1 else 0.0
        scale = (STEPS - 1) / span if 0 < span < math.inf else 0.0
        #: Where the edges are no range to be cut, all lie in one step.
        self.scale = scale if math.isfinite(scale) else 0.0
        self.first = float(borders[0]) if self.scale else 0.0
        steps = np.zeros(len(borders), np.int64)
        if self.scale:
            steps = ((borders - self.first) * self.scale).astype(np.int64)
        counts: Any = np.bincount(steps, minlength=STEPS)
        self.before: NDArray[np.int64] = np.cumsum(counts) - counts
        self.looks = int(counts.max())

    @property
    def table(self) -> tuple[Floats, NDArray[np.int64], float, float, int]:
        """What ``place_of`` needs beside a value."""
        return self.edges, self.before, self.first, self.scale, self.looks

    def places(self, values: Floats, none: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """How many borders are at or below each of ``values (n,)``: ``searchsorted(borders, values, "right")``; ``none`` for what
        is no finite number. ``into (n,)``: where to."""
        found = np.empty(len(values), np.int64) if into is None else into
        _places(values, *self.table, none, found)
        return found

    def count(self, values: Floats, into: NDArray[np.int64]) -> int:
        """Add each of ``values (n,)`` to its cell of ``into (m + 1,)``; how many of them are no finite numbers."""
        if len(self.edges) <= _REACHED_MAX and values.flags.c_contiguous:
            reached = np.zeros(len(self.edges) + 1, np.int64)
            count: int = _reached(values, self.edges, reached)
            # Of the values at or above a border, those that are at or above the next are further up.
            into += reached[:-1] - reached[1:]
            return len(values) - count
        return int(_counted(values, *self.table, into))


@inlined
def place_of(
    value: float, edges: Floats, before: NDArray[np.int64], first: float, scale: float, looks: int
) -> Whole:
    """How many borders are at or below a finite value."""
    step = min(max((value - first) * scale, 0.0), STEPS - 1.0)
    place = before[int(step)]
    for _ in range(looks):
        place += edges[place] <= value
    return place


@compiled
def _places(
    values: Floats, edges: Floats, before: NDArray[np.int64], first: float, scale: float, looks: int,
    none: int, found: NDArray[Any],
) -> None:  # fmt: skip
    for i in range(len(values)):
        value = values[i]
        found[i] = place_of(value, edges, before, first, scale, looks) if value - value == 0.0 else none


@compiled
def _counted(
    values: Floats, edges: Floats, before: NDArray[np.int64], first: float, scale: float, looks: int,
    into: NDArray[np.int64],
) -> Whole:  # fmt: skip
    none = 0
    for i in range(len(values)):
        value = values[i]
        if value - value == 0.0:
            into[place_of(value, edges, before, first, scale, looks)] += 1
        else:
            none += 1
    return none


@compiled
def _reached(values: Floats, edges: Floats, reached: NDArray[np.int64]) -> Whole:
    """``reached[j + 1]``: how many finite values are at or above border j; ``reached[0]``: all, which is returned."""
    borders, n, start = len(edges) - 1, len(values), 0
    while start < n:
        # As many as stay at hand while they are compared with one border after the other.
        some = values[start : min(start + _AT_HAND, n)]
        finite, above = 0, 0
        for i in range(len(some)):
            finite += some[i] - some[i] == 0.0
            above += some[i] == np.inf
        reached[0] += finite
        for j in range(borders):
            edge, count = edges[j], 0
            for i in range(len(some)):
                count += some[i] >= edge
            reached[j + 1] += count - above
        start += len(some)
    return reached[0]
