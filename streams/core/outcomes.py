"""Outcomes as columns: what labels did to predictions, on the way to windows and detectors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.core import tally
from streams.core.join_state import Kind

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OutcomeRows:
    """``n`` outcomes of one model; what a revision takes back stands in front of what it puts in its place.

    ``kind``: index into ``kinds``. ``revision``: the label's that did it. ``sign``: -1 for one that is taken back. ``replaces``: 1 for one that replaces another.
    Predictions without a score have no outcome; where labels are looked up they are here all the same, so that their labels
    are known (score NaN).
    """

    kinds: list[Kind]
    kind: Ints
    identity: NDArray[np.uint64]
    event_time_ms: Ints
    score: Floats
    status: NDArray[np.int8]
    partition: NDArray[np.int32]
    offset: Ints
    row: NDArray[np.int32]
    label: Floats
    label_time_ms: Ints
    revision: Ints
    sign: Ints
    replaces: Ints

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: NDArray[Any]) -> OutcomeRows:
        """The rows selected by ``index`` (positions or mask), and the kinds that they have."""
        codes, kind = np.unique(self.kind[index], return_inverse=True)
        columns = {
            f.name: getattr(self, f.name)[index] for f in fields(self) if f.name not in ("kinds", "kind")
        }
        return OutcomeRows(kinds=[self.kinds[code] for code in codes.tolist()], kind=kind, **columns)

    def log_loss_nano(self) -> Ints:
        """Log loss in 1e-9 nats, the score kept ``PROBABILITY_MIN`` away from 0 and 1.

        Logarithms are the C library's, row by row: vectorised ones differ in the last bit from machine to machine.
        """
        nano = np.empty(len(self.score), np.int64)
        tally.losses(self.score, self.label, nano)
        return nano


def joined(parts: list[OutcomeRows]) -> OutcomeRows:
    """All of one model as one, in their order. At least one part."""
    if len(parts) == 1:
        return parts[0]
    kinds: dict[Kind, int] = {}
    codes = []
    for part in parts:
        places = [kinds.setdefault(kind, len(kinds)) for kind in part.kinds]
        codes.append(np.array(places, np.int64)[part.kind])
    columns = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in fields(OutcomeRows)
        if f.name not in ("kinds", "kind")
    }
    return OutcomeRows(kinds=list(kinds), kind=np.concatenate(codes), **columns)
