"""The detect stage: the same signals however records are cut, interleaved, or read again after a kill."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.blocks import ObservationBlock
from schemas.contracts import DetectorConfig, Feature
from schemas.events import HEADER_KIND, Tick
from schemas.verdicts import Family, SignalChanged, State
from streams.core.delivery import Record
from streams.core.detect import VERSIONS_MAX, DetectCore
from tests.support_detect import (
    HOUR,
    T0,
    contract,
    manifest_of,
    outcomes,
    predictions,
    records,
    signals,
    started,
    tick,
    version,
)

DAYS = 5
EVERY_MS = 10 * 60_000


def story(seed: int = 1) -> dict[str, list[ObservationBlock]]:
    """Five days of v1, and of v2 as its canary from the second day: inputs move, v2 errs. Row by row, by partition."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[ObservationBlock]] = {"0": [], "1": []}
    for i in range(DAYS * 24 * HOUR // EVERY_MS):
        at = T0 + i * EVERY_MS + int(rng.integers(0, EVERY_MS))
        moved = i > 2 * 144
        x = float(rng.uniform(0.7, 1.0) if moved else rng.uniform(0, 1))
        label = float(rng.random() < (0.7 if moved else 0.1))
        ours = 0.3 if moved else 0.1
        roles = [("v1", "stable", ours)]
        if i > 144:
            roles = (
                [("v1", "shadow", ours), ("v2", "canary", 0.6)]
                if i % 4 == 0
                else [*roles, ("v2", "shadow", 0.6)]
            )
        mine = rows[str(i % 2)]
        identity = [int(rng.integers(0, 2**62))]
        label_ms = [at + int(rng.integers(HOUR, 4 * HOUR))]
        for who, role, score in roles:
            told: dict[str, Any] = {"identity": identity, "who": who, "role": role, "score": [score]}
            mine.append(predictions([at], x=[x], **told))
            mine.append(outcomes([at], label=[label], label_ms=label_ms, **told))
    return rows


def steps(seed: int, hours: int) -> list[list[ObservationBlock | Tick]]:
    """The story as two join tasks would write it: each its rows up to a time, then its tick; every so many hours."""
    left = story()
    found: list[list[ObservationBlock | Tick]] = []
    rng = random.Random(seed)
    for source, rows in left.items():
        written: list[ObservationBlock | Tick] = []
        order = sorted(rows, key=lambda block: int(block.order_ms[0]))
        for hour in range(hours, DAYS * 24 + 24 + hours, hours):
            until = T0 + hour * HOUR
            due = [block for block in order if int(block.order_ms[0]) <= until]
            order = order[len(due) :]
            rng.shuffle(due)
            written += [*due, tick(until, int(source), 2, until)]
        found.append(written)
    return found


def interleaved(sources: list[list[ObservationBlock | Tick]], seed: int) -> list[ObservationBlock | Tick]:
    """Each source in its own order, mixed at random."""
    rng, heads = random.Random(seed), [list(source) for source in sources]
    mixed = []
    while any(heads):
        head = rng.choice([head for head in heads if head])
        mixed.append(head.pop(0))
    return mixed


def facts(found: list[SignalChanged]) -> list[tuple[Any, ...]]:
    """What may not depend on cuts or order: everything but the address of the last row before a block closed."""
    return sorted(
        (s.detector, s.version, s.event_time_ms, s.previous, s.verdict.model_dump_json(), s.signal_id)
        for s in found
    )


def heard(core: DetectCore, given_records: list[Record], batch: int = 10_000) -> list[SignalChanged]:
    """The signals of ``given_records``, applied in batches."""
    found: list[SignalChanged] = []
    for start in range(0, len(given_records), batch):
        core.apply(given_records[start : start + batch], 0)
        found += signals(core.outputs())
    return found


EXPECTED = heard(started(), records(interleaved(steps(0, 6), 0)))


def test_the_story_is_told() -> None:
    """Inputs that move, a loss above its promise and a worse candidate are each found, under their family and version."""
    drift = Counter((s.detector, s.version, s.family) for s in EXPECTED if s.verdict.state is State.DRIFT)
    assert set(drift) >= {
        ("harm", "v1", Family.CONCEPT),
        ("inputs", "v1", Family.INPUT),
    }
    judged = [s for s in EXPECTED if s.detector == "judge"]
    assert {(s.version, s.role, s.family) for s in judged} == {("v2", "canary", Family.COMPARISON)}
    assert [s.verdict.evidence.rows for s in judged] == sorted({s.verdict.evidence.rows for s in judged})
    assert all(T0 <= s.event_time_ms <= T0 + 6 * 24 * HOUR for s in EXPECTED)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000), hours=st.sampled_from([1, 2, 5, 13, 48]), batch=st.sampled_from([1, 7, 400])
)
def test_no_order_shows(seed: int, hours: int, batch: int) -> None:
    """Partitions interleaved anyhow, time told often or seldom, records in batches of any size: the same signals."""
    found = heard(started(), records(interleaved(steps(seed, hours), seed)), batch)
    assert facts(found) == facts(EXPECTED)
    assert len({s.signal_id for s in found}) == len(found)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), kills=st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_killed_and_restored(seed: int, kills: list[float]) -> None:
    """Killed after any commits, and read again from the manifest's offset: nothing is said twice, nothing is missed."""
    detectors = [d for d in contract().monitoring.detectors if d.kind != "adwin"]
    models = (contract(detectors), version("v1"), version("v2"))
    everything = records(interleaved(steps(seed, 3), seed))
    core, found, pieces, at = started(models), [], {}, 0
    for share in [*sorted(kills), 1.0]:
        end = int(share * len(everything))
        found += heard(core, everything[at:end], 50)
        for name, data in core.changed_pieces().items():
            if data is None:
                del pieces[name]
            else:
                pieces[name] = data
        manifest = manifest_of(core, end)
        assert manifest.offsets[("observations", 0)] <= end
        core = started(models, restored=(dict(pieces), manifest))
        assert core.watermarks() == manifest.watermarks
        at = manifest.offsets[("observations", 0)]
        found += signals(core.outputs())
    assert facts(found) == facts([s for s in EXPECTED if s.detector != "adwin"])


