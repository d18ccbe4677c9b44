"""Where a task's committed state lives: its own transactional producer and its partition of the ``state`` topic.

Everything here blocks and is called from an I/O thread, one call at a time a task. A broker that is away is waited for:
the transaction under way is finished, or made again, when it is back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.errors import DeliveryError, Fenced
from schemas.failpoints import failpoint
from schemas.presence import ASK_TIMEOUT_S, Absence, answers, is_fatal
from schemas.settings import KafkaSettings
from schemas.topics import state_partition
from streams.broker import log_bounds
from streams.core.delivery import Out, Transaction, newest_of

log = logging.getLogger(__name__)
_TIMEOUT_S = 60.0
_RETRY_PAUSE_S = 0.5
#: Attempts at one transaction that a broker answered and refused.
_ATTEMPTS_MAX = 20
#: Bytes of a transaction that are handed to the client at once, well under what a topic takes in one request. Of a partition
#: that has five records under way librdkafka sends no more, and does not sleep until it may: with several requests in its
#: queue that took half of what a transaction costs.
REQUEST_BYTES = 3_500_000
#: Of no more models than these what the join writes is left as it is: rows of observations lie in large blocks, in which each
#: column is narrow already. From these LZ4 takes a tenth, which is a twentieth of what a worker does; from the small blocks
#: of many models it takes a third and more.
FEW_MODELS = 64
#: An abandoned transaction holds up every reader of its partitions until its task is taken over, which takes seconds, or
#: until this. It is the longest outage of a broker that a worker sits out; after a longer one it finds itself fenced.
TRANSACTION_TIMEOUT_MS = 600_000
#: Answers that waiting does not change.
_REFUSED = frozenset(
    {
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)
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
        #: Bytes handed over since the client was last waited for.
        self._handed = 0

    def open(self, models: int = 0) -> dict[bytes, bytes]:
        """Fence the previous owner and read what it committed, the newest record of each key; waits for a broker that is
        away. ``models``: about how many there are. Raises DeliveryError."""
        compression = "none" if self._stage == "join" and models <= FEW_MODELS else "lz4"
        producer = Producer(
            self._kafka.producer(
                **{
                    "transactional.id": f"{self._kafka.topic_prefix}driftline-monitor-{self.task}",
                    "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                    "compression.type": compression,
                    # What is handed over at once goes as one request a partition, when the flush or the commit says so.
                    "linger.ms": 100,
                    "batch.size": 4_000_000,
                    "batch.num.messages": 1_000_000,
                    "retry.backoff.ms": 10,
                    "queue.buffering.max.messages": 1_000_000,
                    "queue.buffering.max.kbytes": 262_144,
                }
            )
        )
        # A client that asks before it knows a broker asks again after half a second.
        answers(producer, self._state_topic)
        try:
            self._until_done("initialise", producer.init_transactions)
        except KafkaException as error:
            raise DeliveryError(
                f"task {self.task}: its transactional id cannot be initialised: {error}"
            ) from error
        self._producer = producer
        return newest_of(self.task, read_to_end(self._kafka, self._state_topic, self._state_partition))

    def commit(self, transaction: Transaction) -> None:
        """Write all of ``transaction`` or nothing; waits for a broker that is away. Raises Fenced when another owner has
        taken the task over, and DeliveryError when brokers that answer refuse it again and again."""
        assert self._producer is not None
        for attempt in range(1, _ATTEMPTS_MAX + 1):
            try:
                self._attempt(self._producer, transaction)
                return
            except KafkaException as error:
                self._recover(self._producer, error.args[0], last=attempt == _ATTEMPTS_MAX)
                time.sleep(_RETRY_PAUSE_S)

    def _attempt(self, producer: Producer, transaction: Transaction) -> None:
        failpoint(f"{self._stage}.before-transaction")
        producer.begin_transaction()
        self._handed = 0
        for out in transaction.outs:
            self._produce(producer, self._kafka.topic(out.topic), out)
        failpoint(f"{self._stage}.before-state")
        for key, value in transaction.state:
            self._produce(producer, self._state_topic, Out("state", key, value, self._state_partition))
        failpoint(f"{self._stage}.before-commit")
        self._until_done("commit", producer.commit_transaction)
        failpoint(f"{self._stage}.after-commit")

    def _until_done(self, what: str, step: Callable[[float], None]) -> None:
        """Make a step of a transaction; one that was not over in time, or whose broker is away, is made again."""
        absence = Absence(f"{self.task}: {what}")
        while True:
            try:
                step(ASK_TIMEOUT_S)
                absence.note(True)
                return
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
                absence.note(False, error.args[0])
                time.sleep(_RETRY_PAUSE_S)

    def _produce(self, producer: Producer, topic: str, out: Out) -> None:
        arguments: dict[str, Any] = {} if out.partition is None else {"partition": out.partition}
        if out.headers:
            arguments["headers"] = list(out.headers.items())
        size = len(out.value or b"")
        if self._handed + size > REQUEST_BYTES:
            # Should the broker be away the commit waits for it.
            producer.flush(ASK_TIMEOUT_S)
            self._handed = 0
        self._handed += size
        while True:
            try:
                producer.produce(topic, out.value, out.key, **arguments)
                return
            except BufferError:  # the local queue is full: let deliveries make room
                producer.poll(0.05)

    def _recover(self, producer: Producer, error: KafkaError, *, last: bool) -> None:
        """After a failed attempt: abort so that it can be made again, or raise."""
        if error.code() in _FENCED:
            raise Fenced(f"task {self.task} has been taken over by another worker ({error})")
        if is_fatal(error) or last:
            raise DeliveryError(f"task {self.task}: a transaction failed for good: {error}")
        log.warning(
            "a transaction is tried again", extra={"event": "retry", "task": self.task, "detail": str(error)}
        )
        try:
            self._until_done("abort", producer.abort_transaction)
        except KafkaException as second:
            cause = second.args[0]
            if cause.code() in _FENCED:
                raise Fenced(f"task {self.task} has been taken over by another worker ({cause})") from second
            raise DeliveryError(
                f"task {self.task}: a transaction can be neither made nor aborted: {cause}"
            ) from second

    def serve(self) -> None:
        """Hear what the client has to say while there is nothing to commit: in an outage that would pile up. Never waits; any
        thread may."""
        producer = self._producer
        if producer is not None:
            producer.poll(0)

    def close(self) -> None:
        """Let go of the producer; what is not committed was never there."""
        self._producer = None


def read_to_end(
    kafka: KafkaSettings, topic: str, partition: int
) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Every committed (key, value) of one partition up to its present end. Waits for a broker that is away; raises
    DeliveryError when one that answers brings nothing for a minute, or says no."""
    consumer = Consumer(kafka.consumer(None, **{"enable.partition.eof": True}))
    absence = Absence(f"{topic}[{partition}]")
    silent_s = 0.0
    try:
        # Asked by name, "the beginning" would be looked for again after half a second when no broker is known yet.
        start, _ = log_bounds(consumer, topic, partition)
        consumer.assign([TopicPartition(topic, partition, start)])
        while True:
            message = consumer.poll(ASK_TIMEOUT_S)
            error = None if message is None else message.error()
            if message is not None and error is None:
                silent_s = 0.0
                yield message.key(), message.value()
            elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                return
            elif error is not None and (is_fatal(error) or error.code() in _REFUSED):
                raise DeliveryError(f"{topic}[{partition}] cannot be read: {error}; does the topic exist?")
            else:
                present = answers(consumer, topic)
                absence.note(present, error or "silence")
                silent_s = silent_s + ASK_TIMEOUT_S if present else 0.0
                if silent_s > _TIMEOUT_S:
                    raise DeliveryError(
                        f"{topic}[{partition}] could not be read to its end in {_TIMEOUT_S:.0f} s: {error or 'silence'}"
                    )
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
