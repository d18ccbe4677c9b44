"""Record batches and the sharing out of tasks, without a broker."""

from __future__ import annotations

import random

import lz4.frame
import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streams.batches import chunk_scheduler, share_out
from streams.core.records import Record, RecordBatch
from streams.fetched import _PartitionRecords, _Response
from streams.record_batches import read
from tests.support_examples import examples


def _raw(records: list[Record], kind: int = 0, **header: int) -> bytes:
    """One record batch as a broker sends it; ``kind``: how it is compressed."""
    transactional, producer = header.get("transactional", 0), header.get("producer", -1)
    builder = DefaultRecordBatchBuilder(2, kind, transactional, producer, 0, 0, 1 << 20)
    base = records[0].offset
    for one in records:
        assert builder.append(
            one.offset - base, one.timestamp_ms, one.key, one.value, list(one.headers.items())
        )
    raw = bytearray(builder.build())
    raw[:8] = base.to_bytes(8, "big")
    raw[22] |= header.get("control", 0) << 5
    return bytes(raw)


def _record(offset: int) -> Record:
    headers = {"h": b"v", "": b"", "é" * (offset % 90): b"w" * (9 * offset)} if offset % 2 else {}
    return Record(
        "a", 0, offset, b"k" * offset, None if offset % 5 == 4 else b"v" * offset, headers, 5 + offset
    )


def test_one_fetch_becomes_chunks_that_hold_every_record_in_order_with_headers() -> None:
    """Nothing is lost at the cuts, and partitions take turns."""
    first, second = TP("a", 0), TP("a", 1)
    fetched = {
        first: [RecordBatch.of([_record(i) for i in range(5)])],
        second: [RecordBatch.of([replace(_record(i), partition=1) for i in range(10, 12)])],
    }
    chunks = list(chunk_scheduler(2)().iterate(fetched))
    assert [(tp.partition, chunk.end_offset) for tp, chunk in chunks] == [(0, 2), (1, 12), (0, 4), (0, 5)]
    records = [r for tp, chunk in chunks if tp == first for r in chunk.to_batch("logical")]
    assert records == [replace(_record(i), topic="logical") for i in range(5)]


@pytest.mark.parametrize("kind", range(5))
def test_a_response_is_read_as_aiokafka_reads_it(kind: int) -> None:
    """Whatever its compression; from the middle of a batch on; what is cut off at the end is left for the next fetch."""
    parts = [
        [_record(i) for i in range(3)],
        [_record(i) for i in (3, 5, 9)],
        [_record(i) for i in range(40, 300)],
    ]
    raw = b"".join(_raw(part, kind if at else 0) for at, part in enumerate(parts))
    theirs = MemoryRecords(raw)
    expected = []
    while theirs.has_next():
        expected += [
            Record("a", 0, r.offset, r.key, r.value, dict(r.headers), r.timestamp)
            for r in theirs.next_batch()
        ]
    batch, end = read("a", 0, raw + raw[:-1][: len(_raw(parts[0])) - 1], [], 2)
    assert (list(batch), end) == (expected[2:], 300)
    assert expected == [one for part in parts for one in part]


@pytest.mark.parametrize("block_size", [0, 4, 5, 7])
@pytest.mark.parametrize(
    "options",
    [{}, {"block_linked": False}, {"content_checksum": True, "block_checksum": True}, {"store_size": False}],
)
def test_a_response_all_in_lz4_is_read_whatever_its_frames_look_like(
    block_size: int, options: dict[str, bool]
) -> None:
    """Blocks of any size, that shrink to nothing or not at all, in any number."""
    noise = random.Random(7).randbytes(300_000)
    values = [[b"v"], [b"0" * 600_000, noise], [noise[:70_000], b""]]
    batches = []
    for at, held in enumerate(values):
        raw = _raw([Record("a", 0, 10 * at + i, b"k", value) for i, value in enumerate(held)])
        body = lz4.frame.compress(raw[61:], block_size=block_size, **options)
        batches.append(
            raw[:8]
            + (49 + len(body)).to_bytes(4, "big")
            + raw[12:22]
            + bytes([raw[22] | 3])
            + raw[23:61]
            + body
        )
    batch, end = read("a", 0, b"".join(batches), [], 0)
    assert ([one.value for one in batch], end) == ([value for held in values for value in held], 22)
    with pytest.raises(CorruptRecordException):
        read("a", 0, b"".join([*batches[:2], _shorter(batches[2])]), [], 0)


def _shorter(batch: bytes) -> bytes:
    """A batch whose compressed records lack their last byte."""
    return batch[:8] + (len(batch) - 13).to_bytes(4, "big") + batch[12:-1]


def test_what_an_aborted_transaction_wrote_is_not_handed_out() -> None:
    """Nor are markers; the next fetch begins after them. Two producers, one of which comes back after its abort."""
    abort, commit = b"\0\0\0\0", b"\0\0\0\1"

    def marker(offset: int, key: bytes, producer: int) -> bytes:
        record = Record("a", 0, offset, key, b"")
        return _raw([record], transactional=1, producer=producer, control=1)

    def data(offset: int, producer: int) -> bytes:
        return _raw([_record(offset)], transactional=1, producer=producer)

    raw = b"".join((
        data(0, 7), data(1, 8), marker(2, abort, 7), data(3, 7), marker(4, commit, 8), marker(5, commit, 7), data(6, 7),
        marker(7, abort, 7),
    ))  # fmt: skip
    batch, end = read("a", 0, raw, [(7, 6), (7, 0)], 0)
    assert ([record.offset for record in batch], end) == ([1, 3], 8)


@examples(75)
@given(st.data())
def test_a_broken_response_is_refused_and_never_read_past_its_end(data: st.DataObject) -> None:
    """The bytes may be anything: records or an error."""
    raw = bytearray(_raw([_record(i) for i in range(6)], data.draw(st.sampled_from([0, 0, 3]))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        batch, _ = read("a", 0, bytes(raw), [], 0)
    except CorruptRecordException:
        return
    assert sum(len(record.value or b"") + len(record.key or b"") for record in batch) <= 256 * len(raw)


def test_aiokafka_still_asks_for_what_is_replaced() -> None:
    """Its fetcher has no other seam: the names and signatures are those of the pinned version."""
    records = _PartitionRecords(TP("a", 0), _Response(_raw([_record(3)])), None, 3, None, None, False, 1)
    assert [one.offset for batch in records for one in batch] == [3]
    assert records.next_fetch_offset == 4
    assert {"MemoryRecords", "PartitionRecords"} <= set(vars(fetcher))
    assert _Response(b"").has_next() is False


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
