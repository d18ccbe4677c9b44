"""The detect stage: the same signals however records are cut, interleaved, or read again after a kill."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from detectors.base import Standing
from detectors.columns import columns_read, share_of_budget
from detectors.registry import spec_for
from schemas.blocks import BLOCK_SCHEMA, ObservationBlock, decode_block, encode_block
from schemas.contracts import ColumnReference, DetectorConfig, FalsePages, Feature
from schemas.events import HEADER_KIND, Tick
from schemas.verdicts import Family, SignalChanged, State
from streams.core.detect import DetectCore
from streams.core.detect_state import VERSIONS_MAX
from streams.core.ordering import column_values, merged
from streams.core.records import Record
from streams.core.standings import in_words
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
from tests.support_examples import examples
from tests.support_story import EVERY_MS, heard, interleaved, steps


def facts(found: list[SignalChanged]) -> list[tuple[Any, ...]]:
    """What may not depend on cuts or order: everything but the address of the last row before a block closed."""
    return sorted(
        (s.detector, s.version, s.event_time_ms, s.previous, s.verdict.model_dump_json(), s.signal_id)
        for s in found
    )


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


@examples(8)
@given(
    seed=st.integers(0, 10_000), hours=st.sampled_from([1, 2, 5, 13, 48]), batch=st.sampled_from([1, 7, 400])
)
def test_no_order_shows(seed: int, hours: int, batch: int) -> None:
    """Partitions interleaved anyhow, time told often or seldom, records in batches of any size: the same signals."""
    found = heard(started(), records(interleaved(steps(seed, hours), seed)), batch)
    assert facts(found) == facts(EXPECTED)
    assert len({s.signal_id for s in found}) == len(found)


@examples(8)
@given(seed=st.integers(0, 10_000), kills=st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_killed_and_restored(seed: int, kills: list[float]) -> None:
    """Killed after any commits, and read again from the manifest's offset: nothing is said twice, nothing is missed."""
    detectors = [d for d in contract().monitoring.detectors if d.kind != "river-drift"]
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
        name.split("/")[2]
        for name, data in core.changed_pieces().items()
        if data is not None and name.startswith("detector/")
    }
    assert kept == set(versions[-VERSIONS_MAX:])


# -- what a detector is given ---------------------------------------------------------------------------------------


def test_the_stream_of_predictions_has_answers_and_inputs_together() -> None:
    """Score, latency, error, then all features; what a heuristic answered is an error and no score of the version."""
    good = predictions([T0, T0 + 1], identity=[1, 2], score=[0.2, 0.4], x=[5.0, 6.0])
    bad = predictions([T0], identity=[3], score=[0.9], x=[7.0], status="fallback")
    assert_array_equal(column_values("predictions", good), [[0.2, 1, 0, 5, 0], [0.4, 1, 0, 6, 0]])
    assert_array_equal(column_values("predictions", bad), [[np.nan, 1, 1, 7, 0]])
    numbers = DetectorConfig(name="d", kind="adwin", stream="predictions")
    whole = DetectorConfig(name="d", kind="psi", stream="predictions")
    told = columns_read(contract(), numbers, spec_for(detector("adwin")))
    assert told == (("score", "latency_ms", "error", "x"), (0, 0, 0, 0), (0, 1, 2, 3))
    names, categories, _ = columns_read(contract(), whole, spec_for(detector("psi")))
    assert (names[-1], categories[-1]) == ("where", 2)


def detector(kind: str, **changes: Any) -> DetectorConfig:
    """A detector ``d`` of a kind with its defaults, on features unless told otherwise."""
    return DetectorConfig(**({"name": "d", "kind": kind, "stream": "features"} | changes))


def test_outcomes_carry_the_segments_of_their_prediction() -> None:
    """Columns of stream ``loss`` after the three fixed ones, null as NaN; kept by the wire, the order and the merge."""
    block = outcomes([T0, T0 + 1, T0 + 2], identity=[1, 2, 3], segments=[[0], [1], [-1]])
    assert_array_equal(column_values("loss", decode_block(encode_block(block)))[:, 3], [0, 1, np.nan])
    config = detector("loss-above-promise", stream="loss")
    watched = contract([config], monitoring={"segments": ("where",)})
    names, categories, places = columns_read(watched, config, spec_for(config))
    assert (names, categories, places) == (("score", "label", "loss", "where"), (0, 0, 0, 2), (0, 1, 2, 3))


def test_blocks_of_the_first_schema_are_read() -> None:
    """Written before there were segments: nobody knows them, and everything else is as it was."""
    head = msgspec.msgpack.decode(encode_block(outcomes([T0], identity=[1], segments=[[1]])))
    assert head.pop("schema") == BLOCK_SCHEMA == 4
    del head["segments"], head["segment_width"]
    old = decode_block(msgspec.msgpack.encode({"schema": 1, **head}))
    assert (len(old), old.segments.shape, old.identity.tolist()) == (1, (0, 0), [1])


def test_segments_coded_otherwise_are_not_known() -> None:
    """Blocks without segments, and of a contract with other categories, go together with those that have them."""
    config = detector("loss-above-promise", stream="loss")
    before = contract([config], monitoring={"segments": ("where",)})
    where = Feature(name="where", kind="categorical", categories=("a", "b"))
    now = contract(
        [config], monitoring={"segments": ("where",)}, features=(Feature(name="x"), where), revision=2
    )
    core = started((before, version("v1")))
    core.activate([_record(now)])
    told = [
        outcomes([T0], identity=[2], segments=[[1]], contract_hash=before.hash),
        outcomes([T0], identity=[3], segments=[[1]], contract_hash=now.hash),
        outcomes([T0], identity=[4]),
    ]
    read = [found for block in told if (found := core._readable(block)) is not None]
    assert_array_equal(column_values("loss", merged(read))[:, 3], [np.nan, 1, np.nan])


