"""Many byte strings as one buffer and two columns: what keys and values of records are, before anybody looks inside.

A list of a million ``bytes`` costs more to make than all that is done with it later.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

#: Length of what is not there.
NULL = -1


def unwritable(buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same bytes, not to be written to."""
    if buffer.flags.writeable:
        buffer = buffer.view()
        buffer.setflags(write=False)
    return buffer


class Spans(Sequence[bytes | None]):
    """``n`` byte strings, or None: ``buffer`` (bytes, uint8), ``start (n,)`` and ``length (n,)``, -1 for None.

    Nobody writes to ``buffer``: of what is compiled there is else one for those that may be written to, too.
    """

    __slots__ = ("buffer", "length", "start")

    def __init__(
        self, buffer: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64]
    ) -> None:
        self.buffer = unwritable(buffer)
        self.start = start
        self.length = length

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> Spans:
        """A copy of what is in a list."""
        if isinstance(values, Spans):
            return values
        length = np.array([NULL if value is None else len(value) for value in values], np.int64)
        end = np.cumsum(np.maximum(length, 0))
        joined = b"".join([value for value in values if value])
        return cls(np.frombuffer(joined, np.uint8), end - np.maximum(length, 0), length)

    @classmethod
    def concat(cls, parts: Sequence[Spans]) -> Spans:
        """One after the other. A buffer that several have is taken once."""
        if len(parts) == 1:
            return parts[0]
        start, length = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("start", "length")
        )
        buffers = {id(part.buffer): part.buffer for part in parts}
        if len(buffers) == 1:
            return cls(parts[0].buffer, start, length)
        ends = itertools.accumulate((len(buffer) for buffer in buffers.values()), initial=0)
        first = dict(zip(buffers, ends, strict=False))
        start += np.repeat([first[id(part.buffer)] for part in parts], [len(part) for part in parts])
        return cls(np.concatenate(list(buffers.values())), start, length)

    def __len__(self) -> int:
        return len(self.start)

    @overload
    def __getitem__(self, at: int) -> bytes | None: ...

    @overload
    def __getitem__(self, at: slice) -> Spans: ...

    def __getitem__(self, at: int | slice) -> bytes | Spans | None:
        if isinstance(at, slice):
            return Spans(self.buffer, self.start[at], self.length[at])
        start, length = int(self.start[at]), int(self.length[at])
        return None if length == NULL else self.buffer[start : start + length].tobytes()

    def __iter__(self) -> Iterator[bytes | None]:
        whole = memoryview(self.buffer.data)
        for start, length in zip(self.start.tolist(), self.length.tolist(), strict=True):
            yield None if length == NULL else bytes(whole[start : start + length])

    def view(self, at: int) -> memoryview | None:
        """The bytes at ``at`` where they lie."""
        start, length = int(self.start[at]), int(self.length[at])
        return None if length == NULL else memoryview(self.buffer.data)[start : start + length]

    def take(self, places: NDArray[np.int64]) -> Spans:
        """Those at ``places``."""
        return Spans(self.buffer, self.start[places], self.length[places])

    def alone(self) -> Spans:
        """A copy that keeps no more of the buffer than is in it."""
        return Spans.of(list(self))

    @property
    def size(self) -> int:
        """How many bytes they are together."""
        return int(np.maximum(self.length, 0).sum())
