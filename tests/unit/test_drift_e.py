"""The two e-detectors on drift of inputs: every bet is fair under the null, alarms come with a cause and not without."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from detectors.base import DAY_MS, Change, Context, Detector, Rows
from detectors.shift.bets import NATS_MAX, UNIT, bets_on
from detectors.shift.drift_e import DriftESpec
from detectors.shift.drift_e_blocks import DriftEBlocksSpec
from detectors.shift.levels import Coder, Levels, at_most
from schemas.bins import Binning
from schemas.contracts import ColumnReference, FalsePages, Reference
from schemas.verdicts import State

Floats = NDArray[np.float64]
NORMAL = tuple(float(q) for q in [-6.0, *stats.norm.ppf(np.arange(1, 100) / 100), 6.0])


def columns() -> Iterator[tuple[str, ColumnReference, Floats]]:
    """Name, reference and a large sample of columns of different character."""
    rng = np.random.default_rng(3)
    n = 200_000
    x = rng.normal(size=n)
    many = {
        "normal": x,
        "exponential": rng.exponential(size=n),
        "half zero": np.where(rng.uniform(size=n) < 0.5, 0.0, rng.exponential(size=n)),
        "whole numbers": np.round(2 * x),
        "constant": np.full(n, 7.0),
        "tenth null": np.where(rng.uniform(size=n) < 0.1, np.nan, x),
    }
    for name, values in many.items():
        known = values[np.isfinite(values)]
        quantiles = tuple(float(q) for q in np.quantile(known, np.linspace(0, 1, 101)))
        yield name, ColumnReference(rows=n, missing=1 - len(known) / n, quantiles=quantiles), values
    codes = rng.choice(30, n, p=np.arange(1, 31) / 465).astype(np.float64)
    shares = tuple((np.bincount(codes.astype(int), minlength=31) / n).tolist())
    yield "thirty categories", ColumnReference(rows=n, shares=shares), codes


@pytest.mark.parametrize("which", range(7))
def test_no_bet_grows_without_a_move(which: int) -> None:
    """Mean of every bet's e-value over the population the reference came from: at most one."""
    name, column, values = list(columns())[which]
    levels = Levels(column, discrete=len(np.unique(values)) < 0.9 * len(values))
    bets = bets_on(levels, 0.07, 0.07, 0.01)
    shares = np.bincount(levels.codes(values), minlength=levels.size) / len(values)
    means = shares @ np.exp(bets.table * UNIT)
    assert means.max() <= 1.0, (name, bets.names[int(means.argmax())])
    assert bets.weights.sum() == pytest.approx(1.0)
    assert np.abs(bets.table).max() * UNIT <= NATS_MAX


@pytest.mark.parametrize(
    ("shift", "scale"), [(0.07, 1.0), (-0.07, 1.0), (0.0, 1.07), (0.0, 1 / 1.07), (0.03, 1.03)]
)
def test_no_bet_grows_at_the_edge_of_the_zone(shift: float, scale: float) -> None:
    """A known normal column moved by the zone, or spread by the scale zone: every bet is fair, some just so."""
    levels = Levels(ColumnReference(rows=10**9, quantiles=NORMAL))
    bets = bets_on(levels, 0.07, 0.07, 0.01)
    upto = stats.norm.cdf((np.append(levels.edges, np.inf) - shift) / scale)
    means = np.append(np.diff(upto, prepend=0.0), 0.0) @ np.exp(bets.table * UNIT)
    assert means.max() <= 1.0
    if abs(shift) == 0.07:
        assert means.max() > 0.999
    if scale != 1.03:
        further = stats.norm.cdf((np.append(levels.edges, np.inf) - 3 * shift) / scale**3)
        assert (np.append(np.diff(further, prepend=0.0), 0.0) @ np.exp(bets.table * UNIT)).max() > 1.0


