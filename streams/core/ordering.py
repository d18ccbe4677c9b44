"""Rows of observation blocks in the one order in which detectors read them, whatever order they came in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import STREAM_COLUMNS, Rows, Spec
from schemas.blocks import ObservationBlock
from schemas.contracts import DetectorConfig, ModelContract
from schemas.errors import ConfigurationError
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


def columns_read(
    contract: ModelContract, config: DetectorConfig, spec: Spec
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Names, numbers of categories (0: numeric) and places of the columns a detector reads of its stream.

    Raises ConfigurationError when none is left: no feature has the name, or only categorical ones for a detector that
    reads numbers.
    """
    columns = [(name, 0) for name in STREAM_COLUMNS.get(config.stream, ())]
    if config.stream == "features":
        columns = [(f.name, 0 if f.kind == "numeric" else len(f.categories) + 1) for f in contract.features]
    numeric_only = config.stream == "features" and bool(getattr(spec, "numeric_only", False))
    chosen = [
        (name, categories, place)
        for place, (name, categories) in enumerate(columns)
        if (name in config.columns or "*" in config.columns) and not (numeric_only and categories)
    ]
    if not chosen:
        raise ConfigurationError(
            f"detector {config.name}: no column of stream {config.stream} is left to read"
        )
    names, codes, places = zip(*chosen, strict=True)
    return names, codes, places


def detector_rows(block: ObservationBlock, values: NDArray[np.float64], group: NDArray[np.int8]) -> Rows:
    """What a detector gets: ``values`` with times, identities, groups and signs."""
    sign = block.sign if len(block.sign) else np.ones(len(block), np.int8)
    return Rows(values, block.order_ms, block.identity, group, sign)


def row_address(block: ObservationBlock, at: int) -> str:
    """Where row ``at`` was first read."""
    return str(RowId("predictions", int(block.partition[at]), int(block.offset[at]), int(block.row[at])))
