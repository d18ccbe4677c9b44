"""The cores alone, without Kafka, in one process: what an event costs against features, models, segments and windows.

CPU time of the join stage (decode, validate, join, windows, state, upserts) and of the detect stage with the default
detectors, each with its transactions planned but not sent, after a warm-up. Events are JSON, as those whose rate is
measured but with as many features as the row says. Each shape runs in a process of its own, so that memory is its own too.

Rows of models that have few are held before detectors get them, so the detect stage is measured from one moment at which
nothing is held to the next but one. Its rounds beyond those of the join are the last one's blocks with later times and other ids.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from schemas.blocks import decode_block, encode_block
from schemas.contracts import (
    ColumnReference,
    Feature,
    ModelContract,
    ModelRecord,
    ModelVersion,
    Monitoring,
    Reference,
)
from schemas.events import HEADER_KIND, KIND_TICK, Tick
from schemas.settings import MonitorSettings
from schemas.spans import Spans
from streams.__main__ import GC_OBJECTS
from streams.core import detect, pipeline
from streams.core.delivery import Loaded, Out, StageContext, TaskCore, Transaction
from streams.core.join_rows import ROW_BYTES
from streams.core.ledger import Ledger
from streams.core.records import RecordBatch
from tests.bench.figures import say, table
from tests.bench.monitor.worker import Size
from tests.bench.plot import Panel, svg

START_MS = 1_767_225_600_000
ROUND_EVENTS = 20_000
#: Of the join; the detect stage goes on until what came in the first of them has been fed.
ROUNDS, WARM_UP, DETECT_ROUNDS_MAX = 5, 2, 60
ROUND_MS = 60_000
PLOT, TABLE = Path(__file__).with_name("costs.svg"), Path(__file__).with_name("COSTS.md")
#: From so many models on their memory stands out.
MEMORY_MODELS_MIN = 1_000
HEAD = (
    "shape", "µs an event", "of it join", "of it detect", "a model's first row, ms", "state written / read",
    "stored, KB a model", "memory, KB a model",
)  # fmt: skip
EXPLAINED = """# What an event costs

Written by `python -m tests.bench.monitor --only costs`: the cores alone, on one core, without Kafka and warehouse. Each
round brings 20,000 JSON events (fewer where they are wide) and one minute of event time to one partition, with the default
detectors, one segment feature and one transaction a round. An event is as in the rates, some 520 bytes with ten features. So
with 10,000 models each has two events a round, and each of its windows of a minute no more than these two.

- **state written / read**: bytes of state, manifests included, by bytes of events. Of a window that gets two events it is
  mostly the two values of each feature, seven bytes each; with twenty a tenth of them. What detectors hold is written when
  they are fed.
- **a model's first row**: building its detectors, once a version and once a restart; of a single model mostly the loading
  of code.
- **stored**: state that is alive, and what of older is not yet cleared away; with few models mostly predictions that wait
  for their label, 20 bytes each.
- **memory**: growth of the process, beside the version's reference, which all models of a shape share here. Bounded by
  windows that are open, `monitor.hot_index_bytes_max` and `monitor.held_bytes_max`.

