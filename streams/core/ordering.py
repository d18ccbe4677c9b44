"""Rows of observation blocks in the one order in which detectors read them, whatever order they came in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import Rows
from schemas.blocks import ObservationBlock
from schemas.ids import RowId


def in_order(block: ObservationBlock) -> ObservationBlock:
    """Rows by (time, identity, version, role, sign): the same order in every run."""
    sign = block.sign if len(block.sign) else np.zeros(len(block), np.int8)
    versions = np.array(block.versions, dtype="U")[block.version]
    return block.take(np.lexsort((sign, block.role, versions, block.identity, block.order_ms)))


def merged(blocks: list[ObservationBlock]) -> ObservationBlock:
    """Blocks of one model and kind as one, their versions under one numbering."""
    if len(blocks) == 1:
        return blocks[0]
    versions = tuple(sorted({version for block in blocks for version in block.versions}))
    index = {version: at for at, version in enumerate(versions)}
    first = blocks[0]
    columns: dict[str, Any] = {}
    for name in ("partition", "offset", "row", "identity", "event_time_ms", "role", "score", "latency_ms", "status",
                 "features", "label", "label_time_ms", "loss", "sign"):  # fmt: skip
        columns[name] = np.concatenate([getattr(block, name) for block in blocks])
    codes = [np.array([index[v] for v in block.versions], np.int32)[block.version] for block in blocks]
    return ObservationBlock(
        first.kind, first.model, versions, first.contract_hash, version=np.concatenate(codes), **columns
    )


def column_values(stream: str, block: ObservationBlock) -> NDArray[np.float64]:
    """The columns of ``detectors.base.STREAM_COLUMNS`` for ``stream``, shape (n, k)."""
    if stream == "features":
        return block.features
    if stream == "score":
        return block.score[:, None]
    columns = [block.score, block.label] if stream == "comparison" else [block.score, block.label, block.loss]
    return np.column_stack(columns)


def detector_rows(block: ObservationBlock, values: NDArray[np.float64], group: NDArray[np.int8]) -> Rows:
    """What a detector gets: ``values`` with times, identities, groups and signs."""
    sign = block.sign if len(block.sign) else np.ones(len(block), np.int8)
    return Rows(values, block.order_ms, block.identity, group, sign)


def row_address(block: ObservationBlock, at: int) -> str:
    """Where row ``at`` was first read."""
    return str(RowId("predictions", int(block.partition[at]), int(block.offset[at]), int(block.row[at])))
