"""The cold part of the label join: labels whose prediction has left memory find it in the warehouse.

The way of one late label, and what a kill at each step leaves:

    step                                                        killed here
    1 it finds nobody in the hot index: it waits, and is        before the commit: read again; after it: it waits in the
      asked for from the task's present position on             state, and the restored task asks again, from a later one
    2 the archive copies `observations` to `label_index` and    the same rows are written again, to the same keys
      `label_states`, and then says how far it is
    3 the shell reads how far, then the rows (``Answer``)       the question is put again
    4 the answer is applied: the label becomes outcomes, which  before the commit: nothing has happened; the label waits and
      go to the detectors and into their window, or into a      is asked for again. After it: all of it has happened
      part of its own where that is settled (``late``)
    5 the outcomes are copied as in 2                           what follows waits for that: see below

Exact, because an answer is a function of what the task had committed. It counts only when it was given from a position behind
the question (``asks``): then it has every prediction and every outcome the task had written before the label came, so a
revision knows what it replaces and a duplicate what it repeats, and nothing needs to be remembered of labels that were
joined. Each label that comes raises the bound of its prediction's question, so those that come meanwhile are answered together,
in their order. That an answer was late, early, given twice or for a task's former owner changes nothing.

Which labels count is decided by their own time, not by when they were answered. A prediction that is not there is early or does
not exist: its label goes on waiting as early labels do, and is then unmatched.

The table is filled from `observations` and not from the raw log, because only the join knows which rows were counted (not twice,
not too late, not astray); and not by the join's upserts, because then every prediction would pass the worker's Python once more
and have to be held until ClickHouse has confirmed it. As it is, the worker does nothing for predictions whose label comes in
time, and Kafka holds what ClickHouse has not yet. While ClickHouse is away labels wait, as many as ``early_labels_max``; further
ones go to `dead-letters` with their address. Holding back `feedback` instead would hold back the labels that are not late, and
with them the rollback that they may call for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.blocks import encode_block
from schemas.contracts import ModelContract
from schemas.errors import StateCorrupt
from schemas.events import HEADER_KIND, KIND_LABELS
from schemas.ids import partition_of
from streams.core.delivery import Out
from streams.core.join import JoinIndex
from streams.core.join_rows import NO_REVISION
from streams.core.join_state import Kind, Told, WindowKey
from streams.core.late import LateOutcomes
from streams.core.members import Segments
from streams.core.observe import outcome_block
from streams.core.outcomes import OutcomeRows, joined
from streams.core.records import Record, RecordBatch
from streams.core.waiting import Key
from streams.core.windows import Windows

#: The topic of records that are answers: they come from the task's own shell and from no broker.
ANSWERS = "label-answers"
ROLES_PIECE = "cold-roles"
CODING_PREFIX = "cold-coding/"


class Question(NamedTuple):
    """Predictions of one model that labels look for. ``partition``: of `observations`, where the model's blocks are.
    ``keys``: (identity, check, position behind which an answer counts)."""

    model: str
    partition: int
    keys: list[tuple[int, int, int]]


class Found(msgspec.Struct, array_like=True, frozen=True):
    """A prediction as the label index has it. ``told``: labels that were joined to it, in the order of their revisions."""

    identity: int
    check: int
    version: str
    role: int
    event_time_ms: int
    score: float
    status: int
    partition: int
    offset: int
    row: int
    contract_hash: str
    segments: tuple[int, ...]
    told: list[Told] = []


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What the label index had of ``asked`` (identity, check), read when it had come as far as ``position``."""

    model: str
    position: int
    asked: list[tuple[int, int]]
    found: list[Found]

    def as_record(self, partition: int) -> Record:
        """As input of the task."""
        return Record(ANSWERS, partition, 0, self.model.encode(), msgspec.msgpack.encode(self))


#: How a contract's rows were coded: length of a window's step, and for each segment feature the label of each code.
Coding = tuple[int, list[dict[int, str]]]


def coding_of(contract: ModelContract, segments: Segments) -> Coding:
    """As blocks under this contract have it."""
    return contract.monitoring.pane_ms, segments.decoding


