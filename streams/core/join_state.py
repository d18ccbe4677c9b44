"""How the join index is stored: what an entry is, and a piece of the index as bytes and back.

Flat rows, so that reading a million back takes seconds, and what many rows share stands once in a piece.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from schemas.codecs import Label
from schemas.errors import StateCorrupt

JOIN_SCHEMA = 5
#: Fields were added at the end since, with defaults.
_SCHEMAS_READ = (4, 5)
NO_REVISION = -1

#: Revision, label, label time of one label.
Told = tuple[int, float, int]


class WindowKey(NamedTuple):
    """One window of one model."""

    model: str
    start_ms: int
    window_ms: int

    @property
    def end_ms(self) -> int:
        return self.start_ms + self.window_ms


class Entry(msgspec.Struct, gc=False):
    """One prediction in the index. ``score`` NaN: it has none. ``revision`` -1: no label yet.

    ``earlier``: the labels that were replaced. Whoever comes late is told all of them in turn, so that what detectors
    see does not depend on which input was read first.
    """

    prediction_id: str
    window: WindowKey
    version: str
    role: int
    event_time_ms: int
    score: float
    latency_ms: float
    status: int
    segments: tuple[str, ...]
    partition: int
    offset: int
    row: int
    identity: int
    number: int = 0
    revision: int = NO_REVISION
    label: float = 0.0
    label_time_ms: int = 0
    earlier: tuple[Told, ...] = ()

    @property
    def told(self) -> tuple[Told, ...]:
        """All labels so far, oldest first."""
        if self.revision == NO_REVISION:
            return ()
        return (*self.earlier, (self.revision, self.label, self.label_time_ms))


class _Kind(NamedTuple):
    """What many entries share."""

    window: WindowKey
    version: str
    role: int
    segments: tuple[str, ...]


class _Row(msgspec.Struct, array_like=True, gc=False):
    """An entry as stored: flat, so that reading a million back takes seconds. ``kind``: place in the piece's kinds."""

    prediction_id: str
    kind: int
    event_time_ms: int
    score: float
    latency_ms: float
    status: int
    partition: int
    offset: int
    row: int
    identity: int
    number: int
    revision: int
    label: float
    label_time_ms: int
    earlier: tuple[Told, ...]


class Body(msgspec.Struct, array_like=True):
    """A piece as stored. ``settled``: (number, all labels so far) of entries of earlier pieces."""

    schema: int
    next_number: int
    level: int
    kinds: list[_Kind]
    rows: list[_Row]
    settled: list[tuple[int, tuple[Told, ...]]]
    waits: list[Label]
    #: Fingerprints of evicted entries, eight bytes each, by kind.
    gone: list[tuple[int, bytes]] = []
    #: Entries with smaller numbers, of this piece or one before, are evicted.
    first_number: int = 0

    def entries(self) -> list[Entry]:
        """The rows as they were in memory."""
        return [
            Entry(
                r.prediction_id,
                (kind := self.kinds[r.kind]).window,
                kind.version,
                kind.role,
                r.event_time_ms,
                r.score,
                r.latency_ms,
                r.status,
                kind.segments,
                r.partition,
                r.offset,
                r.row,
                r.identity,
                r.number,
                r.revision,
                r.label,
                r.label_time_ms,
                r.earlier,
            )
            for r in self.rows
        ]


#: Fingerprints of evicted entries by window.
Gone = dict[WindowKey, "array[int]"]


def fingerprint(entry: Entry) -> int:
    """64 bits of an identity: two of a million in one window are alike once in thirty million windows."""
    text = f"{entry.prediction_id}\0{entry.version}\0{entry.role}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def merged(parts: Iterable[Gone]) -> Gone:
    """Marks of all parts, in their order."""
    found: Gone = {}
    for part in parts:
        for window, marks in part.items():
            found.setdefault(window, array("Q")).extend(marks)
    return found


def encode_piece(
    next_number: int,
    first_number: int,
    level: int,
    added: list[Entry],
    settled: list[tuple[int, tuple[Told, ...]]],
    waits: list[Label],
    gone: Gone,
) -> bytes:
    """A piece as bytes."""
    kinds: dict[_Kind, int] = {}
    rows = [
        _Row(
            e.prediction_id,
            kinds.setdefault(_Kind(e.window, e.version, e.role, e.segments), len(kinds)),
            e.event_time_ms,
            e.score,
            e.latency_ms,
            e.status,
            e.partition,
            e.offset,
            e.row,
            e.identity,
            e.number,
            e.revision,
            e.label,
            e.label_time_ms,
            e.earlier,
        )
        for e in added
    ]
    marks = [
        (kinds.setdefault(_Kind(window, "", 0, ()), len(kinds)), held.tobytes())
        for window, held in gone.items()
    ]
    body = Body(JOIN_SCHEMA, next_number, level, list(kinds), rows, settled, waits, marks, first_number)
    return msgspec.msgpack.encode(body)


def decode_piece(name: str, data: bytes) -> Body:
    """Inverse of :func:`encode_piece`. Raises StateCorrupt."""
    # An array's header and its first item, a small number, are one byte each: no need to decode twice to see it.
    if data[1:2] not in map(bytes, ([schema] for schema in _SCHEMAS_READ)):
        raise StateCorrupt(
            f"piece {name}: schema {data[1:2].hex() or 'missing'}, this code reads {JOIN_SCHEMA:02x}"
        )
    try:
        return msgspec.msgpack.decode(data, type=Body)
    except (msgspec.DecodeError, msgspec.ValidationError, TypeError, LookupError) as error:
        raise StateCorrupt(f"piece {name} cannot be read: {error}") from error
