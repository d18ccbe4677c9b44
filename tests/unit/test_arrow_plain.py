"""Arrow batches of the ordinary kind are read by compiled code: it says what column by column is said, or nothing."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrow import encode_arrow, read_arrow
from schemas.arrow_plain import Odd, PlainBatches
from schemas.codecs import PredictionDecoder
from schemas.columns import PredictionColumns
from schemas.errors import BadMessage
from schemas.messages import Bad, Messages
from tests.support_examples import examples
from tests.support_join import CONTRACT, T0, prediction

DECODER = PredictionDecoder([CONTRACT])
NUMBERS = [one.name for one in CONTRACT.features if one.kind == "numeric"]
FEATURES = prediction()["features"]
words = st.sampled_from(["1", "v2", "ok", "stable", "canary", "EWR", "JFK", "ü", "", "x" * 70])
ids = st.sampled_from([f"p{at}" for at in range(20)] + ["", "é" * 3, "x" * 200, "ä" * 150, "y" * 201])
reals = st.none() | st.sampled_from([0.0, -1.5, 3.25, float("nan"), float("inf")])


def _usual(n: int) -> dict[str, Any]:
    rows: dict[str, Any] = {"prediction_id": [f"p{at}" for at in range(n)], "version": ["1"] * n}
    rows |= {"event_time_ms": [T0 + at for at in range(n)], "score": [0.25] * n, "entity": ["e"] * n}
    return rows | {name: [value] * n for name, value in FEATURES.items()}


def _table(rows: dict[str, Any], kind: pa.DataType) -> pa.Table:
    """``kind``: of columns of texts."""
    columns = {}
    for name, values in rows.items():
        texts = any(isinstance(value, str) for value in values)
        of = kind if texts else pa.int64() if name == "event_time_ms" else pa.float64()
        columns[name] = pa.array(values, of, from_pandas=False)
    return pa.table(columns).replace_schema_metadata({b"model": CONTRACT.model.encode()})


def _decoded(values: list[bytes]) -> tuple[list[Any], list[Bad]]:
    columns, bad = DECODER.decode(Messages.of([(None, value, True) for value in values]))
    return [row for one in columns for row in _rows(one)], sorted(bad, key=lambda one: (one.message, one.row))


def _rows(of: PredictionColumns) -> list[Any]:
    rows = zip(
        of.message.tolist(), of.row.tolist(), of.ids, [of.versions[code] for code in of.version.tolist()], of.role.tolist(),
        of.event_time_ms.tolist(), map(repr, of.score.tolist()), of.latency_ms.tolist(), of.status.tolist(),
        map(repr, of.features.tolist()), strict=True,
    )  # fmt: skip
    return list(rows)


@examples(50)
@given(st.data())
def test_what_is_ordinary_is_read_as_whatever_else_is(data: st.DataObject) -> None:
    """Texts of another type are read by other code: rows and what is wrong with which are the same, in one message or in several."""
    n = data.draw(st.integers(1, 6))
    rows = _usual(n)
    columns = {"prediction_id": ids, "version": words, "role": words, "status": words, "entity": words}
    columns |= dict.fromkeys(["score", "latency_ms", *NUMBERS], reals)
    columns |= {name: words for name in FEATURES if name not in NUMBERS}
    for name in data.draw(st.lists(st.sampled_from(sorted(columns)), max_size=2, unique=True)):
        rows[name] = data.draw(st.lists(columns[name], min_size=n, max_size=n))
    tables = [_table(rows, kind) for kind in (pa.string(), pa.large_string())]
    cuts = [(0, n), (0, 1), (1, n)] if n > 1 else [(0, n)]
    plain, other = ([encode_arrow(table.slice(a, b - a)) for a, b in cuts] for table in tables)
    assert _decoded(plain) == _decoded(other)


def test_a_thousand_rows_are_not_odd() -> None:
    """The ordinary case is one: it is what is fast. Numbers and texts are those that were sent, null is NaN."""
    rows = _usual(3_000)
    rows["version"] = [f"v{at % 9}" for at in range(3_000)]
    rows[NUMBERS[0]] = [None if at % 5 == 4 else at / 2 for at in range(3_000)]
    tables = [
        _table({name: of[a:b] for name, of in rows.items()}, pa.string()) for a, b in ((0, 1), (1, 3_000))
    ]
    batches = [table.to_batches()[0] for table in tables]
    with PlainBatches(batches) as batch:
        into = np.empty(3_000)
        assert batch.floats("score", into) == 0 and set(into) == {0.25}
        assert batch.floats(NUMBERS[0], into) == 1
        np.testing.assert_array_equal(into, [np.nan if of is None else of for of in rows[NUMBERS[0]]])
        assert batch.integers("event_time_ms").tolist() == rows["event_time_ms"]
        assert [key.decode() for key in batch.keys("prediction_id", 200) if key] == rows["prediction_id"]
        names, codes = batch.texts("version")
        assert [names[code] for code in codes.tolist()] == rows["version"]
        batch.check_texts(["entity"])
        for name in ("score", "event_time_ms"):
            with pytest.raises(Odd):
                batch.keys(name, 200)


@examples(100)
@given(st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_batch_is_bad_as_pyarrow_says(first: int, by: int, second: int, other: int) -> None:
    """Offsets that point anywhere are not followed, texts that are none not taken: memory is what it was sent as, or refused."""
    sink = io.BytesIO()
    table = _table(_usual(40) | {"version": ["v1", "version-2"] * 20}, pa.string())
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    value = bytearray(sink.getvalue())
    for at, byte in ((first, by), (second, other)):
        value[at % len(value)] = byte
    rows, bad = _decoded([bytes(value)])
    refused = _refused(bytes(value))
    if refused:
        assert [one.reason for one in bad] == refused
    else:
        assert rows or bad or not read_arrow(bytes(value)).num_rows


def _refused(value: bytes) -> list[str]:
    try:
        read_arrow(value)
    except BadMessage as error:
        return [error.reason]
    return []
