"""The shipped metric templates on a real ClickHouse engine, each beside the same figure computed row by row here."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import clickhouse_connect
import numpy as np
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from deploy.controller.measure import Measurer
from deploy.controller.queries import measure
from deploy.core.schedule import Due
from deploy.local.warehouse import LocalWarehouse
from schemas import migrations
from schemas.contracts import CanaryStep, DetectorConfig, Feature, ModelContract, Monitoring, Rollout
from schemas.control import Command, Deployment, Measured, Phase
from schemas.measures import Measurement
from schemas.observability import Metrics
from schemas.rollout import Metric
from schemas.rows import TABLES
from schemas.settings import ClickHouseSettings
from schemas.verdicts import Evidence, Family, SignalChanged, State, Verdict

pytestmark = pytest.mark.integration
T0, HOUR = 1_700_000_000_000, 3_600_000
T0 -= T0 % HOUR
ROWS = 400
SEGMENTS = ("de", "fr")
REGIONS = ("eu", "us")


class Log:
    """Predictions of the stable version 1 (answers), the candidate 2 (a canary's answers and its shadow) and their labels."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.time = T0 + 1 + rng.integers(0, HOUR, ROWS)
        self.canary = rng.random(ROWS) < 0.3
        self.scores = rng.random((ROWS, 2))
        self.latency = rng.gamma(2.0, 20.0, ROWS)
        self.error = rng.random(ROWS) < 0.05
        self.segment = rng.integers(0, 2, ROWS)
        self.region = rng.integers(0, 2, ROWS)
        self.label = (rng.random(ROWS) < 0.4).astype(float)
        self.labelled = rng.random(ROWS) < 0.7

    def insert(self, client: Client) -> None:
        rows: list[list[Any]] = []
        for at in range(ROWS):
            for version in (0, 1):
                answers = self.canary[at] == (version == 1)
                role = ("stable", "canary")[version] if answers else "shadow"
                failed = bool(self.error[at]) and answers
                rows.append(
                    ["shop", str(version + 1), role, f"p{at}", _at(int(self.time[at])), {},
                     {"country": SEGMENTS[self.segment[at]]}, None if failed else float(self.scores[at, version]),
                     float(self.latency[at]) if answers else 9_999.0, "error" if failed else "ok", "", "",
                     REGIONS[self.region[at]], 0, 2 * at + version, 0]
                )  # fmt: skip
        # A repeated delivery, another hour and another model change nothing.
        rows += [rows[0], [*rows[0][:3], "late", _at(T0 + HOUR + 1), *rows[0][5:14], 5_000, 0]]
        rows += [["other", *rows[1][1:14], 5_001, 0]]
        client.insert(
            "prediction_log", rows, column_names=[name for name, _ in TABLES["prediction_log"].columns]
        )
        labels: list[list[Any]] = [
            ["shop", f"p{at}", float(self.label[at]), _at(T0 + HOUR), 1, "", 0, at, 0]
            for at in range(ROWS)
            if self.labelled[at]
        ]
        # An older revision, and one that comes after the hour.
        labels += [["shop", "p0", 1 - float(self.label[0]), _at(T0 + HOUR), 0, "", 0, 9_000, 0]]
        labels += [["shop", "p1", 1 - float(self.label[1]), _at(T0 + HOUR + 1), 2, "", 0, 9_001, 0]]
        client.insert("label_log", labels, column_names=[name for name, _ in TABLES["label_log"].columns])
        client.insert(
            "archive_progress",
            [[topic, 0, 10_000, T0 + HOUR] for topic in ("predictions", "feedback")],
            column_names=["topic", "partition", "next_offset", "event_time_ms"],
        )

    def answered(self, version: int) -> Any:
        return self.canary == (version == 1)

    def brier(self, version: int) -> Any:
        return (self.scores[:, version] - self.label) ** 2


def _at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1_000, UTC)


@pytest.fixture(scope="module")
def settings(warehouse: LocalWarehouse) -> ClickHouseSettings:
    """A database of this module's own."""
    made = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database="measured")
    with clickhouse_connect.get_client(host=warehouse.host, port=warehouse.port) as client:
        client.command("CREATE DATABASE IF NOT EXISTS measured")
    return made


@pytest.fixture(scope="module")
def log(settings: ClickHouseSettings) -> Log:
    """What is in it."""
    made = Log()
    with clickhouse_connect.get_client(**settings.client()) as client:
        migrations.apply(client)
        made.insert(client)
    return made


@pytest.fixture
def client(settings: ClickHouseSettings) -> Iterator[Client]:
    """A reader."""
    with clickhouse_connect.get_client(**settings.client()) as reader:
        yield reader


