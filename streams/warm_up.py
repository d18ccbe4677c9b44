"""Machine code for the way of an event, made before the first one comes: at start, or when an image is built.

Compiling takes the better part of a minute, loading what an earlier process compiled half a second. Neither may happen while a
partition waits for its new owner.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from detectors.outliers.half_space_trees import HalfSpaceTrees
from schemas.arrow import encode_arrow, encode_arrow_predictions
from schemas.bins import count_codes
from schemas.blocks import decode_block
from schemas.contracts import Feature, ModelContract, ModelRecord, Monitoring
from schemas.edges import Edges
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, GroundTruth, PredictionMade
from schemas.settings import MonitorSettings
from schemas.spans import Spans
from streams.core import pipeline
from streams.core.archive import log_copy
from streams.core.counting import FEW_ROWS
from streams.core.delivery import Manifest, StageContext
from streams.core.feed import InOrder
from streams.core.records import RecordBatch
from streams.record_batches import read

log = logging.getLogger(__name__)

_CONTRACT = ModelContract(
    model="m",
    features=(Feature(name="x"), Feature(name="c", kind="categorical", categories=("a",))),
    monitoring=Monitoring(segments=("c",)),
)
_TIME_MS = 10**12


def warm_up(process: Literal["monitor", "archive"]) -> None:
    """Pass an event of each form through everything that is compiled for this process."""
    began_s = time.monotonic()
    batch = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1_000)
    batch.append(0, 0, b"p", b"", [("h", b"")])
    read("", 0, bytes(batch.build()), [], 0)
    for one in _records():
        list(log_copy(one))
    if process == "monitor":
        core, later = (pipeline.create(StageContext("join", 0, 1, MonitorSettings())) for _ in range(2))
        for each in (core, later):
            each.activate([ModelRecord(contract=_CONTRACT)])
        core.apply(_records(), 0)
        for out in core.outputs():
            InOrder([decode_block(out.value or b"")])
        pieces = {name: data for name, data in core.changed_pieces().items() if data is not None}
        later.restore(pieces, Manifest(task="join/0"))
        core.upserts()
        for values in (np.zeros((1, 2)), np.zeros((1, 2), order="F")):
            Edges((0.0, 1.0)).count(values[:, 0], np.zeros(3, np.int64))
            Edges(range(99)).count(values[:, 0], np.zeros(100, np.int64))
            count_codes(values[:, 0], np.zeros(1, np.int64), np.zeros(1, np.int64))
        HalfSpaceTrees(("x",), 1, 1, 1, 0).scores(np.zeros((1, 1)))
    seconds = round(time.monotonic() - began_s, 1)
    log.info("compiled or loaded what events pass", extra={"event": "warmed-up", "seconds": seconds})


def _records() -> list[RecordBatch]:
    """A prediction and its label, and more predictions than are counted as few, as JSON and as Arrow."""
    event = PredictionMade(
        prediction_id="p", model="m", version="1", event_time_ms=_TIME_MS, features={"x": 0.5, "c": "a"}, score=0.5
    )  # fmt: skip
    truth = GroundTruth(prediction_id="p", model="m", label=1.0, label_time_ms=_TIME_MS)
    value = event.model_dump_json().encode()
    ids = [b"s%d" % n for n in range(FEW_ROWS + 1)]
    rows: dict[str, list[Any]] = {
        "prediction_id": ["q", *(f"q{n}" for n in range(FEW_ROWS))],
        "version": ["1"] * (FEW_ROWS + 1),
        "event_time_ms": [_TIME_MS] * (FEW_ROWS + 1),
        "score": [0.5] * (FEW_ROWS + 1),
        "x": [0.5] * (FEW_ROWS + 1),
        "c": ["a"] * (FEW_ROWS + 1),
        "entity": ["e"] * (FEW_ROWS + 1),
    }
    # Rows of one cell are counted in another way than those of several.
    mixed = rows | {
        "prediction_id": [f"r{n}" for n in range(FEW_ROWS + 1)],
        "version": ["1", *["2"] * FEW_ROWS],
    }
    labels = pa.table({"prediction_id": ["q"], "model": ["m"], "label": [1.0], "label_time_ms": [_TIME_MS]})
    return [
        _batch("predictions", [b"p"], [value]),
        _batch("predictions", [*ids], [value.replace(b'"p"', b'"%s"' % one) for one in ids]),
        _batch("predictions", [None], [encode_arrow_predictions("m", rows, 1)[0]]),
        _batch("predictions", [None], [encode_arrow_predictions("m", mixed, 1)[0]]),
        _batch("feedback", [b"p"], [truth.model_dump_json().encode()]),
        _batch("feedback", [None], [encode_arrow(labels)]),
    ]


def _batch(topic: str, keys: list[bytes | None], values: list[bytes]) -> RecordBatch:
    """Records as the fetcher hands them over; without a key: an Arrow batch."""
    headers = {at: {HEADER_FORMAT: FORMAT_ARROW} for at, key in enumerate(keys) if key is None}
    offsets = np.arange(len(keys))
    return RecordBatch(topic, 0, offsets, Spans.of(keys), Spans.of(values), headers, np.zeros_like(offsets))
