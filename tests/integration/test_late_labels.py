"""Labels much later than memory holds their predictions, over real Kafka and ClickHouse, with a kill -9 in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from confluent_kafka import Producer
from support_streams import Worker, create_topics, send_ticks

from deploy.local.kafka import LocalKafka
from deploy.local.warehouse import LocalWarehouse
from schemas import migrations
from schemas.contracts import Feature, ModelContract, ModelRecord, Monitoring
from schemas.ids import partition_of
from schemas.settings import ClickHouseSettings, KafkaSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
PARTITIONS = 2
T0 = 1_700_000_000_000 // 3_600_000 * 3_600_000
HOUR = 3_600_000
DAY = 24 * HOUR
#: Several times as many as the index has room for.
PREDICTIONS = 30_000
LATE = 600
CONTRACT = ModelContract(
    model="m",
    features=(Feature(name="x"), Feature(name="where", kind="categorical", categories=("EWR", "JFK"))),
    monitoring=Monitoring(
        window=HOUR,
        allowed_lateness=60_000,
        label_horizon=6 * HOUR,
        late_label_horizon=60 * DAY,
        event_ahead_max=100 * DAY,
        segments=("where",),
    ),
)


class Deployed:
    """One deployment, a monitor and an archive over it, and the test's hands on its topics and tables."""

    def __init__(self, kafka: LocalKafka, warehouse: LocalWarehouse, name: str) -> None:
        self.kafka = KafkaSettings(
            bootstrap=kafka.bootstrap, topic_prefix=f"{name}-", input_partitions=PARTITIONS
        )
        create_topics(self.kafka)
        self._clickhouse = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database=name)
        with clickhouse_connect.get_client(host=warehouse.host, port=warehouse.port) as client:
            client.command(f"CREATE DATABASE {name}")
        self.client: Client = clickhouse_connect.get_client(**self._clickhouse.client())
        migrations.apply(self.client)
        self._producer = Producer(self.kafka.producer())
        record = ModelRecord(contract=CONTRACT).model_dump_json().encode()
        self._producer.produce(self.kafka.topic("models"), record, b"m")
        assert self._producer.flush(30) == 0
        self._workers: list[Worker] = []

    def start(self, process: str) -> Worker:
        settings = {
            "DRIFTLINE_KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "DRIFTLINE_KAFKA__TOPIC_PREFIX": self.kafka.topic_prefix,
            "DRIFTLINE_KAFKA__INPUT_PARTITIONS": str(PARTITIONS),
            "DRIFTLINE_KAFKA__SESSION_TIMEOUT": "30s",  # both have static names, and are back at once
            "DRIFTLINE_CLICKHOUSE__HOST": self._clickhouse.host,
            "DRIFTLINE_CLICKHOUSE__PORT": str(self._clickhouse.port),
            "DRIFTLINE_CLICKHOUSE__DATABASE": self._clickhouse.database,
            "DRIFTLINE_MONITOR__INSTANCE": "only",
            "DRIFTLINE_MONITOR__TICKER": "off",
            "DRIFTLINE_MONITOR__COMMIT_INTERVAL": "100ms",
            "DRIFTLINE_MONITOR__HOT_INDEX_BYTES_MAX": "1000000",
            "DRIFTLINE_MONITOR__LABEL_LOOKUP_INTERVAL": "100ms",
            "DRIFTLINE_ARCHIVE__INSTANCE": "only",
        }
        worker = Worker(["-m", "streams", process], settings)
        self._workers.append(worker)
        worker.wait_for("ready")
        return worker

    def send(self, topic: str, documents: list[dict[str, Any]]) -> None:
        """Events under their own keys."""
        for document in documents:
            key = document["prediction_id"].encode()
            self._producer.produce(
                self.kafka.topic(topic), json.dumps(document).encode(), key, partition_of(key, PARTITIONS)
            )
            self._producer.poll(0)
        assert self._producer.flush(60) == 0

    def tick(self, event_time_ms: int) -> None:
        for topic in ("predictions", "feedback"):
            send_ticks(self._producer, self.kafka, topic, event_time_ms)

    def figures(self) -> tuple[int, ...]:
        """What analysts read, of all windows: predictions, labelled, revisions, the confusion matrix, corrections."""
        row = self.client.query(
            "SELECT sum(predictions), sum(labelled), sum(revisions), sum(true_positive), sum(false_positive), "
            "sum(true_negative), sum(false_negative) FROM accuracy_all WHERE resolution = 'window' AND segment = ''"
        ).result_rows[0]
        return tuple(map(int, row))

    def until(
        self, told: Callable[[], object], wanted: object, moment: Callable[[], None] = lambda: None
    ) -> None:
        """Time goes on (``moment``) until it is so; fails after two minutes."""
        deadline_s = time.monotonic() + 120
        while told() != wanted:
            assert time.monotonic() < deadline_s, (told(), wanted, [w.log[-5:] for w in self._workers])
            moment()
            time.sleep(0.2)

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self.client.close()