def task(metric: Metric, *, shadow: bool = False, beside: str | None = "1") -> Due:
    return Due("shop", "2", beside, shadow, 3, T0 + HOUR, ((metric, T0),))


def of(
    client: Client, source: str, *, shadow: bool = False, beside: str | None = "1", **options: Any
) -> Measurement:
    metric = Metric(name="m", source=source, rows_min=20, **({"limit": 1} | options))
    return measure(client, task(metric, shadow=shadow, beside=beside), metric, T0)


def test_a_region_alone(client: Client, log: Log) -> None:
    """Of a rollout by regions: what was answered, or scored beside, in the region; without one, in all."""
    metric = Metric(name="m", source="latency_p99", limit=1)
    for number, region in enumerate(REGIONS):
        found = measure(client, replace(task(metric), region=region), metric, T0)
        here = log.region == number
        assert found.rows == int(np.sum(log.answered(1) & here))
        assert found.reference_rows == int(np.sum(log.answered(0) & here))
    judged = Metric(name="m", source="loss", judge=True)
    pairs = [measure(client, replace(task(judged), region=r), judged, T0).rows for r in (*REGIONS, "")]
    assert pairs[0] + pairs[1] == pairs[2] > 0
    assert measure(client, replace(task(metric), region="asia"), metric, T0).rows == 0


@pytest.mark.parametrize(("source", "level"), [("latency_p50", 0.5), ("latency_p99", 0.99)])
def test_latency(client: Client, log: Log, source: str, level: float) -> None:
    """Of answers alone: what a shadow took, nobody waited for."""
    found = of(client, source)
    for version, value, rows in ((1, found.value, found.rows), (0, found.reference, found.reference_rows)):
        latency = np.sort(log.latency[log.answered(version)])
        assert rows == len(latency)
        assert value == pytest.approx(latency[min(int(level * len(latency)), len(latency) - 1)])


def test_error_rate(client: Client, log: Log) -> None:
    """Counts for the judge, shares for a limit."""
    found = of(client, "error_rate", judge=True, limit=None)
    mine, theirs = log.answered(1), log.answered(0)
    assert (found.events, found.rows) == (int(log.error[mine].sum()), int(mine.sum()))
    assert (found.reference_events, found.reference_rows) == (int(log.error[theirs].sum()), int(theirs.sum()))
    assert of(client, "error_rate").value == pytest.approx(log.error[mine].mean())


def test_business(client: Client, log: Log) -> None:
    """The share of labelled answers whose newest label by then is 1."""
    found = of(client, "business")
    rows = log.answered(1) & log.labelled & ~log.error
    assert (found.rows, found.value) == (int(rows.sum()), pytest.approx(log.label[rows].mean()))


def test_loss_of_answers_and_loss_on_the_same_requests(client: Client, log: Log) -> None:
    """A limit reads the candidate's mean; the judge the differences where both have scored, whoever answered."""
    rows = log.answered(1) & log.labelled & ~log.error
    assert of(client, "loss").value == pytest.approx(log.brier(1)[rows].mean())
    paired = of(client, "loss", judge=True, limit=None)
    both = log.labelled & ~log.error
    difference = (log.brier(1) - log.brier(0))[both]
    assert (paired.rows, paired.value) == (int(both.sum()), pytest.approx(difference.mean()))
    assert paired.sd == pytest.approx(difference.std())
    assert (paired.blocks, paired.counts_for) == (1, 100)


