"""alibi-detect's online detectors under the one protocol. An extra: its licence is BUSL 1.1, production use needs one.

Nothing here is imported unless a contract names one of these kinds, and nothing that is on by default needs them.
``cvm-online`` reads one column, usually the score; its calibration by bootstrap takes seconds, so thresholds are cached by
the content they depend on. Its expected run length is in rows and short, so it never pages. ``mahalanobis`` scores whole
rows in cells of ``cell_rows`` by row index, so where a stream is cut cannot show.

Cramer-von Mises online: Ross and Adams, "Two nonparametric control charts for detecting arbitrary distribution changes",
2012. Mahalanobis online: alibi-detect's own, after Knorr and others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import Change, Context, Detector, Rows, Spec, Stream, pack, undecided, unpack
from detectors.outlier_rate import OutlierRate, finite_rows
from detectors.transform import column_reference
from schemas.errors import ConfigurationError
from schemas.ids import content_hash
from schemas.verdicts import Evidence, Family, State, Verdict

_SCHEMA = 1
#: Scores are what is wanted; the library's own yes or no is not.
_NO_BOUND = 1e300
#: The library computes in single precision; ranks do not care about what lies beyond.
_FLOAT32_MAX = 1e30
#: Determinants of what is larger would leave double precision.
_SQUARE_MAX = 1e12
EXTRA = "pip install 'driftline[alibi]' (alibi-detect is under the Business Source License 1.1)"


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """alibi-detect draws from numpy's global generator: lend it a seeded one and give the old one back."""
    kept = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002, TID251
    try:
        yield
    finally:
        np.random.set_state(kept)  # noqa: NPY002


def _imported(module: str, name: str) -> Any:
    from importlib import import_module

    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise ConfigurationError(f"detector kind needs alibi-detect: {EXTRA}") from error


class CvmOnlineSpec(Spec):
    """Options of ``cvm-online``."""

    kind: ClassVar[str] = "cvm-online"
    streams: ClassVar[Mapping[Stream, Family]] = {"score": Family.PREDICTION, "features": Family.INPUT}
    cost_ns: ClassVar[int] = 100_000
    state_size: ClassVar[str] = "the reference sample, not kept over a restart"
    sees: ClassVar[str] = "any change of one column's distribution"
    blind_to: ClassVar[str] = "everything but its one column"
    restart: ClassVar[Literal["exact", "warm-up"]] = "warm-up"
    numeric_only: ClassVar[bool] = True

    expected_run_rows: int = Field(
        default=1_000, ge=50, description="Rows between false alarms it is calibrated for."
    )
    window_rows: int = Field(default=30, ge=10)
    bootstraps_per_row: int = Field(
        default=3, ge=2, description="Bootstrap samples for each row of the run length."
    )
    hold_rows: int = Field(default=1_000, ge=1)

    def build(self, context: Context) -> Detector:
        if len(context.columns) != 1:
            raise ConfigurationError(
                f"cvm-online reads one column, not {len(context.columns)}: name it in `columns`"
            )
        return CvmOnline(self, context)


class _Empty(msgspec.Struct):
    rows: int = 0


