"""Data quality, freshness, staleness and service level: each fault is found and named, and good data is left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from detectors.base import DAY_MS, Context, Detector, Rows, Stream
from detectors.health.freshness import FreshnessSpec, StalenessSpec
from detectors.health.quality import QualitySpec
from detectors.health.rates import kl_bernoulli, rate_nats, rate_upper
from detectors.health.repeats import Repeats
from detectors.health.service import ServiceSpec
from detectors.health.sketch import RELATIVE_ERROR, cells_of, quantile
from schemas.contracts import ColumnReference, Feature, Reference
from schemas.verdicts import State

HOUR = 3_600_000
Floats = NDArray[np.float64]
FEATURES = {
    "amount": Feature(name="amount", low=-10, high=10),
    "count": Feature(name="count", nullable=True),
    "kind": Feature(name="kind", kind="categorical", categories=("x", "y", "z")),
}
COLUMNS = ("amount", "count", "kind")
CODES = (0, 0, 4)


def good(rng: np.random.Generator, n: int) -> Floats:
    """A fraction, a count with five nulls in a hundred, a category."""
    count = rng.poisson(30, n).astype(np.float64)
    count[rng.uniform(size=n) < 0.05] = np.nan
    return np.column_stack([rng.normal(size=n), count, rng.choice(4, n, p=(0.6, 0.29, 0.1, 0.01))])


def reference_of(values: Floats, days: int = 30) -> Reference:
    """What training would keep of rows spread evenly over ``days`` before time 0."""
    columns = {}
    for at, name in enumerate(COLUMNS):
        known = values[~np.isnan(values[:, at]), at]
        missing = 1 - len(known) / len(values)
        if CODES[at]:
            shares = np.bincount(known.astype(np.int64), minlength=4) / len(known)
            columns[name] = ColumnReference(rows=len(known), missing=missing, shares=tuple(shares.tolist()))
        else:
            quantiles = tuple(np.quantile(known, np.linspace(0, 1, 101)).tolist())
            columns[name] = ColumnReference(rows=len(known), missing=missing, quantiles=quantiles)
    times = np.linspace(-days * DAY_MS, -1, len(values)).astype(np.int64)
    step = max(1, len(values) // 2_000)
    sample = [[None if np.isnan(v) else v for v in row] for row in values[::step].tolist()]
    return Reference(
        columns=columns,
        rows=len(values),
        from_ms=int(times[0]),
        to_ms=int(times[-1]),
        sample=tuple(tuple(row) for row in sample),
        sample_time_ms=tuple(times[::step].tolist()),
    )


REFERENCE = reference_of(good(np.random.default_rng(1), 30_000))


def quality(reference: Reference | None = REFERENCE, **options: Any) -> Detector:
    context = Context(COLUMNS, CODES, "features", reference, features=FEATURES)
    return QualitySpec(**options).build(context)


def day_of(values: Floats, day: int = 0, identity: NDArray[np.uint64] | None = None) -> Rows:
    """Rows spread over a day."""
    return Rows.of(
        values, np.linspace(day * DAY_MS, (day + 1) * DAY_MS - 1, len(values)).astype(np.int64), identity
    )


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.3])
def test_nats_bound_the_binomial_tail(rate: float) -> None:
    """exp(-nats) is never below the exact tail, and the upper bound never below Clopper and Pearson's."""
    for rows in (10, 200, 5_000):
        counts = np.unique(np.linspace(0, rows, 40).astype(int))
        for count in counts.tolist():
            exact = float(stats.binom.sf(count - 1, rows, rate))
            assert exact <= np.exp(-rate_nats(count, rows, rate)) * (1 + 1e-9)
            if count < rows:
                exact_upper = float(stats.beta.ppf(1 - np.exp(-7), count + 1, rows - count))
                assert rate_upper(count / rows, rows, 7.0) >= exact_upper * (1 - 1e-9)
    assert kl_bernoulli(0.3, 0.2) == pytest.approx(float(stats.entropy([0.3, 0.7], [0.2, 0.8])))


