"""river's HalfSpaceTrees under the one protocol: an outlier score per event, an alarm on their rate.

Values go through the probability transform first, because the trees split [0, 1]. 17 microseconds a row: give it a sample
(``sample_every``) where traffic is heavy. Tan, Ting and Liu, "Fast anomaly detection for streaming data", 2011. The trees
have no stable form: after a restart they learn again.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> rng = np.random.default_rng(1)
>>> spec = HalfSpaceTreesSpec(warm_up_rows=300, window_rows=100, tree_window=100)
>>> detector = spec.build(Context(("a", "b"), (0, 0), stream="features"))
>>> x = np.concatenate([rng.uniform(0.4, 0.6, (600, 2)), rng.uniform(0.9, 1.0, (300, 2))])
>>> str(detector.update(Rows.of(x, np.arange(900)))[-1].verdict.evidence.effect_name)
'outlier rate'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from pydantic import Field

from detectors.base import Change, Context, Detector, Rows, Spec, Stream, pack, undecided, unpack
from detectors.outlier_rate import OutlierRate, finite_rows
from detectors.transform import column_reference, mid_rank
from schemas.verdicts import Family, Verdict

_SCHEMA = 1


class HalfSpaceTreesSpec(Spec):
    """Options of ``half-space-trees``."""

    kind: ClassVar[str] = "half-space-trees"
    streams: ClassVar[Mapping[Stream, Family]] = {"features": Family.OUTLIER}
    cost_ns: ClassVar[int] = 17_000
    state_size: ClassVar[str] = "about 170 KB, not kept over a restart"
    sees: ClassVar[str] = "events in regions that were empty lately"
    blind_to: ClassVar[str] = "outliers inside the range of each column seen so far; a rate that grows slowly"
    restart: ClassVar[Literal["exact", "warm-up"]] = "warm-up"
    numeric_only: ClassVar[bool] = True

    trees: int = Field(default=10, ge=1, le=100)
    height: int = Field(default=8, ge=1, le=15)
    tree_window: int = Field(default=250, ge=10)
    warm_up_rows: int = Field(default=1_000, ge=10)
    window_rows: int = Field(default=500, ge=10)
    share: float = Field(default=0.01, gt=0, lt=0.5)

    def build(self, context: Context) -> Detector:
        return HalfSpaceTrees(self, context)


class _State(msgspec.Struct):
    rows: int


class HalfSpaceTrees:
    """One forest over all numeric columns; rows with a null are passed over."""

    def __init__(self, spec: HalfSpaceTreesSpec, context: Context) -> None:
        self._spec = spec
        self._context = context
        self._names = context.columns
        self._columns = [column_reference(context.reference, name) for name in context.columns]
        self.reset()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        from river.anomaly import HalfSpaceTrees as River

        self._forest: Any = River(
            n_trees=self._spec.trees,
            height=self._spec.height,
            window_size=self._spec.tree_window,
            limits=dict.fromkeys(self._names, (0.0, 1.0)),
            seed=self._context.seed,
        )
        self._rate = OutlierRate(self._spec.warm_up_rows, self._spec.window_rows, self._spec.share)
        self._rows = 0
        self._verdict = undecided(1.0, "warming up")

    def update(self, rows: Rows) -> list[Change]:
        ranks = np.empty(rows.values.shape)
        for at, column in enumerate(self._columns):
            values = np.where(np.isfinite(rows.values[:, at]), rows.values[:, at], np.nan)
            ranks[:, at] = np.clip(values, 0, 1) if column is None else mid_rank(values, column)
        changes = []
        for at in finite_rows(ranks, rows.sign).tolist():
            row = dict(zip(self._names, ranks[at].tolist(), strict=True))
            score = float(self._forest.score_one(row))
            self._forest.learn_one(row)
            self._rows += 1
            if self._rows <= 2 * self._spec.tree_window:
                continue
            verdict = self._rate.add(score)
            if verdict is None:
                continue
            if verdict.state is not self._verdict.state:
                changes.append(Change(at, int(rows.time_ms[at]), verdict))
            self._verdict = verdict
        return changes

    def advance(self, time_ms: int) -> list[Change]:
        return []

    def snapshot(self) -> bytes:
        return pack(HalfSpaceTreesSpec.kind, _SCHEMA, _State(0))

    def load(self, data: bytes) -> None:
        unpack(HalfSpaceTreesSpec.kind, _SCHEMA, _State, data)
        self.reset()
        self._verdict = undecided(1.0, "restarted: warming up again")
