"""alibi-detect's online drift detectors: ``cvm-online`` and ``fet-online`` a column, ``mmd-online`` and ``lsdd-online`` all.

Each compares a sliding window with the reference at every row, against thresholds that it simulates for an expected run
length in rows: seconds, and cached by content where the library's thresholds depend on nothing else. Run lengths are of
independent rows and short, so none of these pages. After an alarm the window begins anew, after a
restart the whole detector.

``cvm-online`` takes the reference's quantiles as its sample. ``fet-online`` reads what is 0 or 1: on ``features`` whether a
value is missing, on ``loss`` whether the decision was wrong; a rate below two in the expected run is taken to be that, since
the library decides ties by lot and so alarms about events that never happen. The other two read rows without a null and need torch. Costs
are of a row of ten columns.

Ross and Adams, "Two nonparametric control charts for detecting arbitrary distribution changes", 2012 (CVM); Ross, Tasoulis
and Adams, "Sequential monitoring of a Bernoulli sequence when the pre-change parameter is unknown", 2012 (FET); Gretton et
al., "A kernel two-sample test", 2012 (MMD); Bu, Alippi and Zhao, "A pdf-free change detection test based on density
difference estimation", 2016 (LSDD); Cobb, Van Looveren and Klaise, "Sequential multivariate change detection with
calibrated and memoryless false detection rates", 2022 (their thresholds).

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> from schemas.contracts import ColumnReference, Reference
>>> grid = tuple(np.linspace(0, 1, 101))
>>> reference = Reference(score=ColumnReference(rows=101, quantiles=grid))
>>> spec = CvmOnlineSpec(expected_run_rows=400, window_rows=10, warm_up_rows=20)
>>> detector = spec.build(Context(("score",), (0,), reference=reference))
>>> x = np.concatenate([np.random.default_rng(1).uniform(size=30), np.full(15, 0.99)])
>>> [(c.index, str(c.verdict.state)) for c in detector.update(Rows.of(x, np.arange(45)))]
[(19, 'stable'), (35, 'drift')]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from detectors.adapters.alarms import AlarmSpec
from detectors.adapters.alibi import (
    EXTRA,
    EXTRA_TORCH,
    NEEDS,
    NEEDS_TORCH,
    FetMachine,
    OnlineMachine,
    calibrated,
)
from detectors.adapters.extras import imported, module_of
from detectors.adapters.inputs import ErrorInput, Input, Places, column_inputs
from detectors.adapters.machines import Machine
from detectors.base import Context, Rows, Stream
from detectors.outliers.outliers import reference_rows
from detectors.transform import column_reference
from schemas.ids import content_hash
from schemas.verdicts import Family

#: Rows of the reference that the library compares with: its memory and time grow with their square.
_REFERENCE_ROWS_MAX = 500
#: The library sets two windows of the reference aside, and for LSDD two more; what is left must say something.
_WINDOWS_MIN = 8


class OnlineSpec(AlarmSpec):
    """Options of every kind."""

    restart: ClassVar[Literal["exact", "warm-up"]] = "warm-up"
    needs: ClassVar[tuple[str, ...]] = NEEDS
    hears_early: ClassVar[bool] = True

    warm_up_rows: int = Field(default=100, ge=0, description="Not called stable before so many rows.")
    expected_run_rows: int = Field(
        default=1_000, ge=50, description="Rows between false alarms it is calibrated for."
    )
    window_rows: int = Field(default=30, ge=10)
    bootstraps_per_row: int = Field(
        default=3, ge=2, description="Bootstrap samples for each row of the run length."
    )

    @property
    def promise(self) -> str:
        return f"a false alarm every {self.expected_run_rows} rows is expected"

    @property
    def bootstraps(self) -> int:
        """Streams that are simulated for the thresholds."""
        return self.bootstraps_per_row * self.expected_run_rows

    def key(self, context: Context, sample: bytes) -> str:
        """Where thresholds for this sample are kept: they depend on the options, the seed and it."""
        options = self.model_dump_json().encode()
        return f"{self.kind}/{context.seed}/{content_hash(options + sample)}"


class CvmOnlineSpec(OnlineSpec):
    """Options of ``cvm-online``."""

    kind: ClassVar[str] = "cvm-online"
    streams: ClassVar[Mapping[Stream, Family]] = {"score": Family.PREDICTION, "features": Family.INPUT}
    cost_ns: ClassVar[int] = 2_800_000
    state_size: ClassVar[str] = "the reference's quantiles and a window, a column; not kept over a restart"
    sees: ClassVar[str] = "any change of a column's distribution"
    blind_to: ClassVar[str] = "how columns depend on each other; changes that a window of rows cannot show"
    numeric_only: ClassVar[bool] = True
    statistic: ClassVar[str] = "Cramer-von Mises"

    def inputs(self, context: Context) -> list[Input]:
        return column_inputs(context)

    def machine(self, context: Context, at: int) -> Machine | None:
        imported("alibi_detect.cd", "CVMDriftOnline", EXTRA)
        column = column_reference(context.reference, context.columns[at])
        if column is None or not column.quantiles:
            return None
        sample = np.asarray(column.quantiles, np.float32)

        def make() -> Any:
            return calibrated(
                "CVMDriftOnline",
                ("thresholds",),
                context.cache,
                self.key(context, sample.tobytes()),
                x_ref=sample,
                ert=self.expected_run_rows,
                window_sizes=[self.window_rows],
                n_bootstraps=self.bootstraps,
            )

        return OnlineMachine(make, context.seed, self.window_rows)


class MissingInput:
    """Of one column of any kind, 1.0 where there is no value, else 0.0."""

    def __init__(self, context: Context, at: int) -> None:
        self.name: str | None = context.columns[at]
        self._at = at
        found = None if context.reference is None else context.reference.columns.get(context.columns[at])
        self.reference: float | None = None if found is None else found.missing
        known = 0 if found is None else found.rows
        self.rows = int(known / (1 - found.missing)) if found is not None and found.missing < 1 else known

    def read(self, rows: Rows) -> tuple[Places, Sequence[Any], list[float]]:
        places = np.flatnonzero(rows.sign > 0)
        missing = (~np.isfinite(rows.values[places, self._at])).astype(np.float64).tolist()
        return places, missing, missing


class FetOnlineSpec(OnlineSpec):
    """Options of ``fet-online``."""

    kind: ClassVar[str] = "fet-online"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.QUALITY, "loss": Family.CONCEPT}
    cost_ns: ClassVar[int] = 9_500
    state_size: ClassVar[str] = "a window a column, not kept over a restart"
    sees: ClassVar[str] = "a rate that rises (or falls): of missing values of a column, of wrong decisions"
    blind_to: ClassVar[str] = "everything but one rate; small rises, which a window of rows cannot show"
    statistic: ClassVar[str] = "Fisher's exact test"
    finds_unreadable: ClassVar[bool] = True

    alternative: Literal["greater", "less"] = "greater"
    smoothing: float = Field(default=0.99, gt=0, le=1, description="Weight of the newest window's statistic.")
    decision: float | None = Field(
        default=None,
        description="On loss: a score at or above it is a positive decision; default: the contract's.",
    )

    def inputs(self, context: Context) -> list[Input]:
        if context.stream == "loss":
            return [ErrorInput(context, self.decision)]
        return [MissingInput(context, at) for at in range(len(context.columns))]

    def machine(self, context: Context, at: int) -> Machine | None:
        imported("alibi_detect.cd", "FETDriftOnline", EXTRA)
        reading = self.inputs(context)[at]
        assert isinstance(reading, ErrorInput | MissingInput)
        rows = min(reading.rows, _REFERENCE_ROWS_MAX)
        if reading.reference is None or rows < 2:
            return None
        least = math.ceil(2 * rows / self.expected_run_rows)
        ones = min(max(least, round(reading.reference * rows)), rows - 1)
        sample = np.arange(rows) < ones

        def make() -> Any:
            return calibrated(
                "FETDriftOnline",
                ("thresholds", "permit_probs"),
                context.cache,
                self.key(context, sample.tobytes()),
                x_ref=sample,
                ert=self.expected_run_rows,
                window_sizes=[self.window_rows],
                n_bootstraps=self.bootstraps,
                alternative=self.alternative,
                lam=self.smoothing,
            )

        return FetMachine(make, context.seed, self.window_rows)


class RowInput:
    """Whole rows of the numeric columns; those with a null are passed over."""

    name: str | None = None
    reference: float | None = None

    def read(self, rows: Rows) -> tuple[Places, Sequence[Any], list[float]]:
        places = np.flatnonzero(np.isfinite(rows.values).all(axis=1) & (rows.sign > 0))
        return places, list(rows.values[places]), []


class RowsSpec(OnlineSpec):
    """Kinds that compare whole rows, with torch."""

    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.INPUT}
    needs: ClassVar[tuple[str, ...]] = NEEDS_TORCH
    numeric_only: ClassVar[bool] = True
    state_size: ClassVar[str] = "the reference sample and a window of rows, not kept over a restart"
    sees: ClassVar[str] = "any change of how the columns are distributed together"
    library: ClassVar[str]

    def inputs(self, context: Context) -> list[Input]:
        return [RowInput()]

    def machine(self, context: Context, at: int) -> Machine | None:
        module_of("torch", EXTRA_TORCH)
        kind = imported("alibi_detect.cd", self.library, EXTRA_TORCH)
        sample = reference_rows(context)
        sample = sample[np.isfinite(sample).all(axis=1)]
        if len(sample) < _WINDOWS_MIN * self.window_rows:
            return None
        sample = sample[:: -(-len(sample) // _REFERENCE_ROWS_MAX)].astype(np.float32)

        def make() -> Any:
            # The library draws its bootstraps from torch's global generator too.
            torch = module_of("torch", EXTRA_TORCH)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(context.seed)
                return kind(
                    sample,
                    ert=self.expected_run_rows,
                    window_size=self.window_rows,
                    backend="pytorch",
                    device="cpu",
                    n_bootstraps=self.bootstraps,
                    verbose=False,
                )

        return OnlineMachine(make, context.seed, self.window_rows)


class MmdOnlineSpec(RowsSpec):
    """Options of ``mmd-online``."""

    kind: ClassVar[str] = "mmd-online"
    library: ClassVar[str] = "MMDDriftOnline"
    cost_ns: ClassVar[int] = 500_000
    blind_to: ClassVar[str] = (
        "which column moved; columns whose scale is small beside others'; rows with a null"
    )
    statistic: ClassVar[str] = "maximum mean discrepancy"


class LsddOnlineSpec(RowsSpec):
    """Options of ``lsdd-online``."""

    kind: ClassVar[str] = "lsdd-online"
    library: ClassVar[str] = "LSDDDriftOnline"
    cost_ns: ClassVar[int] = 400_000
    blind_to: ClassVar[str] = "which column moved; rows with a null"
    statistic: ClassVar[str] = "least-squares density difference"
