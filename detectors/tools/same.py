"""What was worked out for an object that does not change, kept for when the same object is asked about again.

The detectors of a model are built one after the other from one contract and one reference, which are large: to compare or to
hash them would take as long as to work out anew what they say. So they are known by identity, and only the last few.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Generic, TypeVar

Of = TypeVar("Of")
Found = TypeVar("Found")


class _Same(Generic[Of]):
    """Equal to itself alone; it keeps its object alive, whose identity is nobody else's for so long."""

    __slots__ = ("one",)

    def __init__(self, one: Of) -> None:
        self.one = one

    def __hash__(self) -> int:
        return id(self.one)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.one is other.one


def by_identity(most: int) -> Callable[[Callable[[Of], Found]], Callable[[Of], Found]]:
    """Keep what a function of one unchanging object found for the last ``most`` of them."""

    def keeping(work: Callable[[Of], Found]) -> Callable[[Of], Found]:
        @lru_cache(maxsize=most)
        def found(same: _Same[Of]) -> Found:
            return work(same.one)

        @wraps(work)
        def asked(one: Of) -> Found:
            return found(_Same(one))

        return asked

    return keeping
