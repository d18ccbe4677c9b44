"""Detectors of a rising error rate on the loss stream: ``ddm``, ``eddm``, ``hddm-a`` and ``hddm-w``.

The error of a row is ``(score >= decision) != label``; its machines are those of ``error_machines``, whose decisions are
river's and whose state is exact over a restart. They look at decisions alone, and river's defaults alarm often without any
change: a ticket, never a page.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> detector = HddmWSpec().build(Context(("score", "label", "loss"), (0, 0, 0), stream="loss"))
>>> label = (np.arange(800) % np.where(np.arange(800) < 400, 10, 2) == 0).astype(float)
>>> rows = Rows.of(np.column_stack([np.full(800, 0.2), label, label]), np.arange(800))
>>> [(c.index, str(c.verdict.state)) for c in detector.update(rows)]
[(99, 'stable'), (426, 'warning'), (427, 'stable'), (428, 'warning'), (436, 'drift')]
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from detectors.adapters.alarms import AlarmSpec
from detectors.adapters.error_machines import Ddm, Eddm, HddmA, HddmW
from detectors.adapters.inputs import ErrorInput, Input
from detectors.adapters.machines import Machine
from detectors.base import Context, Stream
from schemas.verdicts import Family


class ErrorAlarmSpec(AlarmSpec):
    """Kinds with one machine, of the loss stream's error."""

    streams: ClassVar[Mapping[Stream, Family]] = {"loss": Family.CONCEPT}
    state_size: ClassVar[str] = "a dozen numbers, and the last hundred errors"

    decision: float | None = Field(
        default=None, description="A score at or above it is a positive decision; default: the contract's."
    )

    def inputs(self, context: Context) -> list[Input]:
        return [ErrorInput(context, self.decision)]

    @abstractmethod
    def machine(self, context: Context, at: int) -> Machine: ...


class DdmSpec(ErrorAlarmSpec):
    """Options of ``ddm``."""

    kind: ClassVar[str] = "ddm"
    knob: ClassVar[str | None] = "drift_threshold"
    cost_ns: ClassVar[int] = 900
    sees: ClassVar[str] = "an error rate that rises well above the lowest it has had"
    blind_to: ClassVar[str] = (
        "errors that grow slowly over a long stream; a loss that grows while decisions stay right"
    )

    warm_start: int = Field(default=30, ge=1)
    warning_threshold: float = Field(default=2.0, gt=0)
    drift_threshold: float = Field(default=3.0, gt=0)

    def machine(self, context: Context, at: int) -> Machine:
        return Ddm(self.warm_start, self.warning_threshold, self.drift_threshold)


class EddmSpec(ErrorAlarmSpec):
    """Options of ``eddm``."""

    kind: ClassVar[str] = "eddm"
    knob: ClassVar[str | None] = "beta"
    cost_ns: ClassVar[int] = 450
    sees: ClassVar[str] = "errors that come closer to each other, also gradually"
    blind_to: ClassVar[str] = (
        "a loss that grows while decisions stay right; it alarms often without any change"
    )

    warm_start: int = Field(default=30, ge=1)
    alpha: float = Field(
        default=0.95, gt=0, le=1, description="Warns below this share of the greatest distance."
    )
    beta: float = Field(default=0.9, gt=0, le=1, description="Alarms below this share of it.")

    @model_validator(mode="after")
    def _fits(self) -> EddmSpec:
        if self.alpha < self.beta:
            raise ValueError("alpha, where it warns, must be at least beta, where it alarms")
        return self

    def machine(self, context: Context, at: int) -> Machine:
        return Eddm(self.warm_start, self.alpha, self.beta)


class HddmASpec(ErrorAlarmSpec):
    """Options of ``hddm-a``."""

    kind: ClassVar[str] = "hddm-a"
    knob: ClassVar[str | None] = "drift_confidence"
    cost_ns: ClassVar[int] = 1_000
    sees: ClassVar[str] = "a sudden rise of the error rate"
    blind_to: ClassVar[str] = (
        "slow rises, which the next kind sees; a loss that grows while decisions stay right"
    )

    drift_confidence: float = Field(default=0.001, gt=0, lt=1)
    warning_confidence: float = Field(default=0.005, gt=0, lt=1)
    two_sided_test: bool = Field(default=False, description="Also a fall of the error rate is a drift.")

    def machine(self, context: Context, at: int) -> Machine:
        return HddmA(self.drift_confidence, self.warning_confidence, self.two_sided_test)


class HddmWSpec(HddmASpec):
    """Options of ``hddm-w``."""

    kind: ClassVar[str] = "hddm-w"
    cost_ns: ClassVar[int] = 1_700
    sees: ClassVar[str] = "a rise of the error rate among recent rows, also gradual"
    blind_to: ClassVar[str] = "a loss that grows while decisions stay right"

    lambda_val: float = Field(default=0.05, gt=0, lt=1, description="Weight of the newest row.")

    def machine(self, context: Context, at: int) -> Machine:
        return HddmW(self.drift_confidence, self.warning_confidence, self.lambda_val, self.two_sided_test)
