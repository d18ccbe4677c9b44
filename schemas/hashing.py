"""Hashes of many keys in one pass over their bytes: where a row belongs, and by what the join knows its prediction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, eight
from schemas.spans import Spans

#: murmur2's, as in ``schemas.ids``.
_SEED, _M = 0x9747B28C, np.uint32(0x5BD1E995)


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
        high, low = np.uint32(_SEED) ^ np.uint32(length), np.uint32(_SEED) ^ np.uint32(length + 1)
        fold = np.uint64(length) * np.uint64(0x9E3779B97F4A7C15)
        at, end = start, start + length
        while at + 8 <= end:
            word = eight(buffer, at)
            for half in (np.uint32(word), np.uint32(word >> np.uint64(32))):
                mixed = _mixed(half)
                high = np.uint32(high * _M) ^ mixed
                low = np.uint32(low * _M) ^ mixed
            fold = _folded_in(fold, word)
            at += 8
        # What is left of the key, of which a word that has it begins before it where the key is long enough.
        left = end - at
        rest = np.uint64(0)
        if left and length >= 8:
            rest = eight(buffer, end - 8) >> np.uint64(8 * (8 - left))
        else:
            for k in range(left):
                rest |= np.uint64(buffer[at + k]) << np.uint64(8 * k)
        if left:
            fold = _folded_in(fold, rest)
        if left >= 4:
            mixed = _mixed(np.uint32(rest))
            high = np.uint32(high * _M) ^ mixed
            low = np.uint32(low * _M) ^ mixed
            rest >>= np.uint64(32)
            left -= 4
        # And the same with a byte 1 behind it, which may be a whole word.
        last = np.uint32(rest)
        if left:
            high = np.uint32((high ^ last) * _M)
        last |= np.uint32(1) << np.uint32(8 * left)
        low = np.uint32(low * _M) ^ _mixed(last) if left == 3 else np.uint32((low ^ last) * _M)
        murmur[i] = _finished(high)
        identity[i] = np.uint64(murmur[i]) << np.uint64(32) | np.uint64(_finished(low))
        # Another hash of the same bytes: words are folded in by multiplication in 64 bits, as murmur3's finaliser does.
        check[i] = np.uint32(fold * np.uint64(0xC4CEB9FE1A85EC53) >> np.uint64(32))


@compiled
def _mixed(k: np.uint32) -> np.uint32:
    k = np.uint32(k * _M)
    k ^= k >> np.uint32(24)
    return np.uint32(k * _M)


@compiled
def _finished(h: np.uint32) -> np.uint32:
    h ^= h >> np.uint32(13)
    h = np.uint32(h * _M)
    return h ^ (h >> np.uint32(15))


@compiled
def _folded_in(h: np.uint64, k: np.uint64) -> np.uint64:
    h = (h ^ k) * np.uint64(0xFF51AFD7ED558CCD)
    return h ^ (h >> np.uint64(33))
