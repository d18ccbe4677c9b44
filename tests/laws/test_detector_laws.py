"""One suite over the whole registry: a new detector is held to the protocol by being listed there."""

from __future__ import annotations

import inspect
from collections.abc import MutableMapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from detectors.base import STREAM_COLUMNS, Change, Context, Detector, Patient, Rows, Spec, Stream
from detectors.registry import KINDS, spec_class, spec_for
from schemas.contracts import (
    DEFAULT_DETECTORS,
    ColumnReference,
    DetectorConfig,
    FalsePages,
    Feature,
    Monitoring,
    Reference,
)
from schemas.errors import ConfigurationError, SnapshotError
from schemas.verdicts import State
from tests.support_examples import examples

HOUR_MS = 3_600_000
GRID = tuple(float(q) for q in np.linspace(-3, 3, 101))
_RNG = np.random.default_rng(11)
_SCORES = _RNG.uniform(size=400)
DECILES = (0.01, 0.09, *(0.1,) * 8, 0.09, 0.01)
REFERENCE = Reference(
    columns={
        "a": ColumnReference(rows=2_000, quantiles=GRID, mean=0.0, sd=1.0),
        "b": ColumnReference(rows=2_000, quantiles=GRID, mean=0.0, sd=1.0),
        "c": ColumnReference(rows=2_000, shares=(0.5, 0.3, 0.15, 0.05)),
    },
    score=ColumnReference(rows=2_000, quantiles=tuple(float(q) for q in np.linspace(0, 1, 101))),
    loss_mean=0.5,
    loss_blocks=tuple(0.5 + 0.05 * float(x) for x in np.sin(np.arange(40))),
    loss_block_ms=HOUR_MS,
    block_ms=HOUR_MS,
    bins={
        name: tuple((*_RNG.multinomial(60, shares).tolist(), 0) for _ in range(40))
        for name, shares in {
            "a": DECILES,
            "b": DECILES,
            "c": (0.5, 0.3, 0.15, 0.05),
            "score": DECILES,
        }.items()
    },
    sample=tuple(
        (float(a), None if b > 2 else float(b), float(c))
        for a, b, c in zip(
            *_RNG.normal(size=(2, 400)), _RNG.choice(4, 400, p=(0.5, 0.3, 0.15, 0.05)), strict=True
        )
    ),
    sample_time_ms=tuple(int(t) for t in np.linspace(-30 * 86_400_000, -1, 400)),
    sample_score=tuple(_SCORES.tolist()),
    sample_label=tuple((_RNG.uniform(size=400) < _SCORES).astype(float).tolist()),
)
FEATURES = {
    "a": Feature(name="a", low=-5, high=8),
    "b": Feature(name="b", nullable=True),
    "c": Feature(name="c", kind="categorical", categories=("x", "y", "z")),
}
#: Small numbers, so that verdicts come within the few rows of an example.
SMALL: dict[str, dict[str, Any]] = {
    "loss-above-promise": {"block_ms": HOUR_MS, "rows_min": 3, "threshold": 20},
    "risk-e": {"rows_min": 3, "threshold": 20},
    "paired-judge": {"block_ms": HOUR_MS, "alpha": 0.2},
    "drift-e": {"rows_min": 16, "run": 20 * HOUR_MS},
    "drift-e-blocks": {"rows_min": 3, "run": 20 * HOUR_MS},
    "psi": {"block_ms": 6 * HOUR_MS, "rows_min": 10},
    "jensen-shannon": {"block_ms": 6 * HOUR_MS, "rows_min": 10},
    "hellinger": {"block_ms": 6 * HOUR_MS, "rows_min": 10},
    "wasserstein": {"block_ms": 6 * HOUR_MS, "rows_min": 10},
    "ks": {"block_ms": 6 * HOUR_MS, "rows_min": 10, "alpha": 0.01},
    "cramer-von-mises": {"block_ms": 6 * HOUR_MS, "rows_min": 10, "alpha": 0.01},
    "chi-squared": {"block_ms": 6 * HOUR_MS, "rows_min": 10, "alpha": 0.01},
    "fisher": {"block_ms": 6 * HOUR_MS, "rows_min": 10, "alpha": 0.01},
    "categories": {"block_ms": 6 * HOUR_MS, "rows_min": 10, "alpha": 0.01},
    "cusum": {"rows_min": 10, "hold_rows": 40, "threshold": 5.0, "warm_up_rows": 30},
    "quality": {"block_ms": 6 * HOUR_MS, "rows_min": 5, "identities_max": 16},
    "freshness": {"silence_max": 3 * HOUR_MS, "rows_min": 3},
    "staleness": {"age_max": 30 * HOUR_MS, "rows_min": 3},
    "service-level": {"block_ms": 3 * HOUR_MS, "rows_min": 3, "latency_p99_ms": 60, "rows_min_per_block": 4},
    "cbpe": {"block_ms": 6 * HOUR_MS, "rows_min": 10, "metric": "accuracy", "z": 1.0},
    "dle": {"block_ms": 6 * HOUR_MS, "rows_min": 10, "z": 0.5},
    "adwin": {"warm_up_rows": 30, "hold_rows": 40, "delta": 0.01},
    "kswin": {"warm_up_rows": 30, "hold_rows": 40, "window_size": 40, "stat_size": 15, "alpha": 0.01},
    "page-hinkley": {"warm_up_rows": 30, "hold_rows": 40, "threshold": 5.0},
    "ddm": {"warm_up_rows": 30, "hold_rows": 40},
    "eddm": {"warm_up_rows": 30, "hold_rows": 40, "warm_start": 10},
    "hddm-a": {"warm_up_rows": 30, "hold_rows": 40},
    "hddm-w": {"warm_up_rows": 30, "hold_rows": 40, "two_sided_test": True},
    "river-drift": {"name": "PageHinkley", "params": {"threshold": 5.0}, "warm_up_rows": 30, "hold_rows": 40},
    "robust-z": {"warm_up_rows": 30, "window_rows": 20, "share": 0.1},
    "isolation-forest": {"trees": 5, "tree_rows": 8, "warm_up_rows": 30, "window_rows": 20, "share": 0.1},
    "half-space-trees": {"trees": 3, "height": 4, "tree_window": 20, "warm_up_rows": 30, "window_rows": 20, "share": 0.1},
    "river-anomaly": {"name": "OneClassSVM", "params": {"nu": 0.2}, "unscored_rows": 20, "warm_up_rows": 30, "window_rows": 20, "share": 0.1},
    "segment-gap": {"block_ms": 6 * HOUR_MS, "rows_min": 3, "alpha": 0.2, "gap_max": 0.05},
    "segments": {"segments_max": 2},
    "cvm-online": {"expected_run_rows": 50, "window_rows": 10, "warm_up_rows": 20, "hold_rows": 40},
    "fet-online": {"expected_run_rows": 50, "window_rows": 10, "warm_up_rows": 20, "hold_rows": 40},
    "mmd-online": {"expected_run_rows": 50, "window_rows": 10, "warm_up_rows": 20, "hold_rows": 40},
    "lsdd-online": {"expected_run_rows": 50, "window_rows": 10, "warm_up_rows": 20, "hold_rows": 40},
    "alibi-isolation-forest": {"trees": 5, "tree_rows": 8, "warm_up_rows": 30, "window_rows": 20, "share": 0.1},
    "alibi-mahalanobis": {"cell_rows": 8, "warm_up_rows": 30, "window_rows": 20, "share": 0.1},
    "mmd": {"cell_rows": 8, "memories": (2, 4), "features": 32, "expected_run_rows": 1_000},
    "pca-reconstruction": {"cell_rows": 8, "memories": (2, 4), "expected_run_rows": 1_000},
    "classifier-two-sample": {"cell_rows": 8, "expected_run_rows": 100},
    "mahalanobis": {"warm_up_rows": 30, "window_rows": 20, "share": 0.1},
}  # fmt: skip
#: Calibrations are dear; equal content gives equal ones, so all examples share them.
CACHE: MutableMapping[str, bytes] = {}


