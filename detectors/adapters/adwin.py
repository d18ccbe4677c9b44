"""ADWIN with a state that can be stored: a window that grows while its mean stays and alarms when two parts of it differ.

The window is kept as buckets of 1, 2, 4, ... values, at most ``max_buckets`` of each size, so n values need O(log n)
numbers. Every ``clock`` values each border between buckets cuts the window in two, of n0 and n1 values, and an alarm is

    |mean0 - mean1| > sqrt(2 m v d) + 2/3 d m,    m = 1/(n0 - l + 1) + 1/(n1 - l + 1),    d = ln(2 ln(n) / delta)

with v the window's variance and l ``min_window_length``. (Bifet and Gavalda, "Learning from time-changing data with
adaptive windowing", SDM 2007, with the constants of river's class, whose alarms these are, value for value; river's own
state lives in native objects that cannot be read.) After an alarm it begins anew, as river's does.

>>> from detectors.adapters.machines import ALARM
>>> machine = Adwin(delta=0.002)
>>> [at for at, value in enumerate([0.2] * 500 + [0.8] * 500) if machine.update(value) == ALARM]
[543]
"""

from __future__ import annotations

import math

import msgspec

from detectors.adapters.machines import ALARM, QUIET, Level, StructMachine


class AdwinState(msgspec.Struct):
    """``totals[i]`` and ``squares[i]``: sums and sums of squared deviations of the buckets of 2**i values, oldest first.
    ``total`` and ``deviation`` are those of the whole window of ``width`` values."""

    totals: list[list[float]] = msgspec.field(default_factory=lambda: [[]])
    squares: list[list[float]] = msgspec.field(default_factory=lambda: [[]])
    width: int = 0
    total: float = 0.0
    deviation: float = 0.0
    rows: int = 0


class Adwin(StructMachine):
    """See the module."""

    state_type = AdwinState

    def __init__(
        self,
        delta: float = 0.002,
        clock: int = 32,
        max_buckets: int = 5,
        min_window_length: int = 5,
        grace_period: int = 10,
    ) -> None:
        super().__init__()
        self._delta = delta
        self._clock = clock
        self._max_buckets = max_buckets
        self._length_min = min_window_length
        self._grace = grace_period

    def update(self, value: float) -> Level:
        state = self.state
        if state.width:
            width = state.width
            gap = value - state.total / width
            state.deviation += width * gap * gap / (width + 1.0)
        state.width += 1
        state.total += value
        totals = state.totals[0]
        totals.append(value)
        state.squares[0].append(0.0)
        if len(totals) > self._max_buckets:
            self._merge()
        state.rows += 1
        if state.rows % self._clock == 0 and state.width > self._grace and self._changed():
            self.state = AdwinState()
            return ALARM
        return QUIET

    def _merge(self) -> None:
        """The two oldest buckets of a size that has too many become one of the next size."""
        totals, squares = self.state.totals, self.state.squares
        at, size = 0, 1.0
        while len(totals[at]) > self._max_buckets:
            if at + 1 == len(totals):
                totals.append([])
                squares.append([])
            first, second = totals[at][:2]
            gap = first / size - second / size
            apart = size * size * gap * gap / (size + size)
            totals[at + 1].append(first + second)
            squares[at + 1].append(squares[at][0] + squares[at][1] + apart)
            del totals[at][:2], squares[at][:2]
            at, size = at + 1, size * 2

    def _changed(self) -> bool:
        state, least, root = self.state, self._length_min, math.sqrt
        nats = math.log(2 * math.log(state.width) / self._delta)
        variance = state.deviation / state.width
        n0, n1, u0, u1 = 0, state.width, 0.0, state.total
        size = 1 << (len(state.totals) - 1)
        for row in reversed(state.totals):
            for total in row:
                n0 += size
                n1 -= size
                u0 += total
                u1 -= total
                if n1 < least or not n1:
                    return False
                if n0 < least:
                    continue
                m = 1.0 / (n0 - least + 1) + 1.0 / (n1 - least + 1)
                inner = 2 * m * variance * nats
                # Rounding may leave a window of equal values a variance below zero; no bound, no alarm, as in river.
                if inner >= 0 and abs(u0 / n0 - u1 / n1) > root(inner) + 2 / 3 * nats * m:
                    return True
            size >>= 1
        return False
