"""When a worker is said to hang: it stands still although there is something to do, a broker answers, and it ran."""

from __future__ import annotations

import pytest

from schemas.errors import DeliveryError
from streams.watchdog import GAP_S_MAX, Reading, Watchdog

LIMIT_S = 10.0
SLACK = 100
TP = ("predictions", 0)


def watch(*looks: tuple[float, bool, Reading | None]) -> None:
    """Every look at (seconds, ready, reading); None: no broker answers."""
    dog = Watchdog(LIMIT_S, SLACK)
    for now_s, ready, reading in looks:
        dog.look(now_s, ready=ready, readings=None if reading is None else {TP: reading})


def test_a_task_that_applies_nothing_of_what_it_took_is_found() -> None:
    """However little it is; the message says where everything stands."""
    with pytest.raises(
        DeliveryError, match=r"predictions\[0\] has not moved .* applied to 5, handed over to 6"
    ):
        watch(*((float(s), True, Reading(6, 5, 6)) for s in range(13)))


def test_records_that_are_not_handed_over_are_found() -> None:
    """Faust stopped reading, and said nothing."""
    with pytest.raises(DeliveryError, match="its end is 500"):
        watch(*((float(s), True, Reading(5, 5, 500)) for s in range(13)))


def test_what_moves_or_has_nothing_to_do_may_go_on() -> None:
    """Slow is not stuck, and the end of an input may be markers and aborted records only."""
    watch(*((float(s), True, Reading(s + 1, s // 5, 10_000)) for s in range(100)))
    watch(*((float(s), True, Reading(5, 5, 5 + SLACK)) for s in range(100)))


def test_a_burst_after_a_long_rest_is_not_held_against_the_task() -> None:
    """The clock runs from when there was something to do, not from when it last moved."""
    rest = [(float(s), True, Reading(5, 5, 5)) for s in range(100)]
    burst = [(100.0 + s, True, Reading(5, 5, 5_000)) for s in range(9)]
    watch(*rest, *burst, (109.0, True, Reading(5_000, 5, 5_000)), (110.0, True, Reading(5_000, 5_000, 5_000)))


def test_an_outage_of_the_broker_does_not_count() -> None:
    """Two minutes in the middle of nine seconds."""
    before = [(float(s), True, Reading(6, 5, 6)) for s in range(6)]
    away = [(6.0 + s, True, None) for s in range(120)]
    after = [(126.0 + s, True, Reading(6, 5, 6)) for s in range(4)]
    watch(*before, *away, *after, (130.0, True, Reading(6, 6, 6)))


def test_a_process_that_slept_is_not_blamed() -> None:
    """Between two looks only so much counts: the rest it did not run."""
    watch((0.0, True, Reading(6, 5, 6)), (3_600.0, True, Reading(6, 5, 6)), (3_601.0, True, Reading(6, 5, 6)))
    assert GAP_S_MAX < LIMIT_S


def test_a_process_that_is_never_ready_ends_but_not_for_want_of_a_broker() -> None:
    """Readiness has the same limit; becoming ready starts it anew."""
    watch(*((float(s), False, None) for s in range(100)))
    watch(*((float(s), s % 10 == 9, Reading(5, 5, 5)) for s in range(100)))
    with pytest.raises(DeliveryError, match="not ready within 10 s although a broker answers"):
        watch(*((float(s), False, Reading(5, 5, 5)) for s in range(13)))


def test_an_input_that_left_and_came_back_starts_anew() -> None:
    """What moved to another worker meanwhile is not held against this one."""
    dog = Watchdog(LIMIT_S, SLACK)
    for second in range(9):
        dog.look(float(second), ready=True, readings={TP: Reading(6, 5, 6)})
    dog.look(9.0, ready=True, readings={})
    for second in range(10, 19):
        dog.look(float(second), ready=True, readings={TP: Reading(6, 5, 6)})
