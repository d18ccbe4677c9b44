"""Outliers: scores equal the libraries', the worst events keep their ids, the rate alarms when it should and only then."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.ensemble import IsolationForest as SklearnForest

from detectors.base import Change, Context, Detector, Rows
from detectors.outliers.isolation_forest import IsolationForest, IsolationForestSpec, Trees, grown, path_mean
from detectors.outliers.mahalanobis import Mahalanobis, MahalanobisSpec, normal_deviate, shrunk_correlation
from detectors.outliers.outlier_limits import (
    beta_binomial_bound,
    binomial_bound,
    burst_correlation,
    rate_upper,
    tail_of,
)
from detectors.outliers.outlier_rate import OutlierRate
from detectors.outliers.outliers import OutlierSpec
from detectors.outliers.robust_z import RobustZ, RobustZSpec, median_scale
from schemas.contracts import ColumnReference, FalsePages, Reference
from schemas.errors import SnapshotError
from schemas.verdicts import State

Floats = NDArray[np.float64]
KINDS: tuple[type[OutlierSpec], ...] = (RobustZSpec, MahalanobisSpec, IsolationForestSpec)
EVERY = pytest.mark.parametrize("kind", KINDS, ids=[k.kind for k in KINDS])
NAMES = ("a", "b", "c")
DAY_MS = 86_400_000
#: What an outlier is off by. A forest of few columns hardly minds a single one that is far out (sklearn's minds no more).
ODD = {
    RobustZSpec: np.array([0.0, 8.0, 0.0]),
    MahalanobisSpec: np.array([0.0, 8.0, 0.0]),
    IsolationForestSpec: np.array([5.0, -5.0, 10.0]),
}


def population(rng: np.random.Generator, n: int) -> Floats:
    """Three columns: two that go together, and one with a heavy tail."""
    a = rng.normal(size=n)
    return np.column_stack([a, a + rng.normal(size=n) / 4, rng.standard_t(4, size=n)])


def reference(sample: Floats, **more: Any) -> Reference:
    columns = {}
    for at, name in enumerate(NAMES[: sample.shape[1]]):
        known = sample[~np.isnan(sample[:, at]), at]
        quantiles = tuple(np.quantile(known, np.linspace(0, 1, 101)).tolist())
        columns[name] = ColumnReference(rows=len(known), quantiles=quantiles)
    rows = tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in sample)
    return Reference(columns=columns, sample=rows, **more)


def built(spec: OutlierSpec, known: Reference | None = None, **context: Any) -> Detector:
    return spec.build(Context(NAMES, (0,) * len(NAMES), "features", known, seed=3, **context))


def fast(kind: type[OutlierSpec], **options: Any) -> OutlierSpec:
    """The kind with a forest small enough for many rows."""
    return kind.model_validate({**({"trees": 20} if kind is IsolationForestSpec else {}), **options})


def states(changes: list[Change]) -> list[State]:
    return [change.verdict.state for change in changes]


# -- the rate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("above", "rows"), [(0, 50), (3, 30), (10, 1_000), (20, 2_000)])
def test_the_bounds_own_error_is_that_of_scipy(above: int, rows: int) -> None:
    """The share above the j-th largest of m is a Beta variable, whatever the distribution."""
    assert rate_upper(above, rows, 0.01) == pytest.approx(
        stats.beta.ppf(0.99, above + 1, rows - above), rel=1e-9
    )


@pytest.mark.parametrize("correlation", [0.0, 0.001, 0.03, 0.3])
@pytest.mark.parametrize("tail", [1e-3, 1e-6])
def test_limits_with_bursts_are_scipys(correlation: float, tail: float) -> None:
    """The smallest count whose tail is small enough; without correlation the binomial's, which it tends to."""
    weight = (1 - correlation) / max(correlation, 1e-12)
    counted = stats.betabinom(300, 0.02 * weight, 0.98 * weight) if correlation else stats.binom(300, 0.02)
    bound = beta_binomial_bound(300, 0.02, correlation, tail)
    assert counted.sf(bound - 1) <= tail * (1 + 1e-6)
    assert counted.sf(bound - 2) > tail
    assert beta_binomial_bound(300, 0.02, 1e-9, tail) == binomial_bound(300, 0.02, tail)


