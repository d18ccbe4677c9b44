"""Windowed comparisons: each statistic is scipy's, chance raises no alarm, a real shift does, an immaterial one never."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import jensenshannon

from detectors.base import DAY_MS, Context, Detector, Rows, Stream
from detectors.blocks import BlockSums
from detectors.registry import spec_class
from detectors.shift import statistics
from detectors.shift.cells import Cells, sample_of, short_tails
from schemas.bins import Binning
from schemas.contracts import ColumnReference, FalsePages, Feature, Reference
from schemas.edges import Edges
from schemas.verdicts import State, Verdict

Floats = NDArray[np.float64]
DISTANCES = ("psi", "jensen-shannon", "hellinger", "wasserstein")
TESTS = ("ks", "cramer-von-mises", "chi-squared", "fisher")


def numeric(values: Floats) -> ColumnReference:
    known = values[np.isfinite(values)]
    quantiles = tuple(float(q) for q in np.quantile(known, np.linspace(0, 1, 101)))
    return ColumnReference(
        rows=len(known), quantiles=quantiles, mean=float(known.mean()), sd=float(known.std())
    )


def categorical(codes: NDArray[np.int64], size: int) -> ColumnReference:
    counts = np.bincount(codes, minlength=size)
    return ColumnReference(rows=len(codes), shares=tuple(float(c) for c in counts / len(codes)))


def counted(cells: Cells, values: Floats) -> Floats:
    return np.bincount(cells.codes(values), minlength=cells.size).astype(np.float64)


def built(
    kind: str,
    columns: dict[str, ColumnReference],
    stream: Stream = "features",
    budget: Any = None,
    **options: Any,
) -> Detector:
    options.setdefault("block_ms", DAY_MS)
    categories = tuple(len(column.shares) for column in columns.values())
    context = Context(
        tuple(columns), categories, stream, Reference(columns=columns), false_pages=budget, share=1.0
    )
    return spec_class(kind).model_validate(options).build(context)


def after(detector: Detector, values: Floats) -> Verdict:
    """The verdict on one whole block of these rows."""
    detector.update(Rows.of(values, np.full(len(values), 5, np.int64)))
    detector.advance(DAY_MS)
    return detector.verdict


# -- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_statistics_of_distribution_functions_are_scipys(seed: int) -> None:
    """KS, CvM and Wasserstein of raw samples: statistics to 1e-12, the KS p-value to 1e-9, CvM's to 0.02 or a tenth."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.1 * seed, 1, 100 + 60 * seed), rng.normal(size=250)
    now, then, points = statistics.tally(x, y)
    found, log10_p = statistics.kolmogorov_smirnov(now, then)
    ks = stats.ks_2samp(x, y, method="asymp")
    assert (found, 10**log10_p) == pytest.approx((ks.statistic, ks.pvalue), rel=1e-9)
    found, log10_p = statistics.cramer_von_mises(now, then)
    cvm = stats.cramervonmises_2samp(x, y, method="asymptotic")
    assert found == pytest.approx(cvm.statistic, rel=1e-12)
    assert 10**log10_p == pytest.approx(cvm.pvalue, rel=0.1, abs=0.02)
    assert statistics.wasserstein(now, then, points) == pytest.approx(
        stats.wasserstein_distance(x, y), rel=1e-12
    )


@pytest.mark.parametrize("seed", range(6))
def test_statistics_of_shares_are_scipys(seed: int) -> None:
    """Jensen-Shannon, chi-squared and Fisher on counts, to 1e-9; PSI and Hellinger as their formulas say."""
    rng = np.random.default_rng(seed)
    now, then = rng.integers(20, 90, (2, 5)).astype(np.float64)
    assert statistics.jensen_shannon(now, then) == pytest.approx(jensenshannon(now, then, 2), rel=1e-9)
    expected = stats.chi2_contingency(np.stack([now, then]), correction=False)
    found, log10_p, freedom = statistics.chi_squared(now, then)
    assert (found, 10**log10_p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    assert freedom == expected.dof
    a, b, n, m = int(now[0]), int(then[0]), int(now.sum()), int(then.sum())
    table = [[a, n - a], [b, m - b]]
    assert 10 ** statistics.exact(a, n, b, m) == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-9)
    two = statistics.fisher(np.array([a, n - a], np.float64), np.array([b, m - b], np.float64))
    assert 10 ** two[1] == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-9)
    greater = stats.fisher_exact(table, alternative="greater").pvalue
    assert 10 ** statistics.as_many(a, n, b, m) == pytest.approx(greater, rel=1e-9)
    fewer = stats.fisher_exact([[0, n], [3, m - 3]], alternative="less").pvalue
    assert 10 ** statistics.none_left(3, n, m) == pytest.approx(fewer, rel=1e-9)
    p, q = now / n, then / m
    assert statistics.psi(now, then) == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    assert statistics.hellinger(now, then) ** 2 == pytest.approx(1 - float(np.sqrt(p * q).sum()))


