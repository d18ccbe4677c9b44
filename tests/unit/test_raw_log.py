"""Whatever is let go, refused or read twice: the raw log is handed every record of its partitions, in order, without a gap."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.row_binary import RowBlock
from schemas.spans import Spans
from streams.core.raw_log import RawLogQueue, Stretch
from streams.core.records import RecordBatch
from tests.support_examples import examples

TP = ("predictions", 0)
#: Offsets of the records there are: transaction markers leave holes.
LOG = [offset for offset in range(60) if offset % 7 != 3]


def _records(start: int, count: int) -> RecordBatch | None:
    """Up to ``count`` records from offset ``start`` on."""
    offsets = [offset for offset in LOG if offset >= start][:count]
    if not offsets:
        return None
    nothing = Spans.of([b"xx"] * len(offsets))
    at = np.array(offsets, np.int64)
    return RecordBatch(*TP, at, nothing, nothing, {}, at)


def _stretch(records: RecordBatch, as_rows: bool = False) -> Stretch:
    """Records, or rows that say which ones they were made of."""
    if not as_rows:
        return Stretch.of(records)
    rows = RowBlock(len(records), (memoryview(records.offsets.tobytes()),))
    return Stretch(*TP, int(records.offsets[-1]) + 1, (), (rows,))


def _offsets(held: Stretch) -> list[int]:
    """Of what it holds."""
    of_rows = [np.frombuffer(block.whole(), np.int64) for block in held.rows]
    return np.concatenate([*of_rows, *(batch.offsets for batch in held.records)]).tolist()


class World:
    """A worker that reads the log, the warehouse, and what it was handed by this worker or one before."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.written: list[int] = []
        self.reached = 0
        self.live = 0
        self.start(0)

    def start(self, live: int) -> None:
        """A worker comes up; it reads on from where its manifest says."""
        self.queue = RawLogQueue(self.bytes_max)
        self.again: int | None = None
        self.seek(live)

    def seek(self, live: int) -> None:
        self.live = live
        self.queue.follow({TP: live})

    def read(self, count: int, as_rows: bool = False) -> None:
        records = _records(self.live, count)
        if records is not None:
            self.live = int(records.offsets[-1]) + 1
            self.queue.offer(_stretch(records, as_rows))

    def answer(self) -> None:
        self.queue.go_on(dict.fromkeys(self.queue.unknown(), self.reached))

    def write(self, count: int, dies: bool = False) -> None:
        for held in self.queue.take(count):
            self.written += _offsets(held)
            if not dies:
                self.reached = held.end

    def read_again(self, count: int) -> None:
        behind = self.queue.behind()
        if self.again is None:
            self.again = behind.get(TP)
        if self.again is not None and not self.queue.full:
            records = _records(self.again, count)
            if records is not None and self.queue.read_again(self.again, _stretch(records)):
                self.again = int(records.offsets[-1]) + 1
            elif records is not None:
                self.again = None

    def drained(self) -> None:
        for _ in range(200):
            self.read(5)
            self.answer()
            self.write(100)
            self.read_again(5)


steps = st.one_of(
    st.tuples(st.just("read"), st.integers(1, 9)),
    st.tuples(st.just("made"), st.integers(1, 9)),
    st.tuples(st.just("write"), st.integers(1, 20)),
    st.tuples(st.just("answer"), st.just(0)),
    st.tuples(st.just("again"), st.integers(1, 9)),
    st.tuples(st.just("seek"), st.integers(0, 20)),
    st.tuples(st.just("lost"), st.integers(0, 60)),
    st.tuples(st.just("killed"), st.integers(0, 60)),
)


@examples(100)
@given(st.integers(0, 40), st.lists(steps, max_size=40))
def test_every_record_is_handed_over_once_a_worker_and_in_order(
    bytes_max: int, schedule: list[tuple[str, int]]
) -> None:
    """Kills, seeks back, partitions that go and come, no room: in the end everything there is was written."""
    world = World(bytes_max)
    for step, number in schedule:
        before = len(world.written)
        match step:
            case "read":
                world.read(number)
            case "made":
                world.read(number, as_rows=True)
            case "write":
                world.write(number)
            case "answer":
                world.answer()
            case "again":
                world.read_again(number)
            case "seek":
                world.seek(max(0, world.live - number))
            case "lost":
                world.queue.leave([TP])
                world.again = None
                world.seek(min(number, world.live))
            case _:
                world.write(10, dies=True)
                world.start(min(number, world.live))
        fresh = world.written[before:]
        assert fresh == sorted(set(fresh))
        # Whatever the warehouse says it has, it has.
        assert set(world.written) >= {offset for offset in LOG if offset < world.reached}
    if bytes_max:
        world.drained()
        assert set(world.written) == set(LOG)
        assert world.reached == LOG[-1] + 1
        assert world.queue.bytes == world.queue.records == 0


def test_what_was_read_before_the_warehouse_said_how_far_it_is_waits_for_its_answer() -> None:
    """Nothing of it is read again, and nothing that is in already is written twice."""
    world = World(1_000)
    world.reached = 4
    world.read(10)
    world.write(100)
    assert world.written == []
    world.answer()
    world.write(100)
    assert world.written == [4, 5, 6, 7, 8, 9, 11]
    assert world.queue.behind() == {}


def test_a_worker_that_reads_on_behind_what_is_written_reads_the_gap_though_nothing_new_comes() -> None:
    """Its manifest is ahead of the raw log: the records between are in no chunk."""
    world = World(1_000)
    world.start(20)
    world.reached = 8
    world.answer()
    assert world.queue.behind() == {TP: 8}
    world.read_again(100)
    world.write(100)
    assert world.written == [offset for offset in LOG if offset >= 8]


def test_no_more_than_the_bound_waits_and_one_gap_is_closed_by_one_reading() -> None:
    """While there is a gap nothing else of that partition takes up room."""
    world = World(9)
    for _ in range(8):
        world.read(3)
    assert world.queue.records == 6
    world.answer()
    world.write(100)
    assert world.queue.behind() == {TP: 7}
