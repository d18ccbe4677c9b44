"""The demo's data: every flight once, in order, with labels at the time they really came."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from deploy.demo.flights import (
    CATEGORICAL,
    FEATURES,
    HOUR_MS,
    MINUTE_MS,
    NO_LABEL,
    WEATHER,
    Flights,
    load_flights,
    month_start_ms,
    shuffled,
)
from schemas.errors import ConfigurationError


@pytest.fixture(scope="module")
def year() -> Flights:
    """All flights of 2013."""
    return load_flights()


def _row(flights: Flights, flight_id: str) -> int:
    return int(np.flatnonzero(flights.flight_id == flight_id)[0])


def test_every_flight_is_there_once_and_in_order(year: Flights) -> None:
    """336,776 rows, unique ids, ascending event time, 9,430 without a label."""
    assert len(year) == 336_776
    assert len(set(year.flight_id)) == len(year)
    assert np.all(np.diff(year.departs_ms) >= 0)
    assert int((~year.labelled).sum()) == 9_430
    assert tuple(year.features) == FEATURES


def test_departure_is_new_york_time_with_daylight_saving(year: Flights) -> None:
    """05:15 on the first of January is 10:15 UTC; 05:00 on the first of July is 09:00 UTC."""
    winter = year.departs_ms[_row(year, "2013-01-01/EWR/UA1545/0515")]
    assert pd.Timestamp(int(winter), unit="ms") == pd.Timestamp("2013-01-01 10:15")
    summer = next(row for row in range(len(year)) if str(year.flight_id[row]).startswith("2013-07-01"))
    local = pd.Timestamp(int(year.departs_ms[summer]), unit="ms", tz="UTC").tz_convert("America/New_York")
    assert (local.month, local.day, float(local.hour)) == (7, 1, year.features["hour"][summer])
    assert year.departs_ms[summer] - month_start_ms(7) < 6 * HOUR_MS


def test_label_comes_at_the_actual_arrival_across_time_zones_and_midnight(year: Flights) -> None:
    """Clock times in two zones and past midnight give the true moment of arrival."""
    # Left 5:17 (2 late), arrived 8:30 in Houston, one hour behind: 4 h 13 min in the air and on the ground.
    houston = _row(year, "2013-01-01/EWR/UA1545/0515")
    assert year.label_delay_ms[houston] == (2 + 253) * MINUTE_MS
    assert year.late[houston] == 0
    delays = year.label_delay_ms[year.labelled]
    assert delays.min() > 15 * MINUTE_MS
    assert np.median(delays) == pytest.approx(170 * MINUTE_MS, abs=5 * MINUTE_MS)
    assert np.all(year.label_delay_ms[~year.labelled] == NO_LABEL)
    assert np.all(year.label_ms[~year.labelled] == NO_LABEL)


def test_late_share_moves_through_the_year(year: Flights) -> None:
    """September is calm and December is not: the drift is in the data, not put there."""
    share = {}
    for month in (9, 12):
        rows = year.between(month_start_ms(month), month_start_ms(month + 1))
        share[month] = rows.late[rows.labelled].mean()
    assert share[9] < 0.15
    assert share[12] > 0.30


def test_weather_is_that_of_the_departure_hour_and_null_where_not_observed(year: Flights) -> None:
    """A joined value equals the station's row; a missing one becomes null in the record."""
    assert year.record(_row(year, "2013-01-01/EWR/UA1545/0515"))["temp"] == pytest.approx(39.02)
    gaps = np.isnan(year.features["pressure"])
    assert 0.10 < gaps.mean() < 0.13
    assert year.record(int(np.flatnonzero(gaps)[0]))["pressure"] is None
    assert all(np.isnan(year.features[name]).mean() < 0.006 for name in WEATHER if name != "pressure")


def test_a_sample_is_stable_nested_and_seeded(year: Flights) -> None:
    """10 % are among the 50 %; another seed keeps others; shares are close to what was asked."""
    tenth, half = load_flights(0.1), load_flights(0.5)
    assert set(tenth.flight_id) < set(half.flight_id) < set(year.flight_id)
    assert len(tenth) == pytest.approx(0.1 * len(year), rel=0.02)
    other = set(load_flights(0.1, seed=1).flight_id)
    assert len(other & set(tenth.flight_id)) == pytest.approx(0.01 * len(year), rel=0.1)


def test_shuffling_moves_whole_flights_and_keeps_the_time_slots(year: Flights) -> None:
    """Every flight keeps its features, label and delay together; the slots and their order stay."""
    moved = shuffled(year, seed=3)
    assert np.array_equal(moved.departs_ms, year.departs_ms)
    assert not np.array_equal(moved.flight_id, year.flight_id)
    order = np.argsort(moved.flight_id.astype("U")), np.argsort(year.flight_id.astype("U"))
    assert np.array_equal(moved.late[order[0]], year.late[order[1]])
    assert np.array_equal(moved.label_delay_ms[order[0]], year.label_delay_ms[order[1]])
    for name in (*CATEGORICAL, "hour", "distance"):
        assert np.array_equal(moved.features[name][order[0]], year.features[name][order[1]])


def test_training_may_only_use_labels_that_have_arrived(year: Flights) -> None:
    """A flight still in the air at the cut has no label yet."""
    cut = month_start_ms(3)
    rows = year.between(month_start_ms(1), cut)
    known = rows.label_known_by(cut)
    assert 0 < int((rows.labelled & ~known).sum()) < 400
    assert rows.label_ms[known].max() <= cut


def test_loading_is_fast_enough_to_cache_nothing() -> None:
    """The whole year in a second or two of processor time, on whatever machine."""
    started = time.process_time()
    load_flights()
    assert time.process_time() - started < 20.0


@pytest.mark.parametrize("sample", [0.0, -0.1, 1.5])
def test_an_impossible_sample_is_refused(sample: float) -> None:
    """The message says what is allowed."""
    with pytest.raises(ConfigurationError, match="must be in"):
        load_flights(sample)


def test_an_impossible_month_is_refused() -> None:
    """Thirteen is the year's end; fourteen is an error."""
    assert month_start_ms(13) - month_start_ms(12) == 31 * 24 * HOUR_MS
    with pytest.raises(ConfigurationError):
        month_start_ms(14)
