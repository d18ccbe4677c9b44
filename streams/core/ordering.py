"""What detectors read of the rows of observation blocks, and what of them they are to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import Rows
from schemas.blocks import DTYPES, SEGMENT_NULL, ObservationBlock
from schemas.contracts import DetectorConfig, Feature, ModelContract
from schemas.events import STATUSES
from schemas.ids import ROLES, RowId

if TYPE_CHECKING:
    from streams.core.feed import Columns

_OK = STATUSES.index("ok")
#: Streams by the kind of block they read.
STREAMS: Mapping[str, tuple[str, ...]] = {
    "predictions": ("features", "score", "predictions"),
    "outcomes": ("loss", "comparison"),
}
#: Streams whose rows say something of a version even where it did not answer.
_WITH_FAILURES = ("features", "predictions")


def kind_of(stream: str) -> str:
    """The kind of block that a stream reads."""
    return next(kind for kind, streams in STREAMS.items() if stream in streams)


def merged(blocks: Sequence[ObservationBlock]) -> ObservationBlock:
    """Blocks of one model and kind as one, their versions under one numbering."""
    if len(blocks) == 1:
        return blocks[0]
    first, versions = blocks[0], versions_of(blocks)
    columns: dict[str, Any] = {}
    for name in DTYPES:
        parts = [getattr(block, name) for block in blocks]
        # What the kind has not is the same nothing for all.
        columns[name] = np.concatenate(parts) if any(map(len, parts)) else parts[0]
    columns["version"] = np.concatenate([renumbered(block, versions) for block in blocks])
    return ObservationBlock(first.kind, first.model, versions, first.contract_hash, **columns)


def versions_of(blocks: Sequence[ObservationBlock]) -> tuple[str, ...]:
    """The versions of all of them, in the one order that they have in every run."""
    return tuple(sorted({version for block in blocks for version in block.versions}))


def renumbered(block: ObservationBlock, versions: tuple[str, ...]) -> NDArray[np.int32]:
    """The version of each row as index into ``versions``, which are those of several blocks."""
    if block.versions == versions:
        return block.version
    index = {version: at for at, version in enumerate(versions)}
    return np.array([index[version] for version in block.versions], np.int32)[block.version]


def column_values(stream: str, block: ObservationBlock | Columns) -> NDArray[np.float64]:
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


def chosen(values: NDArray[np.float64], columns: tuple[int, ...]) -> NDArray[np.float64]:
    """These columns, which are all or in order; not copied where they are all."""
    return values if len(columns) == values.shape[1] else values[:, list(columns)]


def cut_by(config: DetectorConfig) -> tuple[Any, ...]:
    """Configurations of which this is the same ask for the same rows."""
    return config.roles, config.stream in _WITH_FAILURES, config.sample_every


def wanted_rows(
    config: DetectorConfig, block: ObservationBlock | Columns, roles: Sequence[str]
) -> NDArray[np.bool_]:
    """Rows in these roles and of the sample that a configuration asks for, without failures where they say nothing."""
    wanted: NDArray[np.bool_] = np.zeros(len(block), np.bool_)
    for role in roles:
        wanted |= block.role == ROLES.index(role)
    if config.stream not in _WITH_FAILURES:
        wanted &= block.status == _OK
    if config.sample_every > 1:
        # numpy divides many at a time, and takes remainders one by one.
        every = np.uint64(config.sample_every)
        wanted &= block.identity // every * every == block.identity
    return wanted


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
    features_alike = segments_alike = True
    if coded_as is not contract:
        (before, segments_before), (features, segments) = coding(coded_as), coding(contract)
        features_alike, segments_alike = before == features, segments_before == segments
    width, shape = len(contract.features), (len(block), len(contract.monitoring.segments))
    if block.kind == "predictions" and not (features_alike and block.features.shape[1] == width):
        return None
    if not segments_alike or block.segments.shape != shape:
        block = replace(block, segments=np.full(shape, SEGMENT_NULL, np.int32))
    return block


def detector_rows(
    block: ObservationBlock | Columns, values: NDArray[np.float64], group: NDArray[np.int8]
) -> Rows:
    """What a detector gets: ``values`` with times, identities, groups and signs."""
    sign = block.sign if len(block.sign) else np.ones(len(block), np.int8)
    return Rows(values, block.order_ms, block.identity, group, sign)


def row_address(block: ObservationBlock | Columns, at: int) -> str:
    """Where row ``at`` was first read."""
    return str(RowId("predictions", int(block.partition[at]), int(block.offset[at]), int(block.row[at])))
