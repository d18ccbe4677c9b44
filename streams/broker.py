"""What a process asks Kafka about itself: whether it is there, and where partitions begin and end.

A broker that is away is waited for, however long: ending would only add a restart to the outage. What a broker that is
there says is an answer, and a bad one ends the process soon. So each question that fails is followed by another one:
does anybody answer at all?
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.errors import DeliveryError
from schemas.presence import ASK_TIMEOUT_S, Absence, answers
from schemas.settings import KafkaSettings

#: How long a broker may say that it knows nothing of a partition: just after a topic was made or moved, it may.
ANSWER_TIMEOUT_S = 10.0
PAUSE_S = 0.1
_AWAY_PAUSE_S = 0.5
_AWAY = frozenset({KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN})


def log_bounds(
    consumer: Consumer, topic: str, partition: int, stop: threading.Event | None = None
) -> tuple[int, int]:
    """First offset and (committed) end of a partition. Waits for a broker until ``stop`` is set. Raises DeliveryError
    when one that answers has not said so within ten seconds, or when stopped."""
    absence = Absence(f"{topic}[{partition}]")
    stop = stop or threading.Event()
    refused_s: float | None = None
    while True:
        try:
            found = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ASK_TIMEOUT_S)
            absence.note(True)
            return found
        except KafkaException as error:
            present = answers(consumer, topic)
            absence.note(present, error.args[0])
            now_s = time.monotonic()
            refused_s = (refused_s or now_s) if present else None
            late = refused_s is not None and now_s - refused_s > ANSWER_TIMEOUT_S
            if late or stop.wait(PAUSE_S if present else _AWAY_PAUSE_S):
                raise DeliveryError(
                    f"{topic}[{partition}]: its offsets cannot be asked for: {error.args[0]}; does the topic exist?"
                ) from error


class Ends:
    """Asks where inputs end, on a connection of its own: a consumer that has silently died would not say.

    Not the client's admin interface: librdkafka 2.16 ends the process (``rd_kafka_admin_response_parse: Assertion
    `rko_result' failed``) when a broker goes away at the wrong moment.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._consumer = Consumer(kafka.consumer())
        self._known_topic = kafka.topic("models")

    def ask(self, inputs: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int] | None:
        """Committed end of each (topic on the broker, partition) that has one; None when no broker answers. Blocks."""
        if not answers(self._consumer, self._known_topic):
            return None
        ends: dict[tuple[str, int], int] = {}
        for topic, partition in inputs:
            try:
                _, end = self._consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=ASK_TIMEOUT_S
                )
            except KafkaException as error:
                if error.args[0].code() in _AWAY:
                    return None
                continue
            ends[topic, partition] = end
        return ends
