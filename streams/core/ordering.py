"""Rows of observation blocks in the one order in which detectors read them, whatever order they came in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import STREAM_COLUMNS, Rows, Spec
from schemas.blocks import SEGMENT_NULL, ObservationBlock
from schemas.codecs import STATUSES
from schemas.contracts import DetectorConfig, Feature, ModelContract
from schemas.errors import ConfigurationError
from schemas.ids import RowId

_OK = STATUSES.index("ok")


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
                 "features", "label", "label_time_ms", "loss", "sign", "segments"):  # fmt: skip
        columns[name] = np.concatenate([getattr(block, name) for block in blocks])
    codes = [np.array([index[v] for v in block.versions], np.int32)[block.version] for block in blocks]
    return ObservationBlock(
        first.kind, first.model, versions, first.contract_hash, version=np.concatenate(codes), **columns
    )


def column_values(stream: str, block: ObservationBlock) -> NDArray[np.float64]:
    """The columns of ``stream`` as ``detectors.base`` lists them, shape (n, k).

    On ``predictions`` a row that failed, or that a heuristic answered, has error 1 and no score: what stands there is
    not the version's. On ``loss`` a segment that is null or not known is NaN.
    """
    match stream:
        case "features":
            return block.features
        case "score":
            return block.score[:, None]
        case "predictions":
            failed = block.status != _OK
            score = np.where(failed, np.nan, block.score)
            return np.column_stack([score, block.latency_ms, failed, block.features])
        case "comparison":
            return np.column_stack([block.score, block.label])
        case _:
            segments = np.where(block.segments == SEGMENT_NULL, np.nan, block.segments)
            return np.column_stack([block.score, block.label, block.loss, segments])


def stream_columns(contract: ModelContract, stream: str) -> list[tuple[str, Feature | None]]:
    """Names of a stream's columns in order, and the contract's feature where a column is one."""
    columns: list[tuple[str, Feature | None]] = [(name, None) for name in STREAM_COLUMNS.get(stream, ())]
    if stream in ("features", "predictions"):
        columns += [(feature.name, feature) for feature in contract.features]
    elif stream == "loss":
        of = {feature.name: feature for feature in contract.features}
        columns += [(name, of[name]) for name in contract.monitoring.segments]
    return columns


def coding(contract: ModelContract) -> tuple[tuple[Feature, ...], tuple[tuple[Feature, int], ...]]:
    """How a block's features and segments are coded: the features; those of segments, with how many values they show."""
    of, most = {feature.name: feature for feature in contract.features}, contract.monitoring.segments_max
    return contract.features, tuple((of[name], most) for name in contract.monitoring.segments)


def readable(
    block: ObservationBlock, coded_as: ModelContract, contract: ModelContract
) -> ObservationBlock | None:
    """The block as ``contract`` codes it, with as many segments a row as it has; None for features coded otherwise.

    An outcome has no features; where only its segments are coded otherwise, or it has none, they are not known.
    """
    features, segments = coding(contract)
    before, segments_before = coding(coded_as)
    if block.kind == "predictions" and (before != features or block.features.shape[1] != len(features)):
        return None
    shape = (len(block), len(segments))
    if segments_before != segments or block.segments.shape != shape:
        block = replace(block, segments=np.full(shape, SEGMENT_NULL, np.int32))
    return block


def columns_read(
    contract: ModelContract, config: DetectorConfig, spec: Spec
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Names, numbers of categories (0: numeric) and places of the columns a detector reads of its stream.

    Raises ConfigurationError when none is left: no feature has the name, or only categorical ones for a detector that
    reads numbers.
    """
    columns = [
        (name, 0 if feature is None or feature.kind == "numeric" else len(feature.categories) + 1)
        for name, feature in stream_columns(contract, config.stream)
    ]
    chosen = [
        (name, categories, place)
        for place, (name, categories) in enumerate(columns)
        if (name in config.columns or "*" in config.columns) and not (spec.numeric_only and categories)
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