def test_bursts_of_the_reference_are_its_own_business() -> None:
    """Independent scores: none in nearly all references; storms of known correlation: about that; and no alarm of them."""
    rng = np.random.default_rng(20)
    assert sum(burst_correlation(rng.normal(size=1_000), 20, 0.01) > 0 for _ in range(300)) <= 6
    storm = rng.uniform(size=500) < 0.1
    stormy = np.repeat(np.where(storm, 3.0, 0.0), 20) + rng.normal(size=10_000)
    bound = np.quantile(stormy, 0.95)
    spread = storm.var() * (stats.norm.sf(bound - 3) - stats.norm.sf(bound)) ** 2
    assert burst_correlation(stormy, 20, 0.05) == pytest.approx(spread / (0.05 * 0.95), abs=0.05)
    counts = []
    for bursts in (stormy, None):
        rate = OutlierRate(100, 20, 0.05, tail=1e-3)
        rate.calibrate(stormy, bursts if bursts is not None else rng.permutation(stormy))
        ended = rate.add_many(stormy, np.zeros(10_000, np.uint64), np.zeros(10_000, np.int64))
        counts.append(sum(verdict.state is State.DRIFT for _, verdict in ended))
    assert counts[0] <= 2 < 20 < counts[1]


def test_limits_come_from_the_budget_at_the_references_traffic() -> None:
    """1,000 rows a day, windows of 500, one false page in 500 days: one window in 1,000; without a budget, a million."""
    known = Reference(rows=30_000, from_ms=0, to_ms=30 * DAY_MS)
    context = Context(NAMES, reference=known, false_pages=FalsePages(max=1, per=500 * DAY_MS))
    assert tail_of(context, 500) == pytest.approx(1e-3)
    assert tail_of(Context(NAMES, reference=known), 500) == 1e-6
    rate = OutlierRate(1_000, 500, 0.01, tail=1e-3)
    rate.calibrate(np.random.default_rng(21).uniform(size=100_000))
    assert rate.state.null == pytest.approx(0.02)
    rate.add_many(np.zeros(500), np.zeros(500, np.uint64), np.zeros(500, np.int64))
    assert rate.verdict.threshold == binomial_bound(500, 0.02, 1e-3) == stats.binom.isf(1e-3, 500, 0.02) + 1


