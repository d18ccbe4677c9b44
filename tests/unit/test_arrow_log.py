"""Rows of the log are the same whether an Arrow batch was written column by column or read row by row."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrow import encode_arrow
from schemas.errors import BadMessage
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_ORIGIN
from schemas.row_binary import RowBlock
from streams.core.archive import log_copy, log_rows
from streams.core.records import Record, RecordBatch
from tests.support_archive import rows_of
from tests.support_examples import examples
from tests.support_join import TEXT_TYPES

AT_MS = 1_700_000_000_000
ROWS = 4
texts = st.sampled_from(["a", "Zürich", "", "x" * 200, "x" * 201, "ok", "canary"])
OPTIONAL: dict[str, st.SearchStrategy[Any]] = {
    "role": st.sampled_from(["stable", "shadow", "nobody"]),
    "status": st.sampled_from(["ok", "error", ""]),
    "score": st.floats(width=32) | st.integers(-2, 2),
    "latency_ms": st.sampled_from([0.0, 1.5, -1.0, float("nan"), float("inf")]),
    "entity": texts,
    "trace_id": texts,
    "region": texts,
    "features": st.floats(),
    "model": texts,
    "revision": st.sampled_from([0, 1, 2_000_000, -1]),
    "x": st.floats(),
    "n": st.integers(-(2**53), 2**53),
    "b": st.booleans(),
    "city": texts,
    "list": st.lists(st.integers(0, 3), max_size=2),
    "nothing": st.none(),
}
REQUIRED: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "predictions": {"prediction_id": texts, "version": texts, "event_time_ms": st.sampled_from([AT_MS, AT_MS + 1, 5])},
    "feedback": {
        "prediction_id": texts, "model": texts, "label": st.sampled_from([0.0, 1.0, 0.5]),
        "label_time_ms": st.sampled_from([AT_MS, 5]),
    },
}  # fmt: skip


@st.composite
def batches(draw: st.DrawFn, topic: str) -> pa.Table:
    """Mostly plain columns, with nulls, of several types, some of them not what they should be."""
    columns: dict[str, Any] = {}
    extra = draw(st.dictionaries(st.sampled_from(sorted(OPTIONAL)), st.none(), max_size=4))
    for name, values in [*((n, OPTIONAL[n]) for n in extra), *REQUIRED[topic].items()]:
        nullable = values | st.none() if draw(st.integers(0, 3)) == 0 else values
        held = draw(st.lists(nullable, min_size=ROWS, max_size=ROWS))
        text = any(isinstance(value, str) for value in held)
        kind = draw(st.sampled_from(TEXT_TYPES)) if text else None
        columns[name] = pa.array(held, kind, from_pandas=False)
    if draw(st.integers(0, 9)) == 0:
        columns.pop(draw(st.sampled_from(sorted(columns))))
    table = pa.table(columns)
    return (
        table.replace_schema_metadata({b"model": draw(texts).encode()}) if topic == "predictions" else table
    )


@examples(75)
@given(st.sampled_from(["predictions", "feedback"]), st.data())
def test_rows_of_a_batch_are_the_same_whoever_makes_them(topic: str, data: st.DataObject) -> None:
    """Bad rows are left out of both; addresses count up from the first."""
    table = data.draw(batches(topic))
    headers = {HEADER_FORMAT: FORMAT_ARROW} | data.draw(
        st.sampled_from([{}, {HEADER_ORIGIN: f"{topic}/1/4/2".encode()}])
    )
    record = Record(topic, 300, 9, None, encode_arrow(table), headers)
    try:
        expected = rows_of([log_rows(record)])
    except BadMessage:
        expected = []
    assert list(map(repr, rows_of(log_copy(RecordBatch.of([record]))))) == list(map(repr, expected))


@pytest.mark.parametrize("topic", ["predictions", "feedback"])
def test_what_services_send_is_read_by_columns(topic: str) -> None:
    """Nothing of it goes row by row."""
    n = 500
    columns: dict[str, Any] = {
        "prediction_id": [f"p{i}" for i in range(n)],
        "version": pa.array(["1"] * n).dictionary_encode(),
        "event_time_ms": np.arange(n) + AT_MS,
        "score": np.linspace(0, 1, n),
        "latency_ms": np.ones(n, np.float32),
        "x": pa.array([None if i % 7 == 0 else i / 3 for i in range(n)]),
        "flag": np.arange(n) % 2 == 0,
        "city": [("Zürich", None, "Oslo")[i % 3] for i in range(n)],
    }
    if topic == "feedback":
        columns = {
            "prediction_id": columns["prediction_id"], "model": ["m"] * n, "label": np.ones(n),
            "label_time_ms": columns["event_time_ms"],
        }  # fmt: skip
    table = pa.table(columns).replace_schema_metadata({b"model": b"m"})
    record = Record(topic, 1, 9, None, encode_arrow(table), {HEADER_FORMAT: FORMAT_ARROW})
    found = [rows for _, rows in log_copy(RecordBatch.of([record])) if isinstance(rows, list) or rows.rows]
    assert [type(rows) for rows in found] == [RowBlock]
    assert rows_of(log_copy(RecordBatch.of([record]))) == rows_of([log_rows(record)])


def test_neighbours_of_several_models_keep_their_names() -> None:
    """Two models may have the same columns: whose a batch is stands beside them."""
    columns = {
        "prediction_id": ["a", "b"],
        "version": ["1", "1"],
        "event_time_ms": [AT_MS] * 2,
        "x": [1.0, 2.0],
    }
    records = [
        Record("predictions", 1, at, None, encode_arrow(pa.table(columns).replace_schema_metadata({b"model": model})),
               {HEADER_FORMAT: FORMAT_ARROW})
        for at, model in enumerate([b"m", b"n", b"m"])
    ]  # fmt: skip
    found = rows_of(log_copy(RecordBatch.of(records)))
    assert [(row[0], *row[-2:]) for _, row in found] == [
        (model, at, place) for at, model in enumerate("mnm") for place in range(2)
    ]


def test_columns_are_let_go_of_at_once() -> None:
    """A worker's garbage collector comes once in a hundred thousand objects: what waits for it would be all columns since."""
    columns = {
        "prediction_id": ["a", "b"],
        "version": ["1", "1"],
        "event_time_ms": [AT_MS] * 2,
        "x": [1.0, 2.0],
        "y": ["u", "v"],
    }
    table = pa.table(columns).replace_schema_metadata({b"model": b"m"})
    batch = RecordBatch.of(
        [Record("predictions", 1, 9, None, encode_arrow(table), {HEADER_FORMAT: FORMAT_ARROW})]
    )
    list(log_copy(batch))
    gc.collect()
    gc.disable()
    try:
        made = list(log_copy(batch))
        assert sum(len(rows) if isinstance(rows, list) else rows.rows for _, rows in made) == 2
        del made
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_batch_that_cannot_be_read_with_its_neighbours_is_read_alone() -> None:
    """Numbers beyond what a column takes, an origin that is none, nothing at all: the others' rows are all there, each with its
    own address."""
    good = pa.table(
        {
            "prediction_id": ["p", "q"],
            "version": ["1", "1"],
            "event_time_ms": pa.array([AT_MS] * 2, pa.uint64()),
        }
    )
    huge = good.set_column(2, "event_time_ms", pa.array([AT_MS, 2**63], pa.uint64()))
    other = good.append_column("x", pa.array([0.5, None]))
    arrow = {HEADER_FORMAT: FORMAT_ARROW}
    headers = [
        arrow,
        arrow | {HEADER_ORIGIN: b"predictions/1/4/2"},
        arrow,
        arrow,
        arrow | {HEADER_ORIGIN: b"?"},
        arrow,
    ]
    values = [encode_arrow(table) for table in (good, good, huge, other, good, good)]
    records = [
        Record("predictions", 3, 10 + 5 * at, None, value, held)
        for at, (value, held) in enumerate(zip([*values, b"?"], [*headers, arrow], strict=True))
    ]
    expected = []
    for record in records:
        try:
            expected += rows_of([log_rows(record)])
        except BadMessage:
            continue
    assert len(expected) == 9
    assert sorted(map(repr, rows_of(log_copy(RecordBatch.of(records))))) == sorted(map(repr, expected))