def test_the_references_own_error_is_in_the_null() -> None:
    """References of 500 rows, the column moved by the whole zone: some bet is unfair for at most delta of them."""
    unfair, delta = 0, 0.1
    for seed in range(200):
        x = np.random.default_rng(seed).normal(size=500)
        quantiles = tuple(float(q) for q in np.quantile(x, np.linspace(0, 1, 101)))
        levels = Levels(ColumnReference(rows=500, quantiles=quantiles))
        bets = bets_on(levels, 0.07, 0.07, delta)
        upto = stats.norm.cdf(np.append(levels.edges, np.inf) - 0.07)
        unfair += (np.append(np.diff(upto, prepend=0.0), 0.0) @ np.exp(bets.table * UNIT)).max() > 1.0
    assert unfair <= 200 * delta


def test_upper_bounds_are_clopper_pearsons_or_tighter() -> None:
    """One share: not above the exact binomial bound at half of delta; all of nothing and of everything are named."""
    exact = stats.beta.ppf(1 - 0.05 / 2, 31, 70)
    assert at_most(np.array([0.3]), 100, 0.05)[0] <= exact + 1e-12
    assert at_most(np.array([0.0, 1.0]), 10**9, 0.05)[1] == 1.0
    assert 0 < at_most(np.array([0.0]), 1_000, 0.05)[0] < 0.005
    assert at_most(np.array([0.2]), 0, 0.05)[0] == 1.0


def test_few_values_and_many_are_coded_alike() -> None:
    """Bisection and comparison give the same levels, nulls and infinities included."""
    columns_ = [
        Levels(ColumnReference(rows=100, quantiles=NORMAL)),
        Levels(ColumnReference(rows=9, shares=(0.5, 0.5))),
    ]
    coder = Coder(columns_)
    rng = np.random.default_rng(4)
    x = np.column_stack([rng.normal(size=3_000), rng.integers(-1, 4, 3_000)])
    x[::7, 0], x[::11, 1], x[5, 0] = np.nan, np.nan, np.inf
    whole = coder.codes(x)
    assert np.array_equal(
        whole, np.concatenate([coder.codes(x[at : at + 100]) for at in range(0, 3_000, 100)])
    )


def normal_reference(count: int, rows: int = 10**9) -> Reference:
    return Reference(columns={f"x{at}": ColumnReference(rows=rows, quantiles=NORMAL) for at in range(count)})


def by_rows(reference: Reference, **options: object) -> Detector:
    spec = DriftESpec.model_validate({"run": 1_000_000, **options})
    return spec.build(Context(tuple(reference.columns), (0,) * len(reference.columns), "features", reference))


def first_drift(changes: list[Change]) -> Change | None:
    return next((c for c in changes if c.verdict.state is State.DRIFT), None)


def delay(detector: Detector, x: Floats, start: int) -> float:
    """Rows from ``start`` to the first drift; -1 for a false one, infinite for none. A row a millisecond."""
    detector.reset()
    found = first_drift(detector.update(Rows.of(x, np.arange(len(x)))))
    return np.inf if found is None else found.index + 1 - start if found.index >= start else -1.0


@pytest.mark.parametrize(("size", "at_most_rows"), [(0.3, 620), (0.5, 210), (1.0, 56)])
def test_a_shift_is_found_soon(size: float, at_most_rows: int) -> None:
    """One of ten normal columns moves: the median delay over 30 streams at a promised run of 1,000,000 rows."""
    detector = by_rows(normal_reference(10))
    delays = []
    for seed in range(30):
        x = np.random.default_rng(seed).normal(size=(3_000, 10))
        x[1_000:, 4] += size
        delays.append(delay(detector, x, 1_000))
    assert min(delays) >= 0
    assert np.median(delays) <= at_most_rows
    assert detector.verdict.evidence.column == "x4"
    assert detector.verdict.evidence.statistic == "higher"


