"""From a model's score to a probability that can be believed, fitted on scores whose labels are known.

Isotonic: the non-decreasing step of least squares (pool adjacent violators; Ayer et al. 1955; Zadrozny and Elkan,
"Transforming classifier scores into accurate multiclass probability estimates", KDD 2002), read between its corners by
straight lines. Platt: ``1 / (1 + exp(-(a logit(score) + b)))`` by maximum likelihood (Platt 1999).

>>> import numpy as np
>>> calibration = isotonic(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1.0, 0.0, 1.0]))
>>> calibration(np.array([0.1, 0.25, 0.9])).tolist()
[0.0, 0.5, 1.0]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_CLIP = 1e-6
_STEPS = 50


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Corners of the function, ascending; constant beyond the first and the last."""

    scores: Floats
    rates: Floats

    def __call__(self, scores: Floats) -> Floats:
        return np.interp(scores, self.scores, self.rates)


@dataclass(frozen=True, slots=True)
class Platt:
    """Slope and intercept on the logit of the score."""

    slope: float
    intercept: float

    def __call__(self, scores: Floats) -> Floats:
        return _expit(self.slope * _logit(scores) + self.intercept)


@dataclass(frozen=True, slots=True)
class Identity:
    """The score as it is, cut to [0, 1]."""

    def __call__(self, scores: Floats) -> Floats:
        return np.clip(scores, 0.0, 1.0)


Calibration = Isotonic | Platt | Identity


def isotonic(scores: Floats, labels: Floats) -> Isotonic:
    """Fit on ``n >= 1`` scores and labels 0 or 1, both ``(n,)``, in any order."""
    places, at = np.unique(scores, return_inverse=True)
    weights = np.bincount(at).astype(np.float64)
    rates = np.bincount(at, weights=labels) / weights
    # Pools of neighbours: mean, weight and how many places each spans.
    pooled: list[list[float]] = []
    for rate, weight in zip(rates.tolist(), weights.tolist(), strict=True):
        pooled.append([rate, weight, 1])
        while len(pooled) > 1 and pooled[-2][0] >= pooled[-1][0]:
            upper, lower = pooled.pop(), pooled.pop()
            total = upper[1] + lower[1]
            pooled.append([(upper[0] * upper[1] + lower[0] * lower[1]) / total, total, upper[2] + lower[2]])
    fitted = np.repeat([p[0] for p in pooled], [int(p[2]) for p in pooled])
    # Only corners count: a place whose neighbours on both sides have its rate adds nothing.
    kept = np.ones(len(places), bool)
    kept[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
    return Isotonic(places[kept], fitted[kept])


def platt(scores: Floats, labels: Floats) -> Platt:
    """Fit by Newton's method; a ridge of 1e-9 keeps it finite where the classes are apart."""
    x = np.column_stack([_logit(scores), np.ones(len(scores))])
    beta = np.array([1.0, 0.0])
    for _ in range(_STEPS):
        p = _expit(x @ beta)
        gradient = x.T @ (labels - p) - 1e-9 * beta
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        beta = beta + np.clip(step, -5.0, 5.0)
        if float(np.abs(step).max()) < 1e-10:
            break
    return Platt(float(beta[0]), float(beta[1]))


def _logit(scores: Floats) -> Floats:
    p = np.clip(scores, _CLIP, 1 - _CLIP)
    return np.asarray(np.log(p) - np.log1p(-p), np.float64)


def _expit(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -700, 700))), np.float64)
