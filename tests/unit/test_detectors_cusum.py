"""CUSUM: Page's recursion to the row, its promise kept under independence, its delay, and what it reads the loss by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.base import DAY_MS, STREAM_COLUMNS, Change, Context, Rows
from detectors.shift.cusum import Cusum, CusumSpec
from schemas.contracts import ColumnReference, FalsePages, Reference
from schemas.verdicts import State

Floats = NDArray[np.float64]


def column(values: Floats) -> ColumnReference:
    quantiles = tuple(float(q) for q in np.quantile(values, np.linspace(0, 1, 101)))
    return ColumnReference(rows=len(values), quantiles=quantiles)


def built(pool: Floats, **options: Any) -> Cusum:
    names = tuple(f"x{at}" for at in range(pool.shape[1]))
    reference = Reference(columns={name: column(pool[:, at]) for at, name in enumerate(names)})
    return Cusum(CusumSpec.model_validate(options), Context(names, (0,) * len(names), "features", reference))


def drifts(changes: list[Change]) -> list[int]:
    return [change.index for change in changes if change.verdict.state is State.DRIFT]


def rows_of(values: Floats, **more: Any) -> Rows:
    return Rows.of(values, np.arange(len(values)) * 1_000, **more)


def test_it_is_pages_recursion() -> None:
    """S <- max(0, S + step) in a plain loop over rows: the same first alarm, sum, run of rows and start, nulls included."""
    rng = np.random.default_rng(0)
    pool = rng.normal(size=(5_000, 3))
    values = rng.normal(size=(3_000, 3))
    values[1_700:, 2] -= 0.7
    values[rng.uniform(size=values.shape) < 0.1] = np.nan
    detector = built(pool)
    found = detector.update(rows_of(values))
    sums, runs = np.zeros(6, np.int64), np.zeros(6, np.int64)
    for row in range(3_000):
        for at in range(3):
            table = detector._tables[at]
            code = int(table.cells.codes(values[row : row + 1, at])[0])
            for side in range(2):
                series = 2 * at + side
                sums[series] = max(0, sums[series] + table.steps[side, code])
                runs[series] = runs[series] + 1 if sums[series] else 0
        if sums.max() >= detector.verdict.threshold * 2**20:
            break
    alarm = next(change for change in found if change.verdict.state is State.DRIFT)
    series = int(sums.argmax())
    assert (alarm.index, series) == (row, 5)
    evidence = alarm.verdict.evidence
    assert alarm.verdict.score == sums[series] / 2**20
    assert (evidence.rows, evidence.since_ms) == (runs[series], (row + 1 - runs[series]) * 1_000)
    assert evidence.column == "x2"
    assert evidence.effect == pytest.approx(-0.63, abs=0.25)


def test_it_keeps_its_promise_for_independent_rows() -> None:
    """Five dependent columns and a fresh reference each time: 100 streams of 1,000 rows at one alarm in 1,000 rows. At most
    the 100 promised, with room for chance; a threshold of half as many nats gives several times as many."""
    rng = np.random.default_rng(1)

    def alarms(share: float) -> int:
        count = 0
        for _ in range(100):
            pool, values = (rng.normal(size=(n, 6)) for n in (1_500, 1_000))
            pool, values = pool[:, :5] + pool[:, 5:], values[:, :5] + values[:, 5:]
            detector = built(pool, threshold=share * math.log(10 * 1_000), hold_rows=1)
            count += len(drifts(detector.update(rows_of(values))))
        return count

    kept, broken = alarms(1.0), alarms(0.5)
    print("alarms in 100,000 rows:", kept, "with half the threshold:", broken)
    assert kept <= 100
    assert broken > 100


def test_tied_and_skewed_columns_keep_the_promise_too() -> None:
    """Nine tenths zeros, ten integers, a category of 1 %: psi is that of the column's own shares."""
    rng = np.random.default_rng(2)
    count = 0
    for _ in range(60):
        draws = []
        for n in (2_000, 1_000):
            zeros = np.where(rng.uniform(size=n) < 0.9, 0.0, rng.exponential(size=n))
            draws.append(
                np.column_stack([zeros, rng.integers(0, 10, n), rng.choice(3, n, p=[0.6, 0.39, 0.01])])
            )
        columns = {"z": column(draws[0][:, 0]), "i": column(draws[0][:, 1])}
        shares = np.bincount(draws[0][:, 2].astype(np.int64), minlength=4) / 2_000
        columns["c"] = ColumnReference(rows=2_000, shares=tuple(float(s) for s in shares))
        spec = CusumSpec(threshold=math.log(6 * 1_000), hold_rows=1)
        detector = spec.build(Context(("z", "i", "c"), (0, 0, 4), "features", Reference(columns=columns)))
        count += len(drifts(detector.update(rows_of(draws[1]))))
    assert count <= 60, count


