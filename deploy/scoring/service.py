"""The scorer process: requests from Kafka to answers on Kafka, each micro-batch visible as a whole or not at all.

The loop reads, hears and scores; a writer commits what was scored while the next batch is scored; shadows come after the
answers. A request is followed from :meth:`Scorer._gather` through :class:`deploy.scoring.core.ScoringCore` to
:class:`deploy.scoring.writer.Writer`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, Producer, TopicPartition

from deploy.core.microbatch import MicroBatch
from deploy.outage import Outages
from deploy.process import serve_metrics, stop_event, wall_ms
from deploy.registry import Registry
from deploy.scoring.core import ScoringCore
from deploy.scoring.engine import Engine
from deploy.scoring.listener import Listener
from deploy.scoring.provider import choose, look
from deploy.scoring.reports import Reports
from deploy.scoring.shadow import Shadows
from deploy.scoring.writer import Job, State, Writer
from deploy.store.address import open_cache, open_store
from schemas.errors import BrokerError, DeliveryError, DriftlineError, Fenced
from schemas.failpoints import failpoint
from schemas.observability import Metrics, configure_logs
from schemas.presence import is_fatal
from schemas.settings import QUIET, KafkaSettings, ScorerSettings
from schemas.signing import Signer, Verifier

log = logging.getLogger(__name__)

GROUP = "driftline-scorer"
#: Of the shadows' producer, beside what every producer has.
SHADOWS = {"queue.buffering.max.messages": 1_000_000, "delivery.report.only.error": True, **QUIET}
TRANSACTION_TIMEOUT_MS = 15_000
EXIT_UNEXPECTED = 70
_IDLE_S = 0.02
_HOUSEKEEPING_MS = 1_000
#: How long the loop waits for the writer before it hears what there is to hear, and after how many such waits it stops
#: fetching; a commit takes a tenth of one.
_ROOM_S, _WAITS_MAX = 0.1, 5
#: How long a rebalance may wait for what is being written; what does not make it is read by the next owner.
_DRAIN_S = 8.0
#: Writers that may be replaced without one transaction in between, and that may hang at a time, each with a producer and
#: its connections.
_REPLACED_MAX = 8
#: How long a question to the broker may hold up the loop.
_CALL_S = 2.0


def run(settings: ScorerSettings, stop: threading.Event | None = None, metrics: Metrics | None = None) -> int:
    """Score until told to stop. Returns the process's exit status: 0, or 70 after an error it could not go on from."""
    own = stop is None
    if stop is None:
        configure_logs(settings)
        stop = stop_event()
    metrics = metrics or Metrics()
    serve_metrics(metrics, settings)
    status = 0
    hung = False
    try:
        with Outages(settings.kafka, settings.scorer.instance, metrics, stop) as outages:
            scorer = outages.through(lambda: _started(settings, metrics))
            if scorer is not None:
                try:
                    scorer.run(stop)
                finally:
                    hung = not scorer.close()
    except (DriftlineError, KafkaException):
        log.exception("the scorer cannot go on; requests it had not answered are still in the topic")
        return EXIT_UNEXPECTED
    if own and hung:
        # A client that hangs would hold up the interpreter's own end as well.
        logging.shutdown()
        os._exit(status)
    return status


def _started(settings: ScorerSettings, metrics: Metrics) -> Scorer:
    """A scorer that knows the present. Raises BrokerError."""
    scorer = Scorer(settings, metrics)
    try:
        scorer.start()
    except BrokerError:
        scorer.close()
        raise
    return scorer


def check(settings: ScorerSettings) -> str:
    """Which provider runs, and why; in one line. Raises ConfigurationError when the wish cannot be met."""
    return choose(settings.scorer, look()).why