def test_fisher_of_many_rows_is_scipys_and_sees_into_the_tail() -> None:
    """Above the rows summed here scipy answers; below, the chance is exact far into the tail."""
    assert statistics.exact(40_100, 100_000, 40_000, 100_000) == pytest.approx(
        np.log10(stats.fisher_exact([[40_100, 59_900], [40_000, 60_000]]).pvalue), rel=1e-6
    )
    assert statistics.exact(880, 1_000, 120, 1_000) == pytest.approx(
        np.log10(2) + float(stats.hypergeom.logsf(879, 2_000, 1_000, 1_000)) / np.log(10), rel=1e-6
    )


def test_rare_cells_of_a_chi_squared_test_are_one() -> None:
    """Cells in which five rows are not to be expected are merged; what is left is scipy's on the merged table."""
    now, then = np.array([50.0, 40, 1, 2, 6]), np.array([500.0, 300, 3, 0, 60])
    merged = np.array([[50.0, 40, 9], [500.0, 300, 63]])
    expected = stats.chi2_contingency(merged, correction=False)
    assert statistics.chi_squared(now, then)[0] == pytest.approx(expected.statistic)


def test_the_tail_of_weighted_chi_squares() -> None:
    """Against the limit of Cramer-von Mises as tabled (Anderson and Darling 1952), and against plain chi-squared."""
    weights = 1 / (np.pi * np.arange(1, 500)) ** 2
    for value, p in ((0.34730, 0.1), (0.46136, 0.05), (0.74346, 0.01), (1.16786, 0.001)):
        assert 10 ** statistics.chi_squared_mixture(value, weights) == pytest.approx(p, rel=0.08)
    for value in (0.5, 8.0, 30.0, 100.0):
        expected = float(stats.chi2.sf(value, 8))
        assert 10 ** statistics.chi_squared_mixture(value, np.ones(8)) == pytest.approx(expected, rel=0.02)


def test_the_p_values_of_tied_columns_are_honest() -> None:
    """Three values, no change: CvM's p-value falls below 5 % in about 5 % of 1,000 tries, KS's and Fisher's in no more."""
    rng = np.random.default_rng(3)
    counts = {"cvm": 0, "ks": 0, "fisher": 0, "chi": 0}
    for _ in range(1_000):
        now, then = rng.multinomial(200, [0.5, 0.3, 0.2]), rng.multinomial(400, [0.5, 0.3, 0.2])
        pair = now.astype(np.float64), then.astype(np.float64)
        counts["cvm"] += 10 ** statistics.cramer_von_mises(*pair)[1] < 0.05
        counts["ks"] += 10 ** statistics.kolmogorov_smirnov(*pair)[1] < 0.05
        counts["fisher"] += 10 ** statistics.fisher(*pair)[1] < 0.05
        counts["chi"] += 10 ** statistics.chi_squared(*pair)[1] < 0.05
    assert 30 <= counts["cvm"] <= 70, counts
    assert 30 <= counts["chi"] <= 70, counts
    assert max(counts["ks"], counts["fisher"]) <= 70, counts


# -- cells ------------------------------------------------------------------------------------------------------------


