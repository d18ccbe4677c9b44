"""A member of a consumer group that reads committed record batches and says itself how far the group has come.

For processes that copy: what is read again after a kill or a rebalance must do no harm. A broker that is away is waited for,
however long; what a broker that is there refuses ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Collection, Coroutine, Mapping, Sequence
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
FETCH_WAIT_MS = 50
#: A member that waits for the warehouse does not read, for as long as that takes; that it lives its heartbeats say.
_POLL_INTERVAL_MS = 2**31 - 1
_LOOK_S = 0.2
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
        partition_bytes_max: int = 4 * 1024 * 1024,
    ) -> None:
        self._kafka = kafka
        self._topics = {kafka.topic(name): name for name in topics}
        self._stop = stop
        self._absence = Absence(group)
        self._arguments: dict[str, Any] = {
            "client_id": kafka.client_id,
            "group_id": kafka.topic_prefix + group,
            "group_instance_id": f"{kafka.topic_prefix}{instance}" if instance else None,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "isolation_level": "read_committed",
            "check_crcs": False,
            "fetch_max_wait_ms": FETCH_WAIT_MS,
            "max_partition_fetch_bytes": partition_bytes_max,
            "session_timeout_ms": kafka.session_timeout,
            "heartbeat_interval_ms": kafka.session_timeout // 4,
            "max_poll_interval_ms": _POLL_INTERVAL_MS,
            "metadata_max_age_ms": 30_000,
        }
        self._consumer: Any = None
        #: Whether partitions were given to it once.
        self.ready = False

    async def start(self) -> None:
        """Join the group; waits for a broker. Raises DeliveryError when a topic is not there or may not be read."""
        hand_out_batches()
        while not self._stop.is_set():
            consumer = aiokafka.AIOKafkaConsumer(**(self._arguments | security(self._kafka)))
            consumer.subscribe(list(self._topics), listener=self)
            try:
                await self._unless_stopped(consumer.start())
            except KafkaConnectionError as error:
                self._absence.note(False, error)
                await consumer.stop()
                await self._unless_stopped(asyncio.sleep(_RETRY_PAUSE_S))
            except KafkaError as error:
                await consumer.stop()
                raise DeliveryError(f"{', '.join(self._topics)} cannot be read: {error!r}") from error
            else:
                self._consumer = consumer
                self._absence.note(True)
                return

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Whoever has them next reads from what was committed."""

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """The group is complete."""
        if not self.ready:
            log.info("ready", extra={"event": "ready", "partitions": len(assigned)})
        self.ready = True

    async def read(self, records_max: int, wait_s: float) -> list[RecordBatch]:
        """What has come: after the first records until there are ``records_max`` or ``wait_s`` is over; empty when none come for
        that long. Raises DeliveryError."""
        found: list[RecordBatch] = []
        deadline_s = time.monotonic() + wait_s
        while self._consumer is not None and sum(map(len, found)) < records_max:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            try:
                fetched = await self._consumer.getmany(timeout_ms=max(1, int(left_s * 1000)))
            except KafkaError as error:
                if not error.retriable:
                    raise DeliveryError(f"{', '.join(self._topics)} cannot be read: {error!r}") from error
                await asyncio.sleep(_RETRY_PAUSE_S)
                continue
            for tp, batches in fetched.items():
                found += [batch.named(self._topics[tp.topic]) for batch in batches]
        return found

    async def commit(self, ends: Mapping[tuple[str, int], int]) -> None:
        """The group has everything before these offsets, by (topic, partition). Raises DeliveryError."""
        offsets = {TopicPartition(self._kafka.topic(topic), p): end for (topic, p), end in ends.items()}
        try:
            await self._unless_stopped(self._consumer.commit(offsets))
        except (CommitFailedError, IllegalStateError) as error:
            # A rebalance: whoever has the partition now copies these rows again, to the same keys.
            log.warning("offsets not committed", extra={"event": "commit-failed", "detail": str(error)})
        except KafkaError as error:
            if not error.retriable:
                raise DeliveryError(f"offsets cannot be committed: {error!r}") from error
            log.warning("offsets not committed", extra={"event": "commit-failed", "detail": str(error)})

    async def end(self) -> None:
        """Leave the group, unless the broker is away."""
        if self._consumer is not None:
            await asyncio.wait({asyncio.ensure_future(self._consumer.stop())}, timeout=_END_S)

    async def _unless_stopped(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """The result; None when told to stop before."""
        task = asyncio.ensure_future(work)
        while not task.done() and not self._stop.is_set():
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
