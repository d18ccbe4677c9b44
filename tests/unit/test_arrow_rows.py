"""Rows of the log that the monitor makes of Arrow batches on its way are the log's own, and what it leaves is all that is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrow import encode_arrow
from schemas.codecs import PredictionDecoder
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_ORIGIN
from schemas.messages import TIME_MAX_MS, Messages
from schemas.scan_rows import LogRows
from streams.core.archive import is_own, is_plain, log_copy, table_of
from streams.core.raw_log import stretch_of
from streams.core.records import Record, RecordBatch
from tests.support_archive import rows_of
from tests.support_examples import examples
from tests.support_join import CONTRACT, T0, prediction

FEATURES = prediction()["features"]
DECODER = PredictionDecoder([CONTRACT, CONTRACT.model_copy(update={"model": "other"})])
TEXTS = [one.name for one in CONTRACT.features if one.kind == "categorical"]
REALS = {"score", "latency_ms", *FEATURES} - set(TEXTS)
CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "role": st.sampled_from(["stable", "shadow", "nobody"]),
    "status": st.sampled_from(["ok", "error", ""]),
    "version": st.sampled_from(["1", "v2", "", "no name"]),
    "entity": st.sampled_from(["", "e", "é" * 90, None]),
    "trace_id": st.sampled_from(["", "t" * 64]),
    "region": st.sampled_from(["eu", "us"]),
    "score": st.sampled_from([0.5, None, float("nan"), float("inf")]),
    "latency_ms": st.sampled_from([0.0, 2.5, -1.0]),
    "event_time_ms": st.sampled_from([T0, TIME_MAX_MS, TIME_MAX_MS + 1, 5]),
    **{name: st.sampled_from(["EWR", "?" * 200, ""]) for name in TEXTS},
    **{name: st.sampled_from([0.0, -2.5, None]) for name in FEATURES if name not in TEXTS},
}


def _table(model: str, first: int, rows: int, columns: dict[str, list[Any]]) -> pa.Table:
    held: dict[str, list[Any]] = {
        "prediction_id": [f"p{first + at}" for at in range(rows)], "version": ["1"] * rows, "event_time_ms": [T0 + at for at in range(rows)],
        "score": [0.25] * rows, **{name: [value] * rows for name, value in FEATURES.items()},
    }  # fmt: skip
    arrays = {}
    for name, values in (held | columns).items():
        kind = pa.float64() if name in REALS else pa.int64() if name == "event_time_ms" else pa.string()
        arrays[name] = pa.array(values, kind, from_pandas=False)
    return pa.table(arrays).replace_schema_metadata({b"model": model.encode()})


def _logged(batch: RecordBatch) -> LogRows:
    log = LogRows(batch.partition, batch.offsets, is_own(batch), is_plain(batch))
    DECODER.decode(Messages(batch.keys, batch.values, np.ones(len(batch), np.bool_)), None, log)
    return log


def _batch(tables: list[pa.Table], headers: list[dict[str, bytes]]) -> RecordBatch:
    return RecordBatch.of([
        Record("predictions", 300, 7 * at, None, encode_arrow(table), {HEADER_FORMAT: FORMAT_ARROW} | held)
        for at, (table, held) in enumerate(zip(tables, headers, strict=True))
    ])  # fmt: skip


def _rows(copied: list[tuple[str, Any]]) -> list[str]:
    return [repr(row) for row in sorted(rows_of(copied), key=lambda one: one[1][-3:])]


@examples(75)
@given(st.data())
def test_rows_are_the_same_whoever_makes_them(data: st.DataObject) -> None:
    """Batches of several models and columns, good and bad, from here and sent on: nothing is lost or twice."""
    tables, headers = [], []
    for at in range(data.draw(st.integers(1, 4))):
        rows = data.draw(st.integers(1, 5))
        some = data.draw(st.lists(st.sampled_from(sorted(CHOICES)), max_size=2, unique=True))
        columns = {name: data.draw(st.lists(CHOICES[name], min_size=rows, max_size=rows)) for name in some}
        tables.append(_table(data.draw(st.sampled_from(["other", CONTRACT.model])), 100 * at, rows, columns))
        headers.append(data.draw(st.sampled_from([{}, {}, {HEADER_ORIGIN: b"predictions/1/4/2"}])))
    batch = _batch(tables, headers)
    log = _logged(batch)
    held = stretch_of([batch], [log])
    made: list[tuple[str, Any]] = [(table_of(held.topic), block) for block in held.rows]
    left = [copied for one in held.records for copied in log_copy(one)]
    assert _rows(made + left) == _rows(list(log_copy(batch)))


def test_what_services_send_is_written_on_the_way() -> None:
    """Of two batches read together, with all that may be in one: nothing is left for later."""
    more = {
        "role": ["stable", "shadow"] * 150, "status": ["error"] * 300, "version": ["1", "2", "3"] * 100, "entity": ["", "é" * 90] * 150,
        "wind": [-1.0] * 300, "trace_id": ["t"] * 300, "region": ["eu"] * 300, "latency_ms": [1.5] * 300, TEXTS[0]: ["EWR", "nobody's", "?"] * 100,
    }  # fmt: skip
    batch = _batch([_table(CONTRACT.model, 300 * at, 300, more) for at in range(2)], [{}, {}])
    log = _logged(batch)
    assert log.written.all()
    assert [block.rows for block in log.blocks] == [600]
    assert _rows([("prediction_log", block) for block in log.blocks]) == _rows(list(log_copy(batch)))
    assert log.blocks[0].held <= log.blocks[0].nbytes
