"""Detectors by segment, and gaps between segments: against the parts run alone, scipy, and published figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import binomtest

from detectors.base import DAY_MS, Change, Context, Detector, Rows, Standing, pack, unpack
from detectors.columns import context_of
from detectors.groups.frequent import LEARN_ROWS, SpaceSaving, Watched
from detectors.groups.segment_gap import SegmentGapSpec, newcombe, wilson
from detectors.groups.segments import SegmentsSpec, _State, combined, reference_of_segment
from detectors.harm.promise_e import PromiseSpec
from detectors.registry import spec_class, spec_for
from schemas.contracts import (
    ColumnReference,
    DetectorConfig,
    FalsePages,
    Feature,
    ModelContract,
    Monitoring,
    Reference,
)
from schemas.errors import ConfigurationError, SnapshotError
from schemas.reference import describe
from schemas.verdicts import Family, State
from tests.support_examples import examples

HOUR = 3_600_000
LOSS = ("score", "label", "loss", "where")
Floats = NDArray[np.float64]


def context(values: int = 3, **changes: Any) -> Context:
    """Stream ``loss`` with one segment column of so many known values."""
    where = Feature(name="where", kind="categorical", categories=tuple(f"w{at}" for at in range(values)))
    known: dict[str, Any] = {"features": {"where": where}, "false_pages": FalsePages()}
    return Context(LOSS, (0, 0, 0, values + 1), "loss", **(known | changes))


def outcomes(
    n: int,
    seed: int = 1,
    wrong: int | None = None,
    values: int = 3,
    days: int = 30,
    spread: Floats | None = None,
) -> Rows:
    """Outcomes of a calibrated model; from half of the time on, segment ``wrong`` errs."""
    rng = np.random.default_rng(seed)
    where = rng.choice(values, n, p=spread)
    score = rng.uniform(0.05, 0.4, n)
    moved = (where == wrong) & (np.arange(n) > n // 2)
    label = rng.uniform(size=n) < np.where(moved, 0.8, score)
    table = np.column_stack([score, label, np.zeros(n), where]).astype(np.float64)
    return Rows.of(
        table, np.sort(rng.integers(0, days * DAY_MS, n)), rng.integers(0, 2**63, n).astype(np.uint64)
    )


def heard(detector: Detector, rows: Rows, cuts: tuple[int, ...] = (), tell: bool = False) -> list[Change]:
    """All changes, the rows given in pieces."""
    found: list[Change] = []
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(rows)), len(rows)]
    for low, high in pairwise(edges):
        found += [
            replace(c, index=c.index + low if c.index >= 0 else -1)
            for c in detector.update(rows.take(slice(low, high)))
        ]
        if tell and high < len(rows):
            found += detector.advance(int(rows.time_ms[high]) - 1)
    return found + detector.advance(400 * DAY_MS)


# -- which segments -------------------------------------------------------------------------------------------------


@given(values=st.lists(st.integers(0, 30), max_size=300), size=st.integers(1, 12))
def test_space_saving_keeps_every_value_with_a_large_enough_share(values: list[int], size: int) -> None:
    """More than ``1/size`` of the rows: kept; no count is below the true one, and all add up to the rows."""
    counter = SpaceSaving(size)
    for value in values:
        counter.add(value)
    true = Counter(values)
    assert {value for value, count in true.items() if count > len(values) / size} <= set(counter.counts)
    assert all(count >= true[value] for value, count in counter.counts.items())
    assert sum(counter.counts.values()) == len(values)
    assert len(counter.counts) <= size


def test_the_references_shares_decide_which_segments_are_watched() -> None:
    """The most frequent ones; rarer, unknown, null and impossible values are the others."""
    shares = ColumnReference(rows=100, shares=(0.1, 0.0, 0.4, 0.2, 0.2, 0.1))
    watched = Watched(context(5, reference=Reference(columns={"where": shares})), "", 3)
    assert watched.codes == (2, 3, 4)
    table = np.full((9, 4), np.nan)
    table[:, 3] = [2, 3, 4, 0, 1, 5, np.nan, 1e308, -1]
    assert watched.places(table).tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3]
    assert [watched.label(at) for at in (0, 3)] == ["where=w2", "where=(other)"]


def test_what_the_reference_never_saw_is_no_segment() -> None:
    """Without a row outside the watched ones there are no others: nothing to compare them with, no budget spent."""
    shares = ColumnReference(rows=100, shares=(0.6, 0.4, 0.0, 0.0))
    known = context(3, reference=Reference(columns={"where": shares}))
    detector = SegmentsSpec().build(known)
    assert heard(detector, outcomes(3_000, values=2)) == heard(
        SegmentsSpec().build(known), outcomes(3_000, values=2)
    )
    before = detector.snapshot()
    odd = outcomes(50, values=1)
    odd.values[:, 3] = 2
    assert detector.update(odd) == []
    assert detector.snapshot() == before
    assert detector._of(0).share == known.share / 2  # type: ignore[attr-defined]
    missing = shares.model_copy(update={"missing": 0.01})
    assert Watched(context(3, reference=Reference(columns={"where": missing})), "", 5).others


def test_without_a_reference_the_first_rows_decide() -> None:
    """A thousand rows are only counted; the skewed values are found, wherever the stream is cut."""
    spread = np.array([0.3, 0.2, 0.2] + [0.3 / 97] * 97)
    rows = outcomes(3_000, values=100, spread=spread)
    spec = SegmentsSpec(segments_max=3)
    whole = spec.build(context(100))
    assert whole.update(rows.take(slice(0, LEARN_ROWS - 1))) == []
    assert "learning" in whole.verdict.evidence.note
    assert spec.restore(context(100), whole.snapshot()).snapshot() == whole.snapshot()
    whole.update(rows.take(slice(LEARN_ROWS - 1, None)))
    assert set(whole._watched.codes) == {0, 1, 2}  # type: ignore[attr-defined]
    cut = spec.build(context(100))
    for low in range(0, 3_000, 77):
        cut.update(rows.take(slice(low, low + 77)))
    assert cut.snapshot() == whole.snapshot()


# -- a detector for each segment ------------------------------------------------------------------------------------


def test_segments_are_detectors_run_alone() -> None:
    """Each as the plain detector over its rows with its part of the budget; the worst speaks, under its segment's name."""
    rows = outcomes(9_000, wrong=1, days=60)
    detector = SegmentsSpec().build(context())
    found = heard(detector, rows)
    alone = []
    for at in range(4):
        part = PromiseSpec().build(context(share=1 / 4))
        mine = rows.values[:, 3] == at
        alone.append(heard(part, replace(rows.take(mine), values=rows.values[mine][:, :3])))
    (drift,) = [c for c in found if c.verdict.state is State.DRIFT]
    (own,) = [c for c in alone[1] if c.verdict.state is State.DRIFT]
    assert (drift.time_ms, drift.verdict.score) == (own.time_ms, own.verdict.score)
    assert drift.verdict.threshold == own.verdict.threshold == pytest.approx(4 * 30)
    assert drift.verdict.evidence.column == "loss (where=w1)"
    assert drift.verdict.evidence.note.startswith("where=w1: ")
    assert "1 of 4 segments are undecided" in drift.verdict.evidence.note
    assert not any(c.verdict.state is State.DRIFT for at in (0, 2) for c in alone[at])
    assert SegmentsSpec().family("loss") is Family.CONCEPT


