"""From alarms to a verdict that people can read: what all adapters of change detectors share.

A library's alarm is an event at one row; a verdict is a state. So there is one machine for each column, an alarm of any of
them is ``drift`` for ``hold_rows`` rows without a further one, and silence before ``warm_up_rows``. A row that has nothing
any machine can read is no row: it neither ends a drift nor makes a column stable. Sequential tests cannot take a row back,
so a row of sign -1 changes nothing and a revised outcome is read twice.

None of these bounds its false alarms over many columns and much time (river's defaults alarm every few hundred to few
thousand rows without any change), so none of them pages.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar

import msgspec
import numpy as np
from pydantic import Field

from detectors.adapters.inputs import Input, Places
from detectors.adapters.machines import ALARM, QUIET, WARNING, Level, Machine, Stored
from detectors.base import Change, Context, Detector, Rows, Spec, pack, undecided, unpack
from schemas.errors import SnapshotError
from schemas.verdicts import Evidence, State, Verdict

_SCHEMA = 2
#: Rows whose mean is shown beside the reference's.
_SHOWN_ROWS = 100


class AlarmSpec(Spec):
    """Options of every kind."""

    statistic: ClassVar[str] = ""
    #: Whether an alarm counts within the warm-up: those of machines that compare with a reference do.
    hears_early: ClassVar[bool] = False

    warm_up_rows: int = Field(default=100, ge=0, description="Silent for so many rows of a column.")
    hold_rows: int = Field(
        default=1_000, ge=1, description="An alarm is a drift for so many rows without another."
    )

    @abstractmethod
    def inputs(self, context: Context) -> list[Input]:
        """What is read, one for each machine. Raises ConfigurationError."""

    @abstractmethod
    def machine(self, context: Context, at: int) -> Machine | None:
        """A new machine of the input ``at``; None when the reference that it needs is missing."""

    @property
    def promise(self) -> str:
        """What is known of its false alarms."""
        return "no bound on false alarms"

    def build(self, context: Context) -> Detector:
        return Alarms(self, context)


class _Said(msgspec.Struct):
    """The verdict: its state, the input it is about, and that input's figures when it was reached."""

    state: State = State.INCONCLUSIVE
    at: int | None = None
    current: float | None = None
    rows: int = 0


class _State(msgspec.Struct):
    """Of each input the rows read, the last values for people, whether its machine warns, and the machine's state.
    ``read``: rows any input could read; ``alarm``: the number of that row at which the last alarm was."""

    rows: list[int]
    shown: list[list[float]]
    warned: list[bool]
    machines: list[Any]
    read: int = 0
    alarm: int | None = None
    said: _Said = msgspec.field(default_factory=_Said)


class _Nothing(msgspec.Struct):
    """The snapshot of what cannot be stored."""


class _Heard(msgspec.Struct):
    """A machine said something new at a row of the call."""

    place: int
    at: int
    level: Level
    current: float | None
    rows: int


