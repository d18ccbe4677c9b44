"""What are labels told by their neighbours? A measure of how much a data set can teach, without any trainer. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deploy.training.features import fit_encoder
from deploy.training.snapshot import Snapshot
from schemas.contracts import ModelContract

NEIGHBOURS = 30
ROWS_MAX = 12_000


def foretold(snapshot: Snapshot, contract: ModelContract) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Row positions, ascending, and for each the share of positives among the 30 nearest rows of the other half.

    Even and odd rows are the halves, so both span all of the time: a world that has turned does not count against a
    label. Features are ranks (a category by its labels' mean in the other half), missing apart, so that no unit outweighs
    another. At most 12,000 rows, evenly spread, are looked at.
    """
    rows = len(snapshot)
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, ROWS_MAX)).astype(np.int64))
    part = snapshot.take(chosen)
    shares = np.empty(len(part))
    odd = np.arange(len(part)) % 2 == 1
    categorical = [feature.name for feature in contract.features if feature.kind == "categorical"]
    for mine in (odd, ~odd):
        other = part.take(~mine)
        encoder = fit_encoder(
            other.table, other.labels, features=contract.feature_names, categorical=categorical, rows_min=20
        )
        known = encoder.encode(other.table).astype(np.float64)
        asked = encoder.encode(part.take(mine).table).astype(np.float64)
        for column in range(known.shape[1]):
            values = known[:, column]
            order = np.sort(values[np.isfinite(values)])
            known[:, column], asked[:, column] = _ranks(order, values), _ranks(order, asked[:, column])
        count = min(NEIGHBOURS, len(other))
        _, near = cKDTree(known).query(asked, k=count, workers=1)
        shares[mine] = other.labels[np.asarray(near).reshape(-1, count)].mean(axis=1)
    return chosen, shares


def _ranks(order: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mid-ranks in [0, 1] among ``order``; what is missing lies apart from all of them."""
    middle = np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right")
    return np.where(np.isfinite(values), middle / (2.0 * max(1, len(order))), -0.5)
