"""Prints which compiled functions events need that ``warm_up`` has not made: run in a process of its own, for there are more
in one that has done other things before."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from numba.core.dispatcher import Dispatcher

from schemas.arrow import encode_arrow, encode_arrow_predictions
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, KIND_TICK
from schemas.settings import MonitorSettings
from streams.core import detect, pipeline
from streams.core.delivery import Manifest, StageContext
from streams.core.records import Record
from streams.record_batches import read
from streams.warm_up import warm_up
from tests.bench.monitor import load

Message = tuple[bytes | None, bytes, list[tuple[str, bytes]]]
#: As Kafka numbers them: none, LZ4, gzip.
CODECS = (0, 3, 1)
ARROW, TICK = [(HEADER_FORMAT, FORMAT_ARROW)], [(HEADER_KIND, KIND_TICK)]


def main() -> None:
    """Predictions, labels and ticks, few and many, JSON and Arrow, in each form in which a fetch may hand them over."""
    warm_up("monitor")
    before = _made()
    join, detecting = _core(pipeline), _core(detect)
    offset, pieces = 0, dict[str, bytes]()
    for turn, (codec, writable, rows) in enumerate(itertools.product(CODECS, (False, True), (2, 600))):
        time_ms = load.START_MS + turn * 60_000
        for topic, messages in _messages(turn * 1_000, rows, time_ms):
            batch, _ = read(topic, 0, _fetched(messages, codec, writable), [], 0)
            batch.offsets = batch.offsets + offset
            offset = int(batch.offsets[-1]) + 1
            join.apply([batch], 0)
            join.logged()
            outs = [out for out in join.outputs() if out.topic == "observations"]
            detecting.apply(
                [Record("observations", 0, 0, out.key, out.value, out.headers, 0) for out in outs], 0
            )
            detecting.outputs()
            detecting.changed_pieces()
            pieces |= {name: data for name, data in join.changed_pieces().items() if data is not None}
            join.committed(offset)
            join.upserts()
    _core(pipeline).restore(pieces, Manifest(task="join/0", sequence=1))
    for name, found in sorted(_made().items()):
        for signature in found - before.get(name, set()):
            print(name, signature)


def _core(stage: Any) -> Any:
    core = stage.create(StageContext(stage.__name__.rpartition(".")[2], 0, 1, MonitorSettings()))
    core.activate(load.records())
    return core


def _made() -> dict[str, set[str]]:
    found = dict[str, set[str]]()
    for one in gc.get_objects():
        if isinstance(one, Dispatcher):
            name = f"{one.py_func.__module__}.{one.__name__}"
            found.setdefault(name, set()).update(map(str, one.signatures))
    return found


def _fetched(messages: list[Message], codec: int, writable: bool) -> bytes | memoryview:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 10_000_000)
    for at, (key, value, headers) in enumerate(messages):
        builder.append(at, 0, key, value, headers)
    raw = bytes(builder.build())
    return memoryview(bytearray(raw)) if writable else raw


def _messages(first: int, rows: int, time_ms: int) -> list[tuple[str, list[Message]]]:
    numbers = range(first, first + rows)
    tick: Message = (None, msgspec.json.encode({"event_time_ms": time_ms + 59_000, "source": "test"}), TICK)
    common = {"version": "1", "score": 0.5, "latency_ms": 3.25}
    features = {f"f{at}": 0.1 * at for at in range(9)} | {"country": "de"}
    events = [
        {"prediction_id": f"j{n}", "model": "bench", "event_time_ms": time_ms, "features": features} | common
        for n in numbers
    ]
    columns: dict[str, Any] = {"prediction_id": [f"a{n}" for n in numbers], "event_time_ms": [time_ms] * rows}
    columns |= {name: [value] * rows for name, value in (common | features).items()}
    truths = [
        {"prediction_id": f"j{n}", "model": "bench", "label": 1.0, "label_time_ms": time_ms} for n in numbers
    ]
    told = {"prediction_id": columns["prediction_id"], "model": ["bench"] * rows, "label": np.ones(rows),
            "label_time_ms": [time_ms] * rows}  # fmt: skip
    return [
        ("predictions", [(e["prediction_id"].encode(), msgspec.json.encode(e), []) for e in events]),
        ("predictions", [(None, encode_arrow_predictions("bench", columns, 1)[0], ARROW)]),
        ("feedback", [(str(t["prediction_id"]).encode(), msgspec.json.encode(t), []) for t in truths]),
        ("feedback", [(None, encode_arrow(pa.table(told)), ARROW)]),
        ("predictions", [tick]),
        ("feedback", [tick]),
    ]


if __name__ == "__main__":
    main()
