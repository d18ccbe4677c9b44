"""Open blocks of time that hold any summary, for what integer sums (``detectors.blocks``) cannot say.

A summary must be a function of the rows of its block as a set: then neither the cuts between calls nor the moments at
which time was told can show in it. Beside them: the last verdict as bytes, for detectors whose verdict is that of the
last closed block and cannot be computed again from anything smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np
from pydantic import ValidationError

from detectors.base import Rows
from schemas.errors import SnapshotError
from schemas.verdicts import Verdict

B = TypeVar("B")


class OpenBlocks(Generic[B]):
    """Summaries by start of block; ``new`` makes an empty one. Rows of closed blocks are counted as late, and are gone."""

    def __init__(self, block_ms: int, offset_ms: int, new: Callable[[], B]) -> None:
        self.block_ms = block_ms
        self.offset_ms = offset_ms
        self._new = new
        self.open: dict[int, B] = {}
        self.closed_to_ms = -(2**62)
        self.late = 0

    def parts(self, rows: Rows) -> Iterator[tuple[B, Rows]]:
        """Each open block that ``rows`` reach, with its own rows, in order of time."""
        if not len(rows):
            return
        starts = (rows.time_ms - self.offset_ms) // self.block_ms * self.block_ms + self.offset_ms
        first = int(starts[0])
        if first >= self.closed_to_ms and first == int(starts.min()) == int(starts.max()):
            yield self._of(first), rows
            return
        timely = starts >= self.closed_to_ms
        self.late += int(len(starts) - np.count_nonzero(timely))
        for start in np.unique(starts[timely]).tolist():
            yield self._of(start), rows.take(starts == start)

    def _of(self, start_ms: int) -> B:
        found = self.open.get(start_ms)
        if found is None:
            found = self.open[start_ms] = self._new()
        return found

    @property
    def closes_after_ms(self) -> int:
        """Until event time is beyond this no block ends, whatever rows come that are younger than the last ``close``."""
        return self.closed_to_ms + self.block_ms - 2

    def close(self, time_ms: int) -> list[tuple[int, B]]:
        """(start, summary) of the blocks that end at or before ``time_ms``, in order; they take no more rows."""
        passed = (time_ms + 1 - self.offset_ms) // self.block_ms * self.block_ms + self.offset_ms
        self.closed_to_ms = max(self.closed_to_ms, passed)
        ended = sorted(start for start in self.open if start < self.closed_to_ms)
        return [(start, self.open.pop(start)) for start in ended]


def verdict_bytes(verdict: Verdict | None) -> bytes:
    """A verdict for a snapshot; nothing for none."""
    return b"" if verdict is None else verdict.model_dump_json().encode()


def verdict_from(data: bytes) -> Verdict | None:
    """Inverse of :func:`verdict_bytes`. Raises SnapshotError."""
    if not data:
        return None
    try:
        return Verdict.model_validate_json(data)
    except ValidationError as error:
        raise SnapshotError(f"the verdict in the snapshot cannot be read: {error}") from error