class Scorer:
    """One instance: its consumer, its writer, what it hears, and the core that answers."""

    def __init__(self, settings: ScorerSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        kafka, section = settings.kafka, settings.scorer
        trusted = list(settings.signing.trusted)
        verifier = Verifier(trusted) if trusted else None
        signer = Signer.load(settings.signing.key_file) if settings.signing.key_file else None
        store = open_store(section.registry, settings.s3)
        cache = open_cache(section.registry, settings.s3)
        engine = Engine(Registry(store, verifier=verifier, cache=cache), section)
        log.info("scoring on %s", engine.why)
        self._core = ScoringCore(
            engine,
            metrics,
            clock_ms=lambda: time.perf_counter() * 1_000,
            event_age_max_ms=section.event_age_max,
            cache_rows=section.feature_cache_rows,
            limits={model: (limit.per_s, limit.burst) for model, limit in section.rate_limits.items()},
            region=section.region,
            shadows_inline=section.shadow == "with",
            on_break=self._on_break,
        )
        names = ("predictions", "scores", "dead-letters", "scoring-requests")
        self._topics = {name: kafka.topic(name) for name in names}
        self._batch: MicroBatch[tuple[Message, float]] = MicroBatch(
            section.batch_rows_max, section.batch_deadline
        )
        self._moved = False
        self._paused = False
        self._hung: list[Writer] = []
        self._replaced = 0
        #: How often in a row there was no room for another batch.
        self._waits = 0
        self._name = f"{kafka.topic_prefix}driftline-scorer-{section.instance}"
        self._reports = Reports(
            kafka, section.instance, self._core, signer, lambda: self._listener.event_time_ms
        )
        self._listener = Listener(kafka, self._core, engine, metrics, self._reports.report, verifier)
        self._shadows = Shadows(
            self._core.shadow,
            Producer(kafka.producer(**SHADOWS)),
            self._topics["predictions"],
            kafka.input_partitions,
            section.shadow_rows_max,
            metrics,
        )
        self._writer: Writer | None = None
        # A static member that was killed and comes back under its name has its partitions at once, without waiting
        # for its own death to be noticed.
        member = {"group.instance.id": self._name, "queued.max.messages.kbytes": 65_536}
        self._consumer = Consumer(kafka.consumer(GROUP, **member))

    def start(self) -> None:
        """Know the present before the first request. Raises BrokerError."""
        self._listener.start()

    def run(self, stop: threading.Event) -> None:
        """The loop: hear, gather, score. Raises Fenced when another process took this instance's name."""
        writer = self._writer = self._new_writer()
        moved = {"on_assign": self._on_moved, "on_revoke": self._on_revoked, "on_lost": self._on_moved}
        self._consumer.subscribe([self._topics["scoring-requests"]], **moved)
        log.info("scorer %s is ready", self._settings.scorer.instance, extra={"event": "ready"})
        next_ms = 0
        while not stop.is_set():
            writer = self._watch(writer)
            self._hear(writer)
            if writer.state is State.READY and self._has_room(writer):
                self._gather()
                if self._batch.wait_ms(time.perf_counter() * 1_000) == 0:
                    self._hear(writer)
                    self._answer(writer)
            elif writer.state is not State.READY or self._waits >= _WAITS_MAX:
                self._stand_by()
            if (now_ms := wall_ms()) >= next_ms:
                self._look_after(now_ms)
                next_ms = now_ms + _HOUSEKEEPING_MS

    def close(self) -> bool:
        """End what runs; False when a part of it hangs and the process should end without asking it."""
        self._listener.close()
        ended = self._writer is None or self._writer.close()
        self._consumer.close()
        self._shadows.close()
        self._reports.close()
        return ended and not any(writer.alive for writer in self._hung)

    def _new_writer(self) -> Writer:
        return Writer(
            lambda: Producer(transactional(self._settings.kafka, self._name)),
            self._topics,
            self._settings.kafka.input_partitions,
            self._metrics,
            self._committed,
        )

    def _committed(self, jobs: Sequence[Job]) -> None:
        """On the writer's thread: what is visible is counted, and its shadows are owed."""
        self._replaced = 0
        for job in jobs:
            job.scored.count(self._metrics)
            self._shadows.offer(job.scored.shadows)

    def _watch(self, writer: Writer) -> Writer:
        """The writer to use from here on: after a failure requests are read again, a writer that hangs is replaced."""
        stuck = writer.stuck()
        match writer.state:
            case State.FENCED:
                raise Fenced(
                    f"scorer {self._settings.scorer.instance}: another process owns this name: {writer.error}"
                )
            case State.FAILED:
                self._rewind()
                writer.reset()
            case State.BROKEN:
                stuck = True
            case _:
                pass
        if not stuck:
            return writer
        writer.abandon()
        self._hung = [*(one for one in self._hung if one.alive), writer]
        # One that never reached the broker says nothing about its client: an outage is sat out, however long.
        self._replaced += writer.opened
        if max(len(self._hung), self._replaced) > _REPLACED_MAX:
            raise DeliveryError(
                f"{self._replaced} producers in a row failed, the last one with: {writer.error}"
            )
        log.error(
            "the producer hangs or is broken: it is left behind and a new one takes over: %s", writer.error
        )
        self._metrics.count("driftline_writers_replaced_total")
        self._writer = self._new_writer()
        # Only once the new one has fenced the old one is it sure what was committed.
        self._moved = True
        return self._writer

    def _hear(self, writer: Writer) -> None:
        """Take in what was heard. After a rollback nothing that the version said and that is not being written is written."""
        self._listener.apply_pending()
        if self._listener.take_left():
            for job in writer.recall():
                self._core.reroute(job.scored, wall_ms())
                writer.submit(job)

    def _has_room(self, writer: Writer) -> bool:
        rows_max = self._settings.scorer.in_flight_rows_max
        if not writer.wait_room(rows_max, _ROOM_S):
            self._waits += 1
            return False
        self._waits = 0
        if self._paused and writer.state is State.READY:
            self._paused = False
            self._consumer.resume(self._consumer.assignment())
        return True

    def _stand_by(self) -> None:
        """Nothing can be written now: stop fetching, but stay a member of the group."""
        if not self._paused:
            self._paused = True
            self._consumer.pause(self._consumer.assignment())
        record = self._consumer.poll(_IDLE_S)
        if record is not None and _usable(record):
            # Fetched before the pause; what is behind it is read again.
            self._moved = True

    def _on_break(self, model: str, version: str, why: str) -> None:
        log.error("circuit breaker open: %s", why, extra={"model": model, "version": version})
        self._metrics.count("driftline_trips_total", model=model, version=version)
        newest = self._core.model(model).routes.newest
        self._reports.report(
            model, newest.revision if newest else 0, tripped=(version,), failed={version: why}
        )

    def _on_moved(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        """Partitions came or went: rows in hand may be another instance's now, and are read again if they are not."""
        self._moved = True

    def _on_revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Let the next owner begin behind what is being written; it cannot be written once the membership has changed."""
        self._on_moved(consumer, partitions)
        if self._writer is not None and not self._writer.drain(_DRAIN_S):
            log.warning(
                "partitions are given away with answers still on their way: these are given by the next owner"
            )

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
            self._rewind()
            return
        now = time.perf_counter() * 1_000
        self._batch.add([(record, now) for record in records if _usable(record)], now)

    def _answer(self, writer: Writer) -> None:
        rows = self._batch.take()
        failpoint("scorer.gathered")
        records = [record for record, _ in rows]
        scored = self._core.score(records, [received for _, received in rows], wall_ms())
        failpoint("scorer.scored")
        offsets: dict[int, int] = {}
        for record in records:
            offsets[int(record.partition() or 0)] = int(record.offset() or 0) + 1
        # Taken here, before the next poll: a membership that has changed since the rows were read must not commit them.
        writer.submit(Job(scored, len(rows), offsets, self._consumer.consumer_group_metadata()))

    def _rewind(self) -> None:
        """Go back to what is committed on every partition that is still ours, once nothing is on its way."""
        self._moved = False
        self._batch.take()
        self._core.forget_arrivals()
        if self._writer is not None and not self._writer.drain(_DRAIN_S):
            self._moved = True
            return
        mine = self._consumer.assignment()
        if not mine:
            return
        try:
            # Asked for and not left to the client (OFFSET_STORED): when its question fails it does not ask again.
            positions = self._consumer.committed(mine, _CALL_S)
            if wrong := next((at.error for at in positions if at.error is not None), None):
                raise KafkaException(wrong)
        except KafkaException as error:
            log.warning("asking for the committed offsets again: %s", error.args[0])
            self._moved = True
            return
        for at in positions:
            at.offset = at.offset if at.offset >= 0 else OFFSET_BEGINNING
        # Not seek(): that fails on a partition whose fetching has not begun, as just after a rebalance.
        self._consumer.assign(positions)
        # A pause outlives the assignment it was made in.
        self._consumer.resume(positions)
        self._paused = False

    def _look_after(self, now_ms: int) -> None:
        timeout_ms = self._settings.scorer.trip_answer_timeout
        self._listener.try_again(now_ms)
        self._metrics.set("driftline_in_flight_rows", self._writer.rows if self._writer is not None else 0)
        for name, model in self._core.models.items():
            open_trips = model.trips.unanswered(now_ms, timeout_ms)
            self._metrics.set("driftline_trip_unanswered", open_trips, model=name)
            if model.compiled is not None and (found := model.compiled.take_found()):
                self._metrics.count("driftline_cached_rows_total", found, model=name)
            for request in model.trips.to_report(now_ms, timeout_ms):
                log.error(
                    "rollback request %s has no answer after %d ms: is the controller alive? version %s stays off",
                    request.request_id,
                    timeout_ms,
                    request.version,
                    extra={"model": name, "version": request.version, "trace_id": request.trace_id},
                )


def transactional(kafka: KafkaSettings, name: str) -> dict[str, Any]:
    """Configuration of the answers' producer under the transactional id ``name``."""
    return kafka.producer(
        **{
            "transactional.id": name,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
            "linger.ms": 0,
            # A transaction holds two records a request; produce() must not run out of room.
            "queue.buffering.max.messages": 1_000_000,
            **QUIET,
        }
    )


def _usable(record: Message) -> bool:
    error = record.error()
    if error is None:
        return True
    if is_fatal(error):
        raise DeliveryError(f"reading scoring-requests: {error}")
    log.warning("reading scoring-requests: %s", error)
    return False
