"""Labels that are looked up: questions, answers, bounds, and what is kept of them."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.blocks import decode_block
from schemas.contracts import ModelRecord
from schemas.errors import StateCorrupt
from schemas.events import HEADER_KIND, KIND_LABELS
from schemas.rows import TABLES, whole_outcomes
from streams.core.asks import Asks
from streams.core.cold import ANSWERS
from streams.core.delivery import Manifest
from streams.core.join_rows import ROW_BYTES
from streams.core.label_index import (
    LABELS,
    PREDICTIONS,
    answer,
    index_copy,
)
from streams.core.pipeline import JoinCore
from streams.core.records import Record
from streams.core.waiting import Key
from tests.support_archive import rows_of
from tests.support_cold import LATE, SETTLED, Copied, core_of
from tests.support_join import CONTRACT, HOUR, T0, Stream, dead, prediction, truth
from tests.support_upserts import Upsert, spread


def outcomes(upserts: list[Upsert]) -> dict[str, int]:
    """The figures of the only window's whole cell, its parts put together."""
    rows = [u.row[:-1] for u in upserts if u.table == "window_outcomes" and u.key[5] == ""]
    (values,) = whole_outcomes(rows).values()
    return dict(zip(TABLES["window_outcomes"].names[8:-1], values, strict=True))


def settled(core: JoinCore, stream: Stream) -> list[Upsert]:
    """The window of T0 is settled, and confirmed."""
    core.apply([stream.tick(SETTLED), stream.tick(SETTLED, "feedback")], 0)
    core.changed_pieces()
    core.committed(1)
    upserts = core.upserts()
    core.confirm(upserts)
    return spread(upserts)


def test_a_label_of_a_settled_window_is_a_part_of_its_own() -> None:
    """It is asked for, counts once, and what a revision takes back stands in another part as a negative."""
    core, stream, copied = core_of(), Stream(), Copied()
    core.apply([stream.event(prediction())], 0)
    upserts = settled(core, stream)
    copied.take(core.outputs())
    late = {"label_time_ms": T0 + 500 * HOUR}
    core.apply([stream.event(truth(**late))], 0)
    assert copied.answers(core.questions())[0] and outcomes(upserts)["labelled"] == 0
    for revision, label, corner in (
        (0, 1.0, "true_positive"),
        (0, 1.0, "true_positive"),
        (1, 0.0, "false_positive"),
    ):
        core.apply([stream.event(truth(label=label, revision=revision, **late))], 0)
        core.apply([stream.tick(SETTLED + stream._next["feedback"], "feedback")], 0)
        copied.take(core.outputs())
        core.apply(copied.answers(core.questions()), 0)
        copied.take(core.outputs())
        core.changed_pieces()
        core.committed(2)
        upserts += spread(core.upserts())
        figures = outcomes(upserts)
        assert (figures["labelled"], figures[corner], figures["revisions"]) == (1, 1, revision)
    assert figures["true_positive"] == 0
    assert [u.key[-1] for u in upserts if u.table == "window_outcomes" and u.key[5] == ""][-2:] == [1, 2]
    at = TABLES["window_outcomes"].names.index("true_positive")
    assert min(u.row[at] for u in upserts if u.table == "window_outcomes") == -1


def test_an_answer_from_before_the_question_says_nothing() -> None:
    """What was read at the very position of the label may lack what the task wrote just before it."""
    core, stream, copied = core_of(), Stream(), Copied()
    core.apply([stream.event(prediction())], 0)
    settled(core, stream)
    core.apply([stream.event(truth(label_time_ms=SETTLED))], 0)
    ((model, _, [(identity, check, bound)]),) = core.questions()
    for position, left in ((bound, 1), (bound + 1, 0)):
        core.apply([answer(model, position, [(identity, check)], [], []).as_record(0)], 0)
        assert len(core.questions()) == left
    assert copied.rows[PREDICTIONS] == []


def test_labels_that_wait_are_asked_for_again_after_a_restart_and_parts_sent_again() -> None:
    """Both are in the state, until there is an answer and until ClickHouse has confirmed."""
    core, stream, copied = core_of(), Stream(), Copied()
    core.apply([stream.event(prediction())], 0)
    settled(core, stream)
    core.apply([stream.event(truth(label_time_ms=SETTLED)), stream.tick(SETTLED + 1)], 0)
    copied.take(core.outputs())

    def restarted() -> JoinCore:
        fresh = core_of()
        fresh.restore(pieces, Manifest(task="join/0", sequence=2))
        return fresh

    pieces = {name: data for name, data in core.changed_pieces().items() if data is not None}
    core = restarted()
    assert len(core.questions()) == 1
    assert all(bound == 2 * SETTLED + 1 for *_, bound in core.questions()[0].keys), "as of the restored state"
    core.apply([stream.tick(SETTLED + 2)], 0)
    copied.take(core.outputs())
    core.apply(copied.answers(core.questions()), 0)
    pieces |= {name: data for name, data in core.changed_pieces().items() if data is not None}
    sent = [u for u in spread(restarted().upserts()) if u.key[-1]]
    assert len(sent) == 2
    core = restarted()
    core.confirm(core.upserts())
    assert core.changed_pieces()["late/1"] is None
    with pytest.raises(StateCorrupt, match="late/1"):
        core_of().restore(pieces | {"late/1": b"\x92\x09\x90"}, Manifest(task="join/0", sequence=2))