def test_spread_missing_values_and_categories_are_found() -> None:
    """What a detector on means does not see; the evidence says which it was."""
    rng = np.random.default_rng(6)
    reference = Reference(
        columns={
            "x": ColumnReference(rows=10**6, quantiles=NORMAL),
            "c": ColumnReference(rows=10**6, shares=(0.5, 0.3, 0.2, 0.0)),
        }
    )
    spec = DriftESpec(run=1_000_000)

    def told(x: Floats, c: NDArray[np.int64]) -> tuple[str | None, str]:
        detector = spec.build(Context(("x", "c"), (0, 4), "features", reference))
        found = first_drift(detector.update(Rows.of(np.column_stack([x, c]), np.arange(len(x)))))
        assert found is not None
        return found.verdict.evidence.column, found.verdict.evidence.statistic

    x, c = rng.normal(size=2_000), rng.choice(3, 2_000, p=(0.5, 0.3, 0.2))
    assert told(1.6 * x, c) == ("x", "wider")
    assert told(0.5 * x, c) == ("x", "narrower")
    assert told(np.where(rng.uniform(size=2_000) < 0.2, np.nan, x), c)[1].startswith("more missing")
    assert told(x, rng.choice(3, 2_000, p=(0.2, 0.6, 0.2))) in {
        ("c", "more of category 1"),
        ("c", "less of category 0"),
    }
    assert told(x, np.where(rng.uniform(size=2_000) < 0.1, 3, c)) == ("c", "more of category 3")


