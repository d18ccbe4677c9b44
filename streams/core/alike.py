"""Many pieces that look alike as few bytes: those of one length stand below each other, and each column is compressed by itself.

What ten thousand windows have in common is where it is, not how often it comes: the upper bytes of a number are nearly always
the same, its lower ones never. One behind the other they hide each other from a compressor; as columns the former take next to
nothing and the latter what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from schemas.errors import StateCorrupt
from streams.core.compression import BYTES_MAX, MARK, CompressionError, compressed, expanded

#: So many of one length, name and piece, are written as columns: of fewer, columns would not be worth their own heads.
ALIKE_MIN = 192
#: The first bytes of each form; the oldest had none, and were a msgpack array.
_COLUMNS, _WHOLE = b"\xc1\x01", MARK

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
    return _COLUMNS + msgspec.msgpack.encode(_Body(number, groups, compressed(msgspec.msgpack.encode(rest))))


def _columns(table: Any) -> list[bytes | int]:
    """Each row of ``table (columns, n)``: one byte where all are the same, else compressed where that is shorter."""
    same = (table == table[:, :1]).all(axis=1).tolist()
    found = list[bytes | int]()
    known: dict[bytes, int] = {}
    for at, (column, one) in enumerate(zip(table, same, strict=True)):
        raw = column[:1].tobytes() if one else column.tobytes()
        before = at if one else known.setdefault(raw, at)
        found.append(before if before < at else raw if one else min(raw, compressed(raw), key=len))
    return found


def unpacked(name: str, data: bytes) -> tuple[int, dict[str, bytes | None]]:
    """Inverse of :func:`packed`, also of what was written before there were columns. Raises StateCorrupt."""
    try:
        if not data.startswith(_COLUMNS):
            plain = expanded(data) if data.startswith(_WHOLE) else data
            return msgspec.msgpack.decode(plain, type=tuple[int, dict[str, bytes | None]])
        body = msgspec.msgpack.decode(data[len(_COLUMNS) :], type=_Body)
        entries = msgspec.msgpack.decode(expanded(body.rest), type=dict[str, bytes | None])
        for count, width, columns in body.groups:
            if count * len(columns) > BYTES_MAX:
                raise ValueError(f"{count} pieces of {len(columns)} bytes, more than {BYTES_MAX} bytes")
            found = list[bytes]()
            for column in columns:
                found.append(found[column] if isinstance(column, int) else _column(column, count))
            rows = np.frombuffer(b"".join(found), np.uint8).reshape(len(columns), count).T.tobytes()
            for start in range(0, len(rows), len(columns)):
                cut = start + width
                entries[rows[start:cut].decode("ascii")] = rows[cut : start + len(columns)]
    except (msgspec.DecodeError, CompressionError, LookupError, ValueError) as error:
        raise StateCorrupt(f"piece {name} cannot be read: {error}") from error
    return body.number, entries


def _column(column: bytes, count: int) -> bytes:
    if len(column) == 1:
        return column * count
    found = column if len(column) == count else expanded(column, count)
    if len(found) != count:
        raise ValueError(f"a column of {len(found)} bytes, not {count}")
    return found
