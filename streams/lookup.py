"""Looks labels up in the warehouse for the tasks of this process: asks when there is something to ask, never in their way.

The rules are in ``streams.core.cold``. Here a question becomes three queries: how far the label index has come for the task,
and then, for predictions whose bound that has passed, what the index has of them. While ClickHouse is away nothing is asked,
and the labels wait in the tasks' state.

A question of 4,000 predictions took about half a second among six million (`index_granularity` from 64 to 512 made no odds),
so one worker looks up some thousand labels a second beside its work; a question that was full is followed by the next at once.
On a replicated ClickHouse all of this must be read where it was written, or with `select_sequential_consistency`: what is said
of the rows may not be ahead of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from schemas.errors import WarehouseError
from schemas.observability import Metrics
from schemas.settings import MonitorSection
from streams.core.cold import Question
from streams.core.label_index import FOUND_COLUMNS, LABELS, PREDICTIONS, PROGRESS, TOLD_COLUMNS, answer
from streams.core.records import Record
from streams.sink import BACKOFF_S_MAX, BACKOFF_S_MIN, ClickHouseSink

log = logging.getLogger(__name__)
Row = tuple[Any, ...]


@runtime_checkable
class Asking(Protocol):
    """A core may have questions to the label index; answers come back as records."""

    def questions(self) -> list[Question]: ...


class Asker(Protocol):
    """As much of a task as is needed here."""

    @property
    def name(self) -> str: ...

    async def questions(self) -> list[Question]: ...

    def take_answer(self, record: Record) -> None: ...


class LabelIndex:
    """The label index in ClickHouse. Blocks; raises WarehouseError."""

    def __init__(self, sink: ClickHouseSink) -> None:
        self._sink = sink

    def positions(self, source: str) -> dict[int, int]:
        """By partition of `observations`, how far the index has come with what ``source``, a task, wrote there."""
        rows = self._sink.query(
            f"SELECT partition, max(position) FROM {PROGRESS} WHERE source = {_text(source)} GROUP BY partition"
        )
        return {int(partition): int(position) for partition, position in rows}

    def rows(self, table: str, columns: Sequence[str], model: str, identities: Sequence[int]) -> list[Row]:
        """Rows of predictions by the hashes of their ids; the same row may come twice."""
        listed = ",".join(map(str, identities))
        found = self._sink.query(
            f"SELECT {', '.join(columns)} FROM {table} WHERE identity IN ({listed}) AND model = {_text(model)}"
        )
        return [tuple(row) for row in found]

    def close(self) -> None:
        self._sink.close()


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class Lookup:
    """The coroutine that asks for all tasks, one question at a time."""

    def __init__(
        self,
        index: LabelIndex,
        tasks: Callable[[], Sequence[Asker]],
        settings: MonitorSection,
        metrics: Metrics,
    ) -> None:
        self._index = index
        self._tasks = tasks
        self._interval_s = settings.label_lookup_interval / 1000
        self._keys_max = settings.label_lookup_rows_max
        self._metrics = metrics

    async def run(self) -> None:
        """Ask for ever; what failed is asked again after a growing pause. Cancel to end."""
        backoff_s, full = BACKOFF_S_MIN, False
        while True:
            # How far the index has come is to be asked for: nothing says it by itself.
            await asyncio.sleep(BACKOFF_S_MIN if full else self._interval_s)
            full = False
            try:
                for task in list(self._tasks()):
                    questions = await task.questions()
                    records = await asyncio.to_thread(self.ask, task.name, questions)
                    for record in records:
                        task.take_answer(record)
                    full |= bool(records) and sum(len(q.keys) for q in questions) >= self._keys_max
                backoff_s = BACKOFF_S_MIN
            except WarehouseError as error:
                self._metrics.count("driftline_warehouse_errors_total", table=PREDICTIONS)
                log.warning(
                    "labels cannot be looked up; they wait",
                    extra={"event": "warehouse-error", "detail": str(error)[:500], "pause_s": backoff_s},
                )
                await asyncio.sleep(backoff_s)
                backoff_s = min(BACKOFF_S_MAX, backoff_s * 2)

    def ask(self, source: str, questions: Sequence[Question]) -> list[Record]:
        """Answers to those questions of a task that can be answered by now. Raises WarehouseError."""
        if not questions:
            return []
        # First how far, then what: the rows are never behind what is said of them.
        positions, records = self._index.positions(source), list[Record]()
        for model, partition, keys in questions:
            position = positions.get(partition)
            asked = [
                (identity, check)
                for identity, check, bound in keys
                if position is not None and bound < position
            ]
            if position is None or not asked:
                continue
            ids = [identity for identity, _ in asked]
            predictions = self._index.rows(PREDICTIONS, FOUND_COLUMNS, model, ids)
            labels = self._index.rows(LABELS, TOLD_COLUMNS, model, ids) if predictions else []
            partition_of_task = int(source.rpartition("/")[2])
            records.append(answer(model, position, asked, predictions, labels).as_record(partition_of_task))
        return records
