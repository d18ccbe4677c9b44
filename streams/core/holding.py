"""Rows that detectors have not been given yet: beyond the watermark, or behind it and held back because nobody could speak.

What a call of a detector costs hardly depends on how many rows it is given, so a model of few rows would cost many times
what a busy one does. A detector says how long it will not speak (``detectors.base.Patient``): until then rows that the
watermark has passed are held and fed together. What is said, and when, is the same; only the work is less.

What is held is in no state: the task's position points back to the first record with a row that was not fed. So that this
is never far, bytes received since are bounded; a model is also fed when it has many rows, or when event time has gone on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from detectors.base import NEVER_MS, NEVER_ROWS
from schemas.blocks import ObservationBlock
from schemas.contracts import ModelContract
from schemas.ids import ROLES
from streams.core.comparing import BEGINNING_MS, FALLBACK, Pair
from streams.core.detect_state import Key, Running
from streams.core.ordering import STREAMS, merged

#: Beyond so many rows nothing is gained by more.
ROWS_MAX = 1_024
#: How much event time may pass before rows that are held are fed.
AGE_MAX_MS = 1_800_000
#: Bytes of a row beside its features.
_ROW_BYTES = 96
#: A block takes as much as twenty rows however few it has, so this many that follow each other with fewer rows than that are
#: made one.
_BLOCKS_FEW, _ROWS_FEW = 8, 64

#: (version, role) as they stand in blocks.
Shown = tuple[str, int]


@dataclass(slots=True)
class Waiting:
    """Rows of one record; ``first_ms``, ``last_ms``: the times by which they are ordered lie between these."""

    offset: int
    block: ObservationBlock
    first_ms: int
    last_ms: int


@dataclass(slots=True)
class Queue:
    """Rows of one model and kind. ``ahead``: beyond the watermark, ``due``: not.

    As long as fewer than ``rows`` are due, time has not passed ``until_ms`` and all are of ``shown`` versions and roles,
    no detector would speak.
    """

    ahead: list[Waiting] = field(default_factory=list)
    due: list[ObservationBlock] = field(default_factory=list)
    due_rows: int = 0
    first_offset: int = -1
    since_bytes: int = -1
    rows: int = 0
    until_ms: int = BEGINNING_MS
    shown: set[Shown] = field(default_factory=set)
    fresh: bool = False

    def pass_(self, time_ms: int) -> None:
        """What the watermark has passed is due."""
        rest = []
        for waiting in self.ahead:
            if waiting.first_ms > time_ms:
                rest.append(waiting)
                continue
            if waiting.last_ms > time_ms:
                times, block = waiting.block.order_ms, waiting.block
                passed = times <= time_ms
                if not passed.any():
                    rest.append(Waiting(waiting.offset, block, time_ms + 1, waiting.last_ms))
                    continue
                after = block.take(np.flatnonzero(~passed))
                rest.append(Waiting(waiting.offset, after, time_ms + 1, waiting.last_ms))
                waiting = Waiting(
                    waiting.offset, block.take(np.flatnonzero(passed)), waiting.first_ms, time_ms
                )
            self._keep(waiting.block)
        self.ahead = rest

    def _keep(self, block: ObservationBlock) -> None:
        self.due.append(block)
        self.due_rows += len(block)
        self.fresh = self.fresh or not self.shown.issuperset(shown_by(block))
        few = self.due[-_BLOCKS_FEW:]
        if len(few) == _BLOCKS_FEW and all(_alike(of, block) for of in few):
            self.due[-_BLOCKS_FEW:] = [merged(few)]

    def take(self) -> list[ObservationBlock]:
        """All that is due, from now on somebody else's; its versions and roles have been shown."""
        blocks = self.due
        if self.fresh:
            self.shown.update(*map(shown_by, blocks))
        self.due, self.due_rows, self.fresh = [], 0, False
        self.first_offset = min((waiting.offset for waiting in self.ahead), default=-1)
        self.since_bytes = -1
        return blocks


def _alike(block: ObservationBlock, other: ObservationBlock) -> bool:
    """Whether it has few rows, with the columns of the other."""
    return (
        len(block) < _ROWS_FEW
        and block.contract_hash == other.contract_hash
        and block.features.shape[1] == other.features.shape[1]
        and block.segments.shape[1] == other.segments.shape[1]
    )


