"""How much a row counts by its age: the ways a contract may offer for the choice by validation. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from schemas.contracts import parse_duration_ms

Kind = Literal["uniform", "half-life", "recent"]


@dataclass(frozen=True, slots=True)
class Weighting:
    """``uniform``: age does not count; ``half-life``: half as much each ``length_ms``; ``recent``: nothing older counts."""

    kind: Kind = "uniform"
    length_ms: int = 0

    @staticmethod
    def parse(text: str) -> Weighting:
        """From ``uniform``, ``half-life 21d`` or ``recent 14d``. The contract has checked the text."""
        kind, _, length = text.partition(" ")
        return Weighting(cast(Kind, kind), parse_duration_ms(length) if length else 0)

    def weights(self, event_ms: NDArray[np.int64], now_ms: int) -> NDArray[np.float64]:
        """One weight a row, shape ``(n,)``, of rows at ``event_ms``; 0 means that the row is not used."""
        age_ms = np.maximum(0, now_ms - np.asarray(event_ms, np.int64))
        match self.kind:
            case "uniform":
                return np.ones(len(age_ms))
            case "half-life":
                return np.asarray(np.exp2(-age_ms / self.length_ms), np.float64)
            case "recent":
                return (age_ms < self.length_ms).astype(np.float64)
