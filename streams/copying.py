"""Copies of topics in the warehouse: records become rows, rows are written until they are in, then how far that is.

Killed in between, the same rows are written again: their key is the address of the record they copy, so the table keeps one.
Who reads the records is somebody else's (``streams.archive``, ``streams.raw_log``).
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.clock import wall_ms
from schemas.errors import BadMessage, WarehouseError
from schemas.events import HEADER_KIND, KIND_TICK
from schemas.failpoints import failpoint
from schemas.observability import Metrics
from schemas.row_binary import RowBlock
from streams.core.archive import ARCHIVED, EVENTS, PartitionTime, Row, log_copy, sources_of, table_of
from streams.core.delivery import TopicPartition
from streams.core.label_index import PROGRESS, index_copy
from streams.core.raw_log import Stretch
from streams.core.records import RecordBatch
from streams.sink import BACKOFF_S_MAX, BACKOFF_S_MIN, ClickHouseSink, Sink

log = logging.getLogger(__name__)
#: By (topic, partition): the offset to go on from, and event time there.
Progress = dict[TopicPartition, tuple[int, int]]
Copied = Iterable[tuple[str, list[Row] | RowBlock]]


@dataclass(frozen=True, slots=True)
class Copy:
    """What one reader copies. ``rows``: (table, rows) of records of one topic, at the clock's time. ``last``: the table that
    says what the others hold, of which only the newest rows count. ``records_max``: at one time; blocks are large."""

    group: str
    topics: tuple[str, ...]
    rows: Callable[[RecordBatch, int], Copied]
    records_max: int = 2**31
    last: str = ""


def _index_rows(batch: RecordBatch, now_ms: int) -> Copied:
    for record in batch:
        try:
            yield from index_copy(record, now_ms)
        except BadMessage as error:
            log.warning("left out", extra={"event": "bad-message", "detail": str(error)})


def logs(topics: Sequence[str] = ARCHIVED) -> Copy:
    """The logs of these topics."""
    return Copy("driftline-archive", tuple(topics), lambda batch, now_ms: log_copy(batch))


RAW_LOG = logs(EVENTS)
LABEL_INDEX = Copy("driftline-label-index", ("observations",), _index_rows, 32, PROGRESS)


class Copier:
    """Writes records to ``sink`` and knows how far it is. ``stop`` ends its waiting. Not thread-safe."""

    def __init__(
        self,
        copies: Copy,
        sink: Sink,
        metrics: Metrics,
        partitions: int,
        progress: Progress,
        stop: threading.Event,
        name: str = "archive",
    ) -> None:
        self._copies = copies
        self._sink = sink
        self._metrics = metrics
        self._partitions = partitions
        self._stop = stop
        self._name = name
        self._times = defaultdict[TopicPartition, PartitionTime](PartitionTime)
        self._next: dict[TopicPartition, int] = {}
        self.go_on(progress)

    def go_on(self, progress: Progress) -> None:
        """These partitions go on from where somebody had come with them."""
        for tp, (next_offset, event_time_ms) in progress.items():
            self._times[tp] = PartitionTime(event_time_ms)
            self._next[tp] = next_offset

    def copy(self, stretches: Sequence[Stretch]) -> dict[TopicPartition, int]:
        """Write what they hold, then how far that is: the offset after the last of each partition. Raises WarehouseError when
        told to stop before."""
        rows: dict[str, list[Row]] = defaultdict(list)
        blocks: dict[tuple[str, str], list[RowBlock]] = defaultdict(list)
        ends: dict[TopicPartition, int] = {}
        now_ms = wall_ms()
        for held in stretches:
            tp = (held.topic, held.partition)
            ends[tp] = held.end
            for block in held.rows:
                blocks[table_of(held.topic), block.format].append(block)
            for batch in held.records:
                for at in _timed(batch):
                    self._times[tp].take(batch[at], sources_of(batch.topic, self._partitions))
                for table, found in self._copies.rows(batch, now_ms):
                    if isinstance(found, RowBlock):
                        blocks[table, found.format].append(found)
                    else:
                        rows[table] += found
        for tp, end in ends.items():
            self._next[tp] = max(end, self._next.get(tp, 0))
        newest = {row[:-1]: row for row in rows.pop(self._copies.last, [])}
        for (table, _), of_table in blocks.items():
            self._insist(table, sum(one.rows for one in of_table), self._sink.write_blocks, of_table)
        for table, of in rows.items():
            self._insist(table, len(of), self._sink.write, of)
        last = list(newest.values())
        self._insist(self._copies.last, len(last), self._sink.write, last)
        failpoint(f"{self._name}.before-progress")
        reached = [
            (topic, p, self._next[topic, p], self._times[topic, p].event_time_ms) for topic, p in sorted(ends)
        ]
        self._insist("archive_progress", len(reached), self._sink.write, reached)
        failpoint(f"{self._name}.before-commit")
        return ends

    def _insist(
        self, table: str, count: int, write: Callable[[str, list[Any]], None], rows: list[Any]
    ) -> None:
        """Write until it is in or the process is told to stop (then WarehouseError: nothing is committed)."""
        backoff_s = BACKOFF_S_MIN
        while count:
            try:
                write(table, rows)
                self._metrics.count("driftline_warehouse_rows_total", count, table=table)
                return
            except WarehouseError as error:
                self._metrics.count("driftline_warehouse_errors_total", table=table)
                log.warning(
                    "the warehouse did not take a batch; it is sent again",
                    extra={"event": "warehouse-error", "detail": str(error)[:500], "pause_s": backoff_s},
                )
                if self._stop.wait(backoff_s):
                    raise
                backoff_s = min(BACKOFF_S_MAX, backoff_s * 2)


def _timed(batch: RecordBatch) -> Iterable[int]:
    """Places of the records that may carry time."""
    if batch.topic == "control":
        return range(len(batch))
    return sorted(at for at, said in batch.headers.items() if said.get(HEADER_KIND) == KIND_TICK)


def read_progress(sink: ClickHouseSink, stop: threading.Event) -> Progress:
    """What copies had reached, once the warehouse says it. Raises WarehouseError when told to stop before."""
    while True:
        try:
            rows = sink.query(
                "SELECT topic, partition, max(next_offset), max(event_time_ms) FROM archive_progress GROUP BY topic, partition"
            )
            return {(topic, partition): (next_offset, at_ms) for topic, partition, next_offset, at_ms in rows}
        except WarehouseError as error:
            log.warning(
                "waiting for the warehouse", extra={"event": "warehouse-error", "detail": str(error)[:500]}
            )
            if stop.wait(1.0):
                raise