def test_the_worst_are_the_worst_however_the_stream_is_cut() -> None:
    """Scores with many ties: of each window the k largest, the earlier first, and the column of the first; any cut."""
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 12, 3_000).astype(np.float64)
    scores[rng.uniform(size=3_000) < 0.05] = np.nan
    identity, time_ms = rng.permutation(3_000).astype(np.uint64), np.arange(3_000)
    rows = np.flatnonzero(~np.isnan(scores))
    windows = rows[300:][: (len(rows) - 300) // 200 * 200].reshape(-1, 200)
    expected = [w[np.lexsort((w, -scores[w]))[:4]] for w in windows]
    heard: list[list[tuple[int, str]]] = []
    for cuts in ([], [1, 2, 3], rng.integers(0, 3_000, 40).tolist(), list(range(3_000))):
        rate = OutlierRate(300, 200, 0.05, worst=4)
        said = []
        edges = [0, *sorted(cuts), 3_000]
        for low, high in pairwise(edges):

            def named(at: int, low: int = low) -> str:
                return f"row {low + at}"

            ended = rate.add_many(scores[low:high], identity[low:high], time_ms[low:high], named)
            said += [(low + at, verdict) for at, verdict in ended]
        assert [at for at, _ in said] == [int(w[-1]) for w in windows]
        for (_, verdict), worst in zip(said, expected, strict=True):
            assert [e.identity for e in verdict.evidence.worst] == identity[worst].tolist()
            assert [e.score for e in verdict.evidence.worst] == scores[worst].tolist()
            assert verdict.evidence.column == f"row {worst[0]}"
        heard.append([(at, verdict.model_dump_json()) for at, verdict in said])
    assert all(other == heard[0] for other in heard)


def test_infinite_scores_are_outliers_and_no_score_is_no_row() -> None:
    """What overflowed is as large as a number can be; the verdict holds numbers only."""
    rate = OutlierRate(10, 10, 0.2)
    scores = np.array([*range(10), *[np.nan] * 5, *[np.inf] * 9, -np.inf])
    [(at, verdict)] = rate.add_many(scores, np.arange(25, dtype=np.uint64), np.arange(25))
    assert at == 24
    assert verdict.evidence.current == 0.9
    assert np.isfinite([event.score for event in verdict.evidence.worst]).all()
    one = OutlierRate(10, 10, 0.2)
    said = [one.add(float(score)) for score in [*range(10), *[9.0] * 10]]
    assert said[:19] == [None] * 19
    assert said[19] is not None and said[19].evidence.worst == ()


def test_a_short_reference_costs_power_and_not_false_alarms() -> None:
    """100 calibration scores, tail 0.001: over 400 references false drifts stay within it; ignoring the error they do not."""
    rng = np.random.default_rng(5)
    honest = naive = 0
    limit = binomial_bound(200, 0.05, 1e-3)
    for _ in range(400):
        rate = OutlierRate(100, 200, 0.05, effect_min=1.0, tail=1e-3)
        rate.calibrate(rng.exponential(size=100))
        ended = rate.add_many(
            rng.exponential(size=4_000), np.zeros(4_000, np.uint64), np.zeros(4_000, np.int64)
        )
        honest += sum(verdict.state is State.DRIFT for _, verdict in ended)
        naive += sum(verdict.score >= limit for _, verdict in ended)
    assert honest <= 8
    assert naive > 80


# -- the scores -------------------------------------------------------------------------------------------------------


def test_robust_z_is_the_textbooks() -> None:
    """Against scipy's median absolute deviation; the fallbacks of columns that mostly or always have one value."""
    rng = np.random.default_rng(6)
    x = rng.gamma(2, size=(501, 3))
    middle, scale = np.median(x, axis=0), stats.median_abs_deviation(x, axis=0, scale=1 / 1.482602218505602)
    scorer = RobustZ(np.array([median_scale(column) for column in x.T]))
    assert scorer.score(x, 0) == pytest.approx((np.abs(x - middle) / scale).max(axis=1), rel=1e-12)
    assert scorer.blame(np.array([middle[0], np.nan, 99.0])) == 2
    assert scorer.score(np.array([[np.nan, middle[1] + scale[1], np.nan]]), 0) == pytest.approx([1.0])
    mostly_zero = np.array([0.0] * 8 + [1.0, 3.0])
    assert median_scale(mostly_zero) == pytest.approx((0.0, 0.4 * 1.2533141373155001))
    assert RobustZ(np.array([median_scale(np.full(9, 5.0))])).score(np.array([[5.0], [5.1]]), 0)[1] > 1e6


def test_robust_z_of_quantiles_is_that_of_the_rows() -> None:
    """101 quantiles give median and MAD of 20,000 rows to 1%."""
    sample = population(np.random.default_rng(7), 20_000)
    spec = RobustZSpec()
    of_quantiles = spec.fit(Context(NAMES, reference=reference(sample)), sample[:0])
    of_rows = RobustZSpec(even_tails=False).fit(Context(NAMES), sample)
    x = population(np.random.default_rng(8), 500)
    assert of_quantiles.score(x, 0) == pytest.approx(of_rows.score(x, 0), rel=0.02, abs=0.02)


def test_a_heavy_tail_does_not_hide_the_calm_columns() -> None:
    """Five deviations in a normal column beside a Cauchy one: nearly all among the highest 1%, hardly any as they come."""
    rng = np.random.default_rng(22)
    x = np.column_stack([rng.normal(size=(12_000, 2)), rng.standard_cauchy(12_000)])
    usual, odd = x[2_000:11_000], x[11_000:] + np.array([5.0, 0.0, 0.0])
    found = []
    for even in (True, False):
        scorer = RobustZSpec(even_tails=even).fit(Context(NAMES), x[:2_000])
        found.append(float((scorer.score(odd, 0) > np.quantile(scorer.score(usual, 0), 0.99)).mean()))
    assert found[0] > 0.85
    assert found[1] < 0.1


def test_mahalanobis_is_sklearns() -> None:
    """Squared distance as EmpiricalCovariance gives it, and shrunk as LedoitWolf shrinks."""
    rng = np.random.default_rng(9)
    x = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) * np.arange(1.0, 7.0) + 5.0
    mean, sd = x.mean(axis=0), x.std(axis=0)
    z = (x - mean) / sd
    plain = Mahalanobis(mean, sd, np.corrcoef(x.T))
    assert plain.squared_distance(x) == pytest.approx(EmpiricalCovariance().fit(x).mahalanobis(x), rel=1e-8)
    few = z[:40] / np.sqrt((z[:40] ** 2).mean(axis=0))
    theirs = LedoitWolf(assume_centered=True).fit(few)
    assert theirs.shrinkage_ > 0.02
    assert shrunk_correlation(few) == pytest.approx(theirs.covariance_, abs=1e-12)


