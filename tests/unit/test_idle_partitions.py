"""A partition to which nobody writes must not hold time back: the ticker's ticks are all it needs."""

from __future__ import annotations

from streams.core.delivery import Out
from streams.core.pipeline import JoinCore
from streams.core.records import Record
from tests import support_detect
from tests.support_join import HOUR, T0, Stream, join_core, prediction, truth
from tests.support_upserts import spread


def to_detect(outs: list[Out], start: int) -> list[Record]:
    """What the join sends to observations partition 0, as the detect stage reads it."""
    mine = [out for out in outs if out.topic == "observations" and out.partition in (None, 0)]
    return [
        Record("observations", 0, start + at, out.key, out.value, out.headers) for at, out in enumerate(mine)
    ]


def closed(core: JoinCore) -> list[bool]:
    """Of each row of ``window_counts`` told now, whether its window is closed."""
    core.committed(1)
    return [bool(upsert.row[-2]) for upsert in spread(core.upserts()) if upsert.table == "window_counts"]


#   partition 0   p p p   tick      its window closes by its own ticks
#   partition 1           tick      no event ever: its ticks alone move the detectors' time
def test_an_idle_partition_moves_time_by_its_ticks_alone() -> None:
    """Windows of the busy one close without the idle one; detectors wait for both, and the idle one's ticks are enough."""
    busy, idle = join_core(0, 2), join_core(1, 2)
    first, second = Stream(0), Stream(1)
    later = T0 + 3 * HOUR
    busy.apply(
        [first.event(prediction()), first.event(truth()), first.tick(later), first.tick(later, "feedback")], 0
    )
    assert closed(busy) == [True, True]
    detect = support_detect.started(partitions=2)
    sent = to_detect(busy.outputs(), 0)
    detect.apply(sent, 0)
    assert detect.watermarks()["predictions"] < T0
    idle.apply([second.tick(later - 1), second.tick(later - 1, "feedback")], 0)
    assert {name: value for name, _, value in idle.measurements()}["driftline_open_windows"] == 0
    detect.apply(to_detect(idle.outputs(), len(sent)), 0)
    assert detect.watermarks() == {"predictions": later - 1, "feedback": later - 1}


def test_a_silent_feedback_holds_no_prediction_window() -> None:
    """Only finality waits for labels' time."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction()), stream.tick(T0 + 3 * HOUR)], 0)
    assert closed(core) == [True, True]
    assert core.watermarks()["feedback"] < T0
