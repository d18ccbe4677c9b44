"""The hot join index: duplicates, roles, early labels, revisions, horizons, state, memory."""

from __future__ import annotations

import math
import random
import tracemalloc
from itertools import groupby, permutations
from typing import Any

import msgspec
import numpy as np
import pytest

import streams.core.join_pieces
from schemas.errors import StateCorrupt
from schemas.hashing import key_hashes
from schemas.labels import Label
from schemas.spans import Spans
from streams.core import join_state
from streams.core.join import Arrivals, JoinIndex, ModelCounts
from streams.core.join_pieces import MERGE_FAN, JoinPieces
from streams.core.join_rows import DTYPES, ROW_BYTES
from streams.core.join_state import Kind, WindowKey, decode_piece
from tests.support_join import (
    HOUR,
    T0,
    WINDOW,
    OneByOne,
    label_rows,
)  # fmt: skip

# -- the index ---------------------------------------------------------------------------------------------------------


def test_a_label_settles_every_role_of_its_prediction() -> None:
    """Shadow and canary answers to the same request share its outcome."""
    join = OneByOne()
    for role in range(3):
        assert join.add("p", role) == []
    assert join.label("p") == [(0, None, 1.0), (1, None, 1.0), (2, None, 1.0)]
    assert join.index.counts.joined == 1


def test_a_prediction_is_new_once() -> None:
    """Its identity is (id, model, version, role); another version is another prediction."""
    join = OneByOne()
    assert [join.add("p", version=v) for v in ("v1", "v1", "v2", "v2")] == [[], None, [], None]
    assert (len(join.index), join.index.counts.duplicate_predictions) == (2, 2)


def test_a_label_waits_for_its_prediction() -> None:
    """And is then given to roles that come later still."""
    join = OneByOne()
    assert join.label("p") == []
    assert join.index.early == 1
    join.label("p", 1, 0.0)
    assert join.index.early == 2
    for role in (0, 1):
        assert join.add("p", role) == [(role, None, 1.0), (role, 1.0, 0.0)]
    assert join.index.early == 0


@pytest.mark.parametrize(
    ("revisions", "outcomes"),
    [
        ([0, 0], [(0, None, 0.0)]),
        ([0, 1], [(0, None, 0.0), (0, 0.0, 1.0)]),
        ([1, 0], [(0, None, 0.0)]),
        ([0, 2, 1, 2], [(0, None, 0.0), (0, 0.0, 1.0)]),
    ],
)
def test_the_highest_revision_stands(revisions: list[int], outcomes: list[tuple[Any, ...]]) -> None:
    """A lower one is stale, an equal one a duplicate, a higher one takes back what it replaces."""
    join = OneByOne()
    join.add("p")
    assert [s for at, r in enumerate(revisions) for s in join.label("p", r, float(at > 0))] == outcomes


def test_a_prediction_without_a_score_is_known_and_has_no_outcome() -> None:
    """Its label is no stranger's, and is nobody's accuracy."""
    join = OneByOne()
    join.add("p", score=math.nan)
    assert join.label("p") == []
    assert (join.index.counts.joined, join.index.early) == (1, 0)


def test_early_labels_are_bounded_in_number_and_in_time() -> None:
    """Feedback for predictions that never come cannot fill memory."""
    join = OneByOne(2)
    for name in ("a", "b", "c"):
        join.label(name)
    assert (join.index.early, join.index.counts.dropped) == (2, 1)
    join.index.expire({}, {"m": T0})
    assert join.index.early == 2
    join.index.expire({}, {"m": T0 + 1})
    assert (join.index.early, join.index.counts.unmatched) == (0, 2)
    join.label("old", oldest_ms=T0 + 1)
    assert (join.index.early, join.index.counts.unmatched) == (0, 3)


