"""Rolled-up and overlapping windows read like the ones that were counted: one row each, and every event once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import clickhouse_connect
import numpy as np
import pytest

from deploy.local.warehouse import LocalWarehouse
from deploy.migrate import migrate
from schemas.contracts import ModelContract, Monitoring
from schemas.ids import partition_of
from schemas.settings import ClickHouseSettings
from streams.core.delivery import Upserts
from streams.sink import ClickHouseSink
from tests.support_join import CONTRACT, HOUR, Stream, join_core, prediction, truth

pytestmark = pytest.mark.integration

DAY, MINUTE = 24 * HOUR, 60_000
START = 1_700_006_400_000
assert START % DAY == 0
#: Windows of a minute that begin every 20 seconds.
OVERLAPPING = CONTRACT.model_copy(
    update={
        "monitoring": Monitoring(
            window="1m", window_step="20s", label_horizon="1h", allowed_lateness="30s", segments=("origin",)
        )
    }
)
HOURLY = CONTRACT.model_copy(update={"model": "hourly"})
Event = dict[str, Any]


def events(model: str, spread_ms: int) -> list[Event]:
    """300 predictions over a day and a half, half of them labelled."""
    rng = np.random.default_rng(11)
    found = []
    for at in range(300):
        found.append(
            prediction(
                f"{model}{at}",
                model=model,
                event_time_ms=START + int(rng.integers(0, spread_ms)),
                score=float(rng.integers(0, 64)) / 64,
                features={
                    "distance": float(at),
                    "wind": None,
                    "origin": ("EWR", "JFK")[int(rng.integers(0, 2))],
                },
                latency_ms=float(rng.integers(1, 400)),
            )
        )
        if at % 2:
            time_ms = found[-1]["event_time_ms"] + 5_000
            found.append(
                truth(f"{model}{at}", model=model, label=float(rng.integers(0, 2)), label_time_ms=time_ms)
            )
    return found


EVENTS = {"flights": events("flights", 5 * MINUTE), "hourly": events("hourly", 36 * HOUR)}
CLOCK = {"flights": START + 4 * MINUTE, "hourly": START + 30 * HOUR}


def write(sink: ClickHouseSink, upserts: list[Upserts]) -> None:
    """One insert a table."""
    for table in sorted({u.table for u in upserts}):
        sink.write_blocks(table, [u.block for u in upserts if u.table == table])


def fill(settings: ClickHouseSettings, contract: ModelContract) -> None:
    """Through two partitions' cores, each value written as it grew, the last one twice."""
    sink = ClickHouseSink(settings)
    for partition in range(2):
        core, stream = join_core(partition, 2, contract), Stream(partition)
        mine = [
            e for e in EVENTS[contract.model] if partition_of(e["prediction_id"].encode(), 2) == partition
        ]
        for sequence, start in enumerate(range(0, len(mine), 60), 1):
            core.apply([stream.event(e) for e in mine[start : start + 60]], 0)
            core.committed(sequence)
            write(sink, core.upserts())
        core.apply([stream.tick(CLOCK[contract.model])], 0)
        core.committed(100)
        last = core.upserts()
        write(sink, last)
        write(sink, last)
    sink.close()


@pytest.fixture(scope="module")
def client(warehouse: LocalWarehouse) -> Iterator[Any]:
    """A reader of a database of this module's own, filled with two models' windows."""
    settings = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database="resolutions")
    migrate(settings)
    for contract in (OVERLAPPING, HOURLY):
        fill(settings, contract)
    with clickhouse_connect.get_client(**settings.client()) as reader:
        reader.command(
            f"INSERT INTO archive_progress VALUES ('predictions', 0, 1, {CLOCK['hourly']}), "
            f"('predictions', 1, 1, {CLOCK['hourly'] + 1})"
        )
        yield reader


def read(
    client: Any, view: str, model: str, resolution: str, further: str = ""
) -> dict[tuple[int, str], dict[str, Any]]:
    """Rows of a view by (start, segment)."""
    result = client.query(
        f"SELECT * FROM {view} WHERE model = '{model}' AND resolution = '{resolution}'{further}"
    )
    rows = [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]
    found = {(round(r["window_start"].timestamp() * 1000), r["segment"]): r for r in rows}
    assert len(found) == len(rows)
    return found


