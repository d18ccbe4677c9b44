"""The hot join index: predictions that wait for their label, labels that wait for their prediction.

An entry leaves when its window is settled; until then duplicates are known, one label settles every role of its
prediction, and a higher revision replaces a lower one. State is a log: what one commit added, settled and left waiting
is one piece; eight neighbours of one size are merged into one, so a row is rewritten a few times in its life, however
long the index is. The class hides how entries are held, so that a more compact index can take its place.

Memory is bounded in bytes: what came first goes first, and of an evicted prediction a fingerprint of eight bytes stays
until its window is settled, so that its duplicate is still no second prediction. Its label finds nobody. Pieces are not
rewritten for that: one number says which entries are evicted, and a restored index makes fingerprints of their rows.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from schemas.codecs import Label
from streams.core.join_state import (
    NO_REVISION,
    Entry,
    Gone,
    Told,
    WindowKey,
    decode_piece,
    encode_piece,
    fingerprint,
    merged,
)

__all__ = ["Entry", "JoinIndex", "ModelCounts", "Settled", "WindowKey", "drain"]


#: This many neighbouring pieces of one level become one of the next.
MERGE_FAN = 8
PREFIX = "join/rows/"
#: Measured (CPython 3.11, 64 bit), without the text of the prediction's id: an entry, a fingerprint.
ENTRY_BYTES, FINGERPRINT_BYTES = 410, 90
BYTES_MAX = 2**62
#: Of the heap by which waiting labels leave, so much may be of labels that have left otherwise.
_STALE_MIN = 1_024


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
    evicted: int = 0
    forgotten: int = 0


class ModelCounts(msgspec.Struct, array_like=True):
    """Since the task's first start, of one model. ``unlabelled``: predictions whose window was settled before a label
    came. ``evicted``: those that had to leave without one; ``labelled``: that had one when they left or were settled."""

    unlabelled: int = 0
    evicted: int = 0
    labelled: int = 0


@dataclass(slots=True)
class _Piece:
    level: int
    added: list[Entry]
    settled: list[Entry]
    waits: list[Label]
    gone: Gone = field(default_factory=dict)
    #: How many of ``added``, from the front, are evicted.
    evicted: int = 0


class JoinIndex:
    """Bounded by ``early_max`` waiting labels and ``bytes_max`` for the rest; see ``evict``."""

    def __init__(self, early_max: int, bytes_max: int = BYTES_MAX) -> None:
        self.early_max = early_max
        self.bytes_max = bytes_max
        self.counts = JoinCounts()
        #: By model, exact: stored by whoever stores the index.
        self.totals: dict[str, ModelCounts] = {}
        self._entries: dict[str, dict[str, Entry | list[Entry]]] = {}
        self._windows: dict[WindowKey, deque[Entry]] = {}
        self._early: dict[tuple[str, str], list[Label]] = {}
        self._early_count = 0
        self._early_order: dict[str, list[tuple[int, str]]] = {}
        self._ordered = 0
        self._next_number = 0
        self._first_number = 0
        self._size = 0
        self._entry_bytes = 0
        self._gone: dict[WindowKey, set[int]] = {}
        self._gone_count = 0
        self._now = _Piece(0, [], [], [])
        self._pieces: dict[int, _Piece] = {}
        self._next_piece = 0

    def __len__(self) -> int:
        return self._size

    @property
    def early(self) -> int:
        """Labels that wait for their prediction."""
        return self._early_count

    @property
    def bytes_held(self) -> int:
        """About how much memory entries and fingerprints take. Labels that wait are bounded by their number: if they
        drove entries out, the labels of those would wait too and drive out more."""
        return self._entry_bytes + self._gone_count * FINGERPRINT_BYTES

    @property
    def first_number(self) -> int:
        """Entries with smaller numbers are evicted. To be stored with ``totals``, which count them: no piece need have
        changed when an entry is evicted."""
        return self._first_number

    @property
    def oldest_ms(self) -> int | None:
        """Event time of the entry that would be evicted next: how far back the index reaches."""
        firsts = [group[0] for group in self._windows.values() if group]
        return min(firsts, key=lambda entry: entry.number).event_time_ms if firsts else None

    def add(self, entry: Entry, horizon_ms: int) -> list[Settled] | None:
        """Take a prediction in: what labels that were known before it did, or None when it is no new one.

        ``horizon_ms``: a label later than this after the window's end, by its own time, does not count; by arrival
        alone it would depend on which input was read first.
        """
        model, prediction_id = entry.window.model, entry.prediction_id
        if self._gone_count and fingerprint(entry) in self._gone.get(entry.window, ()):
            self.counts.duplicate_predictions += 1
            return None
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
        self._now.added.append(entry)
        self._hold(entry)
        if known is not None:
            return [self._give(entry, told) for told in known.told if told[2] <= last_ms]
        labels = self._early.pop((model, prediction_id), None) if self._early else None
        if labels is None:
            return []
        self._left(labels)
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
        self._ordered += 1

    def _left(self, labels: list[Label]) -> None:
        """``labels`` wait no longer. The heap is made anew when most of it is of labels that have left."""
        self._early_count -= len(labels)
        if self._ordered > 2 * self._early_count + _STALE_MIN:
            self._early_order = {}
            for (model, prediction_id), held in self._early.items():
                order = self._early_order.setdefault(model, [])
                order += [(label.label_time_ms, prediction_id) for label in held]
            for order in self._early_order.values():
                heapq.heapify(order)
            self._ordered = self._early_count

    def _hold(self, entry: Entry) -> None:
        self._size += 1
        self._entry_bytes += ENTRY_BYTES + len(entry.prediction_id)
        window = self._windows.get(entry.window)
        if window is None:
            window = self._windows[entry.window] = deque()
        window.append(entry)

    def _let_go(self, entry: Entry) -> None:
        """Take an entry out of the table; its window's queue is the caller's."""
        table = self._entries[entry.window.model]
        held = table[entry.prediction_id]
        if isinstance(held, list) and len(held) > 1:
            table[entry.prediction_id] = [e for e in held if e is not entry]
        else:
            del table[entry.prediction_id]
        self._size -= 1
        self._entry_bytes -= ENTRY_BYTES + len(entry.prediction_id)

    def _total(self, model: str) -> ModelCounts:
        total = self.totals.get(model)
        if total is None:
            total = self.totals[model] = ModelCounts()
        return total

    def evict(self) -> None:
        """Bring ``bytes_held`` under the bound: entries go in the order in which they came, each leaving its fingerprint;
        when there are none left, the fingerprints of the oldest window go, and its duplicates count twice."""
        if self.bytes_held <= self.bytes_max:
            return
        for piece in [*self._pieces.values(), self._now]:
            while piece.evicted < len(piece.added) and self.bytes_held > self.bytes_max:
                entry = piece.added[piece.evicted]
                piece.evicted += 1
                self._first_number = entry.number + 1
                window = self._windows.get(entry.window)
                if window and window[0] is entry:
                    window.popleft()
                    self._evicted(entry, piece)
            if piece.evicted:
                del piece.added[: piece.evicted]
                piece.evicted = 0
            if self.bytes_held <= self.bytes_max:
                return
        for key in sorted(self._gone, key=lambda window: window.end_ms):
            if self.bytes_held <= self.bytes_max:
                return
            self.counts.forgotten += self._forget(key)

    def _evicted(self, entry: Entry, piece: _Piece) -> None:
        self._let_go(entry)
        mark = fingerprint(entry)
        piece.gone.setdefault(entry.window, array("Q")).append(mark)
        self._gone.setdefault(entry.window, set()).add(mark)
        self._gone_count += 1
        self.counts.evicted += 1
        total = self._total(entry.window.model)
        if entry.revision == NO_REVISION:
            total.evicted += 1
        else:
            total.labelled += 1

    def _forget(self, window: WindowKey) -> int:
        count = len(self._gone.pop(window, ()))
        self._gone_count -= count
        if count:
            for piece in (*self._pieces.values(), self._now):
                piece.gone.pop(window, None)
        return count

    def expire(self, floor_ms: Mapping[str, int], oldest_ms: Mapping[str, int]) -> None:
        """Let go of what time has passed. ``floor_ms``: by model, windows that end by then are settled.

        ``oldest_ms``: by model, labels older than this no longer wait.
        """
        for window in [w for w in self._windows if w.end_ms <= floor_ms.get(w.model, w.start_ms)]:
            for entry in self._windows.pop(window):
                self._let_go(entry)
                unlabelled = entry.revision == NO_REVISION
                self.counts.unlabelled += int(unlabelled)
                total = self._total(window.model)
                total.unlabelled += int(unlabelled)
                total.labelled += int(not unlabelled)
            self._forget(window)
        for model, order in self._early_order.items():
            oldest = oldest_ms.get(model)
            while oldest is not None and order and order[0][0] < oldest:
                _, prediction_id = heapq.heappop(order)
                self._ordered -= 1
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
        if now.added or now.settled or now.waits or now.gone:
            self._pieces[self._next_piece] = now
            written = self._next_piece
            self._next_piece += 1
            while (run := self._run()) is not None:
                whole = _Piece(
                    self._pieces[run[0]].level + 1,
                    [e for n in run for e in self._pieces[n].added],
                    [e for n in run for e in self._pieces[n].settled],
                    [w for n in run for w in self._pieces[n].waits],
                    merged([self._pieces[n].gone for n in run]),
                )
                for number in run:
                    del self._pieces[number]
                    changed[f"{PREFIX}{number}"] = None
                written = run[0]
                self._pieces[written] = whole
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
        if any(window in self._windows for window in piece.gone):
            return True
        for rows in (piece.added, piece.settled):
            while rows and not self._held(rows[-1]):
                rows.pop()
            if rows:
                return True
        while piece.waits and not self._waiting(piece.waits[-1]):
            piece.waits.pop()
        return bool(piece.waits)

    def _held(self, entry: Entry) -> bool:
        return entry.number >= self._first_number and entry.window in self._windows

    def _waiting(self, label: Label) -> bool:
        return any(held is label for held in self._early.get((label.model, label.prediction_id), ()))

    def _encode(self, piece: _Piece) -> bytes:
        piece.added = [e for e in piece.added if self._held(e)]
        own = {e.number for e in piece.added}
        others = {e.number: e for e in piece.settled if e.number not in own and self._held(e)}
        piece.settled = list(others.values())
        piece.waits = [w for w in piece.waits if self._waiting(w)]
        settled = [(e.number, e.told) for e in piece.settled]
        piece.gone = {window: marks for window, marks in piece.gone.items() if window in self._windows}
        return encode_piece(
            self._next_number,
            self._first_number,
            piece.level,
            piece.added,
            settled,
            piece.waits,
            piece.gone,
        )

    def restore(
        self,
        pieces: Mapping[str, bytes],
        floor_ms: Mapping[str, int],
        oldest_ms: Mapping[str, int],
        first_number: int = 0,
    ) -> None:
        """Become what ``pieces`` hold, but for what ``expire`` and ``evict`` had let go of. Raises StateCorrupt."""
        numbers = sorted(int(name.removeprefix(PREFIX)) for name in pieces if name.startswith(PREFIX))
        bodies = {n: decode_piece(f"{PREFIX}{n}", pieces[f"{PREFIX}{n}"]) for n in numbers}
        self._first_number = max([first_number, *(body.first_number for body in bodies.values())])
        entries: dict[int, Entry] = {}
        keys: dict[WindowKey, WindowKey] = {}
        for number, body in bodies.items():
            self._next_number = max(self._next_number, body.next_number)
            self._next_piece = number + 1
            settled = []
            rows = body.entries()
            added = [entry for entry in rows if entry.number >= self._first_number]
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
            marks = merged([{body.kinds[kind].window: array("Q", data)} for kind, data in body.gone])
            for entry in rows[: len(rows) - len(added)]:
                marks.setdefault(entry.window, array("Q")).append(fingerprint(entry))
            alive = {w: held for w, held in marks.items() if w.end_ms > floor_ms.get(w.model, w.start_ms)}
            for window, held_marks in alive.items():
                self._windows.setdefault(window, deque())
                known_marks = self._gone.setdefault(keys.setdefault(window, window), set())
                self._gone_count -= len(known_marks)
                known_marks.update(held_marks)
                self._gone_count += len(known_marks)
            self._pieces[number] = _Piece(body.level, added, settled, body.waits, alive)
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
            self._hold(entry)
            # Its label is in the entry: a piece written before it came still shows it waiting.
            self._left(self._early.pop((entry.window.model, entry.prediction_id), []))


def drain(counts: JoinCounts) -> Iterable[tuple[str, int]]:
    """(name, count) of everything counted, and start again from zero."""
    for name in counts.__slots__:
        value: Any = getattr(counts, name)
        setattr(counts, name, 0)
        if value:
            yield name, value