class Alarms:
    """The running detector of any kind."""

    def __init__(self, spec: AlarmSpec, context: Context) -> None:
        self._spec = spec
        self._context = context
        self._inputs = spec.inputs(context)
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        count = len(self._inputs)
        self._machines = [self._spec.machine(self._context, at) for at in range(count)]
        self._state = _State([0] * count, [[] for _ in range(count)], [False] * count, [])
        self._verdict = self._shown()

    def update(self, rows: Rows) -> list[Change]:
        heard: list[_Heard] = []
        readable = []
        for at, machine in enumerate(self._machines):
            if machine is not None:
                places, values, shown = self._inputs[at].read(rows)
                readable.append(places)
                heard += self._fed(at, machine, places, values, shown)
        if not readable:
            return []
        read = readable[0] if len(readable) == 1 else np.unique(np.concatenate(readable))
        before = self._state.read
        #: (number of the row, what was said at it), and the end.
        changes: list[Change] = []
        heard.sort(key=lambda one: (one.place, one.at))
        for place, group in groupby(heard, key=lambda one: one.place):
            number = before + int(np.searchsorted(read, place)) + 1
            self._settle(number - 1, before, read, rows, changes)
            self._hear(list(group), number)
            self._say(number, before, read, rows, changes)
        self._settle(before + len(read), before, read, rows, changes)
        self._state.read = before + len(read)
        return changes

    def _fed(
        self, at: int, machine: Machine, places: Places, values: Sequence[Any], shown: list[float]
    ) -> list[_Heard]:
        """Give a machine its values; where its level is another one, or an alarm."""
        state = self._state
        before, level = state.rows[at], WARNING if state.warned[at] else QUIET
        heard = []
        for index, value in enumerate(values):
            found = machine.update(value)
            if found == level:
                continue
            level = QUIET if found == ALARM else found
            current = None
            if shown:
                tail = (state.shown[at] + shown[: index + 1])[-_SHOWN_ROWS:]
                current = math.fsum(tail) / len(tail)
            heard.append(_Heard(int(places[index]), at, found, current, before + index + 1))
        state.rows[at] += len(values)
        state.shown[at] = (state.shown[at] + shown[-_SHOWN_ROWS:])[-_SHOWN_ROWS:]
        return heard

    def _hear(self, heard: list[_Heard], number: int) -> None:
        """Take what the machines said at the row ``number``."""
        alarmed, silent_rows = False, 0 if self._spec.hears_early else self._spec.warm_up_rows
        for one in heard:
            self._state.warned[one.at] = one.level == WARNING
            if one.level == ALARM and one.rows > silent_rows and not alarmed:
                alarmed = True
                self._state.alarm = number
                self._state.said = _Said(self._state.said.state, one.at, one.current, one.rows)
        if alarmed and self._verdict.state is State.DRIFT:
            self._verdict = self._shown()

    def _settle(self, upto: int, before: int, read: Places, rows: Rows, changes: list[Change]) -> None:
        """Say what time alone changes by the row ``upto``: the warm-up's end, or the hold's."""
        alarm, state = self._state.alarm, self._verdict.state
        if state is State.INCONCLUSIVE:
            due = max(1, self._spec.warm_up_rows)
        elif state is State.DRIFT and alarm is not None:
            due = alarm + self._spec.hold_rows
        else:
            return
        if before < due <= upto:
            self._say(due, before, read, rows, changes)

    def _say(self, number: int, before: int, read: Places, rows: Rows, changes: list[Change]) -> None:
        """Judge at the row ``number``; a change of state is a change of verdict."""
        state, now = self._state, self._judged(number)
        if now is state.said.state:
            return
        if now is State.DRIFT:
            state.said.state = now
        else:
            at = state.warned.index(True) if now is State.WARNING else None
            state.said = _Said(now, at, None, number)
        self._verdict = self._shown()
        place = int(read[number - before - 1])
        changes.append(Change(place, int(rows.time_ms[place]), self._verdict))

    def _judged(self, number: int) -> State:
        alarm = self._state.alarm
        if alarm is not None and number - alarm < self._spec.hold_rows:
            return State.DRIFT
        if number < max(1, self._spec.warm_up_rows):
            return State.INCONCLUSIVE
        return State.WARNING if any(self._state.warned) else State.STABLE

    def _shown(self) -> Verdict:
        said = self._state.said
        if said.state is State.INCONCLUSIVE:
            known = any(machine is not None for machine in self._machines)
            return undecided(1.0, "warming up" if known else "the version has no reference for these columns")
        if said.at is None:
            return Verdict(state=said.state, score=0.0, threshold=1.0, evidence=Evidence(rows=said.rows))
        reading = self._inputs[said.at]
        evidence = Evidence(
            column=reading.name,
            statistic=self._spec.statistic or self._spec.kind,
            reference=reading.reference,
            current=said.current,
            rows=said.rows,
            note=f"{self._spec.promise}; current: mean of its last {_SHOWN_ROWS} rows",
        )
        score = 1.0 if said.state is State.DRIFT else 0.5
        return Verdict(state=said.state, score=score, threshold=1.0, evidence=evidence)

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def snapshot(self) -> bytes:
        if self._spec.restart == "warm-up":
            return pack(self._spec.kind, _SCHEMA, _Nothing())
        self._state.machines = [m.stored() for m in self._machines if isinstance(m, Stored)]
        return pack(self._spec.kind, _SCHEMA, self._state)

    def load(self, data: bytes) -> None:
        if self._spec.restart == "warm-up":
            unpack(self._spec.kind, _SCHEMA, _Nothing, data)
            self.reset()
            if any(machine is not None for machine in self._machines):
                self._verdict = undecided(1.0, "restarted: warming up again")
            return
        state = unpack(self._spec.kind, _SCHEMA, _State, data)
        self.reset()
        machines = [machine for machine in self._machines if isinstance(machine, Stored)]
        count = len(self._inputs)
        if {len(state.rows), len(state.shown), len(state.warned)} != {count} or len(state.machines) != len(
            machines
        ):
            raise SnapshotError(f"the snapshot of {self._spec.kind!r} was taken with other columns")
        try:
            for machine, stored in zip(machines, state.machines, strict=True):
                machine.load(stored)
        except msgspec.ValidationError as error:
            raise SnapshotError(
                f"the snapshot of {self._spec.kind!r} holds no state of its machines: {error}"
            ) from error
        self._state = state
        self._verdict = self._shown()