INNER: list[dict[str, Any]] = [
    {"kind": "loss-above-promise", "options": {"block_ms": 6 * HOUR, "rows_min": 3, "threshold": 10}},
    {"kind": "robust-z", "options": {"warm_up_rows": 30, "window_rows": 20, "share": 0.1}},
    {"kind": "psi", "options": {"block_ms": 12 * HOUR, "rows_min": 10}},
]


@pytest.mark.parametrize("inner", INNER, ids=[inner["kind"] for inner in INNER])
@examples(10)
@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 900), max_size=5), at=st.integers(0, 900))
def test_neither_cuts_nor_restarts_show(inner: dict[str, Any], seed: int, cuts: list[int], at: int) -> None:
    """For detectors of blocks and of rows alike: the same changes, the same state."""
    spec = SegmentsSpec.model_validate({"detector": inner})
    rows = outcomes(900, seed, wrong=0, days=5)
    known = context()
    if inner["kind"] != "loss-above-promise":
        values = np.column_stack(
            [rows.values[:, 0] + (rows.values[:, 3] == 2) * (np.arange(900) > 450), rows.values[:, 3]]
        )
        rows = replace(rows, values=values)
        known = Context(("x", "where"), (0, 4), "features", reference=_reference(), features=known.features)
    whole = spec.build(known)
    expected = heard(whole, rows)
    assert expected
    for tell in (False, True):
        cut = spec.build(known)
        assert heard(cut, rows, tuple(cuts), tell) == expected
        assert (cut.snapshot(), cut.verdict) == (whole.snapshot(), whole.verdict)
    first = spec.build(known)
    before = first.update(rows.take(slice(0, at)))
    second = spec.restore(known, first.snapshot())
    after = [
        replace(c, index=c.index + at if c.index >= 0 else -1)
        for c in heard(second, rows.take(slice(at, None)))
    ]
    assert before + after == expected
    assert second.snapshot() == whole.snapshot()


