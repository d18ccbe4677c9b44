"""The delivery protocol, without a broker: what makes a kill -9 at any instruction harmless.

A task is one stage's work on one input partition. Everything it derives (outputs, changed state, and the manifest that
says which input that state has seen) is written in ONE Kafka transaction; whoever reads, reads committed. So there are
only two kinds of history: the transaction is there, wholly, or it never was. This module holds the types, the rules
and the layout of the state topic; ``streams.task`` does the I/O.

What is stored, what arrives, what is done (``disposition``):

    stored for the partition          record's offset         done
    nothing (first assignment)        any                     APPLY
    next = n, n >= high               < n                     SKIP    already in the state; a replay after a seek
    next = n, n >= high               = n                     APPLY
    next = n, n >= high               > n                     APPLY   markers, aborted records, compaction leave holes
    next = n, n < high (recovering)   < n                     SKIP
    next = n, n < high (recovering)   >= n, < high            REREAD  the core gets it, and drops rows it had consumed
    next = n, n < high (recovering)   >= high                 APPLY   recovery of this partition is over

That a hole is not a loss is made sure elsewhere: inputs are sought to the manifest's offsets before the first fetch, and
a task refuses to start (``DeliveryError``) when retention has deleted an offset it has not read.

    the process dies                                after recovery
    before the transaction, or inside it            aborted by the successor's init_transactions; rows are applied again
    after the commit, before the group's ack        manifest wins over the group's offsets: nothing is applied again
    after the ack, before the warehouse write       dirty marks are in the state: rows are sent again, same version
    after the write, before it is confirmed         the same row again; ReplacingMergeTree keeps one of equals
    after another owner has taken the task          the commit fails as fenced; its records stay invisible
    and the state topic is lost                     inputs are read from their start; sequences begin at the clock, so
                                                    that the rows made again win over those of the life before
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from schemas.contracts import ModelRecord
from schemas.errors import SnapshotError, StateCorrupt
from schemas.row_binary import RowBlock
from schemas.settings import MonitorSettings
from streams.core.records import Input

MANIFEST_SCHEMA = 2
_READABLE = (1, 2)
_CHECKSUM_BYTES = 4
#: A chunk stays under the producer's usual request limit of 1 MB with room for key and headers.
CHUNK_BYTES_MAX = 900_000
MANIFEST_KEY = "manifest"
_NO_HEADERS: Mapping[str, bytes] = {}

TopicPartition = tuple[str, int]


class Out(NamedTuple):
    """One record to write. ``topic`` is logical; ``partition`` None: murmur2 of ``key`` decides."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: Mapping[str, bytes] = _NO_HEADERS


class Upserts(NamedTuple):
    """``rows`` rows of one warehouse table: cumulative values as of the committed manifest ``version``.

    They are bytes already, ``parts`` one behind the other as ``schemas.row_binary`` has them, and carry ``version`` too: of two
    rows of one key the warehouse keeps the one of the higher. ``mark`` is the core's own: by what it knows them when they are
    confirmed.
    """

    table: str
    rows: int
    parts: Sequence[bytes]
    version: int
    mark: int | None = None

    @property
    def block(self) -> RowBlock:
        """The rows as one piece."""
        whole = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        return RowBlock(self.rows, (memoryview(whole),))