def test_the_table_finds_what_bisection_finds() -> None:
    """Any edges, any values, neighbouring numbers and infinities included."""
    rng = np.random.default_rng(4)
    for turn in range(200):
        size = int(rng.integers(0, 102))
        edges = [rng.normal(size=size), rng.exponential(size=size) ** 5, rng.integers(0, 20, size) * 1.0,
                 10.0 ** rng.uniform(-300, 300, size)][turn % 4]  # fmt: skip
        edges = np.unique(np.concatenate([edges, np.nextafter(edges[::2], np.inf)]))
        around = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)])
        values = np.concatenate([rng.normal(size=50), around, [1e308, -1e308, 0.0, np.nan, np.inf, -np.inf]])
        expected = np.where(np.isfinite(values), edges.searchsorted(values, "right"), -1)
        assert np.array_equal(Edges(edges).places(values, -1), expected)
        # Counted along memory or across it, few borders or many.
        for read in (np.tile(values, 50), np.column_stack([values, values])[:, 1]):
            counts = np.ones(len(edges) + 1, np.int64)
            assert Edges(edges).count(read, counts) == np.count_nonzero(~np.isfinite(read))
            again = len(read) // len(values)
            known = np.bincount(expected[expected >= 0], minlength=len(edges) + 1)
            assert np.array_equal(counts, 1 + again * known)


def test_codes_are_counted_as_they_are_coded() -> None:
    """Unknown ones, fractions, negative ones and what is no number."""
    column = ColumnReference(rows=100, shares=(0.5, 0.2, 0.2, 0.1, 0.0))
    values = np.array([0.0, 1.0, 1.0, 3.0, 4.0, 7.0, -1.0, 2.5, np.nan, np.inf])
    binning, cells = Binning(column), Cells(column, None)
    assert np.array_equal(binning.counts(values), np.bincount(binning.codes(values), minlength=binning.size))
    counts, codes = np.zeros(cells.size, np.int64), cells.codes(values)
    cells.count(values, counts)
    assert np.array_equal(counts, np.bincount(codes[codes >= 0], minlength=cells.size))


@pytest.mark.parametrize("shift", [0.0, 0.2])
@pytest.mark.parametrize("shape", ["normal", "exponential", "zeros", "hours"])
def test_what_cells_lose(shape: str, shift: float) -> None:
    """Binned against raw: KS within 0.012 (ties without a sample included), Wasserstein within 0.03 sd."""
    rng = np.random.default_rng(5)

    def draw(n: int, by: float) -> Floats:
        x = {
            "normal": rng.normal(by, 1, n),
            "exponential": rng.exponential(1 + by, n),
            "zeros": np.where(rng.uniform(size=n) < 0.9 - by / 3, 0.0, rng.exponential(size=n)),
            "hours": rng.integers(5, 24, n) + (rng.uniform(size=n) < by),
        }[shape]
        return np.asarray(x, np.float64)

    then, now = draw(20_000, 0.0), draw(5_000, shift)
    cells = Cells(numeric(then))
    counts = counted(cells, now)
    raw = stats.ks_2samp(now, then, method="asymp").statistic
    assert statistics.kolmogorov_smirnov(counts, cells.reference)[0] == pytest.approx(raw, abs=0.012)
    raw = stats.wasserstein_distance(now, then) / then.std()
    borders, now_, then_ = short_tails(cells.edges / cells.sd, counts, cells.reference)
    found = statistics.wasserstein(now_, then_, borders)
    assert found == pytest.approx(raw, abs=0.012), (found, raw)


def test_a_repeated_value_has_its_own_cell() -> None:
    """Nine tenths zeros: leaving zero in either direction shows; a constant column has a cell below, at and above."""
    rng = np.random.default_rng(6)
    column = numeric(np.where(rng.uniform(size=5_000) < 0.9, 0.0, rng.exponential(size=5_000)))
    cells = Cells(column, bins=10)
    assert cells.reference[cells.codes(np.zeros(1))[0]] == pytest.approx(4_500, abs=60)
    assert len(set(cells.codes(np.array([-1.0, 0.0, 1e-9])).tolist())) == 3
    constant = Cells(numeric(np.full(300, 7.0)), bins=10)
    assert constant.reference.tolist() == [0.0, 300.0, 0.0]
    assert constant.name(1) == "value 7"


def test_where_values_repeat_the_sample_is_counted() -> None:
    """Integers: counts are the sample's own; without repetition the quantiles know more."""
    rng = np.random.default_rng(7)
    table = np.column_stack([rng.normal(size=2_000), rng.integers(0, 6, 2_000)])
    reference = Reference(
        columns={"x": numeric(table[:, 0]), "hour": numeric(table[:, 1])},
        sample=tuple((float(a), float(b)) for a, b in table[:500]),
    )
    cells = Cells(reference.columns["hour"], sample=sample_of(reference, "hour"))
    assert cells.reference.sum() == 500
    assert np.array_equal(cells.reference, counted(cells, table[:500, 1]))
    assert Cells(reference.columns["x"], sample=sample_of(reference, "x")).reference.sum() == pytest.approx(
        2_000
    )


