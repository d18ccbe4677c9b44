"""What changed in the join index since the last commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.labels import Label
from streams.core.evicted import Fingerprints, Marks
from streams.core.join_state import WindowKey
from streams.core.waiting import Key


class Wait(NamedTuple):
    """A label that waits. ``asked``: it is looked up, and waits until that has an answer."""

    key: Key
    label: Label
    asked: bool


@dataclass(slots=True)
class Commit:
    """Numbers of rows added, from ``first`` on; of rows that got a label; labels that wait; fingerprints of evicted rows."""

    first: int
    settled: list[NDArray[np.int64]] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    gone: dict[WindowKey, Fingerprints] = field(default_factory=dict)

    def mark(self, window: WindowKey, marks: Marks) -> None:
        """Evicted rows of a window are known by these."""
        self.gone.setdefault(window, Fingerprints()).add(marks)
