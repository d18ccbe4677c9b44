"""Observation blocks: the columnar form in which rows travel from the join to the detectors.

One block holds rows of one model, of any of its versions and roles, cut from one input partition. Wire form: one
msgpack map whose arrays are raw little-endian bytes; no pickle, a schema version first. Key on the topic: the model
(later: model and feature group).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadMessage

BLOCK_SCHEMA = 3
#: Blocks of schema 1 had no segments; they are read as blocks whose segments nobody knows. Blocks before 3 had neither
#: checks nor revisions, which no detector reads.
_READABLE = (1, 2, 3)
#: Code of a segment whose value is null.
SEGMENT_NULL = -1
#: Column name to its dtype on the wire. Every column has shape ``(n,)`` but ``features``, ``(n, k)``, and ``segments``,
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
#: Of msgpack: in front of a map's and of bytes' size.
_MAP_16, _BYTES_32 = b"\xde", b"\xc6"
#: By column its dtype, ready made, and what stands in front of its bytes' size.
_COLUMNS = {
    name: (np.dtype(dtype), msgspec.msgpack.encode(name) + _BYTES_32) for name, dtype in DTYPES.items()
}
Kind = Literal["predictions", "outcomes"]


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
        """The time by which rows of this kind are ordered: event time, or label time for outcomes."""
        return self.event_time_ms if self.kind == "predictions" else self.label_time_ms

    def take(self, index: NDArray[Any] | slice) -> ObservationBlock:
        """The rows selected by ``index`` (positions, mask or, without a copy, a slice), as a new block."""
        columns = {name: getattr(self, name) for name in DTYPES}
        cut = {name: (column[index] if len(column) else column) for name, column in columns.items()}
        return ObservationBlock(self.kind, self.model, self.versions, self.contract_hash, **cut)


def encode_block(block: ObservationBlock) -> bytes:
    """Wire form of ``block``."""
    head: dict[str, Any] = {
        "schema": BLOCK_SCHEMA,
        "kind": block.kind,
        "model": block.model,
        "versions": list(block.versions),
        "contract_hash": block.contract_hash,
        "rows": len(block),
        "width": int(block.features.shape[1]) if block.features.ndim == 2 else 0,
        "segment_width": int(block.segments.shape[1]),
    }
    # Behind the head's members, in the same map, each column: put together in one copy of where it lies.
    parts: list[Any] = [
        _MAP_16,
        (len(head) + len(DTYPES)).to_bytes(2, "big"),
        msgspec.msgpack.encode(head)[1:],
    ]
    for name, (dtype, begin) in _COLUMNS.items():
        column = np.ascontiguousarray(getattr(block, name), dtype)
        parts += [begin, column.nbytes.to_bytes(4, "big"), column.data]
    return b"".join(parts)


def decode_block(data: bytes) -> ObservationBlock:
    """Inverse of :func:`encode_block`; arrays are read-only views. Raises BadMessage on anything else."""
    try:
        head = msgspec.msgpack.decode(data)
        if head["schema"] not in _READABLE:
            raise BadMessage(
                "invalid-value",
                f"observation block schema {head['schema']}, this code reads {_READABLE[0]} to {_READABLE[-1]}",
            )
        if head["schema"] == 1:
            head |= {"segments": b"", "segment_width": 0}
        rows, width = head["rows"], head["width"]
        if head["schema"] < 3:
            own = "check" if head["kind"] == "predictions" else "revision"
            head |= {"check": b"", "revision": b""} | {own: bytes(4 * rows)}
        known_rows = 0 if head["schema"] == 1 else rows
        columns: dict[str, Any] = {name: np.frombuffer(head[name], dtype) for name, dtype in DTYPES.items()}
        columns["features"] = columns["features"].reshape(-1, width) if width else np.empty((0, 0))
        columns["segments"] = columns["segments"].reshape(known_rows, head["segment_width"])
        block = ObservationBlock(
            head["kind"], head["model"], tuple(head["versions"]), head["contract_hash"], **columns
        )
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise BadMessage("invalid-value", f"not an observation block: {error}") from error
    if any(len(getattr(block, f.name)) not in (0, rows) for f in fields(block) if f.name in DTYPES):
        raise BadMessage("invalid-value", "observation block: columns of different lengths")
    return block
