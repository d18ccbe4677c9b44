"""Have labels been turned over? Two questions that a drifting world seldom answers with yes, and a poisoner does. Pure.

Against the incumbent's scores: where labels run AGAINST what it says (an AUC well below a half, in one part of the time,
one category, one entity), somebody has negated them, or the world has turned by itself; a machine cannot tell these
apart, so a person decides. A model that has merely grown bad is near a half, and passes.

Against the neighbours: labels flipped at random leave every score right on average but make rows unlike their neighbours.
What can be told from neighbours (AUC - 0.5) is compared between parts of the time, and in the whole with what the
incumbent's held-out span showed when it was validated: noise within what it showed passes, noise beyond is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.training.neighbours import foretold
from deploy.training.refusal import PARTS, Refusal, parts
from deploy.training.scores import auc, auc_error
from deploy.training.snapshot import Snapshot
from schemas.contracts import ModelContract

#: A slice with fewer rows, or fewer of either label, says nothing.
SLICE_ROWS_MIN = 100
SLICE_LABELS_MIN = 20
#: Standard errors by which a slice or a part must be beyond its bound: many are looked at, and few may be wrong.
_SLICE_ERRORS = 3.0
_PART_ERRORS = 3.0
#: Where nothing can be told from neighbours, nothing can be missed.
_TELLING_MIN = 0.05
_SLICES_MAX = 200


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The model in service, of which the snapshot has the scores. ``auc``: what it reached on its own held-out span, None
    if that is not on record."""

    version: str
    auc: float | None = None


def label_refusals(
    snapshot: Snapshot, contract: ModelContract, incumbent: Incumbent | None
) -> Iterator[Refusal]:
    """Why the labels must not be believed, if they must not."""
    limits = contract.training.checks
    if incumbent is not None and limits.against_scores_min > 0:
        yield from _against_scores(snapshot, contract, incumbent, limits.against_scores_min)
    if limits.information_min > 0:
        yield from _against_neighbours(snapshot, contract, incumbent, limits.information_min)


def _against_scores(
    snapshot: Snapshot, contract: ModelContract, incumbent: Incumbent, least: float
) -> Iterator[Refusal]:
    known = np.isfinite(snapshot.scores)
    found = []
    for name, mine in _slices(snapshot, contract):
        rows = mine & known
        labels = snapshot.labels[rows]
        ones = int(labels.sum())
        zeros = len(labels) - ones
        if len(labels) < SLICE_ROWS_MIN or min(ones, zeros) < SLICE_LABELS_MIN:
            continue
        area = auc(labels, snapshot.scores[rows])
        if area + _SLICE_ERRORS * auc_error(area, ones, zeros) < least:
            found.append((area, f"{name} (AUC {area:.2f} on {len(labels)} rows)"))
    if found:
        shown = ", ".join(text for _, text in sorted(found)[:3])
        yield Refusal(
            "labels-against-scores",
            f"labels run against the scores of version {incumbent.version} in {shown}"
            f"{f' and {len(found) - 3} more slices' if len(found) > 3 else ''}: either they were turned over, or the world "
            "was; look, and set training.checks.against_scores_min to 0 if it was the world",
        )


def _slices(snapshot: Snapshot, contract: ModelContract) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    rows = len(snapshot)
    for at, part in enumerate(parts(rows)):
        mask = np.zeros(rows, bool)
        mask[part] = True
        yield f"part {at + 1} of {PARTS}", mask
    columns = [(f.name, snapshot.table[f.name]) for f in contract.features if f.kind == "categorical"]
    for name, column in [*columns, ("entity", snapshot.entities)]:
        texts = column.astype("U")
        values, counts = np.unique(texts, return_counts=True)
        for at in np.argsort(-counts, kind="stable")[:_SLICES_MAX]:
            if counts[at] >= SLICE_ROWS_MIN and values[at]:
                yield f"{name} = {str(values[at])!r}", texts == values[at]


def _against_neighbours(
    snapshot: Snapshot, contract: ModelContract, incumbent: Incumbent | None, least: float
) -> Iterator[Refusal]:
    chosen, shares = foretold(snapshot, contract)
    labels = snapshot.labels[chosen]
    areas = [_area(labels[part], shares[part]) for part in parts(len(chosen))]
    for at, mine in enumerate(areas):
        others = [other[0] - 0.5 for other in areas[:at] + areas[at + 1 :] if other is not None]
        if mine is None or not others or (usual := float(np.median(others))) < _TELLING_MIN:
            continue
        if mine[0] + _PART_ERRORS * mine[1] - 0.5 < least * usual:
            yield Refusal(
                "labels-against-neighbours",
                f"in part {at + 1} of {PARTS}, labels can be told from similar rows with AUC {mine[0]:.2f}, elsewhere with "
                f"{usual + 0.5:.2f}; at least {least:.0%} of that is expected: are labels flipped?",
            )
            return
    whole = _area(labels, shares)
    if whole is None or incumbent is None or incumbent.auc is None or incumbent.auc - 0.5 < _TELLING_MIN:
        return
    if whole[0] + _PART_ERRORS * whole[1] - 0.5 < least * (incumbent.auc - 0.5):
        yield Refusal(
            "labels-against-neighbours",
            f"labels can be told from similar rows with AUC {whole[0]:.2f}, version {incumbent.version} reached "
            f"{incumbent.auc:.2f} when it was validated; at least {least:.0%} of that is expected: are labels flipped?",
        )


def _area(labels: NDArray[np.int8], shares: NDArray[np.float64]) -> tuple[float, float] | None:
    """AUC and its standard error; None where there are too few labels of a kind."""
    ones = int(labels.sum())
    zeros = len(labels) - ones
    if min(ones, zeros) < SLICE_LABELS_MIN:
        return None
    area = auc(labels, shares)
    return area, auc_error(area, ones, zeros)
