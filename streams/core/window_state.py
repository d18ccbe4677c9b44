"""A window of one model while it is open, and how that is stored.

Borders of histograms take most of the room, and are the same in all windows of a version: they are pieces of their own,
named by what is in them and kept as long as a stored window needs them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import msgspec
import numpy as np

from schemas.contracts import Monitoring
from schemas.errors import StateCorrupt
from streams.core.aggregates import Cell, Ints, pack, unpack
from streams.core.cell_codec import (
    decode_counts,
    decode_features,
    decode_numbers,
    encode_counts,
    encode_features,
)
from streams.core.join_state import WindowKey
from streams.core.layouts import Layout, Part
from streams.core.tally import FACTS_WIDTH
from streams.core.window_state_4 import cell_of_4

WINDOW_SCHEMA = 6
PREFIX, LAYOUT = "window/", "edges/"
#: Tables of the warehouse that a cell has rows in, as bits.
COUNTS, OUTCOMES, FEATURES = 1, 2, 4
#: Cells that are written in one call; more at once would only take more room for a moment.
_CELLS_AT_ONCE = 4_096

#: Version, role, segment.
CellKey = tuple[str, str, str]


@dataclass(slots=True, eq=False)
class Group:
    """One window of one model. ``dirty``: by cell, the tables in which the warehouse is to be told of it; ``told``: the version
    as of which it was told last.

    ``span_ms``: length of the hopping windows that this one is a step of; its own length when windows do not overlap.
    ``closes_ms``, ``settles_ms``: event times by which rows and labels were to come, as of the contract under which it
    closed.
    """

    key: WindowKey
    cells: dict[CellKey, Cell] = field(default_factory=dict)
    span_ms: int = 0
    closes_ms: int = 0
    settles_ms: int = 0
    closed: bool = False
    final: bool = False
    dirty: dict[CellKey, int] = field(default_factory=dict)
    told: int = -1
    layouts: frozenset[str] = frozenset()

    def cell(self, key: CellKey) -> Cell:
        """The cell, made if need be."""
        found = self.cells.get(key)
        if found is None:
            found = self.cells[key] = Cell()
        return found

    def is_confirmed(self, oldest: int | None) -> bool:
        """Whether the warehouse has all of it. ``oldest``: the first version that it has not confirmed, None when there is none."""
        return not self.dirty and (oldest is None or self.told < oldest)

    def close(self, monitoring: Monitoring) -> None:
        """No more rows are expected."""
        if not self.closed:
            self.closed = True
            self.closes_ms = self.key.end_ms + monitoring.allowed_lateness
            self.settles_ms = self.key.end_ms + max(monitoring.allowed_lateness, monitoring.label_horizon)

    def touch(self, key: CellKey, tables: int) -> None:
        """Note rows that changed."""
        self.dirty[key] = self.dirty.get(key, 0) | tables

    def tell(self, tables: int) -> None:
        """The warehouse is to be told every cell's rows in ``tables``, though no sum has changed."""
        for key in self.cells:
            self.touch(key, tables)

    def tell_all(self) -> None:
        """The warehouse is to be told everything."""
        for key, cell in self.cells.items():
            self.touch(key, COUNTS | OUTCOMES | (FEATURES if cell.layout is not None else 0))


class Layouts:
    """What is stored of features and their borders, by name. Whoever stores a window uses the layouts of its cells."""

    def __init__(self) -> None:
        self._of: dict[str, Layout] = {}
        self._users: Counter[str] = Counter()
        self._stored: set[str] = set()
        self._touched: set[str] = set()

    def __getitem__(self, name: str) -> Layout:
        return self._of[name]

    def use(self, layouts: Iterable[Layout]) -> None:
        """One more window needs these."""
        for layout in layouts:
            self._of.setdefault(layout.name, layout)
            self.use_named([layout.name])

    def use_named(self, names: Iterable[str]) -> None:
        """The same of layouts that are known."""
        self._users.update(names)
        self._touched.update(names)

    def release(self, names: Iterable[str]) -> None:
        """One window needs these no more."""
        self._users.subtract(names)
        self._touched.update(names)

    def changed_pieces(self) -> dict[str, bytes | None]:
        """Layouts that a stored window has come to need, None for those that none needs any more."""
        pieces: dict[str, bytes | None] = {}
        for name in sorted(self._touched):
            if self._users[name] > 0 and name not in self._stored:
                self._stored.add(name)
                pieces[LAYOUT + name] = msgspec.msgpack.encode(self._of[name].parts)
            elif self._users[name] <= 0:
                self._stored.discard(name)
                pieces[LAYOUT + name] = None
                del self._users[name], self._of[name]
        self._touched = set()
        return pieces

    def restore(self, pieces: Mapping[str, bytes]) -> None:
        """Know the layouts that ``pieces`` hold. Raises StateCorrupt."""
        for name in (n for n in pieces if n.startswith(LAYOUT)):
            try:
                parts = msgspec.msgpack.decode(pieces[name], type=tuple[Part, ...])
            except msgspec.DecodeError as error:
                raise StateCorrupt(f"piece {name} cannot be read: {error}") from error
            self._of[name.removeprefix(LAYOUT)] = Layout(parts)
            self._stored.add(name.removeprefix(LAYOUT))


def piece_name(key: WindowKey) -> str:
    """Name of a window group's piece."""
    return f"{PREFIX}{key.model}/{key.start_ms}/{key.window_ms}"


