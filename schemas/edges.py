"""Where values lie among ascending borders: the cells of histograms and of detectors, found by compiled code.

The range of the borders is cut into equal steps, and a table says how many borders lie in the steps before each; so a value is
compared with the few of its own step. Bisection, whose branches no processor foresees, takes several times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.json_text import Whole

STEPS = 512
Floats = NDArray[np.float64]


class Edges:
    """Ascending borders, ``edges (m,)``. ``before (STEPS,)``: how many of them lie in the steps of their range before each,
    ``scale`` steps to the unit. Which step a value is in is monotone in the value, rounding included."""

    __slots__ = ("before", "edges", "scale")

    def __init__(self, edges: Sequence[float] | Floats) -> None:
        self.edges: Floats = np.array(edges, np.float64)
        span = float(self.edges[-1]) - float(self.edges[0]) if len(self.edges) > 1 else 0.0
        scale = (STEPS - 1) / span if 0 < span < math.inf else 0.0
        #: Where the edges are no range to be cut, all lie in one step.
        self.scale = scale if math.isfinite(scale) else 0.0
        steps = np.zeros(len(self.edges), np.int64)
        if self.scale:
            steps = ((self.edges - self.edges[0]) * self.scale).astype(np.int64)
        counts: Any = np.bincount(steps, minlength=STEPS)
        self.before: NDArray[np.int64] = np.cumsum(counts) - counts

    def places(self, values: Floats, none: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """How many borders are at or below each of ``values (n,)``: ``searchsorted(edges, values, "right")``; ``none`` for what
        is no finite number. ``into (n,)``: where to."""
        found = np.empty(len(values), np.int64) if into is None else into
        _places(values, self.edges, self.before, self.scale, none, found)
        return found


@compiled
def place_of(value: float, edges: Floats, before: NDArray[np.int64], scale: float) -> Whole:
    """How many of ``edges`` are at or below a value that is a number."""
    last = len(edges) - 1
    if last < 0 or value < edges[0]:
        return 0
    if value >= edges[last]:
        return last + 1
    place = before[int((value - edges[0]) * scale)]
    while edges[place] <= value:
        place += 1
    return place


@compiled
def _places(
    values: Floats, edges: Floats, before: NDArray[np.int64], scale: float, none: int, found: NDArray[Any]
) -> None:
    for i in range(len(values)):
        value = values[i]
        found[i] = place_of(value, edges, before, scale) if value - value == 0.0 else none