def test_a_detector_knows_features_training_and_its_part_of_the_budget() -> None:
    """The contract's features by column, the end of the training data, and one over those that spend the budget."""
    detectors = [*contract().monitoring.detectors, detector("psi", name="e")]
    where = Feature(name="where", kind="categorical", categories=("a",))
    watched = contract(detectors, features=(Feature(name="x", low=0, high=1), where))
    core = started((watched, version("v1").model_copy(update={"trained_to_ms": T0})))
    core.apply(records([predictions([T0], identity=[1]), tick(T0)]), 0)
    context = core._running["m", "v1", "inputs"].context
    assert context.features == {"x": watched.features[0], "where": where}
    assert context.trained_to_ms == T0
    paging = [d for d in detectors if spec_for(d).spends_budget]
    assert [d.name for d in paging] == ["harm", "inputs", "e"]
    assert context.share == share_of_budget(watched) == 1 / len(paging)
    assert share_of_budget(contract([detector("psi")])) == 1
    assert core._running["m", "v1", "adwin"].context.features == {}


# -- false alarms ---------------------------------------------------------------------------------------------------


def test_a_signal_says_how_far_its_promise_was_verified() -> None:
    """``pages`` and ``standing`` of a signal are its detector's standing; one of no bound does not page."""
    told = {s.detector: (s.pages, s.standing) for s in EXPECTED}
    assert told["harm"][0]
    assert not told["adwin"][0]
    assert "no bound" in told["adwin"][1]
    day = 24.0 * HOUR
    words = in_words(Standing("proved", 90 * day, 60 * day, 0, True, "and so it is"))
    assert "one false alarm in 90 d; 0 in 60 d of reference" in words
    assert words.endswith("unverified beyond 60 d; and so it is")
    assert "unverified" not in in_words(Standing("resampled", 30 * day, 60 * day, 1))
    assert in_words(Standing("proved", day)).endswith("unverified; no bound on false alarms is known")


def test_a_restored_core_builds_from_the_same_fit_and_asks_for_none() -> None:
    """A knob fitted to the budget and the standing are parts of the detector's piece; the configuration stays as written."""
    config = detector("kswin", stream="score", options={"window_size": 40, "stat_size": 15})
    x = np.random.default_rng(1).uniform(size=400)
    known = version("v1")
    reference = known.reference.model_copy(
        update={
            "score": ColumnReference(rows=400, quantiles=tuple(np.linspace(0, 1, 101).tolist())),
            "sample": tuple((float(v), 0.0) for v in x),
            "sample_score": tuple(x.tolist()),
            "sample_time_ms": tuple(range(T0 - 400 * HOUR, T0, HOUR)),
            "rows": 400, "from_ms": T0 - 400 * HOUR, "to_ms": T0,
        }
    )  # fmt: skip
    long = {"false_pages": FalsePages(max=1, per=36_500 * 24 * HOUR)}
    models = (contract([config], monitoring=long), known.model_copy(update={"reference": reference}))
    core = started(models)
    core.apply(records([predictions([T0], identity=[1]), tick(T0)]), 0)
    running = core._running["m", "v1", config.name]
    assert running.standing.basis == "resampled"
    assert running.spec.model_dump() != spec_for(config).model_dump()
    pieces = {name: data for name, data in core.changed_pieces().items() if data is not None}
    again = started(models, restored=(pieces, manifest_of(core, 2)))
    restored = again._running["m", "v1", config.name]
    assert (restored.spec, restored.standing) == (running.spec, running.standing)
    assert not [key for key in again._cache if key.startswith("calibrate/")]


def test_a_changed_budget_keeps_the_evidence() -> None:
    """Detectors go on under the new threshold; their state is the one they had."""
    core = started()
    heard(core, records(interleaved(steps(0, 6), 0))[:1500])
    before = {key: running.detector.snapshot() for key, running in core._running.items()}
    core.activate([_record(contract(monitoring={"false_pages": FalsePages(max=7)}, revision=2))])
    after = core._running["m", "v1", "harm"]
    assert after.context.false_pages == FalsePages(max=7)
    assert after.detector.snapshot() == before["m", "v1", "harm"]
    assert set(core._running) == set(before)
    assert set(core.changed_pieces()) >= {f"detector/{'/'.join(key)}" for key in before}


def test_a_segment_that_errs_is_named() -> None:
    """From outcomes with their segments to the signal: the loss of one airport is above what its scores promise."""
    inner = {"kind": "loss-above-promise", "options": {"block_ms": 6 * HOUR, "rows_min": 5, "threshold": 20}}
    config = detector("segments", stream="loss", options={"detector": inner})
    watched = contract([config], monitoring={"segments": ("where",)})
    core = started((watched, version("v1")))
    rng = np.random.default_rng(3)
    at = T0 + np.sort(rng.integers(0, 20 * 24 * HOUR, 4_000))
    where = rng.integers(0, 2, 4_000)
    label = rng.uniform(size=4_000) < np.where(where == 1, 0.7, 0.1)
    end = int(at[-1]) + 48 * HOUR
    told: list[ObservationBlock | Tick] = [
        outcomes(at, identity=range(4_000), label=label, score=np.full(4_000, 0.1), segments=where[:, None]),
        tick(end, feedback_ms=end),
    ]
    drifts = [s for s in heard(core, records(told)) if s.verdict.state is State.DRIFT]
    assert [(s.family, s.verdict.evidence.column) for s in drifts] == [
        (Family.CONCEPT, "loss (where=(other))")
    ]
    assert drifts[0].standing