def _reference(n: int = 1_200, seed: int = 3) -> Reference:
    """Where x has another mean in each segment; its sample is every third row."""
    rng = np.random.default_rng(seed)
    where = rng.choice(3, n, p=(0.6, 0.37, 0.03)).astype(np.float64)
    x = rng.normal(size=n) + 5 * where
    times = np.sort(rng.integers(-60 * DAY_MS, 0, n))
    coded = {"x": x, "where": where}
    whole = describe(coded, {"x": 0, "where": 4}, np.full(n, 0.5), event_ms=times)
    part = where == 0
    own = describe(
        {name: column[part] for name, column in coded.items()},
        {"x": 0, "where": 4},
        np.full(int(part.sum()), 0.5),
    )
    sample = tuple((float(a), float(b)) for a, b in zip(x[::3], where[::3], strict=True))
    return whole.model_copy(
        update={
            "sample": sample,
            "sample_time_ms": tuple(times[::3].tolist()),
            "segments": {"where": {0: own}},
        }
    )


def test_a_segment_has_a_reference_of_its_own() -> None:
    """The one training made; else its rows of the sample; none of too few. The sample is cut to the segment."""
    whole = _reference()
    known, sampled, rare, others = (reference_of_segment(whole, "where", (0, 1, 2), at) for at in range(4))
    assert known is not None and sampled is not None
    assert known.columns == whole.segments["where"][0].columns
    assert {row[1] for row in known.sample} == {0.0}
    assert len(known.sample) == len(known.sample_time_ms)
    mine = [row[0] for row in whole.sample if row[1] == 1]
    assert sampled.columns["x"].mean == pytest.approx(np.mean([value for value in mine if value is not None]))
    assert sampled.columns["x"].rows == len(mine)
    assert sampled.bins["x"]
    assert rare is None and others is None
    rest = reference_of_segment(whole, "where", (0,), 1)
    assert rest is not None
    assert rest.columns["where"].shares[0] == 0


