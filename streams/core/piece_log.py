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
    """``held``: all pieces whose bytes are in it; ``live``: entries that are still needed, of which None says "gone"."""

    size: int
    held: frozenset[str]
    live: dict[str, bytes | None] = field(default_factory=dict)
    live_bytes: int = 0


class PieceLog:
    """The segments under one ``prefix``. It holds the bytes of what is alive, so that whoever wrote them need not."""

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
                for name, data in list(self._segments[number].live.items()):
                    entries[name] = data
                    self._bury(name)
                self._drop(number)
                found[f"{self._prefix}{number}"] = None
            # What was gone for their sake may have been all that others had to say.
            dissolved = {number for number, segment in self._segments.items() if not segment.live}
        entries = {name: data for name, data in entries.items() if data is not None or self._copies[name]}
        if entries:
            number, self._next = self._next, self._next + 1
            self._enter(number, entries)
            found[f"{self._prefix}{number}"] = packed(self._next, entries)
        return found

    def _bury(self, name: str) -> None:
        """The newest entry of a name is needed no more."""
        number = self._where.pop(name, None)
        if number is not None:
            segment = self._segments[number]
            segment.live_bytes -= _bytes(name, segment.live.pop(name))

    def _enter(self, number: int, entries: Mapping[str, bytes | None]) -> None:
        size = sum(_bytes(name, data) for name, data in entries.items())
        held = frozenset(name for name, data in entries.items() if data is not None)
        segment = self._segments[number] = _Segment(size, held)
        for name, data in entries.items():
            self._bury(name)
            self._where[name] = number
            segment.live[name] = data
            segment.live_bytes += _bytes(name, data)
        self._copies.update(held)

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
            self._enter(number, entries)
            for own, data in entries.items():
                found.pop(own, None)
                if data is not None:
                    found[own] = data
        return found


def _bytes(name: str, data: bytes | None) -> int:
    return len(name) + len(data or b"")
