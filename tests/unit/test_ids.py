"""Identities: the partitioner is Kafka's own, and addresses survive being written down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.hashing import key_hashes
from schemas.ids import RowId, murmur2, murmur2_many, partition_of, partitions_of, stable_unit
from schemas.spans import Spans

#: From the tests of Kafka's own Java client (UtilsTest.testMurmur2), as unsigned numbers.
KAFKA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "signed"), KAFKA.items())
def test_murmur2_is_that_of_kafkas_java_client(key: bytes, signed: int) -> None:
    """The values Kafka's own tests state."""
    assert murmur2(key) == signed & 0xFFFFFFFF


#: Of the first keys below.
CHECKS = [0, 3701811082, 3110171281, 1817899299]


@given(st.lists(st.binary(max_size=40)))
def test_many_keys_at_once_are_the_same_as_one_by_one(keys: list[bytes]) -> None:
    """Empty keys, NUL bytes and lengths of any remainder included."""
    assert murmur2_many(keys).tolist() == [murmur2(key) for key in keys]
    assert partitions_of(keys, 7).tolist() == [partition_of(key, 7) for key in keys]


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1),
    st.integers(0, 9),
    st.integers(0),
    st.integers(0),
)
def test_an_address_is_read_back_as_it_was_written(topic: str, partition: int, offset: int, row: int) -> None:
    """The text form loses nothing."""
    address = RowId(topic, partition, offset, row)
    assert RowId.parse(str(address)) == address


def test_what_is_no_address_is_refused() -> None:
    """A broken header must not become a wrong address."""
    with pytest.raises(ValueError, match="not enough values"):
        RowId.parse("predictions/1")


def test_a_callers_side_of_a_split_is_stable_and_spread_evenly() -> None:
    """The same entity always falls on the same side, and a tenth of entities in the first tenth."""
    units = [stable_unit("m", str(at)) for at in range(2_000)]
    assert units == [stable_unit("m", str(at)) for at in range(2_000)]
    assert sum(unit < 0.1 for unit in units) == pytest.approx(200, abs=45)
    assert stable_unit("ab", "c") != stable_unit("a", "bc")


def test_hashes_of_many_keys_are_those_of_each_alone() -> None:
    """Neighbours of other lengths change nothing; equal keys are equal, others differ in all three."""
    keys = [b"", b"a", b"a\0", b"abcd", b"abcdefg", b"abcdefgh", b"abcdefghi", bytes(41), bytes(42), b"a"]
    together = key_hashes(Spans.of(keys))
    alone = [key_hashes(Spans.of([key])) for key in keys]
    assert together.murmur.tolist() == [murmur2(key) for key in keys]
    assert together.identity.tolist() == [murmur2(key) << 32 | murmur2(key + b"\x01") for key in keys]
    assert together.check.tolist() == [int(one.check[0]) for one in alone]
    # Stored with every prediction that waits for its label: never to change.
    assert together.check[:4].tolist() == CHECKS
    assert together.partitions(7).tolist() == [partition_of(key, 7) for key in keys]
    for hashes in together:
        assert len(set(hashes.tolist())) == len(set(keys))
    assert len(key_hashes(Spans.of([])).identity) == 0


def test_each_byte_of_a_key_of_any_length_is_hashed() -> None:
    """What is left of a key behind its last whole word is read with a word that begins before it: never another key's bytes."""
    whole = bytes(range(1, 41))
    keys = [whole[:length] for length in range(len(whole) + 1)]
    hashes = key_hashes(Spans.of([b"x" * 9, *keys]))
    assert hashes.identity[1:].tolist() == [murmur2(key) << 32 | murmur2(key + b"\x01") for key in keys]
    assert hashes.check[1:].tolist() == [_check(key) for key in keys]


def _check(key: bytes) -> int:
    bits = (1 << 64) - 1
    folded = len(key) * 0x9E3779B97F4A7C15 & bits
    for start in range(0, len(key), 8):
        folded = (folded ^ int.from_bytes(key[start : start + 8], "little")) * 0xFF51AFD7ED558CCD & bits
        folded ^= folded >> 33
    return (folded * 0xC4CEB9FE1A85EC53 & bits) >> 32
