"""Many small pieces of state as few: what one commit changed of them is one segment of a log.

A piece of its own costs a line of every manifest and a record of every transaction that changes it; ten thousand models
would have a hundred thousand. So small pieces that change are written together, the newest of a name counts, and a segment
of which little is still needed is dissolved into the next one: what is stored stays near twice what is alive, in a bounded
number of segments, and no commit writes much more than it had to say.

That a piece is gone has to be known as long as an older segment still holds it: till then it is an entry like others.

A segment is compressed, for its pieces look much alike (``streams.core.alike``). Sizes are those of what it holds, so when it
is dissolved does not depend on how well that went.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from streams.core.alike import packed, unpacked

#: More segments than this of one size, to a factor of eight, are made one, so what is written is written again a few times
#: at most; but none that is large, so no commit has to write much at once.
ALIKE_MAX = 8
LARGE_BYTES = 2_097_152
#: So many bytes that are needed no more are nothing to care about.
DEAD_MIN = 65_536
#: What a commit may write again, beside twice what it writes anyway.
_MOVED_MIN = 65_536


@dataclass(slots=True)
class _Segment:
    """``data``: as it is stored; ``held``: all pieces whose bytes are in it; ``live``: entries that are still needed, with their
    length, of which None says "gone"."""

    name: str
    data: bytes
    size: int
    held: frozenset[str]
    live: dict[str, int | None] = field(default_factory=dict)
    live_bytes: int = 0

    def entries(self) -> dict[str, bytes | None]:
        """Those that are still needed."""
        if not any(self.live.values()):
            return {name: None if length is None else b"" for name, length in self.live.items()}
        _, entries = unpacked(self.name, self.data)
        return {name: entries[name] for name in self.live}


class PieceLog:
    """The segments under one ``prefix``. It holds what is stored of them, so that whoever wrote pieces need not: compressed, for
    what is alive is not asked for before its segment is dissolved."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._segments: dict[int, _Segment] = {}
        #: In which segment the newest entry of a name is.
        self._where: dict[str, int] = {}
        #: In how many segments a name's bytes are.
        self._copies: Counter[str] = Counter()
        self._next = 0

    def changed(self, pieces: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
        """What is to be stored for these changes: a new segment, and None for those that are needed no more."""
        if not pieces:
            return {}
        entries = dict(pieces)
        for name in entries:
            self._bury(name)
        found: dict[str, bytes | None] = {}
        most = 2 * sum(len(data or b"") for data in entries.values()) + _MOVED_MIN
        dissolved = {*self._alike(), *self._worn(most)}
        while dissolved:
            for number in dissolved:
                for name, data in self._segments[number].entries().items():
                    entries[name] = data
                    self._bury(name)
                self._drop(number)
                found[f"{self._prefix}{number}"] = None
            # What was gone for their sake may have been all that others had to say.
            dissolved = {number for number, segment in self._segments.items() if not segment.live}
        entries = {name: data for name, data in entries.items() if data is not None or self._copies[name]}
        if entries:
            number, self._next = self._next, self._next + 1
            name = f"{self._prefix}{number}"
            found[name] = data = packed(self._next, entries)
            self._enter(number, _Segment(name, data, *_held(entries)), entries)
        return found

    def _bury(self, name: str) -> None:
        """The newest entry of a name is needed no more."""
        number = self._where.pop(name, None)
        if number is not None:
            segment = self._segments[number]
            segment.live_bytes -= len(name) + (segment.live.pop(name) or 0)

    def _enter(self, number: int, segment: _Segment, entries: Mapping[str, bytes | None]) -> None:
        self._segments[number] = segment
        for name, data in entries.items():
            self._bury(name)
            self._where[name] = number
            segment.live[name] = None if data is None else len(data)
        segment.live_bytes = segment.size
        self._copies.update(segment.held)

    def _drop(self, number: int) -> None:
        """Forget a segment, and what was known to be gone only for its sake."""
        for name in self._segments.pop(number).held:
            self._copies[name] -= 1
            if not self._copies[name]:
                del self._copies[name]
                at = self._where.get(name)
                if at is not None and self._segments[at].live[name] is None:
                    self._bury(name)

    def _alike(self) -> list[int]:
        """Segments of one size, where there are too many."""
        sizes: dict[int, list[int]] = {}
        for number, segment in self._segments.items():
            if segment.live_bytes <= LARGE_BYTES:
                sizes.setdefault((segment.live_bytes >> 10).bit_length() // 3, []).append(number)
        return next((alike for alike in sizes.values() if len(alike) >= ALIKE_MAX), [])

    def _worn(self, most: int) -> Iterator[int]:
        """The segments of which the least is needed, as long as too much in them is not; ``most``: bytes to be moved."""
        live = sum(segment.live_bytes for segment in self._segments.values())
        size, moved = sum(segment.size for segment in self._segments.values()), 0
        for number in sorted(self._segments, key=lambda n: (self._segments[n].live_bytes, n)):
            segment = self._segments[number]
            moved += segment.live_bytes
            if segment.live and (size <= 2 * live + DEAD_MIN or moved > most):
                return
            size -= segment.size - segment.live_bytes
            yield number

    def restore(self, pieces: Mapping[str, bytes]) -> dict[str, bytes]:
        """The small pieces that ``pieces`` hold. Raises StateCorrupt."""
        found: dict[str, bytes] = {}
        for number in sorted(int(n.removeprefix(self._prefix)) for n in pieces if n.startswith(self._prefix)):
            name = f"{self._prefix}{number}"
            self._next, entries = unpacked(name, pieces[name])
            self._enter(number, _Segment(name, pieces[name], *_held(entries)), entries)
            for own, data in entries.items():
                found.pop(own, None)
                if data is not None:
                    found[own] = data
        return found


def _held(entries: Mapping[str, bytes | None]) -> tuple[int, frozenset[str]]:
    """Bytes of all entries, and the names of those that are not gone."""
    size = sum(len(name) + len(data or b"") for name, data in entries.items())
    return size, frozenset(name for name, data in entries.items() if data is not None)
