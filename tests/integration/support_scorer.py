"""What the tests of the scorer on a real Kafka share: requests, deployments, versions, and a scorer in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.models import publish_records
from deploy.registry import Lineage, Registry
from deploy.scoring.service import run
from schemas.contracts import ModelRecord
from schemas.control import Deployment, Phase
from schemas.observability import Metrics
from schemas.settings import KafkaSettings, ScorerSection, ScorerSettings
from tests.support_deploy import CONTRACT, Wire, artifact, feature_row, rows


def scorer_settings(bootstrap: str, prefix: str, registry: Path) -> ScorerSettings:
    """One scorer with small batches, on the CPU; versions 1 and 2 are in its registry."""
    for flip in (False, True):
        Registry(registry).register(CONTRACT, artifact(flip=flip), Lineage())
    return ScorerSettings(
        kafka=KafkaSettings(
            bootstrap=bootstrap, topic_prefix=prefix, input_partitions=2, session_timeout=6_000
        ),
        scorer=ScorerSection(provider="cpu", registry=registry, batch_rows_max=64),
    )


def wired(settings: ScorerSettings) -> Wire:
    """Topics made, contract and both versions published."""
    made = Wire(settings.kafka)
    registry = Registry(settings.scorer.registry)
    records = [ModelRecord(contract=CONTRACT)]
    records += [ModelRecord(version=registry.record("delay", version)) for version in ("1", "2")]
    publish_records(settings.kafka, records)
    return made


def requests(first: int, count: int) -> list[tuple[str, bytes]]:
    """``count`` requests from ``q{first}`` on, by key."""
    table, _, event_ms = rows(count, seed=first)
    found = []
    for at in range(count):
        identity = f"q{first + at}"
        request: dict[str, Any] = {
            "request_id": identity,
            "model": "delay",
            "event_time_ms": int(event_ms[at]),
            "features": feature_row(table, at),
        }
        found.append((identity, json.dumps(request).encode()))
    return found


def deploy(wire: Wire, revision: int, **changes: Any) -> None:
    """Publish a revision; by default everything goes to version 1."""
    base: dict[str, Any] = {"phase": Phase.STEADY, "stable": "1", "weights": {"1": 1.0}}
    deployment = Deployment(model="delay", revision=revision, **(base | changes))
    wire.send("deployments", [("delay", deployment.model_dump_json().encode())])


@contextmanager
def running(settings: ScorerSettings, metrics: Metrics | None = None) -> Iterator[None]:
    """A scorer on a thread of this process; it must end in peace."""
    stop = threading.Event()
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(run(settings, stop, metrics)))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(120)
    assert status == [0]
