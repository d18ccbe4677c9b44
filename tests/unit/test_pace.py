"""When a task commits: soon while it keeps up, less often the further behind it is, and never more than fits."""

from __future__ import annotations

from schemas.settings import MonitorSection
from streams.pace import COMMIT_BYTES_MAX, LATE_S_MAX, TICK_COMMIT_TIMES, Lags, Pace

HOUR_S = 3_600.0


class Timed:
    """A pace and the clock it reads."""

    def __init__(self, **limits: int) -> None:
        self.now_s = 50.0
        self.pace = Pace(MonitorSection(**limits), lambda: self.now_s)

    def committed(self, took_s: float) -> None:
        """A transaction of everything that was applied."""
        started_s = self.now_s
        self.pace.begun()
        self.now_s += took_s
        self.pace.committed(started_s)


def test_what_was_applied_waits_for_the_interval() -> None:
    """From the first of it on; and nothing is due when nothing was applied."""
    timed = Timed(commit_interval=500)
    assert timed.pace.wait_s(0.0) is None
    timed.pace.applied(1, 10, moved=False)
    timed.now_s += 0.25
    timed.pace.applied(1, 10, moved=False)
    assert timed.pace.wait_s(0.0) == 0.25
    timed.now_s += 1.0
    assert timed.pace.wait_s(0.0) == 0.0
    timed.committed(0.5)
    assert timed.pace.wait_s(0.0) is None
    assert not timed.pace.pending


def test_time_that_moves_does_not_wait_but_leaves_room_between_transactions() -> None:
    """Some times as long as the last one took."""
    timed = Timed(commit_interval=60_000)
    timed.pace.applied(1, 10, moved=True)
    assert timed.pace.wait_s(0.0) == 0.0
    timed.committed(0.5)
    timed.pace.applied(1, 10, moved=True)
    assert timed.pace.wait_s(0.0) == 0.5 * TICK_COMMIT_TIMES - 0.5


def test_records_that_have_waited_wait_a_quarter_of_that_again() -> None:
    """Whether or not time moves; not for ever; and not below the interval."""
    for moved in (False, True):
        timed = Timed(commit_interval=500)
        timed.pace.applied(1, 10, moved=moved)
        assert timed.pace.wait_s(8.0) == 2.0
        assert timed.pace.wait_s(HOUR_S) == LATE_S_MAX
    timed = Timed(commit_interval=500)
    timed.pace.applied(1, 10, moved=False)
    assert timed.pace.wait_s(1.0) == 0.5


def test_however_late_a_transaction_is_due_once_it_is_large() -> None:
    """In records, or in bytes: a record may be a batch of many rows."""
    timed = Timed(commit_rows_max=100)
    timed.pace.applied(99, COMMIT_BYTES_MAX - 1, moved=True)
    assert timed.pace.wait_s(HOUR_S) == LATE_S_MAX
    timed.pace.applied(1, 0, moved=False)
    assert timed.pace.wait_s(HOUR_S) == 0.0
    timed.committed(0.0)
    timed.pace.applied(1, COMMIT_BYTES_MAX, moved=False)
    assert timed.pace.wait_s(HOUR_S) == 0.0


def test_a_stage_is_as_far_behind_as_its_last_task() -> None:
    """Tasks that are somebody else's now do not count, nor do those of other stages."""
    lags = Lags()
    assert lags.most("join") == lags.of("join", 0) == 0.0
    lags.tell("join", 0, 7.0)
    lags.tell("join", 1, 2.0)
    lags.tell("detect", 0, 90.0)
    assert (lags.most("join"), lags.of("join", 1)) == (7.0, 2.0)
    lags.forget("join", 0)
    assert lags.most("join") == 2.0
