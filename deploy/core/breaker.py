"""A version whose inference keeps failing is taken off by the scorer itself, before any statistics could speak."""

from __future__ import annotations


class Breaker:
    """Counts consecutive failed batches of each version; opens at ``failures_max`` and stays open until reset."""

    def __init__(self, failures_max: int = 3) -> None:
        self.failures_max = failures_max
        self._failures: dict[str, int] = {}
        self._open: set[str] = set()

    @property
    def open(self) -> frozenset[str]:
        """Versions that must not be served."""
        return frozenset(self._open)

    def succeeded(self, version: str) -> None:
        """A batch of ``version`` was answered."""
        self._failures.pop(version, None)

    def failed(self, version: str) -> bool:
        """A batch of ``version`` failed; True when that opened the breaker just now."""
        self._failures[version] = self._failures.get(version, 0) + 1
        if version in self._open or self._failures[version] < self.failures_max:
            return False
        self._open.add(version)
        return True

    def reset(self, version: str) -> None:
        """Close the breaker: the version was loaded anew."""
        self._failures.pop(version, None)
        self._open.discard(version)
