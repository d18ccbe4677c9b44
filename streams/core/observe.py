"""From joined rows to observation blocks: what detectors will read, gathered by model until the transaction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.blocks import DTYPES, NARROWED_MIN, About, ObservationBlock, encode_block, encode_blocks
from schemas.columns import coded
from schemas.contracts import ModelContract
from schemas.events import HEADER_ORIGIN
from schemas.hashing import KeyHashes
from schemas.ids import RowId
from schemas.rows import NANO
from streams.core.delivery import Out
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
#: Of so many features and segments in all, rows of a model are not few.
_FEW_NUMBERS = 8_192


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


@dataclass(frozen=True, slots=True)
class Predictions:
    """Rows of several models. ``told (n, s)``: codes of their segments' categories; ``segments``: of the parts.

    Where no detector is configured a block carries no features: the label index, which reads it too, has no use for them.
    """

    rows: Together
    addresses: Addresses
    told: NDArray[np.int32]
    segments: Sequence[Segments]
    bounds: list[int]
    first_version: list[int]

    @classmethod
    def of(
        cls, rows: Together, addresses: Addresses, told: NDArray[np.int32], segments: Sequence[Segments]
    ) -> Predictions:
        """See the class."""
        firsts = itertools.accumulate((len(part.versions) for part in rows.parts), initial=0)
        return cls(rows, addresses, told, segments, rows.bounds, list(firsts))

    @property
    def shown(self) -> list[int]:
        """The parts that have rows."""
        return [at for at, (begin, end) in enumerate(itertools.pairwise(self.bounds)) if begin < end]

    def about(self, part: int) -> About:
        """What the part's block says of itself."""
        of = self.rows.parts[part]
        return ("predictions", of.contract.model, of.versions, self.segments[part].contract_hash)

    def shape(self, part: int) -> tuple[int, int, int]:
        """Rows, features and segments of the part's block."""
        contract = self.rows.parts[part].contract
        width = len(contract.features) if contract.monitoring.detectors else 0
        return self.bounds[part + 1] - self.bounds[part], width, len(self.segments[part].labels)

    def block(self, part: int) -> ObservationBlock:
        """The part's rows, in their order."""
        rows, begin, end = self.rows, self.bounds[part], self.bounds[part + 1]
        own, contract = slice(begin, end), rows.parts[part].contract
        columns = self._columns(own) | {name: np.empty(0, DTYPES[name]) for name in _LABEL_COLUMNS}
        return ObservationBlock(
            *self.about(part),
            version=(rows.version[own] - self.first_version[part]).astype(np.int32),
            features=rows.features(part, begin, end) if contract.monitoring.detectors else _NO_FEATURES,
            segments=self.told[own, : len(self.segments[part].labels)],
            **columns,
        )

    def encoded(self, parts: Sequence[int]) -> list[bytes]:
        """Wire forms of the blocks of parts that are of one shape, of few rows each."""
        rows, (n, width, segments) = self.rows, self.shape(parts[0])
        own = np.array(parts, np.int64)
        at = np.array(self.bounds, np.int64)[own][:, None] + np.arange(n)
        places = rows.at[at][:, None, :] + rows.step[own][:, None, None] * np.arange(width)[:, None]
        columns = self._columns(at) | {
            "version": rows.version[at] - np.array(self.first_version, np.int64)[own][:, None],
            "features": rows.values[places],
            "segments": self.told[at][:, :, :segments],
        }
        return encode_blocks([self.about(part) for part in parts], columns)

    def _columns(self, at: slice | NDArray[np.int64]) -> dict[str, Any]:
        """Of the rows there, all that does not depend on their model."""
        rows, addresses = self.rows, self.addresses
        return {
            "partition": addresses.partition[at].astype(np.int32),
            "offset": addresses.offset[at],
            "row": addresses.row[at].astype(np.int32),
            "identity": addresses.identity[at],
            "check": addresses.check[at],
            "event_time_ms": rows.event_time_ms[at],
            "role": rows.role[at],
            "score": rows.score[at],
            "latency_ms": rows.latency_ms[at],
            "status": rows.status[at],
        }


class Observed:
    """Rows on their way to the detectors, until a tick or a transaction. Of many models each may have few: these are not made
    into blocks, each of which would be a score of arrays, but written together."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str, str], list[ObservationBlock | tuple[Predictions, int]]] = {}

    def put(self, block: ObservationBlock) -> None:
        """Rows of one model."""
        self._held.setdefault((block.kind, block.model, block.contract_hash), []).append(block)

    def put_predictions(self, found: Predictions) -> None:
        """Rows of several models."""
        for part in found.shown:
            kind, model, _, contract_hash = found.about(part)
            self._held.setdefault((kind, model, contract_hash), []).append((found, part))

    def flush(self) -> Iterator[Out]:
        """All that is held, as one record a model, kind and contract, or more where that would be too large."""
        held, self._held = self._held, {}
        few = self._few(held)
        for key, of in held.items():
            if key in few:
                yield Out("observations", key[1].encode(), few[key])
                continue
            blocks = [one if isinstance(one, ObservationBlock) else one[0].block(one[1]) for one in of]
            for block in cut(blocks):
                yield Out("observations", key[1].encode(), encode_block(block))

    def _few(
        self, held: Mapping[tuple[str, str, str], list[ObservationBlock | tuple[Predictions, int]]]
    ) -> dict[tuple[str, str, str], bytes]:
        """The wire forms of those of which there are few rows, from one batch."""
        alike: dict[tuple[int, int, int, int], tuple[Predictions, list[tuple[str, str, str]], list[int]]] = {}
        for key, of in held.items():
            if len(of) == 1 and not isinstance(of[0], ObservationBlock):
                found, part = of[0]
                rows, width, segments = found.shape(part)
                if rows < NARROWED_MIN and rows * (width + segments) <= _FEW_NUMBERS:
                    group = alike.setdefault((id(found), rows, width, segments), (found, [], []))
                    group[1].append(key)
                    group[2].append(part)
        return {
            key: data
            for found, keys, parts in alike.values()
            for key, data in zip(keys, found.encoded(parts), strict=True)
        }


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
