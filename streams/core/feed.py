"""Rows on their way into detectors: in the one order in which these read them, whatever order they came in.

Several blocks are put together, cut by version, and of each version a detector reads some columns: each column is made when
somebody asks for it, and copied once into its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.blocks import DTYPES, TIME_OF, Kind, ObservationBlock, taken
from schemas.compiled import compiled
from schemas.contracts import DetectorConfig
from streams.core.ordering import cut_by, renumbered, versions_of, wanted_rows

#: So many rows of one time are put in order one by one.
_FEW_TIES = 32


class Columns:
    """``n`` rows with the columns of an ``ObservationBlock``, of which each is made by ``make(name)`` when it is first read."""

    def __init__(
        self, kind: Kind, versions: tuple[str, ...], rows: int, make: Callable[[str], NDArray[Any]]
    ) -> None:
        self.kind = kind
        self.versions = versions
        self._rows = rows
        self._make = make

    def __len__(self) -> int:
        return self._rows

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name not in DTYPES:
            raise AttributeError(name)
        made = self._make(name)
        setattr(self, name, made)
        return made

    @property
    def order_ms(self) -> NDArray[np.int64]:
        """The time by which rows of this kind are ordered."""
        times: NDArray[np.int64] = getattr(self, TIME_OF[self.kind])
        return times

    def take(self, places: NDArray[np.int64]) -> Columns:
        """The rows at these places."""

        def make(name: str) -> NDArray[Any]:
            column = getattr(self, name)
            return taken(column, places) if len(column) else column

        return Columns(self.kind, self.versions, len(places), make)


class InOrder:
    """Rows of one model and kind, from ``blocks`` as they came, by (time, identity, version, role, sign): the same order in
    every run."""

    def __init__(self, blocks: Sequence[ObservationBlock]) -> None:
        self.versions = versions_of(blocks)
        # No method of this: what holds itself is let go of late, and the next rows would lie in new memory.
        make = partial(_together, blocks, self.versions)
        self.rows = Columns(blocks[0].kind, self.versions, sum(map(len, blocks)), make)
        self._order, times = _ordered(self.rows)
        self._whole = self.rows.take(self._order)
        setattr(self._whole, TIME_OF[self.rows.kind], times)
        self._cuts: dict[tuple[Any, ...], list[tuple[str, Columns]]] = {}

    def whole(self) -> Columns:
        """All of them, in order."""
        return self._whole

    def by_version(self, config: DetectorConfig) -> list[tuple[str, Columns]]:
        """Each version's rows, in order, in the roles and of the sample that a configuration asks for."""
        key = cut_by(config)
        if key not in self._cuts:
            self._cuts[key] = list(self._cut(wanted_rows(config, self.rows, config.roles)))
        return self._cuts[key]

    def _cut(self, wanted: NDArray[np.bool_]) -> list[tuple[str, Columns]]:
        every = bool(wanted.all())
        if len(self.versions) == 1:
            own = self._whole if every else self.rows.take(self._order[wanted[self._order]])
            return [(self.versions[0], own)] if len(own) else []
        # Those that are not wanted are of a version behind the last one.
        code = self.rows.version if every else np.where(wanted, self.rows.version, len(self.versions))
        code = code[self._order]
        shown = np.flatnonzero(np.bincount(code, minlength=len(self.versions))[: len(self.versions)])
        return [(self.versions[at], self.rows.take(self._order[code == at])) for at in shown.tolist()]


def _together(blocks: Sequence[ObservationBlock], versions: tuple[str, ...], name: str) -> NDArray[Any]:
    """A column of all blocks, as they came; a copy that may be written to, for what is compiled is compiled anew for others."""
    columns = [renumbered(of, versions) if name == "version" else getattr(of, name) for of in blocks]
    if name == "features" and not any(column.flags.c_contiguous for column in columns):
        turned: NDArray[Any] = np.concatenate([column.T for column in columns], axis=1)
        return turned.T
    found: NDArray[Any] = np.concatenate(columns)
    return found


def _ordered(rows: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the rows, in order, and their times."""
    # They come nearly in order.
    order = np.argsort(rows.order_ms, kind="stable")
    times = rows.order_ms[order]
    sign = rows.sign if len(rows.sign) else np.zeros(len(rows), np.int8)
    keys = rows.identity, rows.version, rows.role, sign
    crowded = np.zeros(len(rows), np.bool_)
    if _order_ties(order, times, *keys, crowded):
        at = order[crowded]
        order[crowded] = at[np.lexsort((*(key[at] for key in reversed(keys)), times[crowded]))]
    return order, times


@compiled
def _order_ties(
    order: NDArray[np.int64], times: NDArray[np.int64], identity: NDArray[np.uint64], version: NDArray[np.int32],
    role: NDArray[np.int8], sign: NDArray[np.int8], crowded: NDArray[np.bool_],
) -> bool:  # fmt: skip
    """Put the few rows of each time, which stand side by side in ``order`` as in ``times``, in their order; true: there are times
    with many, whose places ``crowded`` shows."""
    start, some = 0, False
    while start < len(order):
        end = start + 1
        while end < len(order) and times[end] == times[start]:
            end += 1
        if end - start > _FEW_TIES:
            crowded[start:end] = True
            some = True
        else:
            for i in range(start + 1, end):
                row, at = order[i], i
                while at > start and _before(row, order[at - 1], identity, version, role, sign):
                    order[at] = order[at - 1]
                    at -= 1
                order[at] = row
        start = end
    return some


@compiled
def _before(
    a: int, b: int, identity: NDArray[np.uint64], version: NDArray[np.int32], role: NDArray[np.int8],
    sign: NDArray[np.int8],
) -> bool:  # fmt: skip
    if identity[a] != identity[b]:
        return bool(identity[a] < identity[b])
    if version[a] != version[b]:
        return bool(version[a] < version[b])
    if role[a] != role[b]:
        return bool(role[a] < role[b])
    return bool(sign[a] < sign[b])