def test_repeats_are_exact_within_the_memory_and_fair_beyond() -> None:
    """As a Counter says up to the cap; beyond it an unbiased share, whatever the order and the cuts."""
    rng = np.random.default_rng(2)
    few = rng.integers(0, 900, 1_500).astype(np.uint64)
    repeats = Repeats(cap=1_000)
    for part in np.array_split(few, 7):
        repeats.add(part)
    counted = Counter(few.tolist())
    assert repeats.exact
    assert (repeats.rows, repeats.repeated) == (1_500, 1_500 - len(counted))

    large = Repeats(cap=1_024)
    large.add(np.arange(18_000, dtype=np.uint64))
    assert 400 <= large.rows <= 1_024  # a half is dropped at a time, not more

    shares = []
    for seed in range(30):
        many = np.arange(20_000, dtype=np.uint64) + np.uint64(seed * 10**9)
        many[::10] = many[1::10]  # one row in ten repeats its neighbour
        sampled, shuffled = Repeats(cap=512), Repeats(cap=512)
        sampled.add(many)
        for part in np.array_split(rng.permutation(many), 50):
            shuffled.add(part)
        assert sampled.state() == shuffled.state()
        assert len(sampled.state().kept) <= 8 * 512
        shares.append(sampled.repeated / sampled.rows)
    assert np.mean(shares) == pytest.approx(0.1, abs=4 * np.std(shares) / np.sqrt(30))


def _null(v: Floats) -> None:
    v[::8, 1] = np.nan


def _null_where_none_is_allowed(v: Floats) -> None:
    v[::25, 0] = np.nan


def _infinite(v: Floats) -> None:
    v[::20, 0] = np.inf


def _unknown(v: Floats) -> None:
    v[::20, 2] = 3


def _impossible(v: Floats) -> None:
    v[::20, 2] = -7.5


def _outside(v: Floats) -> None:
    v[::20, 0] = 40.0


def _frozen(v: Floats) -> None:
    v[:, 0] = 0.25


def _handful(v: Floats) -> None:
    v[:, 0] = np.arange(len(v)) % 3 + 0.5


def _integers(v: Floats) -> None:
    v[:, 0] = np.rint(v[:, 0] * 3)


def _fractions(v: Floats) -> None:
    v[::10, 1] = 2.5


def _frozen_category(v: Floats) -> None:
    v[:, 2] = 1


FAULTS: list[tuple[Callable[[Floats], None], str]] = [
    (_null, "count: missing"),
    (_null_where_none_is_allowed, "amount: missing"),
    (_infinite, "amount: invalid"),
    (_unknown, "kind: invalid"),
    (_impossible, "kind: invalid"),
    (_outside, "amount: out of range"),
    (_frozen, "amount: frozen"),
    (_handful, "amount: a handful of values"),
    (_integers, "amount: integers only"),
    (_fractions, "count: with fraction"),
    (_frozen_category, "kind: frozen"),
]


@pytest.mark.parametrize(("fault", "line"), FAULTS, ids=[fault.__name__[1:] for fault, _ in FAULTS])
def test_each_fault_has_its_line(fault: Callable[[Floats], None], line: str) -> None:
    """A good day is stable; the same with one fault is drift, names it first, and the next good day is stable again."""
    rng = np.random.default_rng(3)
    detector = quality()
    bad = good(rng, 1_000)
    fault(bad)
    detector.update(day_of(good(rng, 1_000), 0))
    detector.update(day_of(bad, 1, np.arange(1_000, 2_000).astype(np.uint64)))
    detector.update(day_of(good(rng, 1_000), 2))
    changes = detector.advance(3 * DAY_MS)
    assert [change.verdict.state for change in changes] == [State.STABLE, State.DRIFT, State.STABLE]
    assert changes[1].time_ms == 2 * DAY_MS
    assert changes[1].verdict.evidence.note.startswith(line)
    assert changes[1].verdict.evidence.column == line.split(":")[0]


def test_repeated_identities_have_their_line() -> None:
    """Every tenth row sent twice; also where there are too many identities to remember."""
    rng = np.random.default_rng(4)
    identity = np.arange(5_000, dtype=np.uint64)
    identity[::10] = identity[1::10]
    for cap, words in ((8_192, "repeated 0.1"), (1_024, "repeated (sampled identities)")):
        detector = quality(identities_max=cap)
        detector.update(day_of(good(rng, 5_000), 0, identity))
        evidence = detector.advance(DAY_MS)[0].verdict.evidence
        assert evidence.note.startswith(f"identity: {words}")
        assert evidence.current == pytest.approx(0.1, abs=0.04)