class PieceRef(msgspec.Struct, frozen=True, array_like=True):
    """Where a piece's bytes are. ``generation``: sequence of the manifest that wrote it, part of its record keys."""

    generation: int
    chunks: int
    size: int
    checksum: bytes


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What one committed state of a task stands for. ``sequence`` counts transactions, ``epoch`` owners.

    ``offsets``: where each input is to be read from after recovery (LOW). ``high``: the first offset never handed to
    the core; rows below it and from LOW on are read again, and the core drops what it had consumed.
    ``watermarks``: the core's own, by source. ``activations``: next offset on each broadcast topic.
    ``garbage``: pieces no manifest names any more, to be deleted by the next transaction.
    """

    task: str
    epoch: int = 0
    sequence: int = 0
    schema_version: int = MANIFEST_SCHEMA
    offsets: dict[TopicPartition, int] = {}
    high: dict[TopicPartition, int] = {}
    watermarks: dict[str, int] = {}
    activations: dict[str, int] = {}
    pieces: dict[str, PieceRef] = {}
    garbage: list[tuple[str, PieceRef]] = []


class TaskCore(Protocol):
    """What a stage is: a deterministic machine from records to outputs and state. Synchronous, no clock, no I/O.

    All calls come from one thread at a time. The order is: ``activate`` (everything the manifest had seen on
    ``models``), ``restore`` once, ``activate`` (what is new), then repeatedly ``apply`` ...; per transaction
    ``outputs``, ``changed_pieces``, ``positions``, ``watermarks``; after it ``committed``, ``upserts``.
    """

    stage: str

    def apply(self, records: Sequence[Input], now_ms: int) -> None:
        """Take records, in offset order per partition. Bad rows are dead-lettered through ``outputs``, not raised:
        whatever leaves this method ends the process. ``now_ms`` is for figures about this process only."""

    def outputs(self) -> list[Out]:
        """What is to be written, in order; drained by the call."""

    def changed_pieces(self) -> dict[str, bytes | None]:
        """State pieces that changed since the last call; None deletes. Names hold no NUL."""

    def restore(self, pieces: Mapping[str, bytes], manifest: Manifest | None) -> None:
        """Become the state of ``manifest``; ``({}, None)`` on a task's first start."""

    def positions(self) -> dict[TopicPartition, int]:
        """LOW offsets: where recovery must read from. Partitions not named: the first offset not yet applied."""

    def watermarks(self) -> dict[str, int]:
        """Event time reached, by source. A change makes the shell commit soon instead of at the interval's end."""

    def committed(self, sequence: int) -> None:
        """The transaction with everything drained so far is durable, as ``sequence``."""

    def upserts(self) -> list[Upserts]:
        """Warehouse rows that changed since the last call (after ``restore``: all that are still marked dirty), with
        ``version`` = the sequence of the last ``committed``. Called right after ``committed``, before more ``apply``."""

    def confirm(self, sent: Sequence[Upserts]) -> None:
        """The warehouse holds these, each of which is one that ``upserts`` gave. Dirty marks go, except of what has changed
        after ``version``."""

    def activate(self, records: Sequence[ModelRecord]) -> None:
        """Contracts and versions, in the order of ``models``. May repeat what is known."""


class StageContext(NamedTuple):
    """What a stage's factory gets: ``create(context: StageContext) -> TaskCore`` in the stage's module
    (``streams.core.pipeline``, ``.detect``, ``.policy``). ``partition`` is the task's input partition."""

    stage: str
    partition: int
    partitions: int
    settings: MonitorSettings

    @property
    def task(self) -> str:
        """The task's name, also the source of its ticks: ``join/3``."""
        return f"{self.stage}/{self.partition}"


class Disposition(Enum):
    """What to do with an arriving record; the table above."""

    APPLY = "apply"
    REREAD = "reread"
    SKIP = "skip"


def disposition(next_offset: int | None, high: int, offset: int) -> Disposition:
    """The first table above as a function. ``high`` is the restored manifest's, 0 when there is none."""
    if next_offset is not None and offset < next_offset:
        return Disposition.SKIP
    return Disposition.REREAD if offset < high else Disposition.APPLY


def piece_digest(data: bytes) -> bytes:
    """16 bytes of BLAKE2b: pieces with the same are the same."""
    return hashlib.blake2b(data, digest_size=16).digest()


def piece_checksum(data: bytes) -> bytes:
    """CRC-32, four bytes: finds damage, in a fifth of a digest's time. That a piece is the right one, its generation says."""
    return zlib.crc32(data).to_bytes(4, "big")


def _fits(data: bytes, ref: PieceRef) -> bool:
    """Whether these are a piece's bytes. Manifests of schema 1 had digests for checksums, and later ones name their pieces."""
    checksum = piece_checksum if len(ref.checksum) == _CHECKSUM_BYTES else piece_digest
    return len(data) == ref.size and checksum(data) == ref.checksum


def manifest_key(task: str) -> bytes:
    """Key of a task's manifest on the state topic."""
    return f"{task}\0{MANIFEST_KEY}".encode()


def chunk_key(task: str, name: str, generation: int, chunk: int) -> bytes:
    """Key of one chunk. The generation keeps an old manifest from ever pointing to new bytes."""
    return f"{task}\0{name}@{generation}\0{chunk}".encode()


def encode_manifest(manifest: Manifest) -> bytes:
    """Wire form of a manifest: msgpack, maps with tuple keys as lists of pairs (msgpack of other languages)."""
    data = msgspec.structs.asdict(manifest)
    for name in ("offsets", "high"):
        data[name] = [(topic, partition, offset) for (topic, partition), offset in data[name].items()]
    return msgspec.msgpack.encode(data)


