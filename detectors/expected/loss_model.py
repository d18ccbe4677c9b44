"""What loss a model makes where: learned from the labelled sample of its reference, for ``dle``.

Boosted trees on the bins that the reference gives each column, fitted to one random half of the sample; all that is said
of their error comes from the other half. Losses are in units of the reference's mean loss, so that integer sums can hold
any loss, and rows are judged by table look-up alone: no value of a row, however absurd, enters any arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detectors.base import FIXED_POINT, Context
from detectors.expected.boosting import Tables, fit
from detectors.transform import column_reference
from schemas.bins import Binning
from schemas.contracts import Reference

Loss = Literal["brier", "squared", "absolute"]
#: Fewer labelled answers teach nothing.
LABELS_MIN = 200
#: Variances are kept coarser than means: they can be larger, and their sums must fit as well.
VARIANCE_FIXED = 1_000_000
#: Columns of the stream before the features.
SCORE, ERROR, FEATURES = 0, 2, 3
_SCORE_BINS = 24
_VARIANCE_BINS = 5
_BLOCKS_MIN = 5
_BLOCK_ROWS_MIN = 20

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class _Coding:
    """One column of the stream as codes. Categories stand in the order of their mean loss, so that a cut can part them."""

    def __init__(self, at: int, binning: Binning | None, edges: Floats) -> None:
        self.at = at
        self._binning = binning
        self._edges = edges
        self.size = len(edges) + 1 if binning is None else binning.size
        self._order = np.arange(self.size)

    def codes(self, values: Floats) -> Ints:
        if self._binning is None:
            return np.asarray(np.searchsorted(self._edges, values, "right"), np.int64)
        return np.asarray(self._order[self._binning.codes(values)], np.int64)

    def sort_by(self, codes: Ints, losses: Floats) -> None:
        """Order what has no order of its own by the mean loss; what never came stands at the overall mean."""
        if self._binning is None or self._binning.numeric:
            return
        counts = np.bincount(codes, minlength=self.size)
        sums = np.bincount(codes, weights=losses - losses.mean(), minlength=self.size)
        self._order = np.argsort(np.argsort(sums / np.maximum(counts, 1), kind="stable"))


@dataclass(frozen=True, slots=True)
class LossModel:
    """Tables, and what the rows held out say of them. ``unit``: the reference's mean loss, in the units of the loss;
    ``spread``: of the estimate between the reference's blocks; ``error``: variance of the model's and the reference's
    means; both in that unit."""

    codings: tuple[_Coding, ...]
    tables: Tables
    correction: int
    edges: Ints
    variances: Ints
    unit: float
    spread: float
    error: float
    rows: int

    def codes(self, values: Floats) -> Ints:
        codes = np.zeros((len(values), len(self.codings)), np.int64)
        for place in self.tables.columns:
            coding = self.codings[place]
            codes[:, place] = coding.codes(values[:, coding.at])
        return codes

    def estimate(self, values: Floats) -> Ints:
        """Expected loss and its variance of each row, fixed point, shape ``(n, 2)``."""
        expected = self.tables.fixed(self.codes(values)) + self.correction
        variance = self.variances[np.searchsorted(self.edges, expected, "right")]
        return np.column_stack([expected, variance])


def learn(
    context: Context, loss: Loss, features_max: int, block_ms: int, block_offset_ms: int
) -> LossModel | None:
    """The model from the reference's sample; None where that has too few labelled answers, or none with a loss."""
    reference = context.reference
    if reference is None:
        return None
    score, label = np.asarray(reference.sample_score), np.asarray(reference.sample_label)
    sample = _sample(reference)
    if not len(score) == len(label) == len(sample) or not len(label):
        return None
    losses = np.abs(score - label) if loss == "absolute" else (score - label) ** 2
    known = np.isfinite(losses)
    if loss == "brier":
        known &= ((label == 0) | (label == 1)) & (score >= 0) & (score <= 1)
    score, sample, losses = score[known], sample[known], losses[known]
    unit = float(losses.mean()) if len(losses) >= LABELS_MIN else 0.0
    if unit <= 0:
        return None
    losses = losses / unit
    values = np.full((len(sample), len(context.columns)), np.nan)
    values[:, SCORE] = score
    edges = np.unique(np.quantile(score, np.linspace(0, 1, _SCORE_BINS + 1)[1:-1]))
    codings = [_Coding(SCORE, None, edges)]
    places = {name: place for place, name in enumerate(reference.columns)}
    for at in range(FEATURES, len(context.columns)):
        name = context.columns[at]
        found = column_reference(reference, name)
        if found is not None and name in places:
            values[:, at] = sample[:, places[name]]
            codings.append(_Coding(at, Binning(found), np.empty(0)))
    held_out = np.random.default_rng(context.seed).permutation(len(losses)) % 2 == 1
    kept, codes = _chosen(codings, values, losses, ~held_out, features_max)
    tables = fit(codes, losses, tuple(c.size for c in kept), held_out)
    return _measured(
        kept, tables, codes, losses, held_out, unit, _blocks_of(reference, known, block_ms, block_offset_ms)
    )


