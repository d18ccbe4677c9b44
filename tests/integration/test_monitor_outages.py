"""The whole monitor when something beside it fails: a producer that writes garbage, a warehouse that is away."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from confluent_kafka import Producer
from support_streams import Reader, Worker, create_topics, is_tick, send_ticks

from deploy.local.children import free_port
from deploy.local.kafka import LocalKafka
from deploy.local.warehouse import LocalWarehouse
from schemas import migrations
from schemas.blocks import decode_block
from schemas.contracts import DetectorConfig, Feature, ModelContract, ModelRecord, Monitoring, Policy, Rule
from schemas.control import Deployment, Phase
from schemas.ids import partition_of
from schemas.settings import ClickHouseSettings, KafkaSettings
from schemas.verdicts import Family

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
PARTITIONS = 2
MODEL = "m"
T0 = 1_700_000_000_000
SECOND = 1_000
OUTAGE_S = 20.0
#: What waits for the warehouse grows by the window, and a fast machine would send hours of them in an outage of seconds.
SECONDS_MAX = 600
CONTRACT = ModelContract(
    model=MODEL,
    features=(Feature(name="x"),),
    monitoring=Monitoring(
        window=5 * SECOND,
        allowed_lateness=SECOND,
        label_horizon=3_600 * SECOND,
        detectors=(
            DetectorConfig(
                name="judge",
                kind="paired-judge",
                stream="comparison",
                roles=("canary",),
                options={"block_ms": SECOND},
            ),
        ),
    ),
    policy=Policy(
        rules=(
            Rule(
                name="canary-harm",
                families=(Family.COMPARISON,),
                roles=("canary",),
                severity="page",
                action="rollback",
            ),
        )
    ),
)


class Deployed:
    """One deployment on the shared broker, a monitor over it, and the test's hands on its topics."""

    def __init__(self, kafka: LocalKafka, prefix: str) -> None:
        self.kafka = KafkaSettings(
            bootstrap=kafka.bootstrap, topic_prefix=prefix, input_partitions=PARTITIONS
        )
        create_topics(self.kafka)
        self.producer = Producer(self.kafka.producer(**{"linger.ms": 0}))
        self._metrics_port = free_port()
        self._workers: list[Worker] = []
        self.publish(CONTRACT)

    def start(self, **environment: str) -> Worker:
        settings = {
            "DRIFTLINE_KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "DRIFTLINE_KAFKA__TOPIC_PREFIX": self.kafka.topic_prefix,
            "DRIFTLINE_KAFKA__INPUT_PARTITIONS": str(PARTITIONS),
            "DRIFTLINE_KAFKA__SESSION_TIMEOUT": "3s",
            "DRIFTLINE_MONITOR__INSTANCE": "only",
            "DRIFTLINE_MONITOR__TICKER": "off",
            "DRIFTLINE_MONITOR__COMMIT_INTERVAL": "100ms",
            "DRIFTLINE_METRICS_PORT": str(self._metrics_port),
        }
        worker = Worker(["-m", "streams", "monitor"], settings | environment)
        self._workers.append(worker)
        return worker

    def publish(self, contract: ModelContract) -> None:
        value = ModelRecord(contract=contract).model_dump_json().encode()
        self.producer.produce(self.kafka.topic("models"), value, contract.model.encode())
        assert self.producer.flush(30) == 0

    def send(self, topic: str, document: dict[str, Any]) -> None:
        """One event under its own key."""
        key = document["prediction_id"].encode()
        self.producer.produce(
            self.kafka.topic(topic), json.dumps(document).encode(), key, partition_of(key, PARTITIONS)
        )

    def garbage(self, count: int, partition: int) -> None:
        for _ in range(count):
            self.producer.produce(self.kafka.topic("predictions"), b"{half", b"k", partition)

    def tick(self, event_time_ms: int) -> None:
        for topic in ("predictions", "feedback"):
            send_ticks(self.producer, self.kafka, topic, event_time_ms)

    def asked(self, path: str) -> tuple[int, str]:
        """Status and body of the monitor's own endpoint."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def documents(self, topic: str, partitions: int, enough: Callable[[list[bytes]], bool]) -> list[bytes]:
        """Values of committed records that are no ticks, from the topic's beginning until there are ``enough``."""
        reader = Reader(self.kafka, topic, partitions)
        found: list[bytes] = []
        deadline_s = time.monotonic() + 120
        while not enough(found):
            assert time.monotonic() < deadline_s, (topic, len(found), self._workers[-1].log[-20:])
            message = reader.poll(0.2)
            if message is not None and not is_tick(message):
                found.append(message.value() or b"")
        reader.close()
        return found

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()


