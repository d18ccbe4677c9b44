"""The hot join index and the stage around it: duplicates, roles, early labels, revisions, horizons, re-routing, state."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from schemas.arrow import encode_arrow
from schemas.codecs import Label
from schemas.errors import StateCorrupt
from schemas.events import HEADER_KIND, HEADER_ORIGIN, Tick
from schemas.ids import RowId, partition_of
from streams.core.delivery import Manifest, Out
from streams.core.join import (
    ENTRY_BYTES,
    FINGERPRINT_BYTES,
    MERGE_FAN,
    Entry,
    JoinIndex,
    ModelCounts,
    WindowKey,
)
from streams.core.pipeline import JoinCore
from streams.core.records import Record
from tests.support_join import CONTRACT, HOUR, T0, Stream, blocks, join_core, prediction, truth

WINDOW = WindowKey("m", T0, HOUR)


def entry(prediction_id: str, role: int = 0, window: WindowKey = WINDOW, version: str = "v1") -> Entry:
    return Entry(prediction_id, window, version, role, window.start_ms, 0.5, 1.0, 0, ("a=b",), 0, 1, 0, 7)


def label(prediction_id: str, revision: int = 0, value: float = 1.0, at_ms: int = T0) -> Label:
    return Label(prediction_id, "m", value, at_ms, revision)


# -- the index ---------------------------------------------------------------------------------------------------------


def test_a_label_settles_every_role_of_its_prediction() -> None:
    """Shadow and canary answers to the same request share its outcome."""
    index = JoinIndex(10)
    for role in range(3):
        assert index.add(entry("p", role), HOUR) == []
    settled = index.label(label("p"), 0, HOUR)
    assert [(s.entry.role, s.old_label, s.label) for s in settled] == [
        (0, None, 1.0),
        (1, None, 1.0),
        (2, None, 1.0),
    ]
    assert index.counts.joined == 1


def test_a_prediction_is_new_once() -> None:
    """Its identity is (id, model, version, role); another version is another prediction."""
    index = JoinIndex(10)
    assert [index.add(entry("p", version=v), HOUR) for v in ("v1", "v1", "v2", "v2")] == [[], None, [], None]
    assert (len(index), index.counts.duplicate_predictions) == (2, 2)


def test_a_label_waits_for_its_prediction() -> None:
    """And is then given to roles that come later still."""
    index = JoinIndex(10)
    assert index.label(label("p"), 0, HOUR) == []
    assert index.early == 1
    index.label(label("p", 1, 0.0), 0, HOUR)
    assert index.early == 2
    for role in (0, 1):
        told = index.add(entry("p", role), HOUR)
        assert told is not None
        assert [(s.old_label, s.label) for s in told] == [(None, 1.0), (1.0, 0.0)]
    assert index.early == 0


@pytest.mark.parametrize(
    ("revisions", "outcomes"),
    [
        ([0, 0], [(None, 0.0)]),
        ([0, 1], [(None, 0.0), (0.0, 1.0)]),
        ([1, 0], [(None, 0.0)]),
        ([0, 2, 1, 2], [(None, 0.0), (0.0, 1.0)]),
    ],
)
def test_the_highest_revision_stands(
    revisions: list[int], outcomes: list[tuple[float | None, float]]
) -> None:
    """A lower one is stale, an equal one a duplicate, a higher one takes back what it replaces."""
    index = JoinIndex(10)
    index.add(entry("p"), HOUR)
    seen = [s for at, r in enumerate(revisions) for s in index.label(label("p", r, float(at > 0)), 0, HOUR)]
    assert [(s.old_label, s.label) for s in seen] == outcomes


def test_early_labels_are_bounded_in_number_and_in_time() -> None:
    """Feedback for predictions that never come cannot fill memory."""
    index = JoinIndex(2)
    for name in ("a", "b", "c"):
        index.label(label(name), 0, HOUR)
    assert (index.early, index.counts.dropped) == (2, 1)
    index.expire({}, {"m": T0})
    assert index.early == 2
    index.expire({}, {"m": T0 + 1})
    assert (index.early, index.counts.unmatched) == (0, 2)
    index.label(label("old"), T0 + 1, HOUR)
    assert (index.early, index.counts.unmatched) == (0, 3)


def test_a_label_beyond_the_horizon_does_not_count_whichever_came_first() -> None:
    """Its own time decides, so that it makes no difference how far apart the two inputs are read."""
    last_ms = WINDOW.end_ms + HOUR
    for at_ms, outcomes in ((last_ms, 1), (last_ms + 1, 0)):
        first, second = JoinIndex(10), JoinIndex(10)
        first.add(entry("p"), HOUR)
        assert len(first.label(label("p", at_ms=at_ms), 0, HOUR)) == outcomes
        second.label(label("p", at_ms=at_ms), 0, HOUR)
        assert len(second.add(entry("p"), HOUR) or []) == outcomes
        assert (first.counts.beyond, second.counts.beyond) == (1 - outcomes, 1 - outcomes)


def test_entries_leave_when_their_window_is_settled() -> None:
    """Those that never got a label are counted; a label after that finds nobody."""
    index = JoinIndex(10)
    index.add(entry("a"), HOUR)
    index.add(entry("b"), HOUR)
    index.label(label("a"), 0, HOUR)
    index.expire({"m": WINDOW.end_ms - 1}, {})
    assert len(index) == 2
    index.expire({"m": WINDOW.end_ms}, {})
    assert (len(index), index.counts.unlabelled) == (0, 1)
    assert index.label(label("b"), 0, HOUR) == []


def _store(pieces: dict[str, bytes], index: JoinIndex) -> None:
    for name, data in index.changed_pieces().items():
        if data is None:
            pieces.pop(name, None)
        else:
            pieces[name] = data


def _facts(index: JoinIndex) -> list[Any]:
    return [(e.prediction_id, e.number, e.revision, e.label, e.label_time_ms) for e in index.entries()]


def test_state_is_a_log_whose_rows_are_rewritten_a_few_times_only() -> None:
    """300 commits: pieces stay few, bytes written stay near what came in times the merge levels, restore is exact."""
    index, pieces, written = JoinIndex(1000), dict[str, bytes](), 0
    one = 0
    for commit in range(300):
        for at in range(4):
            index.add(entry(f"p{commit}-{at}"), HOUR)
        if commit >= 20:
            index.label(label(f"p{commit - 20}-1", at_ms=T0 + commit), 0, HOUR)
        index.label(label(f"early{commit}"), 0, HOUR)
        changed = index.changed_pieces()
        written += sum(len(data) for data in changed.values() if data is not None)
        one = one or written
        pieces = {k: v for k, v in (pieces | changed).items() if v is not None}
    assert len(pieces) < 3 * MERGE_FAN
    assert written < 300 * 2 * one * 4
    restored = JoinIndex(1000)
    restored.restore(pieces, {}, {})
    assert _facts(restored) == _facts(index)
    assert (len(restored), restored.early) == (1200, 300)
    assert restored.changed_pieces() == {}


def test_pieces_of_settled_windows_are_deleted() -> None:
    """State does not outlive what it is for, and what is restored from a half-dead piece is only what lives."""
    later = WindowKey("m", T0 + HOUR, HOUR)
    index, pieces = JoinIndex(10), dict[str, bytes]()
    index.add(entry("a"), HOUR)
    _store(pieces, index)
    index.add(entry("b"), HOUR)
    index.add(entry("c", window=later), HOUR)
    _store(pieces, index)
    assert len(pieces) == 2
    index.expire({"m": WINDOW.end_ms}, {})
    _store(pieces, index)
    assert len(pieces) == 1
    restored = JoinIndex(10)
    restored.restore(pieces, {"m": WINDOW.end_ms}, {})
    assert [e.prediction_id for e in restored.entries()] == ["c"]
    index.expire({"m": later.end_ms}, {})
    _store(pieces, index)
    assert pieces == {}


def test_a_restored_entry_knows_every_label_it_was_told() -> None:
    """In one piece or two, a role that comes after the restart is told what the first was told."""
    for commits in (1, 2):
        index, pieces = JoinIndex(10), dict[str, bytes]()
        index.add(entry("p"), HOUR)
        index.label(label("p"), 0, HOUR)
        if commits == 2:
            _store(pieces, index)
        index.label(label("p", 1, 0.0), 0, HOUR)
        _store(pieces, index)
        restored = JoinIndex(10)
        restored.restore(pieces, {}, {})
        told = restored.add(entry("p", 1), HOUR)
        assert told is not None
        assert [(s.old_label, s.label) for s in told] == [(None, 1.0), (1.0, 0.0)]


def test_a_piece_that_cannot_be_read_is_named() -> None:
    """Never a silent start from less."""
    with pytest.raises(StateCorrupt, match="join/rows/3"):
        JoinIndex(1).restore({"join/rows/3": b"\x91\x01"}, {}, {})
    with pytest.raises(StateCorrupt, match="join/rows/3"):
        JoinIndex(1).restore({"join/rows/3": b"garbage"}, {}, {})


# -- the stage ---------------------------------------------------------------------------------------------------------


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


# -- memory ------------------------------------------------------------------------------------------------------------


def _room(predictions: int) -> int:
    return predictions * (ENTRY_BYTES + 2)


def test_what_came_first_is_evicted_first_and_still_known_by_its_fingerprint() -> None:
    """A duplicate of it is no second prediction, also after a restart; another role of it is a first one, and takes the label."""
    index = JoinIndex(10, _room(3))
    for number in range(5):
        index.add(entry(f"p{number}"), HOUR)
    pieces: dict[str, bytes] = {}
    index.evict()
    _store(pieces, index)
    assert index.bytes_held <= index.bytes_max
    assert [e.prediction_id for e in index.entries()] == ["p3", "p4"]
    assert index.label(label("p0"), 0, HOUR) == [], "it waits"
    restored = JoinIndex(10, _room(3))
    restored.restore(pieces, {}, {})
    for one in (index, restored):
        assert [one.add(entry(f"p{number}"), HOUR) for number in range(5)] == [None] * 5
        assert one.add(entry("p0", role=1), HOUR) is not None
    index.expire({"m": WINDOW.end_ms}, {})
    assert (index.bytes_held, index.counts.evicted, index.totals["m"]) == (0, 3, ModelCounts(2, 3, 1))
    _store(pieces, index)
    assert pieces == {}


def test_the_bound_holds_even_where_fingerprints_alone_exceed_it() -> None:
    """Then the oldest window's are forgotten, and counted."""
    index = JoinIndex(10, _room(2))
    for number in range(40):
        window = WindowKey("m", T0 + number // 20 * HOUR, HOUR)
        index.add(entry(f"p{number}", window=window), HOUR)
        index.evict()
        assert index.bytes_held <= index.bytes_max
    assert index.counts.evicted - index.counts.forgotten == index.bytes_held // FINGERPRINT_BYTES
    assert index.counts.forgotten > 0


def test_a_smaller_bound_after_a_restart_evicts_once() -> None:
    """What had to leave is stored with its count, though no piece of rows has changed."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction(f"p{n}")) for n in range(5)], 0)
    pieces = {name: data for name, data in core.changed_pieces().items() if data is not None}
    for sequence in (1, 2, 3):
        core = join_core()
        core._index.bytes_max = _room(3)
        core.restore(pieces, Manifest(task="join/0", sequence=sequence))
        for name, data in core.changed_pieces().items():
            assert data is not None
            pieces[name] = data
        assert len(core._index) == 2
        assert core._index.totals["flights"].evicted == 3
        core.apply([stream.event(prediction("p0"))], 0)
        assert len(core._index) == 2, "a duplicate of an evicted one"


def test_bytes_held_is_about_what_python_takes() -> None:
    """The figure of the bound is measured, not believed."""
    rows = [(f"{n:036d}", T0 + n, n / 7, n / 3, 10**6 + n, 2**60 + n) for n in range(20_000)]
    index = JoinIndex(10)
    tracemalloc.start()
    for prediction_id, at_ms, score, latency_ms, offset, identity in rows:
        own = (str(int(prediction_id)).zfill(36), WINDOW, "v1", 0, at_ms + 1, score, latency_ms, 0, ("a=b",))
        index.add(Entry(*own, 0, offset + 1, 0, identity + 1), HOUR)
    index.changed_pieces()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.7 < index.bytes_held / taken < 1.4


def test_labels_that_were_joined_leave_nothing_behind() -> None:
    """The order in which waiting labels leave forgets those that found their prediction."""
    index = JoinIndex(10)
    for number in range(5_000):
        index.label(label(f"p{number}"), 0, HOUR)
        index.add(entry(f"p{number}"), HOUR)
    assert index.early == 0
    assert sum(map(len, index._early_order.values())) < 2_000


def test_state_written_before_there_was_a_bound_is_read() -> None:
    """Pieces of schema 4 and a meta piece of schema 2 are what an upgraded worker finds."""
    index = JoinIndex(10)
    index.add(entry("p"), HOUR)
    (name, data), *_ = index.changed_pieces().items()
    *fields, _, _ = msgspec.msgpack.decode(data or b"")
    older = msgspec.msgpack.encode([4, *fields[1:]])
    restored = JoinIndex(10)
    restored.restore({name: older}, {}, {})
    assert restored.add(entry("p"), HOUR) is None
    core = join_core()
    meta = msgspec.msgpack.encode([2, T0, T0, 0, 0, {}])
    core.restore({name: older, "meta": meta}, Manifest(task="join/0", sequence=1))
    assert core.watermarks() == {"predictions": T0, "feedback": T0}
