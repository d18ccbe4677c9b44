"""A small regression of one number on binned columns: gradient-boosted trees of depth two, kept as tables of pairs.

For what a detector must learn from a few thousand rows in milliseconds and evaluate on every row. Squared loss, shrunken
steps, histograms for the splits (Friedman, "Greedy function approximation", 2001); the number of trees is the one that
did best on the rows held out. A tree of depth two is a function of one pair of columns on each side of its root, so the
whole ensemble is a sum of tables, one a pair (as in Lou et al., "Accurate intelligible models with pairwise
interactions", KDD 2013): a row costs one look-up a pair, whatever the number of trees. Table entries are integers, so
sums over rows are exact in any order.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> codes = rng.integers(0, 4, (2000, 2))
>>> target = (codes[:, 0] == 1) * (codes[:, 1] >= 2) * 1.0
>>> model = fit(codes, target, sizes=(4, 4), held_out=np.arange(2000) % 2 == 1)
>>> model(np.array([[1, 3], [1, 0], [3, 3]])).round(1).tolist()
[1.0, 0.0, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.base import FIXED_POINT

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TREES_MAX = 120
RATE = 0.1
LEAF_ROWS_MIN = 15
#: Trees without a gain on the held-out rows after which more are not tried.
PATIENCE = 20


@dataclass(frozen=True, slots=True)
class Tables:
    """``offset + sum of table[pair][code_i, code_j]``, tables laid end to end; ``n`` rows in, integers out."""

    offset: int
    first: Ints
    second: Ints
    start: Ints
    width: Ints
    values: Ints
    trees: int

    def fixed(self, codes: Ints) -> Ints:
        """Predictions in parts of ``FIXED_POINT`` for codes ``(n, columns)``, shape ``(n,)``."""
        total = np.full(len(codes), self.offset, np.int64)
        for i, j, start, width in zip(
            self.first.tolist(), self.second.tolist(), self.start.tolist(), self.width.tolist(), strict=True
        ):
            total += self.values[start + codes[:, i] * width + codes[:, j]]
        return total

    def __call__(self, codes: Ints) -> Floats:
        return self.fixed(codes) / FIXED_POINT

    @property
    def columns(self) -> list[int]:
        """Columns that any table reads."""
        return sorted({*self.first.tolist(), *self.second.tolist()})


def fit(codes: Ints, target: Floats, sizes: tuple[int, ...], held_out: NDArray[np.bool_]) -> Tables:
    """Learn from codes ``(n, columns)``, column c in ``range(sizes[c])``, and ``target (n,)``.

    Rows of ``held_out`` choose how many trees are kept and are otherwise not learned from.
    """
    grower = _Grower(codes[~held_out], sizes)
    mine, theirs = target[~held_out].copy(), target[held_out]
    offset = float(mine.mean()) if len(mine) else 0.0
    residual = mine - offset
    checked = codes[held_out]
    guess = np.full(len(theirs), offset)
    best, kept = float(((theirs - guess) ** 2).sum()), 0
    tables: list[dict[tuple[int, int], Floats]] = []
    for _ in range(TREES_MAX):
        tree = grower.grow(residual)
        if tree is None or len(tables) - kept >= PATIENCE:
            break
        tables.append(tree)
        for (i, j), table in tree.items():
            residual -= table[grower.codes[:, i], grower.codes[:, j]]
            guess += table[checked[:, i], checked[:, j]]
        error = float(((theirs - guess) ** 2).sum())
        if error < best:
            best, kept = error, len(tables)
    return _laid_out(offset, tables[:kept], sizes)


class _Grower:
    """Grows one tree after another on the same rows."""

    def __init__(self, codes: Ints, sizes: tuple[int, ...]) -> None:
        self.codes = codes
        self.sizes = sizes
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._flat = codes + self._starts[:-1]
        # A cut after the last bin of a column separates nothing.
        self._last = np.zeros(int(self._starts[-1]), bool)
        self._last[self._starts[1:] - 1] = True

    def grow(self, residual: Floats) -> dict[tuple[int, int], Floats] | None:
        """The next tree as its tables by pair of columns, times the rate; None when no split is worth one."""
        every = np.arange(len(residual))
        root = self._split(every, residual)
        if root is None:
            return None
        column, cut = root
        low = self.codes[:, column] <= cut
        tables: dict[tuple[int, int], Floats] = {}
        for rows, below in ((every[low], True), (every[~low], False)):
            child = self._split(rows, residual)
            other, place = (column, self.sizes[column] - 1) if child is None else child
            pair = (min(column, other), max(column, other))
            table = tables.setdefault(pair, np.zeros((self.sizes[pair[0]], self.sizes[pair[1]])))
            first, second = np.indices(table.shape)
            mine = (first if pair[0] == column else second) <= cut
            mine = mine if below else ~mine
            near = (first if pair[0] == other else second) <= place
            codes = self.codes[rows, other] <= place
            for side, picked in ((near, codes), (~near, ~codes)):
                if picked.any():
                    table[mine & side] += RATE * float(residual[rows[picked]].mean())
        return tables

    def _split(self, rows: Ints, residual: Floats) -> tuple[int, int] | None:
        """(column, last code of its lower side) with the largest gain, if both sides keep enough rows."""
        if len(rows) < 2 * LEAF_ROWS_MIN:
            return None
        flat = self._flat[rows].ravel()
        size = int(self._starts[-1])
        counts = np.bincount(flat, minlength=size).astype(np.float64)
        sums = np.bincount(flat, weights=np.repeat(residual[rows], self.codes.shape[1]), minlength=size)
        n, total = float(len(rows)), float(residual[rows].sum())
        # Running sums start again with each column.
        low_n = np.cumsum(counts) - np.repeat(np.arange(len(self.sizes)) * n, self.sizes)
        low_sum = np.cumsum(sums) - np.repeat(np.arange(len(self.sizes)) * total, self.sizes)
        usable = ~self._last & (low_n >= LEAF_ROWS_MIN) & (n - low_n >= LEAF_ROWS_MIN)
        if not usable.any():
            return None
        safe_n = np.where(usable, low_n, 1.0)
        rest_n = np.where(usable, n - low_n, 1.0)
        gain = np.where(usable, low_sum**2 / safe_n + (total - low_sum) ** 2 / rest_n, -np.inf)
        at = int(gain.argmax())
        if gain[at] - total**2 / n <= 1e-12:
            return None
        column = int(np.searchsorted(self._starts, at, "right")) - 1
        return column, at - int(self._starts[column])


def _laid_out(offset: float, trees: list[dict[tuple[int, int], Floats]], sizes: tuple[int, ...]) -> Tables:
    merged: dict[tuple[int, int], Floats] = {}
    for tree in trees:
        for pair, table in tree.items():
            merged[pair] = merged[pair] + table if pair in merged else table
    pairs = sorted(merged)
    flat = [np.rint(merged[pair] * FIXED_POINT).astype(np.int64).ravel() for pair in pairs]
    return Tables(
        round(offset * FIXED_POINT),
        np.array([i for i, _ in pairs], np.int64),
        np.array([j for _, j in pairs], np.int64),
        np.concatenate([[0], np.cumsum([len(t) for t in flat])])[:-1].astype(np.int64),
        np.array([sizes[j] for _, j in pairs], np.int64),
        np.concatenate(flat) if flat else np.zeros(0, np.int64),
        len(trees),
    )
