"""The registry's bucket goes away: what is loaded goes on answering, what is not waits, and nobody calls a version bad."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support_s3 import BUCKET, S3Server
from support_scorer import deploy, requests, running

from deploy.controller.service import Controller
from deploy.local.kafka import LocalKafka
from deploy.models import publish_records
from deploy.registry import Lineage, Registry
from deploy.store.address import open_store
from schemas.contracts import ModelRecord
from schemas.control import (
    Command,
    ControlTick,
    Deployment,
    DeployRequested,
    PauseReason,
    Phase,
    PromoteRequested,
    RollbackRequested,
)
from schemas.events import Score
from schemas.observability import Metrics
from schemas.settings import (
    ControllerSection,
    ControllerSettings,
    KafkaSettings,
    ScorerSection,
    ScorerSettings,
)
from tests.support_deploy import CONTRACT, Wire, artifact

pytestmark = pytest.mark.integration


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    """A store of this test's own, to be taken away."""
    made = S3Server(tmp_path / "s3")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str, server: S3Server, tmp_path: Path) -> ScorerSettings:
    """One scorer with a cache of its own; versions 1 and 2 are in the bucket."""
    address = f"s3://{BUCKET}/registry"
    registry = Registry(open_store(address, server.settings()))
    for flip in (False, True):
        registry.register(CONTRACT, artifact(flip=flip), Lineage())
    return ScorerSettings(
        kafka=KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, input_partitions=2),
        scorer=ScorerSection(provider="cpu", registry=address),
        s3=server.settings(timeout=3_000, cache=tmp_path / "cache"),
    )


class Traffic:
    """Requests one after the other, and who answered them."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._sent = 0

    def answered_by(self) -> set[str]:
        """Versions that answered the next twenty requests, or the fallback."""
        self._wire.send("scoring-requests", requests(self._sent, 20), spread=True)
        self._sent += 20
        found = self._wire.wait("scores", lambda values: len(values) >= self._sent)
        return {Score.model_validate_json(value).version for value in found[-20:]}

    def until(self, version: str) -> None:
        """Ask until ``version`` answers."""
        ends = time.monotonic() + 120
        while time.monotonic() < ends:
            if self.answered_by() == {version}:
                return
        pytest.fail(f"version {version} never answered")


def test_a_scorer_sits_out_the_absence_of_its_registry(
    settings: ScorerSettings, server: S3Server, tmp_path: Path
) -> None:
    """A revision whose version cannot be fetched waits while the one before answers; a start lives from the cache."""
    wire, metrics = Wire(settings.kafka), Metrics()
    registry = Registry(open_store(settings.scorer.registry, server.settings()))
    records = {version: ModelRecord(version=registry.record("delay", version)) for version in ("1", "2")}
    publish_records(settings.kafka, [ModelRecord(contract=CONTRACT), records["1"]])
    deploy(wire, 1)
    traffic = Traffic(wire)

    def waits(count: int) -> bool:
        return metrics.value("driftline_awaited_versions", model="delay") == count

    with running(settings, metrics):
        assert traffic.answered_by() == {"1"}
        with server.away():
            publish_records(settings.kafka, [records["2"]])
            deploy(wire, 2, stable="2", weights={"2": 1.0})
            wire.wait("control", lambda _: waits(1))
            assert traffic.answered_by() == {"1"}
            wire.wait("control", lambda found: any(b'"awaiting":{"2":' in value for value in found))
        traffic.until("2")
        wire.wait("control", lambda found: any(b'"awaiting":{}' in value for value in found))
        assert waits(0)
    with server.away(), running(settings):
        assert traffic.answered_by() == {"2"}
    bare = settings.model_copy(update={"s3": settings.s3.model_copy(update={"cache": tmp_path / "empty"})})
    with ExitStack() as absence:
        absence.enter_context(server.away())
        with running(bare, metrics):
            assert traffic.answered_by() == {"fallback"}
            assert not waits(0)
            absence.close()
            traffic.until("2")
    assert not any(b'"failed":{"' in value for value in wire.read("control"))
    wire.close()


def test_a_rollout_waits_for_the_registry_and_nothing_else_does(
    settings: ScorerSettings, server: S3Server
) -> None:
    """Paused for the typed reason, then begun; the controller's turns stay short, and what was read before is enough to
    roll back."""
    wire = Wire(settings.kafka)
    registry = Registry(open_store(settings.scorer.registry, server.settings()))
    records = [ModelRecord(version=registry.record("delay", version)) for version in ("1", "2")]
    publish_records(settings.kafka, [ModelRecord(contract=CONTRACT), *records])
    controller = Controller(
        ControllerSettings(
            kafka=settings.kafka,
            # Whoever waited for the registry itself would be a minute at it.
            s3=settings.s3.model_copy(update={"timeout": 60_000}),
            controller=ControllerSection(registry=settings.scorer.registry, api_port=0),
        ),
        Metrics(),
    )
    controller.open()
    numbers, longest_s = itertools.count(1), 0.0

    def until(reached: Callable[[Deployment], bool], command: Command | None = None) -> Deployment:
        """Let time pass, and ``command`` be obeyed, until a deployment is as wished."""
        nonlocal longest_s
        if command is not None:
            wire.send("control", [("delay", command.model_dump_json().encode())])
        ends = time.monotonic() + 120
        while time.monotonic() < ends:
            at = next(numbers)
            ticks = [ControlTick(event_time_ms=at, source=f"policy/{p}") for p in range(2)]
            wire.send("control", [("delay", tick.model_dump_json().encode()) for tick in ticks])
            started = time.perf_counter()
            controller.turn()
            longest_s = max(longest_s, time.perf_counter() - started)
            now = controller.view.deployments().get("delay")
            if now is not None and reached(now):
                return now
        pytest.fail(f"never reached; the last one is {now}")

    def asked(kind: type[Any], version: str) -> Command:
        made: Command = kind(
            request_id=f"{kind.__name__}-{version}", model="delay", version=version, cause="c", event_time_ms=0,
            expires_ms=2**52, issued_by="p",
        )  # fmt: skip
        return made

    try:
        until(lambda now: now.stable == "1", asked(DeployRequested, "1"))
        with server.away():
            now = until(lambda now: now.candidate == "2", asked(DeployRequested, "2"))
            assert (now.phase, now.pause, now.weights) == (Phase.PAUSED, PauseReason.REGISTRY, {"1": 1.0})
            for _ in range(3):
                assert until(lambda _: True).revision == now.revision
        began = until(lambda now: now.rollout_since_ms is not None)
        assert (began.phase, began.pause) == (Phase.PROGRESSING, None)
        until(lambda now: now.stable == "2", asked(PromoteRequested, "2"))
        with server.away():
            longest_s = 0.0
            until(lambda now: now.stable == "1", asked(RollbackRequested, "2"))
            assert longest_s < 20
    finally:
        controller.close()
        wire.close()
