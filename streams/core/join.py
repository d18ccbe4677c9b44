"""The hot join index: predictions that wait for their label, labels that wait for their prediction.

An entry leaves when the label horizon has passed by the feedback watermark; until then duplicates are known, one label
settles every role of its prediction, and a higher revision replaces a lower one. State is append-only: what one commit
added is one piece, what it settled another; small pieces are merged when there are many. The class hides how entries are
held, so that a more compact index can take its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from schemas.codecs import Label
from schemas.errors import StateCorrupt

JOIN_SCHEMA = 1
#: More pieces than this are merged into one; it bounds both the number of pieces and the bytes rewritten.
PIECES_MAX = 48
NO_REVISION = -1


class Entry(msgspec.Struct, array_like=True):
    """One prediction in the index. ``revision`` -1: no label yet."""

    prediction_id: str
    model: str
    version: str
    role: int
    event_time_ms: int
    score: float | None
    status: int
    segments: tuple[str, ...]
    partition: int
    offset: int
    row: int
    identity: int
    number: int = 0
    expires_minute: int = 0
    revision: int = NO_REVISION
    label: float = 0.0
    label_time_ms: int = 0


@dataclass(slots=True)
class Settled:
    """What a label did to one entry: the outcome it takes back (if any) and the one it makes."""

    entry: Entry
    old_label: float | None


@dataclass(slots=True)
class JoinCounts:
    """Labels by what became of them, for metrics: since the last time they were read."""

    joined: int = 0
    duplicate: int = 0
    revised: int = 0
    stale: int = 0
    early: int = 0
    unmatched: int = 0
    dropped: int = 0
    unlabelled: int = 0
    duplicate_predictions: int = 0


@dataclass(slots=True)
class JoinIndex:
    """Bounded by ``early_max`` waiting labels; entries are bounded by the label horizon and what memory is given."""

    early_max: int
    counts: JoinCounts = field(default_factory=JoinCounts)
    _entries: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)
    _early: dict[tuple[str, str], Label] = field(default_factory=dict)
    _by_time: dict[int, list[Entry]] = field(default_factory=dict)
    _next_number: int = 0
    _added: list[Entry] = field(default_factory=list)
    _settled: list[Entry] = field(default_factory=list)
    _early_changed: bool = False
    _pieces: dict[str, int] = field(default_factory=dict)
    _next_piece: int = 0
    _size: int = 0
    _passed_minute: int = -(2**60)

    def __len__(self) -> int:
        return self._size

    @property
    def early(self) -> int:
        """Labels that wait for their prediction."""
        return len(self._early)

    def add(self, entry: Entry, horizon_ms: int) -> tuple[bool, Settled | None]:
        """Take a prediction in. Returns (it is new, what a label that had waited for it did)."""
        key = (entry.model, entry.prediction_id)
        others = self._entries.get(key)
        if others is not None:
            if any(o.version == entry.version and o.role == entry.role for o in others):
                self.counts.duplicate_predictions += 1
                return False, None
        else:
            others = self._entries[key] = []
        entry.number = self._next_number
        self._next_number += 1
        known = others[0] if others else None
        others.append(entry)
        self._added.append(entry)
        self._size += 1
        entry.expires_minute = (entry.event_time_ms + horizon_ms) // 60_000 + 1
        self._by_time.setdefault(entry.expires_minute, []).append(entry)
        if known is not None and known.revision != NO_REVISION:
            return True, self._give(entry, known.revision, known.label, known.label_time_ms)
        label = self._early.pop(key, None)
        if label is None:
            return True, None
        self._early_changed = True
        self.counts.joined += 1
        return True, self._give(entry, label.revision, label.label, label.label_time_ms)

    def label(self, label: Label) -> list[Settled]:
        """Apply a ground truth to every role of its prediction, or keep it until the prediction comes."""
        key = (label.model, label.prediction_id)
        entries = self._entries.get(key)
        if entries is None:
            self._wait(key, label)
            return []
        held = entries[0].revision
        if held == label.revision:
            self.counts.duplicate += 1
            return []
        if held > label.revision:
            self.counts.stale += 1
            return []
        if held == NO_REVISION:
            self.counts.joined += 1
        else:
            self.counts.revised += 1
        return [self._give(entry, label.revision, label.label, label.label_time_ms) for entry in entries]

    def _give(self, entry: Entry, revision: int, label: float, label_time_ms: int) -> Settled:
        old = entry.label if entry.revision != NO_REVISION else None
        entry.revision, entry.label, entry.label_time_ms = revision, label, label_time_ms
        self._settled.append(entry)
        return Settled(entry, old)

    def _wait(self, key: tuple[str, str], label: Label) -> None:
        held = self._early.get(key)
        if held is not None:
            if held.revision >= label.revision:
                self.counts.duplicate += 1
                return
        elif len(self._early) >= self.early_max:
            self.counts.dropped += 1
            return
        else:
            self.counts.early += 1
        self._early[key] = label
        self._early_changed = True

    def expire(self, feedback_ms: int, horizon_ms: dict[str, int]) -> None:
        """Let go of what the horizon has passed: unlabelled predictions, and labels whose prediction never came."""
        self._passed_minute = feedback_ms // 60_000
        for minute in [m for m in self._by_time if m <= self._passed_minute]:
            for entry in self._by_time.pop(minute):
                key = (entry.model, entry.prediction_id)
                entries = self._entries.get(key)
                if entries is None:
                    continue
                entries[:] = [e for e in entries if e is not entry]
                if not entries:
                    del self._entries[key]
                self._size -= 1
                self.counts.unlabelled += int(entry.revision == NO_REVISION)
        old = [k for k, l in self._early.items() if l.label_time_ms + horizon_ms.get(k[0], 0) < feedback_ms]
        for key in old:
            del self._early[key]
            self.counts.unmatched += 1
            self._early_changed = True

    def entries(self) -> Iterator[Entry]:
        """All entries, in the order in which they came."""
        return iter(sorted((e for group in self._entries.values() for e in group), key=lambda e: e.number))

    # -- state ----------------------------------------------------------------------------------------------------

    def changed_pieces(self) -> dict[str, bytes | None]:
        """What this commit added and settled, each as a piece of its own; everything as one when pieces are many."""
        pieces: dict[str, bytes | None] = {}
        if self._early_changed:
            pieces["join/early"] = msgspec.msgpack.encode([JOIN_SCHEMA, list(self._early.values())])
            self._early_changed = False
        if len(self._pieces) >= PIECES_MAX:
            pieces |= dict.fromkeys(self._pieces)
            self._pieces = {}
            self._write(pieces, list(self.entries()), [])
        elif self._added or self._settled:
            added = {e.number for e in self._added}
            self._write(pieces, self._added, [e for e in self._settled if e.number not in added])
        self._added, self._settled = [], []
        for name, last in list(self._pieces.items()):
            if last <= self._passed_minute:
                del self._pieces[name]
                pieces[name] = None
        return pieces

    def _write(self, pieces: dict[str, bytes | None], added: list[Entry], settled: list[Entry]) -> None:
        name = f"join/rows/{self._next_piece}"
        self._next_piece += 1
        body = [
            JOIN_SCHEMA,
            self._next_number,
            self._next_piece,
            added,
            [(e.number, e.revision, e.label, e.label_time_ms) for e in settled],
        ]
        pieces[name] = msgspec.msgpack.encode(body)
        self._pieces[name] = max((e.expires_minute for e in (*added, *settled)), default=0)

    def restore(self, pieces: dict[str, bytes]) -> None:
        """Become what ``pieces`` hold; entries whose time had come go with the next ``expire``."""
        entries: dict[int, Entry] = {}
        names = sorted(
            (n for n in pieces if n.startswith("join/rows/")), key=lambda n: int(n.rsplit("/", 1)[1])
        )
        for name in names:
            schema, next_number, next_piece, added, settled = msgspec.msgpack.decode(pieces[name])
            if schema != JOIN_SCHEMA:
                raise StateCorrupt(f"piece {name}: schema {schema}, this code reads {JOIN_SCHEMA}")
            self._next_number, self._next_piece = next_number, next_piece
            rows = [msgspec.convert(raw, Entry) for raw in added]
            for entry in rows:
                entries[entry.number] = entry
            last = max((e.expires_minute for e in rows), default=0)
            for number, revision, label, label_time_ms in settled:
                if (held := entries.get(number)) is not None:
                    held.revision, held.label, held.label_time_ms = revision, label, label_time_ms
                    last = max(last, held.expires_minute)
            self._pieces[name] = last
        for number in sorted(entries):
            entry = entries[number]
            self._entries.setdefault((entry.model, entry.prediction_id), []).append(entry)
            self._by_time.setdefault(entry.expires_minute, []).append(entry)
            self._size += 1
        if "join/early" in pieces:
            schema, labels = msgspec.msgpack.decode(pieces["join/early"])
            if schema != JOIN_SCHEMA:
                raise StateCorrupt(f"piece join/early: schema {schema}, this code reads {JOIN_SCHEMA}")
            self._early = {
                (l.model, l.prediction_id): l for l in (msgspec.convert(raw, Label) for raw in labels)
            }


def drain(counts: JoinCounts) -> Iterable[tuple[str, int]]:
    """(name, count) of everything counted, and start again from zero."""
    for name in counts.__slots__:
        value: Any = getattr(counts, name)
        setattr(counts, name, 0)
        if value:
            yield name, value
