"""The join index's state as a log: what one commit added, settled and left waiting is one piece.

Neighbours of one size are merged into one, so a row is rewritten a few times in its life, however long the index is; large
ones are not, for naming one in each manifest costs less than what its commit read.
Pieces are not rewritten for what is evicted: one number says which rows are, and a restored index makes fingerprints of
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streams.core.distinct import distinct
from streams.core.evicted import Fingerprints
from streams.core.join import JoinIndex
from streams.core.join_commit import Commit, Wait
from streams.core.join_rows import NO_REVISION
from streams.core.join_state import (
    ADDED,
    SETTLED,
    Columns,
    Kind,
    Told,
    WindowKey,
    decode_piece,
    encode_piece,
)
from streams.core.waiting import Key, repeats

PREFIX = "join/rows/"
#: This many neighbouring pieces of one level become one of the next.
MERGE_FAN = 16
#: Rows of the largest piece that is made of others.
MERGED_ROWS_MAX = 2**18
_NONE = np.zeros(0, np.int64)


@dataclass(slots=True)
class _Piece:
    """Numbers of rows added, from ``first`` to below ``end``; of rows of earlier pieces that got a label."""

    level: int
    first: int
    end: int
    settled: NDArray[np.int64]
    waits: list[Wait] = field(default_factory=list)
    gone: dict[WindowKey, Fingerprints] = field(default_factory=dict)


class JoinPieces:
    """The pieces of one index."""

    def __init__(self, index: JoinIndex) -> None:
        self._index = index
        self._pieces: dict[int, _Piece] = {}
        self._next = 0

    def changed(self) -> dict[str, bytes | None]:
        """What was added, settled and left waiting since the last call, as one new piece; merged and dropped ones."""
        index, changed = self._index, dict[str, bytes | None]()
        commit, index.commit = index.commit, Commit(index.next_number)
        if index.next_number > commit.first or commit.settled or commit.waits or commit.gone:
            settled = np.concatenate(commit.settled) if commit.settled else _NONE
            now = _Piece(0, commit.first, index.next_number, settled, commit.waits, commit.gone)
            self._pieces[self._next] = now
            written = self._next
            self._next += 1
            while (run := self._run()) is not None:
                whole = self._merged([self._pieces[number] for number in run])
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
        if len(numbers) < MERGE_FAN or len(levels) > 1:
            return None
        first, last = self._pieces[numbers[0]], self._pieces[numbers[-1]]
        return numbers if last.end - first.first <= MERGED_ROWS_MAX else None

    def _merged(self, run: list[_Piece]) -> _Piece:
        gone: dict[WindowKey, Fingerprints] = {}
        for piece in run:
            for window, marks in piece.gone.items():
                if window in self._index.gone:
                    gone.setdefault(window, Fingerprints()).add(marks.all())
        settled = np.concatenate([piece.settled for piece in run])
        waits = [wait for piece in run for wait in piece.waits]
        return _Piece(run[0].level + 1, run[0].first, run[-1].end, settled, waits, gone)

    def _alive(self, piece: _Piece) -> bool:
        """Whether restoring needs it."""
        index = self._index
        if bool(index.rows.alive[index.rows.between(piece.first, piece.end)].any()):
            return True
        if any(window in index.gone for window in piece.gone):
            return True
        piece.waits = [wait for wait in piece.waits if self._waits(wait)]
        return bool(piece.waits) or bool((index.rows.position_of(piece.settled) >= 0).any())

    def _waits(self, wait: Wait) -> bool:
        return any(held is wait.label for held in self._index.waiting.of(wait.key))

    def _encode(self, piece: _Piece) -> bytes:
        index, rows = self._index, self._index.rows
        within = rows.between(piece.first, piece.end)
        # Where all of them live they are read where they lie.
        whole = bool(rows.alive[within].all())
        added = within if whole else rows.living(piece.first, piece.end)
        # The labels of rows that are added here, and of rows of earlier pieces.
        own = np.flatnonzero(rows.revision[added] != NO_REVISION)
        own = own + within.start if whole else rows.living(piece.first, piece.end)[own]
        others = piece.settled[(piece.settled < piece.first) | (piece.settled >= piece.end)]
        if not (others[1:] > others[:-1]).all():
            others = np.unique(others)
        at = rows.position_of(others)
        piece.settled = others[at >= 0]
        piece.waits = [wait for wait in piece.waits if self._waits(wait)]
        piece.gone = {window: marks for window, marks in piece.gone.items() if window in index.gone}
        settled = np.concatenate([own, at[at >= 0]])
        codes, kind = distinct(rows.kind[added].astype(np.int64))
        columns = {name: getattr(rows, name)[added] for name in ADDED} | {"kind": kind}
        earlier = []
        if index.earlier:
            numbers = set(rows.number[settled].tolist())
            earlier = [(number, told) for number, told in sorted(index.earlier.items()) if number in numbers]
        return encode_piece(
            (index.next_number, index.first_number),
            (piece.first, piece.end),
            piece.level,
            [index.kinds[code] for code in codes.tolist()],
            columns,
            {name: getattr(rows, name)[settled] for name in SETTLED},
            earlier,
            [(wait.label, wait.asked) for wait in piece.waits],
            {window: marks.all() for window, marks in piece.gone.items()},
        )

    def restore(
        self,
        pieces: Mapping[str, bytes],
        floor_ms: Mapping[str, int],
        oldest_ms: Mapping[str, int],
        first_number: int = 0,
    ) -> None:
        """Make the index what ``pieces`` hold, but for what ``expire`` and ``evict`` had let go of. Raises StateCorrupt."""
        index = self._index
        numbers = sorted(int(name.removeprefix(PREFIX)) for name in pieces if name.startswith(PREFIX))
        bodies = {n: decode_piece(f"{PREFIX}{n}", pieces[f"{PREFIX}{n}"]) for n in numbers}
        index.first_number = max([first_number, *(body.numbers[1] for body, _ in bodies.values())])
        for number, (body, kinds) in bodies.items():
            index.next_number = max(index.next_number, body.numbers[0])
            self._next = number + 1
            added, settled = body.columns()
            self._restore_rows(kinds, added, floor_ms)
            told = self._restore_labels(settled, dict(body.earlier))
            piece = _Piece(body.level, *body.added_between, told)
            for label, asked in body.waits:
                key = index.key_of(label)
                known = index.waiting.of(key)
                late = label.label_time_ms < oldest_ms.get(label.model, label.label_time_ms) and not asked
                if not late and not repeats(label, known, asked):
                    index.waiting.keep(key, label)
                    if asked:
                        index.asks.put(label.model, key)
                piece.waits.append(Wait(key, label, asked))
            for window, data in body.gone:
                if window.end_ms > floor_ms.get(window.model, window.start_ms):
                    marks = np.frombuffer(data, np.uint64)
                    index.mark(window, marks)
                    piece.gone.setdefault(window, Fingerprints()).add(marks)
            self._pieces[number] = piece
        self._restored()

    def _restore_rows(self, kinds: Sequence[Kind], columns: Columns, floor_ms: Mapping[str, int]) -> None:
        """Put rows behind those of earlier pieces, but for those that had to leave since."""
        index = self._index
        lives = [k.window.end_ms > floor_ms.get(k.window.model, k.window.start_ms) for k in kinds]
        keep = np.array(lives, bool)[columns["kind"]] & (columns["number"] >= index.first_number)
        codes = index.kinds.codes(kinds)[columns["kind"][keep]]
        own = {name: values[keep] for name, values in columns.items()} | {"kind": codes}
        count = int(keep.sum())
        index.rows.append(count, **own, revision=NO_REVISION, link=-1, alive=True)
        index.size += count
        if count:
            index.remember(codes, int(own["number"][0]))

    def _restore_labels(self, columns: Columns, earlier: Mapping[int, list[Told]]) -> NDArray[np.int64]:
        """Give rows their labels, unless they have better ones; the numbers of those that are there."""
        rows = self._index.rows
        at = rows.position_of(columns["number"])
        take = at >= 0
        take[take] = rows.revision[at[take]] <= columns["revision"][take]
        for name in ("revision", "label", "label_time_ms"):
            getattr(rows, name)[at[take]] = columns[name][take]
        numbers: NDArray[np.int64] = columns["number"][take]
        if earlier:
            self._index.earlier |= {n: list(earlier[n]) for n in numbers.tolist() if n in earlier}
        return numbers

    def _restored(self) -> None:
        index = self._index
        index.commit = Commit(index.next_number)
        self._without_evicted_roles()
        index.rows.index()
        # A label is in its row: a piece written before that came still shows it waiting.
        waits, rows = index.waiting.keys, index.rows
        for position, key in enumerate(rows.key[: rows.size].tolist()) if waits else ():
            if key in waits:
                index.waiting.take(Key(key, int(rows.check[position])))
                index.asks.drop(Key(key, int(rows.check[position])))

    def _without_evicted_roles(self) -> None:
        """Rows that left with another role of theirs have higher numbers than the evicted, and are known by their marks."""
        index, rows = self._index, self._index.rows
        living = np.flatnonzero(rows.alive[: rows.size])
        if not index.gone.count or not len(living):
            return
        marks = index.kinds.marks(rows.key[living], rows.check[living], rows.kind[living])
        for window, own in index.kinds.by_window(rows.kind[living]):
            if window in index.gone:
                left = living[own][index.gone[window].contains(marks[own])]
                rows.alive[left] = False
                index.size -= len(left)
        if index.size < len(living):
            rows.pack()
