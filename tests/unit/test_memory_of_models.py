"""How many bytes a model takes in the monitor that has few rows, as most of many have: it is not to creep up."""

from __future__ import annotations

import gc
import tracemalloc

from schemas.settings import MonitorSettings
from streams.core import detect, pipeline
from streams.core.delivery import StageContext
from tests.bench.monitor.costs import Log, Shape, Stage, batches, records_of, started

#: As long as this no detector speaks, so all rows are held.
ROUNDS = 20


def watched(models: int) -> tuple[Stage, Stage]:
    """Both cores, after each of the models had two events a minute."""
    shape = Shape(models=models)
    records = [record for at in range(models) for record in records_of(f"m{at}", shape)]
    settings = MonitorSettings()
    join = started(
        pipeline.create(StageContext("join", 0, 1, settings)), ("predictions", "feedback"), records
    )
    own = started(detect.create(StageContext("detect", 0, 1, settings)), ("observations",), records)
    log = Log()
    for batch in batches(shape, 2 * models, ROUNDS):
        own.take(log.batch([out for out in join.take(batch) if out.topic == "observations"]))
    return join, own


def test_bytes_of_a_model_of_few_rows() -> None:
    """Its contract, twenty windows of which all but two are closed, five detectors with what of them is stored, and the forty rows that wait for them."""
    watched(10)
    taken = []
    for models in (20, 80):
        gc.collect()
        tracemalloc.start()
        try:
            cores = watched(models)
            gc.collect()
            taken.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        del cores
    assert 100_000 < (taken[1] - taken[0]) / 60 < 160_000
