"""Small pieces in a log of segments: whatever changes, what is read back is what was there, and little more is stored."""

from __future__ import annotations

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import StateCorrupt
from streams.core.piece_log import ALIKE_MAX, DEAD_MIN, PieceLog
from tests.support_examples import examples

CHANGES = st.dictionaries(
    st.integers(0, 30).map(lambda n: f"piece/{n}"), st.none() | st.integers(0, 9_000), max_size=12
)


class Store:
    """Pieces as their owner has them, and what the task's manifest would name of them."""

    def __init__(self) -> None:
        self.pieces: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.log = PieceLog("log/")
        self.written = 0

    def commit(self, changes: dict[str, bytes | None]) -> None:
        for name, data in changes.items():
            if data is None:
                self.pieces.pop(name, None)
            else:
                self.pieces[name] = data
        for name, data in self.log.changed(changes).items():
            if data is None:
                del self.stored[name]
            else:
                assert name not in self.stored, "a segment is written once"
                self.stored[name] = data
                self.written += len(data)

    def restart(self) -> None:
        log = PieceLog("log/")
        assert log.restore(self.stored) == self.pieces
        self.log = log


@examples(15)
@given(commits=st.lists(st.tuples(CHANGES, st.booleans()), max_size=40))
def test_what_is_read_back_is_what_was_there(commits: list[tuple[dict[str, int | None], bool]]) -> None:
    """Pieces come, change, go and come back, with a restart after any commit: never an old one, never one that was gone."""
    store = Store()
    for number, (changes, restarts) in enumerate(commits):
        told = {name: None if size is None else bytes([number]) * size for name, size in changes.items()}
        store.commit(told)
        if restarts:
            store.restart()
        assert PieceLog("log/").restore(store.stored) == store.pieces
        live = sum(map(len, store.pieces.values()))
        assert sum(map(len, store.stored.values())) <= 2 * live + DEAD_MIN + 3 * 9_000 * 12 + 1_000


def test_few_segments_and_little_written_again() -> None:
    """A thousand models, some of which change in every commit: segments are bounded, what is written is little more."""
    for each in (1, 10, 300):
        store = Store()
        said = 0
        for number in range(200_000 // (100 + each)):
            names = [f"piece/{(number * 37 + i * 101) % 1_000}" for i in range(each)]
            changes: dict[str, bytes | None] = dict.fromkeys(names, bytes([number % 256]) * 2_000)
            said += 2_000 * len(changes)
            store.commit(changes)
            assert len(store.stored) <= 5 * ALIKE_MAX
        assert store.written < 4 * said
        store.restart()


@pytest.mark.parametrize("size", [10, 50_000])
def test_when_all_are_gone_nothing_is_stored(size: int) -> None:
    """The last words of pieces that are gone go with the segments they were about."""
    store = Store()
    store.commit({f"piece/{n}": b"x" * size for n in range(10)})
    for n in range(10):
        store.commit({f"piece/{n}": None})
    assert store.stored == {}
    store.commit({})
    assert store.stored == {}


def test_a_segment_that_cannot_be_read_is_named() -> None:
    """Whoever has to mend the state is told which record it is."""
    with pytest.raises(StateCorrupt, match="log/3 cannot be read"):
        PieceLog("log/").restore({"log/3": b"\xff"})


def test_pieces_that_look_alike_take_little_room() -> None:
    """Windows of many models: the segment is a fraction of them."""
    store = Store()
    store.commit(
        {
            f"window/m{n}/1767225600000": b"the same in every window, but for this: %d" % n
            for n in range(1_000)
        }
    )
    assert store.written < sum(len(name) + len(data) for name, data in store.pieces.items()) / 3


def test_what_was_written_before_segments_were_compressed_is_read() -> None:
    """An update of the monitor begins with the state that is there."""
    told = {"window/m1": b"one", "window/m2": None}
    stored = {
        "log/0": msgspec.msgpack.encode([1, {"window/m2": b"two"}]),
        "log/1": msgspec.msgpack.encode([2, told]),
    }
    assert PieceLog("log/").restore(stored) == {"window/m1": b"one"}


@pytest.mark.parametrize("data", [zstandard.compress(b"x" * 500)[:-2], zstandard.compress(b"\xff")])
def test_a_compressed_segment_that_is_damaged_is_named(data: bytes) -> None:
    """However it is damaged."""
    with pytest.raises(StateCorrupt, match="log/3 cannot be read"):
        PieceLog("log/").restore({"log/3": data})