def wanted(
    model: str, length_ms: int, step_ms: int
) -> dict[tuple[int, str], list[tuple[Event, Event | None]]]:
    """By (start, segment): predictions and their labels, from the plain list of events."""
    labels = {e["prediction_id"]: e for e in EVENTS[model] if "label" in e}
    found: dict[tuple[int, str], list[tuple[Event, Event | None]]] = {}
    for event in EVENTS[model]:
        if "label" in event:
            continue
        first = (event["event_time_ms"] - length_ms) // step_ms * step_ms + step_ms
        for start in range(first, event["event_time_ms"] + 1, step_ms):
            for segment in ("", f"origin={event['features']['origin']}"):
                found.setdefault((start, segment), []).append((event, labels.get(event["prediction_id"])))
    return found


RESOLUTIONS = [
    ("flights", "window", 20_000, 20_000),
    ("flights", "hopping", 60_000, 20_000),
    ("flights", "minute", MINUTE, MINUTE),
    ("flights", "hour", HOUR, HOUR),
    ("hourly", "window", HOUR, HOUR),
    ("hourly", "hour", HOUR, HOUR),
    ("hourly", "day", DAY, DAY),
]


@pytest.mark.parametrize(("model", "resolution", "length_ms", "step_ms"), RESOLUTIONS)
def test_every_resolution_says_what_its_events_say(
    model: str, resolution: str, length_ms: int, step_ms: int, client: Any
) -> None:
    """Counts, quantiles, accuracy and features of every row; every event once, in a window in as many as overlap."""
    want = wanted(model, length_ms, step_ms)
    counts = read(client, "windows_all", model, resolution)
    accuracy = read(client, "accuracy_all", model, resolution)
    features = read(client, "feature_windows_all", model, resolution, " AND feature = 'distance'")
    assert set(counts) == set(accuracy) == set(want)
    for at, rows in want.items():
        latencies = sorted(e["latency_ms"] for e, _ in rows)
        assert (counts[at]["predictions"], counts[at]["window_ms"]) == (len(rows), length_ms)
        middle = latencies[math.ceil(0.5 * len(rows)) - 1]
        assert counts[at]["latency_p50_ms"] == pytest.approx(middle, rel=0.01)
        pairs = [(e["score"], label["label"]) for e, label in rows if label]
        assert accuracy[at]["labelled"] == len(pairs)
        if pairs:
            hits = sum((s >= 0.5) == (y == 1.0) for s, y in pairs)
            assert accuracy[at]["accuracy"] == pytest.approx(hits / len(pairs))
            brier = sum((s - y) ** 2 for s, y in pairs) / len(pairs)
            assert accuracy[at]["brier"] == pytest.approx(brier, abs=1e-9)
        if at[1] == "":
            distances = [e["features"]["distance"] for e, _ in rows]
            assert features[at]["mean"] == pytest.approx(sum(distances) / len(rows))
            assert sum(features[at]["histogram"]) == len(rows)


def test_there_is_nothing_below_a_windows_length_and_no_overlap_where_none_was_asked_for(client: Any) -> None:
    """Hourly windows are in no minute, and have no steps."""
    for resolution in ("minute", "hopping"):
        assert read(client, "windows_all", "hourly", resolution) == {}
    assert read(client, "windows_all", "flights", "hour").keys() == {
        (START, s) for s in ("", "origin=EWR", "origin=JFK")
    }


def test_a_rolled_up_row_is_closed_when_its_parts_are_and_its_time_is_over(client: Any) -> None:
    """All windows of a day so far may be closed while the day goes on."""
    days = read(client, "windows_all", "hourly", "day")
    assert {at: r["closed"] for at, r in days.items() if at[1] == ""} == {
        (START, ""): 1,
        (START + DAY, ""): 0,
    }
    windows = read(client, "windows_all", "flights", "window")
    for (start, segment), row in read(client, "windows_all", "flights", "hopping").items():
        parts = [windows.get((start + at, segment)) for at in (0, 20_000, 40_000)]
        assert row["closed"] == min(part["closed"] for part in parts if part), (start, segment)
    assert {r["closed"] for r in windows.values()} == {0, 1}
