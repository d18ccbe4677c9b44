"""A Kafka broker that is away is sat out by the process that needs it: ending would only add a restart to the outage.

What failed is tried again once a broker answers. One that answers and refuses all the same is no outage, and soon ends
the process, with what it said.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Self, TypeVar

from confluent_kafka import Consumer, KafkaError

from schemas.errors import BrokerError
from schemas.observability import Metrics
from schemas.presence import Absence, answers
from schemas.settings import KafkaSettings

log = logging.getLogger(__name__)
T = TypeVar("T")
_LOOK_S = 5.0
_BACKOFF_MAX_S = 5.0
#: Failures with a broker that answers, within so long, after which waiting is no help.
FAILURES_MAX, FAILURES_S = 5, 300.0
#: So long after an absence what a broker says of our transactions may still come of it.
LATELY_S = 60.0
FENCED = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})


class Outages:
    """Looks every five seconds whether a broker answers, for log and metric, and waits for one where it must. A context:
    the looking ends with it. ``backoff_s``: the first pause between two tries; doubled up to five seconds."""

    def __init__(
        self, kafka: KafkaSettings, who: str, metrics: Metrics, stop: threading.Event, backoff_s: float = 0.25
    ) -> None:
        self._backoff_s = backoff_s
        self._consumer = Consumer(kafka.consumer())
        self._topic = kafka.topic("models")
        self._metrics = metrics
        self._stop = stop
        self._closing = threading.Event()
        self._absence = Absence(who)
        self._away_s: float | None = None
        self._refused_s: deque[float] = deque(maxlen=FAILURES_MAX + 1)
        self._thread = threading.Thread(target=self._watch, name="broker-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        self._consumer.close()

    @property
    def lately(self) -> bool:
        """Whether nobody answered just now, or not long ago."""
        return self._away_s is not None and time.monotonic() - self._away_s < LATELY_S

    def through(self, act: Callable[[], T]) -> T | None:
        """What ``act()`` returns, tried again after each outage; None when told to stop. Raises the BrokerError of a broker
        that answers and goes on refusing."""
        while self._await_broker() is not None:
            try:
                return act()
            except BrokerError as error:
                self.sit_out(error)
        return None

    def sit_out(self, error: BrokerError) -> None:
        """Wait until a broker answers, or until told to stop. Raises ``error`` when one has answered all along, and refused
        more often than it may."""
        log.warning("trying again as soon as a broker answers: %s", error)
        self._metrics.count("driftline_errors_total", where="broker")
        if self._await_broker(error):
            self._refused_s.clear()
            return
        now_s = time.monotonic()
        self._refused_s.append(now_s)
        recent = sum(now_s - at_s < FAILURES_S for at_s in self._refused_s)
        if recent > FAILURES_MAX:
            raise error
        self._stop.wait(min(self._backoff_s * 2**recent, _BACKOFF_MAX_S))

    def _await_broker(self, detail: object = "") -> bool | None:
        """Whether it had to be waited for; None when told to stop."""
        pause_s, waited = self._backoff_s, False
        while not self._stop.is_set():
            if self._look(detail):
                return waited
            waited = True
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, _BACKOFF_MAX_S)
        return None

    def _look(self, detail: object = "") -> bool:
        present = answers(self._consumer, self._topic)
        if not present:
            self._away_s = time.monotonic()
        self._absence.note(present, detail)
        self._metrics.set("driftline_broker_up", present)
        return present

    def _watch(self) -> None:
        while not self._closing.is_set():
            self._look()
            self._closing.wait(_LOOK_S)
