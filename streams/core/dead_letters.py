"""Dead letters: what could not be used as it came, with its address and the reason.

Of a batch in which single rows are no good, each of these is a letter of its own, with the row as a batch of one: whoever
mends it can send it again as it is, and a batch with many such rows is not written once for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from schemas.arrow import UNREADABLE, encode_arrow, read_arrow
from schemas.errors import BadMessage
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, DeadLetter
from schemas.messages import Bad
from streams.core.delivery import Out
from streams.core.observe import address
from streams.core.records import Record, RecordBatch


def dead_letters(records: RecordBatch, bad: Sequence[Bad]) -> Iterator[Out]:
    """One letter for each of ``bad``, in their order."""
    message, record, table = -1, None, None
    for one in bad:
        if record is None or one.message != message:
            message, record = one.message, records[one.message]
            table = _opened(record) if one.alone else None
        yield dead_letter(record, one, _alone(table, one.row) if one.alone and table is not None else None)


def dead_letter(record: Record, bad: Bad, alone: bytes | None = None) -> Out:
    """The letter of a record, or of what of it is ``alone``."""
    letter = DeadLetter.of(
        address(record, bad.row),
        bad.reason,
        bad.detail[:2_000],
        None if record.key is None else record.key[:1_000],
        (record.value or b"") if alone is None else alone,
        record.headers.items(),
        record.timestamp_ms,
    )
    key = f"{record.topic}/{record.partition}".encode()
    return Out("dead-letters", key, letter.model_dump_json().encode(), 0)


def _opened(record: Record) -> pa.Table | None:
    """The batch that a record is, if it can be read; of what its schema says besides, only whose it is."""
    if record.headers.get(HEADER_FORMAT) != FORMAT_ARROW:
        return None
    try:
        table = read_arrow(record.value)
        model = (table.schema.metadata or {}).get(b"model")
        return table.replace_schema_metadata(None if model is None else {b"model": model}).combine_chunks()
    except (BadMessage, *UNREADABLE):
        return None


def _alone(table: pa.Table, row: int) -> bytes | None:
    """One row of a batch as a batch; None: it cannot be told apart."""
    one = table.slice(row, 1)
    try:
        columns = [_whole(column) for column in one.columns]
        return encode_arrow(
            pa.Table.from_arrays(columns, names=one.column_names).replace_schema_metadata(one.schema.metadata)
        )
    except UNREADABLE:
        return None


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """One value of a column without what other rows hold: codes are written with all texts, views with all they look at."""
    kind = column.type
    if pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    return pa.array(column.to_pylist(), _plain(kind))


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind
