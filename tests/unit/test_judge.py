"""The judge: what it must see, what it must not, and that looking often does not make it err more often."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.core.judge import BLOCKS_MIN, Finding, pairs, rates

ERRORS = {"lower_is_better": True, "effect": 0.01, "alpha": 0.05}
CLICKS = {"lower_is_better": False, "effect": 0.01, "alpha": 0.05}


@pytest.mark.parametrize("reference_rows", [10, 190, 10_000])
def test_seven_errors_in_ten_beside_none_is_harm(reference_rows: int) -> None:
    """The golden case, at any share of the traffic."""
    said = rates(7, 10, 0, reference_rows, **ERRORS)
    assert said.finding is Finding.WORSE
    assert said.difference == 0.7
    assert said.interval[0] >= 0


@pytest.mark.parametrize(
    ("events", "rows", "reference_events", "reference_rows"),
    [
        (0, 0, 5, 100),
        (1, 2, 0, 0),
        (0, 10, 0, 10),
        (1, 3, 0, 30),
        (5, 100, 5, 100),
        (2, 20, 2, 20),
        (1, 1, 1, 1),
    ],
)
def test_sparse_and_tied_counts_show_nothing(
    events: int, rows: int, reference_events: int, reference_rows: int
) -> None:
    """Too little, or the same on both sides of too little."""
    assert rates(events, rows, reference_events, reference_rows, **ERRORS).finding is Finding.UNDECIDED


@pytest.mark.parametrize(
    ("count", "mean", "sd"), [(0, 0.0, 0.0), (1, 0.9, 0.0), (10, 0.0, 0.0), (50, 0.05, 0.3), (100, 0.0, 0.0)]
)
def test_sparse_and_tied_pairs_show_nothing(count: int, mean: float, sd: float) -> None:
    """Differences that are all equal are no proof that the next one is."""
    assert pairs(count, mean, sd, **ERRORS).finding is Finding.UNDECIDED


def test_much_of_the_same_is_no_worse() -> None:
    """Ties do show something in the end: no difference of the size that matters."""
    assert rates(50, 100_000, 50, 100_000, **ERRORS).finding is Finding.NO_WORSE
    assert pairs(100_000, 0.0, 0.0, **ERRORS).finding is Finding.NO_WORSE


@pytest.mark.parametrize(
    ("effect", "finding"), [(0.0019, Finding.WORSE), (0.0021, Finding.UNDECIDED), (0.0025, Finding.NO_WORSE)]
)
def test_harm_needs_a_size_that_matters(effect: float, finding: Finding) -> None:
    """0.3 % beside 0.1 % of a million requests is certain; whether it matters is the contract's word, from all sides."""
    said = rates(3_000, 1_000_000, 1_000, 1_000_000, lower_is_better=True, effect=effect, alpha=0.05)
    assert said.finding is finding


@pytest.mark.parametrize(
    ("options", "mine", "theirs", "finding"),
    [
        (ERRORS, 300, 100, Finding.WORSE),
        (ERRORS, 100, 300, Finding.BETTER),
        (CLICKS, 300, 100, Finding.BETTER),
        (CLICKS, 100, 300, Finding.WORSE),
    ],
)
def test_the_direction_is_the_metrics(
    options: dict[str, float], mine: int, theirs: int, finding: Finding
) -> None:
    """More errors are worse, more clicks are better."""
    assert rates(mine, 1_000, theirs, 1_000, **options).finding is finding


@pytest.mark.parametrize(
    ("mean", "lower", "finding"),
    [
        (0.1, True, Finding.WORSE),
        (-0.1, True, Finding.BETTER),
        (0.1, False, Finding.BETTER),
        (-0.1, False, Finding.WORSE),
    ],
)
def test_paired_differences_have_a_direction_too(mean: float, lower: bool, finding: Finding) -> None:
    """Loss above, loss below."""
    said = pairs(5_000, mean, 0.3, lower_is_better=lower, effect=0.01, alpha=0.05)
    assert said.finding is finding
    assert said.interval[0] < mean < said.interval[1]


def test_looking_after_every_block_seldom_cries_wolf() -> None:
    """Equal error rates, 40 looks each: runs that ever say worse or better stay within 2 alpha, where fixed-size tests
    looked at 40 times err in a quarter of the runs."""
    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(200):
        mine, theirs = (rng.random((2, 40, 25)) < 0.08).sum(axis=2).cumsum(axis=1)
        said = {
            rates(int(a), 25 * n, int(b), 25 * n, **ERRORS).finding
            for n, (a, b) in enumerate(zip(mine, theirs, strict=True), 1)
        }
        wrong += bool(said & {Finding.WORSE, Finding.BETTER})
    assert wrong <= 200 * 0.1


def test_the_interval_holds_the_truth_at_every_look() -> None:
    """Paired differences with mean 0.02: over 300 runs of 30 looks, few ever leave it out."""
    rng = np.random.default_rng(12)
    left_out = 0
    for _ in range(300):
        d = np.clip(rng.normal(0.02, 0.2, 3_000), -1, 1)
        looks = [pairs(n, d[:n].mean(), d[:n].std(), **ERRORS).interval for n in range(100, 3_001, 100)]
        left_out += any(not low <= 0.02 <= high for low, high in looks)
    assert left_out <= 300 * 0.05


def test_a_day_is_one_days_evidence() -> None:
    """Two versions equally good over all days, one better on some and the other on others: 900 pairs a day counted as 900
    give a wrong word in many runs of 20 days, counted as 100 in hardly any."""
    rng = np.random.default_rng(5)
    wrong = {900: 0, 100: 0}
    for _ in range(100):
        days = np.clip(rng.normal(0, 0.01, (20, 1)) + rng.normal(0, 0.15, (20, 900)), -1, 1)
        for counted in wrong:
            seen = [days[:n] for n in range(BLOCKS_MIN, 21)]
            said = {
                pairs(
                    len(d) * counted, d.mean(), d.std(), lower_is_better=True, effect=0.005, alpha=0.05
                ).finding
                for d in seen
            }
            wrong[counted] += bool(said & {Finding.WORSE, Finding.BETTER})
    assert wrong[900] > 25
    assert wrong[100] <= 5
