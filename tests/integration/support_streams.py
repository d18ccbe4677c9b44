"""What the tests of the monitor's shells share: topics, worker processes, and reading what was committed."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.events import HEADER_KIND, KIND_TICK, Tick
from schemas.settings import KafkaSettings
from schemas.topics import TOPICS, partitions_of_topic, topic_config

ROOT = Path(__file__).parents[2]
PARTITIONS = 4
SCRIPT = str(Path(__file__).parent / "counting_worker.py")
SESSION_MS = 3_000


def create_topics(kafka: KafkaSettings) -> None:
    """Every topic of the deployment, under its prefix."""
    admin = AdminClient(kafka.librdkafka())
    wanted = [
        NewTopic(
            kafka.topic(t.name), partitions_of_topic(t, kafka.input_partitions), 1, config=topic_config(t)
        )
        for t in TOPICS.values()
    ]
    for future in admin.create_topics(wanted).values():
        future.result(30)


class Worker:
    """A child process that logs JSON lines; its events can be waited for."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                self.log.append(line)
                self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, event: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """The next log line with this ``event``; fails when the process ends or is late."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"no event {event!r}; the log ends with:\n{''.join(self.log[-30:])}"
            try:
                data: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            if data.get("event") == event:
                return data

    def wait(self, timeout_s: float = 120.0) -> int:
        return self._process.wait(timeout_s)

    def terminate(self, timeout_s: float = 60.0) -> int:
        self._process.terminate()
        return self._process.wait(timeout_s)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def rss_bytes(self) -> int:
        """Memory in use."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def pause(self) -> None:
        """As if the machine slept: it holds everything and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._reader.join()


class Workers:
    """Starts counting workers against one deployment and leaves none behind."""

    def __init__(self, settings: KafkaSettings, **environment: str) -> None:
        self._environment = {
            "DRIFTLINE_KAFKA__BOOTSTRAP": settings.bootstrap,
            "DRIFTLINE_KAFKA__TOPIC_PREFIX": settings.topic_prefix,
            "DRIFTLINE_KAFKA__SESSION_TIMEOUT": f"{SESSION_MS}ms",
            "DRIFTLINE_MONITOR__TICKER": "off",
            "DRIFTLINE_MONITOR__COMMIT_INTERVAL": "50ms",
            "DRIFTLINE_MONITOR__CHUNK_RECORDS": "50",
        } | environment
        self._started: list[Worker] = []

    def start(self, instance: str, stages: int | str = 1, failpoint: str = "") -> Worker:
        extra = {"DRIFTLINE_MONITOR__INSTANCE": instance, "DRIFTLINE_FAILPOINT": failpoint}
        worker = Worker([SCRIPT, str(stages)], self._environment | extra)
        self._started.append(worker)
        return worker

    def close(self) -> None:
        for worker in self._started:
            worker.kill()


def send_rows(kafka: KafkaSettings, topic: str, ids: Iterable[int]) -> None:
    """One record an id, its partition the id modulo the partitions; returns when all are acknowledged."""
    producer = Producer(kafka.producer())
    for number in ids:
        text = str(number).encode()
        producer.produce(kafka.topic(topic), text, text, partition=number % kafka.input_partitions)
    assert producer.flush(30) == 0


def send_ticks(producer: Producer, kafka: KafkaSettings, topic: str, event_time_ms: int) -> None:
    """One tick to every partition of ``topic``."""
    value = Tick(event_time_ms=event_time_ms).model_dump_json().encode()
    for partition in range(kafka.input_partitions):
        producer.produce(kafka.topic(topic), value, partition=partition, headers=[(HEADER_KIND, KIND_TICK)])
    assert producer.flush(30) == 0


def is_tick(message: Message) -> bool:
    return (HEADER_KIND, KIND_TICK) in (message.headers() or [])


class Reader:
    """Reads committed records of all partitions of a topic from their beginning."""

    def __init__(self, kafka: KafkaSettings, topic: str, partitions: int) -> None:
        self._consumer = Consumer(kafka.consumer(**{"fetch.wait.max.ms": 10}))
        self._consumer.assign(
            [TopicPartition(kafka.topic(topic), p, OFFSET_BEGINNING) for p in range(partitions)]
        )

    def poll(self, timeout_s: float) -> Message | None:
        """The next record; an error that the client tells of and gets over by itself, as of a topic just made, is none."""
        ends_s = time.monotonic() + timeout_s
        while (message := self._consumer.poll(max(0.0, ends_s - time.monotonic()))) is not None:
            if message.error() is None:
                return message
        return None

    def rows(self, count: int, timeout_s: float = 120.0, settle_s: float = 0.3) -> list[int]:
        """Values of records that are no ticks: until there are ``count``, and whatever comes ``settle_s`` after."""
        found: list[int] = []
        deadline_s = time.monotonic() + timeout_s
        while len(found) < count and time.monotonic() < deadline_s:
            message = self.poll(0.2)
            if message is not None and not is_tick(message):
                found.append(int(message.value() or b""))
        while (message := self.poll(settle_s)) is not None:
            if not is_tick(message):
                found.append(int(message.value() or b""))
        return found

    def close(self) -> None:
        self._consumer.close()
