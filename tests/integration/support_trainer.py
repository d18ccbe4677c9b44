"""What the tests of the trainer share: a contract, an archive of answers with labels, and hands on both ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import clickhouse_connect
import numpy as np
from clickhouse_connect.driver.client import Client
from pydantic import SecretStr

from deploy.local.kafka import LocalKafka
from deploy.local.warehouse import LocalWarehouse
from deploy.registry import Lineage, Registry
from deploy.training.service import run
from schemas import migrations
from schemas.contracts import ModelContract, Monitoring, Training
from schemas.control import COMMANDS, Deployment, Phase, RetrainRequested, TrainingFinished
from schemas.observability import Metrics
from schemas.settings import ClickHouseSettings, KafkaSettings, TrainerSection, TrainerSettings
from tests.support_deploy import CONTRACT as DECLARED
from tests.support_deploy import START_MS, Wire, artifact, feature_row
from tests.support_deploy import rows as drawn

ROWS = 2_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
ROW_MS = 600_000
CONTRACT = DECLARED.model_copy(
    update={
        "monitoring": Monitoring(label_horizon=6 * HOUR_MS),
        "training": Training(rows_min=500, weightings=("uniform", "half-life 3d"), block=4 * HOUR_MS),
    }
)


def with_training(**changes: Any) -> ModelContract:
    """The contract with other rules for training."""
    return CONTRACT.model_copy(update={"training": CONTRACT.training.model_copy(update=changes)})


def rows(count: int, seed: int = 0) -> tuple[dict[str, Any], Any, Any]:
    """One row every ten minutes."""
    table, labels, _ = drawn(count, seed)
    return table, labels, START_MS + ROW_MS * np.arange(count, dtype=np.int64)


def make_settings(
    kafka: LocalKafka, warehouse: LocalWarehouse, topic_prefix: str, database: str, registry: Path
) -> TrainerSettings:
    """One registered version, which answers the opposite of what is right."""
    Registry(registry).register(CONTRACT, artifact(flip=True), Lineage())
    return TrainerSettings(
        kafka=KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, input_partitions=2),
        clickhouse=ClickHouseSettings(
            host=warehouse.host, port=warehouse.port, database=database, password=SecretStr("")
        ),
        trainer=TrainerSection(registry=registry, archive_timeout=30_000, backoff=100),
    )


@contextmanager
def database(settings: TrainerSettings) -> Iterator[Client]:
    """The migrated, empty database."""
    arguments = settings.clickhouse.client()
    with clickhouse_connect.get_client(**(arguments | {"database": "default"})) as admin:
        admin.command(f"CREATE DATABASE {settings.clickhouse.database}")
    with clickhouse_connect.get_client(**arguments) as made:
        migrations.apply(made)
        yield made


def at_ms(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1_000, UTC)


def archive(
    client: Client,
    count: int = ROWS,
    *,
    labels: Any = None,
    scores: Any = None,
    delay_ms: Callable[[int], int] = lambda _: HOUR_MS,
) -> int:
    """Log ``count`` answers of version 1, scored 0.5 unless told, with their labels an hour later, or after ``delay_ms`` of
    the label; returns the time by which all labels are known. A label of -1 never comes."""
    table, drawn_labels, event_ms = rows(count, seed=3)
    outcome = drawn_labels if labels is None else labels
    predictions, outcomes = [], []
    last = int(event_ms[-1])
    for at in range(count):
        row = feature_row(table, at)
        numbers = {n: float(v) for n, v in row.items() if not isinstance(v, str) and v is not None}
        categories = {n: v for n, v in row.items() if isinstance(v, str)}
        source = [at % 2, at // 2, 0]
        score = 0.5 if scores is None else float(scores[at])
        predictions.append(
            ["delay", "1", "stable", f"p{at:05}", at_ms(int(event_ms[at])), numbers, categories, score, 1.0, "ok", "", "",
             *source]
        )  # fmt: skip
        if outcome[at] >= 0:
            known = int(event_ms[at]) + delay_ms(int(outcome[at]))
            last = max(last, known)
            outcomes.append(["delay", f"p{at:05}", float(outcome[at]), at_ms(known), 0, "", *source])
    client.insert("prediction_log", predictions, column_names=PREDICTIONS)
    client.insert("label_log", outcomes, column_names=LABELS)
    return last


SOURCE = ["source_partition", "source_offset", "source_row"]
PREDICTIONS = [
    "model", "model_version", "role", "prediction_id", "event_time", "numbers", "categories", "score", "latency_ms",
    "status", "entity", "trace_id", *SOURCE,
]  # fmt: skip
LABELS = ["model", "prediction_id", "label", "label_time", "revision", "trace_id", *SOURCE]


def progress(client: Client, event_ms: int) -> None:
    """Say that everything up to ``event_ms`` is in the archive."""
    client.insert(
        "archive_progress",
        [
            [topic, partition, 1_000_000, event_ms]
            for topic in ("predictions", "feedback")
            for partition in (0, 1)
        ],
        column_names=["topic", "partition", "next_offset", "event_time_ms"],
    )


def ask(
    wire: Wire, event_ms: int, revision: int = 2, request_id: str = "r1", issued_by: str = "policy"
) -> RetrainRequested:
    """A retrain request, and the deployment that accepts it."""
    request = RetrainRequested(
        request_id=request_id, model="delay", version="1", cause="concept", event_time_ms=event_ms,
        expires_ms=event_ms + 10**9, issued_by=issued_by, trace_id="a" * 32,
    )  # fmt: skip
    wire.send("control", [("delay", request.model_dump_json().encode())])
    wanted = Deployment(
        model="delay",
        revision=revision,
        phase=Phase.STEADY,
        stable="1",
        weights={"1": 1.0},
        training=request_id,
    )
    wire.send("deployments", [("delay", wanted.model_dump_json().encode())])
    return request


@contextmanager
def running(settings: TrainerSettings, metrics: Metrics | None = None) -> Iterator[None]:
    """A trainer in a thread of this process."""
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


def reports(wire: Wire, count: int) -> list[TrainingFinished]:
    """The trainer's reports, once there are ``count``."""

    def found_in(values: list[bytes]) -> list[TrainingFinished]:
        found = [COMMANDS.validate_json(value) for value in values]
        return [command for command in found if isinstance(command, TrainingFinished)]

    return found_in(wire.wait("control", lambda values: len(found_in(values)) >= count))
