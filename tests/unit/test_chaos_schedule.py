"""The schedule of a chaos run: what the seed decides."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from deploy.chaos.schedule import (
    CLOCK_STEP_MS,
    LEAD_IN_S,
    LEAD_OUT_S,
    SERVICES,
    STOP_S,
    STORES,
    Fault,
    schedule,
)


@pytest.mark.parametrize("minutes", [0.5, 5.0])
def test_the_seed_decides_everything(minutes: float) -> None:
    """The same seed gives the same faults, another one gives others."""
    assert schedule(7, minutes) == schedule(7, minutes)
    assert schedule(7, minutes) != schedule(8, minutes)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    """So a fault found late can be looked for with a shorter run."""
    short = schedule(7, 2.0)
    assert schedule(7, 8.0)[: len(short)] == short


@pytest.mark.parametrize("seed", range(30))
def test_faults_keep_to_their_time_and_size(seed: int) -> None:
    """Within the run, in order, each as long as its kind may be, and the broker left alone while it recovers."""
    faults = schedule(seed, 3.0)
    assert faults[0].at_s == LEAD_IN_S
    assert all(fault.at_s + fault.seconds <= 180 - LEAD_OUT_S for fault in faults)
    for before, after in pairwise(faults):
        assert after.at_s > before.at_s + (11.9 if before.target == "kafka" else 1.9)
    for fault in faults:
        assert (fault.kind == "kill") == (fault.seconds == 0)
        assert fault.kind != "stop" or STOP_S[0] <= fault.seconds <= STOP_S[1]
        assert (fault.kind == "clock") == (fault.step_ms != 0)
        assert abs(fault.step_ms) <= CLOCK_STEP_MS


def test_a_long_run_breaks_everything_it_can() -> None:
    """Every service and store is killed, both stores are stopped, the broker's quota fills, the clock steps both ways."""
    found = schedule(3, 30.0)
    broken = Counter((fault.kind, fault.target) for fault in found)
    assert {target for kind, target in broken if kind == "kill"} == {*SERVICES, *STORES}
    assert {target for kind, target in broken if kind == "stop"} >= {"monitor", "archive", "scorer", *STORES}
    assert {target for kind, target in broken if kind == "quota"} == {"kafka"}
    assert {fault.step_ms > 0 for fault in found if fault.kind == "clock"} == {True, False}
    assert broken["kill", "monitor"] > broken["kill", "notifier"]


def test_each_of_several_workers_is_broken() -> None:
    """And everything else as it would be with one, at the same time."""
    one, two = schedule(3, 10.0), schedule(3, 10.0, workers=2)
    killed = Counter(fault.target for fault in two if fault.kind == "kill")
    assert killed["monitor"] > 2 and killed["monitor-1"] > 2
    assert [fault.at_s for fault in one] == [fault.at_s for fault in two]
    assert [f.target for f in one] == [f.target.replace("monitor-1", "monitor") for f in two]


def test_a_fault_reads_as_one_line() -> None:
    """As it is printed before the run."""
    assert str(Fault(12.5, "kill", "monitor")) == "  12.5 s  kill monitor"
    assert str(Fault(1.0, "clock", "all", 2.0, -1_500)) == "   1.0 s  clock all by -1.5 s for 2.0 s"
