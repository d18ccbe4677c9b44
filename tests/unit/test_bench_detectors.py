"""The harness of the detectors' benchmarks counts right: what cannot see anything gets the delays it must."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import cramervonmises

from detectors.adapters.kswin import least_distance
from detectors.adapters.river_drift import AdwinSpec, KswinSpec, PageHinkleySpec
from detectors.base import Context
from detectors.joint_shift.mmd import MmdSpec
from detectors.shift.cusum import CusumSpec
from detectors.shift.drift_e import DriftESpec
from detectors.shift.windowed_kinds import CramerVonMisesSpec
from schemas.contracts import ColumnReference, Reference
from tests.bench.detectors.published import CHANGES, ROWS, scored, sine_clusters
from tests.bench.detectors.subjects import (
    Chance,
    Clockwork,
    LlrTrace,
    Never,
    Ours,
    Passage,
    Peaks,
    Player,
    Trace,
    delay,
    fitted,
    mean_steps,
    run_length,
    value_steps,
)
from tests.bench.detectors.traces import (
    AdwinTrace,
    CusumTrace,
    CvmTrace,
    DriftETrace,
    KswinTrace,
    MovingTrace,
    PageHinkleyTrace,
    Whole,
    WindowTrace,
)

Floats = NDArray[np.float64]


def no_drift(rng: np.random.Generator) -> Iterator[Floats]:
    """Unit normals, one column."""
    while True:
        yield rng.normal(size=(100, 1))


def at_change(rng: np.random.Generator) -> Floats:
    """A thousand rows; from the 200th on a whole standard deviation higher."""
    out = rng.normal(size=(1_000, 1))
    out[200:] += 1.0
    return out


def test_alarms_at_random_are_as_late_as_chance_has_it() -> None:
    """Memoryless: the median delay is log 2 times the run length, and a fifth of the streams alarm before the change."""
    found = delay(Chance(200), at_change, 200, 2_000)
    assert found.median == pytest.approx(np.log(2) * 200, rel=0.15)
    assert found.early / 2_000 == pytest.approx(1 - np.exp(-1), abs=0.05)


def test_alarms_by_the_clock_are_evenly_late() -> None:
    """Once in 400 rows and not in the first 200: between 1 and 200 rows late, half of them later than 100."""
    found = delay(Clockwork(400), at_change, 200, 2_000)
    assert found.seen == found.streams
    assert found.median == pytest.approx(100, rel=0.15)


def test_what_never_alarms_has_no_median() -> None:
    """Nothing seen, the whole of the rest as delay, an endless run."""
    found = delay(Never(), at_change, 200, 10)
    assert (found.median, found.mean, found.seen, found.early) == (None, 800.0, 0, 0)
    assert run_length(Never(), no_drift, 5_000) == (5_000, 0)


def test_run_lengths_are_counted_with_restarts() -> None:
    """Rows read per alarm, whatever the blocks."""
    assert run_length(Chance(50), no_drift, 20_000)[0] == pytest.approx(50, rel=0.15)


def test_a_threshold_is_read_off_for_the_run_length() -> None:
    """A CUSUM's, from one look at streams without drift; counted again on others it is the same."""
    found = fitted(LlrTrace(mean_steps(1.0, 0.0)), no_drift, 150, 60_000)
    assert found.realised == pytest.approx(150, rel=0.15)
    peaks = Peaks(LlrTrace(mean_steps(1.0, 0.0)), no_drift, 100, 150)
    assert peaks.run(peaks.threshold(150))[0] == pytest.approx(150, rel=0.02)
    assert peaks.run(1e9) == (15_000, 0)
    sure = fitted(LlrTrace(lambda x: np.where(x > 50, 1.0, -1.0)), no_drift, 150, 3_000)
    assert sure.alarms == 0 and 0 < sure.threshold < 1


def test_a_cusum_equals_its_recursion_wherever_blocks_end() -> None:
    """Page's recursion row by row, beside sums over blocks of 7 and of 250."""
    rng = np.random.default_rng(3)
    rows, steps = at_change(rng), mean_steps(1.0, 0.1)
    held, expected = np.zeros(2), None
    for at, step in enumerate(steps(rows)):
        held = np.maximum(held + step, 0.0)
        if held.max() >= 5.0:
            expected = at + 1
            break
    for block in (7, 250):
        cut = (rows[start : start + block] for start in range(0, len(rows), block))
        assert Passage(LlrTrace(steps), 5.0).first(cut, rng) == expected


def test_an_oracle_of_values_adds_up_their_likelihood_ratios() -> None:
    """A category that went from a half to three quarters; a missing value is one too."""
    before, after = np.array([0.0, 1.0] * 500), np.array([0.0, 1.0, 1.0, 1.0] * 500)
    steps = value_steps(before, after)
    expected = np.log([0.5, 1.5])
    np.testing.assert_allclose(steps(np.array([[0.0], [1.0]]))[:, 0], expected, atol=2e-3)
    lost = value_steps(np.append(before, np.nan), np.append(after, [np.nan] * 500))
    assert lost(np.array([[np.nan]]))[0, 0] > 4


