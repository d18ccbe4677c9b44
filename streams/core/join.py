"""The hot join index: predictions that wait for their label, labels that wait for their prediction.

An entry leaves when its window is settled; until then duplicates are known, one label settles every role of its
prediction, and a higher revision replaces a lower one. State is a log: what one commit added, settled and left waiting
is one piece; eight neighbours of one size are merged into one, so a row is rewritten a few times in its life, however
long the index is. The class hides how entries are held, so that a more compact index can take its place.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from schemas.codecs import Label
from schemas.errors import StateCorrupt

JOIN_SCHEMA = 4
#: This many neighbouring pieces of one level become one of the next.
MERGE_FAN = 8
NO_REVISION = -1
PREFIX = "join/rows/"


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


class Settled(NamedTuple):
    """What a label did to one entry: the outcome it takes back (if any) and the one it makes."""

    entry: Entry
    old_label: float | None
    label: float
    label_time_ms: int


@dataclass(slots=True)
class JoinCounts:
    """Labels by what became of them, for metrics: since the last time they were read."""

    joined: int = 0
    duplicate: int = 0
    revised: int = 0
    stale: int = 0
    beyond: int = 0
    early: int = 0
    unmatched: int = 0
    dropped: int = 0
    unlabelled: int = 0
    duplicate_predictions: int = 0


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


class _Body(msgspec.Struct, array_like=True):
    """A piece as stored. ``settled``: (number, all labels so far) of entries of earlier pieces."""

    schema: int
    next_number: int
    level: int
    kinds: list[_Kind]
    rows: list[_Row]
    settled: list[tuple[int, tuple[Told, ...]]]
    waits: list[Label]


@dataclass(slots=True)
class _Piece:
    level: int
    added: list[Entry]
    settled: list[Entry]
    waits: list[Label]


class JoinIndex:
    """Bounded by ``early_max`` waiting labels; entries are bounded by the label horizon and what memory is given."""

    def __init__(self, early_max: int) -> None:
        self.early_max = early_max
        self.counts = JoinCounts()
        self._entries: dict[str, dict[str, Entry | list[Entry]]] = {}
        self._windows: dict[WindowKey, list[Entry]] = {}
        self._early: dict[tuple[str, str], list[Label]] = {}
        self._early_count = 0
        self._early_order: dict[str, list[tuple[int, str]]] = {}
        self._next_number = 0
        self._size = 0
        self._now = _Piece(0, [], [], [])
        self._pieces: dict[int, _Piece] = {}
        self._next_piece = 0

    def __len__(self) -> int:
        return self._size

    @property
    def early(self) -> int:
        """Labels that wait for their prediction."""
        return self._early_count

    def add(self, entry: Entry, horizon_ms: int) -> list[Settled] | None:
        """Take a prediction in: what labels that were known before it did, or None when it is no new one.

        ``horizon_ms``: a label later than this after the window's end, by its own time, does not count; by arrival
        alone it would depend on which input was read first.
        """
        model, prediction_id = entry.window.model, entry.prediction_id
        table = self._entries.get(model)
        if table is None:
            table = self._entries[model] = {}
        held = table.get(prediction_id)
        known: Entry | None = None
        if held is None:
            table[prediction_id] = entry
        else:
            others = held if isinstance(held, list) else [held]
            for other in others:
                if other.version == entry.version and other.role == entry.role:
                    self.counts.duplicate_predictions += 1
                    return None
            known = others[0]
            table[prediction_id] = [*others, entry]
        last_ms = entry.window.end_ms + horizon_ms
        entry.number = self._next_number
        self._next_number += 1
        self._size += 1
        self._now.added.append(entry)
        window = self._windows.get(entry.window)
        if window is None:
            window = self._windows[entry.window] = []
        window.append(entry)
        if known is not None:
            return [self._give(entry, told) for told in known.told if told[2] <= last_ms]
        labels = self._early.pop((model, prediction_id), None) if self._early else None
        if labels is None:
            return []
        self._early_count -= len(labels)
        in_time = [label for label in labels if label.label_time_ms <= last_ms]
        self.counts.joined += int(bool(in_time))
        self.counts.beyond += len(labels) - len(in_time)
        return [self._give(entry, (label.revision, label.label, label.label_time_ms)) for label in in_time]

    def label(self, label: Label, oldest_ms: int, horizon_ms: int) -> list[Settled]:
        """Apply a ground truth to every role of its prediction, or keep it until the prediction comes.

        ``oldest_ms``: a label older than this does not wait; its prediction's window is settled.
        """
        table = self._entries.get(label.model)
        held = None if table is None else table.get(label.prediction_id)
        if held is None:
            self._wait(label, oldest_ms)
            return []
        entries = held if isinstance(held, list) else [held]
        entries = [e for e in entries if label.label_time_ms <= e.window.end_ms + horizon_ms]
        if not entries:
            self.counts.beyond += 1
            return []
        known = entries[0].revision
        if known >= label.revision:
            if known == label.revision:
                self.counts.duplicate += 1
            else:
                self.counts.stale += 1
            return []
        if known == NO_REVISION:
            self.counts.joined += 1
        else:
            self.counts.revised += 1
        return [self._give(entry, (label.revision, label.label, label.label_time_ms)) for entry in entries]

    def _give(self, entry: Entry, told: Told) -> Settled:
        old = None
        if entry.revision != NO_REVISION:
            old = entry.label
            entry.earlier = entry.told
        entry.revision, entry.label, entry.label_time_ms = told
        self._now.settled.append(entry)
        return Settled(entry, old, entry.label, entry.label_time_ms)

    def _wait(self, label: Label, oldest_ms: int) -> None:
        key = (label.model, label.prediction_id)
        held = self._early.get(key)
        if held is not None and held[-1].revision >= label.revision:
            self.counts.duplicate += 1
            return
        if label.label_time_ms < oldest_ms:
            self.counts.unmatched += 1
            return
        if self._early_count >= self.early_max:
            self.counts.dropped += 1
            return
        self.counts.early += 1
        self._keep(label)
        self._now.waits.append(label)

    def _keep(self, label: Label) -> None:
        self._early.setdefault((label.model, label.prediction_id), []).append(label)
        self._early_count += 1
        order = self._early_order.setdefault(label.model, [])
        heapq.heappush(order, (label.label_time_ms, label.prediction_id))

    def expire(self, floor_ms: Mapping[str, int], oldest_ms: Mapping[str, int]) -> None:
        """Let go of what time has passed. ``floor_ms``: by model, windows that end by then are settled.

        ``oldest_ms``: by model, labels older than this no longer wait.
        """
        for window in [w for w in self._windows if w.end_ms <= floor_ms.get(w.model, w.start_ms)]:
            table = self._entries[window.model]
            for entry in self._windows.pop(window):
                held = table[entry.prediction_id]
                if isinstance(held, list) and len(held) > 1:
                    table[entry.prediction_id] = [e for e in held if e is not entry]
                else:
                    del table[entry.prediction_id]
                self._size -= 1
                self.counts.unlabelled += int(entry.revision == NO_REVISION)
        for model, order in self._early_order.items():
            oldest = oldest_ms.get(model)
            while oldest is not None and order and order[0][0] < oldest:
                _, prediction_id = heapq.heappop(order)
                labels = self._early.pop((model, prediction_id), [])
                if stay := [label for label in labels if label.label_time_ms >= oldest]:
                    self._early[(model, prediction_id)] = stay
                self._early_count -= len(labels) - len(stay)
                self.counts.unmatched += len(labels) - len(stay)

    def entries(self) -> Iterator[Entry]:
        """All entries, in the order in which they came."""
        return iter(sorted((e for group in self._windows.values() for e in group), key=lambda e: e.number))

    # -- state ----------------------------------------------------------------------------------------------------

    def changed_pieces(self) -> dict[str, bytes | None]:
        """What was added, settled and left waiting since the last call, as one new piece; merged and dropped ones."""
        changed: dict[str, bytes | None] = {}
        now, self._now = self._now, _Piece(0, [], [], [])
        if now.added or now.settled or now.waits:
            self._pieces[self._next_piece] = now
            written = self._next_piece
            self._next_piece += 1
            while (run := self._run()) is not None:
                merged = _Piece(
                    self._pieces[run[0]].level + 1,
                    [e for n in run for e in self._pieces[n].added],
                    [e for n in run for e in self._pieces[n].settled],
                    [w for n in run for w in self._pieces[n].waits],
                )
                for number in run:
                    del self._pieces[number]
                    changed[f"{PREFIX}{number}"] = None
                written = run[0]
                self._pieces[written] = merged
            changed[f"{PREFIX}{written}"] = self._encode(self._pieces[written])
        for number, piece in list(self._pieces.items()):
            if not self._alive(piece):
                del self._pieces[number]
                changed[f"{PREFIX}{number}"] = None
        return changed

    def _run(self) -> list[int] | None:
        """The newest pieces, if they are enough of one level to be merged. Pieces are in order of their numbers."""
        numbers = list(self._pieces)[-MERGE_FAN:]
        levels = {self._pieces[n].level for n in numbers}
        return numbers if len(numbers) == MERGE_FAN and len(levels) == 1 else None

    def _alive(self, piece: _Piece) -> bool:
        """Whether restoring needs it. The first live row answers, and what is dead in front of it is let go of."""
        for rows in (piece.added, piece.settled):
            while rows and rows[-1].window not in self._windows:
                rows.pop()
            if rows:
                return True
        while piece.waits and not self._waiting(piece.waits[-1]):
            piece.waits.pop()
        return bool(piece.waits)

    def _waiting(self, label: Label) -> bool:
        return any(held is label for held in self._early.get((label.model, label.prediction_id), ()))

    def _encode(self, piece: _Piece) -> bytes:
        piece.added = [e for e in piece.added if e.window in self._windows]
        own = {e.number for e in piece.added}
        others = {e.number: e for e in piece.settled if e.number not in own and e.window in self._windows}
        piece.settled = list(others.values())
        piece.waits = [w for w in piece.waits if self._waiting(w)]
        settled = [(e.number, e.told) for e in piece.settled]
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
            for e in piece.added
        ]
        body = _Body(JOIN_SCHEMA, self._next_number, piece.level, list(kinds), rows, settled, piece.waits)
        return msgspec.msgpack.encode(body)

    def restore(
        self, pieces: Mapping[str, bytes], floor_ms: Mapping[str, int], oldest_ms: Mapping[str, int]
    ) -> None:
        """Become what ``pieces`` hold, but for what ``expire`` had let go of. Raises StateCorrupt."""
        entries: dict[int, Entry] = {}
        for number in sorted(int(name.removeprefix(PREFIX)) for name in pieces if name.startswith(PREFIX)):
            body = _decode(f"{PREFIX}{number}", pieces[f"{PREFIX}{number}"])
            self._next_number = max(self._next_number, body.next_number)
            self._next_piece = number + 1
            settled = []
            added = _entries(body)
            entries |= {entry.number: entry for entry in added}
            for at, told in body.settled:
                if (held := entries.get(at)) is not None and held.revision <= told[-1][0]:
                    (held.revision, held.label, held.label_time_ms), held.earlier = told[-1], told[:-1]
                    settled.append(held)
            for wait in body.waits:
                known = self._early.get((wait.model, wait.prediction_id))
                late = wait.label_time_ms < oldest_ms.get(wait.model, wait.label_time_ms)
                if not late and (known is None or known[-1].revision < wait.revision):
                    self._keep(wait)
            self._pieces[number] = _Piece(body.level, added, settled, body.waits)
        keys: dict[WindowKey, WindowKey] = {}
        for entry in (entries[at] for at in sorted(entries)):
            if entry.window.end_ms <= floor_ms.get(entry.window.model, entry.window.start_ms):
                continue
            entry.window = keys.setdefault(entry.window, entry.window)
            table = self._entries.setdefault(entry.window.model, {})
            there = table.get(entry.prediction_id)
            if there is None:
                table[entry.prediction_id] = entry
            else:
                table[entry.prediction_id] = [*(there if isinstance(there, list) else [there]), entry]
            self._windows.setdefault(entry.window, []).append(entry)
            self._size += 1
            # Its label is in the entry: a piece written before it came still shows it waiting.
            self._early_count -= len(self._early.pop((entry.window.model, entry.prediction_id), ()))


def _entries(body: _Body) -> list[Entry]:
    return [
        Entry(
            r.prediction_id,
            (kind := body.kinds[r.kind]).window,
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
        for r in body.rows
    ]


def _decode(name: str, data: bytes) -> _Body:
    # An array's header and its first item, a small number, are one byte each: no need to decode twice to see it.
    if data[1:2] != bytes([JOIN_SCHEMA]):
        raise StateCorrupt(
            f"piece {name}: schema {data[1:2].hex() or 'missing'}, this code reads {JOIN_SCHEMA:02x}"
        )
    try:
        return msgspec.msgpack.decode(data, type=_Body)
    except (msgspec.DecodeError, msgspec.ValidationError, TypeError, LookupError) as error:
        raise StateCorrupt(f"piece {name} cannot be read: {error}") from error


def drain(counts: JoinCounts) -> Iterable[tuple[str, int]]:
    """(name, count) of everything counted, and start again from zero."""
    for name in counts.__slots__:
        value: Any = getattr(counts, name)
        setattr(counts, name, 0)
        if value:
            yield name, value
