"""What the delay tables are about: anything that reads rows and at some row says "now", with one knob for how readily.

Ours are built by their specs; the oracle is told the size of the change; three rows that cannot see anything show what a
figure would look like if the harness counted wrong.
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
#: Makes blocks of a stream, from a generator.
Source = Callable[[np.random.Generator], Iterator[Floats]]


class Player(Protocol):
    """Reads one stream from its start."""

    def first(self, blocks: Iterable[Floats], rng: np.random.Generator) -> int | None:
        """Rows read by its first alarm, from 1; None without one."""


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


class Llr:
    """Page's CUSUM of log-likelihood ratios, the largest over columns and directions: ``steps (n, k) -> (n, series)``."""

    def __init__(self, steps: Callable[[Floats], Floats], threshold: float) -> None:
        self._steps = steps
        self._threshold = threshold

    def first(self, blocks: Iterable[Floats], rng: np.random.Generator) -> int | None:
        at, held = 0, None
        for block in blocks:
            sums = np.cumsum(self._steps(block), axis=0)
            floor = np.minimum.accumulate(np.minimum(sums, 0.0), axis=0)
            statistic = sums - (floor if held is None else np.minimum(floor, -held))
            over = np.flatnonzero(statistic.max(axis=1) >= self._threshold)
            if len(over):
                return at + int(over[0]) + 1
            held = statistic[-1]
            at += len(block)
        return None


def mean_steps(shift: float, zone: float) -> Callable[[Floats], Floats]:
    """Log-likelihood ratios of a mean of +-``shift`` against one of +-``zone``, of unit normals."""
    slope, middle = shift - zone, (shift * shift - zone * zone) / 2
    return lambda x: np.concatenate([slope * x - middle, -slope * x - middle], axis=1)


def scale_steps(scale: float) -> Callable[[Floats], Floats]:
    """Log-likelihood ratios of a standard deviation of ``scale`` against 1."""
    return lambda x: 0.5 * x * x * (1 - scale**-2) - np.log(scale)


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


@dataclass(frozen=True, slots=True)
class Subject:
    """One row of a table. ``make(knob)`` builds it; ``grid``: knobs from lax to strict to calibrate over; ``scale``: what
    the logarithm of the run length is linear in; ``rows``: to spend on each knob; ``dear``: fewer repeats by this factor."""

    name: str
    make: Callable[[float], Player]
    grid: tuple[float, ...]
    scale: Callable[[float], float] = float
    unscale: Callable[[float], float] = float
    rows: int = 200_000
    dear: int = 1


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


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A subject at the knob that gives the run length that was asked for; ``realised`` on fresh streams, from ``alarms``."""

    subject: Subject
    player: Player
    knob: float
    realised: float
    alarms: int


def calibrated(subject: Subject, source: Source, target: float) -> Calibrated:
    """Fit the logarithm of the run length over the knob's scale, each knob weighed by its alarms, and solve for ``target``."""
    points: list[tuple[float, float, float]] = []
    for knob in subject.grid:
        length, alarms = run_length(subject.make(knob), source, subject.rows)
        if alarms < 3:
            break
        points.append((subject.scale(knob), float(np.log(length)), float(np.sqrt(alarms))))
    knob = subject.grid[0]
    # Once more with what the first answer turned out to be: few alarms are a poor guide.
    for seed in (1, 2):
        if len(points) >= 2:
            knob = subject.unscale(_solved(points, float(np.log(target))))
        player = subject.make(knob)
        realised, alarms = run_length(player, source, 2 * subject.rows, seed=seed)
        points.append((subject.scale(knob), float(np.log(realised)), float(np.sqrt(max(1, alarms)))))
    return Calibrated(subject, player, knob, realised, alarms)


def _solved(points: list[tuple[float, float, float]], target: float) -> float:
    """Where a line through the points nearest to ``target`` reaches it, at most one step of the grid beyond them."""
    x, y, weight = (np.array(part) for part in zip(*points, strict=True))
    step, stricter = abs(x[1] - x[0]), np.sign(x[1] - x[0])
    # No family is linear for ever.
    near = np.argsort(np.abs(y - target), kind="stable")[:3]
    slope, offset = np.polyfit(x[near], y[near], 1, w=weight[near])
    if slope * stricter <= 0:
        return float(x[near[0]])
    return float(np.clip((target - offset) / slope, x.min() - step, x.max() + step))


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


def logarithmic(name: str, make: Callable[[float], Player], grid: Iterable[float], **more: int) -> Subject:
    """A subject whose run length is a power of its knob."""
    return Subject(name, make, tuple(grid), lambda k: float(np.log(k)), lambda s: float(np.exp(s)), **more)
