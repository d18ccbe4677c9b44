"""Rows of models that have few: held as long as nobody could speak, so that what is said, and when, is the same."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import ObservationBlock
from schemas.contracts import DetectorConfig, ModelRecord
from schemas.events import Tick
from schemas.settings import MonitorSection, MonitorSettings
from schemas.verdicts import SignalChanged
from streams.core.delivery import StageContext
from streams.core.detect import DetectCore, create
from streams.core.holding import AGE_MAX_MS, ROWS_MAX, Queue, Waiting
from tests.support_detect import (
    HOUR,
    T0,
    contract,
    manifest_of,
    outcomes,
    predictions,
    records,
    signals,
    tick,
    version,
)
from tests.support_examples import examples

MINUTE = 60_000


def _config(name: str, kind: str, stream: Any, **options: Any) -> DetectorConfig:
    return DetectorConfig(name=name, kind=kind, stream=stream, options=options)


PATIENT = (
    _config("harm", "loss-above-promise", "loss", block_ms=20 * MINUTE, rows_min=3, threshold=5),
    DetectorConfig(name="judge", kind="paired-judge", stream="comparison", options={"block_ms": HOUR}),
    _config("quality", "quality", "features", block_ms=20 * MINUTE, rows_min=20, effect_min=0.0),
    _config("outliers", "robust-z", "features", window_rows=50, warm_up_rows=100),
    _config("fresh", "freshness", "features", silence_max=7 * MINUTE, rows_min=5),
    _config("psi", "psi", "features", block_ms=30 * MINUTE, rows_min=20),
)
#: With one that may speak at once, to which nothing is held back.
IMPATIENT = (*PATIENT, _config("shift", "drift-e", "features"))


def stage(detectors: tuple[DetectorConfig, ...], held_bytes_max: int, restored: Any = None) -> DetectCore:
    """A core; with ``held_bytes_max`` 0 it feeds whatever the watermark has passed."""
    limits = MonitorSettings(monitor=MonitorSection(held_bytes_max=held_bytes_max))
    core = create(StageContext("detect", 0, 1, limits))
    models = [
        ModelRecord(contract=contract(detectors)),
        *(ModelRecord(version=version(v)) for v in ("v1", "v2")),
    ]
    core.activate(models)
    core.restore(*(restored or ({}, None)))
    return core


def stream(seed: int, n: int = 3_000) -> list[ObservationBlock | Tick]:
    """A row every two seconds with what happens to one: drift, outliers, nulls, a silence, a new version, a row too late;
    labels; the time from two sources, every few seconds."""
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    items: list[ObservationBlock | Tick] = []
    at, told = T0, T0
    for i in range(n):
        at += chance.randrange(500, 3_500) + (10 * MINUTE if i in (n // 4, n // 2) else 0)
        x = (
            float("nan")
            if n // 5 < i < n // 4
            else float(rng.uniform(0.4, 1) if i > n // 3 else rng.uniform())
        )
        x = 50.0 if i % 9 == 0 and i > n // 2 else x
        who, role = ("v2", "canary") if i > 3 * n // 4 and i % 3 == 0 else ("v1", "stable")
        row_ms = at - 2 * MINUTE if chance.random() < 0.02 else at
        made = {"identity": [i], "who": who, "role": role, "score": [float(rng.uniform(0, 0.2))]}
        items.append(predictions([row_ms], x=[x], **made))
        if i % 2:
            wrong = float(rng.random() < (0.8 if i > n // 2 else 0.1))
            items.append(outcomes([row_ms], label=[wrong], label_ms=[at + 1_000], **made))
        if at - told > 5_000:
            told = at - chance.randrange(3_000)
            items += [tick(told - chance.randrange(1_000), source, 2) for source in (0, 1)]
    return [*items, *(tick(at + HOUR, source, 2) for source in (0, 1))]


def said(core: DetectCore, items: list[Any], start: int = 0) -> list[SignalChanged]:
    core.apply(records(items, start), 0)
    return signals(core.outputs())


@pytest.mark.parametrize("detectors", [PATIENT, IMPATIENT], ids=["patient", "impatient"])
def test_holding_rows_changes_nothing_that_is_said(detectors: tuple[DetectorConfig, ...]) -> None:
    """The same signals in the same order at the same ticks, each with the address of the same row."""
    items = stream(1, 2_000)
    held, fed = stage(detectors, 10**9), stage(detectors, 0)
    behind = 0
    for offset, item in enumerate(items):
        assert said(held, [item], offset) == said(fed, [item], offset), offset
        behind = max(behind, offset - held.positions().get(("observations", 0), offset))
    kept = {s.detector for s in said(stage(PATIENT, 10**9), items)}
    assert kept >= {"harm", "quality", "outliers", "fresh", "psi"}
    assert behind > 300


@examples(4)
@given(seed=st.integers(0, 99), kills=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_rows_that_are_held_survive_a_kill(seed: int, kills: list[float]) -> None:
    """What was held is read again, what was fed is not fed again: the signals of a worker that never died."""
    items = stream(seed, 1_000)
    everything = records(items)
    expected = said(stage(PATIENT, 10**9), items)
    core, found, pieces, at = stage(PATIENT, 10**9), [], dict[str, bytes](), 0
    for share in [*sorted(kills), 1.0]:
        end = int(share * len(everything))
        for start in range(at, end, 40):
            core.apply(everything[start : min(end, start + 40)], 0)
            found += signals(core.outputs())
        for name, data in core.changed_pieces().items():
            if data is None:
                del pieces[name]
            else:
                pieces[name] = data
        manifest = manifest_of(core, end)
        core = stage(PATIENT, 10**9, (dict(pieces), manifest))
        at = manifest.offsets[("observations", 0)]
        assert core.outputs() == []
    assert [s.model_dump_json() for s in found] == [s.model_dump_json() for s in expected]


def test_what_is_held_is_bounded() -> None:
    """By rows of the model, by bytes that came since, and by event time; then its place in the log moves on."""
    quiet = (_config("quality", "quality", "features"),)
    first = [predictions([T0 + HOUR], identity=[0]), tick(T0 + HOUR)]
    one = predictions([T0 + HOUR + 1], identity=[1])
    for later, held_bytes_max in (
        ([predictions([T0 + HOUR + 2] * ROWS_MAX, identity=range(2, ROWS_MAX + 2))], 10**9),
        ([replace(predictions([T0 + HOUR + 2] * 300, identity=range(300)), model="other")], 20_000),
        ([], 10**9),
    ):
        core = stage(quiet, held_bytes_max)
        said(core, [*first, one, tick(T0 + HOUR + 1)])
        assert core.positions() == {("observations", 0): 2}, "held"
        end_ms = T0 + HOUR + (2 if later else 2 + AGE_MAX_MS)
        said(core, [*later, tick(end_ms)], 4)
        assert core.positions() == {}


def test_a_new_contract_reads_what_comes_after_it() -> None:
    """What the watermark had passed was read under the contract of then, held or not."""
    core = stage((_config("quality", "quality", "features"),), 10**9)
    said(core, [predictions([T0 + HOUR], identity=[0]), tick(T0 + HOUR)])
    said(core, [predictions([T0 + HOUR + 1], identity=[1]), tick(T0 + HOUR + 1)], 2)
    assert core.positions() == {("observations", 0): 2}
    changed = contract((_config("quality", "quality", "features", tail=1e-9),), revision=2)
    core.activate([ModelRecord(contract=changed)])
    assert core.positions() == {}


def test_a_model_may_be_known_by_the_time_its_rows_are_due() -> None:
    """Rows of a model that nobody knows are dropped when they are due, and not before."""
    core = create(StageContext("detect", 0, 1, MonitorSettings()))
    core.restore({}, None)
    core.activate([ModelRecord(version=version("v1"))])
    said(core, [predictions([T0, T0 + HOUR], identity=[0, 1]), tick(T0)])
    assert core.positions() == {("observations", 0): 0}
    core.activate([ModelRecord(contract=contract((_config("quality", "quality", "features"),)))])
    said(core, [tick(T0 + HOUR)], 2)
    assert core._progress["m"].seen == {"v1": T0 + HOUR}
    assert core.positions() == {}


def test_time_that_passes_no_row_hands_over_none() -> None:
    """A block of which some rows are due and others are not for long: the moments between are nobody's."""
    block = predictions([T0, T0 + 10_000, T0 + 60_000], x=[0.1, 0.2, 0.3], identity=[1, 2, 3])
    times = np.sort(block.order_ms)
    queue = Queue(ahead=[Waiting(0, block, int(times[0]), int(times[-1]))])
    handed: list[int] = []
    for time_ms in (int(times[0]), *range(int(times[0]) + 1, int(times[-1]) + 1, 997), int(times[-1])):
        queue.pass_(time_ms)
        taken = queue.take()
        assert all(len(part) for part in taken)
        handed += [time for part in taken for time in part.order_ms.tolist()]
    assert sorted(handed) == times.tolist()
