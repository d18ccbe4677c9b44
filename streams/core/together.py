"""Predictions of several models as columns: what a batch brings of each is few rows, and is worked on together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from schemas.columns import PredictionColumns
from schemas.spans import Spans

Ints = NDArray[np.int64]
#: The columns that are plain arrays, whatever the rows.
_ARRAYS = ("message", "row", "role", "event_time_ms", "score", "latency_ms", "status", "payload_bytes")


@dataclass(slots=True)
class Together:
    """``n`` predictions, those of a model side by side. ``model``: which of ``parts``.

    ``version``: index into ``versions``, which are those of all parts, one behind the other. The first feature of row i is at
    ``at[i]`` of ``values``, each further one ``step[model[i]]`` behind. All else is as in ``PredictionColumns``.
    """

    parts: list[PredictionColumns]
    model: Ints
    message: Ints
    row: NDArray[np.int32]
    keys: Spans
    versions: list[str]
    version: Ints
    role: NDArray[np.int8]
    event_time_ms: Ints
    score: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    status: NDArray[np.int8]
    payload_bytes: Ints
    values: NDArray[np.float64]
    at: Ints
    step: Ints

    @classmethod
    def of(cls, parts: Sequence[PredictionColumns]) -> Together:
        """Of each model at most one part, none empty."""
        counts = [len(part) for part in parts]
        if len(parts) == 1:
            one = parts[0]
            columns: dict[str, Any] = {name: getattr(one, name) for name in _ARRAYS}
            keys = one.keys
            version = one.version.astype(np.int64)
        else:
            columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
            keys = Spans.concat([part.keys for part in parts])
            firsts = np.cumsum([0, *(len(part.versions) for part in parts[:-1])])
            version = np.concatenate([part.version for part in parts]) + np.repeat(firsts, counts)
        values, at, step = _flat(parts)
        return cls(
            list(parts), np.repeat(np.arange(len(parts)), counts), keys=keys, values=values, at=at, step=step,
            versions=[version for part in parts for version in part.versions], version=version, **columns,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.model)

    @property
    def bounds(self) -> list[int]:
        """Where the rows of each part begin, and where the last one's end."""
        found: list[int] = np.searchsorted(self.model, np.arange(len(self.parts) + 1)).tolist()
        return found

    def features(self, part: int, begin: int, end: int) -> NDArray[np.float64]:
        """Those of rows from ``begin`` to below ``end``, all of one part: shape (rows, k)."""
        width, step = self.parts[part].features.shape[1], int(self.step[part])
        first, last = int(self.at[begin]), int(self.at[end - 1])
        if step == 1 and last - first == (end - begin - 1) * width:
            return self.values[first : last + width].reshape(-1, width)
        if step > 1 and last - first == end - begin - 1:
            return as_strided(self.values[first:], (width, end - begin), (8 * step, 8)).T
        return self.values[self.at[begin:end] + np.arange(width)[:, None] * step].T

    def take(self, at: Ints) -> Together:
        """The rows at these ascending positions; a part may be left without."""
        columns: dict[str, Any] = {name: getattr(self, name)[at] for name in _ARRAYS}
        return Together(
            self.parts, self.model[at], keys=self.keys.take(at), values=self.values, at=self.at[at],
            step=self.step, versions=self.versions, version=self.version[at], **columns,
        )  # fmt: skip


def _flat(parts: Sequence[PredictionColumns]) -> tuple[NDArray[np.float64], Ints, Ints]:
    """The features of all, ``values``, ``at`` and ``step`` of :class:`Together`: row by row, or column by column as they are."""
    flat, at, step, start = [], [], [], 0
    for features in (part.features for part in parts):
        n, width = features.shape
        by_column = features.flags.f_contiguous and not features.flags.c_contiguous
        flat.append((features.T if by_column else features).reshape(-1))
        at.append(np.arange(n) + start if by_column else np.arange(n) * width + start)
        step.append(n if by_column else 1)
        start += features.size
    if len(parts) == 1:
        return flat[0], at[0], np.array(step)
    return np.concatenate(flat), np.concatenate(at), np.array(step)
