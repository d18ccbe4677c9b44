"""Half-space trees, compiled: the trees, masses and scores of river's ``HalfSpaceTrees`` of the same seed.

The trees split [0, 1], so columns are taken on the probability transform (``detectors.outliers.learned``). A node's place among
the nodes of its tree is that of a heap: its children stand at twice its place, plus one and plus two. Costs are of rows of 10
columns. Tan, Ting and Liu, "Fast anomaly detection for streaming data", IJCAI 2011.

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

import random
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import Context
from detectors.outliers.learned import LearnedOutlierSpec, Learner
from schemas.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Of a range to be split, what is left whole on either side.
_PADDING = 0.15
#: A node with a smaller share of a window's rows ends the way of a row.
_SIZE_LIMIT = 0.1


class HalfSpaceTreesSpec(LearnedOutlierSpec):
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


class HalfSpaceTrees:
    """``trees`` of ``height`` over rows of these columns; masses change places every ``window_rows`` rows."""

    def __init__(
        self, columns: tuple[str, ...], trees: int, height: int, window_rows: int, seed: int
    ) -> None:
        nodes = 2 ** (height + 1) - 1
        self._column = np.zeros((trees, nodes), np.int64)
        self._threshold = np.zeros((trees, nodes), np.float64)
        #: Of the window before, by which rows are scored, and of the present one.
        self._masses = np.zeros((2, trees, nodes), np.int64)
        self._height = height
        self._window_rows = window_rows
        #: Rows in the present window, and whether there was one before.
        self._state = np.zeros(2, np.int64)
        rng = random.Random(seed)
        in_order = sorted(range(len(columns)), key=columns.__getitem__)
        for tree in range(trees):
            self._split(tree, 0, height, dict.fromkeys(in_order, (0.0, 1.0)), rng)

    def _split(
        self, tree: int, node: int, height: int, limits: dict[int, tuple[float, float]], rng: random.Random
    ) -> None:
        """Split a node's range, and those of its children, in the order in which river draws."""
        if height == 0:
            return
        column = rng.choices(list(limits), weights=[high - low for low, high in limits.values()])[0]
        low, high = limits[column]
        at = rng.uniform(low + _PADDING * (high - low), high - _PADDING * (high - low))
        self._column[tree, node], self._threshold[tree, node] = column, at
        self._split(tree, 2 * node + 1, height - 1, limits | {column: (low, at)}, rng)
        self._split(tree, 2 * node + 2, height - 1, limits | {column: (at, high)}, rng)

    def scores(self, rows: Floats) -> Floats:
        """Each row's score (high: in regions that were empty lately; 0 in the first window), after which it is learnt; ``rows``
        has shape (n, k) and no NaN."""
        found = np.empty(len(rows))
        _pass(
            np.ascontiguousarray(rows),
            self._column,
            self._threshold,
            self._masses,
            self._height,
            self._window_rows,
            self._state,
            found,
        )
        return found


@compiled
def _pass(
    rows: Floats, columns: Ints, thresholds: Floats, masses: NDArray[np.int64], height: int, window_rows: int, state: Ints,
    found: Floats,
) -> None:  # fmt: skip
    trees, nodes = columns.shape
    most = np.float64(trees) * window_rows * (2 ** (height + 1) - 1)
    for i in range(len(rows)):
        mass = 0.0
        for tree in range(trees):
            node, scoring, weight = 0, state[1] > 0, 1.0
            for depth in range(height + 1):
                if scoring:
                    before = masses[0, tree, node]
                    mass += before * weight
                    weight *= 2.0
                    scoring = before >= _SIZE_LIMIT * window_rows
                masses[1, tree, node] += 1
                if depth < height:
                    right = rows[i, columns[tree, node]] >= thresholds[tree, node]
                    node = 2 * node + (2 if right else 1)
        found[i] = 1.0 - mass / most if state[1] else 0.0
        state[0] += 1
        if state[0] == window_rows:
            state[0], state[1] = 0, 1
            for tree in range(trees):
                for node in range(nodes):
                    masses[0, tree, node] = masses[1, tree, node]
                    masses[1, tree, node] = 0
