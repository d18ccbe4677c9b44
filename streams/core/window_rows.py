"""Rows of the warehouse's tables of windows, from cells: all that changed in a transaction at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from streams.core import tally
from streams.core.aggregates import Cell, Ints, Outcomes, listed
from streams.core.delivery import Upsert
from streams.core.join_state import WindowKey
from streams.core.layouts import HEAD, INVALID, LEAST, LOWER, MISSING, MOST, ROWS, UPPER, categories_of
from streams.core.window_state import COUNTS, FEATURES, OUTCOMES, CellKey, Group

_INT64_MAX = 2**63 - 1
_FACTS = len(tally.FACTS)
_NOT_SENT = (-1, 0)
Row = tuple[Any, ...]


class Mark(NamedTuple):
    """What a row is of: ``table`` of a cell. Of a feature's row its key says which."""

    group: Group
    cell: CellKey
    table: int

    def confirm(self, upsert: Upsert) -> None:
        """The warehouse has this row; it is waited for no more, unless it was told anew since."""
        sent = self.group.sent
        version, rest = sent.get((self.cell, self.table), _NOT_SENT)
        if version != upsert.version:
            return
        layout = self.group.cells[self.cell].layout
        if self.table == FEATURES and layout is not None:
            rest &= ~(1 << layout.place[upsert.key[-1]])
        else:
            rest = 0
        # The piece is not written anew for this: after a restart the row is sent once more, and is the same.
        if rest:
            sent[self.cell, self.table] = (version, rest)
        else:
            del sent[self.cell, self.table]


class Told(NamedTuple):
    """A cell of which the warehouse is to be told; ``key``: see :func:`row_key`."""

    group: Group
    own: CellKey
    cell: Cell
    key: Row


#: A named tuple from a tuple: what the class does itself takes twice as long.
_upsert: Callable[[Row], Upsert] = partial(tuple.__new__, Upsert)


def row_key(window: WindowKey, cell: CellKey, partition: int) -> Row:
    """By what a cell's rows are known in the warehouse."""
    return (_moment(window.start_ms), window.window_ms, window.model, *cell, partition)


@lru_cache(maxsize=4_096)
def _moment(time_ms: int) -> datetime:
    """One for all rows of a window: it remembers its hash, which takes longer than that of the rest of a key."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def counts_rows(cells: Sequence[Told], version: int) -> Iterator[Upsert]:
    """Rows of ``window_counts``."""
    table = (
        np.concatenate([told.cell.counts for told in cells]).reshape(len(cells), -1).tolist() if cells else []
    )
    for (group, own, cell, key), counts in zip(cells, table, strict=True):
        group.sent[own, COUNTS] = (version, 1)
        row = (
            *key, *counts[:_FACTS], dict(sorted(cell.latencies.items())), counts[_FACTS:], group.span_ms,
            int(group.closed), version,
        )  # fmt: skip
        yield _upsert(("window_counts", key, row, version, Mark(group, own, COUNTS)))


def outcomes_rows(cells: Sequence[Told], version: int) -> Iterator[Upsert]:
    """Rows of ``window_outcomes``: the part that is the window itself."""
    for group, own, cell, begin in cells:
        group.sent[own, OUTCOMES] = (version, 1)
        o, predictions = cell.outcomes, int(cell.counts[0])
        complete = group.closed and predictions > 0 and o is not None and o.labelled == predictions
        settled_ms = group.settles_ms if group.final else 0
        final_ms = max(group.closes_ms, o.last_label_ms) if complete and o is not None else settled_ms
        said = _UNLABELLED if o is None else labels_said(o)
        key, last = (*begin, 0), int(complete or group.final)
        row = (*key, predictions, *said, final_ms, settled_ms, group.span_ms, last, version)
        yield _upsert(("window_outcomes", key, row, version, Mark(group, own, OUTCOMES)))


def features_rows(cells: Sequence[Told], version: int) -> Iterator[Upsert]:
    """Rows of ``window_features``: of each cell, which has a layout, one a feature."""
    if not cells:
        return
    layouts = [told.cell.layout for told in cells if told.cell.layout is not None]
    flat = np.concatenate([told.cell.sums for told in cells])
    begins = itertools.accumulate((layout.size for layout in layouts), initial=0)
    at = np.concatenate([layout.starts[:-1] + begin for layout, begin in zip(layouts, begins, strict=False)])
    reals = flat.view(np.float64)
    columns = (
        at,
        flat[at + ROWS],
        flat[at + MISSING],
        flat[at + INVALID],
        reals[at + LEAST],
        reals[at + MOST],
    )
    sums = zip(
        *(column.tolist() for column in columns), _sums(flat[at + UPPER], flat[at + LOWER]), strict=True
    )
    values = flat.tolist()
    for (group, own, _, begin), layout in zip(cells, layouts, strict=True):
        group.sent[own, FEATURES] = (version, (1 << len(layout.parts)) - 1)
        last, mark = (group.span_ms, version), Mark(group, own, FEATURES)
        for place, part in enumerate(layout.parts):
            first, rows, missing, invalid, low, high, total = next(sums)
            key = (*begin, part.name)
            cut = values[first + HEAD : first + part.size]
            if part.categories:
                known = categories_of(part, cut)
                row = (*key, rows, missing, invalid, total, low, high, [], [0], known, *last)
            else:
                row = (
                    *key,
                    rows,
                    missing,
                    invalid,
                    total,
                    low,
                    high,
                    layout.edges[place],
                    cut,
                    _NO_CATEGORIES,
                    *last,
                )
            yield _upsert(("window_features", key, row, version, mark))


def _sums(upper: Ints, lower: Ints) -> list[int]:
    """Sums of two halves, cut to what 64 bits hold."""
    if not len(upper):
        return []
    most = 2**29
    if int(upper.max()) < most and int(upper.min()) > -most and int(lower.max()) < most << tally.HALF:
        whole: list[int] = ((upper << tally.HALF) + lower).tolist()
        return whole
    pairs = zip(upper.tolist(), lower.tolist(), strict=True)
    return [max(-_INT64_MAX, min((u << tally.HALF) + low, _INT64_MAX)) for u, low in pairs]


def labels_said(o: Outcomes) -> Row:
    """What a row of ``window_outcomes`` says of labels, between its number of predictions and ``final_ms``."""
    return (
        o.labelled, o.revisions, o.true_positive, o.false_positive, o.true_negative, o.false_negative,
        o.log_loss_nano, o.brier_nano, listed(o.positive_scores), listed(o.negative_scores),
        listed(o.calibration_counts), listed(o.calibration_score_nano), listed(o.calibration_positives),
        o.positive_log_loss_nano, o.positive_brier_nano, dict(sorted(o.positive_delays.items())),
        dict(sorted(o.negative_delays.items())), o.first_label_ms, o.last_label_ms,
    )  # fmt: skip


#: What all rows without labels and of numbers have; not to be written to.
_UNLABELLED = labels_said(Outcomes())
_NO_CATEGORIES: dict[str, int] = {}