def test_ten_times_the_traffic_does_not_make_an_immaterial_shift_drift() -> None:
    """A shift inside the zone, over the same event time at 1 and at 10 rows a millisecond: no alarm, and no evidence."""
    for rows_ms in (1, 10):
        detector = by_rows(normal_reference(3))
        n = 20_000 * rows_ms
        x = np.random.default_rng(7).normal(0.05, 1, size=(n, 3))
        assert first_drift(detector.update(Rows.of(x, np.arange(n) // rows_ms))) is None
        assert detector.verdict.score < 0.1


def test_everything_moving_a_little_is_found_by_the_sum() -> None:
    """Ten columns by a third of a deviation each: sooner than any one of them would show it."""
    rng = np.random.default_rng(8)
    sample = tuple(tuple(row) for row in rng.normal(size=(2_000, 10)).tolist())
    detector = by_rows(normal_reference(10).model_copy(update={"sample": sample}))
    x = rng.normal(size=(1_500, 10))
    x[500:] += 0.33
    assert 0 < delay(detector, x, 500) < 150
    assert detector.verdict.evidence.column == "all columns, summed"


def test_rows_page_only_where_the_owner_says_they_are_independent() -> None:
    """Rows in time order are not; the run length is the detector's share of the budget."""
    context = Context(
        ("x0",),
        (0,),
        "features",
        normal_reference(1),
        false_pages=FalsePages(max=1, per=30 * DAY_MS),
        share=0.5,
    )
    assert not DriftESpec().standing(context).pages
    stated = DriftESpec(rows_independent=True).standing(context)
    assert (stated.pages, stated.promised_ms) == (True, 60 * DAY_MS)


# -- blocks of time ---------------------------------------------------------------------------------------------------


def weather(seed: int, days: int, sd: float, rows_day: int = 60, columns_: int = 1) -> Floats:
    """Normal columns whose mean wanders from day to day; shape (days * rows_day, columns)."""
    rng = np.random.default_rng(seed)
    means = np.repeat(rng.normal(0, sd, (days, columns_)), rows_day, axis=0)
    return np.asarray(means + rng.normal(0, np.sqrt(1 - sd**2), (days * rows_day, columns_)))


def block_reference(x: Floats, rows_day: int = 60) -> Reference:
    names = [f"x{at}" for at in range(x.shape[1])]
    made = {
        name: ColumnReference(
            rows=len(x), quantiles=tuple(np.quantile(x[:, at], np.linspace(0, 1, 101)).tolist())
        )
        for at, name in enumerate(names)
    }
    bins = {
        name: tuple(
            tuple(int(n) for n in Binning(made[name]).counts(day)) for day in x[:, at].reshape(-1, rows_day)
        )
        for at, name in enumerate(names)
    }
    return Reference(columns=made, bins=bins)


def by_days(reference: Reference, **options: object) -> Detector:
    spec = DriftEBlocksSpec.model_validate({"run": 30 * DAY_MS, **options})
    return spec.build(Context(tuple(reference.columns), (0,) * len(reference.columns), "features", reference))


def drift_day(detector: Detector, x: Floats, rows_day: int = 60) -> int | None:
    detector.update(Rows.of(x, np.arange(len(x)) // rows_day * DAY_MS + 1))
    found = first_drift(detector.advance((len(x) // rows_day + 1) * DAY_MS))
    return None if found is None else found.time_ms // DAY_MS


def test_days_that_swing_as_the_references_did_are_no_drift() -> None:
    """Eight streams of 300 days at one false page in 30: none; the detector by rows pages on the same in every one."""
    pages = 0
    for seed in range(8):
        reference = block_reference(weather(seed, 60, 0.4, columns_=5))
        assert drift_day(by_days(reference), weather(1_000 + seed, 300, 0.4, columns_=5)) is None
        x = weather(1_000 + seed, 300, 0.4, columns_=5)
        by_row = DriftESpec(run=30 * DAY_MS).build(
            Context(tuple(reference.columns), (0,) * 5, "features", reference)
        )
        pages += first_drift(by_row.update(Rows.of(x, np.arange(len(x)) * (DAY_MS // 60)))) is not None
    assert pages == 8


def test_a_lasting_shift_is_found_within_days() -> None:
    """A deviation's shift of one of ten columns that wander by a fifth of one: within two weeks, and named."""
    found = []
    for seed in range(10):
        detector = by_days(block_reference(weather(seed, 60, 0.2, columns_=10)))
        x = weather(100 + seed, 60, 0.2, columns_=10)
        x[:, 3] += 1.0
        day = drift_day(detector, x)
        assert day is not None
        assert (detector.verdict.evidence.column, detector.verdict.evidence.statistic) == ("x3", "mean rank")
        found.append(day)
    assert np.median(found) <= 14


def test_a_move_within_the_zone_is_none_whatever_the_traffic() -> None:
    """Mean rank 0.51 where 0.52 is allowed, at 60 and at 2,000 rows a day."""
    reference = block_reference(weather(1, 60, 0.01))
    for rows_day in (60, 2_000):
        x = weather(2, 200, 0.01, rows_day) + 0.035
        assert drift_day(by_days(reference), x, rows_day) is None


def test_a_reference_that_drifts_itself_takes_the_right_to_page() -> None:
    """Checked on the second half of the reference in time order: quiet, drifting, and too short."""

    def standing(reference: Reference) -> tuple[bool, int, str]:
        budget = FalsePages(max=1, per=30 * DAY_MS)
        made = DriftEBlocksSpec().standing(
            Context(("x0",), (0,), "features", reference, false_pages=budget, share=0.25)
        )
        return made.pages, made.alarms, made.note

    quiet = weather(5, 80, 0.1)
    pages, alarms, note = standing(block_reference(quiet))
    assert (pages, alarms) == (True, 0)
    assert note == ""
    drifting = quiet + np.where(np.arange(len(quiet)) < len(quiet) // 2, 0.0, 1.5)[:, None]
    pages, alarms, note = standing(block_reference(drifting))
    assert not pages
    assert alarms == 1
    assert "does not page" in note
    assert not standing(block_reference(quiet[: 15 * 60]))[0]


def test_a_reference_without_blocks_says_what_is_missing() -> None:
    """Inconclusive, and how to mend it."""
    detector = by_days(normal_reference(1))
    assert drift_day(detector, np.ones((600, 1))) is None
    assert "event times" in detector.verdict.evidence.note
