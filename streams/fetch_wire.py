"""Fetches of Kafka's protocol, version 11, written and read as a whole: aiokafka goes field by field through a description of
them, which for a worker's partitions takes longer than to read what they brought."""

from __future__ import annotations

import struct
from typing import Any

from aiokafka.protocol import fetch

#: Answers of at least so many bytes are large. A part of one that is smaller than this share of it is copied, so that it does not
#: hold the whole.
LARGE_BYTES = 65_536
_SHARE = 8
#: Of a request: replica, longest wait, bytes at least and at most, isolation, session and its epoch, number of topics.
_ASKED = struct.Struct(">iiiibiii")
#: Of each partition: its number, the leader's epoch, the offset, that of the log's start, bytes at most.
_ASKED_OF = struct.Struct(">iiqqi")
_ANY, _NO_SESSION = -1, (0, -1)
#: Of an answer: throttling in milliseconds, error, session, number of topics.
_ANSWER = struct.Struct(">ihii")
#: Of each partition: its number, error, high watermark, last stable offset, start of the log, number of aborted transactions.
_ANSWER_OF = struct.Struct(">ihqqqi")
_ABORTED = struct.Struct(">qq")
#: The replica to read from, and how many bytes of records follow.
_RECORDS = struct.Struct(">ii")
_INT_16, _INT_32 = struct.Struct(">h"), struct.Struct(">i")


class Frame:
    """An answer as the decoders of aiokafka read it; what is large in it is not copied."""

    def __init__(self, frame: memoryview) -> None:
        self.frame = frame
        self.at = 0

    def read(self, size: int) -> bytes | memoryview:
        """The next bytes, at most so many."""
        found = part(self.frame, self.at, self.at + size)
        self.at += len(found)
        return found


def part(frame: memoryview, start: int, end: int) -> bytes | memoryview:
    """Some bytes of an answer, copied unless they are much of a large one."""
    found = frame[start:end]
    return found if len(found) * _SHARE > len(frame) >= LARGE_BYTES else bytes(found)


class Answer(fetch.FetchResponse_v11):  # type: ignore[misc]
    """What a broker says to a fetch."""

    @classmethod
    def decode(cls, data: Any) -> Any:
        """Of a :class:`Frame`, at once; else as ever. Raises ValueError when it ends too early."""
        if not isinstance(data, Frame):
            return super().decode(data)
        try:
            throttle_ms, error, session, topics = _ANSWER.unpack_from(data.frame, data.at)
            data.at += _ANSWER.size
            return cls(throttle_ms, error, session, [_topic(data) for _ in range(topics)])
        except struct.error as cut_off:
            raise ValueError(f"an answer to a fetch that ends too early: {cut_off}") from cut_off


def _topic(data: Frame) -> tuple[str, list[tuple[Any, ...]]]:
    frame = data.frame
    start = data.at + _INT_16.size
    end = start + _INT_16.unpack_from(frame, data.at)[0]
    data.at = end + _INT_32.size
    count = _INT_32.unpack_from(frame, end)[0]
    return str(frame[start:end], "utf-8"), [_partition(data) for _ in range(count)]


def _partition(data: Frame) -> tuple[Any, ...]:
    frame = data.frame
    *said, aborts = _ANSWER_OF.unpack_from(frame, data.at)
    at = data.at + _ANSWER_OF.size
    aborted = [_ABORTED.unpack_from(frame, at + i * _ABORTED.size) for i in range(aborts)]
    at += len(aborted) * _ABORTED.size
    replica, size = _RECORDS.unpack_from(frame, at)
    at += _RECORDS.size
    data.at = at + max(size, 0)
    if data.at > len(frame):
        raise struct.error(f"{len(frame)} bytes, of which records end at {data.at}")
    return *said, aborted, replica, part(frame, at, data.at)


class _Asked(fetch.FetchRequest_v11):  # type: ignore[misc]
    """A fetch in the version that a broker reads."""

    RESPONSE_TYPE = Answer

    def __init__(self, request: Fetch) -> None:
        self._request = request

    def encode(self) -> bytes:
        """Its bytes, behind the header."""
        of = self._request
        parts = [
            _ASKED.pack(
                _ANY, of._max_wait_ms, of._min_bytes, of._max_bytes, of._isolation_level, *_NO_SESSION, len(of.topics)
            )
        ]  # fmt: skip
        for topic, partitions in of.topics:
            parts += [_text(topic), _INT_32.pack(len(partitions))]
            parts += [_ASKED_OF.pack(number, _ANY, offset, _ANY, most) for number, offset, most in partitions]
        # No topic is forgotten.
        return b"".join([*parts, _INT_32.pack(0), _text(of._rack_id)])

    def __repr__(self) -> str:
        return f"Fetch({self._request.topics})"


class Fetch(fetch.FetchRequest):  # type: ignore[misc]
    """A fetch; older brokers are asked as aiokafka does."""

    def build(self, request_struct_class: Any) -> Any:
        """As the broker reads it."""
        if request_struct_class is fetch.FetchRequest_v11:
            return _Asked(self)
        return super().build(request_struct_class)


def _text(text: str) -> bytes:
    told = text.encode()
    return _INT_16.pack(len(told)) + told
