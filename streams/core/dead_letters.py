"""Dead letters: what could not be used as it came, with its address and the reason.

Of a batch in which single rows are no good, each of these is a letter of its own, with the row as a batch of one: whoever
mends it can send it again as it is, and a batch with many such rows is not written once for each of them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

import pyarrow as pa

from schemas.arrow import encode_arrow, read_arrow
from schemas.errors import BadMessage
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, DeadLetter
from schemas.messages import Bad
from streams.core.delivery import Out
from streams.core.observe import address
from streams.core.records import Record, RecordBatch

#: Of a message or row; what is longer is cut.
VALUE_BYTES_MAX = 262_144


def dead_letters(records: RecordBatch, bad: Sequence[Bad]) -> Iterator[Out]:
    """One letter for each of ``bad``, in their order."""
    message, record, table = -1, None, None
    for one in bad:
        if record is None or one.message != message:
            message, record = one.message, records[one.message]
            table = None
        if one.alone and table is None and record.headers.get(HEADER_FORMAT) == FORMAT_ARROW:
            table = _opened(record)
        alone = None if table is None or not one.alone else _alone(table, one.row)
        yield dead_letter(record, one, alone)


def dead_letter(record: Record, bad: Bad, alone: bytes | None = None) -> Out:
    """The letter of a record, or of what of it is ``alone``."""
    value = (record.value or b"") if alone is None else alone
    origin = address(record, bad.row)
    letter = DeadLetter(
        topic=origin.topic,
        partition=origin.partition,
        offset=origin.offset,
        row=origin.row,
        reason=bad.reason,
        detail=bad.detail[:2_000],
        key_base64=None if record.key is None else base64.b64encode(record.key[:1_000]).decode(),
        value_base64=base64.b64encode(value[:VALUE_BYTES_MAX]).decode(),
        truncated=len(value) > VALUE_BYTES_MAX,
        headers={name: v.decode("utf-8", "replace") for name, v in record.headers.items()},
        timestamp_ms=record.timestamp_ms,
    )
    key = f"{record.topic}/{record.partition}".encode()
    return Out("dead-letters", key, letter.model_dump_json().encode(), 0)


def _opened(record: Record) -> pa.Table | None:
    try:
        table = read_arrow(record.value)
    except BadMessage:
        return None
    # A coded column would bring the texts of all rows with each of them.
    coded = {
        at: field.type.value_type
        for at, field in enumerate(table.schema)
        if pa.types.is_dictionary(field.type)
    }
    for at, kind in coded.items():
        table = table.set_column(at, table.schema.field(at).with_type(kind), table.column(at).cast(kind))
    return table


def _alone(table: pa.Table, row: int) -> bytes | None:
    """One row of a batch as a batch; None: it cannot be told apart."""
    try:
        return encode_arrow(table.take([row]))
    except pa.ArrowException:
        return None
