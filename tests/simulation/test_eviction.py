"""A hot index with far too little memory, and windows that leave long before their labels come, through the same schedules:
bounded, and every figure exact, because the labels that find nobody are looked up."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import msgspec
import pytest

import streams.core.join
import streams.core.join_pieces
from schemas.contracts import ModelContract
from streams.core.asks import Ask
from streams.core.cold import Answer
from streams.core.delivery import Loaded, TopicPartition
from streams.core.join_pieces import MERGE_FAN
from streams.core.pipeline import JoinCore
from streams.core.records import Record
from streams.core.waiting import Key
from tests.simulation.process import Run
from tests.simulation.scheduler import Simulation, schedule
from tests.simulation.world import CONTRACT, MINUTE, PARTITIONS, expected
from tests.support_examples import times

ENTRIES_MAX = 2
#: Long enough that workers die while labels are being looked up and while what they changed is on its way.
TURNS = 1_500
SCHEDULES = times(10)
#: Of the two that are each a half of the third one.
SCHEDULES_OF_HALF = times(5)
#: A prediction is taken for so large that fingerprints take no room beside it.
ROW_BYTES = 10_000
#: Windows leave memory an hour after their end; labels count for ten days.
LATE = CONTRACT.model_copy(
    update={
        "monitoring": CONTRACT.monitoring.model_copy(
            update={"label_horizon": 60 * MINUTE, "late_label_horizon": 14_400 * MINUTE}
        )
    }
)


class Tight(Run):
    """Room for a few predictions, and for the fingerprints of all that were evicted."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if isinstance(self.core, JoinCore):
            self.core._index.bytes_max = (ENTRIES_MAX + 1) * ROW_BYTES - 1

    def advance(self) -> None:
        super().advance()
        if isinstance(self.core, JoinCore):
            index = self.core._index
            assert index.bytes_held <= index.bytes_max, "never more than there is room for"
            assert not index.counts.forgotten


class Late(Run):
    """Room for all predictions, but not for long."""

    contract: ModelContract = LATE


class TightAndLate(Tight):
    """Neither."""

    contract: ModelContract = LATE


@pytest.fixture(autouse=True)
def _large_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.core.join, "ROW_BYTES", ROW_BYTES)
    monkeypatch.setattr(streams.core.join, "DEAD_MIN", 0)


def play(create_run: type[Run], seed: int) -> Simulation:
    """One schedule and its comparison, before and after everything has been settled."""
    simulation = Simulation(schedule(Random(seed), TURNS), seed, create_run)
    simulation.run()
    simulation.check()
    simulation.settle_all()
    simulation.check()
    simulation.check_empty()
    return simulation


@pytest.mark.parametrize(
    ("create_run", "schedules"),
    [(Tight, SCHEDULES_OF_HALF), (Late, SCHEDULES_OF_HALF), (TightAndLate, SCHEDULES)],
)
def test_labels_of_what_has_left_memory_are_looked_up_and_every_figure_is_exact(
    create_run: type[Run], schedules: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through evictions, settled windows, copies and answers that are late, duplicates, revisions, roles that come later and
    crashes before any effect; every prediction ends as one of three."""
    left = looked_up = kills = parts = 0
    for seed in range(schedules):
        monkeypatch.setattr(streams.core.join_pieces, "MERGE_FAN", (2, MERGE_FAN)[seed % 2])
        simulation = play(create_run, seed)
        for partition in range(PARTITIONS):
            history = simulation.history("join", partition)
            wanted = expected(partition, history, create_run.contract).predictions
            assert sum(simulation.totals(partition)) == len(wanted), seed
            left += sum(simulation.totals(partition)[1:])
            looked_up += simulation.looked_up(partition)
        parts += sum(bool(key[-1]) for key in simulation.warehouse.tables.get("window_outcomes", {}))
        kills += simulation.kills
    assert left > 2 * schedules
    assert looked_up > 0.8 * schedules
    assert parts > (0 if create_run is Tight else 10)
    assert kills > schedules


class AnswersOfAnyAge(TightAndLate):
    """An answer counts from wherever it was given: what had not been copied yet is not there."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if isinstance(self.core, JoinCore):
            self.core._cold.asks.put = self._put  # type: ignore[method-assign]

    def _put(self, model: str, key: Key) -> None:
        assert isinstance(self.core, JoinCore)
        self.core._cold.asks._open[key] = Ask(model, -(2**63) - 1)


class ForgottenLabels(TightAndLate):
    """What was joined before is not in the answer: duplicates count again, and a revision takes nothing back."""

    def answers(self) -> list[Record]:
        return [_moved(record, told=[]) for record in super().answers()]


class ForgottenQuestions(TightAndLate):
    """After a restart nobody asks for the labels that wait."""

    def open(self, loaded: Loaded, starts: Mapping[TopicPartition, int]) -> None:
        super().open(loaded, starts)
        if isinstance(self.core, JoinCore):
            for key, _ in list(self.core._cold.asks):
                self.core._cold.asks.drop(key)


class OneRoleOnly(TightAndLate):
    """A label settles one role of its prediction."""

    def answers(self) -> list[Record]:
        return [_moved(record, rows=1) for record in super().answers()]


class PartsSentOnce(TightAndLate):
    """What late labels changed is not sent again after a restart."""

    def open(self, loaded: Loaded, starts: Mapping[TopicPartition, int]) -> None:
        super().open(loaded, starts)
        if isinstance(self.core, JoinCore):
            self.core._cold.late._unsent = []


def _moved(record: Record, rows: int | None = None, **changes: Any) -> Record:
    answer = msgspec.msgpack.decode(record.value or b"", type=Answer)
    found = [msgspec.structs.replace(one, **changes) for one in answer.found][:rows]
    return msgspec.structs.replace(answer, found=found).as_record(record.partition)


@pytest.mark.parametrize(
    "mutant",
    [AnswersOfAnyAge, ForgottenLabels, ForgottenQuestions, OneRoleOnly, PartsSentOnce],
    ids=lambda mutant: mutant.__name__,
)
def test_planted_bugs_of_the_look_up_are_found(mutant: type[Run]) -> None:
    """Each of these is wrong in one place, and the simulation says so."""
    # Two are rare: the first number that finds them is 8 and 9.
    for seed in sorted(range(SCHEDULES), key=lambda seed: (seed < 8, seed)):
        try:
            play(mutant, seed)
        except AssertionError:
            return
    pytest.fail(f"{mutant.__name__} survived")
