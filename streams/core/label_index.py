"""What the label index is made of: records of `observations` as rows, and rows that were found as answers.

The index is a copy that can be made twice: a prediction's row is known by the address at which it was first read, a label's by
that and its revision. Each tick of a join task on a partition of `observations` stands behind all blocks the task had written
there before, so its position (``streams.core.asks``) says how far the copy has come for that task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.blocks import ObservationBlock, decode_block
from schemas.errors import BadMessage
from schemas.events import HEADER_KIND, KIND_TICK, Tick
from schemas.row_binary import RowBlock, length_bytes, pack_rows, text_bytes
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


def index_copy(record: Record, copied_ms: int) -> Iterator[tuple[str, list[Row] | RowBlock]]:
    """(table, rows) of one record of `observations`. ``copied_ms``: the clock's time. Raises BadMessage."""
    if record.headers.get(HEADER_KIND) == KIND_TICK:
        try:
            tick = Tick.model_validate_json(record.value or b"")
        except ValueError as error:
            raise BadMessage("not-json", f"a tick that cannot be read: {error}") from error
        position = tick.event_time_ms + (tick.feedback_time_ms or 0)
        yield PROGRESS, [(record.partition, tick.source, position)]
        return
    block = decode_block(record.value or b"")
    if block.kind == "predictions":
        for version, name in enumerate(block.versions):
            yield (
                PREDICTIONS,
                _prediction_rows(block, np.flatnonzero(block.version == version), name, copied_ms),
            )
    else:
        # What a revision took back is known by its own row.
        yield LABELS, _label_rows(block, np.flatnonzero(block.sign > 0), copied_ms)


def _address(block: ObservationBlock, at: NDArray[np.int64]) -> list[NDArray[Any] | bytes]:
    """Identity, model and source."""
    return [
        block.identity[at], text_bytes(block.model), block.partition[at].astype("<u2"), block.offset[at],
        block.row[at].astype("<u4"),
    ]  # fmt: skip


def _prediction_rows(
    block: ObservationBlock, at: NDArray[np.int64], version: str, copied_ms: int
) -> RowBlock:
    segments = block.segments[at] if len(block.segments) else np.empty((len(at), 0), "<i4")
    return pack_rows(len(at), [
        *_address(block, at), block.check[at], text_bytes(version), block.role[at], block.event_time_ms[at], block.score[at],
        block.status[at], length_bytes(segments.shape[1]), segments, text_bytes(block.contract_hash),
        np.full(len(at), copied_ms, "<i8"),
    ])  # fmt: skip


def _label_rows(block: ObservationBlock, at: NDArray[np.int64], copied_ms: int) -> RowBlock:
    return pack_rows(len(at), [
        *_address(block, at), block.revision[at], block.label[at], block.label_time_ms[at],
        np.full(len(at), copied_ms, "<i8"),
    ])  # fmt: skip


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
