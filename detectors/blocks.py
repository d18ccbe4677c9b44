"""Blocks of event time as the unit of evidence: rows of one hour or day share their weather, and are one event.

Sums are integers, so the order in which rows were added cannot show. A block is open from its first row until
``close`` passes its end; rows of closed blocks are counted as late and change nothing.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.contracts import FalsePages

#: Blocks between false alarms when neither an option nor a budget says.
BLOCKS_TO_ALARM_DEFAULT = 1_000.0


def blocks_to_alarm(threshold: float | None, budget: FalsePages | None, share: float, block_ms: int) -> float:
    """An e-detector's threshold in blocks: the option, else ``share`` of the model's budget, else the default."""
    if threshold is not None:
        return threshold
    if budget is None:
        return BLOCKS_TO_ALARM_DEFAULT
    return max(2.0, budget.per / (budget.max * share * block_ms))


class BlockState(msgspec.Struct):
    """``open``: block start to its sums, the first of which is the count of rows. ``closed_to_ms``: earlier is closed."""

    open: dict[int, list[int]] = {}
    closed_to_ms: int = -(2**62)
    late: int = 0


class BlockSums:
    """Sums of integer columns by block of time. Rows never lie beyond the next ``close`` by much, so few are open."""

    def __init__(self, block_ms: int, offset_ms: int, width: int) -> None:
        self.block_ms = block_ms
        self.offset_ms = offset_ms
        self.width = width
        self.state = BlockState()

    def add(self, time_ms: NDArray[np.int64], sign: NDArray[np.int8], sums: NDArray[np.int64]) -> None:
        """Add rows of ``sums (n, width)``; ``sign`` -1 takes a row back."""
        starts = (time_ms - self.offset_ms) // self.block_ms * self.block_ms + self.offset_ms
        timely = starts >= self.state.closed_to_ms
        self.state.late += int(len(starts) - np.count_nonzero(timely))
        for start in np.unique(starts[timely]).tolist():
            mine = starts == start
            signs = sign[mine].astype(np.int64)
            added = [int(signs.sum()), *(signs[:, None] * sums[mine]).sum(axis=0).tolist()]
            held = self.state.open.get(start)
            self.state.open[start] = (
                added if held is None else [a + b for a, b in zip(held, added, strict=True)]
            )

    def close(self, time_ms: int) -> list[tuple[int, list[int]]]:
        """(start, sums) of the blocks that end at or before ``time_ms``, in order; they take no more rows."""
        passed = (time_ms + 1 - self.offset_ms) // self.block_ms * self.block_ms + self.offset_ms
        self.state.closed_to_ms = max(self.state.closed_to_ms, passed)
        ended = sorted(start for start in self.state.open if start < self.state.closed_to_ms)
        return [(start, self.state.open.pop(start)) for start in ended]
