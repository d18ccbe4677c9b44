"""Many pieces that look alike as few bytes: those of one length stand below each other, and each column is compressed by itself.

What ten thousand windows have in common is where it is, not how often it comes: the upper bytes of a number are nearly always
the same, its lower ones never. One behind the other they hide each other from a compressor; as columns the former take next to
nothing and the latter what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import zstandard

from schemas.errors import StateCorrupt

#: So many of one length, name and piece, are written as columns: of fewer, columns would not be worth their own heads.
ALIKE_MIN = 192
#: Higher ones save little, and cost a multiple.
_LEVEL = 1
#: The first bytes of each form; the oldest had none, and were a msgpack array.
_COLUMNS, _WHOLE = b"\xc1\x01", zstandard.FRAME_HEADER
#: What may be said to be in there: a segment is not larger than twice what a task has, which is bounded in memory.
_BYTES_MAX = 2**31

Entries = Mapping[str, bytes | None]


class _Body(msgspec.Struct, array_like=True):
    """``groups``: how many, the length of each one's name, and the columns of names and pieces, of those that are as one before
    which that is; ``rest``: the others, compressed."""

    number: int
    groups: list[tuple[int, int, list[bytes | int]]]
    rest: bytes


def packed(number: int, entries: Entries) -> bytes:
    """Pieces by name, None for what is gone, and a number."""
    alike: dict[tuple[int, int], list[bytes]] = {}
    rest: dict[str, bytes | None] = {}
    for name, data in entries.items():
        if data is None or not name.isascii():
            rest[name] = data
        else:
            alike.setdefault((len(name), len(data)), []).append(name.encode() + data)
    groups = list[tuple[int, int, list[bytes | int]]]()
    for (width, _), rows in alike.items():
        if len(rows) < ALIKE_MIN:
            rest |= {row[:width].decode(): row[width:] for row in rows}
        else:
            table = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
            groups.append((len(rows), width, _columns(np.ascontiguousarray(table.T))))
    squeezed = _compressor().compress(msgspec.msgpack.encode(rest))
    return _COLUMNS + msgspec.msgpack.encode(_Body(number, groups, squeezed))


def _columns(table: Any) -> list[bytes | int]:
    """Each row of ``table (columns, n)``: one byte where all are the same, else compressed where that is shorter."""
    same = (table == table[:, :1]).all(axis=1).tolist()
    found, compress = list[bytes | int](), _compressor().compress
    known: dict[bytes, int] = {}
    for at, (column, one) in enumerate(zip(table, same, strict=True)):
        raw = column[:1].tobytes() if one else column.tobytes()
        before = at if one else known.setdefault(raw, at)
        found.append(before if before < at else raw if one else min(raw, compress(raw), key=len))
    return found


def unpacked(name: str, data: bytes) -> tuple[int, dict[str, bytes | None]]:
    """Inverse of :func:`packed`, also of what was written before there were columns. Raises StateCorrupt."""
    try:
        if not data.startswith(_COLUMNS):
            plain = _expanded(data, _BYTES_MAX) if data.startswith(_WHOLE) else data
            return msgspec.msgpack.decode(plain, type=tuple[int, dict[str, bytes | None]])
        body = msgspec.msgpack.decode(data[len(_COLUMNS) :], type=_Body)
        entries = msgspec.msgpack.decode(_expanded(body.rest, _BYTES_MAX), type=dict[str, bytes | None])
        for count, width, columns in body.groups:
            if count * len(columns) > _BYTES_MAX:
                raise ValueError(f"{count} pieces of {len(columns)} bytes, more than {_BYTES_MAX} bytes")
            found = list[bytes]()
            for column in columns:
                found.append(found[column] if isinstance(column, int) else _column(column, count))
            rows = np.frombuffer(b"".join(found), np.uint8).reshape(len(columns), count).T.tobytes()
            for start in range(0, len(rows), len(columns)):
                cut = start + width
                entries[rows[start:cut].decode("ascii")] = rows[cut : start + len(columns)]
    except (msgspec.DecodeError, zstandard.ZstdError, LookupError, ValueError) as error:
        raise StateCorrupt(f"piece {name} cannot be read: {error}") from error
    return body.number, entries


def _column(column: bytes, count: int) -> bytes:
    if len(column) == 1:
        return column * count
    found = column if len(column) == count else _expanded(column, count)
    if len(found) != count:
        raise ValueError(f"a column of {len(found)} bytes, not {count}")
    return found


def _expanded(data: bytes, most: int) -> bytes:
    size = zstandard.frame_content_size(data)
    if size > most:
        raise zstandard.ZstdError(f"{size} bytes, more than {most}")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=most if size < 0 else 0)


@lru_cache(maxsize=1)
def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_LEVEL)
