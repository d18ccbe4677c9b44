"""KSWIN with a state that can be stored: the newest values of a window against as many drawn from the rest of it.

At each value, Kolmogorov and Smirnov's two-sample test of the last ``stat_size`` values of the window against
``stat_size`` others drawn from it without replacement; an alarm is a p-value of at most ``alpha`` and a distance above
0.1, after which it begins anew. (Raab, Heusinger and Schleif, "Reactive soft prototype computing for
concept drift streams", Neurocomputing 2020.) The alarms are those of river's class, value for value: the draws come from
the same generator, whose state is part of this one's. The exact p-value of two samples of one size depends on nothing but
their distance, so the smallest distance that alarms is looked up once, and a value costs two sorts instead of a test.

>>> from detectors.adapters.machines import ALARM
>>> machine = Kswin(alpha=1e-4, window_size=60, stat_size=20, seed=1)
>>> [at for at in range(120) if machine.update(at % 7 + (10.0 if at >= 80 else 0.0)) == ALARM]
[93]
"""

from __future__ import annotations

import random
import warnings
from functools import cache
from typing import Any

import msgspec
import numpy as np
from scipy import stats

from detectors.adapters.machines import ALARM, QUIET, Level

#: Words of the Mersenne Twister, and its place in them.
_WORDS = 625


class KswinState(msgspec.Struct):
    """``window``: the last values, oldest first; ``generator``: 625 little-endian words of the Mersenne Twister."""

    window: list[float] = msgspec.field(default_factory=list)
    generator: bytes = b""


@cache
def least_distance(alpha: float, size: int) -> int:
    """Smallest distance, in parts of ``size``, at which two samples of ``size`` differ at ``alpha``; more if none does."""
    low, high = size // 10, size + 1
    while high - low > 1:
        middle = (low + high) // 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=RuntimeWarning)
            p_value = stats.ks_2samp(np.arange(size), np.arange(size) + middle - 0.5, method="auto").pvalue
        low, high = (low, middle) if p_value <= alpha and middle / size > 0.1 else (middle, high)
    return high


class Kswin:
    """See the module."""

    def __init__(
        self, alpha: float = 0.005, window_size: int = 100, stat_size: int = 30, seed: int = 0
    ) -> None:
        self._size = window_size
        self._part = stat_size
        self._seed = seed
        self._rest = range(window_size - stat_size)
        self._least = least_distance(alpha, stat_size)
        #: Where each of both samples' values stands in an order makes it a step up or down.
        self._steps = np.repeat(np.array([1, -1]), stat_size)
        self._begin([])

    def _begin(self, window: list[float]) -> None:
        self._window = window
        self._random = random.Random(self._seed)

    def stored(self) -> KswinState:
        words = self._random.getstate()[1]
        return KswinState(list(self._window), np.array(words, "<u4").tobytes())

    def load(self, data: Any) -> None:
        state = msgspec.convert(data, KswinState)
        if len(state.generator) != 4 * _WORDS or len(state.window) > self._size:
            raise msgspec.ValidationError("a window or a generator of another size")
        self._begin(state.window)
        self._random.setstate((3, tuple(np.frombuffer(state.generator, "<u4").tolist()), None))

    def update(self, value: float) -> Level:
        window = self._window
        window.append(value)
        if len(window) > self._size:
            del window[0]
        if len(window) < self._size:
            return QUIET
        newest = window[-self._part :]
        both = np.array([window[at] for at in self._random.sample(self._rest, self._part)] + newest)
        if self._distance(both) < self._least:
            return QUIET
        # As in river, where an alarm also empties the window and starts the generator again.
        self._begin([])
        return ALARM

    def _distance(self, both: Any) -> int:
        """Greatest distance of the two empirical distribution functions, in parts of the sample."""
        order = np.argsort(both, kind="stable")
        apart = np.abs(np.cumsum(self._steps[order]))
        ordered = both[order]
        # Equal values are one step: only the last of them counts.
        apart[:-1][ordered[1:] == ordered[:-1]] = 0
        return int(apart.max())
