"""One contract for every sink: the memory sink that ships for tests, and ClickHouse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import clickhouse_connect
import pytest

from deploy.local.warehouse import LocalWarehouse
from schemas import migrations
from schemas.errors import WarehouseError
from schemas.observability import Metrics
from schemas.settings import ClickHouseSettings
from streams.core.delivery import Upsert
from streams.sink import ClickHouseSink, MemorySink, Sink, SinkWriter

pytestmark = pytest.mark.integration
#: Rows held of a table, the newest of each key.
ReadBack = Callable[[], set[tuple[str, int, int, int]]]


@pytest.fixture
def database(warehouse: LocalWarehouse, unique_name: str) -> ClickHouseSettings:
    """A database of its own with every table."""
    settings = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database=unique_name)
    with clickhouse_connect.get_client(host=warehouse.host, port=warehouse.port) as client:
        client.command(f"CREATE DATABASE {unique_name}")
    with clickhouse_connect.get_client(**settings.client()) as client:
        migrations.apply(client)
    return settings


@pytest.fixture(params=["memory", "clickhouse"])
def sink(request: pytest.FixtureRequest) -> Iterator[tuple[Sink, ReadBack]]:
    """The sink under test and a way to read what it holds."""
    if request.param == "memory":
        memory = MemorySink()
        yield memory, lambda: {(t, p, n, at) for t, p, n, at in memory.rows["archive_progress"]}
        return
    settings = request.getfixturevalue("database")
    clickhouse = ClickHouseSink(settings)
    query = "SELECT topic, partition, next_offset, event_time_ms FROM archive_progress FINAL"
    yield clickhouse, lambda: {(str(t), int(p), int(n), int(at)) for t, p, n, at in clickhouse.query(query)}
    clickhouse.close()


def test_what_was_written_is_there_and_repeating_it_changes_nothing(sink: tuple[Sink, ReadBack]) -> None:
    """A write that returned is durable; the same rows again are the same rows."""
    target, read = sink
    rows = [("predictions", 0, 5, 100), ("predictions", 1, 7, 200)]
    target.write("archive_progress", rows)
    target.write("archive_progress", rows)
    target.write("archive_progress", [])
    assert read() == set(rows)


def test_a_sink_can_be_used_again_after_close(sink: tuple[Sink, ReadBack]) -> None:
    """Closing lets go of the connection, not of the rows."""
    target, read = sink
    target.write("archive_progress", [("feedback", 0, 1, 1)])
    target.close()
    target.write("archive_progress", [("feedback", 1, 2, 2)])
    assert read() == {("feedback", 0, 1, 1), ("feedback", 1, 2, 2)}


def test_clickhouse_out_of_reach_is_a_warehouse_error_that_names_it() -> None:
    """No other kind of exception leaves a sink, so a retry catches it all."""
    with pytest.raises(WarehouseError, match=r"127\.0\.0\.1:1,"):
        ClickHouseSink(ClickHouseSettings(port=1)).write("archive_progress", [("a", 0, 0, 0)])


class Outbox:
    """As much of a task as the writer sees."""

    def __init__(self) -> None:
        self.outbox: dict[tuple[str, tuple[Any, ...]], Upsert] = {}
        self.confirmed: list[Upsert] = []
        self.empty = asyncio.Event()

    def confirm(self, sent: list[Upsert]) -> None:
        self.confirmed += sent
        for upsert in sent:
            if self.outbox[upsert.table, upsert.key].version <= upsert.version:
                del self.outbox[upsert.table, upsert.key]
        if not self.outbox:
            self.empty.set()


async def test_a_refused_batch_is_sent_again_until_it_is_confirmed() -> None:
    """Failures cost time, never rows, and nothing is confirmed that is not in."""
    sink, box, dirty = MemorySink(), Outbox(), asyncio.Event()
    sink.failures = 2
    upserts = [Upsert("archive_progress", ("t", p), ("t", p, 1, 1), 3) for p in range(3)]
    box.outbox = {(u.table, u.key): u for u in upserts}
    metrics = Metrics()
    writer = asyncio.create_task(SinkWriter(sink, lambda: [box], dirty, metrics).run())
    dirty.set()
    async with asyncio.timeout(10):
        await box.empty.wait()
    writer.cancel()
    assert box.confirmed == upserts
    assert sink.rows["archive_progress"] == [u.row for u in upserts]
    assert metrics.value("driftline_warehouse_errors_total", table="archive_progress") == 2
