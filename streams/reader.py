"""Who reads committed record batches for copies: a member of a consumer group that says itself how far the group has come, and
a reader of given partitions from given offsets on.

What is read again after a kill or a rebalance must do no harm. A broker that is away is waited for, however long; what a
broker that is there refuses ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import aiokafka
import aiokafka.helpers
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
)
from aiokafka.structs import TopicPartition

from schemas.errors import DeliveryError
from schemas.presence import Absence
from schemas.settings import KafkaSettings
from streams.core.records import RecordBatch
from streams.fetched import hand_out_batches

log = logging.getLogger(__name__)
_READING: dict[str, Any] = {
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "isolation_level": "read_committed",
    "check_crcs": False,
    "fetch_max_wait_ms": 50,
    "max_partition_fetch_bytes": 4 * 1024 * 1024,
    "metadata_max_age_ms": 30_000,
}
#: A member that waits for the warehouse does not read, for as long as that takes; that it lives its heartbeats say.
_POLL_INTERVAL_MS = 2**31 - 1
_LOOK_S = 0.2
#: Handed over at once, about: a record may be a batch of many rows.
_BYTES_MAX = 67_108_864
_RETRY_PAUSE_S = 0.5
_END_S = 5.0
Result = TypeVar("Result")


class GroupReader(aiokafka.ConsumerRebalanceListener):  # type: ignore[misc]
    """Reads ``topics`` (logical names) as ``group``. All methods belong to one event loop; ``stop`` ends every wait."""

    def __init__(
        self,
        kafka: KafkaSettings,
        group: str,
        topics: Sequence[str],
        stop: threading.Event,
        *,
        instance: str = "",
    ) -> None:
        self._kafka = kafka
        self._topics = {kafka.topic(name): name for name in topics}
        self._stop = stop
        self._absence = Absence(group)
        self._arguments: dict[str, Any] = _READING | {
            "group_id": kafka.topic_prefix + group,
            "group_instance_id": f"{kafka.topic_prefix}{instance}" if instance else None,
            "session_timeout_ms": kafka.session_timeout,
            "heartbeat_interval_ms": kafka.session_timeout // 4,
            "max_poll_interval_ms": _POLL_INTERVAL_MS,
        }
        self._consumer: Any = None
        #: Whether partitions were given to it once.
        self.ready = False

    async def start(self) -> None:
        """Join the group; waits for a broker. Raises DeliveryError when a topic is not there or may not be read."""

        def member() -> Any:
            consumer = aiokafka.AIOKafkaConsumer(**(self._arguments | security(self._kafka)))
            consumer.subscribe(list(self._topics), listener=self)
            return consumer

        self._consumer = await _started(member, self._absence, self._stop)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Whoever has them next reads from what was committed."""

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """The group is complete."""
        if not self.ready:
            log.info("ready", extra={"event": "ready", "partitions": len(assigned)})
        self.ready = True

    async def read(self, records_max: int, wait_s: float) -> list[RecordBatch]:
        """What has come until there are ``records_max`` records, much in bytes, or ``wait_s`` is over; empty when none come for that
        long. Raises DeliveryError."""
        found: list[RecordBatch] = []
        size = 0
        deadline_s = time.monotonic() + wait_s
        while self._consumer is not None and sum(map(len, found)) < records_max and size < _BYTES_MAX:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            for topic, batch in await _fetched(self._consumer, self._topics, left_s):
                found.append(batch.named(topic))
                size += batch.values.size
        return found

    async def commit(self, ends: Mapping[tuple[str, int], int]) -> None:
        """The group has everything before these offsets, by (topic, partition). Raises DeliveryError."""
        offsets = {TopicPartition(self._kafka.topic(topic), p): end for (topic, p), end in ends.items()}
        try:
            await _unless(self._stop, self._consumer.commit(offsets))
        except (CommitFailedError, IllegalStateError) as error:
            # A rebalance: whoever has the partition now copies these rows again, to the same keys.
            log.warning("offsets not committed", extra={"event": "commit-failed", "detail": str(error)})
        except KafkaError as error:
            if not error.retriable:
                raise DeliveryError(f"offsets cannot be committed: {error!r}") from error
            log.warning("offsets not committed", extra={"event": "commit-failed", "detail": str(error)})

    async def end(self) -> None:
        """Leave the group, unless the broker is away."""
        await _ended(self._consumer)


