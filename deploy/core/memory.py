"""Which loaded versions stay in memory: a budget in bytes, what is routed for ever, the rest while there is room.

A version that nothing routes to any more is worth keeping, for it may come back (a rollback, a second rollout); it is
worth nothing when another one needs its room.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class MemoryBudget(Generic[Key]):
    """Sizes of what is loaded, least recently used first. Pinned keys are never given up."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._sizes: dict[Key, int] = {}

    @property
    def used(self) -> int:
        """Bytes of everything loaded."""
        return sum(self._sizes.values())

    def room_for(self, size: int, pinned: Collection[Key]) -> list[Key] | None:
        """What must go so that ``size`` bytes more fit, longest unused first; None when pinned keys leave no room."""
        over = self.used + size - self.bytes_max
        going: list[Key] = []
        for key, held in self._sizes.items():
            if over <= 0:
                break
            if key not in pinned:
                going.append(key)
                over -= held
        return None if over > 0 else going

    def add(self, key: Key, size: int) -> None:
        """``key`` is loaded and takes ``size`` bytes."""
        self._sizes.pop(key, None)
        self._sizes[key] = size

    def used_now(self, key: Key) -> None:
        """``key`` was wanted again: it becomes the last to go."""
        self._sizes[key] = self._sizes.pop(key)

    def drop(self, key: Key) -> None:
        """``key`` is no longer loaded."""
        self._sizes.pop(key, None)
