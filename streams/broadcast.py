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

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from schemas.contracts import ModelRecord
from schemas.errors import DeliveryError
from schemas.presence import is_fatal
from schemas.settings import KafkaSettings
from streams.broker import log_bounds
from streams.core.records import Record

log = logging.getLogger(__name__)
_POLL_S = 0.2
_ROUND_S = 5.0
#: Rounds in which a broker says that there is more to read, and the follower gets none of it.
_ROUNDS_MAX = 12


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
        self._asking = threading.Lock()
        #: When the last question to a broker began that has been answered, of each topic.
        self._asked_s = dict.fromkeys(topics, -1.0)
        self.on_new: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Read every topic to its end, then follow in a thread. Waits for a broker until ``stop``; raises DeliveryError
        when one that answers has no such topic."""
        self._consumer = Consumer(
            self._kafka.consumer(None, **{"enable.partition.eof": True, "fetch.wait.max.ms": 100})
        )
        # A broker answers one request a connection at a time: beside a waiting fetch the question would wait too.
        self._asker = Consumer(self._kafka.consumer())
        # Asked by name, "the beginning" would be looked for again after half a second when no broker is known yet.
        starts = {topic: log_bounds(self._consumer, topic, 0, self._stop)[0] for topic in self._logical}
        self._consumer.assign([TopicPartition(topic, 0, start) for topic, start in starts.items()])
        self._thread.start()
        self.refresh(*self._next)

    @property
    def error(self) -> BaseException | None:
        """Why the follower has ended, if it has."""
        return self._error

    def give_up(self) -> None:
        """Wait for nothing any more: what cannot be answered now raises DeliveryError."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """End the follower. Not while somebody refreshes."""
        self.give_up()
        if self._thread.is_alive():
            self._thread.join()

    def asked_since(self, name: str, since_s: float) -> bool:
        """Whether all that was committed to topic ``name`` before this time, of a clock that does not go back, has been read."""
        return self._asked_s[name] > since_s

    def refresh(self, *names: str) -> None:
        """Return when everything committed to topics ``names`` before the call has been read. Waits for a broker that is
        away; raises DeliveryError when there is more to read and it does not come, or when told to give up."""
        called_s = time.monotonic()
        for name in names:
            # Of those who wait here one asks for all.
            with self._asking:
                began_s = time.monotonic()
                if self._asked_s[name] <= called_s:
                    self._read_to_end(name)
                    self._asked_s[name] = began_s

    def _read_to_end(self, name: str) -> None:
        assert self._asker is not None
        topic = self._kafka.topic(name)
        _, end = log_bounds(self._asker, topic, 0, self._stop)
        stood, at = 0, self._next[name]
        while not self._reached(name, end):
            # Whoever is away is waited for here; the follower gets nothing either.
            log_bounds(self._asker, topic, 0, self._stop)
            stood = stood + 1 if self._next[name] == at else 0
            at = self._next[name]
            if self._error is not None or self._stop.is_set() or stood > _ROUNDS_MAX:
                raise DeliveryError(
                    f"topic {topic} could not be read to offset {end} (is at {at}): "
                    f"{self._error or ('told to stop' if self._stop.is_set() else 'timed out')}"
                )

    def _reached(self, name: str, end: int) -> bool:
        """Whether the follower is at ``end``, now or within a round."""
        with self._changed:
            return (
                self._changed.wait_for(
                    lambda: self._next[name] >= end or self._error is not None or self._stop.is_set(),
                    _ROUND_S,
                )
                and self._next[name] >= end
            )

    def next_offset(self, name: str) -> int:
        """The first offset of topic ``name`` not yet read."""
        return self._next[name]

    def count(self, name: str) -> int:
        """How many keys topic ``name`` has, as far as it was read."""
        return len(self._newest[name])

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
        error, offset = message.error(), int(message.offset() or 0)
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if is_fatal(error):
                raise DeliveryError(f"topic {message.topic()}: {error}")
            return False
        name = self._logical[str(message.topic())]
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