def test_a_shift_in_one_segment_is_not_lost_in_the_mean() -> None:
    """PSI of all rows sees nothing of a shift in a segment of one row in twenty; by segment it is found and named."""
    rng = np.random.default_rng(5)

    def rows(n: int, start_ms: int, moved: float) -> tuple[Floats, NDArray[np.int64]]:
        where = (rng.uniform(size=n) < 0.05).astype(np.float64)
        return np.column_stack([rng.normal(size=n) + moved * where, where]), start_ms + np.sort(
            rng.integers(0, 5 * DAY_MS, n)
        )

    table, times = rows(6_000, -5 * DAY_MS, 0.0)
    coded = {"x": table[:, 0], "where": table[:, 1]}
    reference = describe(coded, {"x": 0, "where": 3}, np.full(6_000, 0.5), event_ms=times)
    sample = tuple((float(a), float(b)) for a, b in table[::3])
    reference = reference.model_copy(update={"sample": sample})
    features = {"where": Feature(name="where", kind="categorical", categories=("hub", "spoke"))}
    known = Context(("x", "where"), (0, 3), "features", reference=reference, features=features)
    now = Rows.of(*rows(10_000, 0, 3.0))
    psi = spec_class("psi").model_validate({})
    assert not any(
        c.verdict.state is State.DRIFT
        for c in heard(
            psi.build(replace(known, columns=("x",), categories=(0,))), replace(now, values=now.values[:, :1])
        )
    )
    by = SegmentsSpec.model_validate({"detector": {"kind": "psi"}})
    drift = [c.verdict.evidence.column for c in heard(by.build(known), now) if c.verdict.state is State.DRIFT]
    assert drift == ["x (where=spoke)"]


def test_what_is_promised_of_all_segments_together() -> None:
    """Rates add up; the least verified and the weakest basis count; one that may not page keeps the whole from it."""
    good = Standing("proved", 120.0, 50.0, 0, True, "fine")
    worse = Standing("resampled", 60.0, 40.0, 2, True, "so")
    together = combined([("a", good), ("b", worse)])
    assert (together.basis, together.promised_ms, together.verified_ms, together.alarms, together.pages) == (
        "resampled", 40.0, 40.0, 2, True,
    )  # fmt: skip
    silent = combined([("a", good), ("b", Standing(note="no proof"))])
    assert (silent.basis, silent.promised_ms, silent.pages) == ("none", None, False)
    assert silent.note == "1 of 2 segments may not page, b: no proof"
    found = SegmentsSpec().standing(context())
    assert found.pages == PromiseSpec().standing(context()).pages


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"detector": {"kind": "segments"}}, "segments of segments"),
        ({"detector": {"kind": "nonesuch"}}, "there are: "),
        ({"detector": {"kind": "psi", "options": {"bin_count": 3}}}, "bin_count"),
    ],
)
def test_a_wrong_inner_detector_is_named(options: dict[str, Any], reason: str) -> None:
    """When the configuration is read, not when it runs."""
    with pytest.raises(ValidationError, match=reason):
        SegmentsSpec.model_validate(options)


def test_what_cannot_be_built_says_what_is_missing() -> None:
    """No categorical column, another stream than the inner kind's, no column beside the segment."""
    with pytest.raises(ConfigurationError, match=r"no categorical column at all.*monitoring\.segments"):
        SegmentsSpec().build(Context(LOSS[:3], (0, 0, 0), "loss"))
    with pytest.raises(ConfigurationError, match=r"no categorical column which.*there are: where"):
        SegmentGapSpec(by="which").build(context())
    with pytest.raises(ConfigurationError, match=r"psi reads .*not loss"):
        SegmentsSpec.model_validate({"detector": {"kind": "psi"}}).build(context())
    with pytest.raises(ConfigurationError, match="no column is left"):
        SegmentsSpec().build(Context(("where",), (4,), "features"))
    fewer = unpack("segments", 1, _State, SegmentsSpec().build(context()).snapshot())
    fewer.inner.pop()
    with pytest.raises(SnapshotError, match="snapshot of 3 segments, there are 4"):
        SegmentsSpec().restore(context(), pack("segments", 1, fewer))


