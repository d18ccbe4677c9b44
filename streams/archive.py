"""The archive process: copies logs into the warehouse on its own consumer group, and publishes how far it is; beside them, on
another group, `observations` into the label index.

Delivery: offsets are committed after ClickHouse has confirmed the rows. Killed in between, the same rows are written
again; their key is the address of the record they copy, so the table keeps one. Nothing that acts waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from schemas.clock import wall_ms
from schemas.errors import BadMessage, WarehouseError
from schemas.failpoints import failpoint
from schemas.observability import Metrics
from schemas.row_binary import RowBlock
from schemas.settings import ArchiveSettings
from streams.core.archive import ARCHIVED, PartitionTime, Row, log_copy, sources_of
from streams.core.delivery import TopicPartition
from streams.core.label_index import PROGRESS, index_copy
from streams.core.records import RecordBatch
from streams.reader import GroupReader
from streams.sink import BACKOFF_S_MAX, BACKOFF_S_MIN, ClickHouseSink, Sink

log = logging.getLogger(__name__)
Progress = dict[TopicPartition, tuple[int, int]]
Copied = Iterable[tuple[str, list[Row] | RowBlock]]


@dataclass(frozen=True, slots=True)
class Copy:
    """What one consumer group copies. ``rows``: (table, rows) of records of one topic, at the clock's time. ``last``: the table
    that says what the others hold, of which only the newest rows count. ``records_max``: at one time; blocks are large."""

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


LOGS = Copy("driftline-archive", ARCHIVED, lambda batch, now_ms: log_copy(batch))
LABEL_INDEX = Copy("driftline-label-index", ("observations",), _index_rows, 32, PROGRESS)


class Archive:
    """Reads what was committed on every archived topic and writes it to ``sink``. Not thread-safe."""

    def __init__(
        self,
        settings: ArchiveSettings,
        sink: Sink,
        metrics: Metrics,
        progress: Progress,
        stop: threading.Event,
        copy: Copy = LOGS,
    ) -> None:
        self._settings = settings.archive
        self._partitions = settings.kafka.input_partitions
        self._copies = copy
        self._sink = sink
        self._metrics = metrics
        self._stop = stop
        self._times = defaultdict[TopicPartition, PartitionTime](PartitionTime)
        self._next: dict[TopicPartition, int] = {}
        for tp, (next_offset, event_time_ms) in progress.items():
            self._times[tp] = PartitionTime(event_time_ms)
            self._next[tp] = next_offset
        self._reader = GroupReader(
            settings.kafka, copy.group, copy.topics, stop, instance=settings.archive.instance
        )

    @property
    def ready(self) -> bool:
        """Whether it has been given partitions."""
        return self._reader.ready

    def run(self) -> None:
        """Copy until ``stop`` is set. Raises DeliveryError when Kafka cannot be read, and WarehouseError when the warehouse is
        away while it is told to stop."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        most = min(self._settings.batch_rows_max, self._copies.records_max)
        await self._reader.start()
        try:
            while not self._stop.is_set():
                batches = await self._reader.read(most, self._settings.flush_interval / 1000)
                if batches:
                    # The group's heartbeats go on meanwhile, and so does the fetching of what comes next.
                    await self._reader.commit(await asyncio.to_thread(self._copy, batches))
        finally:
            await self._reader.end()

    def _copy(self, batches: Sequence[RecordBatch]) -> dict[TopicPartition, int]:
        """Write what they hold, then how far that is: the offset after the last of each partition."""
        rows: dict[str, list[Row]] = defaultdict(list)
        blocks: dict[str, list[RowBlock]] = defaultdict(list)
        ends: dict[TopicPartition, int] = {}
        now_ms = wall_ms()
        for batch in batches:
            tp = (batch.topic, batch.partition)
            ends[tp] = int(batch.offsets[-1]) + 1
            for at in range(len(batch)) if batch.topic == "control" else sorted(batch.headers):
                self._times[tp].take(batch[at], sources_of(batch.topic, self._partitions))
            for table, found in self._copies.rows(batch, now_ms):
                if isinstance(found, RowBlock):
                    blocks[table].append(found)
                else:
                    rows[table] += found
        for tp, end in ends.items():
            self._next[tp] = max(end, self._next.get(tp, 0))
        newest = {row[:-1]: row for row in rows.pop(self._copies.last, [])}
        for table, of_table in blocks.items():
            self._insist(
                table, RowBlock(sum(b.rows for b in of_table), memoryview(b"".join(b.data for b in of_table)))
            )
        for table, of in rows.items():
            self._insist(table, of)
        self._insist(self._copies.last, list(newest.values()))
        failpoint("archive.before-progress")
        self._insist(
            "archive_progress",
            [
                (topic, p, self._next[topic, p], self._times[topic, p].event_time_ms)
                for topic, p in sorted(ends)
            ],
        )
        failpoint("archive.before-commit")
        return ends

    def _insist(self, table: str, rows: list[Row] | RowBlock) -> None:
        """Write until it is in or the process is told to stop (then WarehouseError: nothing is committed)."""
        backoff_s, count = BACKOFF_S_MIN, rows.rows if isinstance(rows, RowBlock) else len(rows)
        while count:
            try:
                if isinstance(rows, RowBlock):
                    self._sink.write_block(table, rows)
                else:
                    self._sink.write(table, rows)
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


