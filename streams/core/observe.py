"""From joined rows to observation blocks: what detectors will read, gathered by model until the transaction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.blocks import DTYPES, ObservationBlock
from schemas.codecs import coded
from schemas.contracts import ModelContract
from schemas.events import HEADER_ORIGIN
from schemas.hashing import KeyHashes
from schemas.ids import RowId
from schemas.rows import NANO
from streams.core.members import Segments
from streams.core.ordering import merged
from streams.core.outcomes import OutcomeRows
from streams.core.records import Record, RecordBatch
from streams.core.together import Together

#: A block stays well under what a broker takes in one message.
BLOCK_BYTES_MAX = 700_000
#: What a row of a large block takes, beside its features and segments; no row takes twice that.
_PREDICTION_BYTES, _OUTCOME_BYTES = 32, 60
_NO_FEATURES = np.empty((0, 0))


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where rows were first read; arrays of shape (n,)."""

    partition: NDArray[np.int64]
    offset: NDArray[np.int64]
    row: NDArray[np.int64]
    identity: NDArray[np.uint64]
    check: NDArray[np.uint32]

    def take(self, keep: NDArray[np.int64]) -> Addresses:
        """The rows at positions ``keep``."""
        cut = (getattr(self, f.name)[keep] for f in fields(self))
        return Addresses(*cut)


def prediction_blocks(
    rows: Together, addresses: Addresses, told: NDArray[np.int32], segments: Sequence[Segments]
) -> Iterator[ObservationBlock]:
    """Predictions as one block a model, in their order. ``told (n, s)``: codes of their segments' categories.

    Where no detector is configured a block carries no features: the label index, which reads it too, has no use for them.
    """
    nothing: dict[str, Any] = {name: np.empty(0, DTYPES[name]) for name in _LABEL_COLUMNS}
    partition, row = addresses.partition.astype(np.int32), addresses.row.astype(np.int32)
    version, first = rows.version.astype(np.int32), 0
    for at, ((begin, end), part) in enumerate(zip(itertools.pairwise(rows.bounds), rows.parts, strict=True)):
        own, contract = slice(begin, end), part.contract
        if begin < end:
            yield ObservationBlock(
                kind="predictions",
                model=contract.model,
                versions=part.versions,
                contract_hash=segments[at].contract_hash,
                partition=partition[own],
                offset=addresses.offset[own],
                row=row[own],
                identity=addresses.identity[own],
                event_time_ms=rows.event_time_ms[own],
                version=version[own] - np.int32(first),
                role=rows.role[own],
                score=rows.score[own],
                latency_ms=rows.latency_ms[own],
                status=rows.status[own],
                features=rows.features(at, begin, end) if contract.monitoring.detectors else _NO_FEATURES,
                segments=told[own, : len(segments[at].labels)],
                check=addresses.check[own],
                **nothing,
            )
        first += len(part.versions)


def outcome_block(
    contract: ModelContract, outcomes: OutcomeRows, losses_nano: NDArray[np.int64], segments: Segments
) -> ObservationBlock:
    """Outcomes of one model as one block; a replaced one is taken back in the row before the one that replaces it."""
    versions, version = coded([kind.version for kind in outcomes.kinds])
    roles = np.array([kind.role for kind in outcomes.kinds], np.int8)
    return ObservationBlock(
        kind="outcomes",
        model=contract.model,
        versions=versions,
        contract_hash=segments.contract_hash,
        partition=outcomes.partition,
        offset=outcomes.offset,
        row=outcomes.row,
        identity=outcomes.identity,
        event_time_ms=outcomes.event_time_ms,
        version=version[outcomes.kind],
        role=roles[outcomes.kind],
        score=outcomes.score,
        # A latency belongs to the prediction, and was told with it.
        latency_ms=np.zeros(len(outcomes)),
        status=outcomes.status,
        features=np.empty((0, 0)),
        label=outcomes.label,
        label_time_ms=outcomes.label_time_ms,
        loss=losses_nano / NANO,
        sign=outcomes.sign.astype(np.int8),
        segments=segments.categories_of([kind.segments for kind in outcomes.kinds])[outcomes.kind],
        revision=outcomes.revision.astype(np.int32),
    )


_LABEL_COLUMNS = ("label", "label_time_ms", "loss", "sign", "revision")


def cut(blocks: Sequence[ObservationBlock]) -> Iterator[ObservationBlock]:
    """Blocks of one model, kind and contract as few blocks of at most ``BLOCK_BYTES_MAX``, rows in their order. Small ones are
    put together; large ones are not copied for that."""
    first = blocks[0]
    width = max(of.features.shape[1] if of.features.ndim == 2 else 0 for of in blocks)
    own = _PREDICTION_BYTES if first.kind == "predictions" else _OUTCOME_BYTES
    most = max(1, BLOCK_BYTES_MAX // (8 * width + 4 * first.segments.shape[1] + own))
    small: list[ObservationBlock] = []
    for block in blocks:
        if small and sum(map(len, small)) + len(block) > most:
            yield merged(small)
            small = []
        if len(block) <= most:
            small.append(block)
            continue
        for start in range(0, len(block), most):
            yield block.take(slice(start, start + most))
    if small:
        yield merged(small)


def addresses_of(records: RecordBatch, columns: Together, hashes: KeyHashes) -> Addresses:
    """Where each row was first read."""
    message, row = columns.message, columns.row.astype(np.int64)
    partition = np.full(len(message), records.partition, np.int64)
    offset = records.offsets[message]
    sent_on = [at for at, held in records.headers.items() if HEADER_ORIGIN in held]
    for at in np.flatnonzero(np.isin(message, sent_on)).tolist() if sent_on else ():
        _, partition[at], offset[at], row[at] = address(records[int(message[at])], int(row[at]))
    return Addresses(partition, offset, row, hashes.identity, hashes.check)


def address(record: Record, row: int) -> RowId:
    """Where a row was first read: its origin if it was sent on."""
    origin = record.headers.get(HEADER_ORIGIN)
    if origin is not None:
        try:
            return RowId.parse(origin.decode())
        except (ValueError, UnicodeDecodeError):
            pass
    return RowId(record.topic, record.partition, record.offset, row)