def test_mahalanobis_of_a_row_with_nulls_is_its_marginal_one() -> None:
    """The known columns' own mean and covariance, their degrees of freedom; the blamed column is the one that is off."""
    rng = np.random.default_rng(10)
    x = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4))
    mean, sd, correlation = x.mean(axis=0), x.std(axis=0), np.corrcoef(x.T)
    scorer = Mahalanobis(mean, sd, correlation)
    holes = x.copy()
    holes[rng.uniform(size=x.shape) < 0.3] = np.nan
    holes = holes[~np.isnan(holes).all(axis=1)]
    scores = scorer.score(holes, 5)
    for at, row in enumerate(holes):
        known = ~np.isnan(row)
        d2 = EmpiricalCovariance().fit(x[:, known]).mahalanobis(row[None, known])
        assert scores[at] == pytest.approx(normal_deviate(d2, int(known.sum()))[0], abs=1e-6)
    assert all(scorer.score(holes[at : at + 1], 5 + at)[0] == scores[at] for at in range(len(holes)))
    off = mean.copy()
    off[2] += 30 * sd[2]
    assert scorer.blame(off) == 2


@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_the_normal_deviate_is_that_of_chi_squared(k: int) -> None:
    """Cube root against the exact tail: within 0.05 of a deviation to one in 1,000, within 0.6 to one in a billion."""
    tails = np.geomspace(0.5, 1e-9, 30)
    away = np.abs(normal_deviate(stats.chi2.isf(tails, k), k) - stats.norm.isf(tails))
    assert away[tails > 1e-3].max() < 0.05
    assert away.max() < 0.6


def sklearns_trees(forest: SklearnForest) -> Trees:
    """A fitted sklearn forest in our arrays."""
    depth = int(np.ceil(np.log2(forest.max_samples_)))
    count = len(forest.estimators_)
    column = np.zeros((count, 2**depth - 1), np.int64)
    threshold = np.full(column.shape, np.inf)
    path = np.zeros((count, 2**depth))
    for at, estimator in enumerate(forest.estimators_):
        theirs = estimator.tree_
        nodes = [(0, 0, 0)]  # theirs, depth, place in the level
        while nodes:
            node, level, place = nodes.pop()
            if theirs.children_left[node] < 0:
                under = 2 ** (depth - level)
                size = np.array(theirs.n_node_samples[node])
                path[at, place * under : (place + 1) * under] = level + path_mean(size)
                continue
            column[at, 2**level - 1 + place] = theirs.feature[node]
            threshold[at, 2**level - 1 + place] = theirs.threshold[node]
            nodes.append((theirs.children_left[node], level + 1, 2 * place))
            nodes.append((theirs.children_right[node], level + 1, 2 * place + 1))
    return Trees(column, threshold, path)


def test_an_isolation_forest_scores_as_sklearns_with_the_same_trees() -> None:
    """sklearn's trees in our arrays: mean path lengths to 1e-12 of its own leaves', scores to 1e-12."""
    rng = np.random.default_rng(11)
    x = population(rng, 1_000).astype(np.float32).astype(np.float64)
    theirs = SklearnForest(n_estimators=50, max_samples=256, random_state=1).fit(x)
    y = population(rng, 700).astype(np.float32).astype(np.float64)
    y[0] = 1e30
    trees = sklearns_trees(theirs)
    ours = IsolationForest(trees, 256, np.zeros(3))
    exact = np.zeros(len(y))
    for estimator in theirs.estimators_:
        visits = np.asarray(estimator.decision_path(y.astype(np.float32)).sum(axis=1)).ravel() - 1
        leaves = estimator.apply(y.astype(np.float32))
        exact += visits + path_mean(estimator.tree_.n_node_samples[leaves])
    assert ours.paths(y).sum(axis=0) / 2.0**40 / 50 == pytest.approx(exact / 50, abs=1e-12)
    assert ours.score(y, 0) == pytest.approx(-theirs.score_samples(y), abs=1e-12)