def read_progress(sink: ClickHouseSink) -> Progress:
    """What the archive had reached, by (topic, partition): (next offset, event time). Raises WarehouseError."""
    rows = sink.query(
        "SELECT topic, partition, max(next_offset), max(event_time_ms) FROM archive_progress GROUP BY topic, partition"
    )
    return {(topic, partition): (next_offset, at_ms) for topic, partition, next_offset, at_ms in rows}


def run_archive(settings: ArchiveSettings) -> int:
    """Run until SIGTERM or SIGINT; the exit code: 0 told to stop, 70 unexpected."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    metrics = Metrics()
    sink = ClickHouseSink(settings.clickhouse)
    archive: Archive | None = None
    if settings.metrics_port:
        metrics.serve(
            settings.metrics_host, settings.metrics_port, lambda: archive is not None and archive.ready
        )
    try:
        progress = _until(lambda: read_progress(sink), stop)
        archive = Archive(settings, sink, metrics, progress, stop)
        with _beside(settings, metrics, progress, stop) as failed:
            archive.run()
        if failed:
            raise failed[0]
    except WarehouseError:
        if not stop.is_set():
            raise
    except Exception as error:
        log.exception("ending: %s", error, extra={"event": "fatal", "error": type(error).__name__})
        return 70
    finally:
        sink.close()
    log.info("stopped", extra={"event": "stopped", "exit_code": 0})
    return 0


@contextmanager
def _beside(
    settings: ArchiveSettings, metrics: Metrics, progress: Progress, stop: threading.Event
) -> Iterator[list[BaseException]]:
    """Keep the label index in a thread of its own; what ends it ends the process, and is in the list."""
    failed: list[BaseException] = []
    sink = ClickHouseSink(settings.clickhouse)

    def copy() -> None:
        try:
            Archive(settings, sink, metrics, progress, stop, LABEL_INDEX).run()
        except BaseException as error:  # noqa: BLE001  # whatever it is, the process must not go on
            if not (isinstance(error, WarehouseError) and stop.is_set()):
                failed.append(error)
            stop.set()

    thread = threading.Thread(target=copy, name="label-index")
    if settings.archive.label_index:
        thread.start()
    try:
        yield failed
    finally:
        stop.set()
        if settings.archive.label_index:
            thread.join()
        sink.close()


def _until(ask: Callable[[], Progress], stop: threading.Event) -> Progress:
    """The answer, once the warehouse gives one. Raises WarehouseError when told to stop before."""
    while True:
        try:
            return ask()
        except WarehouseError as error:
            log.warning(
                "waiting for the warehouse", extra={"event": "warehouse-error", "detail": str(error)[:500]}
            )
            if stop.wait(1.0):
                raise
