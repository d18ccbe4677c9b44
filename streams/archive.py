"""The archive process: copies logs into the warehouse on its own consumer group, and publishes how far it is; beside them, on
another group, `observations` into the label index.

Delivery: offsets are committed after ClickHouse has confirmed the rows. Killed in between, the same rows are written
again, to the same keys. Nothing that acts waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import WarehouseError
from schemas.observability import Metrics
from schemas.settings import ArchiveSettings
from streams.copying import LABEL_INDEX, Copier, Copy, Progress, logs, read_progress
from streams.core.archive import ARCHIVED, EVENTS
from streams.core.raw_log import Stretch
from streams.reader import GroupReader
from streams.sink import ClickHouseSink, Sink

log = logging.getLogger(__name__)


class Archive:
    """Reads what was committed on every topic of ``copy`` and writes it to ``sink``. Not thread-safe."""

    def __init__(
        self,
        settings: ArchiveSettings,
        sink: Sink,
        metrics: Metrics,
        progress: Progress,
        stop: threading.Event,
        copy: Copy,
    ) -> None:
        self._settings = settings.archive
        self._copies = copy
        self._stop = stop
        self._copier = Copier(copy, sink, metrics, settings.kafka.input_partitions, progress, stop)
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
                    await self._reader.commit(
                        await asyncio.to_thread(self._copier.copy, [Stretch.of(batch) for batch in batches])
                    )
        finally:
            await self._reader.end()


def run_archive(settings: ArchiveSettings) -> int:
    """Run until SIGTERM or SIGINT; the exit code: 0 told to stop, 70 unexpected."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    metrics = Metrics()
    sink = ClickHouseSink(settings.clickhouse)
    topics = [topic for topic in ARCHIVED if settings.clickhouse.raw_log == "archive" or topic not in EVENTS]
    archive: Archive | None = None
    if settings.metrics_port:
        metrics.serve(
            settings.metrics_host, settings.metrics_port, lambda: archive is not None and archive.ready
        )
    try:
        progress = read_progress(sink, stop)
        archive = Archive(settings, sink, metrics, progress, stop, logs(topics))
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
