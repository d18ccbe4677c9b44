"""Is the mean of blocks of time above a bound? The betting e-detector that several kinds of harm share.

Per block of time, the mean ``m`` of values that are never below ``floor``. Null: given the past, a block's expected mean
is at most ``bound``. For each fraction ``f`` in (0, 1], ``1 + f (m - bound) / (bound - floor)`` is an e-value: it is never
negative and its expectation is at most 1, whatever depends on what within a block and however large values get. With
Shiryaev-Roberts restarts,

    R <- (R + 1) (1 + f (m - bound) / (bound - floor)),    drift when the mean of R over the fractions >= threshold,

the expected number of blocks to a false alarm is at least ``threshold`` (Shin, Ramdas and Rinaldo, "E-detectors: a
nonparametric framework for sequential change detection", 2022). From then on no restarts are added and only the boldest
fraction counts, which loses fastest once the harm is over: a drift lasts until its evidence has fallen to a tenth of the
threshold (``detectors.evidence``), and then all begins anew. So evidence that comes and goes around the threshold is one
alarm, and every further one takes a whole run again. Sums are integers, so cuts and order do not show.

>>> import numpy as np
>>> above = BlocksAbove(bound=0.5, floor=0.0, fractions=(0.5, 0.95), threshold=20.0, rows_min=1)
>>> [above.take(start, 10, int(10 * mean * FIXED_POINT)) and round(above.score, 2) for start, mean in enumerate([0.4, 0.9, 0.9])]
[0.85, 2.92, 6.25]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import FIXED_POINT, NEVER_ROWS, Change, Rows, pack, undecided, unpack
from detectors.blocks import BlockState, BlockSums
from detectors.evidence import LOW, next_state
from schemas.errors import SnapshotError
from schemas.verdicts import Evidence, State, Verdict

Floats = NDArray[np.float64]
#: Evidence of a drift is held at this multiple of the threshold, so that what has passed can ebb away.
_CEILING = 2.0


class BlocksAbove:
    """The evidence alone. ``since_ms``, ``rows`` and ``total`` are of the blocks since evidence last was at most 1;
    ``held``: what is left of a drift's, None while there is none."""

    def __init__(
        self, bound: float, floor: float, fractions: Sequence[float], threshold: float, rows_min: int
    ) -> None:
        self.bound = bound
        self.threshold = threshold
        self.rows_min = rows_min
        self._bets = np.array(fractions) / (bound - floor)
        self.evidence: Floats = np.zeros(len(self._bets))
        self.held: float | None = None
        self.since_ms: int | None = None
        self.rows = 0
        self.total = 0
        self.closed = 0

    def take(self, start_ms: int, rows: int, total: int) -> bool:
        """Take a closed block's rows and sum, in parts of one; False: it had too few rows."""
        if rows < self.rows_min:
            return False
        if self.since_ms is None or self.score <= 1.0:
            self.since_ms, self.rows, self.total = start_ms, 0, 0
        self.rows += rows
        self.total += total
        self.closed += 1
        self.add(total / FIXED_POINT / rows)
        return True

    def add(self, mean: float) -> None:
        """Take a block's mean."""
        gain = np.maximum(0.0, 1 + self._bets * (mean - self.bound))
        if self.held is None:
            self.evidence = (self.evidence + 1) * gain
            found = float(self.evidence.mean())
            self.held = found if found >= self.threshold else None
        else:
            self.held *= float(gain[self._bets.argmax()])
        if self.held is not None:
            self.held = min(self.held, _CEILING * self.threshold)
            if self.held < LOW * self.threshold:
                self.held, self.evidence = None, np.zeros(len(self._bets))

    @property
    def score(self) -> float:
        """Evidence now; drift from ``threshold`` on."""
        return float(self.evidence.mean()) if self.held is None else self.held

    def state(self, warning: float = LOW) -> State:
        """What the evidence says; ``warning``: the share of the threshold that is one."""
        before = State.STABLE if self.held is None else State.DRIFT
        return next_state(before, self.score / self.threshold, warning)

    @property
    def mean(self) -> float:
        """Mean of the values since the evidence began."""
        return self.total / FIXED_POINT / self.rows


