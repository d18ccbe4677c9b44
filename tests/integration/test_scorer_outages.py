"""A broker that is killed or stops answering under a scorer: the same process goes on, and each request has one answer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer
from support_scorer import deploy, requests, running, scorer_settings, wired

from deploy.local.kafka import LocalKafka
from deploy.scoring.service import GROUP, run
from schemas.events import PredictionMade, Score
from schemas.observability import Metrics
from schemas.settings import ScorerSettings
from tests.support_deploy import Wire

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
#: Longer than the client's time limit of a call, so that a call in its middle has to give up.
SLEEP_S = 7.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LocalKafka]:
    """A broker of this test's own, to be broken."""
    with LocalKafka() as made:
        made.start(tmp_path / "kafka")
        made.wait_ready()
        yield made


@pytest.fixture
def settings(broker: LocalKafka, tmp_path: Path) -> ScorerSettings:
    return scorer_settings(broker.bootstrap, "", tmp_path / "registry")


@pytest.fixture
def wire(settings: ScorerSettings) -> Iterator[Wire]:
    made = wired(settings)
    yield made
    made.close()


def _answered_once(wire: Wire, total: int) -> None:
    wanted = {f"q{at}": 1 for at in range(total)}
    assert Counter(Score.model_validate_json(v).request_id for v in wire.read("scores")) == wanted
    assert (
        Counter(PredictionMade.model_validate_json(v).prediction_id for v in wire.read("predictions"))
        == wanted
    )


def test_killed_brokers_come_back_to_the_same_scorer(
    broker: LocalKafka, settings: ScorerSettings, wire: Wire, tmp_path: Path
) -> None:
    """Three times kill -9 in the middle of transactions; the scorer never ends, and nothing is lost or doubled."""
    port = int(broker.bootstrap.rpartition(":")[2])
    deploy(wire, 1)
    wire.send("scoring-requests", requests(0, 12_000), spread=True)
    metrics = Metrics()
    with running(settings, metrics):
        for enough in (500, 3_000, 6_000):
            wire.wait("scores", lambda found, enough=enough: len(found) >= enough)
            broker.kill()
            broker.start(tmp_path / "kafka", port)
            broker.wait_ready()
        wire.wait("scores", lambda found: len(found) >= 12_000, timeout_s=200)
        wire.send("scoring-requests", requests(12_000, 100), spread=True)
        wire.wait("scores", lambda found: len(found) >= 12_100)
    _answered_once(wire, 12_100)
    print(f"writers replaced: {metrics.value('driftline_writers_replaced_total'):g}")


def test_a_broker_that_sleeps_is_sat_out(broker: LocalKafka, settings: ScorerSettings, wire: Wire) -> None:
    """It holds every connection and answers nothing for longer than a call may take."""
    deploy(wire, 1)
    wire.send("scoring-requests", requests(0, 6_000), spread=True)
    assert broker.pid is not None
    with running(settings):
        wire.wait("scores", lambda found: len(found) >= 500)
        os.kill(broker.pid, signal.SIGSTOP)
        threading.Timer(SLEEP_S, os.kill, (broker.pid, signal.SIGCONT)).start()
        wire.wait("scores", lambda found: len(found) >= 6_000, timeout_s=200)
    _answered_once(wire, 6_000)


def test_a_scorer_whose_name_is_taken_ends_instead_of_falling_silent(
    settings: ScorerSettings, wire: Wire
) -> None:
    """Its consumer reads nothing any more and says so once; whoever started the process starts it again."""
    deploy(wire, 1)
    wire.send("scoring-requests", requests(0, 10), spread=True)
    stop, status = threading.Event(), list[int]()
    thread = threading.Thread(target=lambda: status.append(run(settings, stop)))
    thread.start()
    try:
        wire.wait("scores", lambda found: len(found) >= 10)
        named = settings.kafka.consumer(GROUP, **{"group.instance.id": f"{GROUP}-{settings.scorer.instance}"})
        taker = Consumer(named)
        taker.subscribe([settings.kafka.topic("scoring-requests")])
        deadline_s = time.monotonic() + 120
        while thread.is_alive() and time.monotonic() < deadline_s:
            taker.poll(0.2)
        taker.close()
        assert not thread.is_alive()
    finally:
        stop.set()
        thread.join(120)
    assert status == [70]
