"""A broker that is away is sat out by what acts: no process ends, each request is answered once, the record stays whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support_scorer import deploy, requests, scorer_settings, wired
from support_streams import Worker

from deploy.controller.service import Controller, serve
from deploy.local.kafka import LocalKafka
from deploy.outage import FAILURES_MAX, Outages
from schemas.control import Decision, Deployment, PauseRequested, Phase
from schemas.errors import BrokerError
from schemas.observability import Metrics
from schemas.settings import ControllerSection, ControllerSettings, KafkaSettings, ScorerSettings
from tests.support_deploy import Wire

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
ASKED = 200
WAY_MS = 2**52


class OwnBroker(LocalKafka):
    """A broker of this module's own, to be broken."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._home = directory
        self.begin()

    def begin(self) -> None:
        """Start it; the second time as it was, at the same address."""
        self.start(self._home, self._port)
        self.wait_ready()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    with OwnBroker(tmp_path_factory.mktemp("broker")) as made:
        yield made


@pytest.fixture
def settings(broker: OwnBroker, topic_prefix: str, tmp_path: Path) -> ScorerSettings:
    return scorer_settings(broker.bootstrap, topic_prefix, tmp_path / "registry")


@pytest.fixture
def wire(settings: ScorerSettings) -> Iterator[Wire]:
    made = wired(settings)
    yield made
    made.close()


def _until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    look = threading.Event()
    for _ in range(int(timeout_s / 0.05)):
        if condition():
            return
        look.wait(0.05)
    raise AssertionError(f"not within {timeout_s:g} s")


def test_a_controller_goes_on_where_the_broker_left_it(
    broker: OwnBroker, settings: ScorerSettings, wire: Wire
) -> None:
    """Killed under a stream of requests for longer than a transaction may take: the same controller begins from what is
    on record. Every request has one answer, revisions and facts have no hole, and the page shows nothing twice."""
    made = ControllerSettings(
        kafka=settings.kafka, controller=ControllerSection(registry=settings.scorer.registry, api_port=0)
    )
    metrics, stop = Metrics(), threading.Event()
    controller = Controller(made, metrics, call_s=2.0)
    asked = [
        PauseRequested(
            request_id=f"r{n}", model="delay", cause="c", event_time_ms=0, expires_ms=WAY_MS, issued_by="p"
        )
        for n in range(ASKED)
    ]
    with Outages(made.kafka, "controller", metrics, stop) as outages:
        outages.through(controller.open)
        thread = threading.Thread(target=serve, args=(controller, outages, stop))
        thread.start()
        wire.send("control", [("delay", message.model_dump_json().encode()) for message in asked])
        wire.wait("deployments", lambda found: len(found) >= 5)
        broker.kill()
        _until(lambda: metrics.value("driftline_broker_up") == 0)
        _until(lambda: metrics.value("driftline_errors_total", where="broker") >= 1)
        assert thread.is_alive()
        broker.begin()
        wire.wait("deployments", lambda found: len(found) >= ASKED)
        _until(lambda: metrics.value("driftline_broker_up") == 1)
        stop.set()
        thread.join(120)
        assert not thread.is_alive()
    controller.close()
    revisions = [Deployment.model_validate_json(value) for value in wire.read("deployments")]
    assert [r.revision for r in revisions] == list(range(1, ASKED + 1))
    assert [r.answers[-1].request_id for r in revisions] == [message.request_id for message in asked]
    facts = [Decision.model_validate_json(value) for value in wire.read("decisions")]
    assert [fact.sequence for fact in facts] == list(range(1, ASKED + 1))
    shown = [fact.sequence for fact in controller.view.decisions(limit=10 * ASKED)]
    assert len(shown) == len(set(shown)) > 0


def test_a_broker_that_answers_and_refuses_is_no_outage(broker: OwnBroker) -> None:
    """It is asked a few times more, for it may have only just come back; then what it said ends the process."""
    tries = []

    def refused() -> None:
        tries.append(0)
        raise BrokerError("no such topic")

    kafka = KafkaSettings(bootstrap=broker.bootstrap)
    with Outages(kafka, "controller", Metrics(), threading.Event(), backoff_s=0.001) as outages:
        with pytest.raises(BrokerError, match="no such topic"):
            outages.through(refused)
        assert not outages.lately
    assert len(tries) == FAILURES_MAX + 1


def test_who_starts_before_the_broker_waits_for_it(
    broker: OwnBroker, settings: ScorerSettings, wire: Wire
) -> None:
    """Controller, scorer and trainer: there, and not ready. Told to stop meanwhile, they go; else they serve
    soon after a broker is there."""
    deploy(wire, 1, phase=Phase.SUCCEEDED)
    broker.kill()
    environment = {
        "DRIFTLINE_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "DRIFTLINE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "DRIFTLINE_KAFKA__INPUT_PARTITIONS": str(settings.kafka.input_partitions),
        "DRIFTLINE_SCORER__REGISTRY": str(settings.scorer.registry),
        "DRIFTLINE_SCORER__PROVIDER": "cpu",
        "DRIFTLINE_CONTROLLER__REGISTRY": str(settings.scorer.registry),
        "DRIFTLINE_CONTROLLER__API_PORT": "0",
        "DRIFTLINE_TRAINER__REGISTRY": str(settings.scorer.registry),
    }
    names = ("controller", "scoring", "training")
    waiting = [Worker(["-m", f"deploy.{name}"], environment) for name in names]
    impatient = Worker(["-m", "deploy.controller"], environment)
    try:
        for child in (*waiting, impatient):
            child.wait_for("broker-away", 60.0)
        assert impatient.terminate(30.0) == 0
        assert all(child.running for child in waiting)
        broker.begin()
        for child in waiting:
            child.wait_for("ready", 60.0)
        wire.send("scoring-requests", requests(0, 50), spread=True)
        wire.wait("scores", lambda found: len(found) >= 50)
        assert [child.terminate(30.0) for child in waiting] == [0, 0, 0]
    finally:
        for child in (*waiting, impatient):
            child.kill()
