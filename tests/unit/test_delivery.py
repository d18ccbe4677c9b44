"""The delivery protocol without a broker: the table, the layout of the state topic, and that it survives any cut."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SnapshotError, StateCorrupt
from streams.core.delivery import (
    CHUNK_BYTES_MAX,
    Disposition,
    Manifest,
    PieceRef,
    Transaction,
    chunk_key,
    decode_manifest,
    disposition,
    encode_manifest,
    load,
    manifest_key,
    plan,
)

Records = list[tuple[bytes | None, bytes | None]]


@pytest.mark.parametrize(
    ("next_offset", "high", "offset", "expected"),
    [
        (None, 0, 7, Disposition.APPLY),
        (5, 0, 4, Disposition.SKIP),
        (5, 5, 4, Disposition.SKIP),
        (5, 5, 5, Disposition.APPLY),
        (5, 5, 9, Disposition.APPLY),
        (3, 8, 2, Disposition.SKIP),
        (3, 8, 3, Disposition.REREAD),
        (3, 8, 7, Disposition.REREAD),
        (3, 8, 8, Disposition.APPLY),
    ],
)
def test_every_cell_of_the_delivery_table(
    next_offset: int | None, high: int, offset: int, expected: Disposition
) -> None:
    """What is stored and what arrives decide what is done."""
    assert disposition(next_offset, high, offset) is expected


def _transaction(before: Manifest, changed: dict[str, bytes | None], at: int = 0) -> Transaction:
    tp = ("predictions", 0)
    return plan(
        before,
        outs=[],
        changed=changed,
        offsets={tp: at},
        high={tp: at},
        watermarks={"w": at},
        activations={"models": 1},
    )


def test_state_is_read_back_as_it_was_written() -> None:
    """Pieces of any size, an empty one included, and the whole manifest come back."""
    pieces = {"small": b"x", "empty": b"", "large": b"ab" * CHUNK_BYTES_MAX}
    written = _transaction(Manifest(task="join/0", epoch=3), dict(pieces), at=12)
    loaded = load("join/0", written.state)
    assert loaded.pieces == pieces
    assert loaded.manifest == written.manifest
    assert loaded.manifest is not None
    assert (loaded.manifest.epoch, loaded.manifest.sequence) == (3, 1)
    assert loaded.manifest.high == {("predictions", 0): 12}


def test_no_record_is_larger_than_a_chunk() -> None:
    """A large piece is cut so that each record stays below the request limit."""
    written = _transaction(Manifest(task="t"), {"large": b"x" * (2 * CHUNK_BYTES_MAX + 1)})
    sizes = [len(value or b"") for key, value in written.state if key != manifest_key("t")]
    assert sizes == [CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, 1]


def test_an_empty_partition_is_a_first_start() -> None:
    """No manifest means no state, whatever other tasks left there."""
    other = _transaction(Manifest(task="join/1"), {"piece": b"x"}).state
    assert load("join/0", other).manifest is None
    assert load("join/0", []).pieces == {}


def test_a_replaced_piece_is_deleted_one_transaction_later() -> None:
    """The old bytes outlive the manifest that replaces them, so the newest manifest always finds all of its own."""
    first = _transaction(Manifest(task="t"), {"p": b"1"})
    second = _transaction(first.manifest, {"p": b"2"})
    third = _transaction(second.manifest, {})
    old = (chunk_key("t", "p", 1, 0), None)
    assert old not in second.state
    assert old in third.state
    assert third.manifest.garbage == []
    assert load("t", first.state + second.state + third.state).pieces == {"p": b"2"}


def test_a_deleted_piece_is_gone() -> None:
    """None as a change takes the piece out of the manifest and its bytes out of the topic."""
    first = _transaction(Manifest(task="t"), {"p": b"1", "q": b"2"})
    second = _transaction(first.manifest, {"p": None, "never": None})
    third = _transaction(second.manifest, {})
    records = first.state + second.state + third.state
    assert load("t", records).pieces == {"q": b"2"}
    assert (chunk_key("t", "p", 1, 0), None) in third.state


@pytest.mark.parametrize("damage", ["missing", "altered", "cut"])
def test_damaged_state_is_refused_with_the_pieces_name(damage: str) -> None:
    """A piece that is not what the manifest says is an error, never a silent start from less."""
    written = _transaction(Manifest(task="t"), {"windows": b"abc"})
    key = chunk_key("t", "windows", 1, 0)
    value = {"missing": None, "altered": b"abd", "cut": b"ab"}[damage]
    with pytest.raises(StateCorrupt, match="windows"):
        load("t", [*written.state, (key, value)])


def test_a_manifest_of_another_schema_or_none_at_all_is_refused() -> None:
    """Bytes that are no manifest, and those of a version this code does not know, are told apart."""
    with pytest.raises(StateCorrupt):
        decode_manifest(b"\xc1")
    with pytest.raises(SnapshotError, match="schema 99"):
        decode_manifest(encode_manifest(Manifest(task="t", schema_version=99)))


def test_pieces_of_a_manifest_of_schema_1_are_read_and_named_on() -> None:
    """Their checksums were digests: damage is found by those too, and later manifests go on naming them."""
    digest = hashlib.blake2b(b"old", digest_size=16).digest()
    before = Manifest(task="t", schema_version=1, sequence=1, pieces={"p": PieceRef(1, 1, 3, digest)})
    piece = (chunk_key("t", "p", 1, 0), b"old")
    assert load("t", [piece, (manifest_key("t"), encode_manifest(before))]).pieces == {"p": b"old"}
    after = _transaction(before, {"q": b"new"})
    assert load("t", [piece, *after.state]).pieces == {"p": b"old", "q": b"new"}
    with pytest.raises(StateCorrupt, match="'p'"):
        load("t", [(piece[0], b"odd"), *after.state])


names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=8)
changes = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.none() | st.binary(max_size=20), max_size=3)


@given(st.lists(changes, max_size=8), st.booleans())
def test_after_any_history_the_state_is_the_sum_of_its_changes(
    history: list[dict[str, bytes | None]], compact: bool
) -> None:
    """Whether the log was compacted or not, and after each transaction."""
    manifest, expected = Manifest(task="t"), dict[str, bytes]()
    log: Records = []
    for changed in history:
        written = _transaction(manifest, changed)
        manifest = written.manifest
        log += written.state
        for name, data in changed.items():
            if data is None:
                expected.pop(name, None)
            else:
                expected[name] = data
        kept = list(dict(log).items()) if compact else log
        loaded = load("t", kept)
        assert loaded.pieces == expected
        assert loaded.manifest == manifest


@given(st.dictionaries(st.tuples(names, st.integers(0, 99)), st.integers(0, 2**62), max_size=4), names)
def test_any_manifest_survives_its_wire_form(offsets: dict[tuple[str, int], int], name: str) -> None:
    """What is written is what is read."""
    ref = PieceRef(1, 2, 3, b"0123456789abcdef")
    manifest = Manifest(
        task=name,
        offsets=offsets,
        high=offsets,
        watermarks={name: 5},
        pieces={name: ref},
        garbage=[(name, ref)],
    )
    assert decode_manifest(encode_manifest(manifest)) == manifest
