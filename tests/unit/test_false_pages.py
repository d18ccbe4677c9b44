"""The false-page budget, on real flights: it holds where nothing moved, and the same test fails for what breaks it.

Short runs; ``python -m tests.bench.budget`` has the long ones.
"""

from __future__ import annotations

import pytest

from detectors.base import DAY_MS, Context
from detectors.shift.drift_e import DriftESpec
from detectors.shift.drift_e_blocks import DriftEBlocksSpec
from schemas.contracts import FalsePages
from tests.budget import (
    FLIGHT_CATEGORIES,
    flight_reference,
    mixed_rows,
    moved_to_edge,
    population,
    share_that_pages,
)

ZONE = 0.07
#: Streams half as long as the promised run: at most half of them may page.
BOUND = 0.5
EXACT = 10**9


def at_the_edge(run: int, promised: int, *, streams: int = 60, **spec: float) -> float:
    """Share of streams at the zone's edge that page within half of ``promised`` rows. The reference is the population."""
    everything = mixed_rows(10)
    return share_that_pages(
        DriftESpec(run=run, rows_min=1, joint=False, **spec),  # type: ignore[arg-type]
        everything, (0,) * 10, streams=streams, rows=promised // 2, reference_rows=len(everything),
        move=moved_to_edge(everything, (0,) * 10, ZONE), claimed_rows=EXACT, references=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("width", "run", "streams"), [(10, 1_000, 100), (10, 10_000, 40), (100, 1_000, 40), (1_000, 1_000, 3)]
)
def test_resampled_flights_stay_within_the_budget(width: int, run: int, streams: int) -> None:
    """Whole rows of real flights drawn anew, references of 5,000 rows: at most half page within half of the run."""
    everything = population(width)
    categories = FLIGHT_CATEGORIES if width == 10 else (0,) * width
    share = share_that_pages(
        DriftESpec(run=run, rows_min=1), everything, categories, streams=streams, rows=run // 2, reference_rows=5_000, references=2
    )  # fmt: skip
    assert share <= BOUND


def test_at_the_edge_of_the_zone_the_budget_still_holds() -> None:
    """Ten dependent columns, all moved by the whole zone, the reference known exactly: where the promise is tightest."""
    assert at_the_edge(10_000, 10_000) <= BOUND


@pytest.mark.parametrize("width", [10, 40])
def test_many_columns_at_their_edges_together_are_still_no_drift(width: int) -> None:
    """Columns made of all columns have the zone that all columns' zones add up to."""
    everything = mixed_rows(width)
    share = share_that_pages(
        DriftESpec(run=2_000, rows_min=1), everything, (0,) * width, streams=30, rows=1_000,
        reference_rows=len(everything), move=moved_to_edge(everything, (0,) * width, ZONE), claimed_rows=EXACT, references=1,
    )  # fmt: skip
    assert share <= BOUND


def test_a_threshold_divided_by_twenty_breaks_it() -> None:
    """The same streams, a twentieth of the threshold."""
    assert at_the_edge(500, 10_000) > BOUND


def test_a_detector_without_the_zone_breaks_it() -> None:
    """The same streams, bets against exactly no move."""
    assert at_the_edge(10_000, 10_000, zone=0.0, scale_zone=0.0) > BOUND


def test_a_detector_that_takes_its_reference_for_the_truth_breaks_it() -> None:
    """References of 200 rows: with their sampling error in the null the budget holds, without it does not."""
    everything = mixed_rows(10)

    def share(claimed_rows: int | None) -> float:
        return share_that_pages(
            DriftESpec(run=10_000, rows_min=1, joint=False), everything, (0,) * 10, streams=60, rows=5_000,
            reference_rows=200, move=moved_to_edge(everything, (0,) * 10, ZONE), claimed_rows=claimed_rows,
        )  # fmt: skip

    assert share(None) <= BOUND
    assert share(EXACT) > BOUND


def test_held_out_reference_in_time_order_stays_within_the_budget() -> None:
    """Sixty days of flights from each month on, fitted on the first half and played over the second: 300 days at one
    false page in 30 allow ten."""
    alarms, days = 0, 0.0
    for start in range(0, 300, 30):
        reference = flight_reference(start, 60)
        budget = FalsePages(max=1, per=30 * DAY_MS)
        found = DriftEBlocksSpec().standing(
            Context(tuple(reference.columns), (), "features", reference, false_pages=budget)
        )
        alarms += found.alarms
        days += found.verified_ms / DAY_MS
    assert days == 300
    assert alarms <= days / 30
