"""Rows of the warehouse's tables of windows, from cells: all that changed in a transaction at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
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
_NO_OUTCOMES = Outcomes()
Row = tuple[Any, ...]


class Mark(NamedTuple):
    """What a row is of: ``table`` of a cell, of whose rows there it is ``bit``."""

    group: Group
    cell: CellKey
    table: int
    bit: int


class Told(NamedTuple):
    """A cell of which the warehouse is to be told; ``key``: see :func:`row_key`."""

    group: Group
    own: CellKey
    cell: Cell
    key: Row


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
        yield Upsert("window_counts", key, row, version, Mark(group, own, COUNTS, 1))


def outcomes_rows(cells: Sequence[Told], version: int) -> Iterator[Upsert]:
    """Rows of ``window_outcomes``: the part that is the window itself."""
    for group, own, cell, begin in cells:
        group.sent[own, OUTCOMES] = (version, 1)
        o, predictions = cell.outcomes or _NO_OUTCOMES, int(cell.counts[0])
        complete = group.closed and predictions > 0 and o.labelled == predictions
        settled_ms = group.settles_ms if group.final else 0
        final_ms = max(group.closes_ms, o.last_label_ms) if complete else settled_ms
        key = (*begin, 0)
        row = outcome_row(o, predictions, final_ms, settled_ms, group.span_ms, complete or group.final)
        yield Upsert("window_outcomes", key, (*key, *row, version), version, Mark(group, own, OUTCOMES, 1))


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
        last = (group.span_ms, version)
        for place, part in enumerate(layout.parts):
            first, rows, missing, invalid, low, high, total = next(sums)
            key = (*begin, part.name)
            cut = values[first + HEAD : first + part.size]
            if part.categories:
                known = categories_of(part, cut)
                row = (*key, rows, missing, invalid, total, low, high, [], [0], known, *last)
            else:
                row = (*key, rows, missing, invalid, total, low, high, layout.edges[place], cut, {}, *last)
            yield Upsert("window_features", key, row, version, Mark(group, own, FEATURES, 1 << place))


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


def outcome_row(
    o: Outcomes, predictions: int, final_ms: int, settled_ms: int, span_ms: int, final: bool
) -> Row:
    """A row of ``window_outcomes`` behind its key and before its version."""
    return (
        predictions, o.labelled, o.revisions, o.true_positive, o.false_positive, o.true_negative,
        o.false_negative, o.log_loss_nano, o.brier_nano, listed(o.positive_scores),
        listed(o.negative_scores), listed(o.calibration_counts), listed(o.calibration_score_nano),
        listed(o.calibration_positives), o.positive_log_loss_nano, o.positive_brier_nano,
        dict(sorted(o.positive_delays.items())), dict(sorted(o.negative_delays.items())), o.first_label_ms,
        o.last_label_ms, final_ms, settled_ms, span_ms, int(final),
    )  # fmt: skip
