"""Whether a Kafka broker is there at all: what every process asks before it takes a failure for its own.

An outage that is sat out is not a crash with a restart on top; but a broker that is there and says no is an answer.
"""

from __future__ import annotations

import logging
import threading
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

log = logging.getLogger(__name__)
ASK_TIMEOUT_S = 5.0


def answers(client: Consumer | Producer, topic: str) -> bool:
    """Whether a broker answers at all, asked about ``topic`` (which the question does not create). If none does, the client may log
    why: nobody else would hear one that is only asked."""
    try:
        client.list_topics(topic, timeout=ASK_TIMEOUT_S)
    except KafkaException:
        if isinstance(client, Producer) or not client.assignment():
            client.poll(0)
        return False
    return True


def is_fatal(error: KafkaError) -> bool:
    """Whether a client that said this does nothing any more: it was fenced by its own name, say, while its coordinator was
    away. Told by an event of its own, which does not call itself fatal."""
    return bool(error.fatal()) or error.code() == KafkaError._FATAL


class Absence:
    """Says once that nobody answers, and once that somebody does again. Any thread may note what it saw."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._since_s: float | None = None
        self._lock = threading.Lock()

    def note(self, present: bool, detail: object = "") -> None:
        """One more look."""
        now_s = time.monotonic()
        with self._lock:
            since_s, self._since_s = self._since_s, None if present else self._since_s or now_s
        if not present and since_s is None:
            log.warning(
                "no broker answers; waiting",
                extra={"event": "broker-away", "who": self._who, "detail": str(detail)[:500]},
            )
        elif present and since_s is not None:
            log.warning(
                "a broker answers again",
                extra={"event": "broker-back", "who": self._who, "seconds": round(now_s - since_s, 1)},
            )
