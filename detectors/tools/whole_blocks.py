"""The reference's time blocks as rows: all of its traffic in time order, for kinds that only count.

A reference keeps a thin sample of whole rows, and thin rows have lost the neighbours that make real ones alarm. It also keeps
how many rows of each block of time fell into each of a column's bins, of every row there was. For a kind that compares
counts of blocks this is all there is to see: rows with these counts are made, each value standing for its bin. What the
bins merge (rare categories, moves within a tenth) cannot alarm here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detectors.base import Context, Rows
from detectors.transform import column_reference
from schemas.bins import Binning
from schemas.contracts import ColumnReference, Reference

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BLOCKS_MIN = 4
#: Rows made of one block at most; a greater one keeps every k-th, and its shares.
_BLOCK_ROWS_MAX = 50_000
_CHUNK = 4_096


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The later half of the blocks: ``context`` has the earlier half as its reference; ``span_ms`` is theirs together."""

    context: Context
    rows: Iterator[Rows]
    span_ms: float


class _Column:
    """A column's bins, each with a value that falls into it (NaN for the last), and its counts ``(blocks, bins)``."""

    def __init__(self, column: ColumnReference, counts: Ints) -> None:
        self._column = column
        self.counts = counts
        binning = Binning(column)
        if binning.numeric:
            edges = binning.edges
            known = np.append(np.nextafter(edges[:1], -np.inf), edges) if len(edges) else np.zeros(1)
        else:
            cells = binning.codes(np.arange(len(column.shares), dtype=np.float64))
            known = np.array([np.flatnonzero(cells == cell).min() for cell in range(binning.size - 1)], float)
        self.values = np.append(known, np.nan)

    def reference(self, counts: Ints) -> ColumnReference:
        """What the column looks like where its bins hold ``counts (bins,)``."""
        known, rows = counts[:-1], int(counts[:-1].sum())
        missing = float(counts[-1] / max(1, counts.sum()))
        if self._column.shares:
            shares = np.zeros(len(self._column.shares))
            shares[self.values[:-1].astype(np.intp)] = known / max(1, rows)
            return ColumnReference(rows=rows, missing=missing, shares=tuple(shares.tolist()))
        places = np.searchsorted(np.cumsum(known), np.linspace(0, max(0, rows - 1), 101), "right")
        quantiles = self.values[np.minimum(places, len(known) - 1)]
        weights = known / max(1, rows)
        mean = float(weights @ self.values[:-1])
        sd = float(np.sqrt(weights @ (self.values[:-1] - mean) ** 2))
        return ColumnReference(
            rows=rows, missing=missing, quantiles=tuple(quantiles.tolist()), mean=mean, sd=sd
        )

    def drawn(self, block: int, places: Ints) -> Floats:
        """Values of the rows ``places`` of a block, sorted by bin: their order shows in no count."""
        return self.values[np.searchsorted(np.cumsum(self.counts[block]), places, "right")]


def held_out_blocks(context: Context, block_ms: int) -> HeldOut | None:
    """The later half of the reference's blocks; None where they are too few, or do not make up blocks of ``block_ms``."""
    reference = context.reference
    if reference is None or len(reference.block_starts_ms) < BLOCKS_MIN or block_ms % reference.block_ms:
        return None
    columns: dict[str, _Column] = {}
    for name in context.columns:
        column, bins = column_reference(reference, name), reference.bins.get(name)
        if column is None or bins is None or len(bins) != len(reference.block_starts_ms):
            return None
        if len({Binning(column).size, *map(len, bins)}) > 1:
            return None
        columns[name] = _Column(column, np.array(bins, np.int64))
    rows = np.array([column.counts.sum(axis=1) for column in columns.values()])
    if (rows != rows[0]).any():
        return None
    half = len(reference.block_starts_ms) // 2
    earlier = {name: column.reference(column.counts[:half].sum(axis=0)) for name, column in columns.items()}
    made = Reference(
        columns={name: column for name, column in earlier.items() if name != "score"},
        score=earlier.get("score"),
        rows=int(rows[0, :half].sum()),
        from_ms=reference.block_starts_ms[0],
        to_ms=reference.block_starts_ms[half],
    )
    span = float((len(reference.block_starts_ms) - half) * reference.block_ms)
    return HeldOut(
        replace(context, reference=made), _rows(reference, list(columns.values()), rows[0], half), span
    )


def _rows(reference: Reference, columns: list[_Column], rows: Ints, first: int) -> Iterator[Rows]:
    for block in range(first, len(rows)):
        places = np.arange(0, rows[block], max(1, -(-int(rows[block]) // _BLOCK_ROWS_MAX)))
        for low in range(0, len(places), _CHUNK):
            chunk = places[low : low + _CHUNK]
            times = reference.block_starts_ms[block] + chunk * reference.block_ms // max(1, int(rows[block]))
            yield Rows.of(np.column_stack([column.drawn(block, chunk) for column in columns]), times)
