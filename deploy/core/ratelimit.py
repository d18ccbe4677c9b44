"""How many requests a second one model may take from this scorer. No clock: the caller says when a request arrived.

A token bucket on arrival times (Kafka's timestamps), so that a backlog which is read in one gulp is judged as it came in,
and a replay refuses the requests that the first run refused.
"""

from __future__ import annotations


class TokenBucket:
    """``rate_per_s`` requests a second on average, at most ``burst`` at once. Starts full."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        if rate_per_s <= 0 or burst < 1:
            raise ValueError(
                f"a rate limit needs a positive rate and a burst of at least 1: {rate_per_s}/s, {burst}"
            )
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._tokens = float(burst)
        self._at_ms: int | None = None

    def refill(self) -> None:
        """Be full again: arrivals that were counted are about to be counted a second time."""
        self._tokens = float(self.burst)

    def take(self, arrived_ms: int) -> int:
        """0 when the request may pass, else in how many milliseconds the next one could.

        An arrival before one already seen (partitions interleave) is judged at the later time.
        """
        if self._at_ms is None:
            self._at_ms = arrived_ms
        elif arrived_ms > self._at_ms:
            self._tokens += (arrived_ms - self._at_ms) * self.rate_per_s / 1_000
            self._tokens = min(self._tokens, self.burst)
            self._at_ms = arrived_ms
        if self._tokens >= 1:
            self._tokens -= 1
            return 0
        return max(1, round((1 - self._tokens) * 1_000 / self.rate_per_s))