def _normals(columns: int) -> tuple[Context, Floats]:
    """A reference of unit normals, and rows whose first column rises after the 600th; one value is missing."""
    rng = np.random.default_rng(8)
    grid = tuple(np.quantile(rng.normal(size=20_000), np.linspace(0, 1, 101)).tolist())
    names = tuple(f"x{at}" for at in range(columns))
    sample = tuple(map(tuple, rng.normal(size=(400, columns)).tolist()))
    of = {name: ColumnReference(rows=20_000, quantiles=grid, mean=0.0, sd=1.0) for name in names}
    rows = rng.normal(size=(1_200, columns))
    rows[600:, 0] += 1.2
    rows[100, 1] = np.nan
    return Context(
        names, (0,) * columns, "features", Reference(columns=of, sample=sample, rows=20_000), seed=3
    ), rows


def _pairs() -> list[tuple[str, Trace, float, Player]]:
    """A score with a threshold, and the detector with the knob that the threshold stands for."""
    context, _ = _normals(3)
    reference, names = context.reference, context.columns
    assert reference is not None
    kswin = KswinSpec(alpha=1e-4, window_size=120, stat_size=40, warm_up_rows=0)
    adwin = AdwinSpec(delta=1e-3, warm_up_rows=0)
    hinkley = PageHinkleySpec(threshold=25.0, warm_up_rows=0)
    windows = CramerVonMisesSpec(alpha=1e-3, effect_min=0, block_ms=100, rows_min=50)
    return [
        ("drift-e", Whole(DriftETrace(DriftESpec(run=1_000, rows_min=1), context)), 3.0, Ours(DriftESpec(run=3_000, rows_min=1), context)),
        ("cusum", Whole(CusumTrace(CusumSpec(), context)), 10.0, Ours(CusumSpec(threshold=10.0, rows_min=1), context)),
        ("mmd", Whole(MovingTrace(MmdSpec(), context)), 0.6, Ours(MmdSpec(threshold=0.6), context)),
        ("windows", Whole(WindowTrace(windows, context)), 3.0, Ours(windows, context)),
        ("adwin", AdwinTrace(adwin, reference, names), -float(np.log(1e-3)), Ours(adwin, context)),
        ("page-hinkley", PageHinkleyTrace(hinkley, reference, names), 25.0, Ours(hinkley, context)),
        ("kswin", KswinTrace(kswin, 3, 3), least_distance(1e-4, 40), Ours(kswin, context)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("trace", "threshold", "detector"), [pair[1:] for pair in _pairs()], ids=[pair[0] for pair in _pairs()]
)
def test_a_score_reaches_its_threshold_where_the_detector_alarms(
    trace: Trace, threshold: float, detector: Player
) -> None:
    """The same row, after the change, wherever blocks end."""
    _, rows = _normals(3)
    rng = np.random.default_rng(0)
    found = [
        player.first((rows[start : start + block] for start in range(0, len(rows), block)), rng)
        for player, block in (
            (Passage(trace, threshold), 100),
            (Passage(trace, threshold), 300),
            (detector, 100),
        )
    ]
    assert found[0] == found[1] == found[2]
    assert found[0] is not None and found[0] > 600


def test_a_sliding_window_is_scored_as_scipy_has_it() -> None:
    """Cramer-von Mises of the last hundred values against the uniform distribution."""
    grid = tuple(np.linspace(0, 1, 101).tolist())
    reference = Reference(columns={"x": ColumnReference(rows=1_000, quantiles=grid)})
    values = np.random.default_rng(2).uniform(size=(250, 1))
    rows, scores = CvmTrace(100, reference, ("x",)).take(values)
    assert rows[0] == 100 and len(scores) == 151
    assert scores[7] == pytest.approx(cramervonmises(values[7:107, 0], "uniform").statistic)


def test_ours_alarm_at_the_row_the_detector_names() -> None:
    """One detector of the registry: the same row whatever the blocks, and late on no change."""
    grid = tuple(np.linspace(-3, 3, 101).tolist())
    context = Context(
        ("x",), (0,), "features", Reference(columns={"x": ColumnReference(rows=10_000, quantiles=grid)})
    )
    player: Player = Ours(CusumSpec(threshold=8.0), context)
    found = [delay(player, at_change, 200, 20, block=block) for block in (50, 333)]
    assert found[0] == found[1]
    assert found[0].median is not None and found[0].median < 100


def test_the_published_metrics() -> None:
    """First alarm after a change detects, others are false: by hand."""
    alarms = [100, 4_000, 5_010, 5_100, 10_030]
    found = scored(alarms, (5_000, 10_000, 15_000))
    assert found.false == 3
    assert found.mtfa == pytest.approx((3_900 + 1_100) / 2)
    assert found.mtd == pytest.approx(20)
    assert found.mdr == pytest.approx(1 / 3)
    assert found.mtr == pytest.approx(2_500 / 20 * 2 / 3)


def test_the_published_stream() -> None:
    """Marginals stay and dependence changes: over a concept every column has mean 0 and variance 1/2 + 1/16."""
    stream = sine_clusters(rows=10_000)
    assert sine_clusters().shape == (ROWS, 4) and len(CHANGES) == 29
    for part in (stream[:5_000], stream[5_000:]):
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=0.02)
        np.testing.assert_allclose(part.var(axis=0), 0.5625, rtol=0.05)
    before, after = (np.corrcoef(part.T)[:2, 2:] for part in (stream[:5_000], stream[5_000:]))
    assert np.abs(before - after).max() > 0.5
