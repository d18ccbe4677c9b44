"""river's drift detectors under the one protocol: one a column, alarms held for a while so that people can read them.

A library's alarm is an event; a verdict is a state. After an alarm the verdict stays ``drift`` for ``hold_rows`` rows
without a further one. None of these bounds its rate of false alarms over many columns and much time (river's defaults
alarm every few hundred to few thousand rows without drift), so they never page. Their inner state has no stable form:
after a restart they learn again, and say so.

ADWIN: Bifet and Gavalda, "Learning from time-changing data with adaptive windowing", 2007. KSWIN: Raab, Heusinger and
Schleif, "Reactive soft prototype computing for concept drift streams", 2020. Page-Hinkley: Page 1954.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> detector = AdwinSpec().build(Context(("score",), (0,)))
>>> x = np.concatenate([np.zeros(500), np.ones(500)])
>>> [str(c.verdict.state) for c in detector.update(Rows.of(x, np.arange(1000)))]
['stable', 'drift']
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from pydantic import Field

from detectors.base import Change, Context, Detector, Rows, Spec, Stream, pack, undecided, unpack
from schemas.verdicts import Evidence, Family, State, Verdict

_SCHEMA = 1


class RiverDriftSpec(Spec):
    """What the kinds below share."""

    streams: ClassVar[Mapping[Stream, Family]] = {
        "features": Family.INPUT,
        "score": Family.PREDICTION,
        "loss": Family.CONCEPT,
    }
    restart: ClassVar[Literal["exact", "warm-up"]] = "warm-up"
    numeric_only: ClassVar[bool] = True

    warm_up_rows: int = Field(default=100, ge=0, description="Silent for so many rows of a column.")
    hold_rows: int = Field(default=1_000, ge=1)

    @abstractmethod
    def make(self, seed: int) -> Any:
        """One river detector."""

    def build(self, context: Context) -> Detector:
        return RiverDrift(self, context)


class AdwinSpec(RiverDriftSpec):
    """Options of ``adwin``."""

    kind: ClassVar[str] = "adwin"
    cost_ns: ClassVar[int] = 2_000
    state_size: ClassVar[str] = "about 2 KB a column"
    sees: ClassVar[str] = "changes of a column's mean, sudden or gradual"
    blind_to: ClassVar[str] = "changes that leave the mean where it was"

    delta: float = Field(default=1e-6, gt=0, lt=1)

    def make(self, seed: int) -> Any:
        from river.drift import ADWIN

        return ADWIN(delta=self.delta)


class KswinSpec(RiverDriftSpec):
    """Options of ``kswin``."""

    kind: ClassVar[str] = "kswin"
    cost_ns: ClassVar[int] = 135_000
    state_size: ClassVar[str] = "window_size numbers a column"
    sees: ClassVar[str] = "any change of a column's distribution against its own recent past"
    blind_to: ClassVar[str] = "changes slower than its window"

    alpha: float = Field(default=1e-5, gt=0, lt=1)
    window_size: int = Field(default=300, ge=20)
    stat_size: int = Field(default=100, ge=10)

    def make(self, seed: int) -> Any:
        from river.drift import KSWIN

        return KSWIN(alpha=self.alpha, window_size=self.window_size, stat_size=self.stat_size, seed=seed)


class PageHinkleySpec(RiverDriftSpec):
    """Options of ``page-hinkley``."""

    kind: ClassVar[str] = "page-hinkley"
    cost_ns: ClassVar[int] = 2_000
    state_size: ClassVar[str] = "five numbers a column"
    sees: ClassVar[str] = "changes of a column's mean"
    blind_to: ClassVar[str] = "changes that leave the mean where it was"

    min_instances: int = Field(default=30, ge=1)
    delta: float = 0.005
    threshold: float = Field(default=50.0, gt=0)

    def make(self, seed: int) -> Any:
        from river.drift import PageHinkley

        return PageHinkley(min_instances=self.min_instances, delta=self.delta, threshold=self.threshold)


class _State(msgspec.Struct):
    rows: list[int]


class RiverDrift:
    """One river detector a column, fed value by value in row order."""

    def __init__(self, spec: RiverDriftSpec, context: Context) -> None:
        self._spec = spec
        self._names = context.columns
        self._seed = context.seed
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._made = [self._spec.make(self._seed) for _ in self._names]
        self._rows = [0] * len(self._names)
        self._means = [0.0] * len(self._names)
        self._quiet = self._spec.hold_rows
        self._verdict = undecided(1.0, "warming up")

    def update(self, rows: Rows) -> list[Change]:
        changes: list[Change] = []
        added = rows.sign > 0
        for at in np.flatnonzero(added).tolist():
            hit = self._row(rows.values[at])
            self._quiet = 0 if hit is not None else self._quiet + 1
            if hit is not None:
                verdict = self._said(State.DRIFT, hit)
            elif self._verdict.state is State.DRIFT and self._quiet < self._spec.hold_rows:
                continue
            elif self._verdict.state is not State.STABLE and max(self._rows) >= self._spec.warm_up_rows:
                verdict = self._said(State.STABLE, None)
            else:  # nothing new to say; a verdict a row would cost thirty times what the library does
                continue
            if verdict.state is not self._verdict.state:
                changes.append(Change(at, int(rows.time_ms[at]), verdict))
            self._verdict = verdict
        return changes

    def _row(self, values: Any) -> int | None:
        hit = None
        for column, value in enumerate(values.tolist()):
            if not math.isfinite(value):
                continue
            made = self._made[column]
            made.update(value)
            self._rows[column] += 1
            self._means[column] += (value - self._means[column]) / min(self._rows[column], 1_000)
            if made.drift_detected and self._rows[column] > self._spec.warm_up_rows and hit is None:
                hit = column
        return hit

    def _said(self, state: State, column: int | None) -> Verdict:
        if column is None:
            return Verdict(state=state, score=0.0, threshold=1.0, evidence=Evidence(rows=max(self._rows)))
        evidence = Evidence(
            column=self._names[column],
            statistic=self._spec.kind,
            current=self._means[column],
            rows=self._rows[column],
            note="no bound on false alarms",
        )
        return Verdict(state=state, score=1.0, threshold=1.0, evidence=evidence)

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def snapshot(self) -> bytes:
        return pack(self._spec.kind, _SCHEMA, _State([]))

    def load(self, data: bytes) -> None:
        unpack(self._spec.kind, _SCHEMA, _State, data)
        self.reset()
        self._verdict = undecided(1.0, "restarted: warming up again")
