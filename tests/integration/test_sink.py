"""One contract for every sink: the memory sink that ships for tests, and ClickHouse."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from typing import Any

import clickhouse_connect
import numpy as np
import pyarrow as pa
import pytest

from deploy.local.warehouse import LocalWarehouse
from schemas import migrations
from schemas.arrow import encode_arrow
from schemas.errors import WarehouseError
from schemas.events import FORMAT_ARROW, HEADER_FORMAT
from schemas.native import (
    coded,
    coded_maps,
    keys_coded,
    maps,
    native_block,
    nullable,
    numbers,
    same_coded,
    same_text,
    texts,
)
from schemas.observability import Metrics
from schemas.row_binary import RowBlock
from schemas.rows import TABLES
from schemas.settings import ClickHouseSettings
from schemas.spans import Spans
from streams.core.archive import log_copy, log_rows
from streams.core.delivery import Upserts
from streams.core.records import Record, RecordBatch
from streams.sink import ClickHouseSink, MemorySink, Sink, SinkWriter

pytestmark = pytest.mark.integration
AT_MS = 1_700_000_000_000
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


def test_arrow_batches_are_in_the_raw_log_value_for_value(database: ClickHouseSettings) -> None:
    """Two in one insert, block behind block. Maps with and without all of their keys, nulls, texts of any length: as the columns were, so the rows are."""
    n = 300
    columns: dict[str, Any] = {
        "prediction_id": [f"p{i}" * (1 + i % 30) for i in range(n)],
        "version": ["1"] * n,
        "event_time_ms": [AT_MS + i for i in range(n)],
        "score": [None if i % 5 == 0 else i / n for i in range(n)],
        "entity": ["Zürich" if i % 3 else None for i in range(n)],
        "x": [float(i) for i in range(n)],
        "y": [None if i % 7 == 0 else i / 3 for i in range(n)],
        "city": [None if i % 2 else "Oslo" for i in range(n)],
        "role": ["shadow" if i % 4 else "nobody" for i in range(n)],
    }
    table = pa.table(columns).replace_schema_metadata({b"model": b"m"})
    records = [
        Record("predictions", 1, offset, None, encode_arrow(table), {HEADER_FORMAT: FORMAT_ARROW})
        for offset in (9, 10)
    ]
    clickhouse = ClickHouseSink(database)
    blocks = [rows for _, rows in log_copy(RecordBatch.of(records)) if isinstance(rows, RowBlock)]
    clickhouse.write_blocks("prediction_log", [block for block in blocks if block.rows])
    names = [
        name if not kind.startswith("DateTime64") else f"toUnixTimestamp64Milli({name})"
        for name, kind in TABLES["prediction_log"].columns
    ]
    found = clickhouse.query(
        f"SELECT {', '.join(names)} FROM prediction_log ORDER BY source_offset, source_row"
    )
    expected = [row for record in records for row in log_rows(record)[1]]
    assert len(expected) == 2 * (n * 3 // 4)
    assert [tuple(row) for row in found] == expected
    clickhouse.write_blocks("prediction_log", [block for block in blocks if block.rows] * 2)
    assert clickhouse.query("SELECT count() FROM predictions") == [(len(expected),)]
    clickhouse.close()


def test_blocks_that_differ_in_their_types_go_in_one_insert(database: ClickHouseSettings) -> None:
    """Maps of texts of low cardinality and of any, with no keys at all, with more than a byte counts: ClickHouse has of each what the
    memory sink has."""
    blocks = [
        _of_maps(1, 3, BOTH_CODED),
        _of_maps(2, 0, CODED),
        _of_maps(3, 300, None),
        _of_maps(4, 2, BOTH_CODED),
    ]
    memory, clickhouse = MemorySink(), ClickHouseSink(database)
    for sink in (memory, clickhouse):
        sink.write_blocks("prediction_log", blocks)
    names = ("model_version", "numbers", "categories", "source_offset", "source_row")
    found = clickhouse.query(
        f"SELECT {', '.join(names)} FROM prediction_log ORDER BY source_offset, source_row"
    )
    places = [TABLES["prediction_log"].names.index(name) for name in names]
    expected = [tuple(row[at] for at in places) for row in memory.rows["prediction_log"]]
    assert len(expected) == 8
    assert [tuple(row) for row in found] == expected
    clickhouse.close()


CODED = "Map(LowCardinality(String), String)"
BOTH_CODED = "Map(LowCardinality(String), LowCardinality(String))"


def _of_maps(offset: int, width: int, categories: str | None) -> RowBlock:
    """Two rows with so many numbers, and categories of this type; None: with none."""
    if categories == BOTH_CODED:
        told = coded_maps(["c", "d"], ["x", "y", "z"], np.array([[0, 1], [2, 1]]))
    elif categories == CODED:
        told = maps(["c", "d"], Spans.of([b"u", b"v", b"w", b""]), np.array([[True, False], [True, True]]))
    else:
        told = coded_maps([], [], np.empty((2, 0), np.int64))
    held = {
        "model_version": coded(["1", "2"], np.array([1, 0])),
        "prediction_id": texts(Spans.of([b"a", b"b"])),
        "numbers": maps(
            [f"n{at}" for at in range(width)], np.arange(2.0 * width).reshape(2, width), None
        ),
        "categories": told,
        "score": nullable(np.array([0.5, 0.6]), None),
        "source_offset": numbers(np.full(2, offset), "Int64"),
        "source_row": numbers(np.arange(2), "UInt32"),
    }  # fmt: skip
    same = {
        "LowCardinality(String)": same_coded("m", 2),
        "String": same_text("", 2),
    }
    columns = []
    sent_as = {"categories": categories or BOTH_CODED, "model_version": "LowCardinality(String)"}
    for name, declared in TABLES["prediction_log"].columns:
        kind = sent_as.get(name, keys_coded(declared))
        columns.append((name, kind, held.get(name) or same.get(kind) or numbers(np.zeros(2), kind)))
    return native_block(2, columns)


def test_clickhouse_out_of_reach_is_a_warehouse_error_that_names_it() -> None:
    """No other kind of exception leaves a sink, so a retry catches it all."""
    with pytest.raises(WarehouseError, match=r"127\.0\.0\.1:1,"):
        ClickHouseSink(ClickHouseSettings(port=1)).write("archive_progress", [("a", 0, 0, 0)])


class Outbox:
    """As much of a task as the writer sees."""

    def __init__(self) -> None:
        self.outbox: list[Upserts] = []
        self.confirmed: list[Upserts] = []
        self.empty = asyncio.Event()

    def confirm(self, sent: list[Upserts]) -> None:
        self.confirmed += sent
        self.outbox = [upserts for upserts in self.outbox if upserts not in sent]
        if not self.outbox:
            self.empty.set()


async def test_a_refused_batch_is_sent_again_until_it_is_confirmed() -> None:
    """Failures cost time, never rows, and nothing is confirmed that is not in."""
    sink, box, dirty = MemorySink(), Outbox(), asyncio.Event()
    sink.failures = 2
    rows = [("t", p, 1, 1) for p in range(3)]
    upserts = [Upserts("archive_progress", 1, [b"\1t" + struct.pack("<Hqq", *row[1:])], 3) for row in rows]
    box.outbox = list(upserts)
    metrics = Metrics()
    writer = asyncio.create_task(SinkWriter(sink, lambda: [box], dirty, metrics).run())
    dirty.set()
    async with asyncio.timeout(120):
        await box.empty.wait()
    writer.cancel()
    assert box.confirmed == upserts
    assert sink.rows["archive_progress"] == rows
    assert metrics.value("driftline_warehouse_errors_total", table="archive_progress") == 2