class ColdLabels:
    """Questions and answers of one join task."""

    def __init__(
        self, index: JoinIndex, partition: int, partitions: int, enabled: bool, keys_max: int = 4_000
    ) -> None:
        self._index = index
        self._partitions = partitions
        self._keys_max = keys_max
        self.late = LateOutcomes(partition)
        self.asks = index.asks
        self.asks.enabled = index.gone.roles = enabled
        self._codings: dict[str, Coding] = {}
        self._unwritten: list[str] = []
        self.looked_up = 0
        self.found = 0

    # -- configuration --------------------------------------------------------------------------------------------

    def activate(
        self, contract: ModelContract, before: ModelContract | None, segments: Segments | None
    ) -> None:
        """``contract`` is in force, in the place of ``before`` with its ``segments``: rows under that are still to be read."""
        monitoring = contract.monitoring
        if self.asks.enabled and monitoring.last_label > monitoring.label_horizon:
            self.asks.late.add(contract.model)
        else:
            self.asks.late.discard(contract.model)
        if before is None or segments is None or before.hash in self._codings or not self.asks.enabled:
            return
        if before.hash != contract.hash:
            self._codings[before.hash] = coding_of(before, segments)
            self._unwritten.append(before.hash)

    # -- questions ------------------------------------------------------------------------------------------------

    def questions(self) -> list[Question]:
        """What is to be looked up, that which has waited longest first."""
        found: dict[str, list[tuple[int, int, int]]] = {}
        for count, (key, ask) in enumerate(self.asks):
            if count == self._keys_max:
                break
            identity, check = self._index.salts.one(ask.model, *key)
            found.setdefault(ask.model, []).append((identity, check, ask.bound))
        return [
            Question(model, partition_of(model.encode(), self._partitions), keys)
            for model, keys in found.items()
        ]

    # -- answers --------------------------------------------------------------------------------------------------

    def take(
        self, records: RecordBatch, contracts: Mapping[str, ModelContract], oldest_ms: Mapping[str, int],
        segments: Mapping[str, Segments],
    ) -> Iterable[tuple[ModelContract, OutcomeRows]]:  # fmt: skip
        """What answers come to, by model. ``oldest_ms``: a label older than this no longer waits for its prediction."""
        for record in records:
            answer = msgspec.msgpack.decode(record.value or b"", type=Answer)
            contract = contracts.get(answer.model)
            if contract is not None:
                outcomes = self._answered(answer, contract, oldest_ms[answer.model], segments[answer.model])
                if outcomes:
                    yield contract, joined(outcomes)

    def _answered(
        self, answer: Answer, contract: ModelContract, oldest_ms: int, segments: Segments
    ) -> list[OutcomeRows]:
        by_id: dict[tuple[int, int], list[Found]] = {}
        for one in answer.found:
            by_id.setdefault((one.identity, one.check), []).append(one)
        outcomes = []
        for identity, check in answer.asked:
            key = self._index.salts.one(answer.model, identity, check)
            if not self.asks.settled(answer.model, key, answer.position):
                continue
            self.looked_up += 1
            rows = by_id.get((identity, check))
            if rows is None:
                self._index.counts.unmatched += self._index.waiting.settle(key, oldest_ms)
                continue
            self.found += 1
            kinds = [self._kind(one, contract, segments) for one in rows]
            given = self._give(key, rows, kinds, contract.monitoring.last_label)
            if given:
                outcomes.append(_outcome_rows(rows, kinds, given))
        return outcomes

    def _kind(self, one: Found, contract: ModelContract, segments: Segments) -> Kind:
        pane_ms, labels = self._codings.get(one.contract_hash) or coding_of(contract, segments)
        shown = tuple(of[code] for of, code in zip(labels, one.segments, strict=False) if code in of)
        start_ms = one.event_time_ms // pane_ms * pane_ms
        return Kind(WindowKey(contract.model, start_ms, pane_ms), one.version, one.role, shown)

    def _give(
        self, key: Key, rows: Sequence[Found], kinds: Sequence[Kind], last_label_ms: int
    ) -> list[tuple[int, Told | None, Told]]:
        """(row, label before, label) of everything that is new, in order; the waiting labels are used up.

        All roles of a prediction know the same labels, but for one that came after them, which is told them now.
        """
        counts, history = self._index.counts, max((one.told for one in rows), key=len)
        history = list(history)
        last_ms = max(kind.window.end_ms for kind in kinds) + last_label_ms
        for label in self._index.waiting.take(key):
            known = history[-1][0] if history else NO_REVISION
            if label.label_time_ms > last_ms:
                counts.beyond += 1
            elif known > label.revision:
                counts.stale += 1
            elif known == label.revision:
                counts.duplicate += 1
            else:
                counts.joined += known == NO_REVISION
                counts.revised += known != NO_REVISION
                history.append((label.revision, label.label, label.label_time_ms))
        given: list[tuple[int, Told | None, Told]] = []
        for at, (one, kind) in enumerate(zip(rows, kinds, strict=True)):
            last = one.told[-1] if one.told else None
            for told in history:
                if (last is None or told[0] > last[0]) and told[2] <= kind.window.end_ms + last_label_ms:
                    self._index.total(kind.window.model).looked_up += last is None and not math.isnan(
                        one.score
                    )
                    given.append((at, last, told))
                    last = told
        return given

    def settle(
        self, outcomes: OutcomeRows, losses_nano: NDArray[np.int64], contract: ModelContract, floor_ms: int,
        windows: Windows,
    ) -> None:  # fmt: skip
        """Put outcomes into their windows, or where these are settled (end by ``floor_ms``) into parts of their own."""
        settled = np.array([kind.window.end_ms <= floor_ms for kind in outcomes.kinds], bool)[outcomes.kind]
        if len(at := np.flatnonzero(~settled)):
            windows.settle(outcomes.take(at), losses_nano[at], contract.threshold)
        if len(at := np.flatnonzero(settled)):
            self.late.settle(outcomes.take(at), losses_nano[at], contract)

    def drain(self) -> Iterable[tuple[str, int]]:
        """(outcome, count) of predictions looked up since the last call."""
        for outcome, count in (("found", self.found), ("unknown", self.looked_up - self.found)):
            if count:
                yield outcome, count
        self.looked_up = self.found = 0

    # -- state ----------------------------------------------------------------------------------------------------

    def changed_pieces(self) -> dict[str, bytes | None]:
        """Pieces that changed since the last call."""
        pieces = self.late.changed_pieces()
        for name in self._unwritten:
            pieces[f"{CODING_PREFIX}{name}"] = msgspec.msgpack.encode(self._codings[name])
        self._unwritten = []
        if self.asks.changed:
            roles = [(model, *key) for key, model in self.asks.roles.items()]
            pieces[ROLES_PIECE] = msgspec.msgpack.encode(roles) if roles else None
            self.asks.changed = False
        return pieces

    def restore(self, pieces: Mapping[str, bytes]) -> None:
        """Become what ``pieces`` hold; to be called before those of the index are. Raises StateCorrupt."""
        self.late.restore(pieces)
        try:
            for name, data in pieces.items():
                if name.startswith(CODING_PREFIX):
                    self._codings[name.removeprefix(CODING_PREFIX)] = msgspec.msgpack.decode(
                        data, type=Coding
                    )
            roles = msgspec.msgpack.decode(pieces.get(ROLES_PIECE, b"\x90"), type=list[tuple[str, int, int]])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise StateCorrupt(
                f"what is kept of labels that are looked up cannot be read: {error}"
            ) from error
        self.asks.restore(roles)


