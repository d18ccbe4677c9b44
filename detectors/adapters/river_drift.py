"""river's drift detectors under the one protocol, one a column; those with a name of their own restart exactly.

``adwin``, ``kswin`` and ``page-hinkley`` (and the detectors of errors, in ``river_errors``) are machines of our own with
river's decisions and a state that can be stored. Any other detector of river is ``river-drift`` with its class's ``name``
and ``params``; river's objects have no stable form, so that one starts to learn again after a restart, and says so.

ADWIN's bound and Page-Hinkley's threshold are for values of about [0, 1], so those two read the ranks of a column's values
in the reference where there is one (``ranks: false`` for the values as they are). Costs are of a row of ten columns.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> detector = AdwinSpec().build(Context(("score",), (0,)))
>>> x = np.concatenate([np.zeros(500), np.ones(500)])
>>> [str(c.verdict.state) for c in detector.update(Rows.of(x, np.arange(1000)))]
['stable', 'drift']
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from detectors.adapters.adwin import Adwin
from detectors.adapters.alarms import AlarmSpec
from detectors.adapters.extras import checked_params, classes, imported, made
from detectors.adapters.inputs import ErrorInput, Input, column_inputs
from detectors.adapters.kswin import Kswin
from detectors.adapters.machines import ALARM, QUIET, WARNING, Level, Machine, PageHinkley
from detectors.base import Context, Stream
from schemas.errors import ConfigurationError
from schemas.verdicts import Family

INSTALL = "pip install river"
#: river's base classes of detectors that read numbers, and of those that read errors.
_OF_VALUES = ("DriftDetector", "DriftAndWarningDetector")
_OF_ERRORS = ("BinaryDriftDetector", "BinaryDriftAndWarningDetector")


class ColumnAlarmSpec(AlarmSpec):
    """Kinds with a machine for each numeric column."""

    streams: ClassVar[Mapping[Stream, Family]] = {
        "features": Family.INPUT,
        "score": Family.PREDICTION,
        "loss": Family.CONCEPT,
    }
    numeric_only: ClassVar[bool] = True

    def inputs(self, context: Context) -> list[Input]:
        return column_inputs(context)

    @abstractmethod
    def machine(self, context: Context, at: int) -> Machine: ...


class RankedSpec(ColumnAlarmSpec):
    """Kinds that are made for values of about [0, 1]."""

    ranks: bool = Field(
        default=True, description="Read where values stand in the reference, if there is one, not the values."
    )

    def inputs(self, context: Context) -> list[Input]:
        return column_inputs(context, self.ranks)


class AdwinSpec(RankedSpec):
    """Options of ``adwin``."""

    kind: ClassVar[str] = "adwin"
    knob: ClassVar[str | None] = "delta"
    cost_ns: ClassVar[int] = 21_000
    state_size: ClassVar[str] = "about 3 KB a column"
    sees: ClassVar[str] = "changes of a column's mean, sudden or gradual"
    blind_to: ClassVar[str] = "changes that leave the mean where it was"

    delta: float = Field(default=1e-6, gt=0, lt=1)
    clock: int = Field(default=32, ge=1, description="Looks for a change every so many values.")
    max_buckets: int = Field(default=5, ge=1, le=100)
    min_window_length: int = Field(default=5, ge=1)
    grace_period: int = Field(default=10, ge=2)

    def machine(self, context: Context, at: int) -> Machine:
        return Adwin(self.delta, self.clock, self.max_buckets, self.min_window_length, self.grace_period)


class PageHinkleySpec(RankedSpec):
    """Options of ``page-hinkley``."""

    kind: ClassVar[str] = "page-hinkley"
    knob: ClassVar[str | None] = "threshold"
    cost_ns: ClassVar[int] = 7_500
    state_size: ClassVar[str] = "six numbers a column, and the last hundred values"
    sees: ClassVar[str] = "changes of a column's mean"
    blind_to: ClassVar[str] = "changes that leave the mean where it was"

    min_instances: int = Field(default=30, ge=1)
    delta: float = Field(default=0.005, ge=0, description="A move of the mean this small is none.")
    threshold: float = Field(default=50.0, gt=0)
    alpha: float = Field(
        default=1 - 0.0001, gt=0, le=1, description="What a row leaves of the sums before it."
    )
    mode: Literal["up", "down", "both"] = "both"

    def machine(self, context: Context, at: int) -> Machine:
        return PageHinkley(self.min_instances, self.delta, self.threshold, self.alpha, self.mode)


class KswinSpec(ColumnAlarmSpec):
    """Options of ``kswin``."""

    kind: ClassVar[str] = "kswin"
    knob: ClassVar[str | None] = "alpha"
    cost_ns: ClassVar[int] = 500_000
    state_size: ClassVar[str] = "window_size numbers and 2.5 KB a column"
    sees: ClassVar[str] = "any change of a column's distribution against its own recent past"
    blind_to: ClassVar[str] = "changes slower than its window"

    alpha: float = Field(default=1e-5, gt=0, lt=1)
    window_size: int = Field(default=300, ge=20, le=10_000)
    stat_size: int = Field(default=100, ge=10, le=5_000)

    @model_validator(mode="after")
    def _fits(self) -> KswinSpec:
        if 2 * self.stat_size > self.window_size:
            raise ValueError(
                "stat_size must be at most half of window_size: as many values are drawn from the rest"
            )
        return self

    def machine(self, context: Context, at: int) -> Machine:
        return Kswin(self.alpha, self.window_size, self.stat_size, context.seed)


class RiverDriftSpec(ColumnAlarmSpec):
    """Options of ``river-drift``: a class of ``river.drift`` or, for errors of the loss stream, ``river.drift.binary``."""

    kind: ClassVar[str] = "river-drift"
    cost_ns: ClassVar[int] = 30_000
    state_size: ClassVar[str] = "river's, not kept over a restart"
    sees: ClassVar[str] = "what the named detector sees"
    blind_to: ClassVar[str] = "what the named detector is blind to"
    restart: ClassVar[Literal["exact", "warm-up"]] = "warm-up"

    name: str = "ADWIN"
    params: dict[str, Any] = Field(default_factory=dict, description="Of the class's constructor.")
    decision: float | None = Field(
        default=None,
        description="For detectors of errors: a score at or above it is positive; default: the contract's.",
    )

    @model_validator(mode="after")
    def _known(self) -> RiverDriftSpec:
        kind, _ = self._class()
        checked_params(kind, self.params)
        made(kind, self.params, 0)
        return self

    @property
    def promise(self) -> str:
        return f"river's {self.name}, no bound on false alarms"

    def _class(self) -> tuple[Any, bool]:
        """The class, and whether it reads errors."""
        values = tuple(imported("river.base", name, INSTALL) for name in _OF_VALUES)
        errors = tuple(imported("river.base", name, INSTALL) for name in _OF_ERRORS)
        found = {name: (kind, False) for name, kind in classes("river.drift", values, INSTALL).items()}
        found |= {name: (kind, True) for name, kind in classes("river.drift.binary", errors, INSTALL).items()}
        if self.name not in found:
            raise ValueError(f"river has no drift detector {self.name!r}; it has: {', '.join(sorted(found))}")
        return found[self.name]

    def inputs(self, context: Context) -> list[Input]:
        if not self._class()[1]:
            return super().inputs(context)
        if context.stream != "loss":
            raise ConfigurationError(
                f"river-drift: {self.name} reads errors, so it needs `stream: loss`, not {context.stream}"
            )
        return [ErrorInput(context, self.decision)]

    def machine(self, context: Context, at: int) -> Machine:
        return _RiverMachine(made(self._class()[0], self.params, context.seed))


class _RiverMachine:
    """A detector of river's."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def update(self, value: float) -> Level:
        self._made.update(value)
        if self._made.drift_detected:
            return ALARM
        return WARNING if getattr(self._made, "warning_detected", False) else QUIET
