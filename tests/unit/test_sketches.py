"""What is read off bins is as near as ``schemas.rows`` states: on any data, on the worst, and on real flights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deploy.demo.flights import load_flights
from schemas.rows import LATENCY_GAMMA, OUTCOME_BINS
from streams.core.aggregates import latency_bucket, unit_bin
from tests.support_maturity import scores

Floats = NDArray[np.float64]
LATENCY_ERROR = (LATENCY_GAMMA - 1) / (LATENCY_GAMMA + 1)


def exact_auc(score: Floats, label: NDArray[np.bool_]) -> float:
    """Share of pairs of a positive and a negative score in which the positive one is higher; equal ones count half."""
    good, bad = np.sort(score[label]), np.sort(score[~label])
    below = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return float(below.sum() / 2 / (len(good) * len(bad)))


def binned_auc(score: Floats, label: NDArray[np.bool_]) -> tuple[float, float]:
    """AUC and its bound as the views compute them."""
    bins = unit_bin(score, OUTCOME_BINS)
    p = np.bincount(bins[label], minlength=OUTCOME_BINS)
    n = np.bincount(bins[~label], minlength=OUTCOME_BINS)
    pairs = int(p.sum()) * int(n.sum())
    return float((p * (np.cumsum(n) - n / 2)).sum() / pairs), float((p * n).sum() / 2 / pairs)


def check_auc(score: Floats, label: NDArray[np.bool_]) -> float:
    """Hold the AUC to its bound; returns the bound."""
    found, bound = binned_auc(score, label)
    assert abs(found - exact_auc(score, label)) <= bound + 1e-12
    return bound


@given(st.lists(st.tuples(st.floats(-0.5, 1.5), st.booleans()), min_size=2, max_size=80))
def test_an_auc_is_within_its_bound(rows: list[tuple[float, bool]]) -> None:
    """Any scores, those outside of [0, 1] too."""
    score, label = np.array([s for s, _ in rows]), np.array([y for _, y in rows])
    if label.any() and not label.all():
        check_auc(score, label)


def test_an_auc_of_the_worst_scores_says_how_bad_it_is() -> None:
    """All in one bin, in the right order: 1 looks like a half, and the bound says so. Spread evenly: a quarter percent."""
    score, label = np.linspace(0.5001, 0.5049, 1_000), np.arange(1_000) >= 500
    assert exact_auc(score, label) == 1.0
    assert binned_auc(score, label) == (0.5, 0.5)
    rng = np.random.default_rng(1)
    assert check_auc(rng.random(100_000), rng.random(100_000) < 0.3) == pytest.approx(0.0025, rel=0.05)


def test_an_auc_of_real_flights_is_good_to_a_percent() -> None:
    """Scores that crowd together around the share of late flights, as real ones do."""
    flights = load_flights(0.2)
    rng = np.random.default_rng(2)
    # The model says one number an hour and airport; a little noise, so that order within a bin can matter.
    score = np.clip(scores(flights) + rng.normal(0, 0.02, len(flights)), 0, 1)
    assert check_auc(score[flights.labelled], flights.late[flights.labelled] == 1) < 0.01


def quantile(microseconds: Floats, share: float) -> float:
    """As the views read it: the middle of the first bucket at which so large a share is reached."""
    buckets, times = np.unique(latency_bucket(microseconds), return_counts=True)
    at = buckets[np.argmax(np.cumsum(times) >= share * len(microseconds))]
    return float(2 * LATENCY_GAMMA**at / (LATENCY_GAMMA + 1))


def worst_quantile_error(microseconds: Floats) -> float:
    """Relative error of p1 to p99.9 against the value of that rank."""
    ordered = np.sort(microseconds)
    shares = (0.01, 0.25, 0.5, 0.9, 0.99, 0.999)
    true = [float(ordered[math.ceil(share * len(ordered)) - 1]) for share in shares]
    return max(abs(quantile(microseconds, s) / t - 1) for s, t in zip(shares, true, strict=True))


@given(st.lists(st.floats(1.0, 1e12), min_size=1, max_size=60))
def test_a_quantile_of_any_latencies_is_within_its_bound(values: list[float]) -> None:
    """From a microsecond to eleven days."""
    assert worst_quantile_error(np.array(values)) <= LATENCY_ERROR * (1 + 1e-9)


def test_quantiles_of_the_worst_latencies_are_within_their_bound() -> None:
    """All at a bucket's border; two lumps a thousand times apart; a tail without a mean; one value."""
    rng = np.random.default_rng(3)
    border = LATENCY_GAMMA ** rng.integers(0, 1_000, 10_000)
    lumps = np.where(rng.random(10_000) < 0.5, 100.0, 100_000.0)
    tail = np.minimum(rng.pareto(0.5, 10_000) + 1, 1e12)
    for values in (border, border * (1 + 1e-12), lumps, tail, np.full(3, 777.0)):
        assert worst_quantile_error(values) <= LATENCY_ERROR * (1 + 1e-6)


def test_quantiles_of_real_durations_are_within_their_bound() -> None:
    """Minutes until a flight's label came."""
    flights = load_flights(0.2)
    assert worst_quantile_error(flights.label_delay_ms[flights.labelled] * 1000.0) <= LATENCY_ERROR * (
        1 + 1e-9
    )
