"""A version whose inference keeps failing is taken off by the scorer itself, before any statistics could speak.

What opened may close again without a restart: after a pause the version is tried on its golden set, never on a caller's
request, and each failed try doubles the pause. No clock: the caller says the time.
"""

from __future__ import annotations

PAUSE_DOUBLINGS_MAX = 6


class Breaker:
    """Counts consecutive failed batches of each version; open from ``failures_max`` on, until :meth:`reset`."""

    def __init__(self, failures_max: int = 3, pause_ms: int = 10_000) -> None:
        self.failures_max = failures_max
        self.pause_ms = pause_ms
        self._failures: dict[str, int] = {}
        #: Open versions: when to try them, and how often that was tried in vain.
        self._open: dict[str, tuple[int, int]] = {}

    @property
    def open(self) -> frozenset[str]:
        """Versions that must not be served."""
        return frozenset(self._open)

    def succeeded(self, version: str) -> None:
        """A batch of ``version`` was answered."""
        if self._failures:
            self._failures.pop(version, None)

    def failed(self, version: str, now_ms: int) -> bool:
        """A batch of ``version`` failed as a whole; True when that opened the breaker just now."""
        self._failures[version] = self._failures.get(version, 0) + 1
        if version in self._open or self._failures[version] < self.failures_max:
            return False
        self._open[version] = (now_ms + self.pause_ms, 0)
        return True

    def to_try(self, now_ms: int) -> list[str]:
        """Open versions whose pause is over."""
        return [version for version, (at_ms, _) in self._open.items() if at_ms <= now_ms]

    def tried_in_vain(self, version: str, now_ms: int) -> None:
        """The trial failed: wait twice as long, up to 64 pauses."""
        tries = min(self._open[version][1] + 1, PAUSE_DOUBLINGS_MAX)
        self._open[version] = (now_ms + self.pause_ms * 2**tries, tries)

    def reset(self, version: str) -> None:
        """Close the breaker: the version was loaded anew, or its trial went well."""
        self._failures.pop(version, None)
        self._open.pop(version, None)
