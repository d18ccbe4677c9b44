"""The coarse bins of a column: how training counts a reference block by block, and detectors count what comes.

Both sides must cut a column in the same places, and neither may import the other. Numeric: cells between deciles of the
reference, the lowest and the highest hundredth by themselves, for a change of unit shows there first; a value that a
tenth of the reference or more shares (a zero, a constant) has a cell of its own, so that leaving it shows.
Categorical: each of the ``CATEGORIES_MAX`` most frequent categories, then one cell for all others with the unknown
ones. The last cell of either counts what is missing or no finite number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.contracts import ColumnReference
from schemas.json_text import Whole

#: Where numeric columns are cut, as shares of the reference.
NUMERIC_CUTS = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
CATEGORIES_MAX = 10
_COMMON = 0.1

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


class Binning:
    """The bins of one column. ``size``: how many, the last for missing; ``shares``: the reference's, of known rows."""

    def __init__(self, column: ColumnReference) -> None:
        self.numeric = not column.shares
        if self.numeric:
            self._edges = _inner_edges(np.asarray(column.quantiles, np.float64))
            known: Floats = _quantile_shares(np.asarray(column.quantiles, np.float64), self._edges)
        else:
            shares = np.asarray(column.shares, np.float64)
            kept = np.sort(np.argsort(-shares[:-1], kind="stable")[:CATEGORIES_MAX])
            self._cell = np.full(len(shares), len(kept), np.int64)
            self._cell[kept] = np.arange(len(kept))
            known = np.bincount(self._cell, weights=shares, minlength=len(kept) + 1).astype(np.float64)
        self.shares: Floats = known
        self.size = len(known) + 1

    @property
    def edges(self) -> Floats:
        """Inner borders of a numeric column's bins; a value on a border belongs to the bin above."""
        return self._edges if self.numeric else np.empty(0)

    def codes(self, values: Floats) -> Codes:
        """Bin of each value, shape ``(n,)``."""
        known = np.isfinite(values)
        safe = np.where(known, values, 0.0)
        if self.numeric:
            cells = np.searchsorted(self._edges, safe, "right")
        else:
            last = len(self._cell) - 1
            inside = (safe >= 0) & (safe <= last)
            cells = self._cell[np.where(inside, safe, last).astype(np.int64)]
        return np.where(known, cells, self.size - 1).astype(np.int64)

    def counts(self, values: Floats) -> Codes:
        """Rows in each bin, shape ``(size,)``."""
        found = np.zeros(self.size, np.int64)
        self.count(values, found)
        return found

    def count(self, values: Floats, into: Codes) -> None:
        """Add each value to its bin of ``into (size,)``."""
        if self.numeric:
            into += np.bincount(self.codes(values), minlength=self.size)
        else:
            into[-1] += count_codes(values, self._cell, into)


@compiled
def count_codes(values: Floats, cells: Codes, into: Codes) -> Whole:
    """Add each category's code to the cell of ``into`` that ``cells`` says, what is no code to that of the last; how many of the
    values are no finite numbers."""
    none, last = 0, len(cells) - 1
    for i in range(len(values)):
        value = values[i]
        if value - value != 0.0:
            none += 1
        else:
            into[cells[int(value) if 0 <= value <= last else last]] += 1
    return none


def _inner_edges(quantiles: Floats) -> Floats:
    if not len(quantiles):
        return np.empty(0)
    places = np.array(NUMERIC_CUTS) * (len(quantiles) - 1)
    cuts = np.interp(places, np.arange(len(quantiles)), quantiles)
    values, steps = np.unique(quantiles, return_counts=True)
    common = values[steps > _COMMON * (len(quantiles) - 1)]
    # An edge at the smallest value would leave a cell that nothing of the reference falls into.
    edges: Floats = np.unique(
        np.concatenate([cuts[cuts > quantiles[0]], common, np.nextafter(common, np.inf)])
    )
    return edges


def _quantile_shares(quantiles: Floats, edges: Floats) -> Floats:
    if len(quantiles) < 2:
        return np.ones(len(edges) + 1)
    # Each step between neighbouring quantiles holds an equal share of the reference; its middle says in which cell.
    middles = (quantiles[1:] + quantiles[:-1]) / 2
    cells = np.searchsorted(edges, middles, "right")
    return np.asarray(np.bincount(cells, minlength=len(edges) + 1) / len(middles), np.float64)
