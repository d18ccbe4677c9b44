"""Columns made of many: what moves a little in all of them, or only in how they depend on each other.

Each made column is a fixed projection of the numeric columns' normal scores: their sum, the directions in which the
reference varies most and least (a broken dependence shows first where there was no variance), and the sum of squares.
Its reference distribution comes from the reference's sample of whole rows, so it is a column like any other, with its
own sampling error; dependence between columns is learnt, never assumed. Its zone is what it moves by when EVERY column
moves to the edge of its own, the same way: small moves of many columns that are each declared harmless are harmless
together, and only what they add up to beyond that is evidence. Sums are of integers: exact in any order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from detectors.shift.levels import Coder, Levels
from schemas.contracts import ColumnReference

Floats = NDArray[np.float64]
Codes = NDArray[np.int32]
Ints = NDArray[np.int64]

#: Fewer whole rows than this say too little about dependence.
SAMPLE_MIN = 500
#: Principal directions need a matrix of columns by columns; beyond this many only the sums are made.
_DIRECTIONS_MAX = 64
_SCORE_UNIT = 256
_WEIGHT_UNIT = 1024


class Joint:
    """Made columns of the numeric columns of a coder.

    ``names``, ``levels`` and ``zones`` (shift and scale, as ``detectors.shift.bets`` takes them): one for each, maybe none.
    """

    def __init__(self, coder: Coder[Levels], sample: Floats, zone: float, scale_zone: float) -> None:
        self.names: tuple[str, ...] = ()
        self.levels: tuple[Levels, ...] = ()
        self.zones: tuple[tuple[float, float], ...] = ()
        self._numeric = [
            at for at, column in enumerate(coder.columns) if column.numeric and len(column.edges) > 1
        ]
        if len(self._numeric) < 2 or len(sample) < SAMPLE_MIN:
            return
        self._scores = np.zeros(coder.total, np.int64)
        for at in self._numeric:
            column, start = coder.columns[at], int(coder.offsets[at])
            scores = ndtri(np.clip(column.ranks, 0.001, 0.999))
            self._scores[start : start + column.size - 1] = np.rint(scores * _SCORE_UNIT)
        codes = coder.codes(sample)
        self._weights, names = self._directions(self._scores[codes[:, self._numeric]] / _SCORE_UNIT)
        made = self.values(codes)
        self.names = (*names, "all columns, squared")
        self.levels = tuple(
            Levels(
                ColumnReference(
                    rows=len(made), quantiles=tuple(np.quantile(made[:, at], np.linspace(0, 1, 101)))
                )
            )
            for at in range(len(self.names))
        )

        spread = np.maximum(made.std(axis=0), 1e-9)
        shifts = zone * np.abs(self._weights / _WEIGHT_UNIT).sum(axis=0) / spread[:-1]
        # Squares grow with the scale's square, and by the square of a shift.
        stretch = (1 + scale_zone) ** 2 - 1
        squares = (stretch * made[:, -1].mean() + len(self._numeric) * zone**2) / spread[-1]
        self.zones = (*((float(shift), scale_zone) for shift in shifts), (float(squares), stretch))

    def _directions(self, scores: Floats) -> tuple[Ints, tuple[str, ...]]:
        count = scores.shape[1]
        found = [np.ones(count) / np.sqrt(count)]
        names = ["all columns, summed"]
        if count <= _DIRECTIONS_MAX:
            centred = scores - scores.mean(axis=0)
            _, vectors = np.linalg.eigh(centred.T @ centred)
            for name, at in (
                ("least variance", 0),
                ("second least variance", 1),
                ("most variance", count - 1),
            ):
                vector = vectors[:, at]
                found.append(vector * np.sign(vector[np.argmax(np.abs(vector))]))
                names.append(f"direction of {name}")
        return np.rint(np.array(found).T * _WEIGHT_UNIT).astype(np.int64), tuple(names)

    def values(self, codes: Codes) -> Floats:
        """The made columns of coded rows ``(n, k)``, shape ``(n, made)``; missing counts as the reference's middle."""
        scores = self._scores[codes[:, self._numeric]]
        sums = (scores @ self._weights).astype(np.float64) / (_SCORE_UNIT * _WEIGHT_UNIT)
        squares = (scores * scores).sum(axis=1).astype(np.float64) / _SCORE_UNIT**2
        return np.column_stack([sums, squares])