def test_our_own_trees_are_isolation_trees() -> None:
    """Mean scores as sklearn's forests on the same rows, to the noise between two forests; every tree isolates its rows."""
    rng = np.random.default_rng(12)
    x, y = population(rng, 1_000), population(rng, 400)
    ours = IsolationForest(grown(x, 300, 256, rng), 256, np.zeros(3)).score(y, 0)
    theirs = [
        -SklearnForest(n_estimators=300, max_samples=256, random_state=s).fit(x).score_samples(y)
        for s in (1, 2)
    ]
    assert np.abs(ours - theirs[0]).mean() < 2 * np.abs(theirs[1] - theirs[0]).mean()
    one = IsolationForest(grown(np.arange(8.0)[:, None], 1, 8, rng), 8, np.zeros(1))
    paths = one.paths(np.arange(8.0)[:, None])[0] / 2.0**40
    assert (paths >= 1).all() and paths.max() <= 3 + float(path_mean(np.array(6)))
    constant = grown(np.ones((20, 2)), 3, 16, rng)
    assert np.isinf(constant.threshold).all()
    assert constant.path == pytest.approx(float(path_mean(np.array(16))))


# -- the detectors ----------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("with_reference", [True, False])
def test_a_block_of_outliers_is_found_with_its_ids(kind: type[OutlierSpec], with_reference: bool) -> None:
    """60 odd rows in 500: drift, the five worst among them, the bad column named; before and after: stable."""
    rng = np.random.default_rng(13)
    known = reference(population(rng, 2_000)) if with_reference else None
    x = population(rng, 3_500)
    x[2_600:2_660] += ODD[kind]
    identity = rng.integers(0, 2**64, 3_500, dtype=np.uint64)
    changes = built(kind(), known).update(Rows.of(x, np.arange(3_500), identity))
    assert [c.index for c in changes] == list(range(499 if with_reference else 1_499, 3_500, 500))
    drifts = [c for c in changes if c.verdict.state is State.DRIFT]
    assert [c.index for c in drifts] == [2_999]
    assert set(states(changes)) == {State.STABLE, State.DRIFT}
    evidence = drifts[0].verdict.evidence
    odd = set(identity[2_600:2_660].tolist())
    assert {event.identity for event in evidence.worst} <= odd
    assert [e.score for e in evidence.worst] == sorted((e.score for e in evidence.worst), reverse=True)
    assert evidence.column == "b" or kind is IsolationForestSpec
    assert evidence.since_ms == 2_500


@EVERY
def test_a_rise_of_the_rate_is_found_and_a_small_one_is_not(kind: type[OutlierSpec]) -> None:
    """8% odd rows drift within two windows; half as many again as in the reference never do, in 60,000 rows."""
    rng = np.random.default_rng(14)
    sample = population(rng, 2_000)
    x = population(rng, 4_000)
    odd = rng.uniform(size=4_000) < 0.08
    x[odd] += ODD[kind]
    changes = built(fast(kind), reference(sample)).update(Rows.of(x, np.arange(4_000)))
    assert State.DRIFT in states(changes)[:2]
    quiet = population(rng, 60_000)
    odd = rng.uniform(size=60_000) < 0.005
    quiet[odd] += ODD[kind]
    changes = built(fast(kind), reference(sample)).update(Rows.of(quiet, np.arange(60_000)))
    assert State.DRIFT not in states(changes)


@EVERY
def test_false_alarms_stay_within_the_stated_rate(kind: type[OutlierSpec]) -> None:
    """At one in 1,000 windows, 2,000 windows of rows like the reference, ten references: at most the rate, thrice over."""
    rng = np.random.default_rng(15)
    drifts = warnings = windows = 0
    for _ in range(10):
        known = reference(population(rng, 1_000), rows=2_000, from_ms=0, to_ms=2 * DAY_MS)
        spec = fast(kind, window_rows=100, share=0.02)
        detector = built(spec, known, false_pages=FalsePages(max=1, per=100 * DAY_MS))
        changes = detector.update(Rows.of(population(rng, 20_000), np.arange(20_000)))
        windows += len(changes)
        drifts += states(changes).count(State.DRIFT)
        warnings += states(changes).count(State.WARNING)
    assert windows == 2_000
    assert drifts <= 6
    assert warnings <= 3 * windows * np.sqrt(1e-3)


