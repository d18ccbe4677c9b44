"""What one fetch brought of a partition as columns: Kafka's record batches, read in one pass, no object a record.

The format is that of Kafka's protocol, "Record Batch", magic 2 (all brokers since 0.11 send it). Of what an aborted
transaction wrote nothing is handed out, nor are control records: a reader of these sees what was committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cramjam
import lz4.frame
import numpy as np
from aiokafka import codec
from aiokafka.errors import CorruptRecordException
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.json_text import Bytes, Integers, Whole
from schemas.spans import Spans, unwritable
from streams.core.records import RecordBatch

_HEADER_BYTES = 61
_LENGTH_AT, _LENGTH_END = 8, 12
#: A record takes at least so many bytes.
_RECORD_BYTES_MIN = 7
_COMPRESSION, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_DECODERS: dict[int, Callable[[bytes], bytes]] = {
    1: codec.gzip_decode, 2: codec.snappy_decode, 3: lz4.frame.decompress, 4: codec.zstd_decode,
}  # fmt: skip
_LZ4 = 3
_LZ4_HEADER_BYTES = 7
_LZ4_INDEPENDENT, _LZ4_BLOCK_SUMS, _LZ4_SUM = 0x20, 0x10, 0x04
#: No byte of LZ4 stands for more.
_LZ4_RATIO_MAX = 255
_ABORT = 0
#: Headers that are remembered: so many, each of at most so many bytes.
_HEADERS_MAX, _HEADERS_BYTES = 256, 256
#: Of an LZ4 frame's blocks: start, end, whether it is compressed.
_Blocks = list[tuple[int, int, bool]]


@dataclass(frozen=True, slots=True)
class _Frames:
    """Headers of the whole batches in one response; arrays of shape (n,). ``start`` and ``end``: of the records."""

    start: Integers
    end: Integers
    base_offset: Integers
    attributes: Integers
    last_delta: Integers
    first_ms: Integers
    append_ms: Integers
    producer: Integers
    count: Integers

    def take(self, at: Sequence[int]) -> _Frames:
        """Those at these places."""
        return _Frames(*(getattr(self, name)[list(at)] for name in self.__slots__))


def whole_batches(raw: bytes | memoryview) -> bool:
    """Whether there is at least one; the last one of a response may be cut off."""
    if len(raw) < _HEADER_BYTES:
        return False
    return len(raw) >= _LENGTH_END + int.from_bytes(raw[_LENGTH_AT:_LENGTH_END], "big", signed=True)


def read(
    topic: str, partition: int, raw: bytes | memoryview, aborted: Sequence[tuple[int, int]], from_offset: int
) -> tuple[RecordBatch, int]:
    """Records from ``from_offset`` on, and the offset to fetch next: markers and aborted records leave gaps.

    ``aborted``: (producer, first offset) of the transactions that were, as the broker says. Raises
    CorruptRecordException when the bytes are no record batches of magic 2.
    """
    buffer = unwritable(np.frombuffer(raw, np.uint8))
    table = np.empty((len(raw) // _HEADER_BYTES + 1, len(_Frames.__slots__)), np.int64)
    found = _frames(buffer, table)
    if found < 0:
        raise CorruptRecordException(f"{topic}[{partition}] after {from_offset}: no record batch of magic 2")
    frames = _Frames(*table[:found].T.copy())
    next_offset = from_offset
    if found:
        next_offset = max(from_offset, int(frames.base_offset[-1] + frames.last_delta[-1]) + 1)
    if (frames.attributes & (_TRANSACTIONAL | _CONTROL)).any():
        frames = frames.take(_committed(buffer, frames, aborted))
    if (frames.attributes & _COMPRESSION).any():
        buffer, frames = _unpacked(raw, frames)
    return _records(topic, partition, buffer, frames, from_offset), next_offset


def _committed(buffer: Bytes, frames: _Frames, aborted: Sequence[tuple[int, int]]) -> list[int]:
    """Places of the batches that are no markers and not of aborted transactions."""
    waiting = sorted(aborted, key=lambda one: one[1])
    going: set[int] = set()
    kept = []
    for at, (base, attributes, producer) in enumerate(
        zip(frames.base_offset.tolist(), frames.attributes.tolist(), frames.producer.tolist(), strict=True)
    ):
        while waiting and waiting[0][1] <= base:
            going.add(waiting.pop(0)[0])
        if attributes & _CONTROL:
            marker = _records("", 0, buffer, frames.take([at]), base)
            key = marker.keys[0] if len(marker) else None
            if key is not None and int.from_bytes(key[2:4], "big") == _ABORT:
                going.discard(producer)
        elif not (attributes & _TRANSACTIONAL and producer in going):
            kept.append(at)
    return kept


def _unpacked(raw: bytes | memoryview, frames: _Frames) -> tuple[Bytes, _Frames]:
    """One buffer with all records as they were before compression."""
    if ((frames.attributes & _COMPRESSION) == _LZ4).all():
        return _unpacked_in_place(raw, frames)
    parts = []
    for start, end, attributes in zip(
        frames.start.tolist(), frames.end.tolist(), frames.attributes.tolist(), strict=True
    ):
        kind = attributes & _COMPRESSION
        if not kind:
            parts.append(raw[start:end])
            continue
        if kind not in _DECODERS:
            raise CorruptRecordException(
                f"a record batch is compressed in a way numbered {kind}, which is unknown"
            )
        try:
            parts.append(_DECODERS[kind](bytes(raw[start:end])))
        except Exception as error:  # each codec has exceptions of its own
            raise CorruptRecordException(f"a record batch cannot be decompressed: {error}") from error
    ends = np.cumsum(np.array([len(part) for part in parts], np.int64))
    starts = ends - np.array([len(part) for part in parts], np.int64)
    others = [getattr(frames, name) for name in _Frames.__slots__[2:]]
    return np.frombuffer(b"".join(parts), np.uint8), _Frames(starts, ends, *others)


def _unpacked_in_place(raw: bytes | memoryview, frames: _Frames) -> tuple[Bytes, _Frames]:
    """As :func:`_unpacked`, for LZ4, the usual: straight to where it stays, instead of in parts that are joined."""
    packed = [memoryview(raw)[start:end] for start, end in zip(frames.start, frames.end, strict=True)]
    ends = np.empty(len(packed), np.int64)
    at = 0
    try:
        read = [_lz4_blocks(one) for one in packed]
        buffer = np.empty(sum(_lz4_size_max(*one) for one in read), np.uint8)
        for i, (one, (blocks, most)) in enumerate(zip(packed, read, strict=True)):
            at += _lz4_into(one, blocks, most, buffer.data[at:])
            ends[i] = at
    except Exception as error:  # the codec's own among them
        raise CorruptRecordException(f"a record batch cannot be decompressed: {error}") from error
    return unwritable(buffer)[:at], _Frames(
        np.concatenate(([0], ends[:-1])), ends, *(getattr(frames, name) for name in _Frames.__slots__[2:])
    )


def _lz4_into(frame: memoryview, blocks: _Blocks, most: int, room: memoryview) -> int:
    """Decompress to where it stays; how many bytes. Blocks that are independent and bear no checksum, the usual, one by one:
    the codec's own reading of frames copies each once more."""
    if frame[4] & (_LZ4_INDEPENDENT | _LZ4_BLOCK_SUMS | _LZ4_SUM) != _LZ4_INDEPENDENT:
        return int(cramjam.lz4.decompress_into(frame, room))
    at = 0
    for start, end, packed in blocks:
        if packed:
            size = min(most, len(room) - at)
            at += cramjam.lz4.decompress_block_into(frame[start:end], room[at : at + size], output_len=size)
        else:
            room[at : at + end - start] = frame[start:end]
            at += end - start
    return at


