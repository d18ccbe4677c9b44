"""``driftline calibrate`` of a model that is registered on a real Kafka: promised and realised, side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from deploy.local.kafka import LocalKafka
from deploy.models import publish_records
from schemas.contracts import DetectorConfig, FalsePages, ModelContract, ModelRecord, ModelVersion, Monitoring
from schemas.reference import reference_of
from schemas.settings import KafkaSettings
from tests.support_deploy import CONTRACT, DAY_MS, START_MS, Wire, rows

pytestmark = pytest.mark.integration
DETECTORS = (
    DetectorConfig(name="harm", kind="loss-above-promise", stream="loss"),
    DetectorConfig(name="inputs", kind="drift-e-blocks", stream="features"),
    DetectorConfig(name="weekly", kind="psi", stream="features"),
    DetectorConfig(name="rows", kind="cusum", stream="features"),
)


def contract() -> ModelContract:
    """One false page in thirty days, shared by four that may page."""
    monitoring = Monitoring(false_pages=FalsePages(max=1, per=30 * DAY_MS), detectors=DETECTORS)
    return CONTRACT.model_copy(update={"monitoring": monitoring})


def version(name: str, count: int) -> ModelVersion:
    """A version whose reference is ``count`` rows over sixty days."""
    table, labels, _ = rows(count)
    times = START_MS + np.linspace(0, 60 * DAY_MS, count, endpoint=False).astype(np.int64)
    scores = np.clip(np.full(count, float(labels.mean())), 0.01, 0.99)
    made = reference_of(table, scores, contract(), labels=labels, event_ms=times)
    return ModelVersion(
        model="delay", version=name, uri=f"delay/{name}", sha256="0" * 64, reference=made,
        created_event_ms=START_MS + int(name),
    )  # fmt: skip


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> Iterator[KafkaSettings]:
    """The contract and two versions, published as a registry does it."""
    made = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, input_partitions=2)
    wire = Wire(made)
    records = [ModelRecord(contract=contract())]
    records += [ModelRecord(version=version(name, count)) for name, count in (("1", 1_500), ("2", 12_000))]
    publish_records(made, records)
    yield made
    wire.close()


def driftline(settings: KafkaSettings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as people type it, settings by environment."""
    environment = dict(os.environ) | {
        "DRIFTLINE_KAFKA__BOOTSTRAP": settings.bootstrap,
        "DRIFTLINE_KAFKA__TOPIC_PREFIX": settings.topic_prefix,
        "COLUMNS": "300",
    }
    command = [sys.executable, "-m", "deploy.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


def test_promised_and_realised_of_a_registered_version(settings: KafkaSettings) -> None:
    """By name, the newest version: each detector's promise, and alarms over resampled rows, resampled days and time order."""
    found = driftline(settings, "calibrate", "delay", "--json")
    assert found.returncode == 0, found.stderr
    measured = {one["name"]: one for one in json.loads(found.stdout)}
    assert set(measured) == {detector.name for detector in DETECTORS}
    for one in measured.values():
        assert [run["how"] for run in one["runs"]] == ["rows", "days", "order"], one["name"]
        for run in one["runs"]:
            assert run["promised_ms"] == one["standing"]["promised_ms"] or one["name"] == "harm"
            assert run["time_ms"] > 0 and run["interval_ms"][0] > 0
    # Nothing moved: whatever time order shows is no alarm, and the share is a quarter of the budget.
    assert all(one["runs"][2]["alarms"] == 0 for one in measured.values())
    assert measured["weekly"]["standing"]["promised_ms"] == 4 * 30 * DAY_MS
    assert measured["inputs"]["standing"]["basis"] == "proved"
    assert measured["weekly"]["standing"]["basis"] == measured["rows"]["standing"]["basis"] == "resampled"
    assert measured["weekly"]["pages"] and "unverified beyond 30 d" in measured["weekly"]["note"]
    # 12,000 rows of which 2,000 are kept: rows one by one cannot be checked on them.
    assert not measured["rows"]["pages"] and "one row in 6" in measured["rows"]["note"]


def test_an_older_version_is_measured_by_name_and_people_get_a_table(settings: KafkaSettings) -> None:
    """The table has both sides in one line a detector; a version and a model that are not there are named with those that are."""
    found = driftline(settings, "calibrate", "delay", "--version", "1")
    assert found.returncode == 0, found.stderr
    for word in (
        "reference: version 1",
        "promised",
        "resampled rows",
        "resampled days",
        "time order",
        "may page",
    ):
        assert word in found.stdout
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("weekly")]
    assert "1 in 120 d" in line and " in " in line.split("1 in 120 d")[1]
    lacking = driftline(settings, "calibrate", "delay", "--version", "9")
    assert lacking.returncode != 0 and "no version '9'; there are: 1, 2" in lacking.stderr
    unknown = driftline(settings, "calibrate", "nobody")
    assert unknown.returncode != 0 and "there are: delay" in unknown.stderr
