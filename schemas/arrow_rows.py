"""Rows of the prediction log, made of the columns that the monitor has just read from Arrow batches: what ``schemas.scan_rows`` is
for JSON. They are the rows that ``schemas.arrow_log`` would make of the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.columns import PredictionColumns
from schemas.compiled import compiled
from schemas.events import STATUSES
from schemas.ids import ROLES
from schemas.messages import TIME_MAX_MS, TIME_MIN_MS
from schemas.native import (
    Buffers,
    coded,
    coded_maps,
    keys_coded,
    maps,
    native_block,
    nullable,
    numbers,
    same_coded,
    same_text,
    texts,
)
from schemas.rows import TABLES
from schemas.scan_rows import LogRows
from schemas.spans import Spans

#: Distinct texts, and of each row the place of its own among them.
Coded = tuple[list[str], NDArray[np.int64]]
#: Texts that nobody but the log asks for.
UNREAD = ("entity", "trace_id", "region")
_ROWS_AT_ONCE = 256
#: Columns that are plain texts in the table, and leave in another way.
_SENT_AS = dict.fromkeys(("model_version", "role", "status"), "LowCardinality(String)") | {
    "categories": "Map(LowCardinality(String), LowCardinality(String))"
}
_COLUMNS = [(name, _SENT_AS.get(name, keys_coded(kind))) for name, kind in TABLES["prediction_log"].columns]


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
        same_coded(columns.contract.model, n),
        coded(columns.versions, columns.version),
        coded(ROLES, columns.role),
        texts(columns.keys),
        numbers(times_ms, "Int64"),
        maps([features[at].name for at in known], values, None),
        coded_maps([features[at].name for at in told], *_side_by_side_codes(list(told.values()), n)),
        nullable(score, None if scored else np.zeros(n, np.bool_)),
        numbers(latency_ms, "Float64"),
        coded(STATUSES, columns.status),
        *(texts(unread[name]) if name in unread else same_text("", n) for name in UNREAD),
        numbers(np.full(n, log.partition), "UInt16"),
        numbers(log.offsets[columns.message], "Int64"),
        numbers(columns.row, "UInt32"),
    ]
    log.blocks.append(
        native_block(n, [(name, kind, held) for (name, kind), held in zip(_COLUMNS, made, strict=True)])
    )
    log.written[messages] = True


def _side_by_side_codes(told: Sequence[Coded], rows: int) -> Coded:
    """The texts of all features, and of each row its places among them ``(n, k)``."""
    every: list[str] = []
    places = np.empty((rows, len(told)), np.int64)
    for at, (values, codes) in enumerate(told):
        np.add(codes, len(every), out=places[:, at])
        every += values
    return every, places


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
