"""The join stage around its index: re-routing, addresses, outcomes, segments, time, restarts, figures."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from schemas.arrow import encode_arrow, read_arrow
from schemas.contracts import ModelRecord
from schemas.events import HEADER_KIND, HEADER_ORIGIN, Tick
from schemas.ids import RowId, partition_of
from streams.core import astray
from streams.core.delivery import Manifest, Out
from streams.core.join_rows import ROW_BYTES
from streams.core.pipeline import MODELS_MANY, JoinCore
from streams.core.records import Record, RecordBatch, joined
from tests.support_join import (
    CONTRACT,
    HOUR,
    T0,
    TEXT_TYPES,
    Stream,
    blocks,
    dead,
    join_core,
    prediction,
    truth,
)  # fmt: skip
from tests.support_upserts import spread


def _other_partition(name: str) -> str:
    return next(f"{name}{at}" for at in range(100) if partition_of(f"{name}{at}".encode(), 2) == 1)


def test_rows_on_the_wrong_partition_are_sent_on_once_and_keep_their_address() -> None:
    """Whatever partitioner a client has, prediction and label meet; the second hop never becomes a third."""
    stray = _other_partition("p")
    here, there = join_core(0, 2), join_core(1, 2)
    stream = Stream(0)
    here.apply([stream.event(prediction(stray)), stream.event(truth(stray))], 0)
    sent = [o for o in here.outputs() if o.topic in {"predictions", "feedback"}]
    assert [(o.topic, o.partition, o.key) for o in sent] == [
        ("predictions", 1, stray.encode()),
        ("feedback", 1, stray.encode()),
    ]
    there.apply([Record(o.topic, 1, 50 + at, o.key, o.value, o.headers) for at, o in enumerate(sent)], 0)
    block, outcome = blocks(there.outputs())
    address = (int(block.partition[0]), int(block.offset[0]), int(block.row[0]))
    assert address == (0, 0, 0)
    assert (outcome.offset.tolist(), outcome.label.tolist()) == ([0], [1.0])
    misled = Record("predictions", 0, 9, stray.encode(), sent[0].value, sent[0].headers)
    here.apply([misled], 0)
    assert [o.topic for o in here.outputs()] == ["observations"]


def test_features_go_on_only_where_a_detector_may_read_them() -> None:
    """Without one their copy in `observations` would be written, sent and read for nobody; the label index needs the rest."""
    unwatched = CONTRACT.monitoring.model_copy(update={"detectors": ()})
    core, stream = join_core(), Stream()
    for name, monitoring, width in (
        ("a", CONTRACT.monitoring, 3), ("b", unwatched, 0), ("c", CONTRACT.monitoring, 3),
    ):  # fmt: skip
        core.activate([ModelRecord(contract=CONTRACT.model_copy(update={"monitoring": monitoring}))])
        core.apply([stream.event(prediction(name))], 0)
        (block,) = blocks(core.outputs())
        assert (block.features.size, len(block), block.segments.tolist()) == (width, 1, [[1]])


def test_a_stray_row_of_an_arrow_batch_is_sent_on_as_json() -> None:
    """Only the stray row moves; its address says which row of which batch it was."""
    stray, home = (
        _other_partition("p"),
        next(f"q{i}" for i in range(100) if partition_of(f"q{i}".encode(), 2) == 0),
    )
    table = pa.table(
        {
            "prediction_id": [home, stray],
            "version": ["v1", "v1"],
            "event_time_ms": [T0, T0],
            "score": [0.5, None],
            "distance": [1.0, 2.0],
            "origin": ["EWR", "LGA"],
        }
    ).replace_schema_metadata({b"model": b"flights"})
    core, stream = join_core(0, 2), Stream(0)
    core.apply([stream.arrow(encode_arrow(table))], 0)
    outs = core.outputs()
    (block,) = blocks(outs)
    assert block.row.tolist() == [0]
    (sent,) = [o for o in outs if o.topic == "predictions"]
    assert sent.headers[HEADER_ORIGIN].decode() == str(RowId("predictions", 0, 0, 1))
    there = join_core(1, 2)
    there.apply([Record("predictions", 1, 5, sent.key, sent.value, sent.headers)], 0)
    (block,) = blocks(there.outputs())
    assert (block.offset.tolist(), block.row.tolist(), block.features[0, [0, 2]].tolist()) == (
        [0],
        [1],
        [2.0, 2.0],
    )


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("topic", ["predictions", "feedback"])
def test_a_batch_for_another_partition_is_opened_once(
    topic: str, kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for each of its rows, which would take a worker minutes."""
    ids = [name for name in map(str, range(3_000)) if partition_of(name.encode(), 2) == 1]
    columns: dict[str, list[object]] = {"prediction_id": [*ids]}
    if topic == "predictions":
        columns |= {"version": ["v1"] * len(ids), "event_time_ms": [T0] * len(ids), "score": [0.5] * len(ids)}
        columns |= {"distance": [1.0] * len(ids), "origin": ["EWR"] * len(ids)}
    else:
        columns |= {
            "model": ["flights"] * len(ids),
            "label": [1.0] * len(ids),
            "label_time_ms": [T0] * len(ids),
        }
    columns["trace_id"] = ["t"] * len(ids)
    texts = {name: pa.array(of).cast(kind) if isinstance(of[0], str) else of for name, of in columns.items()}
    value = encode_arrow(pa.table(texts).replace_schema_metadata({b"model": b"flights"}))
    opened = []
    monkeypatch.setattr(astray, "read_arrow", lambda value: opened.append(1) or read_arrow(value))
    core = join_core(0, 2)
    core.apply([Stream(0).arrow(value, topic)], 0)
    sent = [out for out in core.outputs() if out.topic == topic]
    assert [out.key for out in sent] == [name.encode() for name in ids]
    assert [out.headers[HEADER_ORIGIN].decode() for out in sent] == [
        str(RowId(topic, 0, 0, row)) for row in range(len(ids))
    ]
    assert opened == [1]
    there = join_core(1, 2)
    there.apply([Record(topic, 1, at, out.key, out.value, out.headers) for at, out in enumerate(sent)], 0)
    assert not dead(there.outputs())