def decode_manifest(data: bytes) -> Manifest:
    """Inverse of :func:`encode_manifest`. Raises StateCorrupt, or SnapshotError for another schema version."""
    try:
        raw = msgspec.msgpack.decode(data)
        if raw["schema_version"] not in _READABLE:
            raise SnapshotError(
                f"manifest of task {raw.get('task')!r} has schema {raw['schema_version']}, this code reads "
                f"{_READABLE[0]} to {_READABLE[-1]}: run the version that wrote it, or start from empty state"
            )
        for name in ("offsets", "high"):
            raw[name] = {(topic, partition): offset for topic, partition, offset in raw[name]}
        return msgspec.convert(raw, Manifest)
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
        raise StateCorrupt(f"a manifest on the state topic cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Loaded:
    """A task's state as read back: ``manifest`` None on its first start."""

    manifest: Manifest | None
    pieces: dict[str, bytes]


def load(task: str, records: Iterable[tuple[bytes | None, bytes | None]]) -> Loaded:
    """State of ``task`` from all records (key, value) of its state partition, in offset order. Raises StateCorrupt."""
    return assembled(task, newest_of(task, records))


def newest_of(task: str, records: Iterable[tuple[bytes | None, bytes | None]]) -> dict[bytes, bytes]:
    """What compaction would leave: later records replace earlier ones of the same key; other tasks' are ignored."""
    prefix = f"{task}\0".encode()
    newest: dict[bytes, bytes] = {}
    for key, value in records:
        if key is None or not key.startswith(prefix):
            continue
        if value is None:
            newest.pop(key, None)
        else:
            newest[key] = value
    return newest


def assembled(task: str, newest: Mapping[bytes, bytes]) -> Loaded:
    """State of ``task`` from the newest record of each key. Raises StateCorrupt when the manifest names a piece that is
    missing or differs from its checksum."""
    raw = newest.get(manifest_key(task))
    if raw is None:
        return Loaded(None, {})
    manifest = decode_manifest(raw)
    pieces: dict[str, bytes] = {}
    for name, ref in manifest.pieces.items():
        chunks = [newest.get(chunk_key(task, name, ref.generation, index)) for index in range(ref.chunks)]
        data = b"".join(chunk for chunk in chunks if chunk is not None)
        if None in chunks or not _fits(data, ref):
            raise StateCorrupt(
                f"task {task}, manifest {manifest.sequence}: piece {name!r} of generation {ref.generation} is missing "
                f"or altered ({len(data)} of {ref.size} bytes); restore the state topic, or delete this task's "
                "records on it to replay its inputs from their start"
            )
        pieces[name] = data
    return Loaded(manifest, pieces)


@dataclass(frozen=True, slots=True)
class Transaction:
    """One planned transaction: ``state`` are (key, value) records for the task's state partition, manifest last."""

    outs: list[Out]
    state: list[tuple[bytes, bytes | None]]
    manifest: Manifest
    state_bytes: int = field(default=0)


def plan(
    before: Manifest,
    *,
    outs: list[Out],
    changed: Mapping[str, bytes | None],
    offsets: Mapping[TopicPartition, int],
    high: Mapping[TopicPartition, int],
    watermarks: Mapping[str, int],
    activations: Mapping[str, int],
) -> Transaction:
    """The transaction that takes the task from manifest ``before`` to the next.

    Changed pieces are written under a new generation; what they replace is named as garbage by the new manifest and
    deleted by the transaction after it, so at every committed point the newest manifest finds all its bytes.
    """
    sequence = before.sequence + 1
    pieces = dict(before.pieces)
    state: list[tuple[bytes, bytes | None]] = [
        (chunk_key(before.task, name, ref.generation, index), None)
        for name, ref in before.garbage
        for index in range(ref.chunks)
    ]
    garbage: list[tuple[str, PieceRef]] = []
    for name, data in changed.items():
        old = pieces.pop(name, None)
        if old is not None:
            garbage.append((name, old))
        if data is None:
            continue
        cuts = range(0, max(len(data), 1), CHUNK_BYTES_MAX)
        for index, start in enumerate(cuts):
            state.append(
                (chunk_key(before.task, name, sequence, index), data[start : start + CHUNK_BYTES_MAX])
            )
        pieces[name] = PieceRef(sequence, len(cuts), len(data), piece_checksum(data))
    manifest = Manifest(
        task=before.task,
        epoch=before.epoch,
        sequence=sequence,
        offsets=dict(offsets),
        high=dict(high),
        watermarks=dict(watermarks),
        activations=dict(activations),
        pieces=pieces,
        garbage=garbage,
    )
    state.append((manifest_key(before.task), encode_manifest(manifest)))
    return Transaction(outs, state, manifest, sum(len(value) for _, value in state if value is not None))
