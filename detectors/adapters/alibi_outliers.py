"""alibi-detect's outlier detectors: ``alibi-isolation-forest``, fitted once, and ``alibi-mahalanobis``, which learns on.

Our own ``isolation-forest`` and ``mahalanobis`` need no extra and are several times as fast; these are for whoever wants
the library's figures. The forest is scikit-learn's, grown from the reference's sample and the seed (else from the first
rows), so it grows again after a restart and nothing shows; a null is scored as its column's median. The distance is from
principal components that follow the stream, in cells of ``cell_rows`` by row index so that cuts cannot show; rows with a
null are passed over, and after a restart it learns again. Liu, Ting and Zhou, "Isolation forest", ICDM 2008.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> rng = np.random.default_rng(1)
>>> x = rng.normal(size=(1_500, 2))
>>> x[1_200] = 4.0, -4.0
>>> detector = AlibiIsolationForestSpec().build(Context(("a", "b"), (0, 0), stream="features"))
>>> [change] = detector.update(Rows.of(x, np.arange(1_500)))
>>> change.verdict.evidence.worst[0].identity
1200
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.adapters.alibi import EXTRA, NEEDS, seeded
from detectors.adapters.extras import imported
from detectors.base import Change, Context, Detector, Rows, Spec, Stream, pack, undecided, unpack
from detectors.outliers.outlier_limits import tail_of
from detectors.outliers.outlier_rate import OutlierRate, finite_rows
from detectors.outliers.outliers import OutlierSpec, Scorer
from schemas.verdicts import Family, Verdict

Floats = NDArray[np.float64]
_SCHEMA = 2
#: Scores are what is wanted; the library's own yes or no is not.
_NO_BOUND = 1e300
#: Trees compare in single precision.
_FLOAT32_MAX = 1e30
#: Determinants of what is larger would leave double precision.
_SQUARE_MAX = 1e12


class AlibiIsolationForestSpec(OutlierSpec):
    """Options of ``alibi-isolation-forest``."""

    kind: ClassVar[str] = "alibi-isolation-forest"
    cost_ns: ClassVar[int] = 50_000
    state_size: ClassVar[str] = "the window's counts and worst events; without a reference its first rows"
    sees: ClassVar[str] = (
        "events that lie apart from all others, also between clusters, whatever the columns' scales"
    )
    blind_to: ClassVar[str] = (
        "how far out an event lies beyond the reference's range; odd values of one column among very many"
    )
    statistic: ClassVar[str] = "isolation score"
    needs: ClassVar[tuple[str, ...]] = NEEDS

    trees: int = Field(default=100, ge=1, le=1_000)
    tree_rows: int = Field(default=256, ge=2, le=4_096)

    def build(self, context: Context) -> Detector:
        imported("alibi_detect.od", "IForest", EXTRA)
        return super().build(context)

    def fit(self, context: Context, sample: Floats) -> Scorer:
        kind = imported("alibi_detect.od", "IForest", EXTRA)
        usual = np.array([_median(column) for column in sample.T])
        with seeded(context.seed):
            forest = kind(
                threshold=_NO_BOUND,
                n_estimators=self.trees,
                max_samples=min(self.tree_rows, len(sample)),
            )
            forest.fit(_known(sample, usual))
        return _Forest(forest, usual)


def _median(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else 0.0


def _known(values: Floats, usual: Floats) -> Floats:
    return np.clip(np.where(np.isnan(values), usual, values), -_FLOAT32_MAX, _FLOAT32_MAX)


class _Forest:
    """A fitted forest; ``usual (k,)`` stands in for nulls."""

    def __init__(self, forest: Any, usual: Floats) -> None:
        self._forest = forest
        self._usual = usual

    def score(self, values: Floats, first: int) -> Floats:
        if not len(values):
            return np.empty(0)
        return np.asarray(self._forest.score(_known(values, self._usual)), np.float64)

    def blame(self, row: Floats) -> int:
        """The column whose return to its median makes the row the least outlying."""
        mended = np.repeat(_known(row, self._usual)[None, :], len(row), axis=0)
        np.fill_diagonal(mended, self._usual)
        return int(np.argmin(self.score(mended, 0)))


class AlibiMahalanobisSpec(Spec):
    """Options of ``alibi-mahalanobis``."""

    kind: ClassVar[str] = "alibi-mahalanobis"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.OUTLIER}
    cost_ns: ClassVar[int] = 18_000
    state_size: ClassVar[str] = "a mean and a covariance, not kept over a restart"
    sees: ClassVar[str] = "events far from the bulk, correlations included"
    blind_to: ClassVar[str] = "outliers that lie between two clusters; a slow change, which it learns"
    restart: ClassVar[Literal["exact", "warm-up"]] = "warm-up"
    numeric_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = NEEDS

    components: int = Field(default=3, ge=1)
    cell_rows: int = Field(default=32, ge=1)
    share: float = Field(default=0.01, gt=0, lt=0.5, description="Share of rows that are outliers.")
    window_rows: int = Field(default=500, ge=10, description="Rows between verdicts.")
    warm_up_rows: int = Field(default=500, ge=10, description="Rows whose scores set the bound.")
    worst: int = Field(default=5, ge=1, le=100, description="Events of a window kept with their ids.")

    def build(self, context: Context) -> Detector:
        return AlibiMahalanobis(self, context)


class _Nothing(msgspec.Struct):
    """The snapshot of what cannot be stored."""


class AlibiMahalanobis:
    """The library's online distance over all numeric columns."""

    def __init__(self, spec: AlibiMahalanobisSpec, context: Context) -> None:
        self._spec = spec
        self._context = context
        self._kind = imported("alibi_detect.od", "Mahalanobis", EXTRA)
        self._rate = OutlierRate(
            spec.warm_up_rows,
            spec.window_rows,
            spec.share,
            worst=spec.worst,
            tail=tail_of(context, spec.window_rows),
            statistic="Mahalanobis distance",
        )
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._made = self._kind(
            threshold=_NO_BOUND,
            n_components=min(self._spec.components, max(1, len(self._context.columns))),
            start_clip=self._spec.warm_up_rows // 2,
        )
        #: The unfinished cell: values, identity and time of each row.
        self._held: list[tuple[Floats, int, int]] = []
        self._rate.reset()
        self._verdict = self._rate.verdict

    def update(self, rows: Rows) -> list[Change]:
        changes = []
        for at in finite_rows(rows.values, rows.sign).tolist():
            values = np.clip(rows.values[at], -_SQUARE_MAX, _SQUARE_MAX)
            self._held.append((values, int(rows.identity[at]), int(rows.time_ms[at])))
            if len(self._held) < self._spec.cell_rows:
                continue
            for verdict in self._scored():
                self._verdict = verdict
                changes.append(Change(at, int(rows.time_ms[at]), verdict))
        return changes

    def _scored(self) -> list[Verdict]:
        """Score the cell; the verdicts of the windows that end in it."""
        values, identity, time_ms = zip(*self._held, strict=True)
        self._held = []
        with np.errstate(all="ignore"):  # what overflows is no finite score, and counts as none
            scores = np.asarray(self._made.score(np.array(values)), np.float64)
        ended = self._rate.add_many(
            np.where(np.isfinite(scores), scores, 0.0), np.array(identity, np.uint64), np.array(time_ms)
        )
        return [verdict for _, verdict in ended]

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def snapshot(self) -> bytes:
        return pack(self._spec.kind, _SCHEMA, _Nothing())

    def load(self, data: bytes) -> None:
        unpack(self._spec.kind, _SCHEMA, _Nothing, data)
        self.reset()
        self._verdict = undecided(self._verdict.threshold, "restarted: warming up again")