@pytest.fixture
def deployed(kafka: LocalKafka, topic_prefix: str) -> Iterator[Deployed]:
    found = Deployed(kafka, topic_prefix)
    yield found
    found.close()


def prediction(
    identity: str, at_ms: int, score: float, version: str = "1", role: str = "stable"
) -> dict[str, Any]:
    return {"prediction_id": identity, "model": MODEL, "version": version, "role": role, "event_time_ms": at_ms,
            "features": {"x": 0.5}, "score": score}  # fmt: skip


def observed(values: list[bytes]) -> int:
    return sum(len(block) for block in map(decode_block, values) if block.kind == "predictions")


def on(partition: int, start: int, count: int) -> list[str]:
    """``count`` prediction ids that belong to a partition."""
    found: list[str] = []
    number = start
    while len(found) < count:
        if partition_of(f"p{number}".encode(), PARTITIONS) == partition:
            found.append(f"p{number}")
        number += 1
    return found


def test_a_broken_producer_halts_its_partition_for_all_to_see_and_loses_nothing(deployed: Deployed) -> None:
    """Not ready, a metric and a log line that says what is wrong; the other partition goes on. Once a contract lets the
    garbage pass, it is dead-lettered, and what came before, between and after it is observed, once each."""
    worker = deployed.start(DRIFTLINE_MONITOR__WAREHOUSE="false")
    worker.wait_for("ready")
    assert deployed.asked("/healthz")[0] == 200
    mine, theirs = on(0, 0, 600), on(1, 100_000, 100)
    for identity in mine[:300]:
        deployed.send("predictions", prediction(identity, T0, 0.5))
    assert deployed.producer.flush(30) == 0
    deployed.documents("observations", PARTITIONS, lambda found: observed(found) == 300)
    deployed.garbage(1_000, 0)
    for identity in mine[300:]:
        deployed.send("predictions", prediction(identity, T0, 0.5))
    assert deployed.producer.flush(30) == 0
    halted = worker.wait_for("halted")
    assert halted["task"] == "join/0"
    assert "not-json" in halted["message"] and "bad_share_max" in halted["message"]
    assert deployed.asked("/healthz")[0] == 503
    assert re.search(r'driftline_halted\{partition="0",stage="join"\} 1\.0', deployed.asked("/metrics")[1])

    for identity in theirs:
        deployed.send("predictions", prediction(identity, T0, 0.5))
    assert deployed.producer.flush(30) == 0
    deployed.documents("observations", PARTITIONS, lambda found: observed(found) == 400)
    assert worker.running

    lenient = CONTRACT.monitoring.model_copy(update={"bad_share_max": 1.0})
    deployed.publish(CONTRACT.model_copy(update={"monitoring": lenient}))
    assert worker.wait() == 70, "whoever starts it again gives it the new contract"
    worker = deployed.start(DRIFTLINE_MONITOR__WAREHOUSE="false")
    worker.wait_for("ready")
    letters = deployed.documents("dead-letters", 1, lambda found: len(found) >= 1_000)
    where = Counter((d["partition"], d["offset"], d["reason"]) for d in map(json.loads, letters))
    assert where == Counter((0, offset, "not-json") for offset in range(300, 1_300))
    values = deployed.documents("observations", PARTITIONS, lambda found: observed(found) >= 700)
    rows = Counter(
        (int(p), int(o))
        for block in map(decode_block, values)
        for p, o in zip(block.partition, block.offset, strict=True)
    )
    assert len(rows) == 700 and set(rows.values()) == {1}
    assert deployed.asked("/healthz")[0] == 200
    assert worker.terminate() == 0


