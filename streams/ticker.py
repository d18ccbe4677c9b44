"""Brings the clock into the log: without it, event time would stop when traffic stops, and nothing would ever expire.

The only place of the monitor's data path that reads a clock. The worker that owns a partition writes its ticks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from confluent_kafka import KafkaException, Producer

from schemas.clock import wall_ms
from schemas.events import HEADER_KIND, KIND_TICK, Tick
from schemas.settings import MonitorSettings

log = logging.getLogger(__name__)
#: A tick the broker has not taken by then is dropped: later ones say more.
STALE_MS = 30_000


class Ticker:
    """Writes ``now - tick_delay`` to every partition ``inputs()`` names, each ``tick_interval``, from its own thread."""

    def __init__(self, settings: MonitorSettings, inputs: Callable[[], list[tuple[str, int]]]) -> None:
        self._limits = settings.monitor
        self._inputs = inputs
        # A tick that comes twice says nothing new, and a producer that is not idempotent cannot fail for good.
        self._producer = Producer(
            settings.kafka.producer(
                **{"linger.ms": 0, "enable.idempotence": False, "message.timeout.ms": STALE_MS}
            )
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether ticks are being written."""
        return self._thread.is_alive()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._producer.flush(1.0)

    def tick(self, now_ms: int) -> None:
        """Write one round of ticks. A full local queue skips the round: a later tick says more than an earlier one."""
        value = Tick(event_time_ms=now_ms - self._limits.tick_delay).model_dump_json().encode()
        for topic, partition in self._inputs():
            try:
                self._producer.produce(topic, value, partition=partition, headers=[(HEADER_KIND, KIND_TICK)])
            except (BufferError, KafkaException) as error:
                log.warning(
                    "a tick was left out",
                    extra={"event": "tick-skipped", "topic": topic, "detail": str(error)},
                )
        self._producer.poll(0)

    def _run(self) -> None:
        while not self._stop.wait(self._limits.tick_interval / 1000):
            self.tick(wall_ms())
