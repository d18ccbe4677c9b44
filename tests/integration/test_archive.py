"""The archive, and the monitor's raw log, on a real Kafka and a real ClickHouse engine: every row once, though who writes it is
killed in between."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import clickhouse_connect
import pytest
from confluent_kafka import Producer
from support_streams import PARTITIONS, Worker, create_topics, send_ticks

from deploy.local.kafka import LocalKafka
from deploy.local.warehouse import LocalWarehouse
from deploy.models import publish_records
from schemas import migrations
from schemas.contracts import Feature, ModelContract, ModelRecord
from schemas.control import ControlTick, Decision, Deployment, Phase, RollbackRequested
from schemas.events import GroundTruth, PredictionMade
from schemas.settings import ClickHouseSettings, KafkaSettings

pytestmark = pytest.mark.integration
CONTRACT = ModelContract(
    model="m",
    features=(Feature(name="x"), Feature(name="color", kind="categorical", categories=("red",))),
)


class Place:
    """One deployment: its topics, its database, and the archive between them."""

    def __init__(self, kafka: KafkaSettings, database: ClickHouseSettings) -> None:
        self.kafka = kafka
        self.client = clickhouse_connect.get_client(**database.client())
        self.producer = Producer(kafka.producer())
        self._environment = {
            "DRIFTLINE_KAFKA__BOOTSTRAP": kafka.bootstrap,
            "DRIFTLINE_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
            # Longer than any test waits: whoever is started again has to have its partitions back by its name.
            "DRIFTLINE_KAFKA__SESSION_TIMEOUT": "120s",
            "DRIFTLINE_ARCHIVE__INSTANCE": "archive-0",
            "DRIFTLINE_CLICKHOUSE__PORT": str(database.port),
            "DRIFTLINE_CLICKHOUSE__DATABASE": database.database,
            "DRIFTLINE_ARCHIVE__FLUSH_INTERVAL": "100ms",
            "DRIFTLINE_MONITOR__TICKER": "off",
            "DRIFTLINE_MONITOR__INSTANCE": "monitor-0",
        }
        self._workers: list[Worker] = []

    def start(self, failpoint: str = "", process: str = "archive", **more: str) -> Worker:
        given = self._environment | {"DRIFTLINE_FAILPOINT": failpoint} | more
        worker = Worker(["-m", "streams", process], given)
        self._workers.append(worker)
        return worker

    def send(
        self, topic: str, value: bytes, partition: int = 0, key: bytes | None = b"k", **headers: bytes
    ) -> None:
        names: dict[str, str | bytes | None] = {name.replace("_", "-"): v for name, v in headers.items()}
        self.producer.produce(self.kafka.topic(topic), value, key, partition=partition, headers=names)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.client.query(sql).result_rows]

    async def eventually(self, sql: str, expected: list[tuple[Any, ...]], timeout_s: float = 120.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while (found := self.query(sql)) != expected:
            assert time.monotonic() < deadline_s, (found, self._workers[-1].log[-20:])
            await asyncio.sleep(0.1)

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self.client.close()


@pytest.fixture
def place(
    kafka: LocalKafka, warehouse: LocalWarehouse, topic_prefix: str, unique_name: str
) -> Iterator[Place]:
    """An empty deployment."""
    settings = KafkaSettings(
        bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, input_partitions=PARTITIONS
    )
    create_topics(settings)
    with clickhouse_connect.get_client(host=warehouse.host, port=warehouse.port) as client:
        client.command(f"CREATE DATABASE {unique_name}")
    database = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database=unique_name)
    with clickhouse_connect.get_client(**database.client()) as client:
        migrations.apply(client)
    found = Place(settings, database)
    yield found
    found.close()


def prediction(number: int, **more: bool | None) -> bytes:
    features = {"x": number / 2, "color": "red"} | more
    return PredictionMade(
        prediction_id=f"p{number}", model="m", version="v1", event_time_ms=1_700_000_000_123 + number,
        features=features, score=0.25, latency_ms=1.5,
    ).model_dump_json().encode()  # fmt: skip


@pytest.mark.parametrize("who", ["archive", "monitor"])
async def test_killed_before_it_commits_the_raw_log_holds_every_row_once_and_says_how_far_it_is(
    place: Place, who: str
) -> None:
    """Rows are written again after a kill, to the same keys; bad rows are left out; ticks become progress."""
    publish_records(place.kafka, [ModelRecord(contract=CONTRACT)])
    name = {"archive": "archive", "monitor": "raw-log"}[who]
    chosen = {"process": who, "DRIFTLINE_CLICKHOUSE__RAW_LOG": who}
    # The log has what was sent, whatever the model's contract says of it.
    for number in range(200):
        place.send("predictions", prediction(number, flag=True, none=None), number % PARTITIONS, None)
    place.send("predictions", b"{not json")
    place.send("predictions", prediction(0, flag=True), 1, driftline_origin=b"predictions/0/0/0")
    label = GroundTruth(prediction_id="p7", model="m", label=1.0, label_time_ms=1_700_000_100_000)
    place.send("feedback", label.model_dump_json().encode(), 3)
    assert place.producer.flush(30) == 0
    assert place.start(f"{name}.before-progress", **chosen).wait() == 137
    assert place.start(f"{name}.before-commit", **chosen).wait() == 137
    place.start(**chosen)
    for number in range(200, 300):
        place.send("predictions", prediction(number), number % PARTITIONS, None)
    send_ticks(place.producer, place.kafka, "predictions", 1_700_000_500_000)
    await place.eventually("SELECT count(), uniqExact(prediction_id) FROM prediction_log FINAL", [(300, 300)])
    await place.eventually(
        "SELECT topic, min(event_time_ms), count() FROM archive_progress FINAL WHERE topic = 'predictions' GROUP BY topic",
        [("predictions", 1_700_000_500_000, PARTITIONS)],
    )
    row = place.query(
        "SELECT toUnixTimestamp64Milli(event_time), numbers, categories, score, status, entity, source_partition, "
        "source_offset FROM prediction_log FINAL WHERE prediction_id = 'p5'"
    )
    assert row == [(1_700_000_000_128, {"x": 2.5, "flag": 1.0}, {"color": "red"}, 0.25, "ok", "", 1, 1)]
    assert place.query("SELECT prediction_id, label, revision, source_partition FROM label_log FINAL") == [
        ("p7", 1.0, 0, 3)
    ]


async def test_what_the_warehouse_did_not_take_in_time_is_read_again_when_it_is_back(
    place: Place,
) -> None:
    """The worker goes on meanwhile; next to nothing may wait here, so nearly all of it is let go and read once more."""
    publish_records(place.kafka, [ModelRecord(contract=CONTRACT)])
    place.client.command("RENAME TABLE prediction_log TO away")
    worker = place.start(process="monitor", DRIFTLINE_MONITOR__RAW_LOG_BYTES_MAX="1000")
    worker.wait_for("ready")
    for number in range(400):
        place.send("predictions", prediction(number), number % PARTITIONS, None)
    assert place.producer.flush(30) == 0
    worker.wait_for("warehouse-error")
    await place.eventually("SELECT sum(predictions) FROM windows WHERE segment = ''", [(400,)])
    place.client.command("RENAME TABLE away TO prediction_log")
    await place.eventually("SELECT count(), uniqExact(prediction_id) FROM prediction_log FINAL", [(400, 400)])
    # How far that is, is written behind it. Behind the 100 that were sent to each partition stand those of others' keys.
    progress = "SELECT topic, partition, max(next_offset) FROM archive_progress WHERE next_offset >= 100 GROUP BY 1, 2"
    await place.eventually(f"SELECT count() FROM ({progress})", [(PARTITIONS,)])
    assert worker.terminate() == 0
    reached = {f"{topic}/{partition}": offset for topic, partition, offset in place.query(progress)}
    # What it had written is known to the next one, which reads none of it again.
    worker = place.start(process="monitor")
    worker.wait_for("ready")
    place.send("predictions", prediction(400), key=None)
    assert place.producer.flush(30) == 0
    # One row an address: a row that was sent on is written under its first one from both partitions.
    await place.eventually("SELECT count(), uniqExact(prediction_id) FROM prediction_log FINAL", [(401, 401)])
    again = [json.loads(line)["offsets"] for line in worker.log if "raw-log-behind" in line]
    assert all(
        offset >= reached[tp] for offsets in again for tp, offset in offsets.items() if tp in reached
    ), (
        reached,
        again,
    )


async def test_commands_deployments_and_decisions_are_logged_and_ticks_of_control_are_its_time(
    place: Place,
) -> None:
    """Each document keeps its whole text beside the columns people ask for."""
    command = RollbackRequested(
        request_id="r1",
        model="m",
        cause="loss",
        event_time_ms=5,
        expires_ms=9,
        issued_by="policy",
        version="v2",
    )
    place.send("control", command.model_dump_json().encode())
    for partition in range(PARTITIONS):
        tick = ControlTick(event_time_ms=50 + partition, source=f"policy/{partition}")
        place.send("control", tick.model_dump_json().encode())
    deployment = Deployment(model="m", revision=3, phase=Phase.STEADY, stable="v1", weights={"v1": 1.0})
    place.send("deployments", deployment.model_dump_json().encode())
    decision = Decision(
        decision_id="d1", model="m", kind="rolled-back", actor="controller", event_time_ms=6, recorded_ms=7
    )
    place.send("decisions", decision.model_dump_json().encode())
    assert place.producer.flush(30) == 0
    worker = place.start()
    await place.eventually(
        "SELECT type, request_id, model_version, document FROM control_log FINAL",
        [("rollback", "r1", "v2", command.model_dump_json())],
    )
    await place.eventually(
        "SELECT revision, phase, weights FROM deployment_log FINAL", [(3, "steady", {"v1": 1.0})]
    )
    await place.eventually("SELECT decision_id, kind FROM decision_log FINAL", [("d1", "rolled-back")])
    await place.eventually(
        "SELECT next_offset, event_time_ms FROM archive_progress FINAL WHERE topic = 'control'", [(5, 50)]
    )
    assert worker.terminate() == 0
