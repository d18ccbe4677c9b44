"""Pieces that look alike as columns and back: nothing is lost, damage is named, and what was written before is read."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import StateCorrupt
from streams.core.alike import ALIKE_MIN, packed, unpacked
from tests.support_examples import examples


def alike(count: int, seed: int = 1) -> dict[str, bytes | None]:
    """Pieces of one length: a head that all have, a number that none shares, and the same number again."""
    rng = np.random.default_rng(seed)
    numbers = [rng.normal(size=2).tobytes() for _ in range(count)]
    return {f"window/m{at:05d}": b"head" + number + number for at, number in enumerate(numbers)}


@examples(15)
@given(
    st.dictionaries(st.text(max_size=4), st.none() | st.binary(max_size=6), max_size=8),
    st.lists(
        st.tuples(st.sampled_from([0, 1, 3, 40]), st.sampled_from([1, ALIKE_MIN - 1, ALIKE_MIN, 600])),
        max_size=3,
    ),
    st.integers(0, 2**31),
)
def test_what_was_packed_is_unpacked(
    others: dict[str, bytes | None], groups: list[tuple[int, int]], seed: int
) -> None:
    """Whatever there is beside pieces of one length, those without a byte among them."""
    rng = np.random.default_rng(seed)
    entries = dict(others)
    for size, count in groups:
        few = rng.integers(1, 255)
        entries |= {
            f"p{size}/{at:04d}": rng.integers(0, few, size).astype(np.uint8).tobytes() for at in range(count)
        }
    assert unpacked("log/1", packed(7, entries)) == (7, entries)


def test_pieces_that_look_alike_take_what_is_different_in_them() -> None:
    """A normal number has about 55 bits; the same one again, head and name take next to nothing."""
    entries = alike(5_000)
    assert len(packed(1, entries)) < 5_000 * 2 * 7.2
    few = dict(list(entries.items())[: ALIKE_MIN - 1])
    assert unpacked("log/1", packed(1, few)) == (1, few)


def test_segments_of_the_forms_before_are_read() -> None:
    """Plain msgpack first, then compressed as a whole."""
    entries = alike(3) | {"gone": None}
    plain = msgspec.msgpack.encode([5, entries])
    assert unpacked("log/4", plain) == unpacked("log/4", zstandard.compress(plain)) == (5, entries)


@examples(25)
@given(st.data())
def test_damage_is_named(data: st.DataObject) -> None:
    """Cut short or written over, it is refused with its name, or read as something of another content."""
    whole = bytearray(packed(1, alike(ALIKE_MIN)))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[at] ^= data.draw(st.integers(1, 255))
    else:
        del whole[at:]
    try:
        unpacked("log/1", bytes(whole))
    except StateCorrupt as error:
        assert "log/1" in str(error)  # noqa: PT017 - bytes may also mean something


def test_a_segment_that_would_fill_the_memory_is_refused() -> None:
    """A few bytes can say that they are many."""
    body = msgspec.msgpack.encode([1, [[2**31, 1, [b"a", b"b"]]], zstandard.compress(b"\x80")])
    with pytest.raises(StateCorrupt, match="more than"):
        unpacked("log/1", b"\xc1\x01" + body)
