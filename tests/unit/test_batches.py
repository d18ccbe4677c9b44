"""Record batches and the sharing out of tasks, without a broker."""

from __future__ import annotations

from types import SimpleNamespace

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.batches import _BareRecords, chunk_scheduler, share_out
from streams.core.records import Record


def _fetched(offset: int) -> SimpleNamespace:
    headers = (("h", b"v"),) if offset % 2 else ()
    return SimpleNamespace(offset=offset, key=b"k", value=b"v", headers=headers, timestamp=5)


def test_one_fetch_becomes_chunks_that_hold_every_record_in_order_with_headers() -> None:
    """Nothing is lost at the cuts, and partitions take turns."""
    first, second = TP("a", 0), TP("a", 1)
    fetched = {first: [_fetched(i) for i in range(5)], second: [_fetched(i) for i in range(10, 12)]}
    chunks = list(chunk_scheduler(2)().iterate(fetched))
    assert [(tp.partition, chunk.end_offset) for tp, chunk in chunks] == [(0, 2), (1, 12), (0, 4), (0, 5)]
    records = [r for tp, chunk in chunks if tp == first for r in chunk.to_batch("logical")]
    assert [r.offset for r in records] == [0, 1, 2, 3, 4]
    assert records[1] == Record("logical", 0, 1, b"k", b"v", {"h": b"v"}, 5)
    assert records[0].headers == {}


def test_records_are_handed_out_as_the_parser_made_them() -> None:
    """aiokafka still makes records through the one method that is replaced, and they have what a chunk reads."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    builder.append(0, 7, b"k", b"v", [("h", b"w")])
    builder.append(1, 8, None, None, [])
    parsed = _BareRecords(TP("a", 0), MemoryRecords(bytes(builder.build())), [], 0, None, None, True, 1)
    ((_, chunk),) = chunk_scheduler(9)().iterate({TP("a", 0): list(parsed)})
    assert list(chunk.to_batch("logical")) == [
        Record("logical", 0, 0, b"k", b"v", {"h": b"w"}, 7),
        Record("logical", 0, 1, None, None, {}, 8),
    ]
    assert fetcher.PartitionRecords._consumer_record is not _BareRecords._consumer_record


tasks = st.integers(1, 12).map(lambda n: [(stage, p) for p in range(n) for stage in ("join", "detect")])


@given(tasks, st.data())
def test_tasks_are_shared_out_evenly_once_each_and_mostly_stay(
    wanted: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Every task has one member, shares differ by one at most, and nobody loses a task within its share."""
    members = data.draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True))
    claims = {task: data.draw(st.sampled_from(members)) for task in wanted}
    owned = {member: [task for task in wanted if claims[task] == member] for member in members}
    shares = share_out(wanted, owned)
    assert sorted(task for share in shares.values() for task in share) == sorted(wanted)
    sizes = [len(share) for share in shares.values()]
    assert max(sizes) - min(sizes) <= 1
    for member, share in shares.items():
        kept = set(share) & set(owned[member])
        assert len(kept) == min(len(share), len(owned[member]))


def test_two_members_that_claim_the_same_task_do_not_both_get_it() -> None:
    """A claim can be out of date."""
    shares = share_out([("join", 0), ("join", 1)], {"a": [("join", 0)], "b": [("join", 0)]})
    assert sorted(task for share in shares.values() for task in share) == [("join", 0), ("join", 1)]