@pytest.fixture
def own_warehouse(
    tmp_path: Path, unique_name: str
) -> Iterator[tuple[LocalWarehouse, ClickHouseSettings, Path]]:
    """A warehouse of one test's own, with every table in a database."""
    with LocalWarehouse() as server:
        server.start(tmp_path / "warehouse")
        server.wait_ready()
        settings = ClickHouseSettings(host=server.host, port=server.port, database=unique_name, timeout=2_000)
        with clickhouse_connect.get_client(host=server.host, port=server.port) as client:
            client.command(f"CREATE DATABASE {unique_name}")
        with clickhouse_connect.get_client(**settings.client()) as client:
            migrations.apply(client)
        yield server, settings, tmp_path / "warehouse"


def counted(settings: ClickHouseSettings) -> int:
    """Predictions in the aggregates, as an analyst sees them."""
    with clickhouse_connect.get_client(**settings.client()) as client:
        rows = client.query(
            "SELECT sum(predictions) FROM (SELECT argMax(predictions, version) AS predictions FROM window_counts "
            "WHERE segment = '' GROUP BY window_start, window_ms, model, model_version, role, source_partition)"
        ).result_rows
    return int(rows[0][0] or 0)


def until(condition: Callable[[], bool], worker: Worker, timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s and worker.running, worker.log[-20:]
        time.sleep(0.1)


def test_without_a_warehouse_a_harmful_version_is_rolled_back_and_no_figure_is_lost(
    deployed: Deployed, own_warehouse: tuple[LocalWarehouse, ClickHouseSettings, Path]
) -> None:
    """The acting path does not wait for it; the aggregates do, in bounded memory, and are all there when it is back."""
    warehouse, settings, directory = own_warehouse
    canary = Deployment(model=MODEL, revision=1, phase=Phase.PROGRESSING, stable="1", candidate="2",
                        weights={"1": 0.9, "2": 0.1}, shadow=("2", "1"))  # fmt: skip
    deployed.producer.produce(
        deployed.kafka.topic("deployments"), canary.model_dump_json().encode(), MODEL.encode()
    )
    worker = deployed.start(
        DRIFTLINE_CLICKHOUSE__PORT=str(settings.port),
        DRIFTLINE_CLICKHOUSE__DATABASE=settings.database,
        DRIFTLINE_CLICKHOUSE__TIMEOUT="2s",
    )
    worker.wait_for("ready")
    sent = 0

    def second(number: int, harm: bool) -> None:
        """One second of event time: both versions score the same requests, and labels come at once."""
        nonlocal sent
        at_ms = T0 + number * SECOND
        for one in range(20):
            identity, label = f"p{number}-{one}", float(one % 2)
            wrong = 1.0 - label if harm else label
            deployed.send("predictions", prediction(identity, at_ms, 0.8 * label + 0.1))
            deployed.send("predictions", prediction(identity, at_ms, 0.8 * wrong + 0.1, "2", "canary"))
            truth = {"prediction_id": identity, "model": MODEL, "label": label, "label_time_ms": at_ms + 10}
            deployed.send("feedback", truth)
            sent += 2
        deployed.tick(at_ms + SECOND)

    for number in range(20):
        second(number, harm=False)
    until(lambda: counted(settings) >= 500, worker)

    before_bytes = worker.rss_bytes()
    warehouse.stop()
    began_s = time.monotonic()
    for number in range(20, 80):
        second(number, harm=True)
    commands = deployed.documents(
        "control", 1, lambda found: any(json.loads(v)["type"] == "rollback" for v in found)
    )
    took_s = time.monotonic() - began_s
    rollback = next(json.loads(v) for v in commands if json.loads(v)["type"] == "rollback")
    assert (rollback["model"], rollback["version"]) == (MODEL, "2")
    print(f"rollback requested {took_s:.1f} s after the warehouse went")
    assert worker.wait_for("warehouse-error")
    number = 80
    while (left_s := OUTAGE_S - (time.monotonic() - began_s)) > 0:
        if number < SECONDS_MAX:
            second(number, harm=True)
            number += 1
        else:
            assert not threading.Event().wait(left_s)
    second(number, harm=True)
    assert worker.rss_bytes() < before_bytes + 50_000_000

    warehouse.start(directory, settings.port)
    warehouse.wait_ready()
    deployed.tick(T0 + (number + 60) * SECOND)
    until(lambda: counted(settings) == sent, worker)
    assert worker.terminate() == 0
