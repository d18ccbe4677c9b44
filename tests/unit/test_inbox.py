"""What a task takes next: bounded, in the order of each input, labels at the pace of predictions while those are behind."""

from __future__ import annotations

import asyncio

import numpy as np

from schemas.spans import Spans
from streams.batches import Chunk
from streams.core.records import RecordBatch
from streams.inbox import HELD_CHUNKS_MAX, LEAD_IDLE_S, LEAD_NONE_S, Inbox


def chunk(topic: str, times_ms: list[int], first: int = 0, log_end: int | None = None) -> Chunk:
    """Records written at these times; ``log_end`` None: there is nothing behind them."""
    n = len(times_ms)
    nothing = Spans.of([None] * n)
    records = RecordBatch(
        topic, 0, np.arange(first, first + n), nothing, nothing, {}, np.array(times_ms, np.int64)
    )
    return Chunk(records, first + n if log_end is None else log_end)


class Inputs:
    """An inbox of two inputs and the clock it reads."""

    def __init__(self, chunks_max: int = 4, rows_max: int = 100) -> None:
        self.now_s = 0.0
        self.box = Inbox(("predictions", "feedback"), chunks_max, rows_max, lambda: self.now_s)

    async def put(self, *chunks: Chunk) -> None:
        for one in chunks:
            await self.box.put(one.topic, one)

    async def taken(self) -> list[tuple[str, list[int]]]:
        """Topic and offsets of what is there, at once."""
        return [(one.topic, one.records.offsets.tolist()) for one in await self.box.take(0.0)]


async def test_labels_keep_pace_with_predictions_that_are_behind() -> None:
    """Never ahead of them, to the record; once predictions are caught up with, nothing is held."""
    inputs = Inputs()
    await inputs.put(chunk("feedback", [0, 9, 10, 9_000, 10]), chunk("predictions", [0, 10], 0, 50))
    assert await inputs.taken() == [("predictions", [0, 1]), ("feedback", [0, 1, 2])]
    assert inputs.box.held == {"feedback"}
    assert await inputs.taken() == []
    await inputs.put(chunk("predictions", [5_000], 2, 50))
    assert await inputs.taken() == [("predictions", [2])]
    await inputs.put(chunk("predictions", [6_000], 3))
    assert await inputs.taken() == [("predictions", [3]), ("feedback", [3, 4])]
    assert inputs.box.held == frozenset()
    await inputs.put(chunk("feedback", [10**9], 5))
    assert await inputs.taken() == [("feedback", [5])]


async def test_nobody_waits_for_predictions_that_do_not_come() -> None:
    """Neither at the beginning, nor when they stop half way: seconds, by the clock."""
    inputs = Inputs()
    await inputs.put(chunk("feedback", [5]))
    assert await inputs.taken() == []
    inputs.now_s += LEAD_NONE_S
    assert await inputs.taken() == [("feedback", [0])]
    await inputs.put(chunk("predictions", [0], 0, 50), chunk("feedback", [99_999], 1))
    # That nothing was taken meanwhile is not the leading input's fault.
    inputs.now_s += 10 * LEAD_IDLE_S
    assert await inputs.taken() == [("predictions", [0])]
    inputs.now_s += LEAD_IDLE_S
    assert await inputs.taken() == [("feedback", [1])]


async def test_a_take_without_a_limit_ends_when_what_is_held_is_released() -> None:
    """By itself, with nothing else happening: real time here."""
    box = Inbox(("predictions", "feedback"), 4, 100, asyncio.get_running_loop().time)
    await box.put("feedback", chunk("feedback", [5]))
    (one,) = await asyncio.wait_for(box.take(None), LEAD_NONE_S + 60)
    assert one.topic == "feedback"


async def test_what_is_held_never_blocks_who_brings_it() -> None:
    """Faust hands over one chunk after the other: beyond a bound the oldest labels go first, and wait for theirs later."""
    inputs = Inputs()
    await inputs.put(chunk("predictions", [0], 0, 99))
    for at in range(HELD_CHUNKS_MAX - 1):
        await inputs.put(chunk("feedback", [10 + at], at))
    assert await inputs.taken() == [("predictions", [0])]
    await inputs.put(chunk("feedback", [99], HELD_CHUNKS_MAX))
    assert await inputs.taken() == [("feedback", [0])]


async def test_a_busy_leader_does_not_starve_the_others() -> None:
    """Each input has a share in every take, however much there is."""
    inputs = Inputs(rows_max=2)
    await inputs.put(
        chunk("predictions", [0, 1], 0, 99), chunk("predictions", [2, 3], 2, 99), chunk("feedback", [0, 1, 2])
    )
    assert await inputs.taken() == [("predictions", [0, 1]), ("feedback", [0, 1])]


async def test_who_brings_too_much_waits_until_something_leaves() -> None:
    """Back-pressure; and at the end nobody is left waiting."""
    inputs = Inputs(chunks_max=1)
    await inputs.put(chunk("predictions", [0]))
    more = asyncio.create_task(inputs.put(chunk("predictions", [1], 1)))
    await asyncio.sleep(0)
    assert not more.done()
    assert await inputs.taken() == [("predictions", [0])]
    await asyncio.wait_for(more, 60)
    last = asyncio.create_task(inputs.put(chunk("predictions", [2], 2)))
    await asyncio.sleep(0)
    inputs.box.close()
    await asyncio.wait_for(last, 60)


async def test_waking_ends_a_take() -> None:
    """Also one that begins later: a wake is not lost."""
    inputs = Inputs()
    inputs.box.wake()
    assert await asyncio.wait_for(inputs.box.take(None), 60) == []
    taking = asyncio.create_task(inputs.box.take(None))
    await asyncio.sleep(0)
    inputs.box.wake()
    assert await asyncio.wait_for(taking, 60) == []


async def test_how_long_what_is_read_has_waited_is_known_until_there_is_no_more() -> None:
    """By the leading input: what waits for it is not late. A clock that was put back does not count."""
    inputs = Inputs()
    assert inputs.box.waited_ms(10_000) == 0
    await inputs.put(chunk("predictions", [0, 4_000], 0, 50), chunk("feedback", [10], 0, 50))
    await inputs.taken()
    assert inputs.box.waited_ms(10_000) == 6_000
    assert inputs.box.waited_ms(1_000) == 0
    await inputs.put(chunk("predictions", [5_000], 2), chunk("predictions", [6_000], 3))
    assert inputs.box.waited_ms(10_000) == 6_000
    await inputs.taken()
    assert inputs.box.waited_ms(10_000) == 0


async def test_parts_of_a_chunk_came_when_it_did() -> None:
    """Nothing has to be asked anew for what waited for the leading input."""
    inputs = Inputs()
    whole = chunk("feedback", [5, 9_000])
    await inputs.put(whole, chunk("predictions", [10], 0, 50), chunk("predictions", [9_500], 1))
    parts = [one for one in await inputs.box.take(0.0) if one.topic == "feedback"]
    assert [one.came_s for one in (*parts, *whole.cut(1))] == [whole.came_s] * (len(parts) + 2)
