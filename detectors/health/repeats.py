"""How many rows repeat an identity that the block already had, within a bounded memory.

Identities are remembered exactly up to ``cap`` of them; beyond, only those whose mixed hash lies below a bound that
halves each time the memory is full (Wegman's adaptive sampling, in Flajolet, "On adaptive sampling", 1990). An identity
that is kept at the end was kept from its first row on, so repeats among the kept are counted exactly, and their share is
that of a random sample of at least about ``cap / 2`` identities. What is kept depends on the set of rows alone.

>>> import numpy as np
>>> repeats = Repeats(cap=100)
>>> repeats.add(np.array([1, 2, 3, 2, 2], np.uint64))
>>> repeats.add(np.array([3], np.uint64))
>>> repeats.rows, repeats.repeated
(6, 3)
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
_BITS = 64


class RepeatsState(msgspec.Struct):
    """``kept``: sorted mixed hashes, eight bytes each. ``extra``: rows beyond the first of each, four bytes each."""

    kept: bytes = b""
    extra: bytes = b""
    halvings: int = 0


class Repeats:
    """Counts over the identities that are kept: ``rows``, of which ``repeated`` are not the first of their identity."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._kept: Hashes = np.empty(0, np.uint64)
        self._extra: NDArray[np.uint32] = np.empty(0, np.uint32)
        self._halvings = 0

    @property
    def repeated(self) -> int:
        return int(self._extra.sum(dtype=np.int64))

    @property
    def rows(self) -> int:
        return len(self._kept) + self.repeated

    @property
    def exact(self) -> bool:
        """Whether every row of the block is counted, and not a sample of the identities."""
        return self._halvings == 0

    def add(self, identity: Hashes) -> None:
        """Take rows by their identities ``(n,)``."""
        new, counts = np.unique(self._sampled(mixed(identity)), return_counts=True)
        at = np.searchsorted(self._kept, new)
        held = np.zeros(len(new), bool)
        inside = at < len(self._kept)
        held[inside] = self._kept[at[inside]] == new[inside]
        # Each identity comes once in ``new``, so no place is named twice.
        self._extra[at[held]] += counts[held].astype(np.uint32)
        fresh = ~held
        if fresh.any():
            self._kept = np.insert(self._kept, at[fresh], new[fresh])
            self._extra = np.insert(self._extra, at[fresh], (counts[fresh] - 1).astype(np.uint32))
        while len(self._kept) > self._cap and self._halvings < _BITS - 1:
            self._halvings += 1
            keep = int(np.searchsorted(self._kept, self._bound))
            self._kept, self._extra = self._kept[:keep].copy(), self._extra[:keep].copy()

    @property
    def _bound(self) -> np.uint64:
        return np.uint64(1 << (_BITS - self._halvings))

    def _sampled(self, hashes: Hashes) -> Hashes:
        return hashes if self._halvings == 0 else hashes[hashes < self._bound]

    def state(self) -> RepeatsState:
        return RepeatsState(self._kept.tobytes(), self._extra.tobytes(), self._halvings)

    @classmethod
    def of(cls, cap: int, state: RepeatsState) -> Repeats:
        made = cls(cap)
        made._kept = np.frombuffer(state.kept, np.uint64).copy()
        made._extra = np.frombuffer(state.extra, np.uint32).copy()
        made._halvings = state.halvings
        return made


def mixed(identity: Hashes) -> Hashes:
    """A bijection that spreads counters and other patterned identities evenly (the finaliser of splitmix64)."""
    h = identity.astype(np.uint64, copy=True)
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return h
