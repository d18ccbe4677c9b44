"""Identities, fixed from the first day: rows, predictions, partitions.

A row is (topic, partition, offset, row in batch). A prediction is (prediction_id, model, version, role). Kafka clients
differ in their default partitioner, so the one that decides where a prediction's label is looked for is written down
here: murmur2 as Kafka's Java client computes it, ``(murmur2(key) & 0x7fffffff) % partitions``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Role = Literal["stable", "canary", "shadow"]
ROLES: tuple[Role, ...] = ("stable", "canary", "shadow")
#: Roles whose answers reached a caller. Only these enter the live figures.
ANSWERING_ROLES: frozenset[Role] = frozenset({"stable", "canary"})

_M = 0x5BD1E995
_SEED = 0x9747B28C
_MASK = 0xFFFFFFFF


class RowId(NamedTuple):
    """Where a row was first read. Text form ``topic/partition/offset/row``."""

    topic: str
    partition: int
    offset: int
    row: int = 0

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}/{self.row}"

    @classmethod
    def parse(cls, text: str) -> RowId:
        """Inverse of ``str``. Raises ValueError when the text is not an address."""
        topic, partition, offset, row = text.rsplit("/", 3)
        return cls(topic, int(partition), int(offset), int(row))


class PredictionId(NamedTuple):
    """One prediction of one version in one role. One label settles all roles of a ``prediction_id``."""

    prediction_id: str
    model: str
    version: str
    role: Role


def murmur2(data: bytes) -> int:
    """32-bit murmur2 of ``data`` with the seed of Kafka's Java client (org.apache.kafka.common.utils.Utils)."""
    length = len(data)
    h = (_SEED ^ length) & _MASK
    words = length // 4
    for i in range(words):
        k = int.from_bytes(data[4 * i : 4 * i + 4], "little")
        k = (k * _M) & _MASK
        k ^= k >> 24
        k = (k * _M) & _MASK
        h = (h * _M) & _MASK
        h ^= k
    tail = data[4 * words :]
    if tail:
        for i, byte in enumerate(tail):
            h ^= byte << (8 * i)
        h = (h * _M) & _MASK
    h ^= h >> 13
    h = (h * _M) & _MASK
    h ^= h >> 15
    return h


def partition_of(key: bytes, partitions: int) -> int:
    """Partition of ``key`` under the one partitioner Driftline uses."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2_many(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """murmur2 of every key at once, shape ``(len(keys),)``; equal to :func:`murmur2` key by key.

    Keys are laid out as a zero-padded matrix of 4-byte words, so the cost per key falls to tens of nanoseconds.
    """
    return _murmur2(*_words(keys, b""))


def _laid_out(keys: Sequence[bytes], end: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Keys, each with ``end`` behind it, as rows of zero-padded bytes, a multiple of eight wide; and their lengths."""
    lengths = np.fromiter(map(len, keys), np.int64, len(keys)) + len(end)
    longest = int(lengths.max(initial=1))
    width = (longest + 7) // 8 * 8
    if len(keys) and longest == int(lengths.min()):
        padded = (end + bytes(width - longest)).join([*keys, b""])
    else:
        padded = b"".join([(key + end).ljust(width, b"\0") for key in keys])
    return np.frombuffer(padded, np.uint8).reshape(len(keys), width), lengths


def _murmur2(words: NDArray[np.uint32], lengths: NDArray[np.int64]) -> NDArray[np.uint32]:
    h = np.uint32(_SEED) ^ lengths.astype(np.uint32)
    m = np.uint32(_M)
    whole, rest = lengths // 4, lengths % 4
    least, most = (int(whole.min()), int(whole.max())) if len(lengths) else (0, 0)
    with np.errstate(over="ignore"):
        for i in range(most):
            k = words[:, i] * m
            k ^= k >> np.uint32(24)
            k *= m
            mixed = (h * m) ^ k
            h = mixed if i < least else np.where(i < whole, mixed, h)
        if rest.any():
            # Zero padding makes the last partial word equal to its tail bytes, as the scalar loop folds them in.
            tail = words[np.arange(len(lengths)), np.minimum(whole, words.shape[1] - 1)]
            h = np.where(rest > 0, (h ^ tail) * m, h)
        h ^= h >> np.uint32(13)
        h *= m
        h ^= h >> np.uint32(15)
    return h


class KeyHashes(NamedTuple):
    """Hashes of ``n`` keys, arrays of shape (n,). ``murmur``: what partitions are cut by. ``identity``: what detectors
    know predictions by. ``check``: 32 bits more, so that a key is known by 96: among a billion keys, two are alike once
    in a hundred thousand million such sets."""

    murmur: NDArray[np.uint32]
    identity: NDArray[np.uint64]
    check: NDArray[np.uint32]

    def partitions(self, partitions: int) -> NDArray[np.int64]:
        """:func:`partition_of` each key."""
        return (self.murmur & np.uint32(0x7FFFFFFF)).astype(np.int64) % partitions


def key_hashes(keys: Sequence[bytes]) -> KeyHashes:
    """All hashes of ``keys`` in one pass.

    ``identity`` is ``murmur2`` of the key, then of the key with a byte 1 behind it: the view ``prediction_identities``
    computes the same in the warehouse, but for bits 31 and 63.
    """
    layout, lengths = _laid_out(keys, b"")
    high = _murmur2(layout.view("<u4"), lengths)
    low = _murmur2(*_words(keys, b"\x01"))
    identity = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    return KeyHashes(high, identity, _mixed(layout.view("<u8"), lengths))


def _words(keys: Sequence[bytes], end: bytes) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    layout, lengths = _laid_out(keys, end)
    return layout.view("<u4"), lengths


def _mixed(words: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Another hash of the same bytes: words are folded in by multiplication in 64 bits, as murmur3's finaliser does."""
    odd = np.uint64(0xFF51AFD7ED558CCD)
    h = lengths.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    filled = (lengths + 7) // 8
    least, most = (int(filled.min()), int(filled.max())) if len(lengths) else (0, 0)
    with np.errstate(over="ignore"):
        for i in range(most):
            mixed = (h ^ words[:, i]) * odd
            mixed ^= mixed >> np.uint64(33)
            h = mixed if i < least else np.where(i < filled, mixed, h)
        h *= np.uint64(0xC4CEB9FE1A85EC53)
    return (h >> np.uint64(32)).astype(np.uint32)


def partitions_of(keys: Sequence[bytes], partitions: int) -> NDArray[np.int64]:
    """:func:`partition_of` for many keys, shape ``(len(keys),)``."""
    return (murmur2_many(keys) & np.uint32(0x7FFFFFFF)).astype(np.int64) % partitions


def stable_unit(*parts: str) -> float:
    """A number in [0, 1) that depends on ``parts`` alone: the same caller always falls on the same side of a split."""
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def content_hash(data: bytes) -> str:
    """Hex SHA-256, the name of anything immutable (artifacts, configurations, snapshots)."""
    return hashlib.sha256(data).hexdigest()
