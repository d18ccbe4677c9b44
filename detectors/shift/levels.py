"""A column as a few levels, and what the reference proves about each: the common ground of all bets on a column.

Numeric columns are cut at quantiles of the reference, finer in the tails; a value that many reference rows share gets a
level of its own. Categorical columns keep their most frequent categories, the rest is one level (``schemas.bins``). The
last level is "missing". For every cut the reference gives the share of rows below it, known only within bounds where
rows tie between two stored quantiles; :func:`at_most` adds the reference's own sampling error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from schemas.bins import Binning
from schemas.contracts import ColumnReference
from schemas.edges import Edges

Floats = NDArray[np.float64]
Codes = NDArray[np.int32]

#: Where numeric columns are cut, as shares of the reference.
_CUTS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5,
         0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)  # fmt: skip


class Levels:
    """The levels of one column.

    ``size``: number of levels, missing included as the last. Numeric: ``edges (c,)`` ascending, level j holds values in
    ``[edges[j-1], edges[j])``; ``below_min``, ``below_max (c,)`` bound the reference's share below each cut. Categorical:
    ``shares (size-1,)``. ``rows``: reference rows that were not missing; ``missing``: its share of missing ones.
    """

    def __init__(self, column: ColumnReference, discrete: bool = False) -> None:
        self.rows = column.rows
        self.missing = min(1.0, max(0.0, column.missing))
        self.numeric = not column.shares
        self.edges = self.below_min = self.below_max = np.empty(0)
        self._binning: Binning | None = None
        if self.numeric:
            self.edges, self.below_min, self.below_max = _cuts(
                np.asarray(column.quantiles, np.float64), discrete
            )
            self.size = len(self.edges) + 2
        else:
            self._binning = Binning(column)
            self.shares = self._binning.shares
            self.size = self._binning.size

    @property
    def ranks(self) -> Floats:
        """Middle rank of each level that is not missing in the reference, shape ``(size-1,)``."""
        inner = (self.below_min + self.below_max) / 2 if self.numeric else np.cumsum(self.shares)[:-1]
        edges = np.concatenate([[0.0], inner, [1.0]])
        return np.asarray((edges[1:] + edges[:-1]) / 2, np.float64)

    def codes(self, values: Floats) -> Codes:
        """Level of each value, shape ``(n,)``; what is no finite number is missing."""
        if self._binning is not None:
            return self._binning.codes(values).astype(np.int32)
        found = np.searchsorted(self.edges, values, "right").astype(np.int32)
        found[~np.isfinite(values)] = self.size - 1
        return found

    def count(self, values: Floats, into: NDArray[np.int64]) -> None:
        """Add each value to its level of ``into (size,)``."""
        into += np.bincount(self.codes(values), minlength=self.size)


class Cut(Protocol):
    """A column cut into ``size`` cells, the last for missing: by ``edges`` if ``numeric``, else as ``codes`` says."""

    @property
    def size(self) -> int: ...
    @property
    def numeric(self) -> bool: ...
    @property
    def edges(self) -> Floats: ...
    def codes(self, values: Floats) -> NDArray[Any]:
        """Cell of each value, shape ``(n,)``; a value on an edge belongs to the cell above."""

    def count(self, values: Floats, into: NDArray[np.int64]) -> None:
        """Add each value to its cell of ``into (size,)``."""


C = TypeVar("C", bound=Cut)


class Coder(Generic[C]):
    """Codes whole rows: column j's cell plus ``offsets[j]``, so that one table holds all columns' cells."""

    def __init__(self, columns: Sequence[C]) -> None:
        sizes = [column.size for column in columns]
        self.columns = tuple(columns)
        self.offsets = (
            np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32) if sizes else np.empty(0, np.int32)
        )
        self.total = int(sum(sizes))
        self._edges = [Edges(column.edges) if column.numeric else None for column in columns]

    def codes(self, values: Floats) -> Codes:
        """Codes of ``values (n, k)``, shape ``(n, k)``."""
        out = np.empty(values.shape, np.int32, order="F" if values.flags.f_contiguous else "C")
        for at, (column, edges) in enumerate(zip(self.columns, self._edges, strict=True)):
            if edges is None:
                out[:, at] = column.codes(values[:, at])
            else:
                edges.places(values[:, at], column.size - 1, out[:, at])
        out += self.offsets
        return out

    def counts(self, values: Floats) -> NDArray[np.int64]:
        """How many of ``values (n, k)`` have each code, shape ``(total,)``."""
        found = np.zeros(self.total, np.int64)
        for at, (column, edges) in enumerate(zip(self.columns, self._edges, strict=True)):
            own = found[self.offsets[at] : self.offsets[at] + column.size]
            if edges is None:
                column.count(values[:, at], own)
            else:
                own[-1] += edges.count(values[:, at], own[:-1])
        return found


def at_most(share: Floats, rows: int, delta: float) -> Floats:
    """Upper confidence bounds of true shares, all of them at once with probability ``1 - delta``.

    ``share (m,)`` of ``rows`` independent rows. The smaller of a Dvoretzky-Kiefer-Wolfowitz band (Massart 1990, one
    inequality for all nested sets) and exact binomial bounds (Clopper and Pearson 1934) united over the m sets, each at
    half of ``delta``.
    """
    if rows <= 0:
        return np.ones_like(share)
    band = share + np.sqrt(np.log(2 / delta) / (2 * rows))
    hits = np.clip(share, 0, 1) * rows
    inner = betaincinv(hits + 1, np.maximum(rows - hits, 1e-3), 1 - delta / (2 * max(1, len(share))))
    exact = np.where(hits < rows, inner, 1.0)
    return np.asarray(np.clip(np.minimum(band, exact), share, 1.0), np.float64)


def _cuts(quantiles: Floats, discrete: bool) -> tuple[Floats, Floats, Floats]:
    """Cuts with bounds of the share below each. ``quantiles`` at evenly spaced probabilities from 0 to 1."""
    count = len(quantiles)
    if count < 2:
        return np.empty(0), np.empty(0), np.empty(0)
    step = 1 / (count - 1)
    found: dict[float, tuple[float, float]] = {}
    for share in _CUTS:
        value = float(quantiles[round(share / step)])
        first = int(np.searchsorted(quantiles, value, "left"))
        last = int(np.searchsorted(quantiles, value, "right")) - 1
        if first == last and not discrete:
            found[value] = (first * step, first * step)
            continue
        # Rows that equal the value begin somewhere in the step before its first quantile and end after its last.
        found[value] = (max(0.0, (first - 1) * step), first * step)
        found[float(np.nextafter(value, np.inf))] = (last * step, min(1.0, (last + 1) * step))
    cuts = np.array(sorted(found))
    below = np.array([found[cut] for cut in cuts])
    return cuts, np.maximum.accumulate(below[:, 0]), np.maximum.accumulate(below[:, 1])