def test_counting_cells_is_adding_ones() -> None:
    """``count`` leaves the state that ``add`` leaves for the matrix of ones, retractions and late rows included."""
    rng = np.random.default_rng(8)
    time_ms = rng.integers(0, 5_000, 400)
    sign = np.where(rng.uniform(size=400) < 0.1, -1, 1).astype(np.int8)
    cells = rng.integers(0, 8, (400, 2))
    ones = np.zeros((400, 7), np.int64)
    for column in range(2):
        kept = cells[:, column] < 7
        ones[np.flatnonzero(kept), cells[kept, column]] += 1
    one, other = BlockSums(1_000, 0, 7), BlockSums(1_000, 0, 7)
    for block in (one, other):
        block.close(999)
    one.add(time_ms, sign, ones)
    other.count(time_ms, sign, cells)
    assert one.state == other.state


# -- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_share_a_scale(kind: str) -> None:
    """A normal column moved by 0.2 sd is stable, by 0.4 a warning, by 0.6 drift, in each of the four; names the column."""
    rng = np.random.default_rng(9)
    columns = {f"x{at}": numeric(rng.normal(size=20_000)) for at in range(3)}
    states = []
    for shift in (0.2, 0.4, 0.6):
        values = rng.normal(size=(5_000, 3))
        values[:, 1] += shift
        verdict = after(built(kind, columns), values)
        assert verdict.evidence.column == "x1"
        states.append(verdict.state)
    assert states == [State.STABLE, State.WARNING, State.DRIFT]


@pytest.mark.parametrize("kind", [*DISTANCES, *TESTS])
def test_chance_is_no_drift(kind: str) -> None:
    """400 blocks of 250 rows that are resampled reference, five columns: false alarms within alpha, or none at all."""
    rng = np.random.default_rng(10)
    pool = np.column_stack([rng.normal(size=3_000), rng.exponential(size=3_000), rng.integers(0, 9, 3_000),
                            rng.choice(3, 3_000, p=[0.7, 0.2, 0.1]), rng.choice(12, 3_000)])  # fmt: skip
    columns = {f"x{at}": numeric(pool[:, at]) for at in range(3)}
    columns["c3"] = categorical(pool[:, 3].astype(np.int64), 4)
    columns["c4"] = categorical(pool[:, 4].astype(np.int64), 13)
    test = kind in TESTS
    options: dict[str, Any] = {"alpha": 0.05, "effect_min": 0.0} if test else {}
    detector = built(kind, columns, **options)
    alarms = 0
    for block in range(400):
        values = pool[rng.integers(0, 3_000, 250)]
        detector.update(Rows.of(values, np.full(250, block * DAY_MS)))
        detector.advance((block + 1) * DAY_MS)
        alarms += detector.verdict.state is State.DRIFT
    # The pool is the reference itself, so chance is that of one sample: no more than of two.
    assert alarms <= (20 + 3 * 20**0.5 if test else 0)


@pytest.mark.parametrize("kind", TESTS)
def test_tests_of_two_fresh_samples_keep_alpha_and_no_less(kind: str) -> None:
    """A new reference for each of 300 blocks: at most alpha of alarms (and not none: a test that sleeps is none)."""
    rng = np.random.default_rng(11)
    alarms = 0
    for _ in range(300):
        columns = {f"x{at}": numeric(rng.normal(size=600)) for at in range(2)}
        verdict = after(built(kind, columns, alpha=0.1, effect_min=0.0), rng.normal(size=(300, 2)))
        alarms += verdict.state is State.DRIFT
    assert 3 <= alarms <= 30 + 3 * 27**0.5, alarms


@pytest.mark.parametrize("kind", TESTS)
def test_an_immaterial_shift_is_no_drift_whatever_the_traffic(kind: str) -> None:
    """A twentieth of a deviation: p-values vanish as rows grow tenfold and tenfold, the verdict stays, and says why."""
    rng = np.random.default_rng(12)
    columns = {"x": numeric(rng.normal(size=400_000))}
    for rows in (2_000, 20_000, 200_000):
        verdict = after(built(kind, columns), rng.normal(0.05, 1, (rows, 1)))
        assert verdict.state is State.STABLE
    assert "beyond chance" in verdict.evidence.note
    assert after(built(kind, columns), rng.normal(0.3, 1, (2_000, 1))).state is State.DRIFT
    assert after(built(kind, columns, effect_min=0.0), rng.normal(0.05, 1, (200_000, 1))).state is State.DRIFT


