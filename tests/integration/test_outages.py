"""A broker that is away is sat out: no worker ends, nothing is lost, and soon after it is back nothing is behind."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support_streams import PARTITIONS, Reader, Workers, create_topics, send_rows

from deploy.local.kafka import LocalKafka
from schemas.settings import KafkaSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
#: Far more than any limit of the worker under test allows for.
OUTAGE_S = 25.0
READY_TIMEOUT_S = 12


class OwnBroker:
    """A broker of one test's own, to be broken."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kafka = LocalKafka()
        self._kafka.start(directory)
        self._kafka.wait_ready()
        self.settings = KafkaSettings(bootstrap=self._kafka.bootstrap, input_partitions=PARTITIONS)
        create_topics(self.settings)

    def kill(self) -> None:
        """As ``kill -9`` of its machine."""
        self._kafka.kill()

    def start(self) -> None:
        """The same one again: same data, same address."""
        port = int(self.settings.bootstrap.rpartition(":")[2])
        self._kafka.start(self._directory, port)
        self._kafka.wait_ready()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._kafka.pid is not None
        os.kill(self._kafka.pid, number)

    def close(self) -> None:
        self._kafka.stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[OwnBroker]:
    found = OwnBroker(tmp_path / "kafka")
    yield found
    found.close()


@pytest.fixture
def workers(broker: OwnBroker) -> Iterator[Workers]:
    started = Workers(broker.settings, DRIFTLINE_MONITOR__READY_TIMEOUT=f"{READY_TIMEOUT_S}s")
    yield started
    started.close()


def test_a_worker_sits_out_a_broker_that_was_killed_and_one_that_stopped(
    broker: OwnBroker, workers: Workers
) -> None:
    """Through both outages it is the same process, its memory does not grow, and every row is passed on once."""
    worker = workers.start("only", stages=3)
    worker.wait_for("ready")
    reader = Reader(broker.settings, "observations", PARTITIONS)
    send_rows(broker.settings, "predictions", range(400))
    rows = reader.rows(400)
    before_bytes = worker.rss_bytes()

    send_rows(broker.settings, "predictions", range(400, 600))
    broker.kill()
    worker.wait_for("broker-away", OUTAGE_S)
    assert not threading.Event().wait(OUTAGE_S)
    assert worker.running, worker.log[-20:]
    broker.start()
    send_rows(broker.settings, "predictions", range(600, 800))
    rows += reader.rows(400)
    assert Counter(rows) == Counter(range(800))

    broker.send_signal(signal.SIGSTOP)
    worker.wait_for("broker-away", 2 * OUTAGE_S)
    assert not threading.Event().wait(OUTAGE_S)
    assert worker.running, worker.log[-20:]
    broker.send_signal(signal.SIGCONT)
    send_rows(broker.settings, "predictions", range(800, 1_000))
    rows += reader.rows(200)
    reader.close()
    assert Counter(rows) == Counter(range(1_000))
    assert worker.rss_bytes() < before_bytes + 50_000_000
    assert worker.terminate() == 0
    # Whatever a client library had to say of it became a line of the log, and no flood: it tries again twenty times a second.
    said = [json.loads(line)["logger"] for line in worker.log]
    assert 1 <= said.count("librdkafka") < 4 * OUTAGE_S, said.count("librdkafka")


def test_a_worker_that_starts_before_its_broker_waits_for_it(broker: OwnBroker, workers: Workers) -> None:
    """Not ready, but there; and told to stop meanwhile, it goes."""
    broker.kill()
    worker, impatient = workers.start("only"), workers.start("impatient")
    for starting in (worker, impatient):
        starting.wait_for("broker-away")
    assert not threading.Event().wait(2 * READY_TIMEOUT_S)
    assert worker.running, worker.log[-20:]
    assert impatient.terminate(30.0) == 0
    broker.start()
    worker.wait_for("ready", 60.0)
    send_rows(broker.settings, "predictions", range(100))
    reader = Reader(broker.settings, "observations", PARTITIONS)
    assert Counter(reader.rows(100)) == Counter(range(100))
    reader.close()
