"""Isolation forest: an event that random splits separate from the reference in few steps is an outlier.

Each of ``trees`` trees takes ``tree_rows`` rows of the sample and splits them at a random value of a random column, down to
depth ``log2(tree_rows)``; a row's path is the number of splits it passes plus ``c(n)``, the mean path of the n rows left in
its leaf, with ``c(n) = 2 H(n - 1) - 2 (n - 1) / n``. The score is ``2 ** -(mean path / c(tree_rows))``: near 1 for an
outlier, below 1/2 for the bulk. (Liu, Ting and Zhou, "Isolation forest", ICDM 2008.)

Fitted once on the reference's sample, so the state needs no trees: they grow again from sample and seed. Trees are stored
as full binary trees, and a block goes down all of them level by level, three look-ups a level. Paths are added as integers
of 2**-40, so no order of addition can show. A null is scored as its column's median: it neither hides nor makes an outlier.
Categorical columns are left out, as their codes have no order to split. The blamed column is the one whose return to its
median makes the row the least outlying.

>>> import numpy as np
>>> from detectors.base import Context, Rows
>>> rng = np.random.default_rng(1)
>>> x = rng.normal(size=(1_500, 2))
>>> x[1_200] = 4.0, -4.0
>>> detector = IsolationForestSpec().build(Context(("a", "b"), (0, 0), stream="features"))
>>> [change] = detector.update(Rows.of(x, np.arange(1_500)))
>>> change.verdict.evidence.worst[0].identity
1200
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detectors.base import Context
from detectors.outliers.outliers import OutlierSpec, Scorer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Paths are integers of this many parts of one: exact to add, and far below what a score can show.
_PARTS = 2.0**40
#: Rows that go down the forest together: their nodes stay in the cache.
_CHUNK_ROWS = 256
#: A tree splits on at most so many columns, drawn for it; a tree of 256 rows has no use for more.
_TREE_COLUMNS_MAX = 64


class IsolationForestSpec(OutlierSpec):
    """Options of ``isolation-forest``."""

    kind: ClassVar[str] = "isolation-forest"
    cost_ns: ClassVar[int] = 3_800
    state_size: ClassVar[str] = "the window's counts and worst events; without a reference its first rows"
    sees: ClassVar[str] = (
        "events that lie apart from all others, also between clusters, whatever the columns' scales"
    )
    blind_to: ClassVar[str] = (
        "one column far out while the others are usual; how far out beyond the reference's range an event lies"
    )
    statistic: ClassVar[str] = "isolation score"

    trees: int = Field(default=100, ge=1, le=1_000)
    tree_rows: int = Field(default=256, ge=2, le=4_096)

    def fit(self, context: Context, sample: Floats) -> Scorer:
        known = ~np.isnan(sample)
        filled = np.where(known, sample, 0.0)
        usual = np.array(
            [
                np.median(filled[known[:, at], at]) if known[:, at].any() else 0.0
                for at in range(sample.shape[1])
            ]
        )
        rng = np.random.default_rng([context.seed, len(sample)])
        rows = min(self.tree_rows, len(sample))
        return IsolationForest(grown(np.where(known, sample, usual), self.trees, rows, rng), rows, usual)


def path_mean(rows: Floats | Ints) -> Floats:
    """``c(n)``: the mean path length of an unsuccessful search among n rows; 0 for one row, 1 for two."""
    n = np.maximum(np.asarray(rows, np.float64), 2.0)
    mean = 2.0 * (np.log(n - 1.0) + np.euler_gamma) - 2.0 * (n - 1.0) / n
    return np.where(np.asarray(rows) <= 1, 0.0, np.where(np.asarray(rows) == 2, 1.0, mean))


class Trees:
    """``t`` full binary trees of one depth: node i has the children 2i + 1 and 2i + 2, rows with a value of at most the
    threshold go to the first. ``column`` and ``threshold`` are ``(t, 2**depth - 1)``, ``path`` ``(t, 2**depth)`` is the path
    length of the bottom's places. A leaf above the bottom sends all rows one way: its threshold is infinite.
    """

    def __init__(self, column: Ints, threshold: Floats, path: Floats) -> None:
        self.column = column
        self.threshold = threshold
        self.path = path
        self.depth = path.shape[1].bit_length() - 1


def grown(sample: Floats, trees: int, rows: int, rng: np.random.Generator) -> Trees:
    """``trees`` isolation trees on ``rows`` rows each, drawn without replacement from ``sample (m, k)``, no NaN in it.

    All trees grow together, a level at a time. A split takes one of the tree's columns that still vary in the node.
    """
    depth = max(1, math.ceil(math.log2(rows)))
    width = 2**depth
    column = np.zeros((trees, width - 1), np.int64)
    threshold = np.full((trees, width - 1), np.inf)
    path = np.zeros((trees, width))
    member = np.concatenate([rng.permutation(len(sample))[:rows] for _ in range(trees)])
    tree = np.repeat(np.arange(trees), rows)
    node = np.zeros(len(member), np.int64)  # within the level
    k = min(sample.shape[1], _TREE_COLUMNS_MAX)
    columns = np.array([np.sort(rng.permutation(sample.shape[1])[:k]) for _ in range(trees)])
    for level in range(depth):
        order = np.lexsort((node, tree))
        member, tree, node = member[order], tree[order], node[order]
        key = tree << level | node
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        counts = np.diff(starts, append=len(key))
        values = sample[member[:, None], columns[tree]]
        low = np.minimum.reduceat(values, starts, axis=0)
        high = np.maximum.reduceat(values, starts, axis=0)
        draws = np.where(high > low, rng.random(low.shape), -1.0)
        chosen = draws.argmax(axis=1)
        each = np.arange(len(starts))
        splits = draws[each, chosen] >= 0
        low, high = low[each, chosen], high[each, chosen]
        cut = np.minimum(low + rng.random(len(starts)) * (high - low), np.nextafter(high, -np.inf))
        at_tree, at_node = tree[starts], node[starts]
        place = 2**level - 1 + at_node
        column[at_tree[splits], place[splits]] = columns[at_tree, chosen][splits]
        threshold[at_tree[splits], place[splits]] = cut[splits]
        # What does not split is a leaf: it fills all of the bottom that lies under it.
        for leaf in np.flatnonzero(~splits).tolist():
            under = width >> level
            first = int(at_node[leaf]) * under
            path[at_tree[leaf], first : first + under] = level + path_mean(counts[leaf])
        goes_on = np.repeat(splits, counts)
        right = values[np.arange(len(values)), np.repeat(chosen, counts)] > np.repeat(cut, counts)
        member, tree, node = member[goes_on], tree[goes_on], (2 * node + right)[goes_on]
    reached, counts = np.unique(tree << depth | node, return_counts=True)
    path.reshape(-1)[reached] = depth + path_mean(counts)
    return Trees(column, threshold, path)


class IsolationForest:
    """A grown forest; ``usual (k,)`` stands in for nulls."""

    def __init__(self, trees: Trees, rows: int, usual: Floats) -> None:
        self._depth = trees.depth
        self._usual = usual
        self._column = trees.column.astype(np.int64).reshape(-1)
        self._threshold = trees.threshold.reshape(-1)
        self._path = np.rint(trees.path * _PARTS).astype(np.int64).reshape(-1)
        count, nodes = trees.column.shape
        self._trees = count
        #: Of each tree, what takes a node's number to its place in the flat arrays.
        self._node_base = (np.arange(count) * nodes)[:, None]
        self._path_base = (np.arange(count) * (nodes + 1) - nodes)[:, None]
        self._scale = -1.0 / (_PARTS * count * max(float(path_mean(np.array(rows))), 1e-9))

    def score(self, values: Floats, first: int) -> Floats:
        known = np.where(np.isnan(values), self._usual, values)
        paths = np.concatenate(
            [self.paths(known[at : at + _CHUNK_ROWS]).sum(axis=0) for at in range(0, len(known), _CHUNK_ROWS)]
        )
        return np.asarray(np.exp2(paths * self._scale), np.float64)

    def paths(self, values: Floats) -> Ints:
        """Path lengths ``(t, n)`` in parts of 2**-40 of rows ``(n, k)`` without NaN."""
        n, k = values.shape
        flat = np.ascontiguousarray(values).reshape(-1)
        row = (np.arange(n) * k)[None, :]
        node = np.zeros((self._trees, n), np.int64)
        place = np.empty_like(node)
        cell = np.empty_like(node)
        for _ in range(self._depth):
            np.add(node, self._node_base, out=place)
            np.take(self._column, place, out=cell, mode="clip")
            cell += row
            right = np.take(flat, cell, mode="clip") > np.take(self._threshold, place, mode="clip")
            node *= 2
            node += 1
            node += right
        node += self._path_base
        return np.take(self._path, node, mode="clip")

    def blame(self, row: Floats) -> int:
        """The column whose return to its median makes the row the least outlying."""
        known = np.where(np.isnan(row), self._usual, row)
        mended = np.repeat(known[None, :], len(row), axis=0)
        np.fill_diagonal(mended, self._usual)
        return int(np.argmin(self.score(mended, 0)))
