"""Rows of the prediction log, made of the columns that the monitor has just read from Arrow batches: what ``schemas.scan_rows`` is
for JSON. They are the rows that ``schemas.arrow_log`` would make of the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.columns import PredictionColumns
from schemas.compiled import compiled
from schemas.events import STATUSES
from schemas.ids import ROLES
from schemas.messages import TIME_MAX_MS, TIME_MIN_MS
from schemas.native import Buffers, coded, maps, native_block, nullable, numbers, same_text, texts
from schemas.rows import TABLES
from schemas.scan_rows import LogRows
from schemas.spans import Spans

#: Distinct texts, and of each row the place of its own among them.
Coded = tuple[list[str], NDArray[np.int64]]
#: Texts that nobody but the log asks for.
UNREAD = ("entity", "trace_id", "region")
_ROWS_AT_ONCE = 256


def write_rows(
    log: LogRows,
    messages: list[int],
    columns: PredictionColumns,
    told: Mapping[int, Coded],
    unread: Mapping[str, Spans],
    scored: bool,
) -> None:
    """Add the rows of whole ``messages`` to ``log``, unless one has not its own address, or a time that no column can hold.

    ``columns``: of all their rows, with nothing missing. ``told``: of each feature that is a text, by its place. ``unread``: texts
    that are no columns, those that there are. ``scored``: whether there is a score.
    """
    times_ms, n = columns.event_time_ms, len(columns)
    if not log.own[messages].all() or times_ms.min() < TIME_MIN_MS or times_ms.max() > TIME_MAX_MS:
        return
    features = columns.contract.features
    known = [at for at, feature in enumerate(features) if feature.kind != "categorical"]
    values = np.empty((n, len(known)), np.float64)
    _side_by_side(columns.features.T, np.array(known, np.int64), values)
    # Copied: they are parts of something larger, which would stay with them.
    score, latency_ms = columns.score.copy() if scored else np.zeros(n), columns.latency_ms.copy()
    made: list[Buffers] = [
        coded([columns.contract.model], np.zeros(n, np.int64)),
        _same_or_texts(columns.versions, columns.version),
        _same_or_texts(ROLES, columns.role),
        texts(columns.keys),
        numbers(times_ms, "Int64"),
        maps([features[at].name for at in known], values, None),
        maps([features[at].name for at in told], _side_by_side_texts(list(told.values()), n), None),
        nullable(score, None if scored else np.zeros(n, np.bool_)),
        numbers(latency_ms, "Float64"),
        _same_or_texts(STATUSES, columns.status),
        *(texts(unread[name]) if name in unread else same_text("", n) for name in UNREAD),
        numbers(np.full(n, log.partition), "UInt16"),
        numbers(log.offsets[columns.message], "Int64"),
        numbers(columns.row, "UInt32"),
    ]
    names = TABLES["prediction_log"].columns
    log.blocks.append(
        native_block(n, [(name, kind, held) for (name, kind), held in zip(names, made, strict=True)])
    )
    log.written[messages] = True


def _same_or_texts(values: Sequence[str], codes: NDArray[Any]) -> Buffers:
    first = int(codes[0])
    if len(values) == 1 or bool((codes == first).all()):
        return same_text(values[first], len(codes))
    return texts(Spans.of([value.encode() for value in values]).take(codes.astype(np.int64)))


def _side_by_side_texts(told: Sequence[Coded], rows: int) -> Spans | NDArray[np.float64]:
    """Of each row the texts of all features, one behind the other."""
    if not told:
        return np.empty((rows, 0))
    every = Spans.of([value.encode() for values, _ in told for value in values])
    places = np.empty((rows, len(told)), np.int64)
    before = 0
    for at, (values, codes) in enumerate(told):
        np.add(codes, before, out=places[:, at])
        before += len(values)
    return every.take(places.reshape(-1))


@compiled
def _side_by_side(columns: NDArray[np.float64], known: NDArray[np.int64], into: NDArray[np.float64]) -> None:
    """``into (n, k)``: the ``known (k,)`` of ``columns (m, n)``, some rows at a time, so that they are written where they still are
    at hand."""
    rows = columns.shape[1]
    for begin in range(0, rows, _ROWS_AT_ONCE):
        end = min(begin + _ROWS_AT_ONCE, rows)
        for at in range(len(known)):
            place = known[at]
            for row in range(begin, end):
                into[row, at] = columns[place, row]
