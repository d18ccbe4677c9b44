"""Rows of the log that the monitor's scanner writes on its way are the log's own, and what it leaves is all that is missing."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.codecs import PredictionDecoder
from schemas.contracts import ModelRecord
from schemas.events import HEADER_KIND, HEADER_ORIGIN, KIND_TICK, Tick
from schemas.messages import TIME_MAX_MS, Messages
from schemas.scan_rows import LogRows
from schemas.settings import MonitorSettings
from streams.core import pipeline
from streams.core.archive import is_own, is_plain, log_copy, table_of
from streams.core.delivery import StageContext
from streams.core.raw_log import stretch_of
from streams.core.records import Record, RecordBatch
from tests.support_archive import rows_of
from tests.support_documents import CONTRACTS, documents
from tests.support_examples import examples
from tests.support_join import CONTRACT, prediction

DECODER = PredictionDecoder(CONTRACTS.values())
Headers = dict[str, bytes]


def _batch(values: list[bytes], headers: list[Headers] | None = None, first: int = 10) -> RecordBatch:
    with_headers = zip(values, headers or [{}] * len(values), strict=True)
    return RecordBatch.of(
        [
            Record("predictions", 3, first + 7 * at, None, value, held)
            for at, (value, held) in enumerate(with_headers)
        ]
    )


def _logged(batch: RecordBatch) -> LogRows:
    log = LogRows(batch.partition, batch.offsets, is_own(batch), is_plain(batch))
    DECODER.decode(Messages(batch.keys, batch.values, np.zeros(len(batch), np.bool_)), None, log)
    return log


def _rows(batches: list[RecordBatch], logged: list[LogRows]) -> list[str]:
    """What the log has of them in the end, by address."""
    held = stretch_of(batches, logged)
    assert held.end == batches[-1].offsets[-1] + 1
    made = [(table_of(held.topic), block) for block in held.rows]
    found = rows_of(made) + [row for batch in held.records for row in rows_of(log_copy(batch))]
    return [repr(row) for row in sorted(found, key=lambda one: one[1][-3:])]


def _expected(batches: list[RecordBatch]) -> list[str]:
    found = [row for batch in batches for row in rows_of(log_copy(batch))]
    return [repr(row) for row in sorted(found, key=lambda one: one[1][-3:])]


@examples(100)
@given(st.data())
def test_rows_are_the_same_whoever_makes_them(data: st.DataObject) -> None:
    """Events of several models, good and bad, their fields in any order, from here and sent on: nothing is lost or twice."""
    values = [value for _, value, _ in data.draw(st.lists(documents("prediction"), min_size=1, max_size=8))]
    held: list[Headers] = [{}, {}, {}, {"traceparent": b"00"}, {HEADER_ORIGIN: b"predictions/1/4/2"}]
    headers = [data.draw(st.sampled_from(held)) for _ in values]
    batch = _batch(values, headers)
    log = _logged(batch)
    assert sum(block.rows for block in log.blocks) == np.count_nonzero(log.written)
    assert _rows([batch], [log]) == _expected([batch])


def test_what_services_send_is_written_on_the_way() -> None:
    """Nulls, categories nobody knows, any order of features, texts longer than a length of one byte, no optional field."""
    events = [
        prediction("p0"),
        prediction("p1", features={"origin": "LGA", "distance": 1.5}, entity="e" * 200, score=None),
        prediction("p2", model="other", features={"origin": "?" * 130, "wind": None, "size.m-2": -1e-7}),
        prediction("p3", model="other", features={"size.m-2": 1}, role="shadow", status="error"),
        prediction("p4", model="one", features={"x": 0.0}, latency_ms=0.5, region="eu", trace_id="t" * 64),
    ]
    events[0].pop("score", None)
    batch = _batch([json.dumps(event).encode() for event in events])
    log = _logged(batch)
    assert log.written.all()
    assert _rows([batch], [log]) == _expected([batch])


def test_a_time_no_column_can_hold_has_no_row() -> None:
    """The scanner takes it, for only the decoder knows the stream's own time."""
    batch = _batch(
        [json.dumps(prediction("p", event_time_ms=at)).encode() for at in (TIME_MAX_MS, TIME_MAX_MS + 1)]
    )
    log = _logged(batch)
    assert log.written.tolist() == [True, False]
    assert _rows([batch], [log]) == _expected([batch])


def test_the_join_makes_rows_of_what_lies_between_ticks_and_leaves_the_rest() -> None:
    """Ticks, bad events, events sent here by another partition; two batches, of which each call tells anew."""
    core = pipeline.create(StageContext("join", 3, 4, MonitorSettings()))
    core.activate([ModelRecord(contract=CONTRACT)])
    tick = Tick(event_time_ms=0, source="s").model_dump_json().encode()
    good = [json.dumps(prediction(f"p{at}")).encode() for at in range(40)]
    values = [*good[:20], tick, b"{", *good[20:], tick]
    kinds: list[Headers] = [{HEADER_KIND: KIND_TICK} if value is tick else {} for value in values]
    kinds[5] = {HEADER_ORIGIN: b"predictions/1/4/0"}
    batches = [_batch(values[:30], kinds[:30]), _batch(values[30:], kinds[30:], 1_000)]
    core.apply(batches, 0)
    logged = core.logged()
    held = stretch_of(batches, logged)
    assert [[batch[at].value for at in range(len(batch))] for batch in held.records] == [
        [good[5], tick, b"{"],
        [tick],
    ]
    assert held.size < sum(batch.values.size for batch in batches)
    assert _rows(batches, logged) == _expected(batches)
    core.apply([_batch(good[:1], first=2_000)], 0)
    assert [block.rows for log in core.logged() for block in log.blocks] == [1]


def test_no_rows_are_made_where_somebody_else_writes_the_log() -> None:
    """The archive does, or there is no warehouse."""
    for settings_ in ({"clickhouse": {"raw_log": "archive"}}, {"monitor": {"warehouse": False}}):
        core = pipeline.create(StageContext("join", 3, 4, MonitorSettings.model_validate(settings_)))
        core.activate([ModelRecord(contract=CONTRACT)])
        core.apply([_batch([json.dumps(prediction("p")).encode()])], 0)
        assert core.logged() == []
