"""One change detector of one stream of numbers: what the adapters run, a column each, and what they may store of it.

A machine that can be stored keeps all it has learnt in a plain struct, so a restart shows nowhere. Ours take the same
decisions at the same values as river's classes of the same name (the tests hold them to that), which keep their
state in objects, closures and a native library that have no stable form. After an alarm each begins anew, as river's do.
No values of finite size raise. Page-Hinkley: Page, "Continuous inspection schemes", Biometrika 1954.

>>> machine = PageHinkley(min_instances=10, delta=0.005, threshold=5.0)
>>> [at for at, value in enumerate([0.0] * 50 + [1.0] * 50) if machine.update(value) == ALARM]
[55]
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import msgspec

QUIET, WARNING, ALARM = 0, 1, 2
Level = int


class Machine(Protocol):
    """Anything that takes values one by one and says after each how things stand; an alarm is said once."""

    def update(self, value: Any) -> Level: ...


@runtime_checkable
class Stored(Machine, Protocol):
    """A machine that can be stored."""

    def stored(self) -> msgspec.Struct:
        """The whole running state."""

    def load(self, data: Any) -> None:
        """Become what ``stored`` gave, as decoded. Raises msgspec.ValidationError."""


class StructMachine:
    """A stored machine whose state is the struct ``state``; all else is options."""

    state_type: ClassVar[type[msgspec.Struct]]
    state: Any

    def __init__(self) -> None:
        self.state = self.state_type()

    def stored(self) -> msgspec.Struct:
        return cast(msgspec.Struct, self.state)

    def load(self, data: Any) -> None:
        self.state = msgspec.convert(data, self.state_type)


class PageHinkleyState(msgspec.Struct):
    """``increase`` and ``decrease``: the two faded sums; then the least and the greatest they have been."""

    rows: int = 0
    mean: float = 0.0
    increase: float = 0.0
    decrease: float = 0.0
    increase_min: float = math.inf
    decrease_max: float = -1.0


class PageHinkley(StructMachine):
    """Two-sided unless ``mode`` is ``up`` or ``down``; ``alpha`` fades the sums."""

    state_type = PageHinkleyState

    def __init__(
        self,
        min_instances: int = 30,
        delta: float = 0.005,
        threshold: float = 50.0,
        alpha: float = 1 - 0.0001,
        mode: str = "both",
    ) -> None:
        super().__init__()
        self._min_instances = min_instances
        self._delta = delta
        self._alpha = alpha
        self._up = threshold if mode in ("up", "both") else math.inf
        self._down = threshold if mode in ("down", "both") else math.inf

    def update(self, value: float) -> Level:
        state = self.state
        state.rows += 1
        state.mean += (1.0 / state.rows) * (value - state.mean)
        move = value - state.mean
        state.increase = self._alpha * state.increase + move - self._delta
        state.decrease = self._alpha * state.decrease + move + self._delta
        if state.increase < state.increase_min:
            state.increase_min = state.increase
        if state.decrease > state.decrease_max:
            state.decrease_max = state.decrease
        if state.rows >= self._min_instances and (
            state.increase - state.increase_min > self._up or state.decrease_max - state.decrease > self._down
        ):
            self.state = PageHinkleyState()
            return ALARM
        return QUIET