def test_the_budget_sets_alpha() -> None:
    """One false page in 100 days and blocks of a day: one in 100 blocks; never more than 5 % however rich the budget."""
    column = {"x": numeric(np.linspace(0, 1, 500))}
    assert built("ks", column).verdict.threshold == pytest.approx(4.0)
    thrifty = built("ks", column, budget=FalsePages(max=1, per=100 * DAY_MS))
    assert thrifty.verdict.threshold == pytest.approx(2.0)
    rich = built("ks", column, budget=FalsePages(max=10, per=DAY_MS))
    assert rich.verdict.threshold == pytest.approx(-np.log10(0.05))


@pytest.mark.parametrize("kind", [*DISTANCES, *TESTS])
def test_missing_values_are_left_out(kind: str) -> None:
    """Half of a column missing or infinite: the verdict is that of the other half; too few left: that column says nothing."""
    rng = np.random.default_rng(13)
    columns = {"x": numeric(rng.normal(size=2_000)), "y": numeric(rng.normal(size=2_000))}
    values = rng.normal(size=(1_000, 2))
    values[::2, 0] = rng.choice([np.nan, np.inf, -np.inf], 500)
    values[:, 1] = np.nan
    full = after(built(kind, columns), values)
    assert full.evidence.column == "x"
    assert full.evidence.rows == 500
    alone = after(built(kind, columns), np.column_stack([values[1::2, 0], np.full(500, np.nan)]))
    assert alone == full
    starved = after(built(kind, columns), np.full((1_000, 2), np.nan))
    assert starved.state is State.INCONCLUSIVE


@pytest.mark.parametrize("kind", ["wasserstein", "ks", "cramer-von-mises"])
def test_ordered_statistics_leave_categories_alone(kind: str) -> None:
    """A categorical column has no order: with nothing else to read the verdict stays inconclusive."""
    columns = {"c": ColumnReference(rows=1_000, shares=(0.5, 0.5, 0.0))}
    assert after(built(kind, columns), np.ones((500, 1))).state is State.INCONCLUSIVE


def test_evidence_says_which_category_moved() -> None:
    """Names of the contract, shares now and then."""
    columns = {"carrier": ColumnReference(rows=5_000, shares=(0.6, 0.3, 0.1, 0.0))}
    context = Context(
        ("carrier",), (4,), "features", Reference(columns=columns),
        features={"carrier": Feature(name="carrier", kind="categorical", categories=("AA", "B6", "UA"))},
    )  # fmt: skip
    detector = spec_class("chi-squared").model_validate({"block_ms": DAY_MS}).build(context)
    verdict = after(detector, np.repeat([0.0, 1.0, 2.0], [300, 150, 550])[:, None])
    assert verdict.state is State.DRIFT
    assert "'UA': 0.550 of the rows, 0.100 in the reference" in verdict.evidence.note


# -- new and vanished categories --------------------------------------------------------------------------------------


def test_new_and_vanished_categories() -> None:
    """Unknown codes in 3 % of the rows, or a tenth of the reference gone, are drift; three rows or a rare one are not."""
    columns = {
        "c": ColumnReference(rows=5_000, shares=(0.55, 0.345, 0.1, 0.005, 0.0)),
        "x": numeric(np.arange(300.0)),
    }

    def said(*counts: int) -> Verdict:
        codes = np.repeat(np.arange(5.0), counts)
        return after(built("categories", columns), np.column_stack([codes, codes]))

    assert said(550, 345, 100, 5, 0).state is State.STABLE
    assert said(550, 345, 100, 5, 3).state is State.STABLE
    assert said(550, 345, 105, 0, 0).state is State.STABLE
    new = said(550, 345, 100, 5, 30)
    assert new.state is State.DRIFT
    assert "unknown categories" in new.evidence.note
    gone = said(600, 395, 0, 5, 0)
    assert gone.state is State.DRIFT
    assert "category 2" in gone.evidence.note
    impossible = after(built("categories", columns), np.column_stack([np.full(500, 99.0), np.zeros(500)]))
    assert "unknown categories" in impossible.evidence.note
