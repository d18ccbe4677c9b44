"""Metrics of a classifier that nobody labelled, from the probabilities of the labels, with the spread that chance gives.

Rows are counted by cell of score, cut at the reference's percentiles and at the decision threshold. Given the scores the
labels are independent draws with their calibrated probabilities c, so each count of positives is Poisson-binomial with
mean ``sum c`` and variance ``sum c (1 - c)``. Of a block with A positives expected at or above the threshold, B below:

    accuracy, precision   linear in the labels: mean and variance are exact
    recall                A / (A + B); F1: 2 A / (predicted + A + B); variance by the delta method on A and B
    roc_auc               over cells, ties within a cell counting half; by the delta method on every cell's positives
    brier, log_loss       means of ``c l(1) + (1 - c) l(0)``: exact, variance ``sum c (1 - c) (l(1) - l(0))^2 / n^2``

The cells cost the AUC at most half the share of pairs of unlike labels that share a cell: below 0.005 for 100 cells of
equal share. (Bialek et al., "Estimating model performance under covariate shift without labels", 2024, for the idea.)
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from detectors.base import FIXED_POINT
from detectors.expected.calibration import Calibration

Metric = Literal["roc_auc", "accuracy", "precision", "recall", "f1", "brier", "log_loss"]
METRICS: tuple[Metric, ...] = get_args(Metric)
_CLIP = 1e-6
#: Sums by cell: rows, probabilities, variances of labels.
_SUMS = 3
#: Sums by block: Brier loss and its variance, log loss and its variance.
_TOTALS = 4

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Scale:
    """Where scores are cut, and what they are believed to mean. ``tally`` is a vector of integers, so tallies add up."""

    def __init__(self, quantiles: Floats, threshold: float, calibration: Calibration) -> None:
        self._edges = np.unique(np.append(quantiles, threshold))
        self._positive = int(np.searchsorted(self._edges, threshold)) + 1
        self.calibration = calibration
        self.cells = len(self._edges) + 1
        self.width = _SUMS * self.cells + _TOTALS

    def tally(self, scores: Floats, weights: Floats | None = None) -> Floats:
        """Sums over scores ``(n,)`` in [0, 1], in parts of ``FIXED_POINT`` but for the rows; whole numbers below 2^53, and
        so exact in any order, unless ``weights`` are given."""
        chance = self.calibration(scores)
        spread = chance * (1 - chance)
        clipped = np.clip(scores, _CLIP, 1 - _CLIP)
        one, none = -np.log(clipped), -np.log1p(-clipped)
        parts = [chance, spread]
        totals = [
            scores**2 + chance * (1 - 2 * scores),
            spread * (1 - 2 * scores) ** 2,
            none + chance * (one - none),
            spread * (one - none) ** 2,
        ]
        weight = np.ones(len(scores)) if weights is None else weights
        cell = np.searchsorted(self._edges, scores, "right")
        by_cell = [np.bincount(cell, weights=weight, minlength=self.cells)]
        by_cell += [np.bincount(cell, weights=weight * _fixed(p), minlength=self.cells) for p in parts]
        return np.concatenate([*by_cell, [float((weight * _fixed(t)).sum()) for t in totals]])

    def estimates(self, tally: Floats) -> dict[Metric, tuple[float, float]]:
        """Metric to (estimate, variance of what the labels would make of it); metrics without a meaning are left out."""
        n, chance, spread = tally[: _SUMS * self.cells].reshape(_SUMS, self.cells)
        chance, spread = chance / FIXED_POINT, spread / FIXED_POINT
        brier, brier_spread, log, log_spread = (tally[_SUMS * self.cells :] / FIXED_POINT).tolist()
        rows = float(n.sum())
        if rows <= 0:
            return {}
        said = float(n[self._positive :].sum())
        a, b = float(chance[self._positive :].sum()), float(chance[: self._positive].sum())
        va, vb = float(spread[self._positive :].sum()), float(spread[: self._positive].sum())
        positives, negatives = a + b, rows - a - b
        found: dict[Metric, tuple[float, float]] = {
            "accuracy": ((a + (rows - said) - b) / rows, (va + vb) / rows**2),
            "brier": (brier / rows, brier_spread / rows**2),
            "log_loss": (log / rows, log_spread / rows**2),
        }
        if said > 0:
            found["precision"] = (a / said, va / said**2)
        if positives > 0:
            found["recall"] = (a / positives, (b * b * va + a * a * vb) / positives**4)
            all_ = said + positives
            found["f1"] = (2 * a / all_, 4 * ((said + b) ** 2 * va + a * a * vb) / all_**4)
        if positives > 0 and negatives > 0:
            found["roc_auc"] = _auc(n, chance, spread, positives, negatives)
        return found


def realised(scores: Floats, labels: Floats, threshold: float) -> dict[Metric, float]:
    """The same metrics of rows ``(n,)`` whose labels are known; AUC exact, ties counting half."""
    said = scores >= threshold
    hits = float(labels[said].sum())
    positives, n = float(labels.sum()), len(labels)
    clipped = np.clip(scores, _CLIP, 1 - _CLIP)
    found: dict[Metric, float] = {
        "accuracy": float((said == (labels == 1)).mean()),
        "brier": float(((scores - labels) ** 2).mean()),
        "log_loss": float(-np.where(labels == 1, np.log(clipped), np.log1p(-clipped)).mean()),
    }
    if said.any():
        found["precision"] = hits / float(said.sum())
    if positives:
        found["recall"] = hits / positives
        found["f1"] = 2 * hits / (float(said.sum()) + positives)
    if 0 < positives < n:
        order = np.sort(scores)
        ranks = (np.searchsorted(order, scores, "left") + np.searchsorted(order, scores, "right") + 1) / 2
        wins = float(ranks[labels == 1].sum()) - positives * (positives + 1) / 2
        found["roc_auc"] = wins / (positives * (n - positives))
    return found


def _auc(
    n: Floats, chance: Floats, spread: Floats, positives: float, negatives: float
) -> tuple[float, float]:
    none = n - chance
    below = np.cumsum(none) - none / 2
    above = positives - np.cumsum(chance) + chance / 2
    pairs = positives * negatives
    auc = float((chance * below).sum()) / pairs
    slope = (below - above) / pairs - auc * (1 / positives - 1 / negatives)
    return auc, float((spread * slope**2).sum())


def _fixed(values: Floats) -> Floats:
    return np.asarray(np.rint(values * FIXED_POINT), np.float64)
