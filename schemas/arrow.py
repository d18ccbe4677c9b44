"""Arrow IPC batches: many events of one model in one message, for services that send a lot.

A batch is one IPC stream (lz4 or not); its schema metadata names the model. Whole columns of a wrong type reject the
batch; single rows that cannot be used are left out and reported.
"""

from __future__ import annotations

import io
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.errors import BadMessage
from schemas.events import MESSAGE_BYTES_MAX
from schemas.ids import partitions_of
from schemas.json_text import equal
from schemas.spans import Spans

#: Columns of a batch of predictions beside one for each feature; the model is in the schema's metadata.
PREDICTION_COLUMNS = (
    "prediction_id", "version", "role", "event_time_ms", "score", "latency_ms", "status", "entity", "trace_id",
    "region",
)  # fmt: skip


#: A message is a fraction of a millisecond's work: to hand its columns to other threads costs more.
_READ = pa.ipc.IpcReadOptions(use_threads=False)
#: Of a column with more distinct texts than this, pyarrow finds them.
_DISTINCT_MAX = 16


def read_arrow(value: bytes | memoryview | None) -> pa.Table:
    """An Arrow IPC stream as a table, over the same bytes where they are not compressed. Raises BadMessage."""
    return whole_table(*open_arrow(value))


def open_arrow(value: bytes | memoryview | None) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """Schema and batches of an Arrow IPC stream, of which nobody has looked at each row yet. Raises BadMessage."""
    if not value:
        raise BadMessage("empty", "the message has no value")
    if len(value) > MESSAGE_BYTES_MAX:
        raise BadMessage("oversize", f"{len(value)} bytes; at most {MESSAGE_BYTES_MAX}")
    try:
        reader = pa.ipc.open_stream(pa.py_buffer(value), options=_READ)
        schema, batches = reader.schema, list(reader)
        # Nothing else sees to it that they are texts.
        _ = schema.names
        for batch in batches:
            batch.validate()
    except _BAD as error:
        raise _bad_arrow(error) from error
    return schema, batches


def model_of(schema: pa.Schema, errors: str = "strict") -> str:
    """The model that all rows of a batch of predictions are of; "" if its schema names none. Raises UnicodeDecodeError, unless
    ``errors`` says otherwise."""
    name: bytes = (schema.metadata or {}).get(b"model", b"")
    return name.decode(errors=errors)


