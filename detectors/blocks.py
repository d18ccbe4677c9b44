"""Blocks of event time as the unit of evidence: rows of one hour or day share their weather, and are one event.

Sums are integers, so the order in which rows were added cannot show. A block is open from its first row until
``close`` passes its end; rows of closed blocks are counted as late and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.contracts import FalsePages

#: Rows: some, or all.
Which = slice | NDArray[np.bool_]
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
        for start, mine in self._timely(time_ms):
            signs = sign[mine].astype(np.int64)
            added = [int(signs.sum()), *(signs[:, None] * sums[mine]).sum(axis=0).tolist()]
            self._take(start, added)

    def count(self, time_ms: NDArray[np.int64], sign: NDArray[np.int8], cells: NDArray[np.int64]) -> None:
        """Add one (or ``sign``) to each of the sums that a row names: ``cells (n, c)`` are places among the ``width``
        sums, ``width`` standing for none. What ``add`` does with a matrix of ones, at the cost of the ones alone."""

        def counts(which: Which) -> NDArray[np.int64]:
            return np.bincount(cells[which].ravel(order="K"), minlength=self.width + 1)[: self.width]

        self.count_rows(time_ms, sign, counts)

    def count_rows(
        self, time_ms: NDArray[np.int64], sign: NDArray[np.int8], counts: Callable[[Which], NDArray[np.int64]]
    ) -> None:
        """Add what rows count to, ``counts(which)`` of shape (width,): of all of a block at once, which is cheaper than row by row
        for whoever need not keep what each one counted to."""
        for start, mine in self._timely(time_ms):
            added, signs = counts(mine), sign[mine]
            back = signs < 0
            if back.any():
                taken = np.zeros(len(sign), np.bool_)
                taken[mine] = back
                added = added - 2 * counts(taken)
            self._take(start, [int(signs.sum(dtype=np.int64)), *added.tolist()])

    def _timely(self, time_ms: NDArray[np.int64]) -> Iterator[tuple[int, Which]]:
        """(block start, its rows) of the blocks that are not closed, in order."""
        if not len(time_ms):
            return
        first = (int(time_ms.min()) - self.offset_ms) // self.block_ms * self.block_ms + self.offset_ms
        if first >= self.state.closed_to_ms and int(time_ms.max()) < first + self.block_ms:
            yield first, slice(None)
            return
        starts = (time_ms - self.offset_ms) // self.block_ms * self.block_ms + self.offset_ms
        timely = starts >= self.state.closed_to_ms
        self.state.late += int(len(starts) - np.count_nonzero(timely))
        for start in np.unique(starts[timely]).tolist():
            yield start, starts == start

    def _take(self, start: int, added: list[int]) -> None:
        held = self.state.open.get(start)
        self.state.open[start] = added if held is None else [a + b for a, b in zip(held, added, strict=True)]

    @property
    def closes_after_ms(self) -> int:
        """Until event time is beyond this no block ends, whatever rows come that are younger than the last ``close``."""
        return self.state.closed_to_ms + self.block_ms - 2

    def close(self, time_ms: int) -> list[tuple[int, list[int]]]:
        """(start, sums) of the blocks that end at or before ``time_ms``, in order; they take no more rows."""
        passed = (time_ms + 1 - self.offset_ms) // self.block_ms * self.block_ms + self.offset_ms
        self.state.closed_to_ms = max(self.state.closed_to_ms, passed)
        ended = sorted(start for start in self.state.open if start < self.state.closed_to_ms)
        return [(start, self.state.open.pop(start)) for start in ended]
