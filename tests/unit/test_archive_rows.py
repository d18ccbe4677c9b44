"""What the archive makes of records, without a broker or a warehouse."""

from __future__ import annotations

import pyarrow as pa
import pytest

from schemas.control import COMMANDS, ControlTick, RollbackRequested
from schemas.errors import BadMessage
from schemas.events import (
    FORMAT_ARROW,
    HEADER_FORMAT,
    HEADER_KIND,
    HEADER_ORIGIN,
    KIND_TICK,
    PredictionMade,
    Tick,
)
from schemas.rows import TABLES
from streams.core.archive import ARCHIVED, PartitionTime, log_rows
from streams.core.records import Record

AT_MS = 1_700_000_000_000


def prediction(**changes: object) -> bytes:
    values = {
        "prediction_id": "p",
        "model": "m",
        "version": "v",
        "event_time_ms": AT_MS,
        "features": {"x": 1.5},
    }
    return PredictionMade.model_validate(values | changes).model_dump_json().encode()


def record(topic: str, value: bytes | None, **headers: bytes) -> Record:
    return Record(topic, 2, 9, b"k", value, {name.replace("_", "-"): v for name, v in headers.items()})


def test_a_row_has_a_value_for_every_column_of_its_table() -> None:
    """Rows and ``schemas.rows`` cannot drift apart."""
    table, rows = log_rows(record("predictions", prediction()))
    assert [len(row) for row in rows] == [len(TABLES[table].columns)]
    named = dict(zip(TABLES[table].names, rows[0], strict=True))
    assert named["event_time"] == AT_MS
    assert (named["source_partition"], named["source_offset"], named["source_row"]) == (2, 9, 0)


def test_features_are_split_into_numbers_and_categories() -> None:
    """Nulls are in neither map, so an analyst sees what was sent."""
    _, rows = log_rows(record("predictions", prediction(features={"n": 2, "b": False, "c": "x", "z": None})))
    assert rows[0][5:7] == ({"n": 2.0, "b": 0.0}, {"c": "x"})


def test_an_arrow_batch_becomes_a_row_for_each_good_event() -> None:
    """A bad row in a batch costs itself only, and rows keep their place in the batch."""
    table = pa.table(
        {
            "prediction_id": ["a", "", "c"],
            "version": ["v"] * 3,
            "event_time_ms": [AT_MS, AT_MS, AT_MS],
            "score": [0.5, 0.5, None],
            "x": [1.0, 2.0, 3.0],
            "color": ["red", "red", None],
        }
    ).replace_schema_metadata({"model": "m"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    value = sink.getvalue().to_pybytes()
    _, rows = log_rows(Record("predictions", 2, 9, None, value, {HEADER_FORMAT: FORMAT_ARROW}))
    assert [(row[3], row[5], row[6], row[7], row[-1]) for row in rows] == [
        ("a", {"x": 1.0}, {"color": "red"}, 0.5, 0),
        ("c", {"x": 3.0}, {}, None, 2),
    ]


def test_a_row_sent_on_from_the_wrong_partition_keeps_its_first_address() -> None:
    """So the copy and the original are one row of the log."""
    headers = {HEADER_ORIGIN: b"predictions/0/4/1"}
    _, rows = log_rows(Record("predictions", 2, 9, b"k", prediction(), headers))
    assert rows[0][-3:] == (0, 4, 1)


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        ("predictions", b"{"),
        ("predictions", prediction(event_time_ms=5)),
        ("predictions", prediction(event_time_ms=2**61)),
        (
            "predictions",
            b'{"prediction_id":"\\ud800","model":"m","version":"v","event_time_ms":1,"features":{}}',
        ),
        (
            "feedback",
            b'{"prediction_id":"p","model":"m","label":1,"label_time_ms":1700000000000,"revision":-1}',
        ),
        ("signals", b"{}"),
        ("alerts", b"[]"),
        ("control", b'{"type":"none"}'),
        ("deployments", b'{"model":"m","revision":-7,"phase":"steady"}'),
        ("decisions", b"\xff"),
        ("dead-letters", b""),
    ],
)
def test_what_cannot_be_read_is_a_bad_message_and_never_reaches_the_warehouse(
    topic: str, value: bytes
) -> None:
    """One row that ClickHouse refuses would otherwise be tried for ever."""
    with pytest.raises(BadMessage):
        log_rows(record(topic, value))


@pytest.mark.parametrize("topic", ARCHIVED)
def test_tombstones_and_ticks_make_no_rows(topic: str) -> None:
    """They are no facts."""
    assert log_rows(record(topic, None))[1] == []
    assert log_rows(Record(topic, 0, 0, None, b"{}", {HEADER_KIND: KIND_TICK}))[1] == []


def test_a_command_is_logged_with_its_whole_text_and_a_tick_of_control_is_not() -> None:
    """``document`` is what was sent, byte for byte."""
    command = RollbackRequested(
        request_id="r", model="m", cause="c", event_time_ms=1, expires_ms=2, issued_by="i", version="v2"
    )
    text = command.model_dump_json()
    table, rows = log_rows(record("control", text.encode()))
    assert dict(zip(TABLES[table].names, rows[0], strict=True))["document"] == text
    assert COMMANDS.validate_json(text) == command
    assert (
        log_rows(record("control", ControlTick(event_time_ms=1, source="s").model_dump_json().encode()))[1]
        == []
    )


def _tick(source: str, at_ms: int, sources: int = 0) -> Record:
    value = Tick(event_time_ms=at_ms, source=source, sources=sources).model_dump_json().encode()
    return Record("signals", 0, 0, None, value, {HEADER_KIND: KIND_TICK})


def test_a_partitions_time_is_the_least_over_its_sources_and_never_goes_back() -> None:
    """Until every source has spoken there is no time; a restart goes on from what was stored."""
    time = PartitionTime(3)
    for tick, expected in [
        (_tick("a", 10, 2), 3),
        (_tick("b", 7, 2), 7),
        (_tick("b", 5, 2), 7),
        (_tick("b", 20, 2), 10),
    ]:
        time.take(tick, 1)
        assert time.event_time_ms == expected