def test_a_prediction_leaves_with_all_its_roles_and_one_that_comes_later_has_their_label() -> None:
    """A label never settles a part of its prediction."""
    core, stream, copied = core_of(CONTRACT), Stream(), Copied()
    core._index.bytes_max = 3 * ROW_BYTES
    roles = [stream.event(prediction(role=role)) for role in ("stable", "canary", "shadow")]
    core.apply([*roles[:2], *(stream.event(prediction(f"other{n}")) for n in range(5))], 0)
    assert len(core._index) == 1
    core.apply([stream.event(truth()), roles[2], roles[2]], 0)
    assert core._index.totals["flights"].evicted == 7
    core.apply([stream.tick(T0 + HOUR)], 0)
    copied.take(core.outputs())
    ((_, _, keys),) = core.questions()
    assert len(keys) == 1
    core.apply(copied.answers(core.questions()), 0)
    joined = [decode_block(o.value or b"") for o in core.outputs()]
    assert sorted(np.concatenate([block.role for block in joined]).tolist()) == [0, 1, 2]


def test_the_label_of_a_prediction_without_a_score_is_known_and_no_outcome() -> None:
    """Detectors do not see it; a role of it that comes later and has a score does."""
    core, stream = core_of(CONTRACT), Stream()
    core.apply([stream.event(prediction(score=None)), stream.event(truth())], 0)
    (told,) = [o for o in core.outputs() if o.headers.get(HEADER_KIND) == KIND_LABELS]
    ((table, (*_, revision, label, _, _)),) = rows_of(
        index_copy(Record("observations", 0, 0, None, told.value), 0)
    )
    assert (table, revision, label) == (LABELS, 0, 1.0)


def test_labels_for_which_there_is_no_room_are_dead_lettered() -> None:
    """With the address they came from, so that they can be sent again; nothing else waits for them."""
    core, stream = core_of(early_labels_max=1), Stream()
    core.apply([stream.event(truth(f"p{n}")) for n in range(3)], 0)
    letters = dead(core.outputs())
    assert [(letter.topic, letter.offset, letter.reason) for letter in letters] == [
        ("feedback", 1, "no-room"),
        ("feedback", 2, "no-room"),
    ]


def test_without_a_warehouse_nothing_is_asked() -> None:
    """Labels wait for their prediction, as long as that may come, and predictions leave one by one."""
    for limits in ({"warehouse": False}, {"label_lookup_interval": 0}):
        core, stream = core_of(**limits), Stream()
        core.apply([stream.event(truth())], 0)
        assert core.questions() == []
        assert core._index.early == 1


def test_a_question_is_of_bounded_size_and_what_waits_longest_comes_first() -> None:
    """Further predictions are asked for when these have been answered."""
    core, stream = core_of(label_lookup_rows_max=2), Stream()
    core.apply([stream.event(truth(f"p{n}")) for n in range(5)], 0)
    ((_, _, keys),) = core.questions()
    assert len(keys) == 2
    core.apply([answer("flights", 1, [key[:2] for key in keys], [], []).as_record(0)], 0)
    ((_, _, then),) = core.questions()
    assert len(then) == 2 and not set(then) & set(keys)


def test_an_answer_to_what_nobody_asks_any_more_changes_nothing() -> None:
    """The prediction came meanwhile, and took its label."""
    core, stream = core_of(), Stream()
    core.apply([stream.event(truth())], 0)
    ((model, _, [(identity, check, bound)]),) = core.questions()
    core.apply([stream.event(prediction())], 0)
    assert core.questions() == []
    core.outputs()
    core.apply([answer(model, bound + 1, [(identity, check)], [], []).as_record(0)], 0)
    assert core.outputs() == []


def test_rows_of_a_former_contract_are_read_as_it_had_them() -> None:
    """Windows of another length and segments of other categories."""
    before = LATE.model_copy(update={"monitoring": LATE.monitoring.model_copy(update={"window": 2 * HOUR})})
    core, stream, copied = core_of(before), Stream(), Copied()
    core.apply([stream.event(prediction(event_time_ms=T0 + HOUR))], 0)
    settled(core, stream)
    origin = LATE.features[2].model_copy(update={"categories": ("LGA", "EWR")})
    core.activate([ModelRecord(contract=LATE.model_copy(update={"features": (*LATE.features[:2], origin)}))])
    core.apply([stream.event(truth(label_time_ms=SETTLED)), stream.tick(SETTLED + 1)], 0)
    copied.take(core.outputs())
    pieces = {name: data for name, data in core.changed_pieces().items() if data is not None}
    fresh = core_of()
    fresh.restore(pieces, Manifest(task="join/0", sequence=2))
    fresh.apply([stream.tick(SETTLED + 2)], 0)
    copied.take(fresh.outputs())
    fresh.apply(copied.answers(fresh.questions()), 0)
    fresh.changed_pieces()
    keys = [u.key for u in spread(fresh.upserts()) if u.key[-1]]
    start = (T0 + HOUR) // (2 * HOUR) * 2 * HOUR
    assert {(round(k[0].timestamp() * 1000), k[1], k[5]) for k in keys} == {
        (start, 2 * HOUR, ""),
        (start, 2 * HOUR, "origin=JFK"),
    }


def test_a_question_that_is_put_again_has_a_new_bound() -> None:
    """What an answer under way knows is older than what has just come."""
    asks = Asks(enabled=True, position=5)
    asks.put("m", Key(1, 2))
    asks.position = 9
    asks.put("m", Key(1, 2))
    assert not asks.settled("m", Key(1, 2), 9)
    assert not asks.settled("other", Key(1, 2), 10)
    assert asks.settled("m", Key(1, 2), 10)
    assert not asks.settled("m", Key(1, 2), 11)
    assert ANSWERS not in {"predictions", "feedback"}
