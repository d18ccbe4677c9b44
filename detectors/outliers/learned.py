"""Outliers by what is learnt row by row: each row is scored, then learnt, and the rate of high scores is watched.

Numeric columns are taken on the probability transform; rows with a null are passed over, and those taken back. The first rows
are learnt unscored. What was learnt is not stored: after a restart it is learnt again, and that is said.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import Change, Context, Detector, Rows, Spec, Stream, pack, undecided, unpack
from detectors.outliers.outlier_limits import tail_of
from detectors.outliers.outlier_rate import OutlierRate, finite_rows
from detectors.transform import column_reference, mid_rank
from schemas.verdicts import Family, Verdict

_SCHEMA = 2


class Learner(Protocol):
    """What scores each row, shape (n, k), and then learns it."""

    def scores(self, rows: NDArray[np.float64]) -> NDArray[np.float64]: ...


class LearnedOutlierSpec(Spec):
    """What the kinds below share."""

    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.OUTLIER}
    restart: ClassVar[Literal["exact", "warm-up"]] = "warm-up"
    numeric_only: ClassVar[bool] = True
    statistic: ClassVar[str] = "outlier score"

    share: float = Field(default=0.01, gt=0, lt=0.5, description="Share of rows that are outliers.")
    window_rows: int = Field(default=500, ge=10, description="Rows between verdicts.")
    warm_up_rows: int = Field(default=1_000, ge=10, description="Rows whose scores set the bound.")
    worst: int = Field(default=5, ge=1, le=100, description="Events of a window kept with their ids.")
    effect_min: float = Field(
        default=2.0, ge=1, description="A rate up to this many times the share is no drift."
    )

    @property
    @abstractmethod
    def unscored(self) -> int:
        """Rows that are only learnt."""

    @abstractmethod
    def learner(self, context: Context) -> Learner:
        """A new detector."""

    def build(self, context: Context) -> Detector:
        return LearnedOutliers(self, context)


class _Nothing(msgspec.Struct):
    """The snapshot of what cannot be stored."""


class LearnedOutliers:
    """One learner over all numeric columns."""

    def __init__(self, spec: LearnedOutlierSpec, context: Context) -> None:
        self._spec = spec
        self._context = context
        self._columns = [column_reference(context.reference, name) for name in context.columns]
        self._rate = OutlierRate(
            spec.warm_up_rows,
            spec.window_rows,
            spec.share,
            worst=spec.worst,
            effect_min=spec.effect_min,
            tail=tail_of(context, spec.window_rows),
            statistic=spec.statistic,
        )
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._learner = self._spec.learner(self._context)
        self._rate.reset()
        self._unscored = self._spec.unscored
        self._verdict = self._rate.verdict

    def update(self, rows: Rows) -> list[Change]:
        ranks = np.empty(rows.values.shape)
        for at, column in enumerate(self._columns):
            values = np.where(np.isfinite(rows.values[:, at]), rows.values[:, at], np.nan)
            ranks[:, at] = np.clip(values, 0, 1) if column is None else mid_rank(values, column)
        places = finite_rows(ranks, rows.sign)
        scores = self._learner.scores(ranks[places])
        kept = min(self._unscored, len(places))
        self._unscored -= kept
        places, scores = places[kept:], scores[kept:]
        changes = []
        for at, verdict in self._rate.add_many(scores, rows.identity[places], rows.time_ms[places]):
            self._verdict = verdict
            changes.append(Change(int(places[at]), int(rows.time_ms[places[at]]), verdict))
        return changes

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def snapshot(self) -> bytes:
        return pack(self._spec.kind, _SCHEMA, _Nothing())

    def load(self, data: bytes) -> None:
        unpack(self._spec.kind, _SCHEMA, _Nothing, data)
        self.reset()
        self._verdict = undecided(self._verdict.threshold, "restarted: warming up again")