With many models a batch costs what its models cost, however many of its events are in it: each about a tenth of a millisecond of
the join. Rows for the warehouse, entering the index, cells of windows and their state are worked out for all models of a
batch at once; so batches of one call are put together. What detectors cost is spread over the rows that were held for them. With wide events it is mostly the reading of their JSON, 20 KB of it with 1,000 features.
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """One row of the table."""

    features: int = 10
    models: int = 1
    segments: int = 5
    window_ms: int = 60_000

    @property
    def events(self) -> int:
        """In a round; wide ones are fewer, to fit into memory."""
        return max(2_000, ROUND_EVENTS // max(1, self.features // 100))

    def __str__(self) -> str:
        return f"features {self.features}, models {self.models}, segments {self.segments}, window {self.window_ms} ms"


def shapes(quick: bool) -> list[Shape]:
    """Each axis by itself."""
    found = [Shape(features=k) for k in (10, 100, 1_000)]
    found += [Shape(models=m) for m in (10, 100, 1_000, 10_000)]
    found += [Shape(segments=s) for s in (1, 50, 200)]
    found += [Shape(window_ms=w) for w in (1_000, 10_000, 3_600_000)]
    return [found[0], found[4]] if quick else found


@dataclass(frozen=True, slots=True)
class Cost:
    """Per event; ``state_share``: bytes of state written, manifests included, by bytes read; ``first_ms``: what a model
    costs once, when its first row comes; ``stored_kb``: state alive, ``memory_kb``: growth of the process, a model."""

    join_us: float
    detect_us: float
    state_share: float
    first_ms: float
    stored_kb: float
    memory_kb: float

    @property
    def us(self) -> float:
        """All of it."""
        return self.join_us + self.detect_us


def run(size: Size) -> None:
    """One JSON line a shape, the table, and both with a plot beside this file."""
    costs = dict[Shape, Cost]()
    for shape in shapes(size.quick):
        costs[shape] = cost = _apart(shape)
        parts = {name: round(value, 3) for name, value in asdict(cost).items()}
        say("monitor.core.us_per_event", cost.us, "us", shape=str(shape), **parts)
    found = table("Shapes", HEAD, _rows(costs))
    print(found)
    if not size.quick:
        PLOT.write_text(drawn(costs))
        TABLE.write_text(f"{EXPLAINED}\n{found}\n![Cost by features and by models]({PLOT.name})\n")
    say(
        "monitor.index.bytes_per_pending",
        ROW_BYTES,
        "bytes",
        "the bound beside loss inputs",
        ROW_BYTES / (64 + 46),
    )


def _rows(costs: dict[Shape, Cost]) -> list[tuple[object, ...]]:
    """Of one model's memory nothing can be said: it drowns in what the process needs for itself."""
    base = costs.get(Shape())
    rows = []
    for shape, cost in costs.items():
        kept: float | None = None
        if base is not None and shape.models >= MEMORY_MODELS_MIN:
            kept = (cost.memory_kb * shape.models - base.memory_kb) / (shape.models - 1)
        rows.append(
            (
                str(shape),
                cost.us,
                cost.join_us,
                cost.detect_us,
                cost.first_ms,
                cost.state_share,
                cost.stored_kb,
                kept,
            )
        )
    return rows


def drawn(costs: dict[Shape, Cost]) -> str:
    """Cost over features and over models."""
    panels = []
    for name, of in (("features", "features, one model"), ("models", "models, ten features")):
        plain = replace(Shape(), **{name: 0})
        along = [
            (getattr(shape, name), cost)
            for shape, cost in costs.items()
            if replace(shape, **{name: 0}) == plain  # type: ignore[arg-type]
        ]
        along.sort(key=lambda point: float(point[0]))
        lines = {
            part: [(float(at), float(getattr(cost, value))) for at, cost in along]
            for part, value in (("all", "us"), ("join", "join_us"), ("detect", "detect_us"))
        }
        panels.append(Panel(f"What an event costs by {name}", of, "µs", lines))
    return svg(panels)


def _apart(shape: Shape) -> Cost:
    call = [sys.executable, "-m", "tests.bench.monitor.costs", msgspec.json.encode(asdict(shape)).decode()]
    done = subprocess.run(call, check=True, capture_output=True)
    return Cost(**msgspec.json.decode(done.stdout))


@dataclass(slots=True)
class Stage:
    """A core at work: CPU seconds, and bytes of state that its transactions hold."""

    ledger: Ledger
    seconds: float = 0.0
    written: int = 0

    def take(self, batch: RecordBatch) -> list[Out]:
        """Apply, plan a transaction, pretend that it is durable and the warehouse has all."""
        at_s = time.process_time()
        core = self.ledger.core
        core.apply([batch], 0)
        self.ledger.next[batch.topic, 0] = int(batch.offsets[-1]) + 1
        transaction: Transaction = self.ledger.plan(self.ledger.take_confirmed())
        self.ledger.confirmed(self.ledger.committed(transaction))
        self.seconds += time.process_time() - at_s
        self.written += transaction.state_bytes
        return transaction.outs

    @property
    def stored(self) -> int:
        """Bytes of pieces that the manifest names."""
        return sum(ref.size for ref in self.ledger.manifest.pieces.values())

    def settle(self) -> None:
        """Count from now on."""
        self.seconds, self.written = 0.0, 0


def started(core: TaskCore, topics: Iterable[str], records: list[ModelRecord]) -> Stage:
    ledger = Ledger(f"{core.stage}/0", core)
    ledger.open(Loaded(None, {}), {(topic, 0): 0 for topic in topics}, lambda before: [], 0)
    core.activate(records)
    return Stage(ledger)


def measured(shape: Shape) -> Cost:
    """Rounds of events through both cores, in this process."""
    settings = MonitorSettings()
    # As the worker does.
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 5, 2)
    before = _resident()
    records = [r for m in range(shape.models) for r in records_of(f"m{m}", shape)]
    join = started(
        pipeline.create(StageContext("join", 0, 1, settings)), ("predictions", "feedback"), records
    )
    stage = started(detect.create(StageContext("detect", 0, 1, settings)), ("observations",), records)
    read, first_s = 0, 0.0
    observed: list[list[Out]] = []
    log = Log()
    for number, batch in enumerate(batches(shape, shape.events)):
        if number == WARM_UP:
            join.settle()
            read = 0
        observed.append([out for out in join.take(batch) if out.topic == "observations"])
        read += batch.values.size
        if number == 0:
            stage.take(log.batch(observed[0]))
            first_s = stage.seconds
            stage.settle()
            low = log.next
    rounds, over = 0, False
    for outs in _going_on(observed[1:]):
        stage.take(log.batch(outs))
        rounds += 1
        if stage.ledger.manifest.offsets["observations", 0] > low or rounds == DETECT_ROUNDS_MAX:
            if over:
                break
            # The first time some detectors had to be fed early, to say that they have seen enough.
            stage.settle()
            rounds, over, low = 0, True, log.next
    gc.collect()
    own = ROUNDS - WARM_UP
    detect_us = stage.seconds / (rounds * shape.events) * 1e6
    share = join.written / read + stage.written / (read / own * rounds)
    return Cost(
        join.seconds / (own * shape.events) * 1e6,
        detect_us,
        share,
        max(0.0, first_s * 1e6 - detect_us * shape.events) / shape.models / 1e3,
        (join.stored + stage.stored) / shape.models / 1e3,
        (_resident() - before) / shape.models / 1e3,
    )