def test_a_shift_is_found_in_time_and_a_small_one_never() -> None:
    """Ten columns at one alarm in a million rows: half a deviation within 300 rows in the median; a tenth not in 20,000."""
    rng = np.random.default_rng(3)
    pool = rng.normal(size=(20_000, 10))
    delays = []
    for _ in range(20):
        values = rng.normal(size=(2_000, 10))
        values[500:, 4] += 0.5
        found = built(pool).update(rows_of(values))
        assert drifts(found)
        delays.append(drifts(found)[0] - 500)
    print("median delay:", np.median(delays))
    assert 60 < np.median(delays) < 300
    assert not drifts(built(pool).update(rows_of(rng.normal(0.1, 1, (20_000, 10)))))


def test_a_drift_is_held_and_then_over() -> None:
    """While the shift lasts the verdict is drift without a break; ``hold_rows`` after the last alarm it is stable again."""
    rng = np.random.default_rng(4)
    pool = rng.normal(size=(20_000, 2))
    values = rng.normal(size=(6_000, 2))
    values[1_000:3_000] += 1.0
    found = built(pool, hold_rows=500).update(rows_of(values))
    assert [change.verdict.state for change in found] == [State.STABLE, State.DRIFT, State.STABLE]
    assert 1_000 < found[1].index < 1_100
    assert 3_400 < found[2].index <= 3_600


@pytest.mark.parametrize("cut", [0, 8, 9, 10])
def test_the_first_verdict_comes_with_the_row_that_makes_enough(cut: int) -> None:
    """Wherever the stream was cut before, also where that row is a batch's first."""
    rng = np.random.default_rng(7)
    detector = built(rng.normal(size=(500, 2)), rows_min=10)
    rows = rows_of(rng.normal(size=(30, 2)))
    changes = [
        change.index + start
        for start, end in ((0, cut), (cut, 30))
        for change in detector.update(rows.take(slice(start, end)))
    ]
    assert changes == [9]


def test_the_budget_becomes_rows_at_the_references_pace() -> None:
    """One false page in 30 days, 1,000 rows a day, four sums: log(4 x 30,000); without a pace, ``run_rows``."""
    pool = np.random.default_rng(5).normal(size=(1_000, 2))
    columns = {f"x{at}": column(pool[:, at]) for at in range(2)}
    reference = Reference(columns=columns, rows=10_000, from_ms=0, to_ms=10 * DAY_MS)
    context = Context(
        ("x0", "x1"), (0, 0), "features", reference, false_pages=FalsePages(max=1, per=30 * DAY_MS)
    )
    assert CusumSpec().build(context).verdict.threshold == pytest.approx(math.log(4 * 30_000))
    assert built(pool).verdict.threshold == pytest.approx(math.log(4 * 1_000_000))
    assert CusumSpec(threshold=9.0).build(context).verdict.threshold == 9.0


def outcomes(rng: np.random.Generator, n: int, lies: float = 0.0) -> Floats:
    score = rng.uniform(0.02, 0.4, n)
    label = (rng.uniform(size=n) < score + lies).astype(np.float64)
    return np.column_stack([score, label, -np.where(label == 1, np.log(score), np.log1p(-score))])


@pytest.mark.parametrize("known", ["sample", "moments", "nothing"])
def test_it_reads_the_loss_by_what_is_known(known: str) -> None:
    """A sample of scores and labels, mean and deviation, or the first rows: silent on an honest model, not on a liar."""
    rng = np.random.default_rng(6)
    sample = outcomes(rng, 2_000)
    reference = {
        "sample": Reference(sample_score=tuple(sample[:, 0].tolist()), sample_label=tuple(sample[:, 1].tolist())),
        "moments": Reference(
            loss_mean=float(sample[:, 2].mean()), loss_sd=float(sample[:, 2].std()), loss_rows=2_000
        ),
        "nothing": None,
    }[known]  # fmt: skip
    detector = CusumSpec().build(Context(STREAM_COLUMNS["loss"], (0, 0, 0), "loss", reference))
    honest = detector.update(rows_of(outcomes(rng, 4_000)))
    assert [change.verdict.state for change in honest] == [State.STABLE]
    found = drifts(detector.update(rows_of(outcomes(rng, 4_000, lies=0.5))))
    assert found
    assert found[0] < 600
    assert detector.verdict.evidence.column == "loss"


def test_outcomes_taken_back_are_not_read() -> None:
    """A stream with retractions among its rows leaves the state of the stream without them."""
    rng = np.random.default_rng(7)
    values = outcomes(rng, 900)
    sign = np.where(np.arange(900) % 3 == 2, -1, 1).astype(np.int8)
    context = Context(STREAM_COLUMNS["loss"], (0, 0, 0), "loss")
    one, other = CusumSpec().build(context), CusumSpec().build(context)
    one.update(rows_of(values, sign=sign))
    kept = rows_of(values).take(sign > 0)
    other.update(kept)
    assert one.snapshot() == other.snapshot()


def test_without_a_reference_features_are_not_read() -> None:
    """Nothing to compare with: inconclusive, and it says so."""
    detector = CusumSpec().build(Context(("x",), (0,), "features"))
    assert detector.update(rows_of(np.zeros((500, 1)))) == []
    assert detector.verdict.state is State.INCONCLUSIVE
    assert "reference" in detector.verdict.evidence.note
