"""Why: topics are made before anybody writes, with the partitions the partitioner counts on; never by accident."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from schemas.errors import PlatformError
from schemas.settings import KafkaSettings
from schemas.topics import TOPICS, partitions_of_topic, topic_config

TIMEOUT_S = 30.0


def create_topics(kafka: KafkaSettings) -> list[str]:
    """Create what is missing and return its names; repeatable.

    Raises PlatformError when the broker refuses, or when an existing topic has another number of partitions: keys would
    then be looked for in the wrong place.
    """
    admin = AdminClient(kafka.librdkafka())
    wanted = {kafka.topic(t.name): partitions_of_topic(t, kafka.input_partitions) for t in TOPICS.values()}
    try:
        existing = admin.list_topics(timeout=TIMEOUT_S).topics
    except KafkaException as error:
        admin.poll(0)  # It logs why.
        raise PlatformError(f"Kafka at {kafka.bootstrap} does not answer: {error}") from error
    for name, partitions in wanted.items():
        if name in existing and len(existing[name].partitions) != partitions:
            raise PlatformError(
                f"topic {name} has {len(existing[name].partitions)} partitions, the settings say {partitions}: set "
                "kafka.input_partitions to what the topics were made with, or migrate to new topics"
            )
    missing = [
        NewTopic(
            kafka.topic(t.name),
            num_partitions=wanted[kafka.topic(t.name)],
            replication_factor=kafka.replication,
            config=topic_config(t),
        )
        for t in TOPICS.values()
        if kafka.topic(t.name) not in existing
    ]
    created = []
    if missing:
        for name, done in admin.create_topics(missing, operation_timeout=TIMEOUT_S).items():
            try:
                done.result(TIMEOUT_S)
                created.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise PlatformError(f"topic {name} could not be created: {error}") from error
    return created