def _resident() -> int:
    """Bytes of memory of this process, where the system says; else 0."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4_096 if status.exists() else 0


class Log:
    """Records of ``observations`` in their order."""

    def __init__(self) -> None:
        self.next = 0

    def batch(self, outs: list[Out]) -> RecordBatch:
        """The next records."""
        offsets = np.arange(self.next, self.next + len(outs))
        self.next += len(outs)
        headers = {i: o.headers for i, o in enumerate(outs) if o.headers}
        keys, values = Spans.of([o.key for o in outs]), Spans.of([o.value for o in outs])
        return RecordBatch("observations", 0, offsets, keys, values, headers, np.zeros(len(outs), np.int64))


def _going_on(rounds: list[list[Out]]) -> Iterator[list[Out]]:
    """Rounds as they are, then the last again and again, each time later and with other ids."""
    yield from rounds
    again = 0
    while True:
        again += 1
        yield [_later(out, again) for out in rounds[-1]]


def _later(out: Out, rounds: int) -> Out:
    shift_ms = rounds * ROUND_MS
    if out.headers.get(HEADER_KIND) == KIND_TICK:
        tick = Tick.model_validate_json(out.value or b"")
        tick = tick.model_copy(update={"event_time_ms": tick.event_time_ms + shift_ms})
        return out._replace(value=tick.model_dump_json().encode())
    block = decode_block(out.value or b"")
    other = block.identity ^ np.uint64(rounds << 40)
    return out._replace(
        value=encode_block(replace(block, event_time_ms=block.event_time_ms + shift_ms, identity=other))
    )


def records_of(name: str, shape: Shape) -> list[ModelRecord]:
    numeric = [Feature(name=f"f{i}", low=-10, high=10) for i in range(shape.features - 1)]
    categories = tuple(f"c{i}" for i in range(shape.segments))
    features = (*numeric, Feature(name="group", kind="categorical", categories=categories))
    monitoring = Monitoring(
        window=shape.window_ms, allowed_lateness=shape.window_ms, label_horizon=3_600_000, segments=("group",),
        detectors="default",
    )  # fmt: skip
    contract = ModelContract(model=name, features=features, monitoring=monitoring)
    if shape not in _REFERENCES:
        _REFERENCES[shape] = _reference(shape)
    version = ModelVersion(
        model=name, version="1", uri="bench/1", sha256="0" * 64, reference=_REFERENCES[shape]
    )
    return [ModelRecord(contract=contract), ModelRecord(version=version)]


#: All models of a shape share one, in memory too: it is the owner's, and as large as he makes it.
_REFERENCES: dict[Shape, Reference] = {}


def _reference(shape: Shape) -> Reference:
    rng = np.random.default_rng(1)
    rows = min(1_000, 100_000 // shape.features)
    normal = tuple(np.quantile(rng.normal(size=20_000), np.linspace(0, 1, 101)).tolist())
    columns = {f"f{i}": ColumnReference(rows=20_000, quantiles=normal) for i in range(shape.features - 1)}
    share = 1 / shape.segments
    columns["group"] = ColumnReference(rows=20_000, shares=(*([share] * shape.segments), 0.0))
    score = ColumnReference(rows=20_000, quantiles=tuple(np.linspace(0, 1, 101).tolist()))
    group = rng.integers(0, shape.segments, rows)
    sample = np.column_stack([rng.normal(size=(rows, shape.features - 1)), group])
    return Reference(columns=columns, score=score, rows=20_000, sample=tuple(map(tuple, sample.tolist())))


def batches(shape: Shape, events: int, rounds: int = ROUNDS) -> Iterator[RecordBatch]:
    """What each round brings: so many events in a minute of event time, of one model after the other, and a tick."""
    rng = np.random.default_rng(7)
    width = shape.features - 1
    for number in range(rounds):
        values, at = [], number * events
        times = np.sort(rng.integers(0, ROUND_MS, events)) + START_MS + number * ROUND_MS
        # Wide rows are drawn once: what a value is does not matter here, only that it is read.
        drawn = rng.normal(size=(2_000 if width > 50 else events, width)).tolist()
        scores = rng.uniform(0.01, 0.99, events)
        keys = [f"{at + i:08d}-bench-5a1e-4a1b-prediction-identifier" for i in range(events)]
        for i in range(events):
            features: dict[str, Any] = {f"f{j}": v for j, v in enumerate(drawn[i % len(drawn)])}
            features["group"] = f"c{(at + i) % shape.segments}"
            event = {
                "prediction_id": keys[i],
                "model": f"m{(at + i) % shape.models}",
                "version": "1",
                "event_time_ms": int(times[i]),
                "features": features,
                "score": float(scores[i]),
                "latency_ms": 3.25,
                "entity": "customer-" + keys[i][:8],
                "trace_id": "0123456789abcdef0123456789abcdef",
                "role": "stable",
                "status": "ok",
            }
            values.append(msgspec.json.encode(event))
        end_ms = START_MS + (number + 1) * ROUND_MS - 1
        tick = msgspec.json.encode({"event_time_ms": end_ms, "source": "bench"})
        first = number * (events + 1)
        yield RecordBatch(
            "predictions", 0, np.arange(first, first + events + 1), Spans.of([*(k.encode() for k in keys), None]),
            Spans.of([*values, tick]), {events: {HEADER_KIND: KIND_TICK}}, np.zeros(events + 1, np.int64),
        )  # fmt: skip


if __name__ == "__main__":
    print(msgspec.json.encode(asdict(measured(Shape(**msgspec.json.decode(sys.argv[1]))))).decode())
