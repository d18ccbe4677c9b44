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

    Keys are laid out as a zero-padded matrix of 4-byte words, so the cost per key falls to tens of nanoseconds. Who has
    keys as spans uses ``schemas.hashing``.
    """
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    width = (int(lengths.max(initial=1)) + 3) // 4 * 4
    padded = b"".join([key.ljust(width, b"\0") for key in keys])
    return _murmur2(np.frombuffer(padded, "<u4").reshape(len(keys), width // 4), lengths)


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