# -- gaps -----------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 500), share=st.floats(0, 1), level=st.floats(0.5, 0.999))
def test_the_interval_of_a_share_is_scipys(rows: int, share: float, level: float) -> None:
    """Wilson's, as scipy computes it."""
    from scipy.special import ndtri

    hits = round(share * rows)
    expected = binomtest(hits, rows).proportion_ci(level, method="wilson")
    assert wilson(hits, rows, float(ndtri(0.5 + level / 2))) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((10, 10, 0, 20), (0.6791, 1.0000)),
        ((10, 10, 0, 10), (0.6075, 1.0000)),
    ],
)
def test_the_interval_of_a_difference_is_the_published_one(
    counts: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    """Newcombe 1998, table II, method 10."""
    assert newcombe(*counts, 1.959964) == pytest.approx(interval, abs=5e-5)


def decisions(n: int, seed: int, shares: tuple[float, ...], days: int = 7, start: int = 0) -> Rows:
    """Rows with a positive decision in such a share of each segment, labels as decided in nine of ten."""
    rng = np.random.default_rng(seed)
    where = rng.integers(0, len(shares), n)
    said = rng.uniform(size=n) < np.array(shares)[where]
    label = np.where(rng.uniform(size=n) < 0.9, said, ~said)
    table = np.column_stack([np.where(said, 0.9, 0.1), label, np.zeros(n), where]).astype(np.float64)
    return Rows.of(table, np.sort(rng.integers(start, start + days * DAY_MS, n)))


def test_a_gap_is_found_and_named() -> None:
    """Drift with the two segments, their shares and the interval of the difference; each measure by itself."""
    detector = SegmentGapSpec(measures=("demographic-parity",)).build(context())
    rows = decisions(4_000, 1, (0.3, 0.32, 0.55))
    (change,) = heard(detector, rows)
    evidence = change.verdict.evidence
    said, where = rows.values[:, 0] > 0.5, rows.values[:, 3]
    gap = said[where == 0].mean() - said[where == 2].mean()
    assert change.verdict.state is State.DRIFT
    assert (evidence.column, evidence.effect_name) == (
        "demographic-parity by where", "share of positive decisions, where=w0 less where=w2",
    )  # fmt: skip
    assert evidence.effect == pytest.approx(gap)
    assert evidence.interval is not None
    assert evidence.interval[0] < gap < evidence.interval[1] < -0.1
    assert change.verdict.score == pytest.approx(-evidence.interval[1] / 0.1)
    rates = SegmentGapSpec(measures=("equal-opportunity",)).build(context())
    heard(rates, rows)
    truth = rows.values[:, 1] == 1
    ours = [said[truth & (where == at)].mean() for at in range(3)]
    found = rates.verdict.evidence
    assert found.effect is not None
    assert min(abs(found.effect - (a - b)) for a in ours for b in ours if a != b) < 1e-12
    accuracy = SegmentGapSpec(measures=("accuracy",)).build(context())
    heard(accuracy, rows)
    assert accuracy.verdict.state is State.STABLE


@pytest.mark.parametrize("said", ["contract", "options"])
def test_a_decision_is_what_the_contract_calls_one(said: str) -> None:
    """Scores of 0.9 are no positive decision where that begins at 0.95: no gap; the detector's own options go first."""
    features = (Feature(name="where", kind="categorical", categories=("w0", "w1", "w2")),)
    asked = ModelContract(
        model="m", features=features, threshold=0.95, monitoring=Monitoring(segments=("where",))
    )
    options = {"measures": ["demographic-parity"]} | ({"threshold": 0.5} if said == "options" else {})
    config = DetectorConfig(name="gap", kind="segment-gap", stream="loss", options=options)
    spec = spec_for(config)
    detector = spec.build(context_of(asked, config, spec, reference=None))
    heard(detector, decisions(4_000, 1, (0.3, 0.32, 0.55)))
    assert detector.verdict.state is (State.STABLE if said == "contract" else State.DRIFT)


def test_a_gap_that_the_reference_had_is_no_drift() -> None:
    """It was there when the version was approved; one beyond it is."""
    then = decisions(2_000, 2, (0.2, 0.5)).values
    reference = Reference(
        columns={"where": ColumnReference(rows=2_000, shares=(0.5, 0.5, 0.0))},
        sample=tuple((float(row[3]),) for row in then),
        sample_score=tuple(then[:, 0].tolist()),
        sample_label=tuple(then[:, 1].tolist()),
    )
    spec = SegmentGapSpec(measures=("demographic-parity",))
    for shares, state in (((0.2, 0.5), State.STABLE), ((0.1, 0.75), State.DRIFT)):
        detector = spec.build(context(2, reference=reference))
        heard(detector, decisions(4_000, 3, shares))
        assert detector.verdict.state is state
        assert detector.verdict.evidence.reference == pytest.approx(-0.3, abs=0.05)
    alone = spec.build(context(2))
    heard(alone, decisions(4_000, 3, (0.2, 0.5)))
    assert alone.verdict.state is State.DRIFT


def test_false_alarms_are_rarer_than_alpha() -> None:
    """300 blocks at the largest gap allowed, the worst case within the null, three pairs: half of alpha over the pairs."""
    spec = SegmentGapSpec(measures=("demographic-parity",), alpha=0.05, block_ms=DAY_MS)
    detector = spec.build(context())
    rows = decisions(300 * 400, 4, (0.3, 0.4, 0.35), days=300)
    drifts = []
    detector.update(rows)
    for day in range(300):
        detector.advance((day + 1) * DAY_MS)
        drifts.append(detector.verdict.state is State.DRIFT)
    assert sum(drifts) <= 8


def test_what_a_revision_takes_back_does_not_count() -> None:
    """Rows with sign -1 leave the sums as if they had never come; from another block, nothing falls below zero."""
    rows = decisions(3_000, 5, (0.3, 0.3))
    extra = decisions(3_000, 6, (0.9, 0.1))
    order = np.argsort(np.concatenate([rows.time_ms, extra.time_ms, extra.time_ms]), kind="stable")
    both = Rows.of(
        np.concatenate([rows.values, extra.values, extra.values])[order],
        np.concatenate([rows.time_ms, extra.time_ms, extra.time_ms])[order],
        sign=np.repeat(np.array([1, 1, -1], np.int8), 3_000)[order],
    )
    plain, revised = SegmentGapSpec().build(context(2)), SegmentGapSpec().build(context(2))
    heard(plain, rows)
    heard(revised, both)
    assert revised.verdict == plain.verdict
    only_back = SegmentGapSpec().build(context(2))
    assert heard(only_back, replace(extra, sign=np.full(3_000, -1, np.int8))) == []
    assert only_back.verdict.state is State.INCONCLUSIVE


def test_answers_alone_have_one_measure() -> None:
    """On stream predictions there are no labels; a failed row, whose score is not the version's, is left out."""
    rows = decisions(4_000, 7, (0.2, 0.6))
    table = np.column_stack([rows.values[:, 0], np.ones(4_000), np.zeros(4_000), rows.values[:, 3]])
    table[rows.values[:, 3] == 1, 0] = np.where(
        np.arange(int((rows.values[:, 3] == 1).sum())) % 2, np.nan, 0.9
    )
    columns = ("score", "latency_ms", "error", "where")
    detector = SegmentGapSpec().build(Context(columns, (0, 0, 0, 3), "predictions"))
    heard(detector, replace(rows, values=table))
    assert detector.verdict.evidence.column == "demographic-parity by where"
    assert "; 1 gaps read" in detector.verdict.evidence.note
    assert detector.verdict.evidence.rows == 4_000 - int(np.isnan(table[:, 0]).sum())
    assert SegmentGapSpec().family("predictions") is Family.PREDICTION
