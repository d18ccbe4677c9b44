"""Observation blocks: the columnar form in which rows travel from the join to the detectors.

One block holds rows of one model, of any of its versions and roles, cut from one input partition. Wire form: one
msgpack map whose arrays are raw little-endian bytes; no pickle, a schema version first. Key on the topic: the model
(later: model and feature group).

Features lie column by column, in memory too, for whoever reads them reads one after the other. Of a column of many rows what
all have in common stands once: whole numbers are their distance to the least one, in as few bytes as will do; and what is the
same everywhere takes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadMessage
from schemas.row_binary import pack_rows

BLOCK_SCHEMA = 4
#: Blocks of schema 1 had no segments; they are read as blocks whose segments nobody knows. Blocks before 3 had neither
#: checks nor revisions, which no detector reads. Blocks before 4 had their features row by row, and every column as it is.
_READABLE = (1, 2, 3, 4)
#: Code of a segment whose value is null.
SEGMENT_NULL = -1
#: Column name to its dtype. Every column has shape ``(n,)`` but ``features``, ``(n, k)``, column-major, and ``segments``,
#: ``(n, s)``, row-major.
DTYPES: dict[str, str] = {
    "partition": "<i4",
    "offset": "<i8",
    "row": "<i4",
    "identity": "<u8",
    "event_time_ms": "<i8",
    "version": "<i4",
    "role": "|i1",
    "score": "<f8",
    "latency_ms": "<f8",
    "status": "|i1",
    "features": "<f8",
    "label": "<f8",
    "label_time_ms": "<i8",
    "loss": "<f8",
    "sign": "|i1",
    "segments": "<i4",
    "check": "<u4",
    "revision": "<i4",
}
#: Of msgpack: in front of a map's size, of bytes' size, of three items.
_MAP_16, _BYTES_32, _THREE = b"\xde", b"\xc6", b"\x93"
#: By column its dtype and its name on the wire.
_COLUMNS = {name: (np.dtype(dtype), msgspec.msgpack.encode(name)) for name, dtype in DTYPES.items()}
_NOTHING = {dtype: np.empty(0, dtype) for dtype, _ in _COLUMNS.values()}
#: Columns of fewer rows are written as they are.
NARROWED_MIN = 64
_INTEGERS = tuple((8 * np.dtype(dtype).itemsize - 1, np.dtype(dtype)) for dtype in ("|i1", "<i2", "<i4"))
Kind = Literal["predictions", "outcomes"]
#: The time by which rows of a kind are ordered: label time for outcomes.
TIME_OF: Mapping[Kind, str] = {"predictions": "event_time_ms", "outcomes": "label_time_ms"}
#: Kind, model, versions and contract hash of a block.
About = tuple[Kind, str, tuple[str, ...], str]


@dataclass(slots=True)
class ObservationBlock:
    """``n`` rows of one model.

    ``identity``: 64-bit hash of the prediction id; with event time it orders rows the same way in every run.
    ``version``: index into ``versions``. ``role``: index into ``schemas.ids.ROLES``. ``features``: contract order,
    categoricals as their index in the contract's categories (unknown: ``len(categories)``), null as NaN.
    ``kind`` predictions: a row is a prediction; label, label_time_ms, loss, sign are empty ``(0,)``.
    ``kind`` outcomes: a row is a joined label; ``loss`` is the log loss, ``sign`` +1, or -1 for a row that takes back an
    outcome a revision replaced. ``event_time_ms`` stays the prediction's; order of arrival is ``label_time_ms``.
    ``segments``: for each of the contract's ``monitoring.segments``, the index of the row's category as in ``features``
    (unknown, and those beyond ``segments_max``: ``len(categories)``), ``SEGMENT_NULL`` for null; outcomes carry no
    features, but these. ``(0, 0)``: not known.
    ``check`` of predictions, ``revision`` (the label's) of outcomes: for whoever looks labels up by them later
    (``streams.core.label_index``); empty ``(0,)`` in the other kind.
    ``row addresses`` are (predictions topic, partition, offset, row). ``contract_hash`` says how features were coded.
    """

    kind: Kind
    model: str
    versions: tuple[str, ...]
    contract_hash: str
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    row: NDArray[np.int32]
    identity: NDArray[np.uint64]
    event_time_ms: NDArray[np.int64]
    version: NDArray[np.int32]
    role: NDArray[np.int8]
    score: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    status: NDArray[np.int8]
    features: NDArray[np.float64]
    label: NDArray[np.float64]
    label_time_ms: NDArray[np.int64]
    loss: NDArray[np.float64]
    sign: NDArray[np.int8]
    segments: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))
    check: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    revision: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def __len__(self) -> int:
        return len(self.event_time_ms)

    @property
    def order_ms(self) -> NDArray[np.int64]:
        """The time by which rows of this kind are ordered."""
        times: NDArray[np.int64] = getattr(self, TIME_OF[self.kind])
        return times

    def take(self, index: NDArray[Any] | slice) -> ObservationBlock:
        """The rows selected by ``index`` (positions, mask or, without a copy, a slice), as a new block."""
        if isinstance(index, np.ndarray) and index.dtype == np.bool_:
            index = np.flatnonzero(index)
        cut = {name: taken(column, index) if len(column) else column for name, column in self._columns()}
        return ObservationBlock(self.kind, self.model, self.versions, self.contract_hash, **cut)

    def _columns(self) -> Iterator[tuple[str, NDArray[Any]]]:
        return ((name, getattr(self, name)) for name in DTYPES)


def taken(column: NDArray[Any], index: NDArray[np.int64] | slice) -> NDArray[Any]:
    """These rows; those of several columns lie as they did."""
    if isinstance(index, slice):
        return column[index]
    if column.ndim == 1 or column.flags.c_contiguous:
        return column.take(index, axis=0)
    return column.T.take(index, axis=1).T


def encode_block(block: ObservationBlock) -> bytes:
    """Wire form of ``block``."""
    width = int(block.features.shape[1]) if block.features.ndim == 2 else 0
    shape = (len(block), width, int(block.segments.shape[1]))
    # Behind the head's members, in the same map, each column: put together in one copy of where it lies.
    parts: list[Any] = [_head((block.kind, block.model, block.versions, block.contract_hash), *shape)]
    for name, (dtype, told) in _COLUMNS.items():
        column = getattr(block, name)
        if name == "features":
            parts += [told, _BYTES_32, (8 * column.size).to_bytes(4, "big")]
            parts += [np.ascontiguousarray(of, dtype).data for of in (column.T if column.size else ())]
            continue
        column = np.ascontiguousarray(column, dtype)
        base, narrow = _narrowed(column)
        parts.append(told)
        if narrow is not column:
            parts += [_THREE, *map(msgspec.msgpack.encode, (base, narrow.dtype.str))]
        parts += [_BYTES_32, narrow.nbytes.to_bytes(4, "big"), narrow.data]
    return b"".join(parts)


def encode_blocks(of: Sequence[About], columns: Mapping[str, NDArray[Any]]) -> list[bytes]:
    """Wire forms of ``g`` blocks, each of ``n`` rows, less than ``NARROWED_MIN``, and as wide: what :func:`encode_block` makes of
    each by itself, without an object a column.

    ``columns``: those that have rows, by name, of shape (g, n), ``features`` (g, k, n) and ``segments`` (g, n, s).
    """
    rows, width, segment_width = (
        columns["identity"].shape[1],
        columns["features"].shape[1],
        columns["segments"].shape[2],
    )
    parts: list[NDArray[Any] | bytes] = []
    for name, (dtype, told) in _COLUMNS.items():
        column = columns.get(name)
        size = 0 if column is None else column[0].size * dtype.itemsize
        parts.append(told + _BYTES_32 + size.to_bytes(4, "big"))
        if column is not None and size:
            parts.append(column.reshape(len(of), -1).astype(dtype, copy=False))
    data = bytes(pack_rows(len(of), parts).whole())
    size = len(data) // len(of)
    return [
        _head(one, rows, width, segment_width) + data[at * size : at * size + size]
        for at, one in enumerate(of)
    ]


@lru_cache(maxsize=65_536)
def _head(of: About, rows: int, width: int, segment_width: int) -> bytes:
    kind, model, versions, contract_hash = of
    head = {
        "schema": BLOCK_SCHEMA,
        "kind": kind,
        "model": model,
        "versions": versions,
        "contract_hash": contract_hash,
        "rows": rows,
        "width": width,
        "segment_width": segment_width,
    }
    return _MAP_16 + (len(head) + len(DTYPES)).to_bytes(2, "big") + msgspec.msgpack.encode(head)[1:]


def _narrowed(column: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    """(base, distances to it) of a column of many rows, (base, nothing) where all are the same; else the column itself. Bytes
    are left to whoever compresses."""
    size = column.itemsize
    if len(column) < NARROWED_MIN or not column.size or size == 1 or column.dtype.kind == "u":
        return 0, column
    if column.dtype.kind == "f":
        bits = column.view(np.int64)
        same = bits[0] == bits[-1] and bool((bits == bits[0]).all())
        return (float(column[0]), column[:0]) if same else (0, column)
    flat = column.reshape(-1)
    least, most = int(np.minimum.reduce(flat)), int(np.maximum.reduce(flat))
    if least == most:
        return least, flat[:0]
    for bits_of, dtype in _INTEGERS:
        if most - least < 1 << bits_of and dtype.itemsize < size:
            return least, (flat - flat.dtype.type(least)).astype(dtype)
    return 0, column


def decode_block(data: bytes | memoryview) -> ObservationBlock:
    """Inverse of :func:`encode_block`; arrays are read-only, large ones views of ``data``, or of one number where all are the same.
    Raises BadMessage on anything else."""
    try:
        wire = _WIRE.decode(data)
        if wire.schema not in _READABLE:
            raise BadMessage(
                "invalid-value",
                f"observation block schema {wire.schema}, this code reads {_READABLE[0]} to {_READABLE[-1]}",
            )
        # One column is always as it is: nothing has more rows than were sent.
        rows, width = len(wire.identity) // 8, wire.width
        if rows != wire.rows:
            raise BadMessage("invalid-value", "observation block: columns of different lengths")
        if wire.schema < 3:
            wire.check = wire.revision = _NONE
            own = "check" if wire.kind == "predictions" else "revision"
            setattr(wire, own, memoryview(bytes(4 * rows)))
        known_rows, segment_width = (0, 0) if wire.schema == 1 else (rows, wire.segment_width)
        columns = {
            name: _read(getattr(wire, name), dtype, rows if name != "segments" else rows * segment_width)
            for name, (dtype, _) in _COLUMNS.items()
        }
        features = columns["features"]
        if wire.schema < 4:
            columns["features"] = features.reshape(-1, width) if width else np.empty((0, 0))
        else:
            columns["features"] = features.reshape(width, -1).T if width else np.empty((0, 0))
        columns["segments"] = np.ascontiguousarray(columns["segments"].reshape(known_rows, segment_width))
        block = ObservationBlock(wire.kind, wire.model, wire.versions, wire.contract_hash, **columns)
    except (msgspec.DecodeError, TypeError, ValueError, OverflowError) as error:
        raise BadMessage("invalid-value", f"not an observation block: {error}") from error
    if not {len(column) for column in columns.values()} <= {0, rows}:
        raise BadMessage("invalid-value", "observation block: columns of different lengths")
    return block


#: A column on the wire: as it is, or what all have in common and the rest.
_Told = memoryview | tuple[int | float, str, memoryview]
_NONE = memoryview(b"")
_SMALL_BYTES = 4_096


class _Wire(msgspec.Struct):
    """What is sent. Bytes stay where they are: a decoder that makes ``bytes`` copies every column once more."""

    schema: int
    kind: Kind
    model: str
    versions: tuple[str, ...]
    contract_hash: str
    rows: int
    width: int
    identity: memoryview
    partition: _Told
    offset: _Told
    row: _Told
    event_time_ms: _Told
    version: _Told
    role: _Told
    score: _Told
    latency_ms: _Told
    status: _Told
    features: _Told
    label: _Told
    label_time_ms: _Told
    loss: _Told
    sign: _Told
    segment_width: int = 0
    segments: _Told = _NONE
    check: _Told = _NONE
    revision: _Told = _NONE


_WIRE = msgspec.msgpack.Decoder(_Wire)


def _read(column: _Told, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
    """Inverse of ``_narrowed``. ``size``: how many there are of what is the same everywhere, which takes no room."""
    if isinstance(column, memoryview):
        # A view takes two hundred bytes, and keeps all that was received with it: of a few rows that are held, a copy takes less.
        return (
            np.frombuffer(column if column.nbytes > _SMALL_BYTES else bytes(column), dtype)
            if column
            else _NOTHING[dtype]
        )
    base, narrow, data = column
    if not data:
        return np.ndarray((size,), dtype, dtype.type(base).tobytes(), strides=(0,))
    values: NDArray[Any] = np.frombuffer(data, narrow).astype(dtype)
    return np.add(values, dtype.type(base), out=values)
