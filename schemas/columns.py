"""Predictions of one model as columns: what every decoder makes, and what is done with them on the way to the join."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.contracts import ModelContract
from schemas.messages import Bad
from schemas.spans import Spans


@dataclass(slots=True)
class PredictionColumns:
    """``n`` predictions of one model. ``message`` and ``row`` say where each came from among the decoded messages.

    ``features``: (n, k) float64 in contract order, row by row or column by column in memory, a category as its index
    (unknown: ``len(categories)``), null NaN.
    ``keys`` are the predictions' ids as bytes; ``score`` is NaN where null; ``payload_bytes`` is a row's share of its
    message.
    """

    contract: ModelContract
    message: NDArray[np.int64]
    row: NDArray[np.int32]
    keys: Spans
    versions: tuple[str, ...]
    version: NDArray[np.int32]
    role: NDArray[np.int8]
    event_time_ms: NDArray[np.int64]
    score: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    status: NDArray[np.int8]
    features: NDArray[np.float64]
    payload_bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def ids(self) -> list[str]:
        """The predictions' ids."""
        return [(key or b"").decode() for key in self.keys]

    def take(self, keep: NDArray[np.int64]) -> PredictionColumns:
        """The rows at positions ``keep``."""
        return PredictionColumns(
            self.contract,
            self.message[keep],
            self.row[keep],
            self.keys.take(keep),
            self.versions,
            self.version[keep],
            self.role[keep],
            self.event_time_ms[keep],
            self.score[keep],
            self.latency_ms[keep],
            self.status[keep],
            self.features[keep],
            self.payload_bytes[keep],
        )


#: The columns that are plain arrays, whatever the rows.
_ARRAYS = (
    "message", "row", "role", "event_time_ms", "score", "latency_ms", "status", "features", "payload_bytes",
)  # fmt: skip


def without(
    columns: PredictionColumns, faults: Mapping[int, tuple[str, str]], bad: list[Bad]
) -> PredictionColumns:
    """The rows that have no fault, and only the versions that these have."""
    bad += [
        Bad(int(columns.message[at]), int(columns.row[at]), *why, alone=True)
        for at, why in sorted(faults.items())
    ]
    kept = np.ones(len(columns), np.bool_)
    kept[list(faults)] = False
    left = columns.take(np.flatnonzero(kept))
    versions, version = renumbered(left.versions, left.version.astype(np.int64))
    return dataclasses.replace(left, versions=versions, version=version)


def coded(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The distinct names, sorted, and for each of ``names`` its place among them."""
    known = tuple(sorted(set(names)))
    if len(known) < 2:
        return known, np.zeros(len(names), np.int32)
    index = {name: at for at, name in enumerate(known)}
    return known, np.fromiter(map(index.__getitem__, names), np.int32, len(names))


def renumbered(names: Sequence[str], codes: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Those of ``names`` that ``codes`` speaks of, sorted, and the codes among them."""
    if len(names) == 1:
        return tuple(names), np.zeros(len(codes), np.int32)
    present = np.unique(codes).tolist()
    known = tuple(sorted({names[at] for at in present}))
    place = np.zeros(len(names), np.int32)
    place[present] = [known.index(names[at]) for at in present]
    return known, place[codes]


def by_model(columns: list[PredictionColumns]) -> list[PredictionColumns]:
    """One of each model, rows in the order of messages."""
    of_model: dict[str, list[PredictionColumns]] = {}
    for one in columns:
        of_model.setdefault(one.contract.model, []).append(one)
    return [parts[0] if len(parts) == 1 else merged(parts) for parts in of_model.values()]


def merged(parts: list[PredictionColumns]) -> PredictionColumns:
    """Rows of one model in the order of messages."""
    told = [name for part in parts for name in part.versions]
    start = np.cumsum([0] + [len(part.versions) for part in parts])
    codes = np.concatenate([part.version + at for part, at in zip(parts, start, strict=False)]).astype(
        np.int64
    )
    versions, version = renumbered(told, codes)
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS
    }
    whole = PredictionColumns(
        parts[0].contract,
        keys=Spans.concat([part.keys for part in parts]),
        versions=versions,
        version=version,
        **columns,
    )
    order = np.lexsort((whole.row, whole.message))
    return whole if (np.diff(order) == 1).all() else whole.take(order)


@compiled
def not_finite(column: NDArray[np.float64]) -> bool:
    """Whether a number of the column is not finite: nothing is left of one that is."""
    left = 0
    for i in range(len(column)):
        left += column[i] - column[i] != 0.0
    return left != 0
