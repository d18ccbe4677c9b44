"""What waits for one task: chunks of its inputs, bounded, and which of them it takes next.

The first input leads. While it is being caught up with, the others are held to its pace, by the times at which records
were written: a worker that was away would else read an hour of labels in a second (they are small), and keep them all
until it has read the hour of predictions that they are about.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from streams.batches import Chunk

#: When nothing came from the leading input for so long, nobody waits for it: when nothing ever did, and when its log has
#: more, which may be held up behind another partition's.
LEAD_NONE_S = 1.0
LEAD_IDLE_S = 10.0
#: Of an input that waits for the leading one; the oldest is let go when there are so many.
HELD_CHUNKS_MAX = 32
#: Offsets at an end that are no records: transaction markers.
_MARKERS = 2


class Inbox:
    """``inputs``: logical topics, the leading one first. ``chunks_max`` of that; ``rows_max``: about what one ``take``
    hands out of each. ``clock``: seconds that do not go back."""

    def __init__(
        self, inputs: Sequence[str], chunks_max: int, rows_max: int, clock: Callable[[], float]
    ) -> None:
        self._lead = inputs[0]
        self._chunks: dict[str, deque[Chunk]] = {topic: deque() for topic in inputs}
        self._chunks_max = chunks_max
        self._rows_max = rows_max
        self._clock = clock
        self._pace_ms: int | None = None
        self._behind = True
        self._lead_s: float | None = None
        self._woken = False
        self._closed = False
        self._came = asyncio.Event()
        self._left = asyncio.Event()

    async def put(self, topic: str, chunk: Chunk) -> None:
        """Let it wait; waits itself while there are too many."""
        waiting = self._chunks[topic]
        most = self._chunks_max if topic == self._lead else HELD_CHUNKS_MAX
        while len(waiting) >= most and not self._closed:
            self._left.clear()
            await self._left.wait()
        waiting.append(chunk)
        if topic == self._lead or self._lead_s is None:
            self._lead_s = self._clock()
        self._came.set()

    def waited_ms(self, now_ms: int) -> int:
        """How long ago the newest record of the leading input that was taken had been written; 0 when there are no more."""
        if self._pace_ms is None or not (self._behind or self._chunks[self._lead]):
            return 0
        return max(0, now_ms - self._pace_ms)

    @property
    def held(self) -> frozenset[str]:
        """Inputs of which something waits for the leading one."""
        if self._released_s() is None:
            return frozenset()
        return frozenset(topic for topic, waiting in self._chunks.items() if waiting and topic != self._lead)

    def wake(self) -> None:
        """Make ``take`` return, if only with nothing."""
        self._woken = True
        self._came.set()

    def close(self) -> None:
        """Nothing is wanted any more: whoever waits in ``put`` goes on."""
        self._closed = True
        for waiting in self._chunks.values():
            waiting.clear()
        self._left.set()

    async def take(self, wait_s: float | None) -> list[Chunk]:
        """At least one chunk; none when ``wait_s`` have passed or it was woken."""
        until = None if wait_s is None else self._clock() + wait_s
        while True:
            self._came.clear()
            chunks = self._ready()
            if chunks:
                self._left.set()
            if chunks or self._woken:
                self._woken = False
                return chunks
            times = [until, self._released_s()]
            due = min((at for at in times if at is not None), default=None)
            if until is not None and self._clock() >= until:
                return []
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                    await self._came.wait()
            except TimeoutError:
                continue

    def _ready(self) -> list[Chunk]:
        """What may be taken now: all of the leading input, of the others what is not ahead of it."""
        found: list[Chunk] = []
        rows = 0
        leading = self._chunks[self._lead]
        while leading and rows < self._rows_max:
            chunk = leading.popleft()
            self._pace_ms = int(chunk.records.timestamps_ms[-1])
            self._behind = chunk.end_offset + _MARKERS < chunk.log_end
            # Whoever brings more may have had to wait for this.
            self._lead_s = self._clock()
            found.append(chunk)
            rows += len(chunk.records)
        for topic, waiting in self._chunks.items():
            rows = 0
            while topic != self._lead and waiting and rows < self._rows_max:
                # Faust hands over one chunk after the other, whatever their topic: what is held must not stand in the way.
                full = len(waiting) >= HELD_CHUNKS_MAX
                count = len(waiting[0].records) if full else self._in_pace(waiting[0])
                if count == 0:
                    break
                whole = waiting.popleft()
                if count < len(whole.records):
                    whole, rest = whole.cut(count)
                    waiting.appendleft(rest)
                found.append(whole)
                rows += len(whole.records)
        return found

    def _in_pace(self, chunk: Chunk) -> int:
        """How many of its records are not ahead of the leading input."""
        released_s = self._released_s()
        if released_s is None or self._clock() >= released_s:
            return len(chunk.records)
        if self._pace_ms is None:
            return 0
        ahead = chunk.records.timestamps_ms > self._pace_ms
        return int(np.argmax(ahead)) if ahead.any() else len(chunk.records)

    def _released_s(self) -> float | None:
        """When the others need not wait any more; None: they do not now, or nothing waits."""
        if not self._behind and not self._chunks[self._lead]:
            return None
        held = any(waiting for topic, waiting in self._chunks.items() if topic != self._lead)
        if self._lead_s is None or not held:
            return None
        return self._lead_s + (LEAD_NONE_S if self._pace_ms is None else LEAD_IDLE_S)
