"""A window of one model while it is open, and how that is stored.

Borders of histograms take most of the room, and are the same in all windows of a version: they are pieces of their own,
named by what is in them and kept as long as a stored window needs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from schemas.contracts import Monitoring
from schemas.errors import StateCorrupt
from schemas.ids import content_hash
from streams.core.aggregates import Cell, Counts, FeatureCounts, Outcomes, pack, unpack
from streams.core.join_state import WindowKey

WINDOW_SCHEMA = 4
PREFIX, LAYOUT = "window/", "edges/"

#: Version, role, segment.
CellKey = tuple[str, str, str]
#: Table, cell, feature.
Mark = tuple[str, CellKey, str]


@dataclass(slots=True)
class Group:
    """One window of one model. ``dirty``: (table, cell, feature) the warehouse is to be told; ``sent``: it was told
    and has not confirmed.

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
    changed: bool = True
    dirty: dict[Mark, None] = field(default_factory=dict)
    sent: dict[Mark, None] = field(default_factory=dict)
    layouts: frozenset[str] = frozenset()

    def cell(self, key: CellKey) -> Cell:
        """The cell, made if need be."""
        found = self.cells.get(key)
        if found is None:
            found = self.cells[key] = Cell()
        return found

    def close(self, monitoring: Monitoring) -> None:
        """No more rows are expected."""
        if not self.closed:
            self.closed = True
            self.closes_ms = self.key.end_ms + monitoring.allowed_lateness
            self.settles_ms = self.key.end_ms + max(monitoring.allowed_lateness, monitoring.label_horizon)

    def touch(self, table: str, key: CellKey, feature: str = "") -> None:
        """Note a row that changed."""
        self.dirty[table, key, feature] = None
        self.changed = True

    def tell(self, *tables: str) -> None:
        """The warehouse is to be told every cell's row in each of ``tables``, though no sum has changed."""
        self.dirty |= {(table, key, ""): None for table in tables for key in self.cells}

    def tell_all(self) -> None:
        """The warehouse is to be told everything."""
        self.tell("window_counts", "window_outcomes")
        for key, cell in self.cells.items():
            self.dirty |= {("window_features", key, feature): None for feature in cell.features}


#: Features of a cell and their borders, in order.
Layout = tuple[tuple[str, tuple[float, ...]], ...]


class Layouts:
    """What is stored of features and their borders, by name. Whoever stores a window uses the layouts of its cells."""

    def __init__(self) -> None:
        #: By the identities of what they are made of, which they keep alive.
        self._found: dict[tuple[Any, ...], tuple[str, Layout]] = {}
        self._of: dict[str, Layout] = {}
        self._users: Counter[str] = Counter()
        self._stored: set[str] = set()
        self._touched: set[str] = set()

    def __getitem__(self, name: str) -> Layout:
        return self._of[name]

    def of(self, features: Mapping[str, FeatureCounts]) -> str:
        """The name of a cell's layout; empty where it has no features."""
        if not features:
            return ""
        key = (*features, *(id(one.edges) for one in features.values()))
        found = self._found.get(key)
        if found is None:
            layout = tuple((name, one.edges) for name, one in features.items())
            name = content_hash(msgspec.msgpack.encode(layout))[:16]
            found = self._found[key] = (name, layout)
            self._of.setdefault(name, layout)
        return found[0]

    def use(self, names: Iterable[str]) -> None:
        """One more window needs these."""
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
                pieces[LAYOUT + name] = msgspec.msgpack.encode(self._of[name])
            elif self._users[name] <= 0:
                self._stored.discard(name)
                pieces[LAYOUT + name] = None
                del self._users[name], self._of[name]
                self._found = {key: found for key, found in self._found.items() if found[0] != name}
        self._touched = set()
        return pieces

    def restore(self, pieces: Mapping[str, bytes]) -> None:
        """Know the layouts that ``pieces`` hold. Raises StateCorrupt."""
        for name in (n for n in pieces if n.startswith(LAYOUT)):
            try:
                self._of[name.removeprefix(LAYOUT)] = msgspec.msgpack.decode(pieces[name], type=Layout)
            except msgspec.DecodeError as error:
                raise StateCorrupt(f"piece {name} cannot be read: {error}") from error
            self._stored.add(name.removeprefix(LAYOUT))


def piece_name(key: WindowKey) -> str:
    """Name of a window group's piece."""
    return f"{PREFIX}{key.model}/{key.start_ms}/{key.window_ms}"


def encode_group(group: Group, layouts: Layouts) -> bytes:
    """A group's piece; it uses the layouts of its cells from now on."""
    cells = [
        [
            *key,
            pack(cell.counts),
            pack(cell.outcomes),
            layouts.of(cell.features),
            [pack(one) for one in cell.features.values()],
        ]
        for key, cell in group.cells.items()
    ]
    needed = frozenset(str(cell[5]) for cell in cells if cell[5])
    layouts.use(needed - group.layouts)
    layouts.release(group.layouts - needed)
    group.layouts = needed
    times = [group.span_ms, group.closes_ms, group.settles_ms]
    told = not group.dirty and not group.sent
    return msgspec.msgpack.encode(
        [WINDOW_SCHEMA, list(group.key), times, group.closed, group.final, told, cells]
    )


def decode_group(name: str, data: bytes, layouts: Layouts) -> Group:
    """Inverse of :func:`encode_group`; where the warehouse was still to be told something, all is. Raises StateCorrupt."""
    try:
        schema, *rest = msgspec.msgpack.decode(data)
        if schema != WINDOW_SCHEMA:
            raise StateCorrupt(f"piece {name}: schema {schema}, this code reads {WINDOW_SCHEMA}")
        key, times, closed, final, told, cells = rest
        span_ms, closes_ms, settles_ms = times
        group = Group(WindowKey(*key), {}, span_ms, closes_ms, settles_ms, closed, final, changed=False)
        for version, role, segment, counts, outcomes, layout, features in cells:
            borders = layouts[layout] if layout else ()
            group.cells[version, role, segment] = Cell(
                unpack(Counts, counts),
                unpack(Outcomes, outcomes),
                {
                    feature: unpack(FeatureCounts, packed, edges)
                    for (feature, edges), packed in zip(borders, features, strict=True)
                },
            )
        group.layouts = frozenset(cell[5] for cell in cells if cell[5])
        layouts.use(group.layouts)
        if not told:
            group.tell_all()
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise StateCorrupt(f"piece {name} cannot be read: {error}") from error
    return group
