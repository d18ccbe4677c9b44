"""Writes scored batches: answers, prediction log and the requests' offsets become visible together, or not at all.

One thread owns the transactional producer, so scoring goes on while a transaction commits; what was scored meanwhile goes
into the next one together. A scorer that is killed at any instruction leaves exactly one answer a request: what it had not
committed is read again by whoever comes next.

The client's ``send_offsets_to_transaction`` can ignore its time limit and wait for ever when the group's coordinator goes
away in its middle (librdkafka issue 5456). A thread that hangs in it cannot be woken: it is left behind, and a new writer
under the same transactional id fences whatever the old one may still try. Nothing of its transaction was visible.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from deploy.scoring.answers import Scored
from schemas.failpoints import failpoint
from schemas.observability import Metrics

log = logging.getLogger(__name__)

#: Time limit of each call of the client. One that takes twice as long has forgotten it.
CALL_S = 5.0
_COMMIT_TRIES = 5
#: Calls that may fail before a producer that does not become the owner of its id is replaced by a fresh one.
_OPEN_TRIES = 6
#: Requests in one transaction at most; a transaction holds two records of each.
_TRANSACTION_ROWS_MAX = 2_048


#: Fatal errors that mean another process has taken the name; after any other a new producer may go on.
_FENCINGS = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
        KafkaError.FENCED_INSTANCE_ID,
    }
)


class State(StrEnum):
    """Where a writer stands. ``FAILED``: aborted, waits for :meth:`Writer.reset`. ``BROKEN``: must be replaced."""

    OPENING = "opening"
    READY = "ready"
    FAILED = "failed"
    BROKEN = "broken"
    FENCED = "fenced"


class Job:
    """One scored batch on its way: next offsets by partition, and the group membership it was read under."""

    __slots__ = ("group", "offsets", "rows", "scored")

    def __init__(self, scored: Scored, rows: int, offsets: dict[int, int], group: Any) -> None:
        self.scored = scored
        self.rows = rows
        self.offsets = offsets
        self.group = group


class Writer:
    """A thread and its producer. ``make_producer()`` returns a transactional one; ``topics`` maps logical names.

    ``committed(jobs)`` is called on the writer's thread for what has become visible.
    """

    def __init__(
        self,
        make_producer: Callable[[], Any],
        topics: dict[str, str],
        partitions: int,
        metrics: Metrics,
        committed: Callable[[Sequence[Job]], None],
        call_s: float = CALL_S,
    ) -> None:
        self._make_producer = make_producer
        self._topics = topics
        self._partitions = partitions
        self._metrics = metrics
        self._committed = committed
        self._call_s = call_s
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._writing = 0
        self._call_since_s: float | None = None
        self._abandoned = False
        self._stopping = False
        self.state = State.OPENING
        #: Whether it ever became the owner of the transactional id.
        self.opened = False
        self.error: KafkaError | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @property
    def rows(self) -> int:
        """Requests handed in and not yet visible."""
        with self._changed:
            return self._writing + sum(job.rows for job in self._jobs)

    def submit(self, job: Job) -> None:
        """Hand in a batch. Dropped unless the writer is ready: what came after a failure is read again."""
        with self._changed:
            if self.state is State.READY:
                self._jobs.append(job)
                self._changed.notify_all()

    def recall(self) -> list[Job]:
        """Take back what no transaction has begun with, in order: it is to be scored again and submitted again."""
        with self._changed:
            jobs = list(self._jobs)
            self._jobs.clear()
            return jobs

    def wait_room(self, rows_max: int, timeout_s: float) -> bool:
        """Wait until fewer than ``rows_max`` requests are on their way, or something has gone wrong; False if neither."""
        with self._changed:
            return self._changed.wait_for(
                lambda: (
                    self.state is not State.READY
                    or self._writing + sum(job.rows for job in self._jobs) < rows_max
                ),
                timeout_s,
            )

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is on its way; False when something still is."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.state is not State.READY or not (self._writing or self._jobs), timeout_s
            )

    def stuck(self) -> bool:
        """Whether a call has forgotten its time limit; it will not come back."""
        since_s = self._call_since_s
        return since_s is not None and time.monotonic() - since_s > 2 * self._call_s

    @property
    def alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def reset(self) -> None:
        """Go on after a failure, once what is not committed is about to be read again."""
        with self._changed:
            if self.state is State.FAILED:
                self.state = State.READY

    def abandon(self) -> None:
        """Leave the thread where it is; whatever it still tries is fenced by its successor."""
        with self._changed:
            self._abandoned = True
            self._stopping = True
            self.state = State.BROKEN
            self._changed.notify_all()

    def close(self, timeout_s: float = 15.0) -> bool:
        """Write what was handed in and end; False when the thread hangs."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        producer = self._make_producer()
        try:
            if self._open(producer):
                while jobs := self._next():
                    self._write(producer, jobs)
        except Exception as error:
            log.exception("the writer ends")
            self._fail(State.BROKEN, error)
        finally:
            with suppress(KafkaException):  # it was fenced, or is broken: both are known
                producer.close()

    def _open(self, producer: Any) -> bool:
        """Become the owner of the transactional id, as soon as the broker is there."""
        tries = 0
        while not self._stopping:
            tries += 1
            try:
                self._call(producer.init_transactions, self._call_s)
            except KafkaException as error:
                reason = error.args[0]
                if reason.fatal() or tries == _OPEN_TRIES:
                    self._fail(_fatal(reason), error)
                    return False
                log.warning("waiting for the transaction coordinator: %s", reason)
                time.sleep(0 if reason.code() == KafkaError._TIMED_OUT else 0.2)
                continue
            with self._changed:
                if not self._abandoned:
                    self.state, self.opened = State.READY, True
                self._changed.notify_all()
            return not self._abandoned
        return False

    def _next(self) -> list[Job]:
        """Everything handed in meanwhile, as one transaction; empty when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._stopping)
            jobs: list[Job] = []
            rows = 0
            while self._jobs and (not jobs or rows + self._jobs[0].rows <= _TRANSACTION_ROWS_MAX):
                jobs.append(self._jobs.popleft())
                rows += jobs[-1].rows
            self._writing = rows
            return jobs

    def _write(self, producer: Any, jobs: list[Job]) -> None:
        began_s = time.perf_counter()
        try:
            self._transaction(producer, jobs)
        except KafkaException as error:
            self._give_up(producer, jobs, error)
            return
        self._metrics.observe("driftline_commit_seconds", time.perf_counter() - began_s, stage="scorer")
        failpoint("scorer.after-commit")
        self._committed(jobs)
        with self._changed:
            self._writing = 0
            self._changed.notify_all()

    def _transaction(self, producer: Any, jobs: Sequence[Job]) -> None:
        self._call(producer.begin_transaction)
        failpoint("scorer.begun")
        offsets: dict[int, int] = {}
        for job in jobs:
            for topic, records in job.scored.records(self._partitions).items():
                if records:
                    produce(producer, self._topics[topic], records)
            offsets |= job.offsets
        failpoint("scorer.produced")
        name = self._topics["scoring-requests"]
        positions = [TopicPartition(name, partition, offset) for partition, offset in offsets.items()]
        self._call(producer.send_offsets_to_transaction, positions, jobs[-1].group, self._call_s)
        failpoint("scorer.before-commit")
        for tried in range(1, _COMMIT_TRIES + 1):
            try:
                self._call(producer.commit_transaction, self._call_s)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or tried == _COMMIT_TRIES:
                    raise

    def _give_up(self, producer: Any, jobs: Sequence[Job], error: KafkaException) -> None:
        reason = error.args[0]
        if reason.fatal():
            self._fail(_fatal(reason), error)
            return
        rows = sum(job.rows for job in jobs)
        log.warning("transaction given up, its %d requests are read again: %s", rows, reason)
        self._metrics.count("driftline_errors_total", where="transaction")
        try:
            self._call(producer.abort_transaction, self._call_s)
        except KafkaException as worse:
            log.warning("the transaction could not be aborted either: %s", worse.args[0])
            self._fail(_fatal(worse.args[0]), worse)
        else:
            self._fail(State.FAILED, error)

    def _fail(self, state: State, error: Exception) -> None:
        with self._changed:
            self._jobs.clear()
            self._writing = 0
            if not self._abandoned:
                self.state = state
                reason = error.args[0] if error.args else None
                self.error = reason if isinstance(reason, KafkaError) else None
            self._stopping = self._stopping or state is not State.FAILED
            self._changed.notify_all()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        if self._abandoned:
            raise KafkaException(KafkaError(KafkaError._FENCED, "this writer was replaced", True))
        self._call_since_s = time.monotonic()
        try:
            function(*arguments)
        finally:
            self._call_since_s = None


def _fatal(reason: KafkaError) -> State:
    return State.FENCED if reason.fatal() and reason.code() in _FENCINGS else State.BROKEN


def produce(
    producer: Any, topic: str, records: list[dict[str, Any]], on_delivery: Callable[..., None] | None = None
) -> None:
    """Hand ``records`` to the client, all of them. Raises KafkaException when it has no room."""
    try:
        if on_delivery is None:
            taken = producer.produce_batch(topic, records)
        else:
            taken = producer.produce_batch(topic, records, on_delivery=on_delivery)
    except BufferError as error:
        raise KafkaException(KafkaError(KafkaError._QUEUE_FULL, str(error))) from error
    if taken != len(records):
        raise KafkaException(
            KafkaError(KafkaError._QUEUE_FULL, f"{len(records) - taken} of {len(records)} records not taken")
        )
