"""Candidate against incumbent on the same held-out rows: what was answered then beside what would be answered now. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.training.sklearn_trainer import TrainedModel
from deploy.training.snapshot import Snapshot
from schemas.reference import log_losses

#: Fewer common rows than this decide nothing.
ROWS_MIN = 100
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired log losses over ``rows`` held-out rows that the incumbent answered. ``difference``: candidate - incumbent."""

    rows: int
    candidate_loss: float
    incumbent_loss: float
    difference: float
    standard_error: float

    @property
    def worse(self) -> bool:
        """Whether the candidate is worse by more than chance explains."""
        return self.rows >= ROWS_MIN and self.difference > _STANDARD_ERRORS * self.standard_error

    def metrics(self) -> dict[str, float]:
        """For the model card and the report."""
        return {
            "incumbent_rows": float(self.rows),
            "incumbent_log_loss": self.incumbent_loss,
            "log_loss_gain": -self.difference,
        }


def compare(trained: TrainedModel, snapshot: Snapshot, incumbent: str | None) -> Comparison | None:
    """Compare on the rows held out of the fit; None when the incumbent answered none of them."""
    held_out = len(trained.reference["score"])
    late = slice(len(snapshot) - held_out, None)
    common = (snapshot.versions[late] == incumbent) & np.isfinite(snapshot.scores[late])
    rows = int(common.sum())
    if incumbent is None or not rows:
        return None
    labels = snapshot.labels[late][common]
    mine = log_losses(np.asarray(trained.reference["score"], np.float64)[common], labels)
    theirs = log_losses(snapshot.scores[late][common], labels)
    difference = mine - theirs
    error = float(difference.std(ddof=1) / np.sqrt(rows)) if rows > 1 else 0.0
    return Comparison(rows, float(mine.mean()), float(theirs.mean()), float(difference.mean()), error)
