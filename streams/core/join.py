"""The hot join index: predictions that wait for their label, labels that wait for their prediction.

A prediction leaves when its window is settled; until then duplicates are known, one label settles every role of its
prediction, and a higher revision replaces a lower one. Batches are worked on as columns; only what is not simple (a second
role, a revision, a label that was there first) is taken one by one, in its order.

Memory is bounded in bytes: what came first goes first, and of an evicted prediction a fingerprint of eight bytes stays
until its window is settled, so that its duplicate is still no second prediction. A prediction is here with all its roles
or with none: where one is evicted the others are too, and a role that comes later does not enter. So a label that finds
nobody here is early, or has to be looked up (``asks``, see ``streams.core.cold``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.hashing import key_hashes
from schemas.labels import Label, LabelColumns
from schemas.spans import Spans
from streams.core.arriving import put
from streams.core.asks import Asks
from streams.core.distinct import distinct
from streams.core.evicted import FINGERPRINT_BYTES, Marks
from streams.core.gone import Gone
from streams.core.join_commit import Commit, Wait
from streams.core.join_counts import JoinCounts, ModelCounts, drain
from streams.core.join_kinds import Kinds, Salts
from streams.core.join_rows import NO_REVISION, ROW_BYTES, JoinRows
from streams.core.join_state import Kind, Told, WindowKey
from streams.core.outcomes import OutcomeRows, joined
from streams.core.waiting import Key, WaitingLabels, repeats, rising

__all__ = ["Arrivals", "JoinIndex", "Kind", "LabelRows", "ModelCounts", "WindowKey", "drain"]

BYTES_MAX = 2**62
#: Positions of rows that have left are used again when they are more than the rows that are left, and more than this.
DEAD_MIN = 4_096
_NOBODY = np.zeros(0, np.bool_)
Positions = NDArray[np.int64]
#: Position of a row, the label it had (NaN: none), the one it has now, that one's time and revision.
Given = tuple[int, float, float, int, int]


@dataclass(slots=True)
class Arrivals:
    """``n`` predictions as they come; ``kind``: index into ``kinds``. ``last_ms``: by kind, a label later than this, by its own
    time, does not count; by arrival alone it would depend on which input was read first. ``identity`` and ``check``: see
    ``schemas.ids.KeyHashes``. ``score`` NaN: it has none."""

    kinds: Sequence[Kind]
    last_ms: Sequence[int]
    kind: NDArray[np.int64]
    identity: NDArray[np.uint64]
    check: NDArray[np.uint32]
    event_time_ms: NDArray[np.int64]
    score: NDArray[np.float64]
    status: NDArray[np.int8]
    partition: NDArray[np.int64]
    offset: NDArray[np.int64]
    row: NDArray[np.int64]


@dataclass(slots=True)
class LabelRows:
    """Labels of one model as they come, at least one, and the hashes of their predictions' ids."""

    labels: LabelColumns
    identity: NDArray[np.uint64]
    check: NDArray[np.uint32]


@dataclass(slots=True)
class Held:
    """A window's rows: their kinds, and between which numbers they lie."""

    first: int
    kinds: set[int] = field(default_factory=set)
    end: int = 0


