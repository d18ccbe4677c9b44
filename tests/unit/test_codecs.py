"""The compiled decoders accept what the public models accept, and put it into the right columns."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.arrow import encode_arrow, encode_arrow_labels, encode_arrow_predictions
from schemas.codecs import PredictionDecoder, encode_prediction
from schemas.events import GroundTruth, PredictionMade
from schemas.ids import partition_of
from schemas.labels import LabelColumns, LabelDecoder, encode_label
from schemas.messages import Messages
from schemas.spans import Spans
from tests.support_examples import examples
from tests.support_join import CONTRACT, T0, prediction, truth

DECODER = PredictionDecoder([CONTRACT, CONTRACT.model_copy(update={"model": "other"})])
text = st.text(max_size=5) | st.sampled_from(
    ["stable", "canary", "ok", "fallback", "v1", "", "x" * 101, "a" * 65]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)


def _decoded(event: dict[str, Any]) -> bool:
    columns, bad = DECODER.decode(Messages.of([(None, json.dumps(event).encode(), False)]))
    assert len(columns) + len(bad) == 1
    return not bad


def _modelled(event: dict[str, Any]) -> bool:
    try:
        PredictionMade.model_validate_json(json.dumps(event), strict=True)
    except ValidationError:
        return False
    return True


@examples(100)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "prediction_id",
                "version",
                "role",
                "score",
                "latency_ms",
                "status",
                "entity",
                "region",
                "trace_id",
                "extra",
            ]
        ),
        scalars,
        max_size=2,
    )
)
def test_decoder_and_public_model_agree_on_every_field(changes: dict[str, Any]) -> None:
    """One contract in two codes: what pydantic refuses the decoder refuses, and the other way round."""
    event = prediction(**changes)
    assert _decoded(event) == _modelled(event), changes


@examples(50)
@given(
    st.dictionaries(
        st.sampled_from(["prediction_id", "model", "revision", "trace_id", "extra"]), scalars, max_size=2
    )
)
def test_label_decoder_and_public_model_agree(changes: dict[str, Any]) -> None:
    """The same for ground truth; a well-formed name of a model nobody knows is refused by the stream alone."""
    event = truth(**changes)
    _, bad = LabelDecoder({"flights": CONTRACT}).decode(
        Messages.of([(None, json.dumps(event).encode(), False)])
    )
    try:
        GroundTruth.model_validate_json(json.dumps(event), strict=True)
    except ValidationError:
        assert bad
    else:
        assert not bad or bad[0].reason == "unknown-model"


def test_columns_hold_what_the_events_said() -> None:
    """Categories as codes, unknown ones beyond the last, null as NaN, defaults where a field is left out."""
    events = [
        prediction("a", features={"distance": 1, "wind": 2.5, "origin": "LGA"}),
        prediction(
            "b", features={"distance": 2.0, "origin": "BOS"}, score=None, role="shadow", status="error"
        ),
        prediction("c", model="other", latency_ms=7.25, version="v2"),
    ]
    values = [json.dumps(event).encode() for event in events]
    columns, bad = DECODER.decode(Messages.of([(None, value, False) for value in values]))
    assert not bad
    flights, other = columns
    assert (flights.ids, flights.versions, flights.version.tolist()) == (["a", "b"], ("v1",), [0, 0])
    np.testing.assert_array_equal(flights.features, [[1.0, 2.5, 2.0], [2.0, np.nan, 3.0]])
    np.testing.assert_array_equal(flights.score, [0.75, np.nan])
    assert flights.role.tolist() == [0, 2]
    assert flights.status.tolist() == [0, 1]
    assert flights.payload_bytes.tolist() == [len(values[0]), len(values[1])]
    assert (other.message.tolist(), other.latency_ms.tolist(), other.versions) == ([2], [7.25], ("v2",))


def test_what_the_encoders_write_the_decoders_read() -> None:
    """For a client in Python: the model, its bytes, its columns."""
    key, value = encode_prediction(PredictionMade.model_validate(prediction("a")))
    columns, bad = DECODER.decode(Messages.of([(key, value, False)]))
    assert (columns[0].ids, bad) == (["a"], [])
    key, value = encode_label(GroundTruth.model_validate(truth("a", revision=2)))
    good, bad = LabelDecoder({"flights": CONTRACT}).decode(Messages.of([(key, value, False)]))
    assert [(good[0].prediction_id, good[0].revision)] == [("a", 2)]
    assert bad == []


def test_an_arrow_batch_is_cut_by_partition_and_decodes_to_the_same_columns_as_json() -> None:
    """A batch is only another envelope."""
    ids = [f"p{at}" for at in range(50)]
    batches = encode_arrow_predictions(
        "flights",
        {
            "prediction_id": ids,
            "version": ["v1"] * 50,
            "role": ["canary"] * 50,
            "event_time_ms": [T0 + at for at in range(50)],
            "score": [None if at % 7 == 0 else at / 50 for at in range(50)],
            "latency_ms": [float(at) for at in range(50)],
            "status": ["fallback"] * 50,
            "distance": [float(at) for at in range(50)],
            "wind": [None if at % 3 else 1.5 for at in range(50)],
            "origin": ["EWR", "BOS", None, "LGA", "JFK"] * 10,
        },
        4,
    )
    contract = CONTRACT.model_copy(
        update={
            "features": (*CONTRACT.features[:2], CONTRACT.features[2].model_copy(update={"nullable": True}))
        }
    )
    decoder = PredictionDecoder([contract])
    seen = []
    for partition, value in batches.items():
        (arrow,), bad = decoder.decode(Messages.of([(None, value, True)]))
        assert not bad
        assert {partition_of(i.encode(), 4) for i in arrow.ids} == {partition}
        events = [
            prediction(
                i,
                role="canary",
                status="fallback",
                event_time_ms=T0 + (at := int(i[1:])),
                score=None if at % 7 == 0 else at / 50,
                latency_ms=float(at),
                features={
                    "distance": float(at),
                    "wind": None if at % 3 else 1.5,
                    "origin": ["EWR", "BOS", None, "LGA", "JFK"][at % 5],
                },
            )
            for i in arrow.ids
        ]
        (plain,), _ = decoder.decode(Messages.of([(None, json.dumps(e).encode(), False) for e in events]))
        for name in ("role", "event_time_ms", "score", "latency_ms", "status", "features"):
            np.testing.assert_array_equal(getattr(arrow, name), getattr(plain, name), name)
        seen += arrow.ids
    assert sorted(seen) == sorted(ids)


def test_one_bad_batch_among_many_is_rejected_alone() -> None:
    """They are worked on together, and together with plain events: rows stay in the order of the messages."""

    def batch(*ids: str, **columns: list[Any]) -> tuple[None, bytes, bool]:
        event = prediction()
        rows = {name: [event[name]] * len(ids) for name in ("version", "event_time_ms", "score")}
        rows |= {name: [value] * len(ids) for name, value in event["features"].items() if value is not None}
        table = encode_arrow_predictions("flights", {"prediction_id": list(ids)} | rows | columns, 1)
        return None, table[0], True

    messages = [
        batch("a", "b"),
        batch("c", extra=[1.0]),
        (b"d", json.dumps(prediction("d")).encode(), False),
        batch("e", "f", "g", score=[0.1, float("inf"), 0.2]),
        batch("h", distance=["far"]),
        batch("i"),
    ]
    (columns,), bad = DECODER.decode(Messages.of(messages))
    assert columns.ids == ["a", "b", "d", "e", "g", "i"]
    assert list(zip(columns.message.tolist(), columns.row.tolist(), strict=True)) == [
        (0, 0), (0, 1), (2, 0), (3, 0), (3, 2), (5, 0),
    ]  # fmt: skip
    assert columns.score.tolist() == [0.75, 0.75, 0.75, 0.1, 0.2, 0.75]
    assert sorted((one.message, one.row, one.reason) for one in bad) == [
        (1, 0, "unknown-field"), (3, 1, "not-finite"), (4, 0, "wrong-type"),
    ]  # fmt: skip


LABELS = LabelDecoder({"flights": CONTRACT, "other": CONTRACT})
_IDS, _TIMES = ["a", "é" * 200, "c"], [T0, T0 + 1, T0 + 2]


def _label_rows(columns: LabelColumns) -> list[tuple[Any, ...]]:
    arrays = (
        columns.model,
        columns.label,
        columns.label_time_ms,
        columns.revision,
        columns.message,
        columns.row,
    )
    return list(zip(list(columns.keys), *(array.tolist() for array in arrays), strict=True))


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"revision": [0, 1, 2]},
        {"label": pa.array([0, 1, 1])},
        {"model": pa.array(["flights", "other", "flights"]).dictionary_encode()},
        {"prediction_id": pa.array(_IDS, pa.large_string())},
        {"prediction_id": pa.array(_IDS, pa.string_view())},
        {"trace_id": ["t", None, "u" * 64]},
        {"trace_id": pa.nulls(3)},
        {"trace_id": ["t", "u" * 65, "v"]},
        {"trace_id": [1, 2, 3]},
        {"prediction_id": ["a", "", "c"]},
        {"prediction_id": ["a", "x" * 201, "c"]},
        {"prediction_id": ["a", None, "c"]},
        {"model": ["flights", "nobody", "other"]},
        {"label": [0.0, 0.5, 1.0]},
        {"label": [0.0, float("nan"), 1.0]},
        {"label": [True, False, True]},
        {"label_time_ms": [T0, 5, T0]},
        {"label_time_ms": [float(T0)] * 3},
        {"revision": [0, None, 1]},
        {"revision": [0, -1, 1]},
        {"extra": [1, 2, 3]},
        {"label": None},
    ],
)  # fmt: skip
def test_labels_as_arrow_are_what_the_same_labels_are_one_by_one(columns: dict[str, Any]) -> None:
    """Whether a batch is taken whole or looked at row by row; and each row stays in its place among other messages."""
    every: dict[str, Any] = {
        "prediction_id": _IDS,
        "model": ["flights", "other", "flights"],
        "label": [0.0, 1.0, 1.0],
    }
    every = {
        name: value
        for name, value in (every | {"label_time_ms": _TIMES} | columns).items()
        if value is not None
    }
    table = pa.table(every)
    plain = (None, json.dumps(truth("z")).encode(), False)
    taken, bad = LABELS.decode(Messages.of([plain, (None, encode_arrow(table), True), plain]))
    alone = [LABELS.decode(Messages.of([(None, encode_arrow(table.slice(at, 1)), True)])) for at in range(3)]
    rows = [(*row[:5], 1, at) for at, (one, _) in enumerate(alone) for row in _label_rows(one)]
    (first,) = _label_rows(LABELS.decode(Messages.of([plain]))[0])
    assert [(*row[:4], *row[5:]) for row in _label_rows(taken)] == [
        (*row[:4], *row[5:]) for row in (first, *((*row[:5], 1, row[6]) for row in rows), (*first[:5], 2, 0))
    ]
    if len(bad) == 1 and len(rows) == 0:  # the batch as a whole
        assert {one.reason for _, whys in alone for one in whys} == {bad[0].reason}
    else:
        assert [(one.row, one.reason) for one in bad] == [
            (at, why.reason) for at, (_, whys) in enumerate(alone) for why in whys
        ]
        assert len(rows) + len(bad) == 3


def test_labels_as_arrow_are_cut_by_the_partition_of_their_prediction() -> None:
    """With the function by which predictions are."""
    ids = [f"p{at}" for at in range(40)]
    columns = {
        "prediction_id": ids,
        "model": ["flights"] * 40,
        "label": [1.0] * 40,
        "label_time_ms": [T0] * 40,
    }
    seen = []
    for partition, value in encode_arrow_labels(columns, 4).items():
        labels, bad = LABELS.decode(Messages.of([(None, value, True)]))
        assert not bad and {partition_of(key or b"", 4) for key in labels.keys} == {partition}
        seen += [(key or b"").decode() for key in labels.keys]
    assert sorted(seen) == sorted(ids)


@pytest.mark.parametrize("before", range(1, 9))
def test_a_batch_is_read_wherever_it_lies(before: int) -> None:
    """An uncompressed one is not copied, and a fetch response puts it at any byte."""
    event = prediction()
    rows: dict[str, Any] = {"prediction_id": ["a", "b"], "version": ["v1", "v2"]}
    rows |= {name: [event[name]] * 2 for name in ("event_time_ms", "score")}
    rows |= {name: [value] * 2 for name, value in event["features"].items() if value is not None}
    table = pa.table(rows).replace_schema_metadata({b"model": b"flights"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    value = sink.getvalue().to_pybytes()
    whole = Spans.of([b"x" * before + value])
    messages = Messages(
        Spans.of([None]), Spans(whole.buffer, whole.start + before, whole.length - before), np.ones(1, bool)
    )
    (columns,), bad = DECODER.decode(messages)
    assert (columns.ids, columns.versions, columns.score.tolist(), bad) == (
        ["a", "b"],
        ("v1", "v2"),
        [0.75, 0.75],
        [],
    )
    assert columns.features[:, 0].tolist() == [event["features"]["distance"]] * 2


def test_a_batch_with_a_column_twice_is_rejected() -> None:
    """Which of the two is meant, nobody knows."""
    twice = pa.table([["a"], ["b"]], names=["prediction_id", "prediction_id"])
    value = encode_arrow(twice.replace_schema_metadata({b"model": b"flights"}))
    columns, bad = DECODER.decode(Messages.of([(None, value, True)]))
    assert not columns and [one.reason for one in bad] == ["wrong-type"]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize("values", [3, 40])
def test_texts_of_every_arrow_type_and_number_decode_alike(kind: pa.DataType, values: int) -> None:
    """Few distinct texts are found in one pass, many by pyarrow: rows are the same, null is none of them."""
    names = [None if at % 7 == 6 else f"v{at % values}" for at in range(50)]
    event = prediction()
    rows: dict[str, Any] = {"prediction_id": [f"p{at}" for at in range(50)], "version": names}
    rows |= {name: [event[name]] * 50 for name in ("event_time_ms", "score")}
    rows |= {name: [value] * 50 for name, value in event["features"].items() if value is not None}
    for kept in (range(50), [at for at in range(50) if names[at]]):
        table = pa.table(rows).take(pa.array(kept)).replace_schema_metadata({b"model": b"flights"})
        versions = pa.array(table["version"].to_pylist(), pa.string()).cast(kind)
        table = table.set_column(1, "version", versions)
        (columns,), bad = DECODER.decode(Messages.of([(None, encode_arrow(table), True)]))
        told = [names[at] for at in kept]
        assert [columns.versions[code] for code in columns.version.tolist()] == [
            name for name in told if name
        ]
        assert [one.row for one in bad] == [at for at, name in enumerate(told) if not name]
        assert columns.ids == [f"p{at}" for at in kept if names[at]]


@examples(40)
@given(
    st.binary(max_size=300)
    | st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner)).map(
        msgspec.json.encode
    )
)
@pytest.mark.parametrize("arrow", [False, True])
def test_no_bytes_make_a_decoder_raise(arrow: bool, value: bytes) -> None:
    """Whatever comes is columns or a reason."""
    _, bad = DECODER.decode(Messages.of([(None, value, arrow)]), T0)
    assert len(bad) == 1
    _, bad = LabelDecoder({"flights": CONTRACT}).decode(Messages.of([(None, value, arrow)]))
    assert len(bad) == 1