def test_pairs_of_a_block_count_for_so_many_and_the_last_block_must_be_whole(
    client: Client, log: Log
) -> None:
    """Four quarters of an hour at 20 pairs each; of blocks of 25 minutes the third is not over, and is left out."""
    both = log.labelled & ~log.error
    difference = (log.brier(1) - log.brier(0))[both]
    quarter = ((log.time - T0 - 1) // (15 * 60_000))[both]
    means = [difference[quarter == at].mean() for at in range(4)]
    found = of(client, "loss", judge=True, limit=None, block="15m", block_rows=20)
    assert (found.rows, found.blocks, found.counts_for) == (int(both.sum()), 4, 80)
    assert found.value == pytest.approx(np.mean(means))
    whole = of(client, "loss", judge=True, limit=None, block="25m")
    inside = log.time <= T0 + 50 * 60_000
    assert (whole.rows, whole.blocks) == (int((both & inside).sum()), 2)


def test_a_shadows_figures_are_of_its_shadow(client: Client, log: Log) -> None:
    """A candidate that answers nobody."""
    assert of(client, "error_rate", shadow=True).rows == int((~log.canary).sum())


def test_segment_gap(client: Client, log: Log) -> None:
    """The largest difference of the mean loss between two segments with enough rows."""
    rows = log.answered(1) & log.labelled & ~log.error
    means = [log.brier(1)[rows & (log.segment == code)].mean() for code in (0, 1)]
    assert of(client, "segment_gap", segment="country").value == pytest.approx(abs(means[0] - means[1]))


def test_a_query_of_ones_own(client: Client, log: Log) -> None:
    """Its parameters are bound, not pasted; it may read and do nothing else."""
    found = of(
        client,
        "query",
        query="SELECT max(latency_ms), count() FROM prediction_log FINAL WHERE model = {model:String} AND "
        "model_version = {version:String} AND role = 'canary' AND toUnixTimestamp64Milli(event_time) <= {to_ms:Int64}",
    )
    with pytest.raises(DatabaseError, match="readonly"):
        of(client, "query", query="TRUNCATE TABLE prediction_log")
    assert (found.rows, found.value) == (int(log.canary.sum()), pytest.approx(log.latency[log.canary].max()))


@pytest.mark.usefixtures("log")
def test_nothing_to_measure_is_no_figure(client: Client) -> None:
    """A version nobody has called: no rows, and no zero that could pass a limit."""
    metric = Metric(name="m", source="error_rate", limit=1)
    empty = measure(client, Due("shop", "9", "1", False, 3, T0 + HOUR, ((metric, T0),)), metric, T0)
    assert (empty.value, empty.rows) == (None, 0)
    paired = Metric(name="m", source="loss", judge=True)
    assert (
        measure(client, Due("shop", "9", "1", False, 3, T0 + HOUR, ((paired, T0),)), paired, T0).value is None
    )


METRICS = (
    Metric(name="p99", source="latency_p99", limit=100),
    Metric(name="broken", source="query", query="SELECT nonsense", limit=1),
    Metric(name="inputs", source="drift", detector="inputs", limit=1),
)
SHOP = ModelContract(
    model="shop",
    features=(Feature(name="x"),),
    monitoring=Monitoring(
        detectors=(DetectorConfig(name="inputs", kind="drift-e-blocks", stream="features"),)
    ),
    rollout=Rollout(steps=(CanaryStep(weight=0.3, bake=2 * HOUR),), metrics=METRICS),
)
CANARY = Deployment(
    model="shop", revision=3, phase=Phase.PROGRESSING, stable="1", candidate="2", entered=3, steps=((0.3, 2 * HOUR),),
    weights={"1": 0.7, "2": 0.3}, step_since_ms=T0, rollout_since_ms=T0,
)  # fmt: skip


def _measured(settings: ClickHouseSettings, at_ms: int, timeout_ms: int = 20_000) -> Measured:
    facts: queue.Queue[Command] = queue.Queue()
    measurer = Measurer(settings, 1, facts.put, Metrics(), timeout_ms)
    try:
        verdict = Verdict(state=State.WARNING, score=3.0, threshold=4.0, evidence=Evidence(rows=700))
        measurer.heard(
            SignalChanged(
                signal_id="s", model="shop", version="2", role="canary", detector="inputs", kind="drift-e-blocks",
                family=Family.INPUT, previous=State.STABLE, verdict=verdict, event_time_ms=T0, row="a/0/0/0",
            )
        )  # fmt: skip
        measurer.look([CANARY], lambda _: SHOP, at_ms)
        measurer.look([CANARY], lambda _: SHOP, at_ms + 1)
        fact = facts.get(timeout=120)
        assert facts.empty()
    finally:
        measurer.close()
    assert isinstance(fact, Measured)
    return fact


def test_what_is_due_becomes_one_fact(settings: ClickHouseSettings, log: Log) -> None:
    """From the warehouse and from live signals; one wrong query is an error beside the others, not instead of them."""
    fact = _measured(settings, T0 + HOUR + 5)
    assert (fact.version, fact.event_time_ms, fact.deployment_revision) == ("2", T0 + HOUR, 3)
    found = {m.metric: m for m in fact.measurements}
    assert found["p99"].rows == int(log.canary.sum())
    assert found["inputs"].value == 0.75
    assert "nonsense" in found["broken"].error


@pytest.mark.usefixtures("log")
def test_a_span_the_archive_has_not_reached_is_an_error(settings: ClickHouseSettings) -> None:
    """After a while; half of an hour's rows would be a wrong figure."""
    fact = _measured(settings, T0 + 2 * HOUR, timeout_ms=300)
    assert "has not reached" in {m.metric: m.error for m in fact.measurements}["p99"]


@pytest.mark.usefixtures("log")
def test_a_warehouse_that_is_away_is_an_error_and_live_signals_are_not() -> None:
    """What does not come from it is measured all the same."""
    fact = _measured(ClickHouseSettings(port=1, timeout=1_000), T0 + HOUR)
    found = {m.metric: m for m in fact.measurements}
    assert found["p99"].error
    assert found["inputs"].value == 0.75