def _missing(kind: str) -> pytest.MarkDecorator:
    """A kind whose optional library is not installed cannot be built; its own tests say what it raises then."""
    gone = [module for module in spec_class(kind).needs if find_spec(module) is None]
    return pytest.mark.skipif(bool(gone), reason=f"{kind} needs {', '.join(gone)}")


CASES = [
    pytest.param(kind, stream, id=f"{kind}-{stream}", marks=_missing(kind))
    for kind in sorted(KINDS)
    for stream in spec_class(kind).streams
]
EVERY = pytest.mark.parametrize(("kind", "stream"), CASES)
FEW = examples(8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
pytestmark = [
    # The libraries behind the adapters warn of their own affairs while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def spec(kind: str) -> Spec:
    return spec_class(kind).model_validate(SMALL.get(kind, {}))


def context(kind: str, stream: Stream, reference: Reference | None = REFERENCE) -> Context:
    """The columns that detect would give this kind."""
    if stream == "features":
        numeric = bool(getattr(spec_class(kind), "numeric_only", False))
        columns, categories = (("a", "b"), (0, 0)) if numeric else (("a", "b", "c"), (0, 0, 4))
    elif stream == "predictions":
        columns, categories = (*STREAM_COLUMNS[stream], "a", "b", "c"), (0, 0, 0, 0, 0, 4)
    elif stream == "loss" and not spec_class(kind).numeric_only:
        columns, categories = (*STREAM_COLUMNS[stream], "c"), (0, 0, 0, 4)
    else:
        columns = STREAM_COLUMNS[stream]
        categories = (0,) * len(columns)
    return Context(
        columns,
        categories,
        stream,
        reference,
        version="v1",
        false_pages=FalsePages(),
        seed=7,
        features=FEATURES,
        trained_to_ms=0,
        cache=CACHE,
    )


def rows_of(kind: str, stream: Stream, seed: int, n: int, hostile: bool = False) -> Rows:
    """``n`` rows in order; the second half has moved. ``hostile``: nulls, infinities, huge and impossible values."""
    rng = np.random.default_rng(seed)
    time_ms = np.sort(rng.integers(0, 3 * 86_400_000, n))
    identity = rng.integers(0, 2**63, n).astype(np.uint64)
    group = np.zeros(n, np.int8)
    moved = np.arange(n) >= n // 2
    if stream == "features":
        values = rng.normal(size=(n, 2)) + 2.0 * moved[:, None]
        if len(context(kind, stream).columns) == 3:
            values = np.column_stack([values, np.where(moved, 3, rng.integers(0, 4, n))])
    elif stream == "predictions":
        score = np.clip(rng.uniform(size=n) / 2 + 0.5 * moved, 0, 1)
        latency = rng.lognormal(1.0 + 2.0 * moved, 0.5)
        error = (rng.uniform(size=n) < np.where(moved, 0.5, 0.02)).astype(np.float64)
        inputs = rng.normal(size=(n, 2)) + 2.0 * moved[:, None]
        values = np.column_stack(
            [score, latency, error, inputs, np.where(moved, 3, rng.integers(0, 4, n))]
        ).astype(np.float64)
    elif stream == "score":
        values = np.clip(rng.uniform(size=n) / 2 + 0.5 * moved, 0, 1)[:, None]
    else:
        score = rng.uniform(0.05, 0.3, n)
        label = (rng.uniform(size=n) < np.where(moved, 0.9, score)).astype(np.float64)
        loss = -np.log(np.where(label == 1, score, 1 - score))
        values = np.column_stack([score, label, loss, np.arange(n) % 4])
        if stream == "comparison":
            pairs = np.arange(n) // 2
            time_ms, identity = time_ms[2 * pairs], identity[2 * pairs]
            group = (np.arange(n) % 2).astype(np.int8)
            label = label[2 * pairs]
            score = np.where(group == 1, 1 - np.abs(label - 0.2), np.abs(label - 0.2))
            values = np.column_stack([score, label])
    values = values[:, : len(context(kind, stream).columns)]
    if hostile and n:
        bad = rng.uniform(size=values.shape) < 0.3
        values[bad] = rng.choice([np.nan, np.inf, -np.inf, 1e308, -1e308, -1.0, 0.0, 99.0], int(bad.sum()))
    sign = np.ones(n, np.int8)
    if stream in ("loss", "comparison"):
        sign[rng.uniform(size=n) < 0.05] = -1
    return Rows(np.ascontiguousarray(values), time_ms.astype(np.int64), identity, group, sign)


def play(
    detector: Detector, rows: Rows, cuts: Sequence[int] = (), tell: bool = False, start: int = 0
) -> list[tuple[int, int, str]]:
    """Give the rows in pieces; ``tell``: say between pieces what time it is. Changes by row of the whole."""
    edges = [start, *sorted(c for c in cuts if start < c < len(rows)), len(rows)]
    heard: list[tuple[int, int, str]] = []

    def note(changes: list[Change], offset: int) -> None:
        for change in changes:
            at = -1 if change.index < 0 else change.index + offset
            heard.append((at, change.time_ms, change.verdict.model_dump_json()))

    for low, high in pairwise(edges):
        note(detector.update(rows.take(slice(low, high))), low)
        if tell and high < len(rows):
            note(detector.advance(int(rows.time_ms[high]) - 1), 0)
    return heard


def close(detector: Detector) -> list[tuple[int, int, str]]:
    changes = detector.advance(10 * 86_400_000)
    return [(-1, c.time_ms, c.verdict.model_dump_json()) for c in changes]


@EVERY
@FEW
@given(seed=st.integers(0, 999), n=st.integers(0, 260), cuts=st.lists(st.integers(0, 260), max_size=6))
def test_where_a_stream_is_cut_does_not_show(
    kind: str, stream: Stream, seed: int, n: int, cuts: list[int]
) -> None:
    """Blocks cut anywhere, with or without news of the time between them, give the same changes and the same state."""
    rows = rows_of(kind, stream, seed, n)
    whole = spec(kind).build(context(kind, stream))
    expected = play(whole, rows) + close(whole)
    for tell in (False, True):
        cut = spec(kind).build(context(kind, stream))
        assert play(cut, rows, cuts, tell) + close(cut) == expected
        assert cut.verdict == whole.verdict
        assert cut.snapshot() == whole.snapshot()


@EVERY
@FEW
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 260),
    at=st.integers(0, 260),
    steps=st.lists(st.integers(1, 40), max_size=8),
)
def test_who_promises_silence_keeps_it(
    kind: str, stream: Stream, seed: int, n: int, at: int, steps: list[int]
) -> None:
    """Until so many rows have come, or that time has passed, nothing is said; whatever the rows, after a restart too."""
    detector = spec(kind).build(context(kind, stream))
    if not isinstance(detector, Patient):
        assert kind not in {config.kind for config in DEFAULT_DETECTORS} - {"paired-judge"}
        return
    rows = rows_of(kind, stream, seed, n, hostile=seed % 2 == 0)
    at = min(at, n - 1)
    play(detector, rows.take(slice(0, at)))
    now_ms = int(rows.time_ms[at]) - 1
    detector.advance(now_ms)
    if spec(kind).restart == "exact":
        restored = spec(kind).restore(context(kind, stream), detector.snapshot())
        assert isinstance(restored, Patient)
        assert restored.patience() == detector.patience()
    most, until_ms = detector.patience()
    quiet = rows.take((np.arange(n) >= at) & (np.arange(n) < at + most - 1) & (rows.time_ms <= until_ms))
    said, start = [], 0
    for size in [*steps, n]:
        part = quiet.take(slice(start, start + size))
        said += detector.update(part)
        if start + size < len(quiet):
            said += detector.advance(int(quiet.time_ms[start + size]) - 1)
        start += size
    # A time that is ``NEVER_MS`` may be any.
    assert said + detector.advance(max(now_ms, min(until_ms, now_ms + 10**12))) == []