def test_a_library_detector_warms_up_again() -> None:
    """What has no snapshot starts again after a restart, and is not silently gone."""
    everything = records(interleaved(steps(0, 6), 0))
    core = started()
    heard(core, everything[:600])
    pieces = {name: data for name, data in core.changed_pieces().items() if data is not None}
    again = started(restored=(pieces, manifest_of(core, 600)))
    found = heard(
        again, [r for r in everything if r.offset >= manifest_of(core, 600).offsets[("observations", 0)]]
    )
    assert State.DRIFT in {s.verdict.state for s in found if s.detector == "adwin"}


def test_nothing_before_every_source_has_told_the_time() -> None:
    """One of two sources is not enough; the slower decides, and its ticks go to all signals partitions."""
    core = started(partitions=3)
    core.apply(records([predictions([T0], identity=[1]), tick(T0 + HOUR, 0, 3), tick(T0 + HOUR, 1, 3)]), 0)
    assert core.outputs() == []
    assert core.positions() == {("observations", 0): 0}
    core.apply(records([tick(T0 + 10, 2, 3)], 3), 0)
    outs = core.outputs()
    assert [(out.topic, out.partition) for out in outs] == [("signals", 0), ("signals", 1), ("signals", 2)]
    told = Tick.model_validate_json(outs[0].value or b"")
    assert (told.source, told.sources, told.event_time_ms) == ("detect/0", 3, T0 + 10)
    assert core.positions() == {}


def test_every_advance_is_passed_on() -> None:
    """Three ticks in one batch are three advances, though only the last would be needed to catch up."""
    core = started()
    core.apply(records([tick(T0 + hour * HOUR) for hour in (1, 2, 3)]), 0)
    times = [
        Tick.model_validate_json(out.value or b"").event_time_ms
        for out in core.outputs()
        if out.partition == 0
    ]
    assert times == [T0 + HOUR, T0 + 2 * HOUR, T0 + 3 * HOUR]


def test_outcomes_wait_for_feedback() -> None:
    """Prediction rows go by the prediction watermark alone; outcomes by the lesser of the two."""
    core = started()
    core.apply(
        records(
            [outcomes([T0], identity=[1]), predictions([T0], identity=[1]), tick(T0 + 5 * HOUR, 0, 1, T0)]
        ),
        0,
    )
    assert core.positions() == {("observations", 0): 0}
    assert core.watermarks() == {"predictions": T0 + 5 * HOUR, "feedback": T0}
    core.apply(records([tick(T0 + 5 * HOUR, 0, 1, T0 + HOUR)], 3), 0)
    assert core.positions() == {}


def _judged(core: DetectCore, items: list[ObservationBlock | Tick], start: int = 0) -> list[SignalChanged]:
    return [s for s in heard(core, records(items, start)) if s.detector == "judge"]