def test_a_label_beyond_the_horizon_does_not_count_whichever_came_first() -> None:
    """Its own time decides, so that it makes no difference how far apart the two inputs are read."""
    last_ms = WINDOW.end_ms + HOUR
    for at_ms, outcomes in ((last_ms, 1), (last_ms + 1, 0)):
        first, second = OneByOne(), OneByOne()
        first.add("p")
        assert len(first.label("p", at_ms=at_ms)) == outcomes
        second.label("p", at_ms=at_ms)
        assert len(second.add("p") or []) == outcomes
        assert (first.index.counts.beyond, second.index.counts.beyond) == (1 - outcomes, 1 - outcomes)


def test_rows_leave_when_their_window_is_settled() -> None:
    """Those that never got a label are counted; a label after that finds nobody."""
    join = OneByOne()
    join.add("a")
    join.add("b")
    join.label("a")
    join.index.expire({"m": WINDOW.end_ms - 1}, {})
    assert len(join.index) == 2
    join.index.expire({"m": WINDOW.end_ms}, {})
    assert (len(join.index), join.index.counts.unlabelled) == (0, 1)
    assert join.label("b") == []


def test_a_role_in_another_window_stays_when_the_first_leaves() -> None:
    """Its label still finds it, wherever in its prediction's chain it stood, and after the columns are packed."""
    later, last = (WindowKey("m", T0 + at * HOUR, HOUR) for at in (1, 2))
    for order in permutations((WINDOW, later, last)):
        join = OneByOne()
        for role, window in enumerate(order):
            join.add("p", role, window)
        join.index.expire({"m": WINDOW.end_ms}, {})
        left = [role for role, window in enumerate(order) if window != WINDOW]
        for packed in (False, True):
            if packed:
                join.index.pack()
            assert [join.add("p", role, order[role]) for role in left] == [None, None]
        join.index.expire({"m": later.end_ms}, {})
        (role,) = (role for role in left if order[role] == last)
        assert join.label("p", at_ms=T0 + 2 * HOUR) == [(role, None, 1.0)]


def test_batches_come_to_what_single_rows_come_to() -> None:
    """Whatever is cut where: duplicates, roles, revisions, early labels and windows that leave, at any size of the table."""
    rng = random.Random(5)
    steps: list[tuple[Any, ...]] = []
    for at in range(3_000):
        name, start_ms = f"p{rng.randrange(400)}", T0 + at // 500 * HOUR
        if rng.random() < 0.6:
            kind = Kind(WindowKey("m", start_ms, HOUR), rng.choice(("v1", "v2")), rng.randrange(2), ())
            steps.append(("prediction", name, kind, rng.random()))
        else:
            steps.append(
                ("label", name, rng.randrange(3), float(rng.random() < 0.5), start_ms + rng.randrange(HOUR))
            )
        if at % 250 == 249:
            steps.append(("expire", start_ms - HOUR))
    ends = [_joined(steps, size) for size in (1, 7, 10_000)]
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][1].joined > 100
    assert ends[0][1].revised > 10
    assert ends[0][1].duplicate_predictions > 100


def _joined(steps: list[tuple[Any, ...]], batch: int) -> tuple[Any, ...]:
    """Every outcome, the counts and what is left, when at most ``batch`` neighbours of one kind are taken together."""
    index, outcomes = JoinIndex(10_000), []
    for kind, run in groupby(steps, key=lambda step: step[0]):
        every = list(run)
        for start in range(0, len(every), batch):
            some = every[start : start + batch]
            if kind == "expire":
                index.expire({"m": some[-1][1]}, {"m": some[-1][1] - HOUR})
                index.pack()
                continue
            hashes = key_hashes(Spans.of([one[1].encode() for one in some]))
            if kind == "label":
                labels = [
                    Label(name, "m", value, at_ms, revision) for _, name, revision, value, at_ms in some
                ]
                parts = [index.label(label_rows(labels), 0, HOUR)]
            else:
                zeros, codes = np.zeros(len(some), np.int64), np.arange(len(some))
                arrivals = Arrivals(
                    [one[2] for one in some], [one[2].window.end_ms + HOUR for one in some], codes, hashes.identity, hashes.check, zeros,
                    np.array([one[3] for one in some]), zeros.astype(np.int8), zeros, zeros, zeros,
                )  # fmt: skip
                parts = [rows for _, rows in index.add(arrivals)[1]]
            for rows in parts:
                columns = (rows.identity, rows.label, rows.sign, rows.label_time_ms, rows.kind)
                for *one, code in zip(*(column.tolist() for column in columns), strict=True):
                    outcomes.append((*one, rows.kinds[code]))
    return sorted(outcomes), index.counts, len(index), index.early