def whole_table(schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """What :func:`open_arrow` found as a table, every row of it looked at. Raises BadMessage."""
    try:
        table = pa.Table.from_batches(batches, schema)
        table.validate(full=True)
    except _BAD as error:
        raise _bad_arrow(error) from error
    return table


#: What the library raises where a column's values are nothing that Python has.
UNREADABLE = (pa.ArrowException, TypeError, ValueError, ArithmeticError, LookupError)


def documents(table: pa.Table) -> list[dict[str, Any]]:
    """Each row as what a JSON document would hold. Raises BadMessage where a column's values are nothing that Python has."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except UNREADABLE as error:
        raise BadMessage("wrong-type", f"a column cannot be read row by row: {error}") from error
    return rows


_BAD = (pa.ArrowException, OSError, ValueError, EOFError)


def _bad_arrow(error: Exception) -> BadMessage:
    return BadMessage("bad-arrow", f"not a whole Arrow IPC stream: {error}")


def encode_arrow_predictions(
    model: str, columns: Mapping[str, Sequence[Any]], partitions: int
) -> dict[int, bytes]:
    """An Arrow IPC stream (lz4) for each partition that has rows, cut by murmur2 of ``columns["prediction_id"]``."""
    return _by_partition(
        pa.table(dict(columns)).replace_schema_metadata({b"model": model.encode()}), partitions
    )


def encode_arrow_labels(columns: Mapping[str, Sequence[Any]], partitions: int) -> dict[int, bytes]:
    """The same of ground truths, for `feedback`: ``prediction_id``, ``model``, ``label``, ``label_time_ms``, and where there
    are any ``revision`` and ``trace_id``."""
    return _by_partition(pa.table(dict(columns)), partitions)


def _by_partition(table: pa.Table, partitions: int) -> dict[int, bytes]:
    where = partitions_of([str(i).encode() for i in table["prediction_id"].to_pylist()], partitions)
    return {int(p): encode_arrow(table.take(np.flatnonzero(where == p))) for p in np.unique(where)}


def encode_arrow(table: pa.Table) -> bytes:
    """``table`` as one IPC stream with lz4 buffers."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return sink.getvalue()


class ArrowRows:
    """Columns of one batch as arrays and lists, and what is wrong with which row (the first fault of each)."""

    def __init__(self, table: pa.Table, known: Container[str], required: Sequence[str]) -> None:
        names = table.column_names
        unknown = sorted({name for name in names if name not in known})
        if unknown:
            raise BadMessage("unknown-field", f"columns {unknown} are not in the model's contract")
        self._place = {name: place for place, name in enumerate(names)}
        if len(self._place) < len(names):
            raise BadMessage("wrong-type", f"the batch has a column twice: {sorted(names)}")
        missing = [name for name in required if name not in self._place]
        if missing:
            raise BadMessage("wrong-type", f"the batch has no column {missing[0]}")
        self.table = table
        self.rows: int = table.num_rows
        self.faults: dict[int, tuple[str, str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def kind(self, name: str) -> pa.DataType:
        """The type of a column that is there."""
        return self.table.schema.field(self._place[name]).type

    def nulls(self, name: str) -> int:
        """How many rows have nothing in a column that is there."""
        return int(self._chunked(name).null_count)

    def fault(self, rows: NDArray[np.bool_], reason: str, detail: str) -> None:
        """Leave out every row for which ``rows`` is true."""
        for row in np.flatnonzero(rows).tolist():
            self.faults.setdefault(row, (reason, detail))

    def floats(
        self, name: str, default: float, into: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """A numeric column, null as NaN; ``default`` where the batch has no such column. ``into (n,)``: where to."""
        if into is None:
            into = np.empty(self.rows, np.float64)
        if name in self:
            return self._fill(self._cast(name, pa.float64()), into)
        into[:] = default
        return into

    def integers(self, name: str) -> NDArray[np.int64]:
        """A column of whole numbers without nulls."""
        column = self._cast(name, pa.int64())
        if column.null_count:
            raise BadMessage("wrong-type", f"column {name} has nulls")
        return self._fill(column, np.empty(self.rows, np.int64))

    def texts(self, name: str, default: str | None) -> tuple[list[Any], NDArray[np.int64]]:
        """A column's distinct values, and for each row its place among them; None is what is no text."""
        if name not in self:
            return [default], np.zeros(self.rows, np.int64)
        if not is_text(self.kind(name)):
            return [None], np.zeros(self.rows, np.int64)
        if not self.nulls(name):
            spans = self._spans(self._whole(name))
            found, codes = np.empty(_DISTINCT_MAX, np.int64), np.empty(self.rows, np.int64)
            count = _distinct(spans.buffer, spans.start, spans.length, found, codes)
            if count >= 0:
                return [str(spans[at] or b"", "utf-8") for at in found[:count].tolist()], codes
        coded = self._whole(name).dictionary_encode()
        values, indices = coded.dictionary.to_pylist(), coded.indices
        if indices.null_count:
            values, indices = [*values, None], indices.fill_null(len(values))
        return values, np.asarray(indices.to_numpy(zero_copy_only=False), np.int64)

    def spans(self, name: str, chars_max: int) -> tuple[Spans, NDArray[np.bool_]]:
        """A column of texts as bytes, and of which rows it has from 1 to ``chars_max`` characters: not where it is null."""
        if not is_text(self.kind(name)):
            return Spans.of([None] * self.rows), np.zeros(self.rows, np.bool_)
        column = self._whole(name)
        spans = self._spans(column)
        fits = spans.length > 0
        if len(fits) and int(spans.length.max()) > chars_max:
            fits &= pc.utf8_length(column).fill_null(0).to_numpy(zero_copy_only=False) <= chars_max
        if column.null_count:
            fits &= column.is_valid().to_numpy(zero_copy_only=False)
        return spans, fits

    def codes(self, name: str, default: str, allowed: Mapping[str, int]) -> NDArray[np.int8]:
        """A column of a closed vocabulary as its codes; other values are faults."""
        if name not in self:
            return np.full(self.rows, allowed[default], np.int8)
        values, places = self.texts(name, default)
        of_value = np.array([allowed.get(v, -1) if isinstance(v, str) else -1 for v in values], np.int8)
        codes: NDArray[np.int8] = of_value[places]
        if (of_value < 0).any():
            self.fault(codes < 0, "invalid-value", f"{name} is not one of {sorted(allowed)}")
        return codes

    def _chunked(self, name: str) -> pa.ChunkedArray:
        return self.table.column(self._place[name])

    def _whole(self, name: str) -> pa.Array:
        """A column of texts in one piece."""
        column = self._chunked(name)
        try:
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if pa.types.is_string_view(column.type):
                column = column.cast(pa.large_string())
            return column.combine_chunks()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadMessage("wrong-type", f"column {name}: {error}") from error

    def _spans(self, column: pa.Array) -> Spans:
        kind: Any = np.int64 if pa.types.is_large_string(column.type) else np.int32
        _, offsets, data = column.buffers()
        every = np.frombuffer(offsets, kind) if len(column) else np.zeros(1, kind)
        ends = every[column.offset : column.offset + len(column) + 1].astype(np.int64)
        buffer = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
        return Spans(buffer, ends[:-1], np.diff(ends))

    def _cast(self, name: str, kind: pa.DataType) -> pa.ChunkedArray:
        column = self._chunked(name)
        if column.type == kind:
            return column
        try:
            return column.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadMessage("wrong-type", f"column {name}: {error}") from error

    @staticmethod
    def _fill(column: pa.ChunkedArray, into: NDArray[Any]) -> NDArray[Any]:
        start = 0
        for chunk in column.chunks:
            end = start + len(chunk)
            into[start:end] = chunk.to_numpy(zero_copy_only=False)
            start = end
        return into


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


@compiled
def _distinct(
    buffer: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64], found: NDArray[np.int64],
    codes: NDArray[np.int64],
) -> int:  # fmt: skip
    """Fill ``codes`` with each text's place among the distinct ones, and ``found`` with a row of each; how many they are.
    -1: they are more than ``found`` has room for."""
    count, code = 0, 0
    for i in range(len(start)):
        # Most often it is the one before.
        if not count or not _same(buffer, start, length, i, found[code]):
            code = 0
            while code < count and not _same(buffer, start, length, i, found[code]):
                code += 1
            if code == len(found):
                return -1
            if code == count:
                found[code] = i
                count += 1
        codes[i] = code
    return count


@compiled
def _same(
    buffer: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64], a: int, b: int
) -> bool:
    return length[a] == length[b] and equal(buffer, start[a], buffer, start[b], length[a])
