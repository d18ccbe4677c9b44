"""Hashes of many keys in one pass over their bytes: where a row belongs, and by what the join knows its prediction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.spans import Spans

_SEED = 0x9747B28C


class KeyHashes(NamedTuple):
    """Hashes of ``n`` keys, arrays of shape (n,). ``murmur``: what partitions are cut by. ``identity``: what detectors
    know predictions by. ``check``: 32 bits more, so that a key is known by 96: among a billion keys, two are alike once
    in a hundred thousand million such sets."""

    murmur: NDArray[np.uint32]
    identity: NDArray[np.uint64]
    check: NDArray[np.uint32]

    def partitions(self, partitions: int) -> NDArray[np.int64]:
        """``schemas.ids.partition_of`` each key."""
        return (self.murmur & np.uint32(0x7FFFFFFF)).astype(np.int64) % partitions


def key_hashes(keys: Spans) -> KeyHashes:
    """All hashes of ``keys``.

    ``identity`` is ``schemas.ids.murmur2`` of the key, then of the key with a byte 1 behind it: the view
    ``prediction_identities`` computes the same in the warehouse, but for bits 31 and 63.
    """
    n = len(keys)
    found = KeyHashes(np.empty(n, np.uint32), np.empty(n, np.uint64), np.empty(n, np.uint32))
    _hash(keys.buffer, keys.start, keys.length, *found)
    return found


@compiled
def _hash(
    buffer: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64], murmur: NDArray[np.uint32],
    identity: NDArray[np.uint64], check: NDArray[np.uint32],
) -> None:  # fmt: skip
    for i in range(len(starts)):
        start, length = starts[i], max(lengths[i], 0)
        high = _murmur2(buffer, start, length, 0)
        low = _murmur2(buffer, start, length, 1)
        murmur[i] = high
        identity[i] = np.uint64(high) << np.uint64(32) | np.uint64(low)
        check[i] = _folded(buffer, start, length)


@compiled
def _murmur2(buffer: NDArray[np.uint8], start: int, length: int, more: int) -> np.uint32:
    """murmur2 of the key, with ``more`` bytes of 1 behind it (none or one)."""
    m = np.uint32(0x5BD1E995)
    h = np.uint32(_SEED) ^ np.uint32(length + more)
    whole = (length + more) // 4
    for word in range(whole):
        k = np.uint32(0)
        for i in range(4):
            at = 4 * word + i
            k |= np.uint32(buffer[start + at] if at < length else 1) << np.uint32(8 * i)
        k = np.uint32(k * m)
        k ^= k >> np.uint32(24)
        k = np.uint32(k * m)
        h = np.uint32(h * m) ^ k
    rest = length + more - 4 * whole
    if rest:
        for i in range(rest):
            at = 4 * whole + i
            h ^= np.uint32(buffer[start + at] if at < length else 1) << np.uint32(8 * i)
        h = np.uint32(h * m)
    h ^= h >> np.uint32(13)
    h = np.uint32(h * m)
    return h ^ (h >> np.uint32(15))


@compiled
def _folded(buffer: NDArray[np.uint8], start: int, length: int) -> np.uint32:
    """Another hash of the same bytes: words are folded in by multiplication in 64 bits, as murmur3's finaliser does."""
    h = np.uint64(length) * np.uint64(0x9E3779B97F4A7C15)
    for word in range((length + 7) // 8):
        k = np.uint64(0)
        for i in range(min(8, length - 8 * word)):
            k |= np.uint64(buffer[start + 8 * word + i]) << np.uint64(8 * i)
        h = (h ^ k) * np.uint64(0xFF51AFD7ED558CCD)
        h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    return np.uint32(h >> np.uint64(32))
