"""Which segments are watched one by one: the most frequent values of a categorical column; the rest is one segment.

Where the reference has shares of the column, they decide, from the first row on. Where it has none and there are more
values than places, the first rows are only counted, with SpaceSaving (Metwally, Agrawal and El Abbadi 2005): ``m``
counters, a new value takes over the smallest one and its count, so that every value with more than a share ``1/m`` of
the rows is among them. Row by row, so where a stream is cut cannot show.

>>> counter = SpaceSaving(2)
>>> for value in (1, 1, 2, 1, 3, 3, 3):
...     counter.add(value)
>>> counter.most(2)
[3, 1]
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Context
from detectors.transform import column_reference
from schemas.errors import ConfigurationError
from schemas.reference import frequent

#: Rows that are only counted where nobody knows which segments are frequent; counters for each place.
LEARN_ROWS = 1_000
COUNTERS_A_PLACE = 8


class SpaceSaving:
    """Counts of at most ``size`` values; see the module."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.counts: dict[int, int] = {}

    def add(self, value: int) -> None:
        """Count one value."""
        if value in self.counts or len(self.counts) < self.size:
            self.counts[value] = self.counts.get(value, 0) + 1
            return
        # The smallest of equals goes, so that no order of a map can show.
        least = min(self.counts, key=lambda held: (self.counts[held], held))
        self.counts[value] = self.counts.pop(least) + 1

    def most(self, places: int) -> list[int]:
        """The values counted most often, the most frequent first, the smaller first of equals."""
        return sorted(self.counts, key=lambda held: (-self.counts[held], held))[:places]


class WatchedState(msgspec.Struct):
    """``codes``: the watched ones, None while they are learnt; ``counts``: (value, count) so far."""

    codes: list[int] | None = None
    counts: list[tuple[int, int]] = []
    seen: int = 0


class Watched:
    """The segments of one column: ``codes`` of those watched by themselves; place ``len(codes)`` is all others.

    ``others``: whether they are a segment. Where the reference has no such row there is nothing to compare them with; an
    unknown category is the matter of data quality.
    """

    def __init__(self, context: Context, by: str, places: int) -> None:
        self.name, self.column = _column(context, by)
        self._feature = context.features.get(self.name)
        self._known = context.categories[self.column] - 1
        self._places = places
        reference = column_reference(context.reference, self.name)
        self._given: list[int] | None = None
        self.others = True
        if reference is not None and reference.shares:
            self._given = frequent(reference, places)
            rest = 1 - sum(reference.shares[code] for code in self._given)
            self.others = rest * reference.rows >= 0.5 or reference.missing > 0
        elif self._known <= places:
            self._given = list(range(self._known))
        self.reset()

    def reset(self) -> None:
        """As if just built."""
        self._counter = SpaceSaving(COUNTERS_A_PLACE * self._places)
        self._seen = 0
        self._set(self._given)

    def _set(self, codes: Sequence[int] | None) -> None:
        self.codes = None if codes is None else tuple(codes)
        self._place = np.full(self._known + 1, 0 if codes is None else len(codes), np.int64)
        for at, code in enumerate(codes or ()):
            self._place[code] = at

    def learn(self, values: NDArray[np.float64]) -> int:
        """Count rows while nobody knows the segments; how many of ``values (n, k)`` were taken for that."""
        if self.codes is not None:
            return 0
        part = values[: LEARN_ROWS - self._seen, self.column]
        for code in self._codes(part).tolist():
            if code < self._known:
                self._counter.add(code)
        self._seen += len(part)
        if self._seen >= LEARN_ROWS:
            self._set(self._counter.most(self._places))
            self._counter = SpaceSaving(self._counter.size)
        return len(part)

    def _codes(self, column: NDArray[np.float64]) -> NDArray[np.int64]:
        inside = (column >= 0) & (column < self._known)
        return np.where(inside, column, self._known).astype(np.int64)

    def places(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The place of each row's segment, shape ``(n,)``; null, unknown and impossible values are with the others."""
        return self._place[self._codes(values[:, self.column])]

    def label(self, place: int) -> str:
        """``origin=EWR``, or ``origin=(other)``."""
        if self.codes is None or place >= len(self.codes):
            return f"{self.name}=(other)"
        code = self.codes[place]
        names = () if self._feature is None else self._feature.categories
        return f"{self.name}={names[code] if code < len(names) else code}"

    @property
    def state(self) -> WatchedState:
        codes = None if self.codes is None else list(self.codes)
        return WatchedState(codes, sorted(self._counter.counts.items()), self._seen)

    def load(self, state: WatchedState) -> None:
        """Become ``state``."""
        self.reset()
        self._counter.counts = dict(state.counts)
        self._seen = state.seen
        self._set(state.codes)


def _column(context: Context, by: str) -> tuple[str, int]:
    """Name and place of the column that tells segments apart. Raises ConfigurationError."""
    found = [name for name, codes in zip(context.columns, context.categories, strict=False) if codes > 1]
    if not found or (by and by not in found):
        raise ConfigurationError(
            f"no categorical column {by or 'at all'} on stream {context.stream}; there are: {', '.join(found) or 'none'}. "
            "On loss these are the contract's monitoring.segments"
        )
    name = by or found[0]
    return name, context.columns.index(name)