class JoinIndex:
    """Bounded by ``early_max`` waiting labels and ``bytes_max`` for the rest; see ``evict``."""

    def __init__(self, early_max: int, bytes_max: int = BYTES_MAX) -> None:
        self.early_max = early_max
        self.bytes_max = bytes_max
        self.asks = Asks()
        #: Labels of the last call of ``label`` for which there was no room, by their place in it.
        self.refused: list[int] = []
        self.counts = JoinCounts()
        #: By model, exact: stored by whoever stores the index.
        self.totals: dict[str, ModelCounts] = {}
        self.rows = JoinRows()
        self.waiting = WaitingLabels()
        #: Numbers count up for ever. Rows with smaller ones than ``first_number`` are evicted: to be stored with
        #: ``totals``, which count them, since no piece need have changed when a row is evicted.
        self.next_number = 0
        self.first_number = 0
        #: Labels that were replaced, by the number of their row. Whoever comes late is told all of them in turn, so that
        #: what detectors see does not depend on which input was read first.
        self.earlier: dict[int, list[Told]] = {}
        self.windows: dict[WindowKey, Held] = {}
        self.commit = Commit(0)
        self.size = 0
        self.kinds = Kinds()
        self.gone = Gone(self.kinds)
        self.salts = Salts()
        self._nothing: OutcomeRows | None = None

    def __len__(self) -> int:
        return self.size

    @property
    def early(self) -> int:
        """Labels that wait for their prediction."""
        return len(self.waiting)

    @property
    def bytes_held(self) -> int:
        """About how much memory rows and fingerprints take. Labels that wait are bounded by their number: if they drove
        rows out, the labels of those would wait too and drive out more."""
        return self.size * ROW_BYTES + self.gone.count * FINGERPRINT_BYTES

    @property
    def oldest_ms(self) -> int | None:
        """Event time of the row that would be evicted next: how far back the index reaches."""
        if not self.size:
            return None
        first = int(np.argmax(self.rows.alive[: self.rows.size]))
        return int(self.rows.event_time_ms[first])

    def kind(self, position: int) -> Kind:
        """What the row shares with others."""
        return self.kinds[int(self.rows.kind[position])]

    def key_of(self, label: Label) -> Key:
        """By what the label's prediction is known."""
        hashes = key_hashes(Spans.of([label.prediction_id.encode()]))
        return self.salts.one(label.model, int(hashes.identity[0]), int(hashes.check[0]))

    # -- predictions ----------------------------------------------------------------------------------------------

    def add(self, arrivals: Arrivals) -> tuple[NDArray[np.bool_], list[tuple[str, OutcomeRows]]]:
        """Take predictions in: which are new, and, by model, what labels that were known before them did."""
        n, last_ms = len(arrivals.identity), arrivals.last_ms
        self._make_room(n)
        own = self.kinds.codes(arrivals.kinds)
        salts = self.salts.of_many([kind.window.model for kind in arrivals.kinds])
        rows, first = self.rows, self.next_number
        start = rows.append(
            n, event_time_ms=arrivals.event_time_ms, score=arrivals.score, status=arrivals.status, partition=arrivals.partition,
            offset=arrivals.offset, row=arrivals.row, revision=NO_REVISION, link=-1,
        )  # fmt: skip
        put(
            start, first, arrivals.kind, own, *salts, arrivals.identity, arrivals.check, rows.number, rows.key, rows.check,
            rows.kind,
        )  # fmt: skip
        self.next_number, at = first + n, slice(start, start + n)
        key, check, codes = rows.key[at], rows.check[at], rows.kind[at]
        new, cold = self._not_evicted(key, check, codes) if self.gone.count else (np.ones(n, bool), _NOBODY)
        left = ~new if not len(cold) else ~new | cold
        other = rows.enter(start, start + n, left)
        given: list[Given] = []
        if len(self.waiting):
            waits = self.waiting.keys
            alone = np.flatnonzero((other < 0) & ~left)
            for i in [i for i, k in zip(alone.tolist(), key[alone].tolist(), strict=True) if k in waits]:
                given += self._tell_early(start + i, last_ms[arrivals.kind[i]])
        met = np.flatnonzero(other >= 0)
        for i, head in zip(met.tolist(), other[met].tolist(), strict=True):
            if self._chained(head, start + i):
                in_time = [one for one in self._told(head) if one[2] <= last_ms[arrivals.kind[i]]]
                given += [self._give(start + i, one) for one in in_time]
            else:
                new[i] = False
        fresh = int(np.count_nonzero(new))
        self.counts.duplicate_predictions += n - fresh
        self.size += fresh - int(np.count_nonzero(cold))
        self.remember(own if fresh == n else codes[new].astype(np.int64), first)
        by_model: dict[str, list[Given]] = {}
        for one in given:
            by_model.setdefault(self.kind(one[0]).window.model, []).append(one)
        return new, [(model, self._outcomes(model, of)) for model, of in by_model.items()]

    def _chained(self, head: int, position: int) -> bool:
        """Put a row behind the others of its prediction, unless it is there."""
        own = self.kind(position)
        chain = self.rows.chain(head)
        if any((held.version, held.role) == (own.version, own.role) for held in map(self.kind, chain)):
            return False
        self.rows.link[chain[-1]] = position
        self.rows.alive[position] = True
        return True

    def _tell_early(self, position: int, last_ms: int) -> list[Given]:
        key = Key(int(self.rows.key[position]), int(self.rows.check[position]))
        labels = rising(self.waiting.take(key))
        self.asks.drop(key)
        in_time = [label for label in labels if label.label_time_ms <= last_ms]
        self.counts.joined += int(bool(in_time))
        self.counts.beyond += len(labels) - len(in_time)
        return [self._give(position, (one.revision, one.label, one.label_time_ms)) for one in in_time]

    def _give(self, position: int, told: Told) -> Given:
        rows = self.rows
        old = np.nan
        if rows.revision[position] != NO_REVISION:
            old = float(rows.label[position])
            self.earlier[int(rows.number[position])] = self._told(position)
        rows.revision[position], rows.label[position], rows.label_time_ms[position] = told
        self.commit.settled.append(rows.number[position : position + 1].copy())
        return position, old, told[1], told[2], told[0]

    def _told(self, position: int) -> list[Told]:
        """All labels so far, oldest first."""
        rows = self.rows
        if rows.revision[position] == NO_REVISION:
            return []
        last = (int(rows.revision[position]), float(rows.label[position]), int(rows.label_time_ms[position]))
        return [*self.earlier.get(int(rows.number[position]), ()), last]

    def _not_evicted(
        self, key: NDArray[np.uint64], check: NDArray[np.uint32], codes: NDArray[np.int32]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which are new, and which of these are roles of a prediction that has left: they leave at once."""
        same, cold = self.gone.were_here(key, check, codes)
        for i in np.flatnonzero(cold).tolist():
            one = slice(i, i + 1)
            kind = self.kinds[int(codes[i])]
            marks = self.kinds.marks(key[one], check[one], codes[one])
            if self.gone[kind.window].contains(marks)[0]:
                same[i], cold[i] = True, False  # twice in this batch
                continue
            self.commit.mark(kind.window, marks)
            self.mark(kind.window, marks)
            self.total(kind.window.model).evicted += 1
            self.counts.evicted += 1
            self.asks.put_role(kind.window.model, Key(int(key[i]), int(check[i])))
        return ~same, cold

    def remember(self, codes: NDArray[np.int64], first: int) -> None:
        """The windows of these rows hold rows from number ``first`` on."""
        for code in distinct(codes)[0].tolist():
            window = self.kinds[code].window
            held = self.windows.get(window)
            if held is None:
                held = self.windows[window] = Held(first)
            held.kinds.add(code)
            held.end = self.next_number

    # -- labels ---------------------------------------------------------------------------------------------------

    def label(self, arrived: LabelRows, oldest_ms: int, horizon_ms: int) -> OutcomeRows:
        """Apply ground truths to every role of their predictions, or keep them until the predictions come.

        ``oldest_ms``: a label older than this does not wait; its prediction's window is settled.
        """
        labels, rows = arrived.labels, self.rows
        model = labels.models[labels.model[0]]
        key, check = self.salts.many(model, arrived.identity, arrived.check)
        at = rows.find(key, check)
        simple = rows.settle(
            at, labels.label, labels.label_time_ms, labels.revision, self.kinds.end_ms + horizon_ms
        )
        settled = self._settled(model, at[simple])
        given: list[Given] = []
        self.refused = []
        if simple.all():
            return settled
        nobody = np.flatnonzero(at < 0)
        left = dict(zip(nobody.tolist(), self._may_have_left(model, key[nobody], check[nobody]), strict=True))
        for i in np.flatnonzero(~simple).tolist():
            if at[i] < 0:
                if not self._wait(Key(int(key[i]), int(check[i])), labels[i], oldest_ms, asked=left[i]):
                    self.refused.append(i)
            else:
                given += self._apply(int(at[i]), labels[i], horizon_ms)
        return joined([settled, self._outcomes(model, given)]) if given else settled

    def _settled(self, model: str, at: Positions) -> OutcomeRows:
        """Rows that stand alone have got their first labels."""
        rows = self.rows
        if len(at):
            self.commit.settled.append(rows.number[at])
        self.counts.joined += len(at)
        return self._outcome_rows(
            model, at, np.full(len(at), np.nan), rows.label[at], rows.label_time_ms[at], rows.revision[at]
        )

    def _apply(self, head: int, label: Label, horizon_ms: int) -> list[Given]:
        rows = self.rows
        chain = [
            p for p in rows.chain(head) if label.label_time_ms <= self.kind(p).window.end_ms + horizon_ms
        ]
        if not chain:
            self.counts.beyond += 1
            return []
        known = int(rows.revision[chain[0]])
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
        told = (label.revision, label.label, label.label_time_ms)
        return [self._give(position, told) for position in chain]

    def _may_have_left(self, model: str, key: NDArray[np.uint64], check: NDArray[np.uint32]) -> list[bool]:
        """Of labels that find nobody: whether their prediction may have been here."""
        if model in self.asks.late:
            return [True] * len(key)
        if not self.asks.enabled or not self.gone.count:
            return [False] * len(key)
        return list(self.gone.of_model(model, key, check).tolist())

    def _wait(self, key: Key, label: Label, oldest_ms: int, *, asked: bool) -> bool:
        """False when there is no room for it."""
        held = self.waiting.of(key)
        if repeats(label, held, asked):
            self.counts.duplicate += 1
        elif not asked and (label.label_time_ms < oldest_ms or key in self.asks):
            # Asked for by labels that came before the window was settled: this one came after.
            self.counts.unmatched += 1
        elif len(self.waiting) >= self.early_max:
            self.counts.dropped += 1
            return False
        else:
            self.counts.early += 1
            self.waiting.keep(key, label)
            self.commit.waits.append(Wait(key, label, asked))
            if asked:
                self.asks.put(label.model, key)
        return True

    # -- outcomes -------------------------------------------------------------------------------------------------

    def _outcomes(self, model: str, given: list[Given]) -> OutcomeRows:
        if not given and self._nothing is not None:
            return self._nothing
        at, old, label, time_ms, revision = zip(*given, strict=True) if given else ((), (), (), (), ())
        columns = np.array(old, np.float64), np.array(label, np.float64), np.array(time_ms, np.int64)
        found = self._outcome_rows(model, np.array(at, np.int64), *columns, np.array(revision, np.int32))
        self._nothing = self._nothing if given else found
        return found

    def _outcome_rows(
        self,
        model: str,
        at: Positions,
        old: NDArray[np.float64],
        label: NDArray[np.float64],
        time_ms: NDArray[np.int64],
        revision: NDArray[np.int32],
    ) -> OutcomeRows:
        rows = self.rows
        replaces = ~np.isnan(old)
        score = rows.score[at]
        scored = ~np.isnan(score) if not self.asks.enabled else None
        back = np.zeros(len(at), bool)
        if replaces.any() or (scored is not None and not scored.all()):
            # One row for each outcome, two where there was one before.
            times = 1 + replaces if scored is None else np.where(scored, 1 + replaces, 0)
            which = np.repeat(np.arange(len(at)), times)
            back = np.zeros(len(which), bool)
            back[:-1] = which[:-1] == which[1:]
            at, score, replaces = at[which], score[which], replaces[which]
            label, time_ms, revision = (
                np.where(back, old[which], label[which]),
                time_ms[which],
                revision[which],
            )
        codes, kind = distinct(rows.kind[at].astype(np.int64))
        return OutcomeRows(
            kinds=[self.kinds[code] for code in codes.tolist()],
            kind=kind,
            identity=rows.key[at] ^ self.salts.of(model)[0],
            event_time_ms=rows.event_time_ms[at],
            score=score,
            status=rows.status[at],
            partition=rows.partition[at],
            offset=rows.offset[at],
            row=rows.row[at],
            label=label,
            label_time_ms=time_ms,
            revision=revision.astype(np.int64),
            sign=np.where(back, -1, 1),
            replaces=(replaces & ~back).astype(np.int64),
        )

    # -- leaving --------------------------------------------------------------------------------------------------

    def evict(self) -> None:
        """Bring ``bytes_held`` under the bound: rows go in the order in which they came, each leaving its fingerprint;
        when there are none left, the fingerprints of the oldest window go, and its duplicates count twice."""
        excess = self.bytes_held - self.bytes_max
        if excess <= 0:
            return
        living = np.flatnonzero(self.rows.alive[: self.rows.size])
        leaves = FINGERPRINT_BYTES * (2 if self.asks.enabled else 1)
        leaving = living[: -(-excess // (ROW_BYTES - leaves))]
        if len(leaving):
            self.first_number = int(self.rows.number[leaving[-1]]) + 1
            if self.asks.enabled:
                leaving = self._with_roles(leaving)
            self._leave_marks(leaving)
            for model, labelled, unlabelled in self._release(leaving):
                total = self.total(model)
                total.evicted += unlabelled
                total.labelled += labelled
                self.counts.evicted += labelled + unlabelled
        for window in sorted(self.gone, key=lambda key: key.end_ms):
            if self.bytes_held <= self.bytes_max:
                return
            self.counts.forgotten += self.gone.forget(window)

    def _with_roles(self, at: Positions) -> Positions:
        """Rows and all others of their predictions."""
        rows = self.rows
        head = rows.find(rows.key[at], rows.check[at])
        several = np.unique(head[rows.link[head] >= 0]).tolist()
        others = [position for one in several for position in rows.chain(one)]
        return np.union1d(at, np.array(others, np.int64))

    def _leave_marks(self, at: Positions) -> None:
        rows = self.rows
        for window, marks in self.gone.marks(rows.key[at], rows.check[at], rows.kind[at]):
            self.commit.mark(window, marks)
            self.mark(window, marks)

    def mark(self, window: WindowKey, marks: Marks) -> None:
        """Know evicted rows of a window by these."""
        self.windows.setdefault(window, Held(0))
        self.gone.mark(window, marks)

    def expire(self, floor_ms: Mapping[str, int], oldest_ms: Mapping[str, int]) -> None:
        """Let go of what time has passed. ``floor_ms``: by model, windows that end by then are settled.

        ``oldest_ms``: by model, labels older than this no longer wait.
        """
        for window in [w for w in self.windows if w.end_ms <= floor_ms.get(w.model, w.start_ms)]:
            held = self.windows.pop(window)
            living = self.rows.living(held.first, held.end)
            leaving = living[np.isin(self.rows.kind[living], list(held.kinds))]
            for model, labelled, unlabelled in self._release(leaving):
                total = self.total(model)
                total.unlabelled += unlabelled
                total.labelled += labelled
                self.counts.unlabelled += unlabelled
            self.gone.forget(window)
        self.counts.unmatched += self.waiting.expire(oldest_ms, self.asks)

    def _release(self, at: Positions) -> list[tuple[str, int, int]]:
        """Rows leave; (model, how many had a label, how many had not)."""
        rows = self.rows
        at = at[rows.alive[at]]
        rows.remove(at)
        self.size -= len(at)
        if self.earlier:
            for number in self.earlier.keys() & set(rows.number[at].tolist()):
                del self.earlier[number]
        unlabelled = rows.revision[at] == NO_REVISION
        found = []
        for model, own in self.kinds.by_model(rows.kind[at]):
            without = int(np.count_nonzero(unlabelled & own))
            found.append((model, int(np.count_nonzero(own)) - without, without))
        return found

    def total(self, model: str) -> ModelCounts:
        """What became of a model's predictions."""
        total = self.totals.get(model)
        if total is None:
            total = self.totals[model] = ModelCounts()
        return total

    # -- room -----------------------------------------------------------------------------------------------------

    def _make_room(self, rows: int) -> None:
        if not self.rows.has_room(rows) or self.rows.size > 2 * self.size + DEAD_MIN:
            self.pack(rows)

    def pack(self, rows: int = 0) -> None:
        """Close the gaps of what has left, and make room for so many more rows in the table."""
        own = self.rows
        if own.size > self.size:
            own.pack()
            codes, place = distinct(own.kind[: own.size].astype(np.int64))
            self.kinds.keep(codes)
            own.kind[: own.size] = place
            moved = {code: at for at, code in enumerate(codes.tolist())}
            for held in self.windows.values():
                held.kinds = {moved[code] for code in held.kinds if code in moved}
        own.index(rows)
