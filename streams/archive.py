"""The archive process: copies logs into the warehouse on its own consumer group, and publishes how far it is; beside them, on
another group, `observations` into the label index.

Delivery: offsets are committed after ClickHouse has confirmed the rows. Killed in between, the same rows are written
again; their key is the address of the record they copy, so the table keeps one. Nothing that acts waits for it.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as TopicPartitionAt

from schemas.clock import wall_ms
from schemas.errors import BadMessage, DeliveryError, WarehouseError
from schemas.failpoints import failpoint
from schemas.observability import Metrics
from schemas.presence import is_fatal
from schemas.settings import ArchiveSettings
from streams.core.archive import ARCHIVED, PartitionTime, Row, log_rows, sources_of
from streams.core.delivery import TopicPartition
from streams.core.label_index import PROGRESS, index_rows
from streams.core.records import Record
from streams.sink import BACKOFF_S_MAX, BACKOFF_S_MIN, ClickHouseSink, Sink

log = logging.getLogger(__name__)
Progress = dict[TopicPartition, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Copy:
    """What one consumer group copies. ``rows``: (table, rows) of a record, at the clock's time. ``last``: the table that says
    what the others hold, of which only the newest rows count. ``messages_max``: in one batch; blocks are large.
    ``queued_kb_max``: of a partition, read ahead."""

    group: str
    topics: tuple[str, ...]
    rows: Callable[[Record, int], tuple[str, list[Row]]]
    messages_max: int = 50_000
    queued_kb_max: int = 65_536
    last: str = ""


LOGS = Copy("driftline-archive", ARCHIVED, lambda record, now_ms: log_rows(record))
LABEL_INDEX = Copy("driftline-label-index", ("observations",), index_rows, 32, 16_384, PROGRESS)


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
        self._settings = settings
        self._copies = copy
        self._kafka = settings.kafka
        self._sink = sink
        self._metrics = metrics
        self._stop = stop
        self._times = defaultdict[TopicPartition, PartitionTime](PartitionTime)
        self._next: dict[TopicPartition, int] = {}
        for tp, (next_offset, event_time_ms) in progress.items():
            self._times[tp] = PartitionTime(event_time_ms)
            self._next[tp] = next_offset
        instance = settings.archive.instance
        own: dict[str, Any] = {"queued.max.messages.kbytes": copy.queued_kb_max}
        if instance:
            own["group.instance.id"] = f"{self._kafka.topic_prefix}{instance}"
        self._consumer = Consumer(self._kafka.consumer(copy.group, **own))
        self._pausing = False
        #: Read while waiting for the warehouse, although nothing should come then.
        self._kept: list[Message] = []
        self.ready = False

    def run(self) -> None:
        """Copy until ``stop`` is set. Raises DeliveryError when Kafka cannot be read."""
        names = [self._kafka.topic(topic) for topic in self._copies.topics]
        self._consumer.subscribe(names, on_assign=self._on_assign)
        try:
            while not self._stop.is_set():
                wait_s = self._settings.archive.flush_interval / 1000
                most = min(self._settings.archive.batch_rows_max, self._copies.messages_max)
                messages = self._consumer.consume(most, wait_s)
                kept, self._kept = self._kept, []
                if kept or messages:
                    self._copy(kept + messages)
        finally:
            self._consumer.close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartitionAt]) -> None:
        consumer.assign(partitions)
        if self._pausing:
            consumer.pause(partitions)
        if not self.ready:
            log.info("ready", extra={"event": "ready", "partitions": len(partitions)})
        self.ready = True

    def _copy(self, messages: list[Message]) -> None:
        batch: dict[str, list[Row]] = defaultdict(list)
        ends: dict[TopicPartition, int] = {}
        now_ms = wall_ms()
        for record in self._records(messages):
            tp = (record.topic, record.partition)
            ends[tp] = record.offset + 1
            self._times[tp].take(record, sources_of(record.topic, self._kafka.input_partitions))
            try:
                table, rows = self._copies.rows(record, now_ms)
            except BadMessage as error:
                log.debug("left out", extra={"event": "bad-message", "detail": str(error)})
                continue
            batch[table] += rows
        if not ends:
            return
        for tp, end in ends.items():
            self._next[tp] = max(end, self._next.get(tp, 0))
        newest = {row[:-1]: row for row in batch.pop(self._copies.last, [])}
        for table, rows in batch.items():
            self._insist(table, rows)
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
        self._commit(ends)

    def _records(self, messages: Iterable[Message]) -> Iterable[Record]:
        prefix = self._kafka.topic_prefix
        for message in messages:
            error = message.error()
            if error is not None:
                if is_fatal(error) or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise DeliveryError(f"the archive cannot read: {error}")
                continue
            headers: Any = message.headers()
            topic: Any = message.topic()
            partition: Any = message.partition()
            offset: Any = message.offset()
            yield Record(
                topic.removeprefix(prefix),
                partition,
                offset,
                message.key(),
                message.value(),
                dict(headers) if headers else {},
                message.timestamp()[1],
            )

    def _insist(self, table: str, rows: list[Row]) -> None:
        """Write until it is in or the process is told to stop (then WarehouseError: nothing is committed)."""
        backoff_s = BACKOFF_S_MIN
        while rows:
            try:
                self._sink.write(table, rows)
                self._metrics.count("driftline_warehouse_rows_total", len(rows), table=table)
                return
            except WarehouseError as error:
                self._metrics.count("driftline_warehouse_errors_total", table=table)
                log.warning(
                    "the warehouse did not take a batch; it is sent again",
                    extra={"event": "warehouse-error", "detail": str(error)[:500], "pause_s": backoff_s},
                )
                if self._pause(backoff_s):
                    raise
                backoff_s = min(BACKOFF_S_MAX, backoff_s * 2)

    def _pause(self, seconds: float) -> bool:
        """Wait without losing the group membership; true when told to stop meanwhile."""
        self._pausing = True
        self._consumer.pause(self._consumer.assignment())
        deadline_s = time.monotonic() + seconds
        while not self._stop.is_set() and time.monotonic() < deadline_s:
            message = self._consumer.poll(0)
            if message is not None:
                self._kept.append(message)
            self._stop.wait(min(0.2, seconds))
        self._pausing = False
        self._consumer.resume(self._consumer.assignment())
        return self._stop.is_set()

    def _commit(self, ends: dict[TopicPartition, int]) -> None:
        offsets = [TopicPartitionAt(self._kafka.topic(topic), p, end) for (topic, p), end in ends.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() == KafkaError._FATAL:
                # Fenced by its own name after a silence: this consumer reads nothing any more, and does not say so.
                raise DeliveryError(f"the archive cannot go on: {error}") from error
            # A rebalance: whoever has the partition now copies these rows again, to the same keys.
            log.warning("offsets not committed", extra={"event": "commit-failed", "detail": str(error)})


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
