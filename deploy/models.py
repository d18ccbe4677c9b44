"""Why: contracts and versions reach every process through one compacted topic; this is the one way onto it, and
a way to look one up."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import KafkaError, Message, Producer

from deploy.broadcast import Broadcast
from schemas.contracts import ModelContract, ModelRecord, ModelVersion
from schemas.errors import BrokerError, ConfigurationError
from schemas.settings import KafkaSettings


def publish_records(kafka: KafkaSettings, records: Sequence[ModelRecord], timeout_s: float = 30.0) -> None:
    """Write ``records`` to ``models`` and wait until the broker has them. Raises BrokerError if it does not."""
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
        raise BrokerError(f"could not publish to {kafka.topic('models')}: {failed or f'{left} still unsent'}")


def read_model(kafka: KafkaSettings, model: str) -> tuple[ModelContract, dict[str, ModelVersion]]:
    """The contract of ``model`` and its registered versions by name. Raises BrokerError when it cannot be read, and
    ConfigurationError, listing the models there are, when nobody published a contract for it."""
    contracts: dict[str, ModelContract] = {}
    versions: dict[str, ModelVersion] = {}
    with Broadcast(kafka, ["models"]) as topic:
        for message in topic.read_to_end():
            key, value = (message.key() or b"").decode(errors="replace"), message.value()
            if value is None:
                contracts.pop(key, None)
                versions.pop(key.removeprefix(f"{model}/"), None)
                continue
            try:
                record = ModelRecord.model_validate_json(value)
            except ValueError:
                continue  # the services report it; here it is no model to ask for
            if record.contract is not None:
                contracts[record.contract.model] = record.contract
            elif record.version is not None and record.version.model == model:
                versions[record.version.version] = record.version
    if model not in contracts:
        raise ConfigurationError(
            f"no contract of model {model!r} is published; there are: {', '.join(sorted(contracts)) or 'none'}"
        )
    return contracts[model], versions