def known_labels(contract: ModelContract, outcomes: OutcomeRows, segments: Segments) -> Out:
    """Labels of predictions without a score, which are no outcomes, for the label index alone."""
    block = outcome_block(contract, outcomes, np.zeros(len(outcomes), np.int64), segments)
    return Out(
        "observations", contract.model.encode(), encode_block(block), headers={HEADER_KIND: KIND_LABELS}
    )


def _outcome_rows(
    rows: Sequence[Found], kinds: Sequence[Kind], given: Sequence[tuple[int, Told | None, Told]]
) -> OutcomeRows:
    """Outcomes of one prediction's rows: what is taken back stands in front of what takes its place."""
    each: list[tuple[int, float, int, int, int, int]] = []
    for place, last, (revision, now, at_ms) in given:
        if last is not None:
            each.append((place, last[1], at_ms, revision, -1, 0))
        each.append((place, now, at_ms, revision, 1, int(last is not None)))
    at = np.array([one[0] for one in each], np.int64)
    label = np.array([one[1] for one in each], np.float64)
    time_ms, revisions, sign, replaces = np.array([one[2:] for one in each], np.int64).T

    def take(name: str, dtype: str) -> NDArray[Any]:
        column: NDArray[Any] = np.array([getattr(row, name) for row in rows], dtype)
        return column[at]

    return OutcomeRows(
        kinds=list(kinds),
        kind=at,
        identity=take("identity", "<u8"),
        event_time_ms=take("event_time_ms", "<i8"),
        score=take("score", "<f8"),
        status=take("status", "|i1"),
        partition=take("partition", "<i4"),
        offset=take("offset", "<i8"),
        row=take("row", "<i4"),
        label=label,
        label_time_ms=time_ms,
        revision=revisions,
        sign=sign,
        replaces=replaces,
    )
