"""Every order in which a label, its duplicate and its revision can meet eviction, settling, the log's copy, a look-up and a
restart: whichever it is, the window ends as if nothing had ever left memory."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from schemas.rows import TABLES, whole_outcomes
from streams.core import oracle
from streams.core.delivery import Manifest
from streams.core.oracle import Step
from streams.core.pipeline import JoinCore
from streams.core.records import Record
from tests.support_cold import LATE, SETTLED, Copied, core_of
from tests.support_examples import times
from tests.support_join import HOUR, T0, Stream, prediction, truth
from tests.support_upserts import Upsert, spread

#: ``look``: what has been written is copied, the answer of the look before is delivered, and the next question is put.
MOMENTS = ("label", "again", "revised", "evict", "settle", "look", "restart")
#: Every so many of the 10,080 orders, others for each first moment; 1 takes three minutes, and passes. No divisor of their number: the
#: last moments of every so many would be the same.
STRIDE = {1: 37, 10: 7}[times(1)]
EVENTS = {
    "label": truth(label_time_ms=SETTLED),
    "again": truth(label_time_ms=SETTLED),
    "revised": truth(label=0.0, revision=1, label_time_ms=SETTLED + HOUR),
}


class Life:
    """A join task through restarts, its log, its warehouse, and what an oracle would have read."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.copied = Copied()
        self.core: JoinCore = core_of()
        self.pieces: dict[str, bytes] = {}
        self.sequence = 1
        self.rows: dict[tuple[Any, ...], Upsert] = {}
        self.under_way: list[Record] = []
        self.steps: list[Step] = []
        self.clock_ms = 0

    def event(self, event: dict[str, Any]) -> None:
        record = self.stream.event(event)
        kind = "label" if record.topic == "feedback" else "prediction"
        usual = {"role": "stable", "latency_ms": 0.0, "status": "ok", "revision": 0}
        self.steps.append(Step(kind, usual | event, record.topic, len(record.value or b"")))
        self.core.apply([record], 0)

    def tick(self, event_time_ms: int) -> None:
        self.clock_ms = event_time_ms
        for topic in ("predictions", "feedback"):
            record = self.stream.tick(event_time_ms, topic)
            self.steps.append(Step("tick", json.loads(record.value or b""), topic))
            self.core.apply([record], 0)

    def commit(self) -> None:
        outs, changed = self.core.outputs(), self.core.changed_pieces()
        self.pieces = {name: data for name, data in (self.pieces | changed).items() if data is not None}
        self.sequence += 1
        self.core.committed(self.sequence)
        self.copied.take(outs)
        sent = self.core.upserts()
        self.rows |= {(upsert.table, upsert.key): upsert for upsert in spread(sent)}
        self.core.confirm(sent)

    def go(self, moment: str) -> None:
        match moment:
            case "evict":
                index = self.core._index
                index.bytes_max, usual = (
                    index.bytes_held - 1 if len(index) else index.bytes_max,
                    index.bytes_max,
                )
                self.core._evict()
                index.bytes_max = usual
            case "settle":
                self.tick(SETTLED)
            case "look":
                self.commit()
                self.core.apply(self.under_way, 0)
                self.under_way = self.copied.answers(self.core.questions())
            case "restart":
                self.commit()
                self.core = core_of()
                self.core.restore(self.pieces, Manifest(task="join/0", sequence=self.sequence))
            case _:
                self.event(EVENTS[moment])
        self.commit()

    def outcomes(self) -> dict[tuple[Any, ...], list[Any]]:
        return whole_outcomes(u.row[:-1] for u in self.rows.values() if u.table == "window_outcomes")


@pytest.mark.parametrize("roles", [("stable",), ("stable", "shadow")], ids=["one role", "two roles"])
@pytest.mark.parametrize("first", MOMENTS)
def test_every_order_of_what_can_happen_to_a_label_ends_in_the_same_window(
    first: str, roles: tuple[str, ...]
) -> None:
    """Its outcome is there once, as its last revision says, in every cell; nobody asks any more, and nothing is kept."""
    at = TABLES["window_outcomes"].names.index("final_ms") - len(TABLES["window_outcomes"].key)
    orders = itertools.permutations([moment for moment in MOMENTS if moment != first])
    for order in itertools.islice(orders, MOMENTS.index(first) + 6 * (len(roles) - 1), None, STRIDE):
        life = Life()
        life.event(prediction(role=roles[0]))
        life.tick(T0)
        for place, moment in enumerate((first, *order)):
            life.go(moment)
            if place == 1 and roles[1:]:
                life.event(prediction(role=roles[1]))
        for _ in range(4):
            life.tick(max(life.clock_ms, SETTLED) + 1)
            life.go("look")
        assert life.core.questions() == [], order
        want = oracle.expected(LATE, life.steps).tables["window_outcomes"]
        have = life.outcomes()
        assert have.keys() == want.keys(), order
        for key, row in want.items():
            assert [*have[key][:at], *have[key][at + 1 :]] == [*row[:at], *row[at + 1 :]], (order, key)
        assert set(life.pieces) <= {"meta", "models", "late-next"}, order