def _lz4_size_max(blocks: _Blocks, most: int) -> int:
    """Bytes that the blocks of an LZ4 frame become at most."""
    return sum(
        min(most, _LZ4_RATIO_MAX * (end - start)) if packed else end - start for start, end, packed in blocks
    )


def _lz4_blocks(frame: memoryview) -> tuple[_Blocks, int]:
    """([(start, end, whether it is compressed)], bytes that one becomes at most). Raises ValueError when they are not all there."""
    if len(frame) < _LZ4_HEADER_BYTES:
        raise ValueError("an LZ4 frame without a header")
    flags = frame[4]
    # Of those that may be in a header: the size, a dictionary's id.
    at = _LZ4_HEADER_BYTES + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    after = 4 if flags & _LZ4_BLOCK_SUMS else 0
    found: _Blocks = []
    while at + 4 <= len(frame):
        word = int.from_bytes(frame[at : at + 4], "little")
        if word == 0:
            return found, 1 << (8 + 2 * (frame[5] >> 4 & 0x07))
        start, end = at + 4, at + 4 + (word & 0x7FFFFFFF)
        found.append((start, end, not word >> 31))
        at = end + after
    raise ValueError("an LZ4 frame without an end")


def _records(topic: str, partition: int, buffer: Bytes, frames: _Frames, from_offset: int) -> RecordBatch:
    most = int(np.minimum(frames.count, (frames.end - frames.start) // _RECORD_BYTES_MIN + 1).sum())
    table = np.empty((8, most), np.int64)
    found = _walk(
        buffer, frames.start, frames.end, frames.base_offset, frames.first_ms, frames.append_ms, frames.count,
        from_offset, table,
    )  # fmt: skip
    if found < 0:
        raise CorruptRecordException(
            f"{topic}[{partition}] after {from_offset}: a record ends outside its batch"
        )
    offsets, times, key_start, key_length, value_start, value_length, headers_at, headers_end = table[
        :, :found
    ]
    told = np.flatnonzero(headers_at >= 0)
    whole = buffer.data
    headers = {
        place: _headers(bytes(whole[at:end]))
        for place, at, end in zip(
            told.tolist(), headers_at[told].tolist(), headers_end[told].tolist(), strict=True
        )
    }
    return RecordBatch(
        topic, partition, offsets, Spans(buffer, key_start, key_length), Spans(buffer, value_start, value_length), headers,
        times,
    )  # fmt: skip


@lru_cache(maxsize=_HEADERS_MAX)
def _alike(told: bytes) -> Mapping[str, bytes]:
    return _read_headers(told)


def _headers(told: bytes) -> Mapping[str, bytes]:
    """Those of a record. Most records of a topic have the same, which nobody changes."""
    return _alike(told) if len(told) <= _HEADERS_BYTES else _read_headers(told)


def _read_headers(told: bytes) -> dict[str, bytes]:
    count, at = _number(told, 0)
    found = {}
    for _ in range(count):
        name, at = _counted(told, at)
        value, at = _counted(told, at)
        found[name.decode("utf-8", "replace")] = value
    return found


def _counted(told: bytes, at: int) -> tuple[bytes, int]:
    """Bytes with their number in front, and the place after them."""
    length, at = _number(told, at)
    end = at + max(length, 0)
    if end > len(told):
        raise CorruptRecordException("a header ends outside its record")
    return told[at:end], end


def _number(told: bytes, at: int) -> tuple[int, int]:
    """As ``_varint``, where a call of what is compiled would take longer than its work."""
    found = 0
    for i, c in enumerate(told[at : at + 10]):
        found |= (c & 127) << 7 * i
        if c < 128:
            return found >> 1 ^ -(found & 1), at + i + 1
    raise CorruptRecordException("a header ends outside its record")


@compiled
def _big(buffer: Bytes, at: int, size: int) -> Whole:
    """A signed number, its highest byte first."""
    found = np.int64(buffer[at])
    if found >= 128:
        found -= 256
    for i in range(1, size):
        found = found * 256 + np.int64(buffer[at + i])
    return found


@compiled
def _frames(buffer: Bytes, table: NDArray[np.int64]) -> int:
    """Fill ``table`` with the headers of the whole batches; how many. -1: what is there is none of magic 2."""
    at, found = 0, 0
    while at + 61 <= len(buffer):
        end = at + 12 + _big(buffer, at + 8, 4)
        if buffer[at + 16] != 2 or end < at + 61:
            return -1
        if end > len(buffer):
            return found
        attributes = _big(buffer, at + 21, 2)
        table[found, 0] = at + 61
        table[found, 1] = end
        table[found, 2] = _big(buffer, at, 8)
        table[found, 3] = attributes
        table[found, 4] = _big(buffer, at + 23, 4)
        table[found, 5] = _big(buffer, at + 27, 8)
        table[found, 6] = _big(buffer, at + 35, 8) if attributes & 8 else -1
        table[found, 7] = _big(buffer, at + 43, 8)
        table[found, 8] = max(0, _big(buffer, at + 57, 4))
        found += 1
        at = end
    return found


@compiled
def _varint(buffer: Bytes, at: int, end: int) -> tuple[Whole, Whole]:
    """(a number of variable length, zigzag, the place after it); the place is beyond ``end`` when it is cut off."""
    found, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < np.uint64(64):
        c = np.uint64(buffer[at])
        at += 1
        found |= (c & np.uint64(127)) << shift
        if c < np.uint64(128):
            return np.int64(found >> np.uint64(1)) ^ -np.int64(found & np.uint64(1)), at
        shift += np.uint64(7)
    return np.int64(0), end + 1


@compiled
def _walk(
    buffer: Bytes, starts: Integers, ends: Integers, base_offset: Integers, first_ms: Integers, append_ms: Integers,
    counts: Integers, from_offset: int, table: NDArray[np.int64],
) -> int:  # fmt: skip
    """Fill ``table`` with (offset, time, key, its length, value, its length, headers or -1, their end) a record; how many.
    -1: they are not what their lengths say."""
    found = 0
    for batch in range(len(starts)):
        at, end = starts[batch], ends[batch]
        for _ in range(counts[batch]):
            length, at = _varint(buffer, at, end)
            if at > end or length < 0 or length > end - at or found >= table.shape[1]:
                return -1
            stop = at + length
            delta_ms, at = _varint(buffer, at + 1, stop)
            delta, at = _varint(buffer, at, stop)
            key_length, at = _varint(buffer, at, stop)
            if at > stop or key_length < -1 or key_length > stop - at:
                return -1
            key, at = at, at + max(key_length, 0)
            value_length, at = _varint(buffer, at, stop)
            if at > stop or value_length < -1 or value_length >= stop - at:
                return -1
            value, at = at, at + max(value_length, 0)
            offset = base_offset[batch] + delta
            if offset >= from_offset:
                table[0, found] = offset
                table[1, found] = append_ms[batch] if append_ms[batch] >= 0 else first_ms[batch] + delta_ms
                table[2, found] = key
                table[3, found] = key_length
                table[4, found] = value
                table[5, found] = value_length
                table[6, found] = at if buffer[at] != 0 else -1
                table[7, found] = stop
                found += 1
            at = stop
    return found
