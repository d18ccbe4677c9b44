"""aiokafka's consumers hand out what a fetch brought as columns: an object a record is most of what they cost. And they read
responses to where these stay: a stream in between copies each byte three times, which is most of the rest. And they ask when
there is something to be had: a consumer with nothing to read costs the broker and itself next to nothing."""

from __future__ import annotations

import asyncio
import socket
import time
import weakref
from asyncio import Task
from collections.abc import Iterator
from typing import Any

import numpy as np
from aiokafka import conn
from aiokafka.consumer import consumer, fetcher
from aiokafka.protocol.fetch import FetchRequest

from streams.core.records import RecordBatch
from streams.fetch_wire import LARGE_BYTES, Fetch, Frame
from streams.record_batches import read, whole_batches

#: Answers up to this size, most but those of fetches, are received together.
_SMALL_BYTES = LARGE_BYTES
_SIZE_BYTES = 4
#: Of a large answer so much is waited for at once: every time that some of it is received this thread takes turns with those
#: that work.
_AT_ONCE_BYTES = 1_048_576
#: How long the broker may hold a fetch of all partitions that a consumer has: it answers as soon as one has something.
IDLE_WAIT_MS = 100
#: Of a consumer, fetches are at least this far apart: what comes record by record is taken some at a time.
FETCH_PAUSE_S = 0.02


class _Response:
    """The records of one partition in a fetch response, unread: what aiokafka's fetcher asks of ``MemoryRecords``."""

    def __init__(self, raw: bytes | memoryview) -> None:
        self.raw = raw

    def has_next(self) -> bool:
        return whole_batches(self.raw)

    def size_in_bytes(self) -> int:
        return len(self.raw)


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Hands out all records of a response at once."""

    def _unpack_records(self) -> Iterator[RecordBatch]:
        tp = self._tp
        batch, end = read(
            tp.topic, tp.partition, self._records.raw, self._aborted_transactions, self.next_fetch_offset
        )
        self.next_fetch_offset: int = end
        if len(batch):
            yield batch


class _Fetcher(fetcher.Fetcher):  # type: ignore[misc]
    """Has one fetch a broker under way, which may wait as long as nothing else is to be asked for meanwhile."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # Before: the routine that fetches is started by it.
        self._next_s = 0.0
        self._partly_wait_ms: int = options["fetch_max_wait_ms"]
        super().__init__(*arguments, **options)

    def _get_actions_per_node(self, assignment: Any) -> tuple[Any, ...]:
        # A partition of which something waits to be taken is left out of a fetch, and must not wait for its end.
        self._fetch_max_wait_ms = self._partly_wait_ms if self._records else IDLE_WAIT_MS
        requests, resets, timeout_s, *others = super()._get_actions_per_node(assignment)
        now_s = time.monotonic()
        if requests and now_s < self._next_s:
            requests, timeout_s = [], min(timeout_s, self._next_s - now_s)
        elif requests:
            self._next_s = now_s + FETCH_PAUSE_S
        return requests, resets, timeout_s, *others


class _Protocol(conn.AIOKafkaProtocol, asyncio.BufferedProtocol):  # type: ignore[misc]
    """Receives answers, each a size and so many bytes: small ones into one buffer, a large one into its own."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self.connection: weakref.ref[_Connection] | None = None
        self._small = memoryview(bytearray(_SMALL_BYTES))
        self._into = self._small
        self._filled = 0
        self._socket: socket.socket | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Its socket, unless TLS is in between, which takes bytes as it needs them."""
        super().connection_made(transport)
        if transport.get_extra_info("ssl_object") is None:
            self._socket = transport.get_extra_info("socket")

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._into[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """So many have come."""
        self._filled += nbytes
        if self._into is not self._small:
            left = len(self._into) - self._filled
            if left < _AT_ONCE_BYTES:
                self._wait_for(max(left, 1))
            if left == 0:
                frame, self._into, self._filled = self._into, self._small, 0
                self._answered(frame)
            return
        at = 0
        while self._filled - at >= _SIZE_BYTES:
            begin = at + _SIZE_BYTES
            size = int.from_bytes(self._small[at:begin], "big")
            if size > self._filled - begin:
                if _SIZE_BYTES + size > _SMALL_BYTES:
                    self._grow(begin, size)
                    return
                break
            at = begin + size
            self._answered(memoryview(bytes(self._small[begin:at])))
        rest = bytes(self._small[at : self._filled])
        self._small[: len(rest)] = rest
        self._filled = len(rest)

    def _grow(self, begin: int, size: int) -> None:
        """Go on in a buffer of its own with an answer whose first bytes are here."""
        # Not a bytearray: that would be cleared first.
        into = np.empty(size, np.uint8).data
        here = self._filled - begin
        into[:here] = self._small[begin : self._filled]
        self._into, self._filled = into, here
        self._wait_for(min(size - here, _AT_ONCE_BYTES))

    def _wait_for(self, size: int) -> None:
        """Say nothing of bytes that have come before there are so many, or the connection ends."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _answered(self, frame: memoryview) -> None:
        connection = self.connection and self.connection()
        if connection:
            connection.answered(frame)


class _Connection(conn.AIOKafkaConnection):  # type: ignore[misc]
    """Takes answers from its protocol, instead of reading a stream of them."""

    def _create_reader_task(self) -> Task[None]:
        self._protocol.connection = weakref.ref(self)
        task: Task[None] = asyncio.create_task(_ended(self._reader))
        itself = weakref.ref(self)
        task.add_done_callback(lambda done: self._on_read_task_error(itself, done))
        return task

    def answered(self, frame: memoryview) -> None:
        """What the broker said to the oldest request."""
        if not self._requests:
            return
        number, request, waiting = self._requests[0]
        if getattr(request, "API_KEY", None) == FetchRequest.API_KEY:
            reader = Frame(frame)
            if request.parse_response_header(reader).correlation_id == number:
                if not waiting.done():
                    waiting.set_result(request.RESPONSE_TYPE.decode(reader))
                self._last_action = time.monotonic()
                self._requests.popleft()
                return
        self._handle_frame(bytes(frame))


async def _ended(reader: asyncio.StreamReader) -> None:
    """Until the connection ends, and with what: no bytes come this way."""
    await reader.readexactly(1)


def hand_out_batches() -> None:
    """From now on every consumer made in this process yields a ``RecordBatch`` in the place of records and waits as above, and
    every connection reads without a stream: aiokafka has no other seams, and no process has consumers of both kinds."""
    fetcher.MemoryRecords, fetcher.PartitionRecords = _Response, _PartitionRecords
    fetcher.FetchRequest = Fetch
    consumer.Fetcher = _Fetcher
    conn.AIOKafkaConnection, conn.AIOKafkaProtocol = _Connection, _Protocol