def test_a_late_label_of_an_old_canary_changes_no_pair() -> None:
    """v3 was rolled back and v4 is canary; a label of v3 that comes days later neither drops v4's evidence nor counts."""
    items: list[ObservationBlock | Tick] = []
    for i in range(96):
        at, who = T0 + i * HOUR // 2, "v3" if i < 20 else "v4"
        items.append(outcomes([at], identity=[i], who="v1", role="shadow"))
        items.append(outcomes([at], identity=[i], who=who, role="canary", score=[0.2]))
    items.append(outcomes([T0], identity=[-1 & 2**40], who="v1", role="stable"))
    late = outcomes([T0 + HOUR], identity=[7_000], who="v3", role="canary", label_ms=[T0 + 40 * HOUR])
    plain = _judged(started(), [*items, tick(T0 + 60 * HOUR)])
    with_late = _judged(started(), [*items, late, tick(T0 + 60 * HOUR)])
    assert {s.version for s in plain} == {"v3", "v4"}
    assert facts(with_late) == facts(plain)


def test_heuristics_are_no_version() -> None:
    """Answers of the fallback say nothing of a version: only their inputs are read, and never under their own name."""
    at = [T0 + i * EVERY_MS for i in range(200)]
    blocks: list[ObservationBlock | Tick] = [
        outcomes(at, identity=range(200), status="fallback", score=np.full(200, 0.1), label=np.ones(200)),
        outcomes(at, identity=range(200, 400), who="fallback", status="fallback", label=np.ones(200)),
        tick(T0 + 72 * HOUR),
    ]
    assert heard(started(), records(blocks)) == []
    assert {s.version for s in heard(started(), records([outcomes(at, identity=range(200), label=np.ones(200)), tick(T0 + 72 * HOUR)]))} == {"v1"}  # fmt: skip


def test_rows_coded_by_another_contract_are_left_out() -> None:
    """A contract that gains a feature while rows wait: they are counted and passed over, and nothing dies."""
    core = started()
    core.apply(records([predictions([T0], identity=[1], contract_hash=contract().hash)]), 0)
    grown = (*contract().features, Feature(name="z"))
    core.activate([_record(contract(features=grown, revision=2))])
    wide = predictions([T0 + 1], identity=[2], features=np.zeros((1, 3)))
    core.apply(records([wide, tick(T0 + HOUR)], 1), 0)
    counted = {labels["where"]: value for name, labels, value in core.measurements() if "errors" in name}
    assert counted == {"detect: rows of another coding of the features": 1}
    assert core.positions() == {}


def _record(found: Any) -> Any:
    from schemas.contracts import ModelRecord

    return ModelRecord(contract=found)


@pytest.mark.parametrize("value", [b"", b"nonsense", b"\x81\xa6schema\x09"])
def test_bytes_that_are_no_block_are_counted(value: bytes) -> None:
    """Neither a bad block nor a bad tick ends the process."""
    core = started()
    core.apply([Record("observations", 0, 0, b"m", value), Record("observations", 0, 1, None, value, {HEADER_KIND: b"tick"})], 0)  # fmt: skip
    assert sum(amount for name, _, amount in core.measurements() if "errors" in name) == 2
    assert core.outputs() == []


def test_a_changed_option_starts_one_detector_anew() -> None:
    """Only the detector whose configuration changed forgets; the others keep their pieces."""
    core = started()
    heard(core, records(interleaved(steps(0, 6), 0))[:1500])
    before = core.changed_pieces()
    changed = [
        d if d.name != "harm" else d.model_copy(update={"options": {**d.options, "threshold": 50}})
        for d in contract().monitoring.detectors
    ]
    core.activate([_record(contract(changed, revision=2))])
    after = core.changed_pieces()
    assert "detector/m/v1/harm" in before
    assert {name for name, data in after.items() if data is None} == {
        n for n in before if n.endswith("/harm")
    }


def test_a_detector_that_cannot_be_built_says_so_once() -> None:
    """One error signal with the reason; the other detectors go on."""
    broken = DetectorConfig(name="broken", kind="drift-e-blocks", stream="features", options={"zone": 7})
    core = started((contract([*contract().monitoring.detectors, broken]), version("v1"), version("v2")))
    found = heard(core, records(interleaved(steps(0, 6), 0)))
    errors = [s for s in found if s.verdict.state is State.ERROR]
    assert {(s.detector, s.version) for s in errors} == {("broken", "v1"), ("broken", "v2")} or len(
        errors
    ) == 1
    assert all("zone" in s.verdict.evidence.note for s in errors)
    assert any(s.detector == "harm" for s in found)


def test_old_versions_make_room() -> None:
    """The detectors of the version unseen for longest are dropped, their pieces with them."""
    core = started()
    versions = [f"w{i}" for i in range(VERSIONS_MAX + 3)]
    for i, who in enumerate(versions):
        core.apply(records([predictions([T0 + i], identity=[i], who=who), tick(T0 + i)], 2 * i), 0)
    kept = {
        name.split("/")[2] for name, data in core.changed_pieces().items() if data is not None and "/" in name
    }
    assert kept == set(versions[-VERSIONS_MAX:])
