"""One source of small numbers decides everything: who runs, what the broker refuses, who dies and where, what is late.

``simulate(choices, seed)`` plays one schedule to its end and holds what is left to the offline oracle. Zero is always
the plain choice (send the next message, take the next step), so that shrinking leaves only the faults that matter.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import numpy as np

from schemas.blocks import decode_block
from schemas.contracts import ModelContract
from schemas.errors import BadMessage
from schemas.events import HEADER_KIND, DeadLetter
from schemas.ids import ROLES, RowId
from schemas.rows import TABLES, whole_outcomes
from streams.core.archive import log_rows
from streams.core.delivery import TopicPartition, load
from streams.core.join import ModelCounts
from streams.core.label_index import IN_ORDER, index_copy
from streams.core.pipeline import JoinCore
from streams.core.records import Record
from tests.simulation.log import Log
from tests.simulation.process import STAGES, LabelIndex, Run, Warehouse, lookups, sink
from tests.simulation.world import (
    CONTRACT,
    END_MS,
    INPUTS,
    PARTITIONS,
    T0,
    Message,
    expected,
    messages,
    observed,
    ticks,
)
from tests.support_archive import rows_of

WORKERS = 2
#: The drain after the chaos must come to rest within this many rounds.
ROUNDS_MAX = 400
TASKS = [(stage, p) for p in range(PARTITIONS) for stage in STAGES]
CreateRun = Callable[[Log, str, int, Callable[[int], int], int], Run]


class Choices:
    """Numbers from a list; zeros once it is used up."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = iter(numbers)
        self.left = True

    def __call__(self, below: int) -> int:
        """A number in [0, below)."""
        if not self.left:
            return 0
        number = next(self._numbers, None)
        if number is None:
            self.left = False
            return 0
        return number % below


