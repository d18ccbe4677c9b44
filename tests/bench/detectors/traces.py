"""Scores of detectors along a stream, for kinds whose knob is a threshold or a probability behind one.

Each is the detector itself with its alarm held back, so a first passage of the score is the alarm of a detector with that
knob; tests hold them to each other, row for row. The sliding Cramer-von Mises statistic alone is none of ours: it is
what alibi-detect's CVMDriftOnline computes against a large reference, whose own calibration takes minutes for a run
length of a thousand rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf, log, sqrt
from random import Random
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from detectors.adapters.adwin import Adwin
from detectors.adapters.machines import QUIET, Level, PageHinkley
from detectors.adapters.river_drift import AdwinSpec, KswinSpec, PageHinkleySpec
from detectors.base import Context, Detector, Rows
from detectors.joint_shift.mmd import MmdSpec
from detectors.joint_shift.moving import Moving
from detectors.shift.cusum import Cusum, CusumSpec
from detectors.shift.drift_e import DriftE, DriftESpec
from detectors.shift.windowed import Windowed
from detectors.shift.windowed_kinds import CramerVonMisesSpec
from detectors.transform import column_reference, mid_rank
from schemas.contracts import Reference
from schemas.verdicts import State, Verdict
from tests.bench.detectors.subjects import Floats, Ints

#: In nats or multiples of a bound: out of reach.
_NEVER = 1e9


class _Notes:
    """(rows counted from 1, scores at them), in order."""

    def __init__(self) -> None:
        self._rows: list[Ints] = []
        self._scores: list[Floats] = []

    def add(self, rows: Ints, scores: Floats) -> None:
        self._rows.append(rows)
        self._scores.append(scores)

    def one(self, row: int, score: float) -> None:
        self.add(np.array([row], np.int64), np.array([score]))

    def taken(self) -> tuple[Ints, Floats]:
        """All of them; from here on there are none."""
        rows, scores = [*self._rows, np.empty(0, np.int64)], [*self._scores, np.empty(0)]
        self._rows, self._scores = [], []
        return np.concatenate(rows), np.concatenate(scores)


class _Noted(Detector, Protocol):
    notes: _Notes


class Whole:
    """A detector of ours that notes its scores; one row a millisecond. ``columns``: those of a row that it reads."""

    def __init__(self, detector: _Noted, columns: Sequence[int] | None = None) -> None:
        self._detector = detector
        self._columns = None if columns is None else list(columns)
        self.begin()

    def begin(self) -> None:
        self._detector.reset()
        self._at = 0

    def take(self, block: Floats) -> tuple[Ints, Floats]:
        values = block if self._columns is None else np.ascontiguousarray(block[:, self._columns])
        times = self._at + np.arange(len(block), dtype=np.int64)
        self._at += len(block)
        self._detector.update(Rows.of(values, times))
        self._detector.advance(self._at - 1)
        return self._detector.notes.taken()


class DriftETrace(DriftE):
    """Evidence of ``drift-e`` as a share of the threshold: at s with ``run=r`` is the alarm of ``run=s r``."""

    def __init__(self, spec: DriftESpec, context: Context) -> None:
        self.notes = _Notes()
        super().__init__(spec, context)

    def _states(self, scores: NDArray[np.float64]) -> list[tuple[int, float, State]]:
        cells = np.arange(1, len(scores) + 1, dtype=np.int64)
        self.notes.add(self._rows + cells * self._spec.cell_rows, scores)
        return []


class CusumTrace(Cusum):
    """The largest sum of ``cusum``, in units of its table."""

    def __init__(self, spec: CusumSpec, context: Context) -> None:
        self.notes = _Notes()
        super().__init__(spec.model_copy(update={"threshold": _NEVER, "rows_min": 1}), context)

    def _keep(self, sums: Ints, time_ms: Ints) -> None:
        self.notes.add(time_ms + 1, sums.max(axis=0) / 2**20)
        super()._keep(sums, time_ms)


class MovingTrace(Moving):
    """The score of ``mmd`` and its like, cell by cell."""

    def __init__(self, spec: MmdSpec, context: Context) -> None:
        self.notes = _Notes()
        super().__init__(spec.model_copy(update={"threshold": _NEVER}), context)

    def _close(self, time_ms: int) -> bool:
        changed = super()._close(time_ms)
        self.notes.one(time_ms + 1, float(self._scores().max()))
        return changed


class WindowTrace(Windowed):
    """The score of a windowed test, block by block."""

    def __init__(self, spec: CramerVonMisesSpec, context: Context) -> None:
        self.notes = _Notes()
        super().__init__(spec, context)

    def _judge(self, start_ms: int, sums: list[int]) -> Verdict:
        verdict = super()._judge(start_ms, sums)
        self.notes.one(start_ms + self._spec.block_ms, verdict.score)
        return verdict


class _AdwinScore(Adwin):
    """``-log delta`` at which the machine would have alarmed at its last look; -inf where it took none."""

    score = -inf

    def update(self, value: float) -> Level:
        self.score = -inf
        return super().update(value)

    def _changed(self) -> bool:
        state, least = self.state, self._length_min
        variance = max(0.0, state.deviation / state.width)
        n0, n1, u0, u1 = 0, state.width, 0.0, state.total
        size, most = 1 << (len(state.totals) - 1), 0.0
        for row in reversed(state.totals):
            for total in row:
                n0, n1, u0, u1 = n0 + size, n1 - size, u0 + total, u1 - total
                if n1 < least or not n1:
                    break
                if n0 >= least:
                    # The bound is m (2/3 d) + sqrt(2 m v d): a quadratic in the root of d.
                    m = 1.0 / (n0 - least + 1) + 1.0 / (n1 - least + 1)
                    linear = sqrt(2 * m * variance)
                    root = (sqrt(linear * linear + 8 / 3 * m * abs(u0 / n0 - u1 / n1)) - linear) / (4 / 3 * m)
                    most = max(most, root * root)
            size >>= 1
        self.score = most - log(2 * log(state.width))
        return False


class _PageHinkleyScore(PageHinkley):
    """The larger of the two sums."""

    score = -inf

    def update(self, value: float) -> Level:
        super().update(value)
        state = self.state
        if state.rows >= self._min_instances:
            self.score = max(state.increase - state.increase_min, state.decrease_max - state.decrease)
        return QUIET


class _Columns(ABC):
    """One machine a column; the score of a row is the largest among those that read a value in it."""

    def __init__(self, reference: Reference, names: Sequence[str], ranks: bool) -> None:
        self._columns = [column_reference(reference, name) if ranks else None for name in names]
        self.begin()

    @abstractmethod
    def machines(self) -> Sequence[_AdwinScore | _PageHinkleyScore]:
        """New ones, one for each column."""

    def begin(self) -> None:
        self._at = 0
        self._machines = self.machines()

    def take(self, block: Floats) -> tuple[Ints, Floats]:
        scores = np.full(len(block), -inf)
        for at, (column, machine) in enumerate(zip(self._columns, self._machines, strict=True)):
            values = block[:, at]
            known = np.flatnonzero(np.isfinite(values))
            read = values[known] if column is None else mid_rank(values[known], column)
            for row, value in zip(known.tolist(), read.tolist(), strict=True):
                machine.update(value)
                if machine.score > scores[row]:
                    scores[row] = machine.score
        rows = self._at + 1 + np.flatnonzero(scores > -inf)
        self._at += len(block)
        return rows, scores[scores > -inf]


class AdwinTrace(_Columns):
    """``-log delta`` of ``adwin``."""

    def __init__(self, spec: AdwinSpec, reference: Reference, names: Sequence[str]) -> None:
        self._spec = spec
        super().__init__(reference, names, ranks=True)

    def machines(self) -> Sequence[_AdwinScore]:
        s = self._spec
        made = (s.delta, s.clock, s.max_buckets, s.min_window_length, s.grace_period)
        return [_AdwinScore(*made) for _ in self._columns]


class PageHinkleyTrace(_Columns):
    """Sums of ``page-hinkley``."""

    def __init__(self, spec: PageHinkleySpec, reference: Reference, names: Sequence[str]) -> None:
        self._spec = spec
        super().__init__(reference, names, ranks=True)

    def machines(self) -> Sequence[_PageHinkleyScore]:
        s = self._spec
        return [_PageHinkleyScore(s.min_instances, s.delta, inf, s.alpha, s.mode) for _ in self._columns]


class _Sliding(ABC):
    """A statistic of each column's last ``size`` values, all rows of a block at once; the largest is the row's score."""

    def __init__(self, columns: int, size: int) -> None:
        self._count = columns
        self._size = size
        self.begin()

    def begin(self) -> None:
        self._at = 0
        self._held = [np.empty(0) for _ in range(self._count)]
        self._seen = [0] * self._count

    @abstractmethod
    def values(self, at: int, values: Floats) -> Floats:
        """What the statistic is of, ``(n,)``, for the values of column ``at``."""

    @abstractmethod
    def statistic(self, windows: Floats, first: int) -> Floats:
        """Of each of ``windows (n, size)``; ``first``: number of the first since the stream began."""

    def jitter(self, rows: int) -> Floats | float:
        """Added to every score."""
        return 0.0

    def take(self, block: Floats) -> tuple[Ints, Floats]:
        scores = np.full(len(block), -inf)
        for at in range(self._count):
            known = np.flatnonzero(np.isfinite(block[:, at]))
            values = np.concatenate([self._held[at], self.values(at, block[known, at])])
            if len(values) >= self._size:
                found = self.statistic(sliding_window_view(values, self._size), self._seen[at])
                places = known[len(known) - len(found) :]
                scores[places] = np.maximum(scores[places], found)
                self._seen[at] += len(found)
                values = values[len(values) - self._size + 1 :]
            self._held[at] = values
        rows = self._at + 1 + np.flatnonzero(scores > -inf)
        self._at += len(block)
        return rows, (scores + self.jitter(len(block)))[scores > -inf]


class KswinTrace(_Sliding):
    """Distances of ``kswin`` in parts of its sample, with a random part of one added: between two distances, chance decides,
    so that any run length can be had. Its machines all draw alike, and alike in every stream."""

    def __init__(self, spec: KswinSpec, columns: int, seed: int) -> None:
        self._part = spec.stat_size
        self._rest, self._random = range(spec.window_size - spec.stat_size), Random(seed)
        self._draws = np.empty((0, spec.stat_size), np.int64)
        self._steps = np.repeat(np.array([1, -1]), spec.stat_size)
        self._chance = np.random.default_rng(seed)
        super().__init__(columns, spec.window_size)

    def values(self, at: int, values: Floats) -> Floats:
        return values

    def statistic(self, windows: Floats, first: int) -> Floats:
        while len(self._draws) < first + len(windows):
            more = [self._random.sample(self._rest, self._part) for _ in range(1_000)]
            self._draws = np.concatenate([self._draws, np.array(more)])
        drawn = np.take_along_axis(windows, self._draws[first : first + len(windows)], axis=1)
        both = np.concatenate([drawn, windows[:, -self._part :]], axis=1)
        order = np.argsort(both, axis=1)
        apart = np.abs(np.cumsum(self._steps[order], axis=1))
        ordered = np.take_along_axis(both, order, axis=1)
        apart[:, :-1][ordered[:, 1:] == ordered[:, :-1]] = 0
        return np.asarray(apart.max(axis=1), np.float64)

    def jitter(self, rows: int) -> Floats | float:
        return self._chance.uniform(size=rows)


class CvmTrace(_Sliding):
    """Cramer-von Mises of a sliding window against the reference's distribution function. Columns that repeat a few values
    have a statistic of another size, and drown the others: only for populations without them."""

    def __init__(self, window: int, reference: Reference, names: Sequence[str]) -> None:
        self._columns = [column_reference(reference, name) for name in names]
        self._places = (2 * np.arange(window) + 1) / (2 * window)
        super().__init__(len(names), window)

    def values(self, at: int, values: Floats) -> Floats:
        column = self._columns[at]
        return values if column is None else mid_rank(values, column)

    def statistic(self, windows: Floats, first: int) -> Floats:
        gaps = np.sort(windows, axis=1) - self._places
        return np.asarray((gaps * gaps).sum(axis=1) + 1 / (12 * self._size), np.float64)
