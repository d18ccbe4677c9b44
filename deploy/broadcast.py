"""Reads whole topics without a consumer group: what every instance of an actor must hear, each hears for itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import BrokerError
from schemas.presence import is_fatal
from schemas.settings import KafkaSettings

log = logging.getLogger(__name__)


class Broadcast:
    """A consumer with partitions assigned by hand, from their beginning or a stated offset, committed records only.

    ``topics`` are logical names, and so are the names in what is read (:meth:`name`).
    """

    def __init__(self, kafka: KafkaSettings, topics: Sequence[str], timeout_s: float = 30.0) -> None:
        self._kafka = kafka
        self._timeout_s = timeout_s
        self._consumer = Consumer(kafka.consumer(None, **{"enable.partition.eof": True}))
        self._open: set[tuple[str, int]] = set()
        try:
            for topic in topics:
                self.add(topic)
        except BrokerError:
            self._consumer.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, topic: str, offsets: Mapping[int, int] | None = None) -> None:
        """Read ``topic`` too: each partition from ``offsets``, or from its beginning. Raises BrokerError when it is not
        there within the time limit."""
        name = self._kafka.topic(topic)
        starts = offsets or {}
        assigned = [
            TopicPartition(name, p, starts.get(p, OFFSET_BEGINNING)) for p in range(self._partitions(name))
        ]
        self._consumer.incremental_assign(assigned)
        self._open.update((name, tp.partition) for tp in assigned)

    def read_to_end(self) -> list[Message]:
        """Everything up to the end of every assigned partition, in the order of each partition. Blocks until it is there.

        Raises BrokerError when the end is not reached within the time limit.
        """
        found: list[Message] = []
        deadline = time.monotonic() + self._timeout_s
        while self._open:
            found += self.poll(0.1)
            if self._open and time.monotonic() > deadline:
                raise BrokerError(
                    f"{sorted(self._open)} could not be read to the end within {self._timeout_s:g} s: is the broker up, "
                    "and does an aborted writer hold a transaction open?"
                )
        return found

    def poll(self, timeout_s: float, records_max: int = 1_000) -> list[Message]:
        """The next records, possibly none, waiting at most about ``timeout_s``."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        records = [first]
        # Take what is there already; consume() with a timeout would wait for a full list.
        records += self._consumer.consume(records_max - 1, 0)
        return [record for record in records if self._usable(record)]

    def name(self, record: Message) -> str:
        """Logical topic name of ``record``."""
        return str(record.topic()).removeprefix(self._kafka.topic_prefix)

    def close(self) -> None:
        self._consumer.close()

    def _usable(self, record: Message) -> bool:
        error = record.error()
        if error is None:
            return True
        if error.code() == KafkaError._PARTITION_EOF:
            self._open.discard((str(record.topic()), int(record.partition() or 0)))
        elif is_fatal(error):
            raise BrokerError(f"broadcast of {record.topic()}: {error}")
        else:
            log.warning("broadcast: %s", error)
        return False

    def _partitions(self, name: str) -> int:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                metadata: Any = self._consumer.list_topics(name, timeout=5.0).topics.get(name)
            except KafkaException as error:
                log.warning("waiting for the broker: %s", error)
                metadata = None
            if metadata is not None and metadata.error is None and metadata.partitions:
                return len(metadata.partitions)
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"topic {name} is not there after {self._timeout_s:g} s: create the topics first"
                )
            time.sleep(0.1)
