"""Rows of the log are the same whether the scanner wrote them as bytes or a decoder made them one by one."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.errors import BadMessage
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, HEADER_ORIGIN, KIND_TICK
from schemas.json_text import FAILED, text_size
from schemas.row_binary import RowBlock, pack_rows, read_rows
from schemas.rows import TABLES
from schemas.scan_log import FEATURES_MAX
from streams.core.archive import log_copy, log_rows, scanner_of
from streams.core.records import Record, RecordBatch
from tests.support_archive import rows_of
from tests.support_documents import documents
from tests.support_examples import examples
from tests.support_join import prediction, truth

Headers = dict[str, bytes]


def _batch(topic: str, values: list[bytes], headers: list[Headers] | None = None) -> RecordBatch:
    with_headers = zip(values, headers or [{}] * len(values), strict=True)
    return RecordBatch.of(
        [Record(topic, 3, 10 + 7 * at, b"k", value, held) for at, (value, held) in enumerate(with_headers)]
    )


def _slowly(batch: RecordBatch) -> list[tuple[str, tuple[Any, ...]]]:
    found = []
    for record in batch:
        try:
            found += rows_of([log_rows(record)])
        except BadMessage:
            continue
    return found


def _plain(row: tuple[Any, ...]) -> str:
    """NaN equals itself, a true is no 1.0, and a map has an order."""
    return repr(row)


@examples(75)
@given(st.sampled_from(["predictions", "feedback"]), st.data())
def test_rows_are_the_same_whoever_makes_them(topic: str, data: st.DataObject) -> None:
    """Events of many models, good and bad, in any order of their fields: nothing is lost, nothing twice, nothing different."""
    kind = "prediction" if topic == "predictions" else "label"
    values = [value for _, value, _ in data.draw(st.lists(documents(kind), max_size=6))]
    origin = {HEADER_ORIGIN: f"{topic}/1/4/2".encode()}
    headers = [
        data.draw(st.sampled_from([{}, {}, {}, {"traceparent": b"00"}, {HEADER_KIND: KIND_TICK}, origin]))
        for _ in values
    ]
    if values:
        batch = _batch(topic, values, headers)
        key = lambda found: (found[1][-3:], _plain(found[1]))  # noqa: E731
        assert list(map(_plain, sorted(rows_of(log_copy(batch)), key=key))) == list(
            map(_plain, sorted(_slowly(batch), key=key))
        )


@pytest.mark.parametrize("features", [10, 300, FEATURES_MAX])
def test_what_services_send_is_left_to_no_decoder(features: int) -> None:
    """Predictions of two models that take turns, texts of any script, and labels."""
    events = []
    for at in range(6):
        named = {f"{'ab'[at % 2]}{i}": i / 7 for i in range(features - 2)} | {"Größe": "groß €😀", "no": None}
        events.append(prediction(f"p{at}", features=named, model=f"m{at % 2}", entity="Ünal"))
    values = [json.dumps(event, ensure_ascii=False).encode() for event in events]
    for topic, of in (("predictions", values), ("feedback", [json.dumps(truth("p")).encode()])):
        batch = _batch(topic, of)
        block, left = scanner_of(topic).rows(batch.values, np.zeros(len(of), np.bool_), 3, batch.offsets)
        assert len(left) == 0
        assert [("", row) for row in read_rows(TABLES[log_rows(batch[0])[0]].types, block)] == [
            ("", row) for _, row in _slowly(batch)
        ]


def test_a_feature_sent_twice_is_left_wherever_it_stands() -> None:
    """A map would hold both; a decoder takes the last. The row before had it once, in the same place."""
    texts = [json.dumps(prediction("p", features={"x": 1, "y": 2, "z": 3})).replace(" ", "")]
    texts += [texts[0].replace('"z":', f'"{name}":') for name in "xyz"]
    batch = _batch("predictions", [text.encode() for text in texts])
    _, left = scanner_of("predictions").rows(batch.values, np.zeros(4, np.bool_), 0, batch.offsets)
    assert left.tolist() == [1, 2]
    maps = [row[5] for _, row in rows_of(log_copy(batch))]
    assert [m for m in maps if len(m) == 2] == [{"x": 3.0, "y": 2.0}, {"x": 1.0, "y": 3.0}]


def test_batches_of_arrow_and_empty_messages_are_not_read_as_json() -> None:
    """They go the way of whatever is not plain."""
    batch = RecordBatch.of(
        [
            Record("predictions", 0, 0, None, b"{}", {HEADER_FORMAT: FORMAT_ARROW}),
            Record("predictions", 0, 1, b"p", None),
        ]
    )
    assert rows_of(log_copy(batch)) == []


@examples(120)
@given(
    st.binary(max_size=12) | st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.integers(0, 9),
)
@example(b"\xed\xa0\x80", 0)
@example(b"\xf4\x90\x80\x80", 0)
@example(b"\xe0\x9f\xbf\xf0\x8f\xbf\xbf", 0)
def test_a_text_of_any_script_ends_at_its_quote_or_is_left(text: bytes, pad: int) -> None:
    """As Python decodes UTF-8, and nothing behind the end is looked at."""
    body = b"x" * pad + text + b'"'
    stop, chars = text_size(np.frombuffer(body + b"\x80" * 8, np.uint8), 0, len(body))
    held = body[: body.index(b'"')]
    try:
        expected = (len(held), len(held.decode()))
    except UnicodeDecodeError:
        expected = (FAILED, 0)
    if any(c < 32 or c == 92 for c in held):
        expected = (FAILED, 0)
    assert (stop, chars) == expected


def test_rows_of_one_size_are_packed_and_read_back() -> None:
    """Numbers, arrays behind their length, and what all rows share."""
    columns = [
        np.array([1, 2**64 - 1], "<u8"),
        b"\x01v",
        np.array([0.5, math.inf]),
        b"\x02",
        np.array([[1, -1], [2, -2]], "<i4"),
    ]
    types = ("UInt64", "LowCardinality(String)", "Float64", "Array(Int32)")
    assert read_rows(types, pack_rows(2, columns)) == [
        (1, "v", 0.5, [1, -1]),
        (2**64 - 1, "v", math.inf, [2, -2]),
    ]
    with pytest.raises(ValueError, match="behind the last"):
        read_rows(types, RowBlock(1, pack_rows(2, columns).parts))