def test_rows_like_the_reference_are_left_alone() -> None:
    """A thousand days of rows from the reference, large and small, without a warning."""
    rng = np.random.default_rng(5)
    detector = quality()
    states = set()
    for day in range(1_000):
        n = int(rng.choice([60, 200, 1_000]))
        detector.update(day_of(good(rng, n), day))
        detector.advance((day + 1) * DAY_MS)
        states.add(detector.verdict.state)
    assert states == {State.STABLE}


def test_a_small_reference_is_held_against_nobody() -> None:
    """Ten nulls in a hundred where the reference has five: drift against 30,000 rows, nothing against 100."""
    values = good(np.random.default_rng(6), 3_000)
    values[:, 1] = np.where(np.arange(3_000) % 10 == 0, np.nan, np.nan_to_num(values[:, 1], nan=30))
    states = []
    for rows in (30_000, 100):
        column = REFERENCE.columns["count"].model_copy(update={"rows": round(rows * 0.95), "missing": 0.05})
        reference = Reference(columns={**REFERENCE.columns, "count": column})
        detector = quality(reference)
        detector.update(day_of(values))
        detector.advance(DAY_MS)
        states.append((detector.verdict.state, "count: missing" in detector.verdict.evidence.note))
    assert states == [(State.DRIFT, True), (State.STABLE, False)]


def test_days_that_are_constant_by_themselves_are_not_frozen() -> None:
    """A column of one value a day in the reference (a weekday, a clear sky) may hold one value a day."""
    rng = np.random.default_rng(7)
    values = good(rng, 30_000)
    values[:, 1] = np.repeat(np.arange(30) % 7, 1_000)
    detector = quality(reference_of(values))
    today = good(rng, 1_000)
    today[:, 1] = 3
    detector.update(day_of(today))
    detector.advance(DAY_MS)
    assert detector.verdict.state is State.STABLE


def test_without_a_reference_the_contract_still_holds() -> None:
    """Range, nullability and known categories need no reference; nulls of a nullable column say nothing."""
    rng = np.random.default_rng(8)
    fine, wrong = good(rng, 500), good(rng, 500)
    fine[fine[:, 2] == 3, 2] = 0
    wrong[::10, 0] = 99.0
    for values, state in ((fine, State.STABLE), (wrong, State.DRIFT)):
        detector = quality(None)
        detector.update(day_of(values))
        detector.advance(DAY_MS)
        assert detector.verdict.state is state


def test_failed_answers_have_no_score_to_miss() -> None:
    """Null scores of errors are no missing scores; null scores of answers are."""
    n = 1_000
    score = ColumnReference(rows=5_000, quantiles=tuple(np.linspace(0, 1, 101).tolist()))
    context = Context(("score", "latency_ms", "error"), (0, 0, 0), "predictions", Reference(score=score))
    gone = np.arange(n) % 5 == 0
    for failed, state in ((gone, State.STABLE), (np.zeros(n, bool), State.DRIFT)):
        values = np.column_stack([np.linspace(0, 1, n), np.full(n, 3.0), failed])
        values[gone, :1] = np.nan
        detector = QualitySpec().build(context)
        detector.update(day_of(values))
        detector.advance(DAY_MS)
        assert detector.verdict.state is state


# -- freshness and staleness ------------------------------------------------------------------------------------------


def freshness(
    reference: Reference | None = None, columns: tuple[str, ...] = ("x",), **options: Any
) -> Detector:
    return FreshnessSpec(silence_max=3 * HOUR, rows_min=3, **options).build(
        Context(columns, (0,) * len(columns), "features", reference)
    )


