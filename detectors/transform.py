"""The probability transform: where a value stands among the reference's values, in [0, 1] with mean 1/2 under it.

One scale for every column, numeric or categorical, so bets and thresholds need no units.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
from numpy.typing import NDArray

from detectors.tools.same import by_identity
from schemas.contracts import ColumnReference, Reference

Floats = NDArray[np.float64]


def column_reference(reference: Reference | None, name: str) -> ColumnReference | None:
    """The reference of a column of any stream; None when there is none with values in it."""
    if reference is None:
        return None
    found = reference.score if name == "score" else reference.columns.get(name)
    return found if found is not None and (found.quantiles or any(found.shares)) else None


@by_identity(4)
def sample_of(reference: Reference) -> Floats:
    """The reference's sample ``(rows, columns)``, at least one row, null as NaN; not to be written to. Raises ValueError when its rows differ
    in length."""
    rows, width = reference.sample, len(reference.sample[0])
    try:
        if any(len(row) != width for row in rows):
            raise ValueError("a reference's sample has rows of different lengths")
        flat = np.fromiter(chain.from_iterable(rows), np.float64, len(rows) * width)
        sample = flat.reshape(-1, width)
    except TypeError:  # there are nulls
        sample = np.array(rows, np.float64)
    sample.setflags(write=False)
    return sample


def mid_rank(values: Floats, column: ColumnReference) -> Floats:
    """Share of the reference below each value plus half of the share equal to it; NaN stays NaN."""
    if column.shares:
        shares = np.asarray(column.shares)
        middle = np.cumsum(shares) - shares / 2
        codes = np.clip(np.nan_to_num(values), 0, len(shares) - 1).astype(np.int64)
        ranks = middle[codes]
    else:
        quantiles = np.asarray(column.quantiles)
        probabilities = np.linspace(0.0, 1.0, len(quantiles))
        # Ties among the quantiles are a value that many reference rows share: its rank is the middle of them.
        left = np.searchsorted(quantiles, values, "left")
        right = np.searchsorted(quantiles, values, "right")
        between = np.interp(values, quantiles, probabilities)
        last = len(quantiles) - 1
        tied = (probabilities[np.minimum(left, last)] + probabilities[np.clip(right - 1, 0, last)]) / 2
        ranks = np.where(right - left > 1, tied, between)
    return np.where(np.isnan(values), np.nan, ranks)


def decile_edges(column: ColumnReference, bins: int) -> Floats:
    """Inner borders of at most ``bins`` cells of about equal share under the reference; ties merge cells."""
    quantiles = np.asarray(column.quantiles)
    places = np.linspace(0, len(quantiles) - 1, bins + 1)[1:-1]
    return np.unique(np.interp(places, np.arange(len(quantiles)), quantiles))
