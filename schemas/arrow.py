"""Arrow IPC batches: many events of one model in one message, for services that send a lot.

A batch is one IPC stream (lz4 or not); its schema metadata names the model. Whole columns of a wrong type reject the
batch; single rows that cannot be used are left out and reported.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.errors import BadMessage
from schemas.events import MESSAGE_BYTES_MAX
from schemas.ids import partitions_of
from schemas.spans import Spans

#: Columns of a batch of predictions beside one for each feature; the model is in the schema's metadata.
PREDICTION_COLUMNS = (
    "prediction_id", "version", "role", "event_time_ms", "score", "latency_ms", "status", "entity", "trace_id",
    "region",
)  # fmt: skip


def read_arrow(value: bytes | None) -> pa.Table:
    """An Arrow IPC stream as a table. Raises BadMessage."""
    if not value:
        raise BadMessage("empty", "the message has no value")
    if len(value) > MESSAGE_BYTES_MAX:
        raise BadMessage("oversize", f"{len(value)} bytes; at most {MESSAGE_BYTES_MAX}")
    try:
        table = pa.ipc.open_stream(pa.BufferReader(value)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise BadMessage("bad-arrow", f"not a whole Arrow IPC stream: {error}") from error
    return table


def encode_arrow_predictions(
    model: str, columns: Mapping[str, Sequence[Any]], partitions: int
) -> dict[int, bytes]:
    """An Arrow IPC stream (lz4) for each partition that has rows, cut by murmur2 of ``columns["prediction_id"]``."""
    table = pa.table(dict(columns)).replace_schema_metadata({b"model": model.encode()})
    where = partitions_of([str(i).encode() for i in columns["prediction_id"]], partitions)
    return {int(p): encode_arrow(table.take(np.flatnonzero(where == p))) for p in np.unique(where)}


def encode_arrow(table: pa.Table) -> bytes:
    """``table`` as one IPC stream with lz4 buffers."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return sink.getvalue()


class ArrowRows:
    """Columns of one batch as arrays and lists, and what is wrong with which row (the first fault of each)."""

    def __init__(self, table: pa.Table, known: set[str], required: Sequence[str]) -> None:
        unknown = sorted(set(table.column_names) - known)
        if unknown:
            raise BadMessage("unknown-field", f"columns {unknown} are not in the model's contract")
        missing = [name for name in required if name not in table.column_names]
        if missing:
            raise BadMessage("wrong-type", f"the batch has no column {missing[0]}")
        self.table = table
        self.rows: int = table.num_rows
        self.faults: dict[int, tuple[str, str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.table.column_names

    def fault(self, rows: NDArray[np.bool_], reason: str, detail: str) -> None:
        """Leave out every row for which ``rows`` is true."""
        for row in np.flatnonzero(rows).tolist():
            self.faults.setdefault(row, (reason, detail))

    def floats(self, name: str, default: float) -> NDArray[np.float64]:
        """A numeric column, null as NaN; ``default`` where the batch has no such column."""
        if name not in self:
            return np.full(self.rows, default, np.float64)
        return np.asarray(self._cast(name, pa.float64()).to_numpy(zero_copy_only=False), np.float64)

    def integers(self, name: str) -> NDArray[np.int64]:
        """A column of whole numbers without nulls."""
        column = self._cast(name, pa.int64())
        if column.null_count:
            raise BadMessage("wrong-type", f"column {name} has nulls")
        return np.asarray(column.to_numpy(zero_copy_only=False), np.int64)

    def texts(self, name: str, default: str | None) -> tuple[list[Any], NDArray[np.int64]]:
        """A column's distinct values, and for each row its place among them; None is what is no text."""
        if name not in self:
            return [default], np.zeros(self.rows, np.int64)
        column = self._column(name)
        if not _is_text(column.type):
            return [None], np.zeros(self.rows, np.int64)
        coded = column.dictionary_encode()
        values = [*coded.dictionary.to_pylist(), None]
        return values, np.asarray(
            coded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False), np.int64
        )

    def spans(self, name: str) -> tuple[Spans, NDArray[np.int64]]:
        """A column of texts as bytes, and how many characters each has; 0: it is null, or no text."""
        column = self._column(name)
        if not _is_text(column.type):
            return Spans.of([None] * self.rows), np.zeros(self.rows, np.int64)
        column = column.cast(pa.large_string())
        _, offsets, data = column.buffers()
        ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + self.rows + 1]
        buffer = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
        chars = pc.utf8_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        return Spans(buffer, ends[:-1], np.diff(ends)), np.asarray(chars, np.int64)

    def codes(self, name: str, default: str, allowed: Mapping[str, int]) -> NDArray[np.int8]:
        """A column of a closed vocabulary as its codes; other values are faults."""
        values, places = self.texts(name, default)
        codes = np.array([allowed.get(v, -1) if isinstance(v, str) else -1 for v in values], np.int8)[places]
        self.fault(codes < 0, "invalid-value", f"{name} is not one of {sorted(allowed)}")
        return codes

    def _column(self, name: str) -> pa.Array:
        column = self.table[name].combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column

    def _cast(self, name: str, kind: pa.DataType) -> pa.Array:
        try:
            return self.table[name].combine_chunks().cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadMessage("wrong-type", f"column {name}: {error}") from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
