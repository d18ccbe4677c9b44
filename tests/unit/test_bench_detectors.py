"""The harness of the detectors' benchmarks counts right: what cannot see anything gets the delays it must."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.base import Context
from detectors.shift.cusum import CusumSpec
from schemas.contracts import ColumnReference, Reference
from tests.bench.detectors.published import CHANGES, ROWS, scored, sine_clusters
from tests.bench.detectors.subjects import (
    Chance,
    Clockwork,
    Llr,
    Never,
    Ours,
    Player,
    Subject,
    calibrated,
    delay,
    logarithmic,
    mean_steps,
    run_length,
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


def test_calibration_finds_the_run_length() -> None:
    """A knob that is the run length itself, and a CUSUM's threshold."""
    subject = logarithmic("chance", Chance, (20, 50, 100, 200), rows=10_000)
    assert calibrated(subject, no_drift, 150).realised == pytest.approx(150, rel=0.3)
    oracle = Subject("cusum", lambda k: Llr(mean_steps(1.0, 0.0), k), (1.0, 2.0, 3.0), rows=10_000)
    assert calibrated(oracle, no_drift, 100).realised == pytest.approx(100, rel=0.3)


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
        assert Llr(steps, 5.0).first(cut, rng) == expected


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