@EVERY
@FEW
@given(seed=st.integers(0, 999), n=st.integers(1, 260), at=st.integers(0, 260))
def test_a_restored_detector_goes_on(kind: str, stream: Stream, seed: int, n: int, at: int) -> None:
    """Stopped at any row and restored: nothing shows; or, where a library's state has no form, it says it warms up."""
    rows = rows_of(kind, stream, seed, n)
    at = min(at, n)
    first = spec(kind).build(context(kind, stream))
    heard = play(first, rows.take(slice(0, at)))
    second = spec(kind).restore(context(kind, stream), first.snapshot())
    if spec(kind).restart == "warm-up":
        assert second.verdict.state is State.INCONCLUSIVE
        assert "warming up" in second.verdict.evidence.note
        return
    assert second.verdict == first.verdict
    assert second.snapshot() == first.snapshot()
    whole = spec(kind).build(context(kind, stream))
    expected = play(whole, rows) + close(whole)
    assert heard + play(second, rows, start=at) + close(second) == expected
    assert second.snapshot() == whole.snapshot()


@EVERY
@FEW
@given(seed=st.integers(0, 999), n=st.integers(0, 200))
def test_values_of_any_kind_are_no_error(kind: str, stream: Stream, seed: int, n: int) -> None:
    """Nulls, infinities, huge and impossible values: no exception, no number in a verdict that is none, input as it was."""
    rows = rows_of(kind, stream, seed, n, hostile=True)
    kept = rows.values.copy()
    for array in (rows.values, rows.time_ms, rows.identity, rows.group, rows.sign):
        array.setflags(write=False)
    detector = spec(kind).build(context(kind, stream))
    play(detector, rows)
    close(detector)
    assert np.array_equal(rows.values, kept, equal_nan=True)
    assert np.isfinite([detector.verdict.score, detector.verdict.threshold]).all()
    assert detector.verdict.state is not State.ERROR


