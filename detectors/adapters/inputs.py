"""What the adapters' machines read of a stream's rows: a column, its ranks, or the errors of the model's decisions.

A row that cannot be read is left out, and so is one taken back: sequential tests have no way to forget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.base import Context, Rows
from detectors.harm.loss import answered, score_and_label
from detectors.transform import column_reference, mid_rank

Places = NDArray[np.int64]
#: What is larger would overflow where it is squared and added.
VALUE_MAX = 1e100


class Input(Protocol):
    """What one machine reads of a stream. ``name``: its column; ``reference``: the mean that is shown beside its own."""

    @property
    def name(self) -> str | None: ...
    @property
    def reference(self) -> float | None: ...
    def read(self, rows: Rows) -> tuple[Places, Sequence[Any], list[float]]:
        """Positions of the rows it can read, their values for the machine, and for people (maybe none)."""


class ColumnInput:
    """One numeric column as it is, or (``ranks``) where its values stand in the reference, if there is one."""

    def __init__(self, context: Context, at: int, ranks: bool = False) -> None:
        self.name: str | None = context.columns[at]
        self._at = at
        column = column_reference(context.reference, context.columns[at])
        self.reference = None if column is None else column.mean
        self._ranks = column if ranks else None

    def read(self, rows: Rows) -> tuple[Places, Sequence[Any], list[float]]:
        values = rows.values[:, self._at]
        places = np.flatnonzero(np.isfinite(values) & (rows.sign > 0))
        known = np.clip(values[places], -VALUE_MAX, VALUE_MAX)
        shown = known.tolist()
        return places, shown if self._ranks is None else mid_rank(known, self._ranks).tolist(), shown


class ErrorInput:
    """Of the loss stream, 1.0 where the decision was wrong, else 0.0: ``(score >= decision) != label``."""

    name: str | None = "error"

    def __init__(self, context: Context, decision: float | None) -> None:
        """``decision`` None: the contract's threshold."""
        decision = context.decision if decision is None else decision
        self._score, self._label = score_and_label(context)
        self._decision = decision
        found = context.reference
        self.reference: float | None = None
        #: Rows of the reference behind it.
        self.rows = 0
        if found is not None and found.sample_label and len(found.sample_score) == len(found.sample_label):
            decided = np.array(found.sample_score) >= decision
            self.rows = len(decided)
            self.reference = float((decided != (np.array(found.sample_label) == 1)).mean())

    def read(self, rows: Rows) -> tuple[Places, Sequence[Any], list[float]]:
        score, label = rows.values[:, self._score], rows.values[:, self._label]
        places = np.flatnonzero(answered(score, label) & (rows.sign > 0))
        wrong = ((score[places] >= self._decision) != (label[places] == 1)).astype(np.float64).tolist()
        return places, wrong, wrong


def column_inputs(context: Context, ranks: bool = False) -> list[Input]:
    """One input a column; of the loss stream's several columns only the loss, for the others have streams of their own."""
    names = context.columns
    if context.stream == "loss" and len(names) > 1 and "loss" in names:
        return [ColumnInput(context, names.index("loss"), ranks)]
    return [ColumnInput(context, at, ranks) for at in range(len(names))]
