"""Reads what the loop left behind: every topic, committed records only, and every table of the warehouse."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import clickhouse_connect
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from schemas.errors import PlatformError
from schemas.rows import TABLES
from schemas.settings import ClickHouseSettings, KafkaSettings
from schemas.topics import TOPICS, partitions_of_topic

TIMEOUT_S = 120.0
READ = (
    "predictions", "feedback", "observations", "signals", "alerts", "control", "deployments", "decisions",
    "scoring-requests", "scores", "dead-letters",
)  # fmt: skip
AGGREGATES = ("window_counts", "window_features", "window_outcomes")


class Message(NamedTuple):
    """One record as it stands on its topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]


Topics = dict[str, list[Message]]
#: (partition, offset, row in its batch).
Address = tuple[int, int, int]


def read_topics(kafka: KafkaSettings, names: tuple[str, ...] = READ) -> Topics:
    """Every committed record of ``names`` up to the present end, in offset order a partition. Raises PlatformError."""
    consumer = Consumer(kafka.consumer(None, **{"enable.partition.eof": True}))
    found: Topics = {name: [] for name in names}
    left = {
        (kafka.topic(name), partition)
        for name in names
        for partition in range(partitions_of_topic(TOPICS[name], kafka.input_partitions))
    }
    consumer.assign([TopicPartition(*tp, OFFSET_BEGINNING) for tp in left])
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        while left:
            if time.monotonic() > deadline_s:
                raise PlatformError(f"{sorted(left)} could not be read to their end in {TIMEOUT_S:.0f} s")
            for record in consumer.consume(10_000, 1.0):
                error, topic = record.error(), str(record.topic())
                tp = (topic, int(record.partition() or 0))
                if error is None:
                    headers: Any = record.headers()
                    found[topic.removeprefix(kafka.topic_prefix)].append(
                        Message(
                            tp[1],
                            int(record.offset() or 0),
                            record.key(),
                            record.value() or b"",
                            dict(headers or ()),
                        )
                    )
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(tp)
    finally:
        consumer.close()
    return found


def read_aggregates(clickhouse: ClickHouseSettings) -> dict[str, list[list[Any]]]:
    """Rows of the aggregate tables as the views see them: of each key the highest version, without it."""
    with clickhouse_connect.get_client(**clickhouse.client()) as client:
        return {
            name: [
                list(row)
                for row in client.query(
                    f"SELECT {', '.join(TABLES[name].names[:-1])} FROM {name} FINAL"
                ).result_rows
            ]
            for name in AGGREGATES
        }


def read_logs(clickhouse: ClickHouseSettings) -> dict[str, list[Address]]:
    """Addresses (partition, offset, row) in each log table, once for each row the analyst sees."""
    with clickhouse_connect.get_client(**clickhouse.client()) as client:
        return {
            name: [
                (int(partition), int(offset), int(row))
                for partition, offset, row in client.query(
                    f"SELECT source_partition, source_offset, source_row FROM {name} FINAL"
                ).result_rows
            ]
            for name, table in TABLES.items()
            if "source_offset" in table.names
        }
