"""The scorer process: requests from Kafka to answers on Kafka, one transaction a micro-batch.

Answers, prediction log and the requests' offsets become visible together or not at all, so a scorer that is killed at
any instruction leaves exactly one answer a request: what it had not committed is read again by whoever comes next.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from typing import Any

from confluent_kafka import OFFSET_STORED, Consumer, KafkaException, Message, Producer, TopicPartition

from deploy.core.microbatch import MicroBatch
from deploy.process import serve_metrics, stop_event, wall_ms
from deploy.registry import Registry
from deploy.scoring.core import ScoringCore
from deploy.scoring.engine import Engine, choose_provider
from deploy.scoring.listener import Listener
from deploy.scoring.wire import Incoming, Out
from schemas.control import ScorerReport
from schemas.errors import DeliveryError, DriftlineError, Fenced
from schemas.ids import content_hash
from schemas.observability import Metrics, configure_logs
from schemas.settings import ScorerSettings
from schemas.signing import Signer, Verifier

log = logging.getLogger(__name__)

GROUP = "driftline-scorer"
TRANSACTION_TIMEOUT_MS = 15_000
EXIT_UNEXPECTED = 70
_IDLE_S = 0.02
_HOUSEKEEPING_MS = 1_000
_COMMIT_TRIES = 5
#: One turn of the loop waits for the broker for half a minute at most; beyond this it hangs, and will for ever.
STUCK_S = 35.0
_DAY_MS = 86_400_000


def run(settings: ScorerSettings, stop: threading.Event | None = None, metrics: Metrics | None = None) -> int:
    """Score until told to stop. Returns the process's exit status: 0, or 70 after an error it could not go on from."""
    own = stop is None
    if stop is None:
        configure_logs(settings)
        stop = stop_event()
    metrics = metrics or Metrics()
    serve_metrics(metrics, settings)
    try:
        scorer = Scorer(settings, metrics)
        if own:
            threading.Thread(target=_end_if_stuck, args=(scorer, stop), name="watchdog", daemon=True).start()
        try:
            scorer.run(stop)
        finally:
            scorer.close()
    except (DriftlineError, KafkaException):
        log.exception("the scorer cannot go on; requests it had not answered are still in the topic")
        return EXIT_UNEXPECTED
    return 0


def _end_if_stuck(scorer: Scorer, stop: threading.Event) -> None:
    """End the process when its loop no longer turns: a transaction whose broker was killed in its middle can hang in
    the client for good. What was not committed is read again by the next start, so ending is always safe."""
    while not stop.wait(1.0):
        turned_s = scorer.turned_s
        if turned_s is not None and time.monotonic() - turned_s > STUCK_S:
            log.critical("the loop has not turned for %.0f s: ending, to be started again", STUCK_S)
            faulthandler.dump_traceback()
            os._exit(EXIT_UNEXPECTED)


def check(settings: ScorerSettings) -> str:
    """Which provider runs, and why; in one line. Raises ConfigurationError when the wish cannot be met."""
    return choose_provider(settings.scorer)[1]