class _State(msgspec.Struct):
    blocks: BlockState
    evidence: list[float]
    held: float | None
    since_ms: int | None
    rows: int
    total: int
    closed: int
    invalid: int


class BlockEvidenceDetector(ABC):
    """A running detector on ``BlocksAbove``; a kind says what a row is worth and how a verdict reads.

    ``bound`` None: there is nothing to compare with; it takes no rows and stays inconclusive, saying ``missing``.
    """

    kind: str
    schema: int

    def __init__(
        self,
        *,
        bound: float | None,
        floor: float,
        fractions: Sequence[float],
        threshold: float,
        warning_share: float,
        block_ms: int,
        block_offset_ms: int,
        rows_min: int,
        missing: str = "",
    ) -> None:
        self.threshold = threshold
        self._bound = bound
        self._floor = floor
        self._fractions = tuple(fractions)
        self._warning = warning_share
        self._block_ms = block_ms
        self._offset_ms = block_offset_ms
        self._rows_min = rows_min
        self._missing = missing
        self.reset()

    @abstractmethod
    def values(self, rows: Rows) -> tuple[NDArray[np.bool_], Floats]:
        """Which rows can be read, shape ``(n,)``, and what those are worth, shape ``(readable,)``; at least ``floor``."""

    @abstractmethod
    def describe(self, above: BlocksAbove) -> Evidence:
        """What the verdict rests on."""

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    def reset(self) -> None:
        self._blocks = BlockSums(self._block_ms, self._offset_ms, 1)
        bound = self._floor + 1 if self._bound is None else self._bound
        self._above = BlocksAbove(bound, self._floor, self._fractions, self.threshold, self._rows_min)
        self._invalid = 0
        waiting = self._missing if self._bound is None else "no block with enough outcomes yet"
        self._verdict = undecided(self.threshold, waiting)

    def update(self, rows: Rows) -> list[Change]:
        if self._bound is None:
            return []
        valid, values = self.values(rows)
        self._invalid += int(len(rows) - np.count_nonzero(valid))
        units = np.rint(values * FIXED_POINT).astype(np.int64)
        self._blocks.add(rows.time_ms[valid], rows.sign[valid], units[:, None])
        return []

    def advance(self, time_ms: int) -> list[Change]:
        changes: list[Change] = []
        for start, (rows, total) in self._blocks.close(time_ms):
            before = self._verdict.state
            if self._above.take(start, rows, total):
                self._verdict = self._judge()
            if self._verdict.state is not before:
                changes.append(Change(-1, start + self._block_ms, self._verdict))
        return changes

    def patience(self) -> tuple[int, int]:
        return NEVER_ROWS, self._blocks.closes_after_ms

    def _judge(self) -> Verdict:
        above = self._above
        return Verdict(
            state=above.state(self._warning),
            score=above.score,
            threshold=self.threshold,
            evidence=self.describe(above),
        )

    def snapshot(self) -> bytes:
        above = self._above
        state = _State(
            self._blocks.state,
            above.evidence.tolist(),
            above.held,
            above.since_ms,
            above.rows,
            above.total,
            above.closed,
            self._invalid,
        )
        return pack(self.kind, self.schema, state)

    def load(self, data: bytes) -> None:
        state = unpack(self.kind, self.schema, _State, data)
        if len(state.evidence) != len(self._fractions):
            raise SnapshotError(f"the snapshot of {self.kind!r} was taken with other bets")
        self.reset()
        self._blocks.state = state.blocks
        above = self._above
        above.evidence, above.held = np.array(state.evidence), state.held
        above.since_ms, above.rows, above.total = state.since_ms, state.rows, state.total
        above.closed, self._invalid = state.closed, state.invalid
        if above.closed:
            self._verdict = self._judge()