def test_a_revision_is_one_row_back_and_one_forward_at_the_same_time() -> None:
    """A detector that reads signed rows ends where it would be had the right label come first."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction()), stream.event(truth())], 0)
    core.outputs()
    core.apply([stream.event(truth(label=0.0, revision=1, label_time_ms=T0 + 2 * HOUR))], 0)
    (block,) = blocks(core.outputs())
    assert block.sign.tolist() == [-1, 1]
    assert block.label.tolist() == [1.0, 0.0]
    assert block.label_time_ms.tolist() == [T0 + 2 * HOUR] * 2
    assert block.loss.tolist() == pytest.approx([0.28768207, 1.38629436])


def test_both_kinds_of_rows_carry_their_segments() -> None:
    """As codes of the contract's categories, of predictions and of outcomes alike; beyond ``segments_max``: unknown."""
    features = CONTRACT.features[2].model_copy(update={"nullable": True})
    monitoring = CONTRACT.monitoring.model_copy(update={"segments_max": 2})
    changed = CONTRACT.model_copy(
        update={"features": (*CONTRACT.features[:2], features), "monitoring": monitoring}
    )
    core, stream = join_core(contract=changed), Stream()
    for at, origin in enumerate(("JFK", "EWR", "LGA", "BOS", None)):
        told = {"distance": 1.0, "wind": None, "origin": origin}
        core.apply([stream.event(prediction(f"p{at}", features=told)), stream.event(truth(f"p{at}"))], 0)
    found = {block.kind: block for block in blocks(core.outputs())}
    assert found["predictions"].segments.tolist() == [[1], [0], [3], [3], [-1]]
    assert found["outcomes"].segments.tolist() == [[1], [0], [3], [3], [-1]]


def _ticks(outs: list[Out]) -> list[Tick]:
    return [Tick.model_validate_json(o.value or b"") for o in outs if HEADER_KIND in o.headers]


def test_time_goes_on_to_every_partition_after_the_rows_before_it() -> None:
    """A detect task that has the tick has every row it covers."""
    core, stream = join_core(0, 3), Stream()
    mine = [f"p{i}" for i in range(50) if partition_of(f"p{i}".encode(), 3) == 0][:2]
    core.apply(
        [
            stream.event(prediction(mine[0])),
            stream.tick(T0 + 5),
            stream.event(prediction(mine[1])),
            stream.tick(T0 + 3),
            stream.tick(T0 + 9, "feedback"),
        ],
        0,
    )
    outs = core.outputs()
    kinds = ["tick" if HEADER_KIND in o.headers else "rows" for o in outs]
    assert kinds == ["rows", "tick", "tick", "tick", "rows", "tick", "tick", "tick"]
    assert [o.partition for o in outs if HEADER_KIND in o.headers] == [0, 1, 2] * 2
    first, *_, last = _ticks(outs)
    assert (first.event_time_ms, first.source, first.sources) == (T0 + 5, "join/0", 3)
    assert (last.event_time_ms, last.feedback_time_ms) == (T0 + 5, T0 + 9)


def _restart(core: JoinCore, pieces: dict[str, bytes]) -> JoinCore:
    pieces |= {n: d for n, d in core.changed_pieces().items() if d is not None}
    fresh = join_core()
    fresh.restore(pieces, Manifest(task="join/0", sequence=4))
    return fresh


def test_a_restarted_core_knows_time_rows_and_what_the_warehouse_lacks() -> None:
    """Nothing is counted twice and nothing is forgotten."""
    core, stream = join_core(), Stream()
    core.apply([stream.tick(T0), stream.event(prediction())], 0)
    fresh = _restart(core, {})
    assert fresh.watermarks() == core.watermarks()
    assert {u.table for u in fresh.upserts()} == {"window_counts", "window_features", "window_outcomes"}
    assert {u.version for u in fresh.upserts()} == set()
    fresh.apply([stream.event(prediction()), stream.event(truth())], 0)
    assert [(b.kind, len(b)) for b in blocks(fresh.outputs())] == [("outcomes", 1)]


