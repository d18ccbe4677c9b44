"""What tests of labels that are looked up share: a core with a contract whose settled windows take labels, and the label index
as a list."""

from __future__ import annotations

from typing import Any

from schemas.contracts import ModelContract, ModelRecord
from schemas.rows import TABLES
from schemas.settings import MonitorSettings
from streams.core.cold import Question
from streams.core.delivery import Out, StageContext
from streams.core.label_index import (
    FOUND_COLUMNS,
    LABELS,
    PREDICTIONS,
    PROGRESS,
    TOLD_COLUMNS,
    answer,
    index_copy,
)
from streams.core.pipeline import JoinCore
from streams.core.records import Record
from tests.support_archive import rows_of
from tests.support_join import CONTRACT, HOUR, T0

LATE = CONTRACT.model_copy(
    update={"monitoring": CONTRACT.monitoring.model_copy(update={"late_label_horizon": 1_000 * HOUR})}
)
SETTLED = T0 + 30 * HOUR


def core_of(contract: ModelContract = LATE, **limits: Any) -> JoinCore:
    """A fresh core with these limits of the monitor."""
    monitor = MonitorSettings().monitor.model_copy(update=limits)
    core = JoinCore(StageContext("join", 0, 1, MonitorSettings(monitor=monitor)))
    core.activate([ModelRecord(contract=contract)])
    return core


class Copied:
    """What the label index has of a core's outputs."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[Any, ...]]] = {PREDICTIONS: [], LABELS: [], PROGRESS: []}

    def take(self, outs: list[Out]) -> None:
        for out in outs:
            if out.topic == "observations":
                for table, row in rows_of(
                    index_copy(Record(out.topic, 0, 0, out.key, out.value, out.headers), 0)
                ):
                    self.rows[table].append(row)

    def answers(self, questions: list[Question]) -> list[Record]:
        position = max((row[-1] for row in self.rows[PROGRESS]), default=-(2**63))
        found = []
        for question in questions:
            asked = [(identity, check) for identity, check, bound in question.keys if bound < position]
            ids = {identity for identity, _ in asked}
            selected = [
                [
                    tuple(row[TABLES[table].names.index(name)] for name in columns)
                    for row in self.rows[table]
                    if row[0] in ids
                ]
                for table, columns in ((PREDICTIONS, FOUND_COLUMNS), (LABELS, TOLD_COLUMNS))
            ]
            found.append(answer(question.model, position, asked, *selected).as_record(0))
        return found