class LogReader:
    """Reads partitions of ``topics`` (logical names). All methods belong to one event loop; ``stop`` ends every wait."""

    def __init__(self, kafka: KafkaSettings, topics: Sequence[str], stop: threading.Event) -> None:
        self._kafka = kafka
        self._names = {kafka.topic(name): name for name in topics}
        self._stop = stop
        self._absence = Absence("log reader")
        self._consumer: Any = None
        self._at: dict[tuple[str, int], int] = {}

    async def start(self) -> None:
        """Waits for a broker. Raises DeliveryError."""
        self._consumer = await _started(
            lambda: aiokafka.AIOKafkaConsumer(**(_READING | security(self._kafka))), self._absence, self._stop
        )

    async def read(
        self, positions: Mapping[tuple[str, int], int], wait_s: float
    ) -> list[tuple[int, RecordBatch]]:
        """What there is from these offsets on, by (topic, partition), each with the offset from which on it is all there is; what
        was deleted is passed over. Empty when none comes for so long. Raises DeliveryError."""
        if self._consumer is None:
            return []
        if self._at != positions:
            places = {TopicPartition(self._kafka.topic(t), p): offset for (t, p), offset in positions.items()}
            self._consumer.assign(list(places))
            for place, offset in places.items():
                self._consumer.seek(place, offset)
            self._at = dict(positions)
        found = []
        for topic, batch in await _fetched(self._consumer, self._names, wait_s):
            tp = (topic, batch.partition)
            found.append((self._at[tp], batch.named(topic)))
            self._at[tp] = int(batch.offsets[-1]) + 1
        return found

    async def end(self) -> None:
        """Let go of the broker."""
        await _ended(self._consumer)


async def _started(make: Callable[[], Any], absence: Absence, stop: threading.Event) -> Any:
    """A consumer that has reached a broker; None when told to stop before. Raises DeliveryError."""
    hand_out_batches()
    while not stop.is_set():
        consumer = make()
        try:
            await _unless(stop, consumer.start())
        except KafkaConnectionError as error:
            absence.note(False, error)
            await consumer.stop()
            await _unless(stop, asyncio.sleep(_RETRY_PAUSE_S))
        except KafkaError as error:
            await consumer.stop()
            raise DeliveryError(f"topics cannot be read: {error!r}") from error
        else:
            absence.note(True)
            return consumer
    return None


async def _fetched(consumer: Any, topics: Mapping[str, str], wait_s: float) -> list[tuple[str, RecordBatch]]:
    """What came within ``wait_s``, each with its topic's logical name. Raises DeliveryError."""
    try:
        fetched = await consumer.getmany(timeout_ms=max(1, int(wait_s * 1000)))
    except KafkaError as error:
        if not error.retriable:
            raise DeliveryError(f"{', '.join(topics)} cannot be read: {error!r}") from error
        await asyncio.sleep(_RETRY_PAUSE_S)
        return []
    return [(topics[tp.topic], batch) for tp, batches in fetched.items() for batch in batches]


async def _ended(consumer: Any) -> None:
    if consumer is not None:
        await asyncio.wait({asyncio.ensure_future(consumer.stop())}, timeout=_END_S)


async def _unless(stop: threading.Event, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result; None when told to stop before."""
    task = asyncio.ensure_future(work)
    while not task.done() and not stop.is_set():
        await asyncio.wait({task}, timeout=_LOOK_S)
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    return None if task.cancelled() else task.result()


def security(kafka: KafkaSettings) -> dict[str, Any]:
    """Arguments by which an aiokafka client reaches the brokers."""
    found: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap.split(","),
        "security_protocol": kafka.security,
    }
    if kafka.security.endswith("SSL"):
        found["ssl_context"] = ssl_context(kafka)
    if kafka.sasl_mechanism:
        found |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.username or "",
            "sasl_plain_password": kafka.password.get_secret_value() if kafka.password else "",
        }
    return found


def ssl_context(kafka: KafkaSettings) -> Any:
    """For TLS to the brokers, with a certificate of our own if there is one."""
    return aiokafka.helpers.create_ssl_context(
        cafile=str(kafka.ca_file) if kafka.ca_file else None,
        certfile=str(kafka.certificate_file) if kafka.certificate_file else None,
        keyfile=str(kafka.key_file) if kafka.key_file else None,
        password=kafka.key_password.get_secret_value() if kafka.key_password else None,
    )