@EVERY
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_to_read_is_never_stable(kind: str, stream: Stream, value: float) -> None:
    """A column of nulls is not a quiet column."""
    rows = rows_of(kind, stream, 1, 200)
    rows.values[:] = value
    detector = spec(kind).build(context(kind, stream))
    heard = play(detector, rows) + close(detector)
    if spec(kind).finds_unreadable:
        assert detector.verdict.state is not State.STABLE
        return
    assert heard == []
    assert detector.verdict.state is State.INCONCLUSIVE


@EVERY
def test_silent_before_it_has_seen_anything(kind: str, stream: Stream) -> None:
    """New, empty-handed, or after two rows: inconclusive, with a reason."""
    detector = spec(kind).build(context(kind, stream))
    rows = rows_of(kind, stream, 2, 2)
    assert detector.update(rows.take(slice(0, 0))) == []
    assert detector.advance(-1) == []
    assert detector.update(rows) == []
    assert detector.verdict.state is State.INCONCLUSIVE
    assert detector.verdict.evidence.note


@EVERY
def test_a_constant_column_is_no_error_and_reset_forgets(kind: str, stream: Stream) -> None:
    """One value for ever is fed; after ``reset`` the detector is as if just built, and hears the same again."""
    rows = rows_of(kind, stream, 3, 200)
    if stream in ("features", "score"):
        rows.values[:] = 0.5
    detector = spec(kind).build(context(kind, stream))
    first = play(detector, rows) + close(detector)
    detector.reset()
    fresh = spec(kind).build(context(kind, stream))
    assert detector.verdict == fresh.verdict
    assert detector.snapshot() == fresh.snapshot()
    assert play(detector, rows) + close(detector) == first


