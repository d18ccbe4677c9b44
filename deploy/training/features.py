"""How a row of named features becomes the one float32 row a model reads, stated in data so it travels with the model.

A model is only as good as the rows it is given, so the encoding is part of the version: it is fitted with the model,
stored beside it as JSON, and applied by the scorer. Categories are coded by their rank in the training labels' mean
(trees split well on it); what was rare or unseen in training shares one code of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import ContractError

Table = Mapping[str, npt.NDArray[Any]]

HOURS_A_DAY = 24


@dataclass(frozen=True)
class Encoder:
    """The stated mapping from named columns to a matrix.

    ``features``: column order. ``categories``: for each categorical feature its codes by text. ``other``: the code for
    everything else, one for each categorical feature. ``hour_shift``: hours added, around the clock, to the feature
    named ``hour``; 0 is right, and anything else is the defect the demo injects into its third version ("departure
    hour in UTC": +4 while New York keeps daylight saving time).
    """

    features: tuple[str, ...]
    categories: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    other: Mapping[str, int] = field(default_factory=dict)
    hour_shift: int = 0

    def encode(self, table: Table) -> npt.NDArray[np.float32]:
        """Columns of length n to a ``[n, len(features)]`` float32 matrix; missing numbers are NaN.

        Raises ``ContractError`` naming the columns that are absent.
        """
        absent = [name for name in self.features if name not in table]
        if absent:
            raise ContractError(
                f"cannot encode rows without the feature(s) {', '.join(absent)}: send every feature"
            )
        rows = len(table[self.features[0]]) if self.features else 0
        matrix = np.empty((rows, len(self.features)), dtype=np.float32)
        for at, name in enumerate(self.features):
            matrix[:, at] = self._column(name, table[name])
        return matrix

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
        """The same for a few rows as JSON objects, as a scorer receives them; an absent or null number is NaN."""
        matrix = np.empty((len(rows), len(self.features)), dtype=np.float32)
        for at, name in enumerate(self.features):
            values = [row.get(name) for row in rows]
            if name in self.categories:
                codes, other = self.categories[name], self.other[name]
                matrix[:, at] = [
                    codes.get(value, other) if isinstance(value, str) else other for value in values
                ]
            else:
                numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
                matrix[:, at] = self._shifted(name, numbers)
        return matrix

    def with_hour_shift(self, hours: int) -> Encoder:
        """The same encoder with the pipeline defect of ``hours`` (0 takes it away)."""
        return Encoder(self.features, self.categories, self.other, hours)

    def to_json(self) -> str:
        """Canonical text: equal encoders give equal bytes, so that a checksum over it means something."""
        return json.dumps(
            {
                "features": list(self.features),
                "categories": {name: dict(codes) for name, codes in self.categories.items()},
                "other": dict(self.other),
                "hour_shift": self.hour_shift,
            },
            sort_keys=True,
            separators=(",", ":"),
        )

    @staticmethod
    def from_json(text: str) -> Encoder:
        """Inverse of :meth:`to_json`. Raises ``ContractError`` if a key is missing or the text is not JSON."""
        try:
            raw = json.loads(text)
            return Encoder(tuple(raw["features"]), raw["categories"], raw["other"], int(raw["hour_shift"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ContractError(
                f"stored encoder cannot be read ({error!r}): register the version again"
            ) from error

    def _column(self, name: str, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if name not in self.categories:
            return self._shifted(name, np.asarray(column, dtype=np.float64))
        codes, other = self.categories[name], self.other[name]
        return np.fromiter((codes.get(value, other) for value in column), dtype=np.float32, count=len(column))

    def _shifted(self, name: str, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return (numbers + self.hour_shift) % HOURS_A_DAY if name == "hour" and self.hour_shift else numbers


def fit_encoder(
    table: Table,
    labels: npt.NDArray[Any],
    *,
    features: Sequence[str],
    categorical: Sequence[str],
    rows_min: int = 50,
) -> Encoder:
    """Rank each category by the mean label of its training rows; pool those with fewer than ``rows_min`` as "other".

    The pooled code is placed by the pooled rows' mean too (the overall mean if none are rare), so an unknown category
    is treated as a typical rare one. Raises ``ContractError`` if a categorical feature is not among the features.
    """
    stray = sorted(set(categorical) - set(features))
    if stray:
        raise ContractError(f"categorical feature(s) {', '.join(stray)} are not among the model's features")
    labels = np.asarray(labels, dtype=np.float64)
    categories: dict[str, dict[str, int]] = {}
    others: dict[str, int] = {}
    for name in categorical:
        values, code_of = np.unique(np.asarray(table[name]).astype("U"), return_inverse=True)
        counts = np.bincount(code_of, minlength=len(values))
        sums = np.bincount(code_of, weights=labels, minlength=len(values))
        common = counts >= rows_min
        rare_rows = counts[~common].sum()
        rare_mean = sums[~common].sum() / rare_rows if rare_rows else labels.mean()
        means = {str(v): s / c for v, s, c in zip(values[common], sums[common], counts[common], strict=True)}
        ranked = sorted([*((mean, text) for text, mean in means.items()), (float(rare_mean), "")])
        others[name] = next(code for code, (_, text) in enumerate(ranked) if text == "")
        categories[name] = {text: code for code, (_, text) in enumerate(ranked) if text != ""}
    return Encoder(tuple(features), categories, others)