class CvmOnline:
    """One column against a sample drawn from its reference quantiles."""

    def __init__(self, spec: CvmOnlineSpec, context: Context) -> None:
        self._spec = spec
        self._context = context
        self._column = column_reference(context.reference, context.columns[0])
        self._made: Any = None
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._rows = 0
        self._quiet = self._spec.hold_rows
        if self._made is not None:
            self._made.reset_state()
        note = "warming up" if self._column is not None else "the version has no reference for this column"
        self._verdict = undecided(1.0, note)

    def _detector(self) -> Any:
        """The library's detector, its thresholds out of the cache when the same were computed before."""
        assert self._column is not None
        quantiles = np.asarray(self._column.quantiles, np.float32)
        key = "cvm/" + content_hash(quantiles.tobytes() + self._spec.model_dump_json().encode())
        kind = _imported("alibi_detect.cd", "CVMDriftOnline")
        cached = self._context.cache.get(key)
        if cached is not None:
            thresholds = np.frombuffer(cached).reshape(-1, 1).copy()
            kind = type(
                kind.__name__, (kind,), {"_configure_thresholds": lambda made: _calibrated(made, thresholds)}
            )
        with _seeded(self._context.seed):
            made = kind(
                quantiles,
                ert=self._spec.expected_run_rows,
                window_sizes=[self._spec.window_rows],
                n_bootstraps=self._spec.bootstraps_per_row * self._spec.expected_run_rows,
                verbose=False,
            )
        self._context.cache[key] = np.asarray(made.thresholds, np.float64).tobytes()
        return made

    def update(self, rows: Rows) -> list[Change]:
        if self._column is None:
            return []
        if self._made is None:
            self._made = self._detector()
        changes = []
        for at in finite_rows(rows.values, rows.sign).tolist():
            value = np.clip(rows.values[at, 0], -_FLOAT32_MAX, _FLOAT32_MAX)
            found = self._made.predict(np.array([value], np.float32))["data"]
            self._rows += 1
            if found["is_drift"]:
                self._quiet = 0
                statistic = float(np.nanmax(found["test_stat"] - found["threshold"]))
                self._made.reset_state()
                verdict = self._said(State.DRIFT, 1 + max(0.0, statistic))
            else:
                self._quiet += 1
                if self._rows < 2 * self._spec.window_rows or self._quiet < self._spec.hold_rows:
                    continue
                verdict = self._said(State.STABLE, 0.0)
            if verdict.state is not self._verdict.state:
                changes.append(Change(at, int(rows.time_ms[at]), verdict))
            self._verdict = verdict
        return changes

    def _said(self, state: State, score: float) -> Verdict:
        evidence = Evidence(
            column=self._context.columns[0],
            statistic="Cramer-von Mises",
            rows=self._rows,
            note=f"a false alarm every {self._spec.expected_run_rows} rows is expected",
        )
        return Verdict(state=state, score=score, threshold=1.0, evidence=evidence)

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def snapshot(self) -> bytes:
        return pack(CvmOnlineSpec.kind, _SCHEMA, _Empty())

    def load(self, data: bytes) -> None:
        unpack(CvmOnlineSpec.kind, _SCHEMA, _Empty, data)
        self.reset()
        if self._column is not None:
            self._verdict = undecided(1.0, "restarted: warming up again")


def _calibrated(made: Any, thresholds: NDArray[np.float64]) -> None:
    made.thresholds = thresholds


class MahalanobisSpec(Spec):
    """Options of ``mahalanobis``."""

    kind: ClassVar[str] = "mahalanobis"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.OUTLIER}
    cost_ns: ClassVar[int] = 30_000
    state_size: ClassVar[str] = "a mean and a covariance, not kept over a restart"
    sees: ClassVar[str] = "events far from the bulk, correlations included"
    blind_to: ClassVar[str] = "outliers that lie between two clusters"
    restart: ClassVar[Literal["exact", "warm-up"]] = "warm-up"
    numeric_only: ClassVar[bool] = True

    components: int = Field(default=3, ge=1)
    cell_rows: int = Field(default=32, ge=1)
    warm_up_rows: int = Field(default=500, ge=10)
    window_rows: int = Field(default=500, ge=10)
    share: float = Field(default=0.01, gt=0, lt=0.5)

    def build(self, context: Context) -> Detector:
        return Mahalanobis(self, context)


class Mahalanobis:
    """alibi-detect's online Mahalanobis distance over all numeric columns; rows with a null are passed over."""

    def __init__(self, spec: MahalanobisSpec, context: Context) -> None:
        self._spec = spec
        self._context = context
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._made: Any = None
        self._held: list[NDArray[np.float64]] = []
        self._rate = OutlierRate(self._spec.warm_up_rows, self._spec.window_rows, self._spec.share)
        self._verdict = undecided(1.0, "warming up")

    def update(self, rows: Rows) -> list[Change]:
        if self._made is None:
            kind = _imported("alibi_detect.od", "Mahalanobis")
            components = min(self._spec.components, len(self._context.columns))
            self._made = kind(
                threshold=_NO_BOUND, n_components=components, start_clip=self._spec.warm_up_rows // 2
            )
        changes = []
        for at in finite_rows(rows.values, rows.sign).tolist():
            self._held.append(np.clip(rows.values[at], -_SQUARE_MAX, _SQUARE_MAX))
            if len(self._held) < self._spec.cell_rows:
                continue
            cell, self._held = np.array(self._held), []
            with np.errstate(all="ignore"):  # what overflows is no finite score, and counts as none
                scores = np.asarray(self._made.score(cell), np.float64)
            for score in scores.tolist():
                verdict = self._rate.add(score if np.isfinite(score) else 0.0)
                if verdict is None:
                    continue
                if verdict.state is not self._verdict.state:
                    changes.append(Change(at, int(rows.time_ms[at]), verdict))
                self._verdict = verdict
        return changes

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def snapshot(self) -> bytes:
        return pack(MahalanobisSpec.kind, _SCHEMA, _Empty())

    def load(self, data: bytes) -> None:
        unpack(MahalanobisSpec.kind, _SCHEMA, _Empty, data)
        self.reset()
        self._verdict = undecided(1.0, "restarted: warming up again")
