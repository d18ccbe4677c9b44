"""A small trained model and its contract, for the tests of what registers, serves and retrains."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.broadcast import Broadcast
from deploy.registry import Artifact
from deploy.training.candidate import TrainedModel, train
from deploy.training.packing import pack
from deploy.training.snapshot import Snapshot
from deploy.training.trainers import trainer_for
from schemas.contracts import Feature, ModelContract, Training
from schemas.ids import partition_of
from schemas.settings import KafkaSettings
from schemas.topics import TOPICS, partitions_of_topic, topic_config

CARRIERS = ("AA", "B6", "UA")
CONTRACT = ModelContract(
    model="delay",
    features=(
        Feature(name="hour", low=0, high=24),
        Feature(name="wind.speed", nullable=True),
        Feature(name="carrier", kind="categorical", categories=CARRIERS),
    ),
    fallback_score=0.2,
    training=Training(rows_min=500),
)
DAY_MS = 86_400_000
START_MS = 1_357_000_000_000


def rows(count: int, seed: int = 0, flip: bool = False) -> tuple[dict[str, Any], Any, Any]:
    """Columns, labels and event times (one row a minute) in which late hours and one carrier mean late flights."""
    rng = np.random.default_rng(seed)
    hour = rng.integers(0, 24, count).astype(np.float64)
    wind = np.where(rng.random(count) < 0.1, np.nan, rng.gamma(2.0, 5.0, count).round(1))
    carrier = np.array(CARRIERS)[rng.integers(0, 3, count)]
    chance = 0.1 + 0.5 * (hour > 16) + 0.3 * (carrier == "B6")
    if flip:
        chance = 0.95 - chance
    labels = (rng.random(count) < chance).astype(np.int8)
    table = {"hour": hour, "wind.speed": wind, "carrier": carrier}
    return table, labels, START_MS + 60_000 * np.arange(count, dtype=np.int64)


@cache
def trained(seed: int = 0, flip: bool = False) -> TrainedModel:
    """A model of 3,000 rows."""
    rules = CONTRACT.training.model_copy(update={"seed": seed, "weightings": ("uniform",)})
    contract = CONTRACT.model_copy(update={"training": rules})
    return train(Snapshot.of(*rows(3_000, seed, flip)), contract, trainer_for(contract))


def artifact(seed: int = 0, flip: bool = False) -> Artifact:
    """The same, packed for the registry."""
    return pack(trained(seed, flip), CONTRACT)


def feature_row(table: dict[str, Any], at: int) -> dict[str, Any]:
    """One row as a caller sends it: JSON values, null for NaN."""
    found = {
        name: column[at].item() if hasattr(column[at], "item") else column[at]
        for name, column in table.items()
    }
    return {name: None if value != value else value for name, value in found.items()}


class Wire:
    """A test's own hands on Kafka: makes the topics, writes records, reads whole topics of committed records."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.kafka = kafka
        self._producer = Producer(kafka.producer())
        admin = AdminClient(kafka.librdkafka())
        wanted = [
            NewTopic(
                kafka.topic(topic.name),
                partitions_of_topic(topic, kafka.input_partitions),
                1,
                config=topic_config(topic),
            )
            for topic in TOPICS.values()
        ]
        for future in admin.create_topics(wanted).values():
            future.result(30)

    def send(self, topic: str, records: Sequence[tuple[str, bytes]], spread: bool = False) -> None:
        """Write ``(key, value)`` records and wait for the broker; ``spread``: by the one partitioner."""
        for key, value in records:
            raw = key.encode()
            partition = partition_of(raw, self.kafka.input_partitions) if spread else 0
            while True:
                try:
                    self._producer.produce(self.kafka.topic(topic), value, raw, partition)
                    break
                except BufferError:
                    self._producer.poll(0.1)
        assert self._producer.flush(30) == 0

    def close(self) -> None:
        """Let go of the broker."""
        self._producer.close()

    def read(self, topic: str) -> list[bytes]:
        """Values of every committed record there is now."""
        with Broadcast(self.kafka, (topic,)) as broadcast:
            return [record.value() or b"" for record in broadcast.read_to_end()]

    def wait(
        self, topic: str, enough: Callable[[list[bytes]], bool], timeout_s: float = 120.0
    ) -> list[bytes]:
        """Follow ``topic`` from its beginning until ``enough`` of its values are there."""
        found: list[bytes] = []
        deadline = time.monotonic() + timeout_s
        with Broadcast(self.kafka, (topic,)) as broadcast:
            while not enough(found):
                assert time.monotonic() < deadline, (
                    f"{topic}: only {len(found)} records after {timeout_s:g} s"
                )
                found += [record.value() or b"" for record in broadcast.poll(0.2)]
        return found
