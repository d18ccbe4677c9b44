"""Why: the demo tells a story that nobody wrote; this reads it off the topics as it happens.

Follows ``control``, ``deployments``, ``decisions`` and ``alerts`` from their beginning, read committed, and keeps what the
pacing, the terminal and the report need, with each record's Kafka timestamp.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from confluent_kafka import Consumer, Message, TopicPartition
from pydantic import ValidationError

from schemas.control import (
    COMMANDS,
    Alert,
    Answer,
    AnyCommand,
    Command,
    ControlTick,
    Decision,
    Deployment,
    RetrainRequested,
    RollbackRequested,
)
from schemas.errors import PlatformError
from schemas.settings import KafkaSettings

T = TypeVar("T")
C = TypeVar("C", bound=Command)

TOPICS = ("control", "deployments", "decisions", "alerts")


@dataclass(frozen=True, slots=True)
class Stamped(Generic[T]):
    """A record and the broker's or producer's timestamp of it, epoch milliseconds."""

    record: T
    kafka_ms: int


@dataclass(slots=True)
class LoopWatch:
    """What has come out of the loop so far. All reads are safe from any thread."""

    kafka: KafkaSettings
    alive: Callable[[], str | None] = lambda: None
    commands: list[Stamped[AnyCommand]] = field(default_factory=list)
    deployments: dict[str, list[Stamped[Deployment]]] = field(default_factory=dict)
    decisions: list[Stamped[Decision]] = field(default_factory=list)
    alerts: list[Stamped[Alert]] = field(default_factory=list)
    unread: int = 0
    _sources: dict[str, int] = field(default_factory=dict)
    _answered: dict[str, Answer] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        consumer = Consumer(self.kafka.consumer(None, **{"fetch.wait.max.ms": 10}))
        consumer.assign([TopicPartition(self.kafka.topic(name), 0, 0) for name in TOPICS])
        self._thread = threading.Thread(target=self._follow, args=(consumer,), name="loop-watch", daemon=True)
        self._thread.start()

    def _follow(self, consumer: Consumer) -> None:
        while not self._stop.is_set():
            messages = consumer.consume(1_000, timeout=0.1)
            if not messages:
                continue
            with self._changed:
                for message in messages:
                    if message.error() is None and message.value() is not None:
                        try:
                            self._take(message)
                        except ValidationError:
                            self.unread += 1
                self._changed.notify_all()
        consumer.close()

    def _take(self, message: Message) -> None:
        topic = str(message.topic()).removeprefix(self.kafka.topic_prefix)
        value = message.value() or b""
        stamp = int(message.timestamp()[1])
        if topic == "control":
            command = COMMANDS.validate_json(value)
            if isinstance(command, ControlTick):
                self._sources[command.source] = max(
                    command.event_time_ms, self._sources.get(command.source, command.event_time_ms)
                )
            else:
                self.commands.append(Stamped(command, stamp))
        elif topic == "deployments":
            deployment = Deployment.model_validate_json(value)
            self.deployments.setdefault(deployment.model, []).append(Stamped(deployment, stamp))
            self._answered.update({answer.request_id: answer for answer in deployment.answers})
        elif topic == "decisions":
            self.decisions.append(Stamped(Decision.model_validate_json(value), stamp))
        else:
            self.alerts.append(Stamped(Alert.model_validate_json(value), stamp))

    @property
    def watermark_ms(self) -> int:
        """The slowest policy task's event time; a very early time until all of them have spoken."""
        policies = [at for source, at in self._sources.items() if source.startswith("policy/")]
        return min(policies) if len(policies) >= self.kafka.input_partitions else -(2**62)

    def newest(self, model: str) -> Deployment | None:
        """The model's newest routing state."""
        revisions = self.deployments.get(model)
        return revisions[-1].record if revisions else None

    def answer(self, request_id: str) -> Answer | None:
        """The controller's answer to a request, if it has given one."""
        return self._answered.get(request_id)

    def training_open(self, model: str) -> bool:
        """Whether a retrain was asked for that is not yet answered, or is being worked on."""
        deployment = self.newest(model)
        if deployment is not None and deployment.training is not None:
            return True
        return any(
            isinstance(c.record, RetrainRequested)
            and c.record.model == model
            and c.record.request_id not in self._answered
            for c in self.commands
        )

    def of_type(self, kind: type[C]) -> list[Stamped[C]]:
        return [Stamped(c.record, c.kafka_ms) for c in self.commands if isinstance(c.record, kind)]

    def retrains(self) -> list[Stamped[RetrainRequested]]:
        return self.of_type(RetrainRequested)

    def rollbacks(self) -> list[Stamped[RollbackRequested]]:
        return self.of_type(RollbackRequested)

    def wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Until ``condition()``; looks again at each new record. Raises PlatformError after ``timeout_s`` of silence."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            mark = self._mark()
            while not condition():
                failure = self.alive()
                if failure is not None:
                    raise PlatformError(failure)
                self._changed.wait(0.5)
                if self._mark() != mark:
                    mark = self._mark()
                    deadline = time.monotonic() + timeout_s
                elif time.monotonic() > deadline:
                    raise PlatformError(
                        f"waited {timeout_s:.0f} s for {what} and nothing moved (slowest watermark {self.watermark_ms}); "
                        "see `driftline logs monitor`"
                    )

    def _mark(self) -> tuple[int, ...]:
        return (
            len(self.commands),
            len(self.decisions),
            self.watermark_ms,
            sum(map(len, self.deployments.values())),
        )

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