class Simulation:
    """The whole world of one schedule. ``create_run`` lets a test plant a bug in the shell."""

    def __init__(self, choices: Sequence[int], seed: int, create_run: CreateRun = Run) -> None:
        self.choose = Choices(choices)
        self.log = Log()
        self.warehouse = Warehouse()
        self._create_run = create_run
        self._contract: ModelContract = getattr(create_run, "contract", CONTRACT)
        self._to_send = messages(Random(seed))
        self._now_ms = 1_000
        self._newest_ms = T0
        self._owner = {task: at % WORKERS for at, task in enumerate(TASKS)}
        #: Every run that somebody still believes in, by worker: the last of a task is its owner.
        self.runs: list[list[Run]] = [[] for _ in range(WORKERS)]
        self._sinks: list[Iterator[str]] = []
        self._by_task: dict[tuple[str, int], Run] = {}
        self._archive = self._copy(INPUTS)
        self._copier = self._copy(("observations",))
        self.index = LabelIndex()
        self._lookups: list[Iterator[str]] = []
        self._archived_to: dict[TopicPartition, int] = {}
        self.archived: dict[tuple[str, tuple[Any, ...]], Any] = {}
        self.kills = 0
        self.kept: dict[TopicPartition, dict[int, Record]] = {}
        for worker in range(WORKERS):
            self._sinks.append(self._sink(worker))
            self._lookups.append(self._look_up(worker))
        for task in TASKS:
            self._start(task)

    # -- processes ------------------------------------------------------------------------------------------------

    def _sink(self, worker: int) -> Iterator[str]:
        return sink(lambda: self.runs[worker], self.warehouse, self.choose)

    def _look_up(self, worker: int) -> Iterator[str]:
        return lookups(lambda: self.runs[worker], self.index, lambda: self.warehouse.away, self.choose)

    def _start(self, task: tuple[str, int]) -> None:
        self._now_ms += 500
        run = self._create_run(self.log, *task, self.choose, self._now_ms)
        self._by_task[task] = run
        self.runs[self._owner[task]].append(run)

    def _kill(self, worker: int) -> None:
        """A whole process: its tasks, its outboxes, the batch on its way. It starts again at once."""
        self.kills += 1
        self.runs[worker] = []
        self._sinks[worker] = self._sink(worker)
        self._lookups[worker] = self._look_up(worker)
        for task in TASKS:
            if self._owner[task] == worker:
                self._start(task)

    def _move(self, task: tuple[str, int], gracefully: bool) -> None:
        """Give a task to another worker; the old one hears of it later, if at all."""
        self._by_task[task].stopping = gracefully
        self._owner[task] = (self._owner[task] + 1) % WORKERS
        self._start(task)

    def _copy(self, topics: tuple[str, ...]) -> Iterator[str]:
        """The archive, or what copies to the label index: rows are written, then the group's offsets are committed."""
        at = dict(self._archived_to)
        while True:
            for topic in topics:
                for tp in [(topic, p) for p in range(PARTITIONS)]:
                    yield "fetch"
                    records = self.log.read(tp, at.get(tp, 0), 10)
                    rows = []
                    for record in records:
                        with contextlib.suppress(BadMessage):
                            rows += rows_of(
                                index_copy(record, 0) if topic == "observations" else [log_rows(record)]
                            )
                        at[tp] = record.offset + 1
                    for name in IN_ORDER if topic == "observations" else ():
                        yield "write"
                        self.index.insert(name, [row for table, row in rows if table == name])
                    yield "write"
                    if topic != "observations":
                        self.archived |= {(table, row[-3:]): row for table, row in rows}
                    yield "commit"
                    self._archived_to[tp] = at.get(tp, 0)

    # -- one turn -------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        match self.choose(18):
            case 0 | 1 | 2:
                self._send()
            case 3 | 4 | 5 | 6 | 7 | 8:
                self._step(self.choose(len(TASKS)), (1, 4, 10, 30)[self.choose(4)])
            case 9:
                self._some(self._sinks[self.choose(WORKERS)], 6)
            case 10:
                self._some(self._archive, 9)
            case 11:
                self._step_zombie()
            case 12:
                if self.log.markers_due:
                    self.log.write_marker(self.choose(self.log.markers_due))
            case 13:
                if self.warehouse.under_way:
                    self.warehouse.insert(
                        self.warehouse.under_way.pop(self.choose(len(self.warehouse.under_way)))
                    )
            case 14:
                self._fault()
            case 15:
                self._some(self._copier, 40)
            case 16:
                self._some(self._lookups[self.choose(WORKERS)], 30)
            case _:
                task = self.choose(len(TASKS))
                self._step(task, 1 + self.choose(40))
                if self.choose(2):  # right where it stands
                    self._kill(self._owner[TASKS[task]])

    def _some(self, life: Iterator[str], most: int) -> None:
        for _ in range(1 + self.choose(most)):
            next(life)

    def _send(self) -> None:
        """What comes next, or something a little later: partitions and clients have no common order."""
        for _ in range(1 + self.choose(4)):
            if self._to_send:
                self._write(self._to_send.pop(self.choose(min(3, len(self._to_send)))))
        if not self._to_send and self.choose.left:
            self._pass_time()

    def _pass_time(self) -> None:
        """A moment later."""
        for message in ticks(self._newest_ms + 1):
            self._write(message)

    def _write(self, message: Message) -> None:
        if message.tick:
            self._newest_ms = max(self._newest_ms, json.loads(message.value)["event_time_ms"])
        self.log.send(message.tp, message.key, message.value, message.headers)

    def _step(self, task: int, effects: int) -> None:
        run = self._by_task[TASKS[task]]
        for _ in range(effects):
            run.advance()
            if run.ended:
                # Its process notices, and since the group still gives it the task, it starts again.
                self._start(TASKS[task])
                return

    def _step_zombie(self) -> None:
        """A run whose task has moved, and whose process does not know it yet."""
        zombies = [run for runs in self.runs for run in runs if run not in self._by_task.values()]
        if zombies:
            run = zombies[self.choose(len(zombies))]
            for _ in range(1 + self.choose(8)):
                run.advance()
                if run.ended:
                    for runs in self.runs:
                        if run in runs:
                            runs.remove(run)
                    return

    def _fault(self) -> None:
        match self.choose(8):
            case 0 | 1:
                self._kill(self.choose(WORKERS))
            case 2:
                self._move(TASKS[self.choose(len(TASKS))], gracefully=self.choose(2) == 1)
            case 3:
                self._by_task[TASKS[self.choose(len(TASKS))]].refuse = True
            case 4:
                self.log.compact(self._by_task[TASKS[self.choose(len(TASKS))]].state)
            case 5:
                self.warehouse.away = not self.warehouse.away
            case 6:
                self._archive = self._copy(INPUTS)
                self._copier = self._copy(("observations",))
            case _:
                self._retain()

    def _retain(self) -> None:
        """Retention deletes what every reader has behind it."""
        for task, partition in TASKS:
            run = self._by_task[(task, partition)]
            manifest = load(
                run.task, [(r.key, r.value) for r in self.log.partition(run.state).readable()]
            ).manifest
            for tp, offset in manifest.offsets.items() if manifest else ():
                kept = self.kept.setdefault(tp, {})
                kept.update({r.offset: r for r in self.log.partition(tp).readable()})
                behind = self._archived_to.get(tp, 0)
                self.log.retain(tp, min(offset, behind))

    # -- to the end -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play the schedule, then let everything come to rest."""
        while self.choose.left:
            self._turn()
        while self._to_send:
            self._write(self._to_send.pop(0))
        self.drain()
        # An answer counts from behind the question on: whoever asked last has to be given a little more time.
        for _ in range(3):
            if any(self.core(p)._cold.asks for p in range(PARTITIONS)):
                self._pass_time()
                self.drain()
        assert not any(self.core(p)._cold.asks for p in range(PARTITIONS)), "labels are looked up in vain"

    def lose_state(self, fraction: float) -> None:
        """Send a part of what is left, then lose the state of every join task and go on without it."""
        for _ in range(int(len(self._to_send) * fraction)):
            self._write(self._to_send.pop(0))
        self.drain()
        for partition in range(PARTITIONS):
            run = self._by_task[("join", partition)]
            self.log.lose(run.task, run.state)
        for worker in range(WORKERS):
            self._kill(worker)

    def drain(self) -> None:
        """No more faults: until nobody has anything to do. Raises AssertionError when that does not come."""
        self.warehouse.away = False
        while self.warehouse.under_way:
            self.warehouse.insert(self.warehouse.under_way.pop())
        for rounds in range(ROUNDS_MAX):
            before = self._progress()
            while self.log.markers_due:
                self.log.write_marker(0)
            for task in range(len(TASKS)):
                self._step(task, 1)
                while self._by_task[TASKS[task]].due != "fetch":
                    self._step(task, 1)
            for writer in self._sinks:
                for _ in range(8):
                    next(writer)
            for _ in range(3 * len(INPUTS) * PARTITIONS):
                next(self._archive)
                next(self._copier)
            for asking in self._lookups:
                for _ in range(20):
                    next(asking)
            if rounds > 2 and self._progress() == before and not self.log.markers_due:
                return
        raise AssertionError(f"not at rest after {ROUNDS_MAX} rounds")

    def _progress(self) -> list[Any]:
        state: list[Any] = [(tp, p.end) for tp, p in self.log.partitions.items()]
        state += [(run.at.copy(), len(run.ledger.outbox), run.ready) for run in self._by_task.values()]
        state += [
            (list(self.core(p)._cold.asks), len(self._by_task[("join", p)].inbox)) for p in range(PARTITIONS)
        ]
        return [*state, dict(self._archived_to)]

    def settle_all(self) -> None:
        """Time passes until nothing can change any more; the second round takes in what the warehouse confirmed."""
        for round_ms in (0, 1, 2):
            for message in ticks(END_MS + round_ms):
                self._write(message)
            self.drain()

    # -- what must be so ------------------------------------------------------------------------------------------

    def history(self, stage: str, partition: int) -> list[Record]:
        """What committed transactions of a task have applied, in their order."""
        return [r for _, applied in self.log.committed.get(f"{stage}/{partition}", []) for r in applied]

    def core(self, partition: int) -> JoinCore:
        """The join core that owns ``partition``."""
        core = self._by_task[("join", partition)].core
        assert isinstance(core, JoinCore)
        return core

    def totals(self, partition: int) -> tuple[int, int, int]:
        """Predictions that left the index with a label, without one when they were settled, evicted without one."""
        total = self.core(partition)._index.totals.get(CONTRACT.model, ModelCounts())
        return total.labelled, total.unlabelled, total.evicted

    def looked_up(self, partition: int) -> int:
        """Predictions that had left without a label and were found by one."""
        return self.core(partition)._index.totals.get(CONTRACT.model, ModelCounts()).looked_up

    def check(self) -> None:
        """Nothing lost, nothing twice, every figure equal to the oracle's. Raises AssertionError."""
        told: Counter[tuple[str, str, str]] = Counter()
        outcomes: Counter[tuple[str, str, str, float]] = Counter()
        tables: dict[str, dict[tuple[Any, ...], tuple[Any, ...]]] = {}
        for partition in range(PARTITIONS):
            history = self.history("join", partition)
            for topic in INPUTS:
                self._check_read_once((topic, partition), history)
            wanted = expected(partition, history, self._contract)
            for table, rows in wanted.tables.items():
                tables.setdefault(table, {}).update(rows)
            seen = observed(wanted)
            told += seen[0]
            outcomes += seen[1]
        self.check_tables(tables)
        self._check_observed(told, outcomes)
        self._check_relay()
        self._check_rest()

    def _all(self, tp: TopicPartition) -> list[Record]:
        """Everything committed to a partition, whatever retention has deleted since."""
        kept = dict(self.kept.get(tp, {}))
        kept.update({r.offset: r for r in self.log.partition(tp).readable()})
        return [kept[offset] for offset in sorted(kept)]

    def _check_read_once(self, tp: TopicPartition, history: list[Record]) -> None:
        read = [r.offset for r in history if (r.topic, r.partition) == tp]
        assert read == [r.offset for r in self._all(tp)], f"{tp}: not each record once, in order"

    def check_tables(self, tables: dict[str, dict[tuple[Any, ...], tuple[Any, ...]]]) -> None:
        """The warehouse has exactly these rows. Raises AssertionError."""
        for table, rows in tables.items():
            have = self.warehouse.tables.get(table, {})
            held = {key: row[len(key) : -1] for key, row in have.items()}
            if table == "window_outcomes":
                held = {
                    key: tuple(row) for key, row in whole_outcomes(row[:-1] for row in have.values()).items()
                }
                # When it became final is told by the parts, and which labels are in which is a matter of timing.
                in_parts = {key[:-1] for key in have if key[-1]}
                held = {key: _timeless(row) if key in in_parts else row for key, row in held.items()}
                rows = {key: _timeless(row) if key in in_parts else row for key, row in rows.items()}
            assert set(held) == set(rows), f"{table}: other rows"
            for key, row in rows.items():
                same = held[key] == row or _plain(held[key]) == _plain(row)
                assert same, (table, key, held[key], row)

    def _check_observed(self, told: Counter[Any], outcomes: Counter[Any]) -> None:
        ids = {
            (tp[1], record.offset): record.key.decode()
            for tp in [("predictions", p) for p in range(PARTITIONS)]
            for record in self._all(tp)
            if record.key is not None
        }
        was_told: Counter[Any] = Counter()
        came: Counter[Any] = Counter()
        for partition in range(PARTITIONS):
            for record in self._all(("observations", partition)):
                if HEADER_KIND in record.headers:
                    continue
                block = decode_block(record.value or b"")
                for at in range(len(block)):
                    address = RowId("predictions", int(block.partition[at]), int(block.offset[at]))
                    key = (
                        ids[(address.partition, address.offset)],
                        block.versions[block.version[at]],
                        ROLES[block.role[at]],
                    )
                    if block.kind == "predictions":
                        was_told[key] += 1
                    else:
                        came[(*key, float(block.label[at]))] += int(block.sign[at])
        assert was_told == told, "predictions on observations"
        assert {k: n for k, n in came.items() if n} == dict(outcomes), "outcomes on observations"

    def _check_relay(self) -> None:
        """The stage behind passes on everything up to the last tick, once and in order."""
        for partition in range(PARTITIONS):
            before = self._all(("observations", partition))
            last = max((at for at, r in enumerate(before) if r.key is None), default=-1)
            after = self._all(("signals", partition))
            assert [r.value for r in after] == [r.value for r in before[: last + 1]], f"relay of {partition}"

    def _check_rest(self) -> None:
        bad = [r for tp in [("predictions", 0)] for r in self._all(tp) if r.key == b"bad"]
        letters = [DeadLetter.model_validate_json(r.value or b"") for r in self._all(("dead-letters", 0))]
        assert [letter.offset for letter in letters] == [r.offset for r in bad], "dead letters"
        rows: dict[tuple[str, tuple[Any, ...]], Any] = {}
        for tp in [(topic, p) for topic in INPUTS for p in range(PARTITIONS)]:
            for record in self._all(tp):
                if record.key != b"bad":
                    table, found = log_rows(record)
                    rows |= {(table, row[-3:]): row for row in found}
        assert self.archived == rows, "the archive"

    def check_bounds(self) -> None:
        """After ``settle_all``: every prediction left with a label or was counted as unlabelled, and nothing is held."""
        for partition in range(PARTITIONS):
            wanted = expected(partition, self.history("join", partition), self._contract).predictions
            labelled = sum(bool(p.labels) for p in wanted)
            assert self.totals(partition) == (labelled, len(wanted) - labelled, 0)
        self.check_empty()

    def check_empty(self) -> None:
        """Nothing is held in memory or state but a few numbers."""
        for partition in range(PARTITIONS):
            core, run = self.core(partition), self._by_task[("join", partition)]
            held = {name: value for name, _, value in core.measurements() if not name.endswith("_total")}
            for name in ("pending_predictions", "pending_labels", "open_windows", "hot_index_bytes"):
                assert held[f"driftline_{name}"] == 0, name
            assert set(run.ledger.manifest.pieces) <= {"meta", "models", "late-next"}, (
                run.ledger.manifest.pieces
            )
            assert not run.ledger.outbox


def _timeless(row: tuple[Any, ...]) -> tuple[Any, ...]:
    names = TABLES["window_outcomes"].names
    at = names.index("final_ms") - len(TABLES["window_outcomes"].key)
    return (*row[:at], None, *row[at + 1 :])


def _plain(row: Any) -> list[Any]:
    # Borders of histogram cells are the one thing that is not counted but computed.
    return [[round(x, 9) for x in item] if isinstance(item, list) else item for item in row]


def simulate(choices: Sequence[int], seed: int, create_run: CreateRun = Run) -> Simulation:
    """One schedule, from the first message to the comparison. Raises AssertionError where the core is wrong."""
    simulation = Simulation(choices, seed, create_run)
    simulation.run()
    simulation.check()
    if seed % 2:
        simulation.settle_all()
        simulation.check()
        simulation.check_bounds()
    return simulation


def schedule(rng: Random, turns: int) -> list[int]:
    """Choices for about ``turns`` turns."""
    return [int(n) for n in np.random.default_rng(rng.getrandbits(32)).integers(0, 240, 4 * turns)]
