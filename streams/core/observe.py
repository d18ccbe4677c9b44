"""From joined rows to observation blocks: what detectors will read, gathered by model until the transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.blocks import DTYPES, ObservationBlock
from schemas.codecs import PredictionColumns
from schemas.contracts import ModelContract
from schemas.events import HEADER_ORIGIN
from schemas.ids import RowId
from schemas.rows import NANO
from streams.core.counting import OutcomeArrays, Segments
from streams.core.join import Settled
from streams.core.records import Record

#: A block stays well under what a broker takes in one message.
BLOCK_BYTES_MAX = 700_000


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where rows were first read; arrays of shape (n,)."""

    partition: NDArray[np.int64]
    offset: NDArray[np.int64]
    row: NDArray[np.int64]
    identity: NDArray[np.uint64]

    def take(self, keep: NDArray[np.int64]) -> Addresses:
        """The rows at positions ``keep``."""
        return Addresses(self.partition[keep], self.offset[keep], self.row[keep], self.identity[keep])


def prediction_block(
    columns: PredictionColumns, addresses: Addresses, segments: NDArray[np.int32]
) -> ObservationBlock:
    """Predictions as one block, in their order. ``segments (n, s)``: codes of their categories."""
    versions, version = _coded(columns.versions)
    nothing: dict[str, Any] = {name: np.empty(0, DTYPES[name]) for name in _LABEL_COLUMNS}
    return ObservationBlock(
        kind="predictions",
        model=columns.contract.model,
        versions=versions,
        contract_hash=columns.contract.hash,
        partition=addresses.partition.astype(np.int32),
        offset=addresses.offset,
        row=addresses.row.astype(np.int32),
        identity=addresses.identity,
        event_time_ms=columns.event_time_ms,
        version=version,
        role=columns.role,
        score=columns.score,
        latency_ms=columns.latency_ms,
        status=columns.status,
        features=columns.features,
        segments=segments,
        **nothing,
    )


def outcome_block(
    contract: ModelContract, outcomes: Sequence[Settled], arrays: OutcomeArrays, segments: Segments
) -> ObservationBlock:
    """Outcomes of one model as one block; a replaced one is taken back in the row before the one that replaces it."""
    entries = [outcome.entry for outcome in outcomes]
    versions, version = _coded([e.version for e in entries])
    at = arrays.source

    def column(values: list[Any], dtype: Any) -> NDArray[Any]:
        return np.array(values, dtype)[at]

    return ObservationBlock(
        kind="outcomes",
        model=contract.model,
        versions=versions,
        contract_hash=contract.hash,
        partition=column([e.partition for e in entries], np.int32),
        offset=column([e.offset for e in entries], np.int64),
        row=column([e.row for e in entries], np.int32),
        identity=column([e.identity for e in entries], np.uint64),
        event_time_ms=column([e.event_time_ms for e in entries], np.int64),
        version=version[at],
        role=column([e.role for e in entries], np.int8),
        score=arrays.score,
        latency_ms=column([e.latency_ms for e in entries], np.float64),
        status=column([e.status for e in entries], np.int8),
        features=np.empty((0, 0)),
        label=arrays.label,
        label_time_ms=arrays.label_time_ms,
        loss=arrays.log_loss_nano / NANO,
        sign=arrays.sign.astype(np.int8),
        segments=segments.categories_of([e.segments for e in entries])[at],
    )


_LABEL_COLUMNS = ("label", "label_time_ms", "loss", "sign")


def _coded(versions: list[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    known = sorted(set(versions))
    index = {version: at for at, version in enumerate(known)}
    return tuple(known), np.array([index[version] for version in versions], np.int32)


def cut(blocks: Sequence[ObservationBlock]) -> Iterator[ObservationBlock]:
    """Blocks of one model, kind and contract as few blocks of at most ``BLOCK_BYTES_MAX``, rows in their order."""
    whole = blocks[0] if len(blocks) == 1 else _joined(blocks)
    width = whole.features.shape[1] if whole.features.ndim == 2 else 0
    most = max(1, BLOCK_BYTES_MAX // (8 * width + 4 * whole.segments.shape[1] + 96))
    for start in range(0, len(whole), most):
        yield whole if len(whole) <= most else whole.take(np.arange(start, min(start + most, len(whole))))


def _joined(blocks: Sequence[ObservationBlock]) -> ObservationBlock:
    versions = tuple(sorted({v for block in blocks for v in block.versions}))
    index = {version: at for at, version in enumerate(versions)}
    columns: dict[str, Any] = {name: np.concatenate([getattr(b, name) for b in blocks]) for name in DTYPES}
    columns["version"] = np.concatenate(
        [np.array([index[v] for v in block.versions], np.int32)[block.version] for block in blocks]
    )
    first = blocks[0]
    return ObservationBlock(first.kind, first.model, versions, first.contract_hash, **columns)


def addresses_of(
    records: list[Record], columns: PredictionColumns, identity: NDArray[np.uint64]
) -> Addresses:
    """Where each row was first read."""
    message, row = columns.message, columns.row.astype(np.int64)
    partition = np.array([record.partition for record in records], np.int64)[message]
    offset = np.array([record.offset for record in records], np.int64)[message]
    sent_on = np.array([HEADER_ORIGIN in record.headers for record in records], bool)[message]
    for at in np.flatnonzero(sent_on).tolist():
        _, partition[at], offset[at], row[at] = address(records[int(message[at])], int(row[at]))
    return Addresses(partition, offset, row, identity)


def address(record: Record, row: int) -> RowId:
    """Where a row was first read: its origin if it was sent on."""
    origin = record.headers.get(HEADER_ORIGIN)
    if origin is not None:
        try:
            return RowId.parse(origin.decode())
        except (ValueError, UnicodeDecodeError):
            pass
    return RowId(record.topic, record.partition, record.offset, row)
