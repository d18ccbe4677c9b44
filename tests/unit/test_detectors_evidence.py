"""What the detectors promise, on streams whose truth is known: no alarm without cause, an alarm with one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from detectors.base import DAY_MS, STREAM_COLUMNS, Context, Detector, Rows, Spec, Stream
from detectors.harm.compare_e import PairedJudgeSpec
from detectors.harm.promise_e import PromiseSpec
from detectors.outliers.outlier_limits import binomial_bound
from detectors.shift.windowed_kinds import PsiSpec
from detectors.transform import mid_rank
from schemas.contracts import ColumnReference, Reference
from schemas.verdicts import State

Floats = NDArray[np.float64]
QUANTILES = tuple(float(q) for q in stats.norm.ppf(np.linspace(0.0005, 0.9995, 101)))
NORMAL = ColumnReference(rows=5_000, quantiles=QUANTILES)


def reference(columns: int) -> Reference:
    return Reference(columns=dict.fromkeys([f"x{at}" for at in range(columns)], NORMAL))


def built(spec: Spec, stream: Stream, columns: int = 1, **context: Any) -> Detector:
    if stream != "features":
        return spec.build(Context(STREAM_COLUMNS[stream], stream=stream, **context))
    context.setdefault("reference", reference(columns))
    names = tuple(f"x{at}" for at in range(columns))
    return spec.build(Context(names, (0,) * columns, stream, **context))


def days(values: Floats, rows_day: int, **more: Any) -> Rows:
    """Rows spread over days, ``rows_day`` to each."""
    return Rows.of(values, np.arange(len(values)) // rows_day * DAY_MS + 1, **more)


def first_drift_day(detector: Detector, rows: Rows) -> int | None:
    """The day at whose end the detector said drift."""
    detector.update(rows)
    for change in detector.advance(int(rows.time_ms[-1]) + DAY_MS):
        if change.verdict.state is State.DRIFT:
            return change.time_ms // DAY_MS
    return None


# -- the probability transform -----------------------------------------------------------------------------------------


def test_mid_rank_has_mean_one_half_with_and_without_ties() -> None:
    """Over its own reference the transform's mean is 1/2, also where half of the rows share a value."""
    rng = np.random.default_rng(2)
    x = np.where(rng.uniform(size=20_000) < 0.5, 0.0, rng.exponential(size=20_000))
    column = ColumnReference(
        rows=len(x), quantiles=tuple(float(q) for q in np.quantile(x, np.linspace(0, 1, 101)))
    )
    assert mid_rank(x, column).mean() == pytest.approx(0.5, abs=0.005)
    shares = ColumnReference(rows=100, shares=(0.7, 0.2, 0.1))
    codes = rng.choice(3, 20_000, p=[0.7, 0.2, 0.1]).astype(np.float64)
    assert mid_rank(codes, shares).mean() == pytest.approx(0.5, abs=0.01)


# -- loss above promise -----------------------------------------------------------------------------------------------


def outcomes(rng: np.random.Generator, n: int, honest: bool) -> Floats:
    """Scores and labels: as the scores say, or (not honest) twice as often."""
    score = rng.uniform(0.02, 0.45, n)
    label = (rng.uniform(size=n) < score * (1 if honest else 2)).astype(np.float64)
    return np.column_stack([score, label, np.zeros(n)])


def test_an_honest_model_is_left_alone_and_a_dishonest_one_is_not() -> None:
    """20 streams of 300 days of an honest model: no alarm at one in 1,000; outcomes twice as frequent as said: each."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        good = built(PromiseSpec(threshold=1_000), "loss")
        assert first_drift_day(good, days(outcomes(rng, 300 * 50, True), 50)) is None
        bad = built(PromiseSpec(threshold=1_000), "loss")
        assert first_drift_day(bad, days(outcomes(rng, 300 * 50, False), 50)) is not None


def test_the_promise_holds_at_the_edge_of_the_tolerance() -> None:
    """Loss above promise by exactly the tolerance, 200 streams of 100 blocks at one alarm in 400: at most a quarter."""
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        score = np.full(100 * 40, 0.3)
        excess = 0.01 / (1 - 2 * 0.3)  # of the label's probability over the score
        label = (rng.uniform(size=len(score)) < 0.3 + excess).astype(np.float64)
        rows = days(np.column_stack([score, label, label]), 40)
        alarms += first_drift_day(built(PromiseSpec(threshold=400), "loss"), rows) is not None
    assert alarms <= 50
    print("alarms at the edge:", alarms)


def test_a_revised_outcome_takes_the_old_one_back() -> None:
    """An outcome and its retraction leave the state of a stream that never had it."""
    values = np.array([[0.3, 1.0, 0.0], [0.3, 1.0, 0.0], [0.3, 0.0, 0.0]])
    revised, plain = built(PromiseSpec(rows_min=1), "loss"), built(PromiseSpec(rows_min=1), "loss")
    revised.update(Rows.of(values, np.zeros(3, np.int64), sign=np.array([1, -1, 1], np.int8)))
    plain.update(Rows.of(values[2:], np.zeros(1, np.int64)))
    assert revised.snapshot() == plain.snapshot()


# -- the paired judge -------------------------------------------------------------------------------------------------


def pairs(label: Floats, stable: Floats, candidate: Floats, rows_day: int) -> Rows:
    """Both versions' outcomes of the same requests, side by side."""
    n = len(label)
    values = np.column_stack([np.stack([stable, candidate], 1).ravel(), np.repeat(label, 2)])
    identity, group = np.repeat(np.arange(n, dtype=np.uint64), 2), np.tile([0, 1], n).astype(np.int8)
    return days(values, 2 * rows_day, identity=identity, group=group)


