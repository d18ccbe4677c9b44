"""What the label index is made of: records of `observations` as rows, and rows that were found as answers.

The index is a copy that can be made twice: a prediction's row is known by the address at which it was first read, a label's by
that and its revision. Each tick of a join task on a partition of `observations` stands behind all blocks the task had written
there before, so its position (``streams.core.asks``) says how far the copy has come for that task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from schemas.blocks import ObservationBlock, decode_block
from schemas.events import HEADER_KIND, KIND_TICK, Tick
from schemas.rows import TABLES
from streams.core.cold import Answer, Found
from streams.core.records import Record

PREDICTIONS, LABELS, PROGRESS = "label_index", "label_states", "label_index_progress"
#: The tables in the order in which rows are to be written: what is said to be there is there.
IN_ORDER = (PREDICTIONS, LABELS, PROGRESS)
#: The columns a look-up reads, of predictions and of labels.
FOUND_COLUMNS = tuple(name for name in TABLES[PREDICTIONS].names if name not in ("model", "copied_time"))
TOLD_COLUMNS = tuple(name for name in TABLES[LABELS].names if name not in ("model", "copied_time"))
Row = tuple[Any, ...]


def index_rows(record: Record, copied_ms: int) -> tuple[str, list[Row]]:
    """(table, rows) of one record of `observations`. ``copied_ms``: the clock's time. Raises BadMessage."""
    if record.headers.get(HEADER_KIND) == KIND_TICK:
        tick = Tick.model_validate_json(record.value or b"")
        position = tick.event_time_ms + (tick.feedback_time_ms or 0)
        return PROGRESS, [(record.partition, tick.source, position)]
    block = decode_block(record.value or b"")
    if block.kind == "predictions":
        return PREDICTIONS, _prediction_rows(block, copied_ms)
    return LABELS, _label_rows(block, copied_ms)


def _prediction_rows(block: ObservationBlock, copied_ms: int) -> list[Row]:
    columns = [
        getattr(block, name).tolist()
        for name in (
            "identity",
            "partition",
            "offset",
            "row",
            "check",
            "version",
            "role",
            "event_time_ms",
            "score",
            "status",
        )
    ]
    segments = block.segments.tolist() if len(block.segments) else [[]] * len(block)
    model, versions, coded_as = block.model, block.versions, block.contract_hash
    return [
        (identity, model, partition, offset, row, check, versions[version], role, time_ms, score, status, of, coded_as,
         copied_ms)
        for identity, partition, offset, row, check, version, role, time_ms, score, status, of in zip(
            *columns, segments, strict=True
        )
    ]  # fmt: skip


def _label_rows(block: ObservationBlock, copied_ms: int) -> list[Row]:
    """Those that were joined; what a revision took back is known by its own row."""
    at = np.flatnonzero(block.sign > 0)
    names = ("identity", "partition", "offset", "row", "revision", "label", "label_time_ms")
    columns = [getattr(block, name)[at].tolist() for name in names]
    return [(row[0], block.model, *row[1:], copied_ms) for row in zip(*columns, strict=True)]


def answer(
    model: str,
    position: int,
    asked: Sequence[tuple[int, int]],
    predictions: Iterable[Row],
    labels: Iterable[Row],
) -> Answer:
    """What rows of ``FOUND_COLUMNS`` and ``TOLD_COLUMNS`` with the asked identities say, in an order that is theirs alone; rows
    may come twice. ``position``: how far the index had come before they were read."""
    told: dict[Row, dict[int, tuple[int, float, int]]] = {}
    for row in labels:
        revision, label, time_ms = row[4:]
        told.setdefault(row[:4], {})[revision] = (revision, label, time_ms)
    wanted = set(asked)
    found: dict[Row, Found] = {}
    for row in predictions:
        identity, partition, offset, place, check, version, role, time_ms, score, status, of, coded_as = row
        address = (identity, partition, offset, place)
        if (identity, check) in wanted:
            history = [one for _, one in sorted(told.get(address, {}).items())]
            found[address] = Found(
                identity, check, version, role, time_ms, score, status, partition, offset, place, coded_as, tuple(of),
                history,
            )  # fmt: skip
    order = sorted(found, key=lambda address: (address[0], address[1:]))
    return Answer(model, position, list(asked), [found[address] for address in order])
