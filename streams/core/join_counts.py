"""What becomes of predictions and labels in the join, counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(slots=True)
class JoinCounts:
    """Labels by what became of them, for metrics: since the last time they were read."""

    joined: int = 0
    duplicate: int = 0
    revised: int = 0
    stale: int = 0
    beyond: int = 0
    early: int = 0
    unmatched: int = 0
    dropped: int = 0
    unlabelled: int = 0
    duplicate_predictions: int = 0
    evicted: int = 0
    forgotten: int = 0


class ModelCounts(msgspec.Struct, array_like=True):
    """Since the task's first start, of one model. ``unlabelled``: predictions whose window was settled before a label
    came. ``evicted``: those that had to leave without one; ``labelled``: that had one when they left or were settled.
    ``looked_up``: of the unlabelled and the evicted, those that have a score and whose label was found a prediction later."""

    unlabelled: int = 0
    evicted: int = 0
    labelled: int = 0
    looked_up: int = 0


def drain(counts: JoinCounts) -> Iterable[tuple[str, int]]:
    """(name, count) of everything counted, and start again from zero."""
    for name in counts.__slots__:
        value: Any = getattr(counts, name)
        setattr(counts, name, 0)
        if value:
            yield name, value
