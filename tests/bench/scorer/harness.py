"""A broker, topics, a registry with two versions, and a scorer process: what every measurement of the scorer stands on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from deploy.local.kafka import LocalKafka
from deploy.models import publish_records
from deploy.topics import create_topics
from schemas.control import Deployment, Phase
from schemas.ids import partitions_of
from schemas.settings import KafkaSettings
from tests.bench.scorer.subjects import MODEL, register

WAIT_S = 240.0


@contextmanager
def broker(folder: Path) -> Iterator[LocalKafka]:
    """A Kafka of its own."""
    with LocalKafka() as kafka:
        kafka.start(folder / "kafka")
        kafka.wait_ready()
        yield kafka


class Ground:
    """Topics under a prefix of their own, a registry with versions 1 and 2 of one size, and a producer."""

    def __init__(self, bootstrap: str, folder: Path, name: str, size: str = "small") -> None:
        self.kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=f"{name}-", input_partitions=4)
        self.registry = folder / f"registry-{name}"
        create_topics(self.kafka)
        publish_records(self.kafka, register(self.registry, size))
        self.producer = Producer(
            self.kafka.producer(**{"linger.ms": 1, "queue.buffering.max.messages": 2_000_000})
        )
        self.revision = 0

    def deploy(self, **changes: Any) -> int:
        """Publish the next revision; by default everything goes to version 1."""
        self.revision += 1
        base: dict[str, Any] = {"phase": Phase.STEADY, "stable": "1", "weights": {"1": 1.0}}
        revision = Deployment(model=MODEL, revision=self.revision, **(base | changes))
        self.producer.produce(
            self.kafka.topic("deployments"), revision.model_dump_json().encode(), MODEL.encode()
        )
        self.producer.flush(10)
        return self.revision

    def send(self, requests: Sequence[tuple[bytes, bytes]]) -> None:
        """Write requests to their partitions; they are on their way when this returns."""
        where = partitions_of([key for key, _ in requests], self.kafka.input_partitions).tolist()
        topic = self.kafka.topic("scoring-requests")
        batch = [{"key": k, "value": v, "partition": p} for (k, v), p in zip(requests, where, strict=True)]
        while batch:
            taken = self.producer.produce_batch(topic, batch)
            batch = batch[taken:]
            self.producer.poll(0)

    def lag(self) -> int:
        """Requests that no committed offset covers yet."""
        consumer = Consumer(self.kafka.consumer("driftline-scorer"))
        topic = self.kafka.topic("scoring-requests")
        try:
            asked = [TopicPartition(topic, p) for p in range(self.kafka.input_partitions)]
            behind = 0
            for at in consumer.committed(asked, 10):
                behind += consumer.get_watermark_offsets(at, 10)[1] - max(at.offset, 0)
            return behind
        finally:
            consumer.close()


class ScorerProcess:
    """A scorer as production runs it; ready when entered, ended when left."""

    def __init__(self, ground: Ground, **settings: object) -> None:
        self._environment = {
            "DRIFTLINE_KAFKA__BOOTSTRAP": ground.kafka.bootstrap,
            "DRIFTLINE_KAFKA__TOPIC_PREFIX": ground.kafka.topic_prefix,
            "DRIFTLINE_KAFKA__INPUT_PARTITIONS": str(ground.kafka.input_partitions),
            "DRIFTLINE_SCORER__REGISTRY": str(ground.registry),
            "OMP_NUM_THREADS": "1",
        } | {f"DRIFTLINE_SCORER__{name.upper()}": str(value) for name, value in settings.items()}

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "deploy.scoring"]
        self.process = subprocess.Popen(
            command, env=os.environ | self._environment, stderr=subprocess.PIPE, text=True
        )
        ready = threading.Event()
        threading.Thread(target=self._follow, args=(ready,), daemon=True).start()
        if not ready.wait(WAIT_S):
            raise SystemExit("the scorer did not become ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def _follow(self, ready: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            data = json.loads(line) if line.startswith("{") else {"message": line.strip()}
            if data.get("event") == "ready":
                ready.set()
            elif data.get("level") not in ("info", None):
                print(f"scorer: {data.get('message')}", file=sys.stderr)


class _Score(msgspec.Struct):
    request_id: str
    version: str | None
    revision: int
    status: str


@dataclass(slots=True)
class Seen:
    """One answer: Kafka's timestamp, and when it was here, both wall-clock milliseconds."""

    request_id: str
    version: str | None
    revision: int
    status: str
    kafka_ms: int
    here_ms: float


class Answers:
    """Everything committed to ``scores`` from now on, read by a thread."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.seen: list[Seen] = []
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._consumer = Consumer(kafka.consumer(None, **{"fetch.wait.max.ms": 5}))
        topic = kafka.topic("scores")
        self._consumer.assign([TopicPartition(topic, p, OFFSET_END) for p in range(kafka.input_partitions)])
        for p in range(kafka.input_partitions):
            self._consumer.get_watermark_offsets(TopicPartition(topic, p), 10)
        self._consumer.poll(0.5)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, enough: Any, timeout_s: float = WAIT_S) -> None:
        """Until ``enough(seen)``; ends the benchmark when it takes too long."""
        with self._changed:
            if not self._changed.wait_for(lambda: enough(self.seen), timeout_s):
                raise SystemExit(f"only {len(self.seen)} answers after {timeout_s:g} s")

    def close(self) -> list[Seen]:
        """Stop reading; everything that was seen."""
        self._stop.set()
        self._thread.join()
        self._consumer.close()
        return self.seen

    def _read(self) -> None:
        decode = msgspec.json.Decoder(_Score).decode
        while not self._stop.is_set():
            first = self._consumer.poll(0.05)
            if first is None:
                continue
            records = [first, *self._consumer.consume(5_000, 0)]
            here_ms = now_ms()
            found = []
            for record in records:
                if record.error() is None:
                    score = decode(record.value() or b"")
                    found.append(
                        Seen(
                            score.request_id,
                            score.version,
                            score.revision,
                            score.status,
                            record.timestamp()[1],
                            here_ms,
                        )
                    )
            with self._changed:
                self.seen += found
                self._changed.notify_all()


class Load:
    """Requests at a steady rate until left, whatever the answers do. ``sent_ms``: when each was handed to the client."""

    def __init__(self, ground: Ground, requests: Sequence[tuple[bytes, bytes]], rate_per_s: float) -> None:
        self._ground = ground
        self._requests = requests
        self._rate_per_s = rate_per_s
        self._stop = threading.Event()
        self.sent_ms: dict[str, float] = {}
        self._thread = threading.Thread(target=self._send, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._ground.producer.flush(30)

    def join(self) -> None:
        """Wait until all requests are sent."""
        self._thread.join()

    def _send(self) -> None:
        began, sent = time.perf_counter(), 0
        while sent < len(self._requests) and not self._stop.is_set():
            due = min(len(self._requests), int((time.perf_counter() - began) * self._rate_per_s) + 1)
            if due > sent:
                at_ms = now_ms()
                part = self._requests[sent:due]
                self._ground.send(part)
                for key, _ in part:
                    self.sent_ms[key.decode()] = at_ms
                sent = due
            time.sleep(0.002)


def now_ms() -> float:
    """Wall-clock milliseconds, finer than Kafka's."""
    return time.clock_gettime(time.CLOCK_REALTIME) * 1_000


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of ``values`` does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
