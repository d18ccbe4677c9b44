"""The cells of one column: where its values are counted, and what the reference had in each of them.

A numeric column is cut at quantiles of the reference. A value that many of its rows share (a zero, an hour, a constant)
gets a cell of its own, or a column that is mostly zeros would have one cell and no detector could see it move. A
categorical column has a cell for each of its most frequent categories, one for the other known ones, and one for unknown
ones. Counts fit bounded memory, and the order of rows cannot show in them.

The reference's quantiles say exactly how much of it lies below a quantile, except where values repeat; there they are
off by up to one step (1 %), and the reference's sample of whole rows, where there is one, is counted instead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.transform import column_reference
from schemas.bins import count_codes
from schemas.contracts import ColumnReference, Reference
from schemas.edges import Edges

Floats = NDArray[np.float64]
CATEGORIES_MAX = 100
#: Rows of a sample from which its counts are worth more than quantiles that are off by a step.
SAMPLE_ROWS_MIN = 200
#: Below this share of distinct values in the sample, values repeat so much that quantiles mislead.
_DISTINCT_MIN = 0.5
NONE = -1


class Cells:
    """``reference (size,)``: its rows by cell. ``bins``: cells of about equal share, None for one a
    quantile. ``sd``: the reference's standard deviation, 0 for a categorical column."""

    def __init__(
        self,
        column: ColumnReference,
        bins: int | None = None,
        sample: Floats | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self.numeric = not column.shares
        self._names = names
        if self.numeric:
            quantiles = np.asarray(column.quantiles, np.float64)
            self.edges, below = _borders(quantiles, bins)
            middles = (quantiles[1:] + quantiles[:-1]) / 2
            self.sd = column.sd if column.sd is not None else float(np.std(middles)) if len(middles) else 0.0
            shares = np.diff(np.concatenate([[0.0], below, [1.0]]))
            self.size = len(self.edges) + 1
            self._search = Edges(self.edges)
            self.reference: Floats = np.asarray(shares * column.rows, np.float64)
            if sample is not None and _repeats(quantiles, sample):
                self.reference = np.bincount(self.codes(sample), minlength=self.size).astype(np.float64)
        else:
            self.sd = 0.0
            of_codes = np.asarray(column.shares, np.float64)
            known = len(of_codes) - 1
            kept = np.sort(np.argsort(-of_codes[:-1], kind="stable")[:CATEGORIES_MAX])
            rest = int(known > len(kept))
            self._cell = np.full(known + 1, len(kept), np.int64)
            self._cell[kept] = np.arange(len(kept))
            self._cell[known] = len(kept) + rest
            self._kept = kept
            self.edges = np.empty(0)
            self.size = len(kept) + rest + 1
            counts = np.bincount(self._cell, weights=of_codes, minlength=self.size)
            self.reference = np.rint(counts * column.rows)

    def codes(self, values: Floats) -> NDArray[np.int64]:
        """Cell of each value, shape ``(n,)``; ``NONE`` for what is no finite number."""
        if self.numeric:
            return self._search.places(values, NONE)
        finite = np.isfinite(values)
        last = len(self._cell) - 1
        inside = (values >= 0) & (values <= last)
        found = self._cell[np.where(inside, values, last).astype(np.int64)]
        return found if finite.all() else np.where(finite, found, NONE)

    def count(self, values: Floats, into: NDArray[np.int64]) -> None:
        """Add each value that is a finite number to its cell of ``into (size,)``."""
        if self.numeric:
            self._search.count(values, into)
        else:
            count_codes(values, self._cell, into)

    def name(self, cell: int) -> str:
        """The cell in a reader's words: an interval, a value, or a category."""
        if not self.numeric:
            if cell == self.size - 1:
                return "unknown categories"
            if cell >= len(self._kept):
                return "the rarer categories"
            code = int(self._kept[cell])
            return repr(self._names[code]) if code < len(self._names) else f"category {code}"
        low = float(self.edges[cell - 1]) if cell > 0 else -np.inf
        high = float(self.edges[cell]) if cell < len(self.edges) else np.inf
        if high == np.nextafter(low, np.inf):
            return f"value {low:.6g}"
        return f"below {high:.6g}" if cell == 0 else f"from {low:.6g} to {high:.6g}"


def short_tails(borders: Floats, *counts: Floats) -> tuple[Floats, ...]:
    """Borders and counts with the two outermost bounded cells cut where their rows end, for distances along the axis.

    These cells reach to the reference's extremes, and rows are not spread over them evenly: an exponential tail, whose
    mean excess the width of the neighbouring cell tells, has them near the inner end.
    """
    if len(borders) < 4:
        return (borders, *counts)
    low = max(borders[0], borders[1] - 2 / np.log(2) * (borders[2] - borders[1]))
    high = min(borders[-1], borders[-2] + 2 / np.log(2) * (borders[-2] - borders[-3]))
    cut = np.concatenate([borders[:1], [low], borders[1:-1], [high], borders[-1:]])
    return (cut, *(np.concatenate([c[:1], [0.0], c[1:-1], [0.0], c[-1:]]) for c in counts))


def cells_of(
    reference: Reference | None, name: str, bins: int | None = None, names: tuple[str, ...] = ()
) -> Cells | None:
    """The cells of a column of any stream; None when the reference has no values of it."""
    column = column_reference(reference, name)
    return None if column is None else Cells(column, bins, sample_of(reference, name), names)


def sample_of(reference: Reference | None, name: str) -> Floats | None:
    """The finite values of a column in the reference's sample; None when there are too few."""
    if reference is None:
        return None
    if name == "score":
        values = np.asarray(reference.sample_score, np.float64)
    elif name in reference.columns:
        at = list(reference.columns).index(name)
        found = [row[at] for row in reference.sample if at < len(row)]
        values = np.array([np.nan if value is None else value for value in found], np.float64)
    else:
        return None
    values = values[np.isfinite(values)]
    return values if len(values) >= SAMPLE_ROWS_MIN else None


def _repeats(quantiles: Floats, sample: Floats) -> bool:
    tied = len(quantiles) > 1 and bool((np.diff(quantiles) == 0).any())
    return tied or len(np.unique(sample)) < _DISTINCT_MIN * len(sample)


def _borders(quantiles: Floats, bins: int | None) -> tuple[Floats, Floats]:
    """Inner borders, and the share of the reference below each. A border belongs to the cell above it."""
    last = max(1, len(quantiles) - 1)
    at = (
        np.linspace(0, len(quantiles) - 1, bins + 1)[1:-1]
        if bins
        else np.arange(len(quantiles), dtype=np.float64)
    )
    wanted = np.interp(at, np.arange(len(quantiles)), quantiles)
    edges: list[float] = []
    below: list[float] = []
    for value in np.unique(wanted).tolist():
        left = int(np.searchsorted(quantiles, value, "left"))
        right = int(np.searchsorted(quantiles, value, "right"))
        place = float(at[np.searchsorted(wanted, value, "left")])
        # The rows of a repeated value begin and end within a step of the quantiles that show it: half a step is the guess.
        repeated = right - left > 1 or len(quantiles) == 1
        edges.append(value)
        below.append(0.0 if left == 0 else (left - 0.5) / last if repeated else place / last)
        if repeated and (bins is None or np.count_nonzero(wanted == value) > 1 or len(quantiles) == 1):
            edges.append(float(np.nextafter(value, np.inf)))
            below.append(1.0 if right == len(quantiles) else (right - 0.5) / last)
    return np.array(edges), np.maximum.accumulate(np.array(below)) if below else np.empty(0)