def test_measurements_are_counted_once() -> None:
    """Counters are increments since the last look."""
    core, stream = join_core(), Stream()
    core.apply(
        [stream.event(prediction()), stream.event(prediction()), stream.event(truth()), stream.raw(b"?")], 0
    )
    seen = {(name, *labels.values()): value for name, labels, value in core.measurements()}
    assert seen["driftline_labels_total", "joined"] == 1
    assert seen["driftline_labels_total", "duplicate_predictions"] == 1
    assert seen["driftline_dead_letters_total", "not-json"] == 1
    assert seen["driftline_pending_predictions", "0"] == 1
    assert "driftline_labels_total" not in {name for name, *_ in core.measurements()}


def test_a_tick_that_cannot_be_read_is_a_dead_letter() -> None:
    """Time is input too."""
    core, stream = join_core(), Stream()
    core.apply([stream.raw(b"?", **{HEADER_KIND: b"tick"}), stream.tick(T0)], 0)
    outs = core.outputs()
    assert json.loads(outs[0].value or b"")["reason"] == "not-json"
    assert len(_ticks(outs)) == 1


def test_a_smaller_bound_after_a_restart_evicts_once() -> None:
    """What had to leave is stored with its count and its fingerprint."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction(f"p{n}")) for n in range(5)], 0)
    pieces = {name: data for name, data in core.changed_pieces().items() if data is not None}
    for sequence in (1, 2, 3):
        core = join_core()
        core._index.bytes_max = 3 * ROW_BYTES
        core.restore(pieces, Manifest(task="join/0", sequence=sequence))
        for name, data in core.changed_pieces().items():
            assert data is not None
            pieces[name] = data
        assert len(core._index) == 2
        assert core._index.totals["flights"].evicted == 3
        core.apply([stream.event(prediction("p0"))], 0)
        assert len(core._index) == 2, "a duplicate of an evicted one"


def test_batches_of_many_models_are_put_together_and_say_the_same() -> None:
    """With many models the batches of one call are one; rows, outcomes, aggregates, bad rows, their order and addresses stay."""
    models = [f"m{n}" for n in range(MODELS_MANY)]
    stream, parts = Stream(), []
    for start in range(0, 60, 6):
        parts.append(
            [stream.event(prediction(f"p{n}", model=models[n % 8])) for n in range(start, start + 6)]
        )
        parts.append([stream.raw(b"{", key=b"bad"), stream.tick(T0 + start)])
        parts.append([stream.event(truth(f"p{n}", model=models[n % 8])) for n in range(start, start + 3)])
    batches = [RecordBatch.of(part) for part in parts]
    found = []
    for calls in ([batches], [[batch] for batch in batches]):
        core = join_core()
        core.activate([ModelRecord(contract=CONTRACT.model_copy(update={"model": name})) for name in models])
        outs: list[Out] = []
        for call in calls:
            core.apply(call, 0)
            outs += core.outputs() if len(calls) > 1 else []
        outs += core.outputs()
        core.committed(1)
        rows = [
            (block.kind, block.model, *address)
            for block in blocks(outs)
            for address in zip(block.offset.tolist(), block.event_time_ms.tolist(), strict=True)
        ]
        letters = [out.value for out in outs if out.topic == "dead-letters"]
        found.append((sorted(rows), letters, sorted(repr(upsert[:4]) for upsert in spread(core.upserts()))))
    assert found[0] == found[1]
    assert [len(batch) for batch in joined(batches[:1] * 2 + batches[1:3])] == [14, 3]


def test_what_every_transaction_writes_does_not_grow_with_models() -> None:
    """Times and counts alone; which windows are settled follows from them, but for models whose contract gave labels more
    time later, and for those that time has not reached: what a restart knows is what was known."""
    models = [f"model-{n}" for n in range(200)]
    core, stream = join_core(), Stream()
    core.activate([ModelRecord(contract=CONTRACT.model_copy(update={"model": name})) for name in models])
    core.apply([stream.tick(T0 + 40 * HOUR), stream.tick(T0 + 40 * HOUR, "feedback")], 0)
    longer = CONTRACT.monitoring.model_copy(update={"label_horizon": 100 * HOUR})
    records = [
        ModelRecord(contract=CONTRACT.model_copy(update={"model": "model-7", "monitoring": longer})),
        ModelRecord(contract=CONTRACT.model_copy(update={"model": "new"})),
    ]
    core.activate(records)
    pieces = {name: data for name, data in core.changed_pieces().items() if data is not None}
    assert len(pieces["meta"]) < 100 and len(pieces["models"]) < 100
    fresh = join_core()
    fresh.activate([ModelRecord(contract=CONTRACT.model_copy(update={"model": name})) for name in models])
    fresh.activate(records)
    fresh.restore(pieces, Manifest(task="join/0", sequence=1))
    assert fresh._meta.floor_ms == core._meta.floor_ms
    assert "new" not in fresh._meta.floor_ms and fresh._meta.floor_ms["model-7"] == T0 + 16 * HOUR
    core.apply([stream.event(prediction(model="model-3"))], 0)
    assert set(core.changed_pieces()) >= {"meta"} and "models" not in core.changed_pieces()
