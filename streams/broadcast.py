"""Topics that every task reads whole: ``models`` and ``deployments``.

One follower a process reads them to their end at start and stays on them. A task asks for what came after the offset
its manifest remembers, so each takes up a contract at a recorded point of its own history. ``refresh`` makes sure that
whatever was published before the call is known after it: only then may a model be called unknown.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from schemas.contracts import ModelRecord
from schemas.errors import DeliveryError
from schemas.settings import KafkaSettings
from streams.core.records import Record
from streams.store import log_bounds

log = logging.getLogger(__name__)
_POLL_S = 0.2
_REFRESH_TIMEOUT_S = 10.0


class Broadcast:
    """Follows single-partition, compacted topics; keeps the newest record of each key in offset order."""

    def __init__(self, kafka: KafkaSettings, topics: tuple[str, ...] = ("models", "deployments")) -> None:
        self._kafka = kafka
        self._logical = {kafka.topic(name): name for name in topics}
        self._newest: dict[str, dict[bytes | None, Record]] = {name: {} for name in topics}
        self._next = dict.fromkeys(topics, 0)
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="broadcast", daemon=True)
        self._error: BaseException | None = None
        self._consumer: Consumer | None = None
        self._asker: Consumer | None = None
        self.on_new: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Read every topic to its end, then follow in a thread. Raises DeliveryError when Kafka does not answer."""
        self._consumer = Consumer(
            self._kafka.consumer(None, **{"enable.partition.eof": True, "fetch.wait.max.ms": 100})
        )
        # A broker answers one request a connection at a time: beside a waiting fetch the question would wait too.
        self._asker = Consumer(self._kafka.consumer())
        self._consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING) for topic in self._logical])
        self._thread.start()
        self.refresh(*self._next)

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self, *names: str) -> None:
        """Return when everything committed to topics ``names`` before the call has been read."""
        assert self._asker is not None
        deadline_s = time.monotonic() + _REFRESH_TIMEOUT_S
        for name in names:
            topic = self._kafka.topic(name)
            _, end = log_bounds(self._asker, topic, 0)
            with self._changed:
                while self._next[name] < end:
                    left_s = deadline_s - time.monotonic()
                    if self._error is not None or left_s <= 0:
                        raise DeliveryError(
                            f"topic {topic} could not be read to offset {end} (is at {self._next[name]}): "
                            f"{self._error or 'timed out'}"
                        )
                    self._changed.wait(left_s)

    def next_offset(self, name: str) -> int:
        """The first offset of topic ``name`` not yet read."""
        return self._next[name]

    def since(self, name: str, offset: int, before: int | None = None) -> list[Record]:
        """Newest record of each key with ``offset <= record.offset < before``, in offset order."""
        with self._changed:
            found = [
                r
                for r in self._newest[name].values()
                if r.offset >= offset and (before is None or r.offset < before)
            ]
        return sorted(found, key=lambda record: record.offset)

    def _follow(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        try:
            while not self._stop.is_set():
                message = consumer.poll(_POLL_S)
                if message is not None and self._take(message):
                    self.on_new()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
            log.exception("the follower of broadcast topics ended", extra={"event": "broadcast-ended"})
        finally:
            consumer.close()

    def _take(self, message: Message) -> bool:
        """Store one message; true when it carried a record."""
        name = self._logical[str(message.topic())]
        error, offset = message.error(), int(message.offset() or 0)
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if error.fatal():
                raise DeliveryError(f"topic {message.topic()}: {error}")
            return False
        with self._changed:
            if error is not None:  # the end, which lies behind any transaction marker
                self._next[name] = max(self._next[name], offset)
            else:
                key, headers = message.key(), cast(Any, message.headers())
                self._newest[name][key] = Record(
                    name,
                    0,
                    offset,
                    key,
                    message.value(),
                    dict(headers or ()),
                    message.timestamp()[1],
                )
                self._next[name] = offset + 1
            self._changed.notify_all()
        return error is None


def model_records(records: list[Record]) -> list[ModelRecord]:
    """Decoded values of topic ``models``. A bad one is logged and left out: it must not stop the other models."""
    decoded = []
    for record in records:
        if record.value is None:
            continue
        try:
            decoded.append(ModelRecord.model_validate_json(record.value))
        except ValueError as error:
            log.error(
                "a record on `models` cannot be read and is left out",
                extra={"event": "bad-model", "offset": record.offset, "detail": str(error)[:500]},
            )
    return decoded
