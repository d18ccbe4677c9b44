"""river's anomaly detectors under the one protocol: an outlier score per event, an alarm on their rate.

Any of ``river.anomaly`` that needs no target is ``river-anomaly`` with its class's ``name`` and ``params``; half-space trees are
compiled (``detectors.outliers.half_space_trees``). Some ten microseconds a row, of 10 columns: give it a sample (``sample_every``)
where traffic is heavy. River's objects have no stable form: after a restart they learn again, and say so.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> rng = np.random.default_rng(1)
>>> spec = RiverAnomalySpec(name="HalfSpaceTrees", params={"window_size": 100}, warm_up_rows=300, window_rows=100)
>>> detector = spec.build(Context(("a", "b"), (0, 0), stream="features"))
>>> x = np.concatenate([rng.uniform(0.4, 0.6, (900, 2)), rng.uniform(0.9, 1.0, (300, 2))])
>>> [str(change.verdict.state) for change in detector.update(Rows.of(x, np.arange(1_200)))][:2]
['stable', 'drift']
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from detectors.adapters.extras import checked_params, classes, imported, made
from detectors.adapters.river_drift import INSTALL
from detectors.base import Context
from detectors.outliers.learned import LearnedOutlierSpec, Learner

#: What river has and a stream cannot use, and why.
_UNFIT = {"LocalOutlierFactor": "it keeps every row it has seen"}


class RiverAnomalySpec(LearnedOutlierSpec):
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