class Scorer:
    """One instance: its consumer, its transactional producer, what it hears, and the core that answers."""

    def __init__(self, settings: ScorerSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        kafka, section = settings.kafka, settings.scorer
        trusted = list(settings.signing.trusted)
        verifier = Verifier(trusted) if trusted else None
        self._signer = Signer.load(settings.signing.key_file) if settings.signing.key_file else None
        engine = Engine(Registry(section.registry, verifier=verifier), section)
        log.info("scoring on %s", engine.why)
        self._core = ScoringCore(
            engine,
            kafka.input_partitions,
            metrics,
            clock_ms=lambda: time.perf_counter() * 1_000,
            event_age_max_ms=section.event_age_max,
            on_break=self._on_break,
        )
        self._topics = {name: kafka.topic(name) for name in ("predictions", "scores", "dead-letters")}
        self._batch: MicroBatch[tuple[Incoming, float]] = MicroBatch(
            section.batch_rows_max, section.batch_deadline
        )
        self._moved = False
        #: When the loop last came around; None before it runs.
        self.turned_s: float | None = None
        self._reports = Producer(kafka.producer())
        self._listener = Listener(kafka, self._core, engine, metrics, self.report, verifier)
        name = f"{kafka.topic_prefix}driftline-scorer-{section.instance}"
        transaction: dict[str, Any] = {
            "transactional.id": name,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
            "linger.ms": 0,
            # A transaction holds two records a request and one more for each shadow; produce() must not run out of room.
            "queue.buffering.max.messages": 1_000_000,
        }
        self._producer = Producer(kafka.producer(**transaction))
        # A static member that was killed and comes back under its name has its partitions at once, without waiting
        # for its own death to be noticed.
        member = {"group.instance.id": name, "queued.max.messages.kbytes": 65_536}
        self._consumer = Consumer(kafka.consumer(GROUP, **member))

    def run(self, stop: threading.Event) -> None:
        """The loop: hear, gather, answer. Raises Fenced when another process took this instance's name."""
        self._listener.start()
        self._producer.init_transactions(30)
        moved = dict.fromkeys(("on_assign", "on_revoke", "on_lost"), self._on_moved)
        self._consumer.subscribe([self._settings.kafka.topic("scoring-requests")], **moved)
        log.info("scorer %s is ready", self._settings.scorer.instance, extra={"event": "ready"})
        next_ms = 0
        while not stop.is_set():
            self.turned_s = time.monotonic()
            self._listener.apply_pending()
            self._gather()
            if self._batch.wait_ms(time.perf_counter() * 1_000) == 0:
                self._listener.apply_pending()
                self._answer()
            if (now_ms := wall_ms()) >= next_ms:
                self._look_after(now_ms)
                next_ms = now_ms + _HOUSEKEEPING_MS

    def close(self) -> None:
        self._listener.close()
        self._consumer.close()
        self._reports.flush(5)
        self._reports.close()
        self._producer.close()

    def report(
        self,
        model: str,
        revision: int,
        *,
        tripped: tuple[str, ...] = (),
        failed: dict[str, str] | None = None,
        golden: dict[str, bool] | None = None,
        about: str = "",
    ) -> None:
        """Publish a fact on `control`. The id repeats when the same fact is told again."""
        instance, now = self._settings.scorer.instance, self._listener.event_time_ms
        newest = self._core.model(model).routes.newest
        parts = (instance, model, revision, about, sorted(tripped), failed, golden)
        fact = ScorerReport(
            request_id=f"scorer-{content_hash(repr(parts).encode())[:24]}",
            model=model,
            deployment_revision=revision,
            cause=about or "scorer",
            event_time_ms=now,
            expires_ms=now + _DAY_MS,
            issued_by=f"scorer/{instance}",
            instance=instance,
            tripped=tripped,
            failed=failed or {},
            golden=golden or {},
            serving=dict(newest.weights) if newest else {},
        )
        if self._signer is not None:
            fact = self._signer.sign(fact)
        topic = self._settings.kafka.topic("control")
        self._reports.produce(topic, fact.model_dump_json().encode(), model.encode())
        self._reports.poll(0)

    def _on_break(self, model: str, version: str, why: str) -> None:
        log.error("circuit breaker open: %s", why, extra={"model": model, "version": version})
        self._metrics.count("driftline_trips_total", model=model, version=version)
        newest = self._core.model(model).routes.newest
        self.report(model, newest.revision if newest else 0, tripped=(version,), failed={version: why})

    def _on_moved(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        """Partitions came or went: rows in hand may be another instance's now, and are read again if they are not."""
        self._moved = True

    def _gather(self) -> None:
        """Read into the batch until it is due or nothing more is there."""
        wait_ms = self._batch.wait_ms(time.perf_counter() * 1_000)
        if wait_ms is None:
            first = self._consumer.poll(_IDLE_S)
            records = [first] if first is not None else []
            if records:
                records += self._consumer.consume(self._batch.room - 1, 0)
        else:
            records = self._consumer.consume(self._batch.room, wait_ms / 1_000) if wait_ms else []
        if self._moved:
            self._moved = False
            self._batch.take()
            self._rewind()
            return
        now = time.perf_counter() * 1_000
        self._batch.add([(_incoming(r), now) for r in records if _usable(r)], now)

    def _answer(self) -> None:
        rows = self._batch.take()
        records = [record for record, _ in rows]
        outs = self._core.answer(records, [received for _, received in rows], wall_ms())
        ends = {record.partition: record.offset + 1 for record in records}
        name = self._settings.kafka.topic("scoring-requests")
        offsets = [TopicPartition(name, partition, offset) for partition, offset in ends.items()]
        try:
            self._commit(outs, offsets)
        except KafkaException as error:
            reason = error.args[0]
            if reason.fatal():
                raise Fenced(
                    f"scorer {self._settings.scorer.instance}: another process owns this name: {reason}"
                ) from error
            log.warning("transaction given up, its %d requests are read again: %s", len(rows), reason)
            self._metrics.count("driftline_errors_total", where="transaction")
            self._producer.abort_transaction(30)
            self._rewind()

    def _commit(self, outs: list[Out], offsets: list[TopicPartition]) -> None:
        self._producer.begin_transaction()
        for out in outs:
            self._producer.produce(self._topics[out.topic], out.value, out.key, out.partition)
        self._producer.send_offsets_to_transaction(offsets, self._consumer.consumer_group_metadata(), 30)
        for tried in range(1, _COMMIT_TRIES + 1):
            try:
                self._producer.commit_transaction(30)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or tried == _COMMIT_TRIES:
                    raise

    def _rewind(self) -> None:
        """Go back to what is committed on every partition that is still ours."""
        mine = [TopicPartition(at.topic, at.partition, OFFSET_STORED) for at in self._consumer.assignment()]
        if mine:
            # Not seek(): that fails on a partition whose fetching has not begun, as just after a rebalance.
            self._consumer.assign(mine)

    def _look_after(self, now_ms: int) -> None:
        timeout_ms = self._settings.scorer.trip_answer_timeout
        for name, model in self._core.models.items():
            open_trips = model.trips.unanswered(now_ms, timeout_ms)
            self._metrics.set("driftline_trip_unanswered", open_trips, model=name)
            for request in model.trips.to_report(now_ms, timeout_ms):
                log.error(
                    "rollback request %s has no answer after %d ms: is the controller alive? version %s stays off",
                    request.request_id,
                    timeout_ms,
                    request.version,
                    extra={"model": name, "version": request.version, "trace_id": request.trace_id},
                )


def _usable(record: Message) -> bool:
    error = record.error()
    if error is None:
        return True
    if error.fatal():
        raise DeliveryError(f"reading scoring-requests: {error}")
    log.warning("reading scoring-requests: %s", error)
    return False


def _incoming(record: Message) -> Incoming:
    headers: Any = record.headers()
    return Incoming(
        str(record.topic()),
        int(record.partition() or 0),
        int(record.offset() or 0),
        record.key(),
        record.value(),
        tuple(headers) if headers else (),
        record.timestamp()[1],
    )
