"""Why: contracts and versions reach every process through one compacted topic; this is the one way onto it."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import KafkaError, Message, Producer

from schemas.contracts import ModelRecord
from schemas.errors import PlatformError
from schemas.settings import KafkaSettings


def publish_records(kafka: KafkaSettings, records: Sequence[ModelRecord], timeout_s: float = 30.0) -> None:
    """Write ``records`` to ``models`` and wait until the broker has them. Raises PlatformError if it does not."""
    failed: list[str] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failed.append(str(error))

    producer = Producer(kafka.producer())
    for record in records:
        producer.produce(
            kafka.topic("models"),
            key=record.key.encode(),
            value=record.model_dump_json(exclude_none=True).encode(),
            on_delivery=delivered,
        )
    left = producer.flush(timeout_s)
    if failed or left:
        raise PlatformError(
            f"could not publish to {kafka.topic('models')}: {failed or f'{left} still unsent'}"
        )