@pytest.mark.parametrize("told", [(), (4,), (4, 5, 6, 7, 8, 9), (100,)])
def test_silence_is_dated_to_its_deadline(told: tuple[int, ...]) -> None:
    """
    rows        |  |  |  .  .  .  .  .  .  .  |  |      hours 0 1 2, then 10 11
    verdict           stable  drift         stable      whoever tells the time, and however late
    """
    detector = freshness()
    hours = np.array([0, 1, 2])
    heard = detector.update(Rows.of(np.zeros(3), hours * HOUR))
    for hour in told:
        if hour < 10:
            heard += detector.advance(hour * HOUR)
    heard += detector.update(Rows.of(np.zeros(2), np.array([10, 11]) * HOUR))
    assert [(change.time_ms // HOUR, change.verdict.state) for change in heard] == [
        (2, State.STABLE),
        (5, State.DRIFT),
        (10, State.STABLE),
    ]
    assert heard[1].verdict.evidence.since_ms == 2 * HOUR
    assert heard[1].verdict.score == 1.0
    if told == (100,):
        (late,) = detector.advance(100 * HOUR)
        assert late.time_ms == 14 * HOUR
        assert detector.verdict.score == pytest.approx(89 / 3)


def test_a_column_that_went_null_is_overdue() -> None:
    """One of two columns is null from hour 5 on, rows every ten minutes: drift after three hours of it, then recovery."""
    times = np.arange(0, 12 * HOUR, HOUR // 6)
    values = np.column_stack(
        [np.zeros(len(times)), np.where((times >= 5 * HOUR) & (times < 10 * HOUR), np.nan, 1.0)]
    )
    detector = freshness(columns=("x", "y"))
    changes = detector.update(Rows.of(values, times))
    drift = [change for change in changes if change.verdict.state is State.DRIFT]
    assert len(drift) == 1
    assert drift[0].time_ms == 8 * HOUR  # more than three hours after 4:50
    assert drift[0].verdict.evidence.column == "y"
    assert changes[-1].verdict.state is State.STABLE
    assert changes[-1].time_ms == 10 * HOUR


def test_a_column_that_is_mostly_null_may_be_null_for_long() -> None:
    """Five hours of nulls are nothing where 19 of 20 values were null, and drift where none was."""
    times = np.arange(0, 7 * HOUR, HOUR // 6)
    values = np.where(times < 2 * HOUR, 1.0, np.nan)
    values = np.column_stack([np.zeros(len(times)), values])
    for missing, state in ((0.95, State.STABLE), (0.0, State.DRIFT)):
        column = ColumnReference(rows=round(20_000 * (1 - missing)), missing=missing, quantiles=(0.0, 1.0))
        detector = freshness(Reference(columns={"y": column}), columns=("x", "y"))
        detector.update(Rows.of(values, times))
        assert detector.verdict.state is state


def test_a_model_grows_stale_on_its_day() -> None:
    """Stable until age_max after the end of its training data, drift from that moment; unknown is inconclusive."""
    times = np.arange(20) * DAY_MS
    for trained_ms, expected in (
        (-5 * DAY_MS, [(2, State.STABLE), (5, State.DRIFT)]),
        (-20 * DAY_MS, [(2, State.DRIFT)]),
        (None, []),
    ):
        context = Context(("score",), trained_to_ms=trained_ms)
        for cuts in ([], [1, 4, 7]):
            detector = StalenessSpec(age_max=10 * DAY_MS, rows_min=3).build(context)
            heard = []
            for part in np.split(np.arange(20), cuts):
                heard += detector.update(Rows.of(np.zeros(len(part)), times[part]))
                heard += detector.advance(int(times[part[-1]]))
            assert [(change.time_ms // DAY_MS, change.verdict.state) for change in heard] == expected
    assert detector.verdict.state is State.INCONCLUSIVE


# -- service level ----------------------------------------------------------------------------------------------------


def answers(latency_ms: Floats, error: Floats | None = None) -> Floats:
    n = len(latency_ms)
    failed = np.zeros(n) if error is None else error
    return np.column_stack([np.where(failed == 1, np.nan, 0.5), latency_ms, failed])


def service(**options: Any) -> Detector:
    stream: Stream = "predictions"
    return ServiceSpec(block_ms=HOUR, **options).build(
        Context(("score", "latency_ms", "error"), stream=stream)
    )


@pytest.mark.parametrize("probability", [0.0, 0.5, 0.99, 0.999, 1.0])
def test_the_sketch_is_as_right_as_it_says(probability: float) -> None:
    """Within 1 % of numpy's lower quantile on a heavy tail over ten orders of magnitude; parts add up to the whole."""
    rng = np.random.default_rng(9)
    values = 10 ** rng.uniform(-2, 8, 20_000)
    whole = Counter(cells_of(values).tolist())
    parts = Counter(cells_of(values[:7_000]).tolist()) + Counter(cells_of(values[7_000:]).tolist())
    assert whole == parts
    exact = float(np.quantile(values, probability, method="lower"))
    assert quantile(whole, probability) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.0001)


def test_slow_answers_are_drift_when_surely_above_the_limit() -> None:
    """p99 of 100 ms against limits of 90, 100 and 130: drift, a warning within the sketch's error, and stable."""
    latency = np.full(1_000, 100.0)
    states = []
    for limit in (90.0, 100.0, 130.0):
        detector = service(latency_p99_ms=limit, error_rate_max=None)
        detector.update(Rows.of(answers(latency), np.zeros(1_000, np.int64)))
        detector.advance(HOUR)
        states.append(detector.verdict.state)
        assert detector.verdict.evidence.current == pytest.approx(100, rel=RELATIVE_ERROR)
    assert states == [State.DRIFT, State.WARNING, State.STABLE]
    for limit in np.geomspace(1, 1_000, 60).tolist():
        detector = service(latency_p99_ms=limit, error_rate_max=None)
        detector.update(Rows.of(answers(np.full(200, limit)), np.zeros(200, np.int64)))
        detector.advance(HOUR)
        assert detector.verdict.state is State.WARNING  # exactly at the limit, whatever the cell says


def test_errors_are_counted_against_their_limit() -> None:
    """Exactly at the limit is a warning, one more is drift; a block of too few rows says nothing."""
    for errors, state in ((50, State.WARNING), (51, State.DRIFT), (30, State.STABLE)):
        failed = (np.arange(1_000) < errors).astype(np.float64)
        detector = service(error_rate_max=0.05)
        detector.update(Rows.of(answers(np.full(1_000, 5.0), failed), np.zeros(1_000, np.int64)))
        detector.advance(HOUR)
        assert detector.verdict.state is state
        assert detector.verdict.evidence.current == errors / 1_000
    detector = service()
    detector.update(Rows.of(answers(np.full(99, 5.0), np.ones(99)), np.zeros(99, np.int64)))
    assert detector.advance(HOUR) == []
    assert detector.verdict.state is State.INCONCLUSIVE


@pytest.mark.parametrize("told", [(), (3, 4, 5)])
def test_missing_traffic_is_a_block_too(told: tuple[int, ...]) -> None:
    """Ten rows an hour expected: a first hour of two is forgiven, empty hours are drift once, a full one is stable."""
    detector = service(error_rate_max=None, rows_min_per_block=10)
    hours = np.repeat([0, 1, 7], [2, 15, 10])
    first, rest = hours[hours < 7], hours[hours >= 7]
    heard = detector.update(Rows.of(answers(np.full(len(first), 5.0)), first * HOUR))
    for hour in told:
        heard += detector.advance(hour * HOUR)
    heard += detector.update(Rows.of(answers(np.full(len(rest), 5.0)), rest * HOUR))
    heard += detector.advance(8 * HOUR)
    assert [(change.time_ms // HOUR, change.verdict.state) for change in heard] == [
        (2, State.STABLE),
        (3, State.DRIFT),
        (8, State.WARNING),
    ]


@pytest.mark.parametrize("kind", [FreshnessSpec, StalenessSpec, ServiceSpec])
def test_facts_may_page_and_say_why(
    kind: type[FreshnessSpec] | type[StalenessSpec] | type[ServiceSpec],
) -> None:
    """Limits on what happened page without a share of the budget; the checks of data, which estimate, do not page."""
    context = Context(("score",))
    standing = kind().standing(context)
    assert (standing.basis, standing.pages) == ("proved", True)
    assert "fact" in standing.note
    assert not QualitySpec().standing(context).pages