@pytest.fixture
def deployed(kafka: LocalKafka, warehouse: LocalWarehouse, unique_name: str) -> Iterator[Deployed]:
    found = Deployed(kafka, warehouse, unique_name)
    yield found
    found.close()


def score(number: int) -> float:
    return (number % 64) / 64


def labels(numbers: range, at_ms: int, revision: int = 0) -> list[dict[str, Any]]:
    """Every third is positive; a revision says the opposite."""
    return [
        {"prediction_id": f"p{n}", "model": "m", "label": float((n % 3 == 0) != (revision % 2 == 1)),
         "label_time_ms": at_ms, "revision": revision}
        for n in numbers
    ]  # fmt: skip


def expected(numbers: range, revised: range) -> tuple[int, ...]:
    said = {n: (score(n) >= 0.5, (n % 3 == 0) != (n in revised)) for n in numbers}
    kinds = [
        list(said.values()).count(kind)
        for kind in ((True, True), (True, False), (False, False), (False, True))
    ]
    return (PREDICTIONS, len(numbers), len(revised), *kinds)


def test_labels_weeks_late_find_predictions_that_memory_has_long_let_go(deployed: Deployed) -> None:
    """Evicted at first, then settled: a label, its duplicate and its revision each count as if all had been remembered,
    whoever is killed meanwhile; views have the corrected figures as one row a window, without FINAL."""
    monitor, _ = deployed.start("monitor"), deployed.start("archive")
    events = [
        {"prediction_id": f"p{n}", "model": "m", "version": "1", "event_time_ms": T0 + n % 3 * HOUR,
         "features": {"x": 1.0, "where": ("EWR", "JFK")[n % 2]}, "score": score(n)}
        for n in range(PREDICTIONS)
    ]  # fmt: skip
    deployed.send("predictions", events)
    now_ms = T0 + 3 * HOUR
    deployed.tick(now_ms)

    def moment() -> None:
        nonlocal now_ms
        now_ms += 1_000
        deployed.tick(now_ms)

    # Their windows are open, but the index has room for a fraction of them.
    evicted = range(LATE)
    deployed.send("feedback", labels(evicted, now_ms))
    deployed.until(deployed.figures, expected(evicted, range(0)), moment)
    pending = deployed.client.query("SELECT count() FROM window_outcomes WHERE part > 0").result_rows
    assert pending == [(0,)], "open windows are corrected in place"

    # Three weeks later nothing is left of them.
    now_ms = T0 + 21 * DAY
    deployed.tick(now_ms)
    everyone, revised = range(2 * LATE), range(LATE // 2)
    late = labels(range(LATE, 2 * LATE), now_ms)
    deployed.send("feedback", late + labels(evicted, T0 + 3 * HOUR) + labels(revised, now_ms, revision=1))
    moment()
    monitor.kill()
    deployed.start("monitor")
    deployed.send("feedback", late + labels(revised, now_ms, revision=1))
    deployed.until(deployed.figures, expected(everyone, revised), moment)
    for _ in range(5):
        moment()
        time.sleep(0.2)
    assert deployed.figures() == expected(everyone, revised), "and stays so"
    final = deployed.client.query(
        "SELECT count(), uniqExact(window_start), min(maturity) FROM accuracy_all WHERE resolution = 'window' AND segment = ''"
    ).result_rows
    assert final == [(3, 3, "final")]
    by_segment = deployed.client.query(
        "SELECT sum(labelled) FROM accuracy_all WHERE resolution = 'window' AND segment != ''"
    ).result_rows
    assert by_segment == [(2 * LATE,)]
    live = deployed.client.query("SELECT sum(labelled) FROM live_accuracy WHERE segment = ''").result_rows
    assert live == [(2 * LATE,)]
    assert deployed.client.query("SELECT count() > 0 FROM window_outcomes WHERE part > 0").result_rows == [
        (True,)
    ]
