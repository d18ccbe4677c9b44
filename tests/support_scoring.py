"""What the tests of the scorer share: requests as Kafka's client hands them out."""

from __future__ import annotations

import json
from typing import Any

from deploy.registry import Registry
from deploy.scoring.answers import shadow_records
from deploy.scoring.core import ScoringCore
from deploy.scoring.engine import Engine
from schemas.control import Deployment, Phase
from schemas.events import DeadLetter, PredictionMade, Score
from schemas.ids import partition_of
from schemas.observability import Metrics
from schemas.settings import ScorerSection
from tests.support_deploy import CONTRACT, START_MS, feature_row, rows

CPU = ScorerSection(provider="cpu")


class Incoming:
    """One record of ``scoring-requests``, with the methods of the client's ``Message``."""

    def __init__(
        self,
        value: bytes | None,
        partition: int = 0,
        offset: int = 0,
        key: bytes | None = None,
        headers: Any = None,
        arrived_ms: int = 0,
    ) -> None:
        self._value, self._key, self._headers = value, key, headers
        self._partition, self._offset, self._arrived_ms = partition, offset, arrived_ms

    def topic(self) -> str:
        return "scoring-requests"

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Any:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 1, self._arrived_ms


def deploy(revision: int = 1, **changes: Any) -> Deployment:
    """A revision of the deployment of ``delay``; all traffic to version 1."""
    base: dict[str, Any] = {"phase": Phase.STEADY, "stable": "1", "weights": {"1": 1.0}}
    return Deployment(model="delay", revision=revision, **(base | changes))


def deploy_canary(revision: int, weight: float, effective_ms: int = 0, **changes: Any) -> Deployment:
    """Version 2 beside 1 with its share, 0 as the one before."""
    base: dict[str, Any] = {
        "phase": Phase.PROGRESSING,
        "candidate": "2",
        "previous": "0",
        "weights": {"1": 1 - weight, "2": weight},
        "effective_ms": effective_ms,
    }
    return deploy(revision, **(base | changes))


def make_core(registry: Registry, *deployments: Deployment, **options: Any) -> ScoringCore:
    """A core on the CPU that has heard of the contract and these deployments, and loaded what they need."""
    engine = Engine(registry, CPU)
    core = ScoringCore(engine, Metrics(), clock_ms=lambda: 1_003.5, **options)
    model = core.model("delay")
    model.contract(CONTRACT)
    for deployment in deployments:
        model.routes.add(deployment)
    engine.load("delay", model.routes.versions(), {})
    model.failed = frozenset(engine.failed("delay"))
    return core


def ask(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Requests q0, q1, ... as JSON objects."""
    table, _, event_ms = rows(count, seed=5)
    return [
        {
            "request_id": f"q{at}",
            "model": "delay",
            "event_time_ms": int(event_ms[at]),
            "features": feature_row(table, at),
            "entity": f"e{at}",
        }
        | changes
        for at in range(count)
    ]


def arrived(*values: bytes | None) -> list[Incoming]:
    """Values as records of partition 2 from offset 40 on."""
    return [Incoming(value, partition=2, offset=40 + at, key=b"k") for at, value in enumerate(values)]


def run(
    core: ScoringCore, *values: bytes | None
) -> tuple[list[PredictionMade], list[Score], list[DeadLetter]]:
    """Score, write, and score the shadows: predictions, answers and dead letters as their readers see them."""
    scored = core.score(arrived(*values), [1_000.0] * len(values), now_ms=START_MS)
    records = scored.records(4)
    for topic in ("scores", "predictions"):
        assert all(out["partition"] == partition_of(out["key"], 4) for out in records[topic])
    records["predictions"] += [
        record for job in scored.shadows for record in shadow_records(core.shadow(job), 4)
    ]
    return (
        [PredictionMade.model_validate_json(out["value"]) for out in records["predictions"]],
        [Score.model_validate_json(out["value"]) for out in records["scores"]],
        [DeadLetter.model_validate_json(out["value"]) for out in records["dead-letters"]],
    )


def dump(requests: list[dict[str, Any]]) -> list[bytes]:
    """Requests as bytes."""
    return [json.dumps(request).encode() for request in requests]