def _sample(reference: Reference) -> Floats:
    """Rows of the sample ``(n, columns)`` in the order of the reference's columns, null as NaN."""
    if not reference.sample or len(reference.sample[0]) != len(reference.columns):
        return np.empty((0, 0))
    rows = [[np.nan if v is None else v for v in row] for row in reference.sample]
    return np.array(rows, np.float64)


def _chosen(
    codings: list[_Coding], values: Floats, losses: Floats, learned_from: NDArray[np.bool_], features_max: int
) -> tuple[tuple[_Coding, ...], Ints]:
    """The score and the features whose bins differ most in mean loss, with the codes of the sample's rows."""
    centred = losses - losses.mean()
    gains, columns = [], []
    for coding in codings:
        codes = coding.codes(values[:, coding.at])
        coding.sort_by(codes[learned_from], losses[learned_from])
        codes = coding.codes(values[:, coding.at])
        counts = np.bincount(codes[learned_from], minlength=coding.size)
        sums = np.bincount(codes[learned_from], weights=centred[learned_from], minlength=coding.size)
        gains.append(float((sums**2 / np.maximum(counts, 1)).sum()))
        columns.append(codes)
    best = 1 + np.argsort(-np.array(gains[1:]), kind="stable")[:features_max]
    picked = [0, *np.sort(best).tolist()]
    return tuple(codings[i] for i in picked), np.column_stack([columns[i] for i in picked])


def _measured(
    codings: tuple[_Coding, ...],
    tables: Tables,
    codes: Ints,
    losses: Floats,
    held_out: NDArray[np.bool_],
    unit: float,
    blocks: Ints | None,
) -> LossModel:
    """How right the tables are on the rows held out, and how far their mean moves over the reference's blocks."""
    guess = tables(codes)
    correction = float((losses - guess)[held_out].mean())
    guess = guess + correction
    checked = guess[held_out]
    squares = (losses[held_out] - checked) ** 2
    edges = np.unique(np.quantile(checked, np.linspace(0, 1, _VARIANCE_BINS + 1)[1:-1]))
    cell = np.searchsorted(edges, checked, "right")
    counts = np.bincount(cell, minlength=len(edges) + 1)
    sums = np.bincount(cell, weights=squares, minlength=len(edges) + 1)
    variances = np.where(counts > 0, sums / np.maximum(counts, 1), float(squares.mean()))
    return LossModel(
        codings,
        tables,
        round(correction * FIXED_POINT),
        np.rint(edges * FIXED_POINT).astype(np.int64),
        np.rint(variances * VARIANCE_FIXED).astype(np.int64),
        unit,
        _spread(guess, blocks),
        float(squares.mean()) / len(squares) + float(losses.var()) / len(losses),
        len(losses),
    )


def _blocks_of(
    reference: Reference, known: NDArray[np.bool_], block_ms: int, block_offset_ms: int
) -> Ints | None:
    times = np.asarray(reference.sample_time_ms, np.int64)
    return (times[known] - block_offset_ms) // block_ms if len(times) == len(known) else None


def _spread(guess: Floats, blocks: Ints | None) -> float:
    """Standard deviation between blocks of the mean estimate, less what the sampling of their rows explains."""
    if blocks is None:
        return 0.0
    groups = [guess[blocks == block] for block in np.unique(blocks).tolist()]
    groups = [group for group in groups if len(group) >= _BLOCK_ROWS_MIN]
    if len(groups) < _BLOCKS_MIN:
        return 0.0
    within = float(np.mean([group.var(ddof=1) / len(group) for group in groups]))
    return math.sqrt(max(0.0, float(np.var([group.mean() for group in groups], ddof=1)) - within))
