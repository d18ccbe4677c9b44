"""Why: a year of flights must pass through the loop faster than real time without changing what the loop decides.

The replay is the services that ask for scores, the outcomes that come back, and the clock. It publishes the flights of
one step of event time, waits until each has its answer (so that its prediction is in the log), and then says so with a
tick on every input partition. It runs at most ``span_ms`` of event time ahead of the slowest watermark at the loop's
other end, and stands still while a retrain is open: what is scored by which version then depends on event time alone.
Several models may be asked about the same flights, side by side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from deploy.demo.flights import Flights
from deploy.demo.watch import LoopWatch
from schemas.errors import PlatformError
from schemas.events import HEADER_KIND, HEADER_TRACE, KIND_TICK, Tick
from schemas.ids import content_hash, partitions_of
from schemas.settings import KafkaSettings

ANSWER_TIMEOUT_S = 60.0
STALL_TIMEOUT_S = 120.0
#: Between a flight and the model that is asked about it, where there are several.
FOR = "@"


class _Answer(msgspec.Struct):
    request_id: str
    version: str | None
    status: str


@dataclass(slots=True)
class Answers:
    """Follows ``scores`` from where it stood at the start; knows every request's one answer."""

    kafka: KafkaSettings
    by_version: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    doubled: int = 0
    _seen: set[str] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        consumer = Consumer(self.kafka.consumer(None, **{"fetch.wait.max.ms": 10}))
        topic = self.kafka.topic("scores")
        assigned = []
        for partition in range(self.kafka.input_partitions):
            _, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            assigned.append(TopicPartition(topic, partition, high))
        consumer.assign(assigned)
        self._thread = threading.Thread(target=self._follow, args=(consumer,), name="answers", daemon=True)
        self._thread.start()

    def _follow(self, consumer: Consumer) -> None:
        decoder = msgspec.json.Decoder(_Answer)
        while not self._stop.is_set():
            messages = consumer.consume(5_000, timeout=0.1)
            if not messages:
                continue
            with self._changed:
                for message in messages:
                    if message.error() is None:
                        self._count(decoder.decode(message.value() or b""))
                self._changed.notify_all()
        consumer.close()

    def _count(self, answer: _Answer) -> None:
        if answer.request_id in self._seen:
            self.doubled += 1
            return
        self._seen.add(answer.request_id)
        if answer.status == "error":
            self.rejected += 1
        else:
            version = answer.version or "none"
            self.by_version[version] = self.by_version.get(version, 0) + 1

    @property
    def answered(self) -> int:
        return len(self._seen)

    def wait_for(self, count: int, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Until ``count`` requests have an answer. Raises PlatformError when none comes for ``timeout_s``."""
        with self._changed:
            while self.answered < count:
                before = self.answered
                if not self._changed.wait(timeout_s) and self.answered == before:
                    raise PlatformError(
                        f"no answer from the scorer for {timeout_s:.0f} s: {count - self.answered} of {count} requests "
                        "are open; see `driftline logs scorer`"
                    )

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


@dataclass(slots=True)
class Replay:
    """Publishes flights in event time, paced by the loop.

    ``progress(event_time_ms, sent, labels)`` is called after every step. ``behind(event_time_ms)``: whether something
    that must be known of the time before is still awaited.
    """

    kafka: KafkaSettings
    flights: Flights
    watch: LoopWatch
    models: tuple[str, ...]
    step_ms: int
    span_ms: int
    progress: Callable[[int, int, int], None]
    behind: Callable[[int], bool] = lambda _event_time_ms: False
    sent: int = 0
    labels: int = 0
    waited_s: float = 0.0
    _begun: bool = False
    _answers: Answers = field(init=False)
    _producer: Producer = field(init=False)
    _order: np.ndarray = field(init=False)  # type: ignore[type-arg]
    _label_ms: np.ndarray = field(init=False)  # type: ignore[type-arg]
    _partition: dict[str, np.ndarray] = field(init=False)  # type: ignore[type-arg]
    _columns: list[tuple[str, list[object]]] = field(init=False)

    def __post_init__(self) -> None:
        self._answers = Answers(self.kafka)
        self._producer = Producer(
            self.kafka.producer(**{"linger.ms": 2, "queue.buffering.max.messages": 1_000_000})
        )
        known = np.flatnonzero(self.flights.labelled)
        self._order = known[np.argsort(self.flights.label_ms[known], kind="stable")]
        self._label_ms = self.flights.label_ms[self._order]
        self._partition = {
            model: partitions_of(
                [self._identity(row, model).encode() for row in range(len(self.flights))],
                self.kafka.input_partitions,
            )
            for model in self.models
        }
        self._columns = [
            (name, [None if isinstance(v, float) and v != v else v for v in column.tolist()])
            for name, column in self.flights.features.items()
        ]
        self._answers.start()

    @property
    def answers(self) -> Answers:
        return self._answers

    def run(self, start_ms: int, end_ms: int) -> None:
        """Everything with event time in ``[start_ms, end_ms)``, step by step; the last tick is ``end_ms - 1``."""
        if not self._begun:
            # Time has to begin somewhere: until the first tick nobody downstream knows what time it is.
            self._begun = True
            self.tick(start_ms - 1)
        at = start_ms
        while at < end_ms:
            until = min(at + self.step_ms, end_ms)
            self._wait_for_loop(until)
            self._publish(at, until)
            self._answers.wait_for(self.sent)
            self.tick(until - 1)
            self.progress(until, self.sent, self.labels)
            at = until

    def drain(self, event_time_ms: int) -> None:
        """Wait until the loop's other end has reached ``event_time_ms``."""
        self.watch.wait(
            lambda: self.watch.watermark_ms >= event_time_ms, STALL_TIMEOUT_S, "the loop to catch up"
        )

    def _wait_for_loop(self, until: int) -> None:
        began = time.monotonic()
        self.watch.wait(
            lambda: (
                until - 1 <= self.watch.watermark_ms + self.span_ms
                and not any(self.watch.training_open(model) for model in self.models)
                and not self.behind(until - 1 - self.span_ms)
            ),
            STALL_TIMEOUT_S,
            f"the loop to come within {self.span_ms / 3_600_000:.0f} h of event time",
        )
        self.waited_s += time.monotonic() - began

    def _identity(self, row: int, model: str) -> str:
        """The request's id: the flight's, and with several models also whom it is for. The entity is the flight always."""
        flight_id = str(self.flights.flight_id[row])
        return flight_id if len(self.models) == 1 else f"{flight_id}{FOR}{model}"

    def _publish(self, start: int, end: int) -> None:
        first, last = np.searchsorted(self.flights.departs_ms, [start, end])
        topic = self.kafka.topic("scoring-requests")
        encode = msgspec.json.encode
        for row in range(int(first), int(last)):
            features = {name: values[row] for name, values in self._columns}
            for model in self.models:
                identity = self._identity(row, model)
                trace = content_hash(identity.encode())[:32]
                request = {
                    "request_id": identity,
                    "model": model,
                    "event_time_ms": int(self.flights.departs_ms[row]),
                    "features": features,
                    "entity": str(self.flights.flight_id[row]),
                    "trace_id": trace,
                }
                self._producer.produce(
                    topic,
                    key=identity.encode(),
                    value=encode(request),
                    partition=int(self._partition[model][row]),
                    headers=[(HEADER_TRACE, trace.encode())],
                )
        self.sent += int(last - first) * len(self.models)
        self._publish_labels(start, end)
        self._producer.flush(30)

    def _publish_labels(self, start: int, end: int) -> None:
        first, last = np.searchsorted(self._label_ms, [start, end])
        topic = self.kafka.topic("feedback")
        for at in range(int(first), int(last)):
            row = int(self._order[at])
            for model in self.models:
                identity = self._identity(row, model)
                label = {
                    "prediction_id": identity,
                    "model": model,
                    "label": float(self.flights.late[row]),
                    "label_time_ms": int(self._label_ms[at]),
                }
                self._producer.produce(
                    topic,
                    key=identity.encode(),
                    value=msgspec.json.encode(label),
                    partition=int(self._partition[model][row]),
                )
        self.labels += int(last - first) * len(self.models)

    def tick(self, event_time_ms: int) -> None:
        """Say on every input partition that event time has come this far."""
        value = Tick(event_time_ms=event_time_ms, source="replay").model_dump_json().encode()
        for name in ("predictions", "feedback"):
            for partition in range(self.kafka.input_partitions):
                self._producer.produce(
                    self.kafka.topic(name),
                    value=value,
                    partition=partition,
                    headers=[(HEADER_KIND, KIND_TICK)],
                )
        self._producer.flush(30)

    def stop(self) -> None:
        self._answers.stop()
        self._producer.close()