def test_state_is_a_log_whose_rows_are_rewritten_a_few_times_only() -> None:
    """300 commits: pieces stay few, bytes written stay near what came in times the merge levels, restore is exact."""
    join, written = OneByOne(1000), 0
    one = 0
    for commit in range(300):
        for at in range(40):
            join.add(f"p{commit}-{at}")
        if commit >= 20:
            join.label(f"p{commit - 20}-1", at_ms=T0 + commit)
        join.label(f"early{commit}")
        written += sum(len(data) for data in join.commit().values() if data is not None)
        one = one or written
    assert len(join.pieces) < 3 * MERGE_FAN
    assert written < 300 * 3 * one
    restored = join.restarted()
    assert restored.facts() == join.facts()
    assert (len(restored.index), restored.index.early) == (12_000, 300)
    assert restored.commit() == {}


def test_large_pieces_are_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sixteen commits are more than a merged piece may hold, none is rewritten; small ones after them are, and all is
    restored."""
    monkeypatch.setattr(streams.core.join_pieces, "MERGED_ROWS_MAX", 16 * 40 - 1)
    join, many, few = OneByOne(), 0, 0
    for commit in range(2 * MERGE_FAN):
        for at in range(40):
            join.add(f"p{commit}-{at}")
        many += sum(data is not None for data in join.commit().values())
    for commit in range(2 * MERGE_FAN):
        join.add(f"q{commit}")
        few += sum(data is None for data in join.commit().values())
    assert (many, len(join.pieces)) == (2 * MERGE_FAN, 2 * MERGE_FAN + 2)
    assert few == 2 * (MERGE_FAN - 1)
    restored = join.restarted()
    assert restored.facts() == join.facts()
    assert restored.commit() == {}


def test_pieces_of_settled_windows_are_deleted() -> None:
    """State does not outlive what it is for, and what is restored from a half-dead piece is only what lives."""
    later = WindowKey("m", T0 + HOUR, HOUR)
    join = OneByOne()
    join.add("a")
    join.commit()
    join.add("b")
    join.add("c", window=later)
    join.commit()
    assert len(join.pieces) == 2
    join.index.expire({"m": WINDOW.end_ms}, {})
    join.commit()
    assert len(join.pieces) == 1
    restored = join.restarted(WINDOW.end_ms)
    assert [restored.holds(name) for name in "abc"] == [False, False, True]
    join.index.expire({"m": later.end_ms}, {})
    join.commit()
    assert join.pieces == {}


def test_a_restored_row_knows_every_label_it_was_told() -> None:
    """In one piece or two, a role that comes after the restart is told what the first was told."""
    for commits in (1, 2):
        join = OneByOne()
        join.add("p")
        join.label("p")
        if commits == 2:
            join.commit()
        join.label("p", 1, 0.0)
        join.commit()
        assert join.restarted().add("p", 1) == [(1, None, 1.0), (1, 1.0, 0.0)]


def test_pieces_of_the_layout_before_are_read() -> None:
    """An update of the monitor begins with the state that is there: kinds were not compressed in it."""
    join = OneByOne()
    join.add("a")
    join.commit()
    (name,) = join.pieces
    body, kinds = decode_piece(name, join.pieces[name])
    join.pieces[name] = msgspec.msgpack.encode(msgspec.structs.replace(body, schema=7, kinds=kinds))
    assert join.restarted().facts() == join.facts()


def test_a_piece_that_cannot_be_read_is_named() -> None:
    """Never a silent start from less."""
    for data in (b"\x91\x01", b"garbage"):
        with pytest.raises(StateCorrupt, match="join/rows/3"):
            JoinPieces(JoinIndex(1)).restore({"join/rows/3": data}, {}, {})


# -- memory ------------------------------------------------------------------------------------------------------------


def _room(predictions: int) -> int:
    return predictions * ROW_BYTES


def test_what_came_first_is_evicted_first_and_still_known_by_its_fingerprint() -> None:
    """A duplicate of it is no second prediction, also after a restart; another role of it is a first one, and takes the label."""
    join = OneByOne(10, _room(3))
    for number in range(5):
        join.add(f"p{number}")
    join.index.evict()
    join.commit()
    assert join.index.bytes_held <= join.index.bytes_max
    assert [join.holds(f"p{number}") for number in range(5)] == [False] * 3 + [True] * 2
    assert join.label("p0") == [], "it waits"
    restored = join.restarted()
    for one in (join, restored):
        assert [one.add(f"p{number}") for number in range(5)] == [None] * 5
        assert one.add("p0", role=1) is not None
    join.index.expire({"m": WINDOW.end_ms}, {})
    assert (join.index.bytes_held, join.index.counts.evicted) == (0, 3)
    assert join.index.totals["m"] == ModelCounts(2, 3, 1)
    join.commit()
    assert join.pieces == {}


def test_the_bound_holds_even_where_fingerprints_alone_exceed_it() -> None:
    """Then the oldest window's are forgotten, and counted."""
    join = OneByOne(10, _room(2))
    for number in range(80):
        join.add(f"p{number}", window=WindowKey("m", T0 + number // 40 * HOUR, HOUR))
        join.index.evict()
        assert join.index.bytes_held <= join.index.bytes_max
    counts = join.index.counts
    assert counts.evicted - counts.forgotten + len(join.index) + counts.forgotten == 80
    assert counts.forgotten > 0


def test_bytes_held_is_about_what_is_taken() -> None:
    """The figure of the bound is measured, not believed, at whatever size; at most 64 bytes a prediction are not its
    loss inputs (score, status, kind, event time, and the label to come with its time and revision)."""
    loss_inputs = sum(
        np.dtype(DTYPES[name]).itemsize
        for name in ("score", "status", "kind", "event_time_ms", "revision", "label", "label_time_ms")
    )
    assert ROW_BYTES - 1.12 * loss_inputs <= 64
    shares = []
    for size in (20_000, 33_000, 50_000):
        index, kind = JoinIndex(10), [Kind(WINDOW, "v1", 0, ("a=b",))]
        tracemalloc.start()
        for start in range(0, size, 1_000):
            numbers = np.arange(start, start + 1_000)
            hashes = key_hashes(Spans.of([b"%36d" % n for n in numbers.tolist()]))
            zeros = np.zeros(1_000, np.int64)
            arrivals = Arrivals(
                kind, [WINDOW.end_ms + HOUR], zeros, hashes.identity, hashes.check, numbers, numbers / 7, zeros.astype(np.int8), zeros,
                numbers, zeros,
            )  # fmt: skip
            index.add(arrivals)
            del arrivals, hashes, zeros, numbers
        taken = tracemalloc.get_traced_memory()[0] + index.rows.nbytes
        tracemalloc.stop()
        shares.append(index.bytes_held / taken)
    assert min(shares) > 0.75
    assert max(shares) < 1.3


def test_labels_that_were_joined_leave_nothing_behind() -> None:
    """The order in which waiting labels leave forgets those that found their prediction."""
    join = OneByOne()
    for number in range(5_000):
        join.label(f"p{number}")
        join.add(f"p{number}")
    assert join.index.early == 0
    assert sum(map(len, join.index.waiting._order.values())) < 2_000


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8"])
def test_whole_numbers_are_stored_as_their_distance_whatever_it_is(dtype: str) -> None:
    """It may be wider than they are."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for few in ([low, high], [low, low + 1], [high - 3, high], [5, 5], [-100, 100], [low, 0]):
        column = join_state._written(np.array(few, dtype))
        assert join_state._read(column, len(few)).tolist() == few
