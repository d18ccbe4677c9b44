"""Rows that came to a partition that is not their key's are sent on to the one that is, so that a prediction and its label
meet whatever partitioner a client has.

A row is sent on as a JSON event of its own, with the address at which it was first read: by that it counts once, and it is
taken wherever it comes to next, so a second hop never becomes a third.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.arrow import PREDICTION_COLUMNS, model_of, read_arrow
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_ORIGIN
from schemas.ids import RowId
from schemas.labels import LabelColumns
from streams.core.delivery import Out
from streams.core.records import Record, RecordBatch
from streams.core.together import Together


def sent_on(
    records: RecordBatch, rows: Together | LabelColumns, astray: NDArray[np.bool_], where: NDArray[Any]
) -> Iterator[Out]:
    """One record for each row that is ``astray``, to partition ``where``, message by message."""
    found = np.flatnonzero(astray)
    message = rows.message[found]
    order = np.argsort(message, kind="stable")
    found = found[order]
    for own in np.split(found, np.flatnonzero(np.diff(message[order])) + 1) if len(found) else ():
        record = records[int(rows.message[own[0]])]
        headers = {name: value for name, value in record.headers.items() if name != HEADER_FORMAT}
        for at, value in zip(own.tolist(), _documents(record, rows.row[own]), strict=True):
            origin = RowId(record.topic, record.partition, record.offset, int(rows.row[at]))
            yield Out(
                record.topic,
                rows.keys[at] or b"",
                value,
                int(where[at]),
                headers | {HEADER_ORIGIN: str(origin).encode()},
            )


def _documents(record: Record, places: NDArray[Any]) -> Iterator[bytes]:
    """The rows at ``places`` of a record, each as the JSON document it stands for."""
    value = record.value or b""
    if record.headers.get(HEADER_FORMAT) != FORMAT_ARROW:
        yield from (value for _ in places)
        return
    table = read_arrow(value)
    model = model_of(table.schema)
    documents = table.to_pylist()
    for place in places.tolist():
        data = {name: item for name, item in documents[place].items() if item is not None}
        if record.topic == "predictions":
            event = {name: data.pop(name) for name in PREDICTION_COLUMNS if name in data}
            data = {**event, "model": model, "features": data}
        yield msgspec.json.encode(data)
