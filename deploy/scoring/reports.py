"""What a scorer tells the controller: versions it tripped, could not load, or proved. Facts on `control`, signed."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import Producer

from deploy.scoring.core import ScoringCore
from schemas.control import ScorerReport
from schemas.ids import content_hash
from schemas.settings import QUIET, KafkaSettings
from schemas.signing import Signer

_DAY_MS = 86_400_000


class Reports:
    """Publishes an instance's facts. ``event_time_ms()`` says how far event time is known to be."""

    def __init__(
        self,
        kafka: KafkaSettings,
        instance: str,
        core: ScoringCore,
        signer: Signer | None,
        event_time_ms: Callable[[], int],
    ) -> None:
        self._topic = kafka.topic("control")
        self._instance = instance
        self._core = core
        self._signer = signer
        self._producer = Producer(kafka.producer(**{"linger.ms": 0, **QUIET}))
        self._event_time_ms = event_time_ms

    def report(
        self,
        model: str,
        revision: int,
        *,
        tripped: tuple[str, ...] = (),
        failed: dict[str, str] | None = None,
        golden: dict[str, bool] | None = None,
        awaiting: dict[str, str] | None = None,
        about: str = "",
    ) -> None:
        """Publish a fact. The id repeats when the same fact is told again. ``awaiting``: all that now is, if that is new."""
        routes, now_ms = self._core.model(model).routes, self._event_time_ms()
        newest = routes.newest
        parts = (self._instance, model, revision, about, sorted(tripped), failed, golden, awaiting)
        fact = ScorerReport(
            request_id=f"scorer-{content_hash(repr(parts).encode())[:24]}",
            model=model,
            deployment_revision=revision,
            cause=about or "scorer",
            event_time_ms=now_ms,
            expires_ms=now_ms + _DAY_MS,
            issued_by=f"scorer/{self._instance}",
            instance=self._instance,
            tripped=tripped,
            failed=failed or {},
            golden=golden or {},
            awaiting=awaiting,
            serving=dict(newest.traffic_in(routes.region)[0]) if newest else {},
        )
        if self._signer is not None:
            fact = self._signer.sign(fact)
        self._producer.produce(self._topic, fact.model_dump_json().encode(), model.encode())
        self._producer.poll(0)

    def close(self) -> None:
        self._producer.flush(5)
        self._producer.close()