def encode_groups(
    groups: Sequence[Group], layouts: Layouts, oldest: int | None = None
) -> Iterator[tuple[str, bytes]]:
    """Each group's piece; it uses the layouts of its cells from now on. ``oldest``: see ``Group.is_confirmed``."""
    packed = _packed([cell for group in groups for cell in group.cells.values()])
    for group in groups:
        cells, needed, sums = list[tuple[Any, ...]](), dict[str, Layout](), list[bytes]()
        for key, cell in group.cells.items():
            counts, features = next(packed)
            outcomes = None if cell.outcomes is None else pack(cell.outcomes)
            if cell.layout is None:
                cells.append((*key, counts, cell.latencies, outcomes))
            else:
                needed[cell.layout.name] = cell.layout
                sums.append(features)
                if group.closed:
                    cell.hold(features)
                cells.append((*key, counts, cell.latencies, outcomes, cell.layout.name))
        if group.layouts != needed.keys():
            layouts.use(needed[name] for name in needed.keys() - group.layouts)
            layouts.release(group.layouts - needed.keys())
            group.layouts = _one_of_alike(frozenset(needed))
        times = (group.span_ms, group.closes_ms, group.settles_ms)
        told = group.is_confirmed(oldest)
        # What is most, and of one length where few rows came, is first: then it is at the same place in all windows.
        body = (WINDOW_SCHEMA, sums, times, group.closed, group.final, told, cells)
        yield piece_name(group.key), msgspec.msgpack.encode(body)


@lru_cache(maxsize=4_096)
def _one_of_alike(names: frozenset[str]) -> frozenset[str]:
    """All windows of a version have the same."""
    return names


def _packed(cells: Sequence[Cell]) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(cells), _CELLS_AT_ONCE):
        some = cells[start : start + _CELLS_AT_ONCE]
        counts = np.concatenate([cell.counts for cell in some]).reshape(len(some), -1)
        features = iter(_features(some))
        for cell, own in zip(some, encode_counts(counts), strict=True):
            yield own, b"" if cell.layout is None else next(features)


def _features(cells: Sequence[Cell]) -> list[bytes]:
    """Of each that counts features, what is stored of them."""
    held = [cell for cell in cells if cell.layout is not None]
    found = [cell.features for cell in held]
    fresh = [cell for cell, data in zip(held, found, strict=True) if data is None]
    layouts = [cell.layout for cell in fresh if cell.layout is not None]
    sums, rows = [cell.sums for cell in fresh], [int(cell.counts[0]) for cell in fresh]
    written = iter(encode_features(layouts, sums, rows) if fresh else ())
    return [next(written) if data is None else data for data in found]


def put_by(groups: Sequence[Group]) -> None:
    """No more rows of these windows are expected, so what they have counted of features is held as it is stored."""
    cells = [cell for group in groups for cell in group.cells.values() if cell.layout is not None]
    for start in range(0, len(cells), _CELLS_AT_ONCE):
        some = cells[start : start + _CELLS_AT_ONCE]
        for cell, data in zip(some, _features(some), strict=True):
            cell.hold(data)


def decode_group(name: str, data: bytes, layouts: Layouts) -> Group:
    """Inverse of :func:`encode_groups`; where the warehouse was still to be told something, all is. Raises StateCorrupt."""
    try:
        schema, first, times, closed, final, told, cells = msgspec.msgpack.decode(data)
        if schema not in _READABLE:
            raise StateCorrupt(
                f"piece {name}: schema {schema}, this code reads {_READABLE[0]} to {WINDOW_SCHEMA}"
            )
        if schema == WINDOW_SCHEMA:
            model, start_ms, window_ms = name.removeprefix(PREFIX).rsplit("/", 2)
            key, sums = WindowKey(model, int(start_ms), int(window_ms)), iter(first)
            cells = [[*cell, *itertools.islice(sums, len(cell) - 6)] for cell in cells]
        else:
            key = WindowKey(*first)
        span_ms, closes_ms, settles_ms = times
        group = Group(key, {}, span_ms, closes_ms, settles_ms, closed, final)
        for version, role, segment, *cell in cells:
            read = cell_of_4 if schema == 4 else partial(_cell_of, _COUNTS[schema], closed)
            group.cells[version, role, segment] = read(cell, layouts)
        named = (cell[2 if schema == 4 else 3] for _, _, _, *cell in cells if len(cell) > 3)
        group.layouts = _one_of_alike(frozenset(filter(None, named)))
        layouts.use_named(group.layouts)
        if not told:
            group.tell_all()
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise StateCorrupt(f"piece {name} cannot be read: {error}") from error
    return group


_COUNTS = {5: decode_numbers, WINDOW_SCHEMA: decode_counts}
_READABLE = (4, *_COUNTS)


def _cell_of(
    read_counts: Callable[[bytes, Ints], None], closed: bool, stored: list[Any], layouts: Layouts
) -> Cell:
    counts, latencies, outcomes, *features = stored
    cell = Cell()
    cell.counts = np.zeros(FACTS_WIDTH, np.int64)
    read_counts(counts, cell.counts)
    cell.latencies = latencies
    cell.outcomes = None if outcomes is None else unpack(outcomes)
    if features:
        layout, data = features
        cell.layout = layouts[layout]
        cell.sums = decode_features(data, cell.layout, int(cell.counts[0]))
        if closed:
            cell.hold(data)
    return cell
