"""What the delay tables are about: anything that reads rows and at some row says "now", and how often it does.

Most have a score that alarms from some threshold on. Such a score, followed once over streams without drift, says at which
threshold the run length is the wanted one (``fitted``): there is nothing to search, and every detector in a table gets the
same run length, not one nearby. Ours are played by their specs too, so that tests hold the scores to them; three players
that cannot see anything show what a figure would look like if the harness counted wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.base import Context, Detector, Rows, Spec
from schemas.verdicts import State

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Makes blocks of a stream, from a generator.
Source = Callable[[np.random.Generator], Iterator[Floats]]
#: A run length nearer to the wanted one than this part of it is left as it is.
_OFF = 0.1


class Player(Protocol):
    """Reads one stream from its start."""

    def first(self, blocks: Iterable[Floats], rng: np.random.Generator) -> int | None:
        """Rows read by its first alarm, from 1; None without one."""


class Trace(Protocol):
    """A score that is followed along a stream and never alarms by itself."""

    def begin(self) -> None:
        """A new stream."""

    def take(self, block: Floats) -> tuple[Ints, Floats]:
        """Read rows ``(n, k)``: at which rows of the stream, counted from 1, there is a score, and the scores."""


class Passage:
    """Alarms where a score first reaches a threshold."""

    def __init__(self, trace: Trace, threshold: float) -> None:
        self._trace = trace
        self._threshold = threshold

    def first(self, blocks: Iterable[Floats], rng: np.random.Generator) -> int | None:
        self._trace.begin()
        for block in blocks:
            rows, scores = self._trace.take(block)
            over = np.flatnonzero(scores >= self._threshold)
            if len(over):
                return int(rows[over[0]])
        return None


class Ours:
    """A detector of the registry; one row a millisecond of event time."""

    def __init__(self, spec: Spec, context: Context, columns: tuple[int, ...] | None = None) -> None:
        self._detector: Detector = spec.build(context)
        self._columns = None if columns is None else list(columns)

    def first(self, blocks: Iterable[Floats], rng: np.random.Generator) -> int | None:
        self._detector.reset()
        at = 0
        for block in blocks:
            values = block if self._columns is None else np.ascontiguousarray(block[:, self._columns])
            times = at + np.arange(len(block), dtype=np.int64)
            changes = self._detector.update(Rows.of(values, times))
            changes += self._detector.advance(int(times[-1]))
            for change in changes:
                if change.verdict.state is State.DRIFT:
                    # What a closing block of time says is said once the last row of it was read.
                    return at + change.index + 1 if change.index >= 0 else max(1, change.time_ms)
            at += len(block)
        return None


class LlrTrace:
    """Page's CUSUM of log-likelihood ratios, the largest over columns and directions: ``steps (n, k) -> (n, series)``."""

    def __init__(self, steps: Callable[[Floats], Floats]) -> None:
        self._steps = steps
        self.begin()

    def begin(self) -> None:
        self._at = 0
        self._held: Floats | None = None

    def take(self, block: Floats) -> tuple[Ints, Floats]:
        sums = np.cumsum(self._steps(block), axis=0)
        floor = np.minimum.accumulate(np.minimum(sums, 0.0), axis=0)
        statistic = sums - (floor if self._held is None else np.minimum(floor, -self._held))
        self._held = statistic[-1]
        rows = self._at + 1 + np.arange(len(block), dtype=np.int64)
        self._at += len(block)
        return rows, statistic.max(axis=1)


def mean_steps(shift: float, zone: float) -> Callable[[Floats], Floats]:
    """Log-likelihood ratios of a mean of +-``shift`` against one of +-``zone``, of unit normals."""
    slope, middle = shift - zone, (shift * shift - zone * zone) / 2
    return lambda x: np.concatenate([slope * x - middle, -slope * x - middle], axis=1)


def scale_steps(scale: float) -> Callable[[Floats], Floats]:
    """Log-likelihood ratios of a standard deviation of ``scale`` against 1."""
    return lambda x: 0.5 * x * x * (1 - scale**-2) - np.log(scale)


def pair_steps(rho: float) -> Callable[[Floats], Floats]:
    """Log-likelihood ratios of a correlation ``rho`` against none, of every two unit normals."""

    def steps(x: Floats) -> Floats:
        one, two = np.triu_indices(x.shape[1], 1)
        a, b = x[:, one], x[:, two]
        joint = (a * a - 2 * rho * a * b + b * b) / (1 - rho * rho)
        return np.asarray((a * a + b * b - joint - np.log(1 - rho * rho)) / 2, np.float64)

    return steps


def value_steps(before: Floats, after: Floats) -> Callable[[Floats], Floats]:
    """Log-likelihood ratios of one column's values, ``before (n,)`` the change against ``after (m,)``, value by value;
    half a row is added to every value's count, and missing is a value. Of columns ``(k, 1)``."""
    values = np.unique(np.concatenate([before, after]))
    values = values[np.isfinite(values)]

    def shares(x: Floats) -> Floats:
        known = np.searchsorted(values, x[np.isfinite(x)])
        counts = np.append(np.bincount(known, minlength=len(values)), np.count_nonzero(~np.isfinite(x))) + 0.5
        return np.asarray(counts / counts.sum(), np.float64)

    ratio = np.log(shares(after) / shares(before))

    def steps(x: Floats) -> Floats:
        at = np.where(np.isfinite(x), np.searchsorted(values, x), len(values))
        return np.asarray(ratio[np.minimum(at, len(values))], np.float64)

    return steps


