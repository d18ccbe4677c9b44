"""Every kind of malformed input: one row each, between two good ones that must not notice."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas.arrow import encode_arrow, read_arrow
from schemas.errors import DeliveryError
from schemas.events import MESSAGE_BYTES_MAX, REJECTIONS
from streams.core.archive import log_copy
from streams.core.records import Record, RecordBatch
from tests.support_join import HOUR, T0, Stream, blocks, dead, join_core, prediction, truth
from tests.support_upserts import spread

Make = Callable[[Stream], Record]


def _prediction(**changes: Any) -> Make:
    return lambda stream: stream.event(prediction("bad", **changes))


def _features(**features: Any) -> Make:
    return _prediction(features={"distance": 1.0, "wind": 2.0, "origin": "JFK"} | features)


def _without(name: str) -> Make:
    def make(stream: Stream) -> Record:
        event = prediction("bad")
        event["features"] = {k: v for k, v in event["features"].items() if k != name}
        return stream.event(event)

    return make


def _bytes(value: bytes | None, topic: str = "predictions", key: bytes | None = b"bad") -> Make:
    return lambda stream: stream.raw(value, topic, key)


def _label(**changes: Any) -> Make:
    return lambda stream: stream.event(truth("bad", **changes))


def batch(rows: int = 3, model: str = "flights", **columns: Any) -> pa.Table:
    """An Arrow batch of good rows, with ``columns`` replaced, added, or (None) left out."""
    every: dict[str, Any] = {
        "prediction_id": [f"a{at}" for at in range(rows)],
        "version": ["v1"] * rows,
        "event_time_ms": [T0 + at for at in range(rows)],
        "score": [0.5] * rows,
        "distance": [100.0] * rows,
        "wind": [None] * rows,
        "origin": ["JFK"] * rows,
    }
    every = {name: values for name, values in (every | columns).items() if values is not None}
    return pa.table(every).replace_schema_metadata({b"model": model.encode()})


def _arrow(topic: str = "predictions", cut: int | None = None, **columns: Any) -> Make:
    return lambda stream: stream.arrow(encode_arrow(batch(**columns))[:cut], topic)


HUGE = json.dumps(prediction("bad", trace_id="x" * MESSAGE_BYTES_MAX)).encode()
NAN = json.dumps(prediction("bad", features={"distance": float("nan"), "origin": "JFK"})).encode()

#: What is wrong, the reason it must get, and the message. ``batch row``: (row that is bad, rows of it that are good).
MALFORMED: list[tuple[str, str, Make]] = [
    ("not JSON", "not-json", _bytes(b"{not json")),
    ("not UTF-8", "not-json", _bytes(json.dumps(prediction("bad", entity="?")).encode().replace(b"?", b"\xff\xfe"))),
    ("two documents", "not-json", _bytes(json.dumps(prediction("bad")).encode() * 2)),
    ("nested beyond any limit", "wrong-type", _bytes(b"[" * 100_000)),
    ("not an object", "wrong-type", _bytes(b"[1, 2, 3]")),
    ("no value", "empty", _bytes(None)),
    ("an empty value", "empty", _bytes(b"")),
    ("a time that is text", "wrong-type", _prediction(event_time_ms="2023-11-14")),
    ("a score that is text", "wrong-type", _prediction(score="0.5")),
    ("a feature that is text", "wrong-type", _features(distance="far")),
    ("a category that is a number", "wrong-type", _features(origin=7)),
    ("features that are a list", "wrong-type", _prediction(features=[1, 2])),
    ("no version", "wrong-type", lambda s: s.raw(json.dumps({k: v for k, v in prediction("bad").items() if k != "version"}).encode())),
    ("an unknown model", "unknown-model", _prediction(model="nobody")),
    ("the model that is nobody", "invalid-value", _prediction(model="\x00", never=1)),
    ("no model", "unknown-model", lambda s: s.raw(json.dumps({k: v for k, v in prediction("bad").items() if k != "model"}).encode())),
    ("a missing feature", "missing-feature", _without("distance")),
    ("null in a feature that is never null", "missing-feature", _features(distance=None)),
    ("a feature the contract has not", "unknown-field", _features(speed=1.0)),
    ("a field no prediction has", "unknown-field", _prediction(scores=1)),
    ("NaN", "not-finite", _bytes(NAN)),
    ("infinity", "not-finite", _bytes(NAN.replace(b"NaN", b"-Infinity"))),
    ("a number beyond any float", "not-finite", _bytes(NAN.replace(b"NaN", b"1e999"))),
    ("a time before the year 2000", "absurd-timestamp", _prediction(event_time_ms=1)),
    ("a time in seconds", "absurd-timestamp", _prediction(event_time_ms=T0 // 1000)),
    ("a time beyond 64 bits", "absurd-timestamp", _prediction(event_time_ms=10**30)),
    ("older than the contract allows", "absurd-timestamp", _prediction(event_time_ms=T0 - 31 * 24 * HOUR)),
    ("further ahead than the contract allows", "absurd-timestamp", _prediction(event_time_ms=T0 + HOUR)),
    ("oversize", "oversize", _bytes(HUGE)),
    ("a key that is not the prediction's", "wrong-key", _bytes(json.dumps(prediction("bad")).encode(), key=b"other")),
    ("a role that does not exist", "invalid-value", _prediction(role="champion")),
    ("a negative latency", "invalid-value", _prediction(latency_ms=-1)),
    ("an empty prediction id", "invalid-value", _bytes(json.dumps(prediction("")).encode(), key=None)),
    ("a version that is no name", "invalid-value", _prediction(version="v 1/../x")),
    ("a truncated Arrow batch", "bad-arrow", _arrow(cut=-200)),
    ("Arrow that is not Arrow", "bad-arrow", lambda s: s.arrow(b"ARROW1 but no")),
    ("Arrow of an unknown model", "unknown-model", _arrow(model="nobody")),
    ("Arrow without a feature", "missing-feature", _arrow(distance=None)),
    ("Arrow with a column of another type", "wrong-type", _arrow(distance=["far"] * 3)),
    ("Arrow with an unknown column", "unknown-field", _arrow(speed=[1.0] * 3)),
    ("a label that is not JSON", "not-json", _bytes(b"?", "feedback")),
    ("a label of an unknown model", "unknown-model", _label(model="nobody")),
    ("a label that is neither 0 nor 1", "invalid-value", _label(label=0.5)),
    ("a label under a wrong key", "wrong-key", _bytes(json.dumps(truth("bad")).encode(), "feedback", b"other")),
    ("a label of no time", "absurd-timestamp", _label(label_time_ms=0)),
    ("a label with an unknown field", "unknown-field", _label(colour="red")),
    ("a negative revision", "invalid-value", _label(revision=-1)),
    ("a truncated Arrow batch of labels", "bad-arrow", _arrow("feedback", cut=-200)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "make"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED]
)
def test_a_malformed_message_is_dead_lettered_and_its_neighbours_are_kept(reason: str, make: Make) -> None:
    """Address, reason and the bytes as they came; the good rows before and after are counted."""
    core, stream = join_core(), Stream()
    core.apply([stream.tick(T0), stream.event(prediction("before"))], 0)
    bad = make(stream)
    after = [stream.event(prediction("after")), stream.event(truth("before"))]
    core.apply([after[0], bad, after[1]] if bad.topic == "feedback" else [bad, *after], 0)
    outs = core.outputs()
    (letter,) = dead(outs)
    assert letter.reason == reason
    assert letter.detail
    assert (letter.topic, letter.partition, letter.offset, letter.row) == (bad.topic, 0, bad.offset, 0)
    assert letter.timestamp_ms == bad.timestamp_ms
    value = bad.value or b""
    assert base64.b64decode(letter.value_base64) == value[: 256 * 1024]
    assert letter.truncated == (len(value) > 256 * 1024)
    observed = [(block.kind, len(block)) for block in blocks(outs)]
    assert observed == [("predictions", 2), ("outcomes", 1)]


def test_every_reason_of_the_closed_list_has_a_row() -> None:
    """A reason that no test produces would be a promise nobody checked. ``no-room`` is no fault of the message: see
    ``test_cold``."""
    assert {row[1] for row in MALFORMED} | {"no-room"} == set(REJECTIONS)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"distance": [1.0, float("inf"), 2.0]}, "not-finite"),
        ({"distance": [1.0, None, 2.0]}, "missing-feature"),
        ({"distance": [1.0, float("nan"), 2.0]}, "missing-feature"),
        ({"event_time_ms": [T0, 5, T0]}, "absurd-timestamp"),
        ({"role": ["stable", "king", "canary"]}, "invalid-value"),
        ({"latency_ms": [1.0, -1.0, 2.0]}, "invalid-value"),
        ({"prediction_id": ["a0", "", "a2"]}, "invalid-value"),
        ({"version": ["v1", None, "v2"]}, "invalid-value"),
        ({"score": [0.5, float("-inf"), 0.5]}, "not-finite"),
    ],
)
def test_one_bad_row_of_an_arrow_batch_leaves_the_others(columns: dict[str, Any], reason: str) -> None:
    """Rows of a batch have addresses of their own."""
    core, stream = join_core(), Stream()
    core.apply([stream.arrow(encode_arrow(batch(**columns)))], 0)
    outs = core.outputs()
    (letter,) = dead(outs)
    assert (letter.reason, letter.offset, letter.row) == (reason, 0, 1)
    (block,) = blocks(outs)
    assert block.row.tolist() == [0, 2]
    # The letter holds that row as a batch, which is no better when it is sent again.
    value = base64.b64decode(letter.value_base64)
    again = join_core()
    again.apply([Stream().arrow(value)], 0)
    (same,) = dead(again.outputs())
    assert (same.reason, same.row, read_arrow(value).num_rows) == (reason, 0, 1)


@pytest.mark.parametrize(
    "shape", ["plain", "coded", "coded views", "views", "small record batches", "much said in the schema"]
)
def test_a_batch_with_many_bad_rows_is_not_written_once_for_each(shape: str) -> None:
    """Letters of a third of its rows take a small multiple of what the batch does, whatever holds its texts."""
    rows = 900
    ids = [f"a{at}" for at in range(rows)]
    kind = {
        "coded": pa.dictionary(pa.int32(), pa.string()),
        "coded views": pa.dictionary(pa.int32(), pa.string_view()),
        "views": pa.string_view(),
    }.get(shape, pa.string())
    entities = pa.array([f"a customer whose name is long {one}" for one in ids])
    entity = (
        pa.DictionaryArray.from_arrays(np.arange(rows, dtype=np.int32), entities.cast(kind.value_type))
        if pa.types.is_dictionary(kind)
        else entities.cast(kind)
    )
    scores = [float("inf") if at % 3 == 0 else 0.5 for at in range(rows)]
    table = batch(rows, event_time_ms=[T0] * rows, score=scores, entity=entity)
    if shape == "small record batches":
        table = pa.concat_tables([table.slice(at, 3) for at in range(0, rows, 3)])
    if shape == "much said in the schema":
        table = table.replace_schema_metadata({b"model": b"flights", b"pandas": b"x" * 50_000})
    core = join_core()
    core.apply([Stream().arrow(encode_arrow(table))], 0)
    letters = dead(core.outputs())
    assert [letter.row for letter in letters] == list(range(0, rows, 3))
    opened = [read_arrow(base64.b64decode(letter.value_base64)).to_pylist() for letter in letters]
    assert opened == [[row] for row in table.to_pylist()[::3]]
    assert max(len(letter.value_base64) for letter in letters) < 4_000


@pytest.mark.parametrize(
    "entity",
    [
        pa.array([[1], [2], [3]]), pa.array([{"a": 1}] * 3), pa.array([1, 2, 3]), pa.array([2**62] * 3, pa.duration("s")),
        pa.array([2**62] * 3, pa.timestamp("s")), pa.array([1] * 3, pa.timestamp("ms", "Nowhere/Atlantis")),
        pa.DictionaryArray.from_arrays(np.zeros(3, np.int32), pa.array([[1]])), pa.array([b"x"] * 3, pa.binary_view()),
    ],
    ids=lambda entity: str(entity.type),
)  # fmt: skip
@pytest.mark.parametrize("faulty", [True, False], ids=["beside a bad row", "alone"])
@pytest.mark.parametrize("topic", ["predictions", "feedback"])
def test_a_column_that_holds_no_texts_ends_nobody(topic: str, faulty: bool, entity: pa.Array) -> None:
    """Whether the rows are of this partition or of others, in the join and in the raw log."""
    ids = [f"a{at}" for at in range(3)]
    if topic == "predictions":
        table = batch(entity=entity, score=[0.5, float("inf") if faulty else 0.5, 0.5])
    else:
        table = pa.table(
            {"prediction_id": ids, "model": ["flights"] * 3, "label": [1.0, -1.0 if faulty else 1.0, 0.0], "label_time_ms": [T0] * 3, "trace_id": entity}
        )  # fmt: skip
    core = join_core(0, 4)
    record = Stream(0).arrow(encode_arrow(table), topic)
    core.apply([record], 0)
    assert {letter.reason for letter in dead(core.outputs())} <= {"wrong-type", "invalid-value", "not-finite"}
    list(log_copy(RecordBatch.of([record])))


def test_before_time_is_known_only_the_years_are_checked() -> None:
    """The first events of a stream set no bounds for one another."""
    core, stream = join_core(), Stream()
    core.apply(
        [stream.event(prediction("old", event_time_ms=T0 - 400 * 24 * HOUR)), stream.event(prediction())], 0
    )
    outs = core.outputs()
    assert not dead(outs)
    assert [len(block) for block in blocks(outs)] == [2]


def test_what_is_out_of_range_or_unknown_is_counted_and_not_rejected() -> None:
    """Drift is what the monitor is for: strange values are data, not errors."""
    core, stream = join_core(), Stream()
    strange = {"distance": -1e300, "wind": 1e308, "origin": "Atlantis"}
    core.apply([stream.event(prediction(features=strange, score=-7.5, latency_ms=1e300))], 0)
    core.apply([stream.event(truth())], 0)
    outs = core.outputs()
    assert not dead(outs)
    block, outcome = blocks(outs)
    assert block.features[0].tolist() == [-1e300, 1e308, 3.0]
    assert np.isfinite(outcome.loss).all()
    rows = {u.key[7]: u.row for u in spread(core.upserts()) if u.table == "window_features"}
    assert rows["distance"][10] == rows["origin"][10] == 1
    assert rows["origin"][-3] == {"(other)": 1}


def test_a_stream_that_is_mostly_bad_halts_instead_of_filling_dead_letters() -> None:
    """A broken producer is an outage to be seen, not a topic to be emptied."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction(f"p{at}")) for at in range(600)], 0)
    core.apply([stream.raw(b"?") for _ in range(399)], 0)
    assert core.halted is None
    with pytest.raises(DeliveryError, match=r"701 of the last 1301 messages are bad.*bad_share_max"):
        core.apply([stream.raw(b"?") for _ in range(302)], 0)
    assert core.halted is not None
