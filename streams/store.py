"""Where a task's committed state lives: its own transactional producer and its partition of the ``state`` topic.

Everything here blocks and is called from an I/O thread, one call at a time a task.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.errors import DeliveryError, Fenced
from schemas.settings import KafkaSettings
from schemas.topics import state_partition
from streams.core.delivery import Loaded, Out, Transaction, load
from streams.failpoints import failpoint

log = logging.getLogger(__name__)
_TIMEOUT_S = 60.0
_ASK_TIMEOUT_S = 5.0
_ASK_PAUSE_S = 0.1
#: An abandoned transaction holds up every reader of its partitions until it times out or its task is taken over.
_TRANSACTION_TIMEOUT_MS = 30_000
_FENCED = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)


class TaskStore:
    """Durable side of the task ``stage/partition``. ``open`` fences whoever had it before."""

    def __init__(self, kafka: KafkaSettings, stage: str, partition: int) -> None:
        self.task = f"{stage}/{partition}"
        self._stage = stage
        self._kafka = kafka
        self._state_topic = kafka.topic("state")
        self._state_partition = state_partition(stage, partition, kafka.input_partitions)
        self._producer: Producer | None = None

    def open(self) -> Loaded:
        """Fence the previous owner and read what it committed. Raises StateCorrupt, DeliveryError."""
        producer = Producer(
            self._kafka.producer(
                **{
                    "transactional.id": f"{self._kafka.topic_prefix}driftline-monitor-{self.task}",
                    "transaction.timeout.ms": _TRANSACTION_TIMEOUT_MS,
                    "linger.ms": 0,
                    "retry.backoff.ms": 10,
                    "queue.buffering.max.messages": 1_000_000,
                    "queue.buffering.max.kbytes": 262_144,
                }
            )
        )
        try:
            producer.init_transactions(_TIMEOUT_S)
        except KafkaException as error:
            raise DeliveryError(
                f"task {self.task}: its transactional id cannot be initialised: {error}"
            ) from error
        self._producer = producer
        return load(self.task, read_to_end(self._kafka, self._state_topic, self._state_partition))

    def commit(self, transaction: Transaction) -> None:
        """Write all of ``transaction`` or nothing. Raises Fenced when another owner has taken the task over, and
        DeliveryError when the broker does not take it within a minute."""
        assert self._producer is not None
        deadline_s = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                self._attempt(self._producer, transaction)
                return
            except KafkaException as error:
                self._recover(self._producer, error.args[0], deadline_s)

    def _attempt(self, producer: Producer, transaction: Transaction) -> None:
        failpoint(f"{self._stage}.before-transaction")
        producer.begin_transaction()
        for out in transaction.outs:
            self._produce(producer, self._kafka.topic(out.topic), out)
        failpoint(f"{self._stage}.before-state")
        for key, value in transaction.state:
            self._produce(producer, self._state_topic, Out("state", key, value, self._state_partition))
        failpoint(f"{self._stage}.before-commit")
        while True:
            try:
                producer.commit_transaction(_TIMEOUT_S)
                break
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
        failpoint(f"{self._stage}.after-commit")

    def _produce(self, producer: Producer, topic: str, out: Out) -> None:
        arguments: dict[str, Any] = {} if out.partition is None else {"partition": out.partition}
        if out.headers:
            arguments["headers"] = list(out.headers.items())
        while True:
            try:
                producer.produce(topic, out.value, out.key, **arguments)
                return
            except BufferError:  # the local queue is full: let deliveries make room
                producer.poll(0.05)

    def _recover(self, producer: Producer, error: KafkaError, deadline_s: float) -> None:
        """After a failed attempt: abort so that it can be made again, or raise."""
        if error.code() in _FENCED:
            raise Fenced(f"task {self.task} has been taken over by another worker ({error})")
        if error.fatal() or time.monotonic() > deadline_s:
            raise DeliveryError(f"task {self.task}: a transaction failed for good: {error}")
        log.warning(
            "a transaction is tried again", extra={"event": "retry", "task": self.task, "detail": str(error)}
        )
        try:
            producer.abort_transaction(_TIMEOUT_S)
        except KafkaException as second:
            cause = second.args[0]
            if cause.code() in _FENCED:
                raise Fenced(f"task {self.task} has been taken over by another worker ({cause})") from second
            raise DeliveryError(
                f"task {self.task}: a transaction can be neither made nor aborted: {cause}"
            ) from second

    def close(self) -> None:
        """Let go of the producer; what is not committed was never there."""
        self._producer = None


def read_to_end(
    kafka: KafkaSettings, topic: str, partition: int
) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Every committed (key, value) of one partition up to its present end. Raises DeliveryError."""
    consumer = Consumer(kafka.consumer(None, **{"enable.partition.eof": True}))
    try:
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
        while True:
            message = consumer.poll(_TIMEOUT_S)
            if message is None:
                raise DeliveryError(
                    f"{topic}[{partition}] could not be read to its end in {_TIMEOUT_S:.0f} s"
                )
            error = message.error()
            if error is None:
                yield message.key(), message.value()
            elif error.code() == KafkaError._PARTITION_EOF:
                return
            else:
                raise DeliveryError(f"{topic}[{partition}] cannot be read: {error}; does the topic exist?")
    finally:
        consumer.close()


def log_starts(kafka: KafkaSettings, inputs: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """First offset that retention has left of each (logical topic, partition). Raises DeliveryError."""
    consumer = Consumer(kafka.consumer())
    try:
        return {
            (topic, partition): log_bounds(consumer, kafka.topic(topic), partition)[0]
            for topic, partition in inputs
        }
    finally:
        consumer.close()


def log_bounds(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """First offset and (committed) end of a partition. Raises DeliveryError when no broker says so in a few seconds:
    just after a topic was made or moved, one may answer that it does not lead it."""
    deadline_s = time.monotonic() + _ASK_TIMEOUT_S
    while True:
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_ASK_TIMEOUT_S)
        except KafkaException as error:
            if time.monotonic() > deadline_s:
                raise DeliveryError(
                    f"{topic}[{partition}]: its offsets cannot be asked for: {error.args[0]}; does the topic exist?"
                ) from error
            time.sleep(_ASK_PAUSE_S)
