"""river's anomaly detectors under the one protocol: an outlier score per event, an alarm on their rate.

``half-space-trees``, or any other of ``river.anomaly`` that needs no target, as ``river-anomaly`` with its class's ``name``
and ``params``. Each row is scored, then learnt: numeric columns on the probability transform, because the trees split
[0, 1]; rows with a null are passed over, and those taken back. The first rows are learnt unscored. The trees are compiled
(``detectors.outliers.half_space_trees``), with river's scores; the others take some ten microseconds a row: give them a sample
(``sample_every``) where traffic is heavy. Costs are of rows of 10 columns. River's objects have no stable form: after a restart
they learn again, and say so. Tan, Ting and Liu, "Fast anomaly detection for streaming data", IJCAI 2011.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> rng = np.random.default_rng(1)
>>> spec = HalfSpaceTreesSpec(warm_up_rows=300, window_rows=100, tree_window=100)
>>> detector = spec.build(Context(("a", "b"), (0, 0), stream="features"))
>>> x = np.concatenate([rng.uniform(0.4, 0.6, (600, 2)), rng.uniform(0.9, 1.0, (300, 2))])
>>> [str(change.verdict.state) for change in detector.update(Rows.of(x, np.arange(900)))]
['stable', 'drift', 'stable', 'stable']
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from detectors.adapters.extras import checked_params, classes, imported, made
from detectors.adapters.river_drift import INSTALL
from detectors.base import Change, Context, Detector, Rows, Spec, Stream, pack, undecided, unpack
from detectors.outliers.half_space_trees import HalfSpaceTrees
from detectors.outliers.outlier_limits import tail_of
from detectors.outliers.outlier_rate import OutlierRate, finite_rows
from detectors.transform import column_reference, mid_rank
from schemas.verdicts import Family, Verdict

_SCHEMA = 2
#: What river has and a stream cannot use, and why.
_UNFIT = {"LocalOutlierFactor": "it keeps every row it has seen"}


class Learner(Protocol):
    """What scores each row, shape (n, k), and then learns it."""

    def scores(self, rows: NDArray[np.float64]) -> NDArray[np.float64]: ...


class RiverOutlierSpec(Spec):
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
        return RiverOutliers(self, context)


class HalfSpaceTreesSpec(RiverOutlierSpec):
    """Options of ``half-space-trees``."""

    kind: ClassVar[str] = "half-space-trees"
    cost_ns: ClassVar[int] = 900
    state_size: ClassVar[str] = "about 170 KB, not kept over a restart"
    sees: ClassVar[str] = "events in regions that were empty lately"
    blind_to: ClassVar[str] = "outliers inside the range of each column seen so far; a rate that grows slowly"
    statistic: ClassVar[str] = "half-space score"

    trees: int = Field(default=10, ge=1, le=100)
    height: int = Field(default=8, ge=1, le=15)
    tree_window: int = Field(
        default=250, ge=10, description="Rows after which the trees' counts change places."
    )

    @property
    def unscored(self) -> int:
        return 2 * self.tree_window

    def learner(self, context: Context) -> Learner:
        return HalfSpaceTrees(context.columns, self.trees, self.height, self.tree_window, context.seed)


class RiverAnomalySpec(RiverOutlierSpec):
    """Options of ``river-anomaly``: a class of ``river.anomaly`` that scores and learns without a target."""

    kind: ClassVar[str] = "river-anomaly"
    cost_ns: ClassVar[int] = 13_000
    state_size: ClassVar[str] = "river's, not kept over a restart"
    sees: ClassVar[str] = "what the named detector sees"
    blind_to: ClassVar[str] = "what the named detector is blind to"

    name: str = "OneClassSVM"
    params: dict[str, Any] = Field(default_factory=dict, description="Of the class's constructor.")
    unscored_rows: int = Field(default=500, ge=0, description="The first rows are only learnt.")

    @model_validator(mode="after")
    def _known(self) -> RiverAnomalySpec:
        kind = self._class()
        checked_params(kind, self.params)
        made(kind, self.params, 0)
        return self

    def _class(self) -> Any:
        base = imported("river.anomaly.base", "AnomalyDetector", INSTALL)
        found = classes("river.anomaly", (base,), INSTALL)
        if self.name in found and self.name not in _UNFIT:
            return found[self.name]
        reason = _UNFIT.get(self.name, "river has no such detector without a target")
        fit = ", ".join(sorted(set(found) - set(_UNFIT)))
        raise ValueError(f"anomaly detector {self.name!r}: {reason}; there are: {fit}")

    @property
    def unscored(self) -> int:
        return self.unscored_rows

    def learner(self, context: Context) -> Learner:
        return _OneByOne(context.columns, made(self._class(), self.params, context.seed))


class _OneByOne:
    """A detector of river's, which takes rows as mappings."""

    def __init__(self, names: tuple[str, ...], learner: Any) -> None:
        self._names, self._learner = names, learner

    def scores(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.empty(len(rows))
        for index, values in enumerate(rows.tolist()):
            row = dict(zip(self._names, values, strict=True))
            found[index] = self._learner.score_one(row)
            self._learner.learn_one(row)
        return found


class _Nothing(msgspec.Struct):
    """The snapshot of what cannot be stored."""


class RiverOutliers:
    """One detector of river's over all numeric columns."""

    def __init__(self, spec: RiverOutlierSpec, context: Context) -> None:
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
