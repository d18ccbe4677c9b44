"""Answers come whole, however the network cuts them; a connection that ends says so."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from aiokafka import TopicPartition, conn
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v11, FetchResponse_v11
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import fetched


class _Kept:
    """Keeps what a protocol hands out."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def answered(self, frame: memoryview) -> None:
        self.frames.append(bytes(frame))


@settings(deadline=None)
@given(
    sizes=st.lists(st.one_of(st.integers(0, 40), st.integers(65_500, 65_560), st.just(300_000)), max_size=12),
    cuts=st.lists(st.integers(1, 100_000), min_size=1, max_size=20),
)
def test_answers_of_any_size_come_whole_in_pieces_of_any_size(sizes: list[int], cuts: list[int]) -> None:
    """Small and large ones in turn; what is received of the next one with the end of the last is its own."""
    answers = [bytes([at % 251]) * size for at, size in enumerate(sizes)]
    stream = b"".join(struct.pack(">i", len(answer)) + answer for answer in answers)
    kept = _Kept()

    async def receive() -> None:
        loop = asyncio.get_running_loop()
        protocol = fetched._Protocol(loop.create_future(), asyncio.StreamReader(), loop=loop)
        protocol.connection = lambda: kept  # type: ignore[assignment,return-value]
        at = turn = 0
        while at < len(stream):
            room = protocol.get_buffer(-1)
            # At most some thousand pieces, however small they are wished.
            cut = max(cuts[turn % len(cuts)], len(stream) // 3_000)
            size = min(cut, len(room), len(stream) - at)
            room[:size] = stream[at : at + size]
            protocol.buffer_updated(size)
            at, turn = at + size, turn + 1

    asyncio.run(receive())
    assert kept.frames == answers


def _fetch(parts: list[bytes]) -> bytes:
    rows = [(at, 0, 9, 9, 0, [], -1, part) for at, part in enumerate(parts)]
    response = FetchResponse_v11(throttle_time_ms=0, error_code=0, session_id=0, topics=[("t", rows)])
    return struct.pack(">i", 7) + bytes(response.encode())


async def _against(answer: bytes | None) -> Any:
    """What a real connection says to one fetch when the broker answers so; None: it hangs up."""
    fetched.hand_out_batches()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
        if answer is not None:
            writer.write(struct.pack(">i", len(answer)) + answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connection = conn.AIOKafkaConnection("127.0.0.1", port, request_timeout_ms=60_000)
        connection._do_version_lookup = lambda: asyncio.sleep(0)
        await connection.connect()
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        connection._requests.append((7, FetchRequest_v11(-1, 50, 1, 1, 1, 0, 0, [], [], ""), waiting))
        connection._writer.write(struct.pack(">i", 1) + b"?")
        try:
            return await asyncio.wait_for(waiting, 60)
        finally:
            await asyncio.wait_for(connection.close() or asyncio.sleep(0), 60)


@pytest.mark.parametrize("size", [200_000, 3 * fetched._AT_ONCE_BYTES + 1])
async def test_the_records_of_a_fetch_are_what_the_broker_sent(size: int) -> None:
    """Those that are much of it are not copied, the others do not hold it; the last bytes are not waited for, few as they are."""
    parts = [b"a" * size, b"b" * 10, b""]
    response = await _against(_fetch(parts))
    found = [row[-1] for _, rows in response.topics for row in rows]
    assert [bytes(part) for part in found] == parts
    assert [type(part) for part in found] == [memoryview, bytes, bytes]


async def test_a_broker_that_hangs_up_ends_the_wait() -> None:
    """At once, and not by a limit of time."""
    with pytest.raises(conn.Errors.KafkaConnectionError):
        await _against(None)


async def test_an_answer_to_another_request_ends_the_connection() -> None:
    """Nothing after it could be trusted."""
    with pytest.raises(conn.Errors.CorrelationIdError):
        await _against(struct.pack(">i", 8) + _fetch([])[4:])


class _Broker:
    """What a fetcher asks of its client. ``asked``: each fetch with its answer, which the test gives."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._metadata_max_age_ms = 60_000
        self.cluster = self
        self.asked: asyncio.Queue[tuple[FetchRequest, asyncio.Future[Any]]] = asyncio.Queue()
        self.asked_s: list[float] = []

    def leader_for_partition(self, _: TopicPartition) -> int:
        return 1

    async def send(self, _: int, request: FetchRequest) -> Any:
        answer: asyncio.Future[Any] = self._loop.create_future()
        self.asked_s.append(self._loop.time())
        self.asked.put_nowait((request, answer))
        return await answer


def _answer(request: FetchRequest, records: dict[int, int]) -> FetchResponse_v11:
    """So many records of each partition, from where it was asked for."""
    rows = []
    for partition, offset, _ in dict(request.topics)["t"]:
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1_000_000)
        for at in range(records.get(partition, 0)):
            builder.append(at, 0, b"k", b"v", [])
        raw = bytearray(builder.build()) if partition in records else bytearray()
        raw[:8] = struct.pack(">q", offset) if raw else b""
        rows.append((partition, 0, 9, 9, 0, [], -1, bytes(raw)))
    return FetchResponse_v11(throttle_time_ms=0, error_code=0, session_id=0, topics=[("t", rows)])


async def test_a_fetch_waits_long_only_when_it_is_for_every_partition() -> None:
    """What waits to be taken of a partition keeps that out of the fetch, whose end it would have to wait for."""
    fetched.hand_out_batches()
    both = {TopicPartition("t", 0), TopicPartition("t", 1)}
    subscription = SubscriptionState()
    subscription.assign_from_user(both)
    for tp in both:
        subscription.subscription.assignment.state_value(tp).seek(0)
    broker = _Broker()
    fetcher = fetched._Fetcher(
        broker, subscription, fetch_max_wait_ms=7, prefetch_backoff=0.0, isolation_level="read_committed"
    )
    try:
        request, answer = await broker.asked.get()
        assert (request._max_wait_ms, len(dict(request.topics)["t"])) == (fetched.IDLE_WAIT_MS, 2)
        answer.set_result(_answer(request, {0: 3}))
        request, answer = await broker.asked.get()
        assert (request._max_wait_ms, [p for p, *_ in dict(request.topics)["t"]]) == (7, [1])
        found = await fetcher.fetched_records([], 1)
        assert {tp.partition: [len(batch) for batch in batches] for tp, batches in found.items()} == {0: [3]}
        answer.set_result(_answer(request, {}))
        request, _ = await broker.asked.get()
        assert request._max_wait_ms == fetched.IDLE_WAIT_MS
        assert sorted((p, at) for p, at, _ in dict(request.topics)["t"]) == [(0, 3), (1, 0)]
    finally:
        await fetcher.close()
    apart = [later - before for before, later in zip(broker.asked_s, broker.asked_s[1:], strict=False)]
    assert min(apart) >= fetched.FETCH_PAUSE_S - 0.001
