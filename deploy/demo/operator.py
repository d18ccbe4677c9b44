"""Why: two things in the demo's year are a person's: asking for the first model, and deploying one with a defect.

The operator works as one would: the retrain and the deploy go through the controller's HTTP API, the third version is
trained by the shipped trainer on labelled rows from ClickHouse and registered with a signature like any other. Its
defect is real and ordinary: its feature pipeline takes the departure hour in UTC where the model learnt local time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import clickhouse_connect
import httpx

from deploy.demo.watch import LoopWatch
from deploy.local.platform import Platform
from deploy.models import publish_records
from deploy.registry import Lineage, Registry
from deploy.training.candidate import train
from deploy.training.extract import take_snapshot
from deploy.training.packing import pack
from deploy.training.trainers import trainer_for
from schemas.contracts import ModelContract, ModelRecord
from schemas.control import TrainingFinished
from schemas.errors import PlatformError
from schemas.signing import Signer

#: Hours between New York's summer clock and UTC.
UTC_AHEAD_HOURS = 4
WAIT_S = 180.0
NAME = "operator"


class Operator:
    """A person with access to the API and the registry."""

    def __init__(self, platform: Platform, contract: ModelContract, watch: LoopWatch) -> None:
        self._platform = platform
        self._contract = contract
        self._watch = watch

    def first_training(self) -> None:
        """Ask for the model's first version and wait until it has the traffic."""
        model = self._contract.model
        self._post("retrain", {"by": NAME, "reason": "the first version"})
        self._watch.wait(
            lambda: self._stable() is not None or self._failed() is not None, WAIT_S, "the first version"
        )
        if self._stable() is None:
            raise PlatformError(f"the first training of {model} ended with: {self._failed()}")

    def deploy_candidate(self, *, healthy: bool) -> str:
        """Train the third version as of now, break its pipeline unless ``healthy``, and ask for its rollout."""
        self._watch.wait(lambda: not self._busy(), WAIT_S, "an earlier rollout to end")
        now_ms = self._watch.watermark_ms
        with clickhouse_connect.get_client(**self._platform.clickhouse.client()) as client:
            snapshot = take_snapshot(client, self._contract, now_ms)
        trained = train(snapshot, self._contract, trainer_for(self._contract))
        if not healthy:
            trained = replace(trained, encoder=trained.encoder.with_hour_shift(UTC_AHEAD_HOURS))
        registry = Registry(self._platform.registry, Signer.load(self._platform.signing_key))
        record = registry.register(
            self._contract,
            pack(trained, self._contract),
            Lineage(
                parent=self._stable(), snapshot=snapshot.content_hash(), cause=NAME, created_event_ms=now_ms
            ),
            metrics=trained.metrics,
        )
        publish_records(self._platform.kafka, [ModelRecord(version=record)])
        self.deploy(record.version, "retrained on the summer")
        return record.version

    def deploy(self, version: str, reason: str) -> None:
        """Ask for the rollout of a registered version; PlatformError when the controller refuses."""
        self._post("deploy", {"by": NAME, "version": version, "reason": reason})

    def rollout_open(self) -> bool:
        """Whether another version is on its way to the traffic."""
        deployment = self._watch.newest(self._contract.model)
        return deployment is not None and deployment.candidate is not None

    def _busy(self) -> bool:
        deployment = self._watch.newest(self._contract.model)
        return deployment is not None and deployment.training is not None

    def _stable(self) -> str | None:
        deployment = self._watch.newest(self._contract.model)
        return None if deployment is None else deployment.stable

    def _failed(self) -> str | None:
        reports = self._watch.of_type(TrainingFinished)
        return reports[-1].record.detail if reports and reports[-1].record.outcome != "registered" else None

    def _post(self, verb: str, body: dict[str, Any]) -> None:
        """One call of the API, then wait for the controller's answer."""
        url = f"{self._platform.api_url}/v1/deployments/{self._contract.model}/{verb}"
        response = httpx.post(url, json=body | {"event_time_ms": self._watch.watermark_ms}, timeout=30)
        if response.status_code != 202:
            raise PlatformError(f"{url} answered {response.status_code}: {response.text}")
        request_id = response.json()["request_id"]
        self._watch.wait(lambda: self._watch.answer(request_id) is not None, WAIT_S, f"an answer to {verb}")
        answer = self._watch.answer(request_id)
        assert answer is not None
        if answer.outcome not in ("accepted", "done"):
            raise PlatformError(f"{verb} was {answer.outcome}: {answer.detail}")
