"""What the trainer says to the rest, in one transaction: a report and its alert are there together or not at all.

The transactional id is the trainer's alone, so a second one that is started by mistake puts the first out of work instead
of reporting beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, Producer

from deploy.outage import FENCED
from schemas.base import Message
from schemas.control import Alert
from schemas.errors import BrokerError, Fenced
from schemas.settings import QUIET, KafkaSettings

_TIMEOUT_S = 30.0
_TRANSACTION_TIMEOUT_MS = 5_000


class Outbox:
    """A transactional producer. Every method raises BrokerError when the broker does not take what it is given,
    Fenced when another trainer has taken over."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._producer = Producer(
            kafka.producer(
                **{
                    "transactional.id": f"{kafka.topic_prefix}driftline-trainer",
                    # A trainer that dies within one holds up everyone who reads `control` until it is timed out.
                    "transaction.timeout.ms": _TRANSACTION_TIMEOUT_MS,
                    **QUIET,
                }
            )
        )
        self._guarded(lambda: self._producer.init_transactions(_TIMEOUT_S))

    def send(
        self,
        commands: Sequence[Message],
        alerts: Sequence[Alert] = (),
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Write ``commands`` to ``control`` and ``alerts`` to ``alerts``, all or none."""

        def write() -> None:
            self._producer.begin_transaction()
            for command in commands:
                self._produce("control", str(getattr(command, "model", "")), command)
            for alert in alerts:
                self._produce("alerts", alert.dedup_key, alert)
            before_commit()
            self._producer.commit_transaction(_TIMEOUT_S)

        self._guarded(write)

    def close(self) -> None:
        """Let go of the broker."""
        self._producer.close()

    def _produce(self, topic: str, key: str, message: Message) -> None:
        self._producer.produce(self._kafka.topic(topic), message.model_dump_json().encode(), key.encode())

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (KafkaException, BufferError) as error:
            if error.args and isinstance(error.args[0], KafkaError) and error.args[0].code() in FENCED:
                raise Fenced(f"another trainer runs with the same topic prefix: {error}") from error
            raise BrokerError(
                f"what the trainer has to say could not be written: {error}; is the broker up?"
            ) from error