@EVERY
def test_a_missing_reference_is_never_stable_drift(kind: str, stream: Stream) -> None:
    """Without a reference a detector either needs none, or stays inconclusive and says what is missing."""
    detector = spec(kind).build(context(kind, stream, reference=None))
    rows = rows_of(kind, stream, 4, 260)
    changes = play(detector, rows) + close(detector)
    if kind in ("mean-e", "cvm-online") or getattr(spec_class(kind), "needs_reference", False):
        assert changes == []
        assert detector.verdict.state is State.INCONCLUSIVE
        assert "reference" in detector.verdict.evidence.note


@EVERY
def test_state_stays_small(kind: str, stream: Stream) -> None:
    """Ten times the rows, the same size of state (what waits for its pair goes by age)."""
    detector = spec(kind).build(context(kind, stream))
    sizes = []
    for turn in range(10 if spec(kind).cost_ns < 10_000 else 3):
        rows = rows_of(kind, stream, turn, 400)
        later = Rows(rows.values, rows.time_ms + turn * 30 * 86_400_000, rows.identity, rows.group, rows.sign)
        detector.update(later)
        detector.advance((turn + 1) * 30 * 86_400_000)
        sizes.append(len(detector.snapshot()))
    assert max(sizes) < 20_000
    assert sizes[-1] < 2 * sizes[0] + 200


@EVERY
@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\xa5other\x01\xc0"])
def test_a_foreign_snapshot_is_refused(kind: str, stream: Stream, data: bytes) -> None:
    """Bytes that are not this kind's state raise SnapshotError, whatever they are."""
    with pytest.raises(SnapshotError):
        spec(kind).restore(context(kind, stream), data)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_says_what_it_is(kind: str) -> None:
    """Name, cost, what it sees and what it cannot; a documented module with an example; defaults that validate."""
    found = spec_class(kind)
    assert found.kind == kind
    assert found.cost_ns > 0
    assert found.state_size and found.sees and found.blind_to
    module = inspect.getmodule(found)
    assert module is not None and module.__doc__ is not None
    assert kind in SMALL, "give the laws small options for the new kind"
    assert found() == found.model_validate({})


def test_a_wrong_option_is_named() -> None:
    """A typo in a configuration names the detector and the option; an unknown kind lists what there is."""
    with pytest.raises(ConfigurationError, match=r"(?s)inputs.*bin_count"):
        spec_for(DetectorConfig(name="inputs", kind="psi", stream="features", options={"bin_count": 3}))
    with pytest.raises(ConfigurationError, match="there are: adwin"):
        spec_for(DetectorConfig(name="inputs", kind="nonesuch", stream="features"))
    with pytest.raises(ConfigurationError, match="reads loss, not score"):
        spec_for(DetectorConfig(name="harm", kind="loss-above-promise", stream="score"))


def test_the_default_set_can_be_built_and_is_written_out() -> None:
    """``default`` becomes detectors with names, before or beside one's own; each of a kind and stream that exist."""
    own = DetectorConfig(name="mine", kind="psi", stream="features")
    found = Monitoring.model_validate({"detectors": ["default", own.model_dump()]}).detectors
    assert found == (*DEFAULT_DETECTORS, own)
    assert Monitoring.model_validate({"detectors": "default"}).detectors == DEFAULT_DETECTORS
    assert Monitoring().detectors == ()
    for config in DEFAULT_DETECTORS:
        assert config.stream in spec_for(config).streams
