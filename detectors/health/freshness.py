"""Has data stopped coming: the stream as a whole, or one column that is null since too long; and is the model too old.

Both kinds state facts about event time and promise nothing statistical, so they have no false alarms to bound beyond
what their limits say: a page means that the limit passed. Silence is only visible because ``advance`` tells the time
while no row comes, and it is dated to the deadline, not to the call that noticed: however late that call, the verdict
is the same. A watermark that stands still (a stopped source holds it back) tells no time, and then nothing here can
speak; that is the join's idle-source rule and its lag metric to notice.

Kind ``freshness``: drift at ``last row + silence_max`` when no row came until then, stable with the next row. A column
is overdue at a row that finds it null since more than ``silence_max``, if by then so many nulls came one after another
as the reference's rate of nulls gives once in e^14 (``rows_min`` at least): a column that is mostly null has long gaps.
A column that never held a value is not watched; rows before the first readable one are no arrival.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> hour = 3_600_000
>>> detector = FreshnessSpec(silence_max="6h", rows_min=3).build(Context(("x",), (0,), stream="features"))
>>> _ = detector.update(Rows.of(np.zeros(4), np.arange(4) * hour))
>>> [(change.time_ms // hour, str(change.verdict.state)) for change in detector.advance(20 * hour)]
[(9, 'drift')]
>>> detector.update(Rows.of(np.zeros(1), np.array([21 * hour])))[0].verdict.state.value
'stable'

Kind ``staleness``: drift once event time is ``age_max`` after ``trained_to_ms``, the end of the version's training data;
inconclusive where that is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import (
    DAY_MS,
    NEVER_MS,
    NEVER_ROWS,
    Change,
    Context,
    Detector,
    Rows,
    Spec,
    Standing,
    Stream,
    pack,
    undecided,
    unpack,
)
from detectors.health.rates import rate_upper
from schemas.contracts import DurationMs
from schemas.verdicts import Evidence, Family, State, Verdict

_SCHEMA = 1
_NEVER = -(2**62)
#: Evidence that a run of nulls is no chance, and that the reference's rate of them is not higher than believed.
_RUN_NATS = 14.0
_REFERENCE_NATS = 7.0

_FACT = "a limit on event time that passed or did not: a fact, not an estimate; spends none of the false-page budget"


class FreshnessSpec(Spec):
    """Options of ``freshness``. ``silence_max``: the longest silence in event time that is no finding."""

    kind: ClassVar[str] = "freshness"
    streams: ClassVar[Mapping[Stream, Family]] = {
        "features": Family.QUALITY,
        "score": Family.QUALITY,
        "predictions": Family.QUALITY,
    }
    #: Ten columns in blocks of 2,000 where some are null; a sixth of it where none is.
    cost_ns: ClassVar[int] = 350
    state_size: ClassVar[str] = "two numbers a column, and four"
    sees: ClassVar[str] = "a stream that stopped, a column that has been null for too long"
    blind_to: ClassVar[str] = (
        "a slower stream, old values sent again, silence while the watermark stands still"
    )
    pages: ClassVar[bool] = True

    silence_max: DurationMs = Field(default=DAY_MS, gt=0)
    rows_min: int = Field(default=10, ge=3, description="Rows before it says anything; least run of nulls.")

    @property
    def spends_budget(self) -> bool:
        return False  # a stated limit passed or it did not

    def build(self, context: Context) -> Detector:
        return Freshness(self, context)

    def standing(self, context: Context) -> Standing:
        return Standing(basis="proved", pages=True, note=_FACT)


class _State(msgspec.Struct):
    seen: int
    last_ms: int
    now_ms: int
    valued_ms: list[int]
    nulls: list[int]
    silent: bool


class Freshness:
    """The running clock: ``valued_ms`` when each column last held a value, ``nulls`` how many rows since had none."""

    def __init__(self, spec: FreshnessSpec, context: Context) -> None:
        self._spec = spec
        self._names = context.columns
        self._runs = np.array([_run_of_nulls(context, name, spec.rows_min) for name in context.columns])
        self.reset()

    def reset(self) -> None:
        k = len(self._names)
        self._seen = 0
        self._last_ms = self._now_ms = _NEVER
        self._valued: NDArray[np.int64] = np.full(k, _NEVER, np.int64)
        self._nulls: NDArray[np.int64] = np.zeros(k, np.int64)
        self._silent = False

    @property
    def verdict(self) -> Verdict:
        if self._silent:
            return self._silence(self._now_ms)
        return self._by_columns(self._seen, self._last_ms, self._valued, self._nulls)

    def update(self, rows: Rows) -> list[Change]:
        if not len(rows):
            return []
        finite = np.isfinite(rows.values)
        if self._seen == 0:
            # Nothing is awaited before something came.
            readable = np.flatnonzero(finite.any(axis=1))
            if not len(readable):
                return []
            first = int(readable[0])
        else:
            first = 0
        return self._walk(rows, finite, first)

    def _walk(self, rows: Rows, finite: NDArray[np.bool_], first: int) -> list[Change]:
        n, limit = len(rows), self._spec.silence_max
        # A row that comes behind the watermark takes no time back.
        times = np.maximum.accumulate(rows.time_ms[first:])
        finite = finite[first:]
        if self._seen:
            times = np.maximum(times, self._last_ms)
        before = np.concatenate([[self._last_ms if self._seen else times[0]], times[:-1]])
        gaps = times - before > limit
        if finite.all() and not gaps.any() and self.verdict.state is State.STABLE:
            self._reach(n, int(times[-1]))
            self._valued, self._nulls = np.full_like(self._valued, times[-1]), np.zeros_like(self._nulls)
            return []
        place = np.arange(n - first)[:, None]
        held = np.maximum.accumulate(np.where(finite, place, -1), axis=0)
        valued = np.where(held >= 0, times[np.maximum(held, 0)], self._valued[None, :])
        nulls = np.where(held >= 0, place - held, self._nulls[None, :] + place + 1)
        nulls[valued == _NEVER] = 0
        overdue = (times[:, None] - valued > limit) & (nulls >= self._runs[None, :]) & (valued != _NEVER)
        late = overdue.any(axis=1)
        seen = self._seen + 1 + np.arange(n - first)
        ready = seen >= self._spec.rows_min
        # Only where one of these differs from the row before can the verdict change.
        moved = np.flatnonzero(
            gaps | (late != np.concatenate([[not late[0]], late[:-1]])) | (seen == self._spec.rows_min)
        )
        changes: list[Change] = []
        state = self.verdict.state
        for at in moved.tolist():
            if gaps[at] and seen[at] > self._spec.rows_min and state is not State.DRIFT:
                self._last_ms = int(before[at])
                deadline = self._last_ms + limit
                changes.append(Change(-1, deadline, self._silence(deadline)))
                state = State.DRIFT
            if not ready[at]:
                continue
            verdict = self._by_columns(int(seen[at]), int(times[at]), valued[at], nulls[at])
            if verdict.state is not state:
                changes.append(Change(first + at, int(times[at]), verdict))
                state = verdict.state
        self._silent = False
        self._reach(n - first, int(times[-1]))
        self._valued, self._nulls = valued[-1].copy(), nulls[-1].copy()
        return changes

    def _reach(self, rows: int, time_ms: int) -> None:
        self._seen += rows
        self._last_ms = time_ms
        self._now_ms = max(self._now_ms, time_ms)

    def advance(self, time_ms: int) -> list[Change]:
        if self._seen == 0:
            return []
        self._now_ms = max(self._now_ms, time_ms)
        deadline = self._last_ms + self._spec.silence_max
        if self._silent or self._seen < self._spec.rows_min or self._now_ms <= deadline:
            return []
        was = self.verdict.state
        self._silent = True
        return [Change(-1, deadline, self._silence(deadline))] if was is not State.DRIFT else []

    def patience(self) -> tuple[int, int]:
        if self._seen == 0 or self.verdict.state is State.DRIFT:
            # Silence goes on by itself; the next row may end it.
            return 1, NEVER_MS
        held = self._valued[self._valued != _NEVER]
        rows = self._spec.rows_min - self._seen
        oldest_ms = min(self._last_ms, int(held.min())) if len(held) else self._last_ms
        return rows if rows > 0 else NEVER_ROWS, oldest_ms + self._spec.silence_max

    def _silence(self, now_ms: int) -> Verdict:
        silence, limit = now_ms - self._last_ms, self._spec.silence_max
        evidence = Evidence(
            statistic="silence over its limit",
            effect=silence / 3_600_000,
            effect_name="hours without a row",
            reference=limit / 3_600_000,
            current=silence / 3_600_000,
            since_ms=self._last_ms,
            note=f"no row for {_words(silence)} of event time, at most {_words(limit)} allowed",
        )
        return Verdict(state=State.DRIFT, score=silence / limit, threshold=1.0, evidence=evidence)

    def _by_columns(
        self, seen: int, time_ms: int, valued: NDArray[np.int64], nulls: NDArray[np.int64]
    ) -> Verdict:
        if seen < self._spec.rows_min:
            return undecided(1.0, "fewer rows than rows_min yet")
        limit = self._spec.silence_max
        ages = np.where(valued == _NEVER, 0, time_ms - valued)
        overdue = (ages > limit) & (nulls >= self._runs)
        if not overdue.any():
            evidence = Evidence(
                statistic="silence over its limit", note="rows come, and no column is overdue"
            )
            return Verdict(state=State.STABLE, score=0.0, threshold=1.0, evidence=evidence)
        at = int(np.where(overdue, ages, -1).argmax())
        names = [self._names[i] for i in np.flatnonzero(overdue).tolist()]
        evidence = Evidence(
            column=self._names[at],
            statistic="silence over its limit",
            effect=int(ages[at]) / 3_600_000,
            effect_name="hours without a value",
            reference=limit / 3_600_000,
            current=int(ages[at]) / 3_600_000,
            rows=int(nulls[at]),
            since_ms=int(valued[at]),
            note=f"null for more than {_words(limit)}: {', '.join(names[:6])}"
            + (f" and {len(names) - 6} more" if len(names) > 6 else ""),
        )
        return Verdict(state=State.DRIFT, score=int(ages[at]) / limit, threshold=1.0, evidence=evidence)

    def snapshot(self) -> bytes:
        state = _State(
            self._seen, self._last_ms, self._now_ms, self._valued.tolist(), self._nulls.tolist(), self._silent
        )
        return pack(FreshnessSpec.kind, _SCHEMA, state)

    def load(self, data: bytes) -> None:
        state = unpack(FreshnessSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._seen, self._last_ms, self._now_ms = state.seen, state.last_ms, state.now_ms
        self._valued = np.array(state.valued_ms, np.int64)
        self._nulls = np.array(state.nulls, np.int64)
        self._silent = state.silent


def _run_of_nulls(context: Context, name: str, rows_min: int) -> int:
    """Nulls in a row that the reference's rate of them does not explain."""
    reference = context.reference
    found = reference.columns.get(name) if reference is not None else None
    if found is None or found.missing >= 1:
        return rows_min
    rate = rate_upper(found.missing, round(found.rows / (1 - found.missing)), _REFERENCE_NATS)
    return max(rows_min, math.ceil(_RUN_NATS / -math.log(rate)) if 0 < rate < 1 else rows_min)