def test_the_judge_condemns_harm_and_clears_equals() -> None:
    """A candidate that confuses a fifth of the requests is harm within weeks; an equal one is shown to be no worse."""
    rng = np.random.default_rng(4)
    score = rng.uniform(0.05, 0.95, 6_000)
    label = (rng.uniform(size=6_000) < score).astype(np.float64)
    confused = np.where(rng.uniform(size=6_000) < 0.2, rng.permutation(score), score)
    judge = built(PairedJudgeSpec(), "comparison")
    found = first_drift_day(judge, pairs(label, score, confused, 150))
    assert found is not None
    assert found <= 20
    equal = built(PairedJudgeSpec(), "comparison")
    noise = np.clip(score + rng.normal(0, 0.02, 6_000), 0, 1)
    assert first_drift_day(equal, pairs(label, score, noise, 150)) is None
    assert equal.verdict.state is State.STABLE


def test_the_judge_keeps_its_error_rate_at_the_margin() -> None:
    """Loss differences of +-0.2 whose mean is the margin, looked at every day for 30: harm in at most alpha of 300."""
    spec = PairedJudgeSpec(alpha=0.05, effect=0.0)
    condemned = 0
    n = 30 * 60
    for seed in range(300):
        rng = np.random.default_rng(seed)
        # Label 0: Brier is the score squared. The candidate is at 0.5 or 0.1, the stable version at the other.
        worse = rng.uniform(size=n) < 0.5 + spec.margin / (2 * 0.24)
        candidate = np.where(worse, 0.5, 0.1)
        rows = pairs(np.zeros(n), 0.6 - candidate, candidate, 60)
        condemned += first_drift_day(built(spec, "comparison"), rows) is not None
    print("condemned at the margin:", condemned, "of 300")
    assert condemned <= 300 * spec.alpha + 3 * (300 * spec.alpha) ** 0.5


def test_unpaired_rows_are_no_evidence() -> None:
    """Requests that only one version scored say nothing, however many."""
    judge = built(PairedJudgeSpec(), "comparison")
    values = np.column_stack([np.full(500, 0.9), np.zeros(500)])
    assert first_drift_day(judge, days(values, 50, group=np.ones(500, np.int8))) is None
    assert judge.verdict.state is State.INCONCLUSIVE


# -- psi and outlier rates --------------------------------------------------------------------------------------------


def test_psi_is_the_formula_and_a_small_block_is_no_drift() -> None:
    """PSI over the reference's deciles as computed by hand; 200 rows of the reference itself raise no warning."""
    rng = np.random.default_rng(8)
    x = rng.normal(0.5, 1, size=5_000)
    detector = built(PsiSpec(block_ms=DAY_MS), "features")
    detector.update(Rows.of(x, np.zeros(5_000, np.int64)))
    evidence = detector.advance(DAY_MS)[0].verdict.evidence
    edges = np.interp(np.arange(10, 100, 10), np.arange(101), QUANTILES)
    p = np.bincount(np.searchsorted(edges, x, "right"), minlength=10) / 5_000
    assert evidence.effect == pytest.approx(float(((p - 0.1) * np.log(p / 0.1)).sum()), rel=0.02)
    quiet = built(PsiSpec(block_ms=DAY_MS), "features")
    quiet.update(days(rng.normal(size=(200 * 50, 1)), 200))
    states = {change.verdict.state for change in quiet.advance(60 * DAY_MS)}
    assert states == {State.STABLE}


@pytest.mark.parametrize(("rows", "share", "tail"), [(500, 0.01, 1e-6), (500, 0.01, 1e-3), (20, 0.1, 1e-3)])
def test_the_outlier_bound_is_the_binomials(rows: int, share: float, tail: float) -> None:
    """The least count whose chance is at most the tail, as scipy has it."""
    bound = binomial_bound(rows, share, tail)
    assert stats.binom.sf(bound - 1, rows, share) <= tail < stats.binom.sf(bound - 2, rows, share)