class Chance:
    """Alarms at random, once in ``run`` rows."""

    def __init__(self, run: float) -> None:
        self._run = run

    def first(self, blocks: Iterable[Floats], rng: np.random.Generator) -> int | None:
        at = int(rng.geometric(min(1.0, 1 / self._run)))
        return at if at <= sum(len(block) for block in blocks) else None


class Clockwork:
    """Alarms every ``run`` rows; a stream begins anywhere between two of them."""

    def __init__(self, run: float) -> None:
        self._run = max(1, round(run))

    def first(self, blocks: Iterable[Floats], rng: np.random.Generator) -> int | None:
        at = int(rng.integers(1, self._run + 1))
        return at if at <= sum(len(block) for block in blocks) else None


class Never:
    """Never alarms."""

    def first(self, blocks: Iterable[Floats], rng: np.random.Generator) -> int | None:
        for _ in blocks:
            pass
        return None


# -- how often --------------------------------------------------------------------------------------------------------


def run_length(player: Player, source: Source, rows_max: int, seed: int = 0) -> tuple[float, int]:
    """Rows read per alarm without drift, starting again after each, and how many alarms there were in ``rows_max`` rows."""
    read = alarms = episode = 0
    while read < rows_max:
        rng = np.random.default_rng((seed, episode))
        left = rows_max - read
        at = player.first(_up_to(source(rng), left), rng)
        read += left if at is None else at
        alarms += at is not None
        episode += 1
    return read / max(1, alarms), alarms


def _up_to(blocks: Iterator[Floats], rows: int) -> Iterator[Floats]:
    for block in blocks:
        if len(block) >= rows:
            yield block[:rows]
            return
        rows -= len(block)
        yield block


class Peaks:
    """Where the score of each stream rose above all it had been: first passages of every threshold at once."""

    def __init__(self, trace: Trace, source: Source, streams: int, rows: int, seed: int = 0) -> None:
        self._rows = rows
        self._peaks: list[tuple[Ints, Floats]] = []
        for stream in range(streams):
            trace.begin()
            found = [
                trace.take(block) for block in _up_to(source(np.random.default_rng((seed, stream))), rows)
            ]
            places, scores = (np.concatenate(part) for part in zip(*found, strict=True))
            highest = np.maximum.accumulate(scores) if len(scores) else scores
            rises = np.flatnonzero(np.diff(highest, prepend=-np.inf) > 0)
            self._peaks.append((places[rises], highest[rises]))

    def run(self, threshold: float) -> tuple[float, int]:
        """Rows per alarm of a detector with this threshold, and its alarms; a stream ends with its alarm."""
        read = alarms = 0
        for places, scores in self._peaks:
            at = int(np.searchsorted(scores, threshold))
            alarms += at < len(scores)
            read += int(places[at]) if at < len(scores) else self._rows
        return read / max(1, alarms), alarms

    def threshold(self, run: float) -> float:
        """The least threshold whose run length is at least ``run``, halfway from the score below it; above all scores where
        none is (one that knows a change needs no false alarms to see it)."""
        steps = np.unique(np.concatenate([scores for _, scores in self._peaks]))
        low, high = 0, len(steps) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.run(float(steps[middle]))[0] >= run else (middle + 1, high)
        if self.run(float(steps[low]))[0] < run:
            return float(np.nextafter(steps[-1], np.inf))
        # Above a score and up to the next one the first passages are the same.
        return float((steps[low - 1] + steps[low]) / 2) if low else float(steps[0])


@dataclass(frozen=True, slots=True)
class Fitted:
    """A player at the threshold that gives the wanted run length; ``realised`` on other streams, from ``alarms``."""

    player: Player
    threshold: float
    realised: float
    alarms: int


def fitted(trace: Trace, source: Source, run: int, rows: int) -> Fitted:
    """Fit the threshold on ``rows`` rows without drift, in streams of twice ``run`` rows, and count alarms on as many others.

    Streams that end count an alarm's rate as if it were even, which it is not where evidence is still growing then: what
    other streams show in full is put right once, where it is off by more than ``_OFF``, and counted again on others still.
    """
    peaks = Peaks(trace, source, max(1, rows // (2 * run)), 2 * run)
    threshold = peaks.threshold(run)
    player = Passage(trace, threshold)
    realised, alarms = run_length(player, source, rows, seed=1)
    if alarms and abs(realised / run - 1) > _OFF:
        threshold = peaks.threshold(run * run / realised)
        player = Passage(trace, threshold)
        realised, alarms = run_length(player, source, rows, seed=2)
    return Fitted(player, threshold, realised, alarms)


# -- how late ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delay:
    """Rows from the change to the alarm over the streams that had not alarmed before it. ``median`` None: more than half
    were still silent at the end; ``early``: streams that had alarmed before."""

    median: float | None
    mean: float
    seen: int
    streams: int
    early: int


def delay(player: Player, streams: Callable[[np.random.Generator], Floats], change: int, repeats: int, seed: int = 7,
          block: int = 250) -> Delay:  # fmt: skip
    """Delays on ``repeats`` streams that change after ``change`` rows; silence counts as their length."""
    found: list[float] = []
    seen = early = 0
    for repeat in range(repeats):
        rng = np.random.default_rng((seed, repeat))
        rows = streams(rng)
        at = player.first((rows[start : start + block] for start in range(0, len(rows), block)), rng)
        if at is not None and at <= change:
            early += 1
            continue
        seen += at is not None
        found.append(float(len(rows) - change if at is None else at - change))
    if not found:
        return Delay(None, float("nan"), 0, 0, early)
    return Delay(
        float(np.median(found)) if 2 * seen > len(found) else None,
        float(np.mean(found)),
        seen,
        len(found),
        early,
    )