def _words(span_ms: int) -> str:
    hours = span_ms / 3_600_000
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


class StalenessSpec(Spec):
    """Options of ``staleness``. ``age_max``: how old the training data of a serving model may be."""

    kind: ClassVar[str] = "staleness"
    streams: ClassVar[Mapping[Stream, Family]] = {
        "features": Family.QUALITY,
        "score": Family.QUALITY,
        "predictions": Family.QUALITY,
    }
    cost_ns: ClassVar[int] = 30
    state_size: ClassVar[str] = "two numbers"
    sees: ClassVar[str] = "a model that answers on training data older than its limit"
    blind_to: ClassVar[str] = "whether age did any harm"
    pages: ClassVar[bool] = True

    age_max: DurationMs = Field(default=90 * DAY_MS, gt=0)
    rows_min: int = Field(default=10, ge=3, description="Rows before it says anything.")

    @property
    def spends_budget(self) -> bool:
        return False  # a stated limit passed or it did not

    def build(self, context: Context) -> Detector:
        return Staleness(self, context.trained_to_ms)

    def standing(self, context: Context) -> Standing:
        return Standing(basis="proved", pages=True, note=_FACT)


class _AgeState(msgspec.Struct):
    seen: int
    now_ms: int


class Staleness:
    """The running age. It only grows, so its verdicts are at most two: young when it can first speak, then old."""

    def __init__(self, spec: StalenessSpec, trained_to_ms: int | None) -> None:
        self._spec = spec
        self._trained_ms = trained_to_ms
        self.reset()

    def reset(self) -> None:
        self._seen = 0
        self._now_ms = _NEVER

    @property
    def verdict(self) -> Verdict:
        return self._at(self._now_ms)

    def _at(self, now_ms: int) -> Verdict:
        if self._trained_ms is None:
            return undecided(1.0, "the version does not say until when its training data went")
        if self._seen < self._spec.rows_min:
            return undecided(1.0, "fewer rows than rows_min yet")
        age, limit = now_ms - self._trained_ms, self._spec.age_max
        evidence = Evidence(
            statistic="age over its limit",
            effect=age / DAY_MS,
            effect_name="days since the end of the training data",
            reference=limit / DAY_MS,
            current=age / DAY_MS,
            since_ms=self._trained_ms,
            note=f"trained on data {_words(age)} old, at most {_words(limit)} allowed",
        )
        # A backfill may be scored by a model that was trained after it.
        state = State.DRIFT if age >= limit else State.STABLE
        return Verdict(state=state, score=max(0.0, age / limit), threshold=1.0, evidence=evidence)

    def update(self, rows: Rows) -> list[Change]:
        readable = np.flatnonzero(np.isfinite(rows.values).any(axis=1))
        changes: list[Change] = []
        needed = self._spec.rows_min - self._seen
        if 0 < needed <= len(readable) and self._trained_ms is not None:
            at = int(readable[needed - 1])
            self._seen = self._spec.rows_min
            self._now_ms = max(self._now_ms, int(rows.time_ms[: at + 1].max()))
            changes.append(Change(at, self._now_ms, self._at(self._now_ms)))
        elif needed > 0:
            self._seen = min(self._spec.rows_min, self._seen + len(readable))
        if len(rows):
            changes += self._pass(int(rows.time_ms.max()))
        return changes

    def advance(self, time_ms: int) -> list[Change]:
        return self._pass(time_ms)

    def patience(self) -> tuple[int, int]:
        needed = self._spec.rows_min - self._seen
        if self._trained_ms is None or (needed <= 0 and self.verdict.state is not State.STABLE):
            return NEVER_ROWS, NEVER_MS
        return needed if needed > 0 else NEVER_ROWS, self._trained_ms + self._spec.age_max - 1

    def _pass(self, time_ms: int) -> list[Change]:
        before = self.verdict.state
        self._now_ms = max(self._now_ms, time_ms)
        if before is not State.STABLE or self.verdict.state is not State.DRIFT:
            return []
        assert self._trained_ms is not None
        deadline = self._trained_ms + self._spec.age_max
        return [Change(-1, deadline, self._at(deadline))]

    def snapshot(self) -> bytes:
        return pack(StalenessSpec.kind, _SCHEMA, _AgeState(self._seen, self._now_ms))

    def load(self, data: bytes) -> None:
        state = unpack(StalenessSpec.kind, _SCHEMA, _AgeState, data)
        self._seen, self._now_ms = state.seen, state.now_ms