def shown_by(block: ObservationBlock) -> set[Shown]:
    """Versions and roles of a block's rows."""
    if len(block.versions) == 1:
        return {(block.versions[0], code) for code in range(len(ROLES)) if (block.role == code).any()}
    codes = block.version * len(ROLES) + block.role
    found = set(codes.tolist()) if len(codes) <= ROWS_MAX else np.flatnonzero(np.bincount(codes)).tolist()
    return {(block.versions[code // len(ROLES)], code % len(ROLES)) for code in found}


def patience_of(
    kind: str, contract: ModelContract, running: Mapping[Key, Running], shown: set[Shown], pair: Pair | None
) -> tuple[int, int]:
    """How many rows of ``kind`` may come, and until when, before one of a model's detectors could speak.

    ``running``: its detectors. One that its rows so far should have brought to life, and have not, may speak at once: with
    its next row it is built, or says why it is not. So does the judge, as long as there is somebody to judge.
    """
    rows, until_ms = NEVER_ROWS, NEVER_MS
    for one in running.values():
        if one.config.stream in STREAMS[kind] and not one.failed:
            # Asking whether it is a ``Patient`` takes longer than its answer.
            patience = getattr(one.detector, "patience", None)
            own = (0, BEGINNING_MS) if patience is None else patience()
            rows, until_ms = min(rows, own[0]), min(until_ms, own[1])
    for config in contract.monitoring.detectors:
        if config.stream not in STREAMS[kind]:
            continue
        if config.stream == "comparison":
            awaited = pair is not None and pair.candidate not in (None, pair.stable)
        else:
            roles = [ROLES.index(role) for role in config.roles]
            awaited = any(
                role in roles
                and version != FALLBACK
                and (contract.model, version, config.name) not in running
                for version, role in shown
            )
        rows = 0 if awaited else rows
    return rows, until_ms


class Holding:
    """All queues of a task. ``bytes_max``: about how many bytes of rows may have come since the first that is held."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._taken_bytes = 0
        self._queues: dict[str, dict[str, Queue]] = {"predictions": {}, "outcomes": {}}
        self._oldest: deque[tuple[int, str, str]] = deque()

    def queue(self, kind: str, model: str) -> Queue:
        """The queue, made if need be."""
        found = self._queues[kind].get(model)
        if found is None:
            found = self._queues[kind][model] = Queue()
        return found

    def put(self, offset: int, block: ObservationBlock, first_ms: int, last_ms: int) -> None:
        """Keep a record's rows, at least one, until they are fed; the times by which they are ordered lie between these."""
        queue = self.queue(block.kind, block.model)
        queue.ahead.append(Waiting(offset, block, first_ms, last_ms))
        if queue.first_offset < 0:
            queue.first_offset = offset
        if queue.since_bytes < 0:
            queue.since_bytes = self._taken_bytes
            self._oldest.append((self._taken_bytes, block.kind, block.model))
        width = block.features.shape[1] + block.segments.shape[1]
        self._taken_bytes += len(block) * (_ROW_BYTES + 8 * width)

    def ripe(self, kind: str, time_ms: int) -> list[str]:
        """Models that cannot be held any longer now that the watermark is at ``time_ms``, sorted."""
        found = set()
        for model, queue in self._queues[kind].items():
            if queue.ahead:
                queue.pass_(time_ms)
            if (
                time_ms > queue.until_ms
                or queue.fresh
                or (queue.due_rows and queue.due_rows >= min(queue.rows, ROWS_MAX))
            ):
                found.add(model)
        return sorted(found | self._longest(kind))

    def _longest(self, kind: str) -> set[str]:
        """Models whose rows have waited for too many others."""
        found = set()
        while self._oldest and self._oldest[0][0] < self._taken_bytes - self._bytes_max:
            since, own, model = self._oldest.popleft()
            queue = self._queues[own].get(model)
            if queue is None or queue.since_bytes != since:
                continue
            queue.since_bytes = -1
            if own == kind:
                found.add(model)
            else:
                queue.until_ms = BEGINNING_MS
        return found

    def promise(self, kind: str, model: str, rows: int, until_ms: int, time_ms: int) -> None:
        """Nobody of the model speaks before so many rows, or before that time; ``time_ms``: the watermark's."""
        queue = self.queue(kind, model)
        queue.rows, queue.until_ms = rows, min(until_ms, time_ms + AGE_MAX_MS, NEVER_MS)

    def forget(self, kind: str, model: str) -> None:
        """Of a model that nobody knows only rows are kept that are not due: it may be known when they are."""
        if not self.queue(kind, model).ahead:
            del self._queues[kind][model]

    def offsets(self) -> Iterable[int]:
        """Of the first record of each queue."""
        for queues in self._queues.values():
            yield from (queue.first_offset for queue in queues.values() if queue.first_offset >= 0)
