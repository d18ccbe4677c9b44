"""Machine code for the way of an event, made before the first one comes: at start, or when an image is built.

Compiling takes some ten seconds, loading what an earlier process compiled half of one. Neither may happen while a
partition waits for its new owner.
"""

from __future__ import annotations

import logging
import time

import numpy as np
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from schemas.codecs import PredictionDecoder
from schemas.contracts import Feature, ModelContract
from schemas.events import GroundTruth, PredictionMade
from schemas.hashing import key_hashes
from schemas.labels import LabelDecoder
from schemas.messages import Messages
from streams.core.hash_table import HashTable
from streams.record_batches import read

log = logging.getLogger(__name__)

_CONTRACT = ModelContract(
    model="m", features=(Feature(name="x"), Feature(name="c", kind="categorical", categories=("a",)))
)


def warm_up() -> None:
    """Pass one event through everything that is compiled."""
    began_s = time.monotonic()
    event = PredictionMade(
        prediction_id="p",
        model="m",
        version="1",
        event_time_ms=10**12,
        features={"x": 0.5, "c": "a"},
        score=0.5,
    )
    truth = GroundTruth(prediction_id="p", model="m", label=1.0, label_time_ms=10**12)
    predictions, labels = (
        Messages.of([(b"p", one.model_dump_json().encode(), False)]) for one in (event, truth)
    )
    (columns,), _ = PredictionDecoder([_CONTRACT]).decode(predictions)
    LabelDecoder({"m": _CONTRACT}).decode(labels)
    hashes = key_hashes(columns.keys)
    table, row = HashTable(), np.zeros(1, np.int64)
    table.claim(hashes.identity, hashes.check, row, hashes.identity, hashes.check)
    table.find(hashes.identity, hashes.check, hashes.identity, hashes.check)
    table.drop(hashes.identity, row)
    batch = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1_000)
    batch.append(0, 0, b"p", b"", [("h", b"")])
    read("", 0, bytes(batch.build()), [], 0)
    seconds = round(time.monotonic() - began_s, 1)
    log.info("compiled or loaded what events pass", extra={"event": "warmed-up", "seconds": seconds})