def test_an_odd_combination_is_seen_by_mahalanobis_alone() -> None:
    """Each value usual, together impossible: robust z cannot see it, and says so."""
    rng = np.random.default_rng(16)
    known = reference(population(rng, 2_000))
    x = population(rng, 500)
    x[100:160, :2] = [1.2, -1.2]
    rows = Rows.of(x, np.arange(500))
    assert states(built(MahalanobisSpec(), known).update(rows)) == [State.DRIFT]
    assert states(built(RobustZSpec(), known).update(rows)) == [State.STABLE]
    assert "combinations" in RobustZSpec.blind_to


@EVERY
@pytest.mark.parametrize("with_reference", [True, False])
def test_cuts_nulls_and_restarts_do_not_show(kind: type[OutlierSpec], with_reference: bool) -> None:
    """A tenth of the values null, infinite or huge, 30 cuts, a restart at each: equal verdicts, equal bytes."""
    rng = np.random.default_rng(17)
    sample = population(rng, 600)
    sample[rng.uniform(size=sample.shape) < 0.1] = np.nan
    x = population(rng, 2_500)
    odd = rng.uniform(size=x.shape) < 0.1
    x[odd] = rng.choice([np.nan, np.inf, -np.inf, 1e308, -1e308], int(odd.sum()))
    x[700:720] = np.nan
    rows = Rows.of(x, np.arange(2_500))
    known = reference(sample) if with_reference else None
    for adapt in (False, True):
        spec = fast(kind, window_rows=100, warm_up_rows=300, adapt=adapt)
        whole = built(spec, known)
        expected = [(c.index, c.verdict.model_dump_json()) for c in whole.update(rows)]
        assert len(expected) == (2_480 - (0 if with_reference else 300)) // 100
        detector, heard = built(spec, known), []
        edges = [0, *np.sort(rng.integers(0, 2_500, 30)).tolist(), 2_500]
        for low, high in pairwise(edges):
            changes = detector.update(rows.take(slice(low, high)))
            heard += [(low + c.index, c.verdict.model_dump_json()) for c in changes]
            context = Context(NAMES, (0, 0, 0), "features", known, seed=3)
            detector = spec.restore(context, detector.snapshot())
        assert heard == expected
        assert detector.snapshot() == whole.snapshot()


@EVERY
def test_only_what_may_adapt_adapts(kind: type[OutlierSpec]) -> None:
    """After a lasting shift the rate stays high; with ``adapt`` the shifted rows become the usual ones."""
    rng = np.random.default_rng(18)
    known = reference(population(rng, 2_000))
    x = population(rng, 6_000) + 3 * ODD[kind]
    rows = Rows.of(x, np.arange(6_000))
    said = states(built(fast(kind), known).update(rows))
    assert said == [State.DRIFT] * 12
    said = states(built(fast(kind, adapt=True), known).update(rows))
    assert said[:2] == [State.DRIFT] * 2
    assert set(said[3:]) == {State.STABLE}


def test_a_snapshot_of_other_columns_is_refused() -> None:
    """Rows held for warming up fit the columns they were held for."""
    detector = MahalanobisSpec().build(Context(("a", "b"), (0, 0), "features"))
    detector.update(Rows.of(np.ones((1, 2)), np.arange(1)))
    with pytest.raises(SnapshotError, match="other columns"):
        built(MahalanobisSpec()).load(detector.snapshot())


def test_a_reference_with_a_null_column_still_scores() -> None:
    """A column without any value in the sample, and one that never varied: no exception, the rest is judged."""
    rng = np.random.default_rng(19)
    sample = population(rng, 500)
    sample[:, 0] = 7.0
    rows = tuple((7.0, float(b), None) for b in sample[:, 1])
    quantiles = tuple(np.quantile(sample[:, 1], np.linspace(0, 1, 101)).tolist())
    known = Reference(
        columns={
            "a": ColumnReference(rows=500, quantiles=(7.0,) * 101),
            "b": ColumnReference(rows=500, quantiles=quantiles),
            "c": ColumnReference(rows=0, missing=1.0),
        },
        sample=rows,
    )
    x = np.column_stack([np.full(500, 7.0), sample[:, 1], np.full(500, np.nan)])
    x[100:150, 1] += 30.0
    for kind in KINDS:
        [change] = built(fast(kind), known).update(Rows.of(x, np.arange(500)))
        assert change.verdict.state is State.DRIFT
        assert change.verdict.evidence.column == "b"
