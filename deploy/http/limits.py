"""Limits on what one caller can cost: requests a second, and bytes of a body."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

#: More callers than this at once: the one not heard of longest starts anew, with a full bucket.
CALLERS_MAX = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class Buckets:
    """A token bucket a caller: ``rate_per_s`` on average, ``burst`` at once. Time is an argument."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate = rate_per_s
        self._burst = burst
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key: str, now_s: float) -> int:
        """0 when the request may go on; else after how many whole seconds the caller should try again."""
        bucket = self._buckets.setdefault(key, _Bucket(self._burst, now_s))
        self._buckets.move_to_end(key)
        if len(self._buckets) > CALLERS_MAX:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self._burst, bucket.tokens + max(0.0, now_s - bucket.at_s) * self._rate)
        bucket.at_s = now_s
        if bucket.tokens < 1:
            return max(1, math.ceil((1 - bucket.tokens) / self._rate))
        bucket.tokens -= 1
        return 0
