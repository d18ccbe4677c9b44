"""The monitor's workers write the raw log: predictions and ground truths are fetched, unpacked and, where it can be, read
once, not once more to be copied.

Nothing that acts waits for it (``streams.core.raw_log``): with the warehouse away, records wait up to a bound and are read
again later. How far each partition is stands in the warehouse, behind its rows, so a worker that takes one over goes on
from there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from schemas.observability import Metrics
from schemas.settings import MonitorSettings
from streams.copying import RAW_LOG, Copier, read_progress
from streams.core.archive import EVENTS
from streams.core.delivery import TopicPartition
from streams.core.raw_log import RawLogQueue, Stretch
from streams.reader import LogReader
from streams.sink import ClickHouseSink

log = logging.getLogger(__name__)
#: Of one insert, and how long it may gather them. A record may be a batch of many rows.
RECORDS_MAX = 100_000
BYTES_MAX = 33_554_432
FLUSH_S = 0.5
_READ_S = 0.2
Offsets = dict[TopicPartition, int]


class RawLog:
    """All methods belong to the loop in which ``run`` and ``read_again`` do the work."""

    def __init__(self, settings: MonitorSettings, sink: ClickHouseSink, metrics: Metrics) -> None:
        self._kafka = settings.kafka
        self._sink = sink
        self._metrics = metrics
        self._queue = RawLogQueue(settings.monitor.raw_log_bytes_max)
        self._stop = threading.Event()
        self._copier = Copier(
            RAW_LOG, sink, metrics, settings.kafka.input_partitions, {}, self._stop, "raw-log"
        )
        self._came = asyncio.Event()
        self._gap = asyncio.Event()
        self._room = asyncio.Event()

    def follow(self, positions: Offsets) -> None:
        """A task begins to work on these partitions from there, by (logical topic, partition)."""
        self._queue.follow({tp: offset for tp, offset in positions.items() if tp[0] in EVENTS})
        self._came.set()

    def leave(self, tps: Iterable[TopicPartition]) -> None:
        """It has ended."""
        self._queue.leave(tps)

    def offer(self, held: Stretch) -> None:
        """It has worked on this, right behind what it had worked on before."""
        if held.topic in EVENTS:
            self._queue.offer(held)
            self._came.set()

    def close(self) -> None:
        """Wait for nothing any more. What was not written is read again by whoever has the partition next."""
        self._stop.set()
        self._sink.close()

    async def run(self) -> None:
        """Write for ever. Cancel to end."""
        written_s = 0.0
        while True:
            await self._came.wait()
            self._came.clear()
            if self._queue.unknown():
                await self._ask()
            while stretches := await self._gathered(written_s):
                written_s = time.monotonic()
                await asyncio.to_thread(self._copier.copy, stretches)
                self._room.set()
                self._look()
            self._look()

    async def _ask(self) -> None:
        unknown = self._queue.unknown()
        progress = await asyncio.to_thread(read_progress, self._sink, self._stop)
        self._copier.go_on({tp: progress[tp] for tp in unknown if tp in progress})
        self._queue.go_on({tp: progress.get(tp, (0, 0))[0] for tp in unknown})

    async def _gathered(self, written_s: float) -> list[Stretch]:
        """What is written next, once it is enough or has waited long enough."""
        while 0 < self._queue.records < RECORDS_MAX and self._queue.bytes < BYTES_MAX:
            left_s = written_s + FLUSH_S - time.monotonic()
            if left_s <= 0:
                break
            self._came.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._came.wait()
            if self._queue.unknown():
                self._came.set()
                break
        return self._queue.take(RECORDS_MAX, BYTES_MAX)

    async def read_again(self) -> None:
        """Close gaps for ever. Cancel to end."""
        while True:
            await self._gap.wait()
            self._gap.clear()
            reader = LogReader(self._kafka, EVENTS, self._stop)
            await reader.start()
            try:
                at = self._queue.behind()
                log.info(
                    "reading again for the raw log", extra={"event": "raw-log-behind", "offsets": _named(at)}
                )
                while at:
                    at = await self._some_again(reader, at)
                log.info("the raw log has caught up", extra={"event": "raw-log-caught-up"})
            finally:
                await reader.end()

    async def _some_again(self, reader: LogReader, at: Offsets) -> Offsets:
        """Read on from these offsets; where to go on after that."""
        for start, records in await reader.read(at, _READ_S):
            while self._queue.full:
                self._room.clear()
                await self._room.wait()
            tp = (records.topic, records.partition)
            at[tp] = int(records.offsets[-1]) + 1
            self._queue.read_again(start, Stretch.of(records))
            self._came.set()
        left = self._queue.still_behind(at)
        return self._queue.behind() | {tp: offset for tp, offset in at.items() if tp in left}

    def _look(self) -> None:
        behind = self._queue.behind()
        if behind:
            self._gap.set()
        self._metrics.set("driftline_raw_log_waiting_bytes", self._queue.bytes)
        self._metrics.set("driftline_raw_log_partitions_behind", len(behind))


def _named(offsets: Offsets) -> dict[str, int]:
    return {f"{topic}/{partition}": offset for (topic, partition), offset in sorted(offsets.items())}
