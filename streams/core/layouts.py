"""What a cell counts of each feature lies in one row of numbers: where in it what is, and how a contract's rows get there.

Borders of histograms are the same in all windows of a version, and so are their layouts: one is made when a contract's first
row comes, and shared. A cell keeps the layout that it began with; a contract that comes to have other features in the middle
of a window gets one that has room for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.contracts import Feature, ModelContract, Reference
from schemas.ids import content_hash
from schemas.row_binary import text_bytes

OTHER = "(other)"
#: What is counted of a feature before its cells: rows, missing, invalid, two halves of the sum, and, as the bits of reals,
#: the least and the greatest. See ``streams.core.tally``.
ROWS, MISSING, INVALID, UPPER, LOWER, LEAST, MOST, HEAD = range(8)
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
#: Plans that are kept; beyond them all are made anew.
PLANS_MAX = 65_536


class Part(NamedTuple):
    """A feature: borders of its histogram, or the names of its categories, ``OTHER`` last; one of the two is empty, and both
    of a number that has no borders."""

    name: str
    edges: tuple[float, ...]
    categories: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many numbers are counted of it."""
        return HEAD + (len(self.categories) or len(self.edges) + 1)


class Layout:
    """Features in their order. ``starts (k + 1,)``: where each begins. Known by identity; ``name`` says what is in it."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        self.starts: Ints = np.cumsum([0, *(part.size for part in parts)])
        self.size = int(self.starts[-1])
        self.numeric: NDArray[np.bool_] = np.array([not part.categories for part in parts], np.bool_)
        self.place = {part.name: at for at, part in enumerate(parts)}
        #: Of a cell without rows; not to be written to.
        self.empty: Ints = np.zeros(self.size, np.int64)
        self.empty.view(np.float64)[self.starts[:-1] + LEAST] = np.inf
        self.empty.view(np.float64)[self.starts[:-1] + MOST] = -np.inf
        self.empty.setflags(write=False)

    @cached_property
    def name(self) -> str:
        """The same of all layouts with the same features."""
        return content_hash(msgspec.msgpack.encode(self.parts))[:16]

    @cached_property
    def cuts(self) -> tuple[Floats, Ints]:
        """Borders of all features, one behind the other, and where each one's begin ``(k + 1,)``."""
        flat = np.array([edge for part in self.parts for edge in part.edges], np.float64)
        return flat, np.cumsum([0, *(len(part.edges) for part in self.parts)])

    @cached_property
    def written(self) -> Rows:
        """What the warehouse's rows of these features have in common."""
        return Rows.of_layout(self)

    def of(self, sums: Ints, place: int) -> Ints:
        """What is counted of the feature at ``place``: a view."""
        return sums[self.starts[place] : self.starts[place + 1]]

    def moved(self, sums: Ints, before: Layout) -> Ints:
        """What was counted under a layout that this one extends."""
        moved = self.empty.copy()
        for at, part in enumerate(before.parts):
            own, held = self.of(moved, self.place[part.name]), before.of(sums, at)
            names = self.parts[self.place[part.name]].categories
            if bool(names) != bool(part.categories) and held[ROWS] > held[MISSING]:
                continue
            own[:HEAD] = held[:HEAD]
            if bool(names) != bool(part.categories):
                continue
            if part.categories:
                np.add.at(own, [HEAD + names.index(name) for name in part.categories], held[HEAD:])
            else:
                own[HEAD:] = held[HEAD:]
        return moved


class Written(NamedTuple):
    """For compiled code, of each feature of a layout: where in a cell's sums it begins, whether it is a number, its name, its
    borders' bits, and its categories sorted by name. Names are as ``schemas.row_binary`` writes them, ``..._ends (k + 1,)`` say
    where each begins. Of each category its place among the counts, and 0 in ``category_first`` where the one before has its name.
    """

    starts: Ints
    numeric: NDArray[np.bool_]
    names: NDArray[np.uint8]
    name_ends: Ints
    edges: NDArray[np.uint64]
    edge_ends: Ints
    category_ends: Ints
    category_places: Ints
    category_first: Ints
    category_names: NDArray[np.uint8]
    category_name_ends: Ints


class Rows(NamedTuple):
    """``bytes_max``: what a cell's rows have, beside their keys, at most."""

    of: Written
    bytes_max: int

    @classmethod
    def of_layout(cls, layout: Layout) -> Rows:
        """See the class."""
        parts = layout.parts
        names, name_ends = _texts([part.name for part in parts])
        edges, edge_ends = layout.cuts
        sorted_ = [sorted(range(len(part.categories)), key=part.categories.__getitem__) for part in parts]
        places = [place for of in sorted_ for place in of]
        told = [part.categories[place] for part, of in zip(parts, sorted_, strict=True) for place in of]
        ends = np.cumsum([0, *map(len, sorted_)])
        first = np.array([at == 0 or told[at] != told[at - 1] for at in range(len(told))], np.int64)
        first[ends[:-1][ends[:-1] < len(told)]] = 1
        category_names, category_name_ends = _texts(told)
        written = Written(
            layout.starts, layout.numeric, names, name_ends, edges.view(np.uint64), edge_ends, ends,
            np.array(places, np.int64), first, category_names, category_name_ends,
        )  # fmt: skip
        # Beside what is counted: at most three lengths, two numbers in the end, and what copies of words write beyond.
        held = 8 * (layout.size + len(edges) + len(told)) + len(names) + len(category_names)
        return cls(written, held + 64 * (len(parts) + 1))


def _texts(texts: Sequence[str]) -> tuple[NDArray[np.uint8], Ints]:
    """Texts as they are written, with room behind them to be read over, and where each begins."""
    raw = [text_bytes(text) for text in texts]
    return np.frombuffer(b"".join([*raw, bytes(8)]), np.uint8), np.cumsum([0, *map(len, raw)])


class Arrays(NamedTuple):
    """Plans for compiled code: the features of plan ``p`` are those from ``first[p]`` to below ``first[p + 1]``.

    Of each: where in a cell's row it begins; between which places of ``edges`` its borders lie; from where on ``cells`` says
    in which cell a category's code is, -1 of a number, and which cell is that of others; what the contract allows.
    """

    first: Ints
    start: Ints
    edge: Ints
    edge_end: Ints
    code: Ints
    other: Ints
    low: Floats
    high: Floats
    edges: Floats
    cells: Ints


class Plan(NamedTuple):
    """How rows of a contract are counted under ``layout``. Of each of its features: ``starts``, where in a cell's row what is
    counted of it begins; ``edges``, its borders; ``cells``, in which of its cells a category's code is."""

    number: int
    layout: Layout
    starts: list[int]
    edges: list[tuple[float, ...]]
    cells: list[list[int]]


class Plans:
    """Plans by contract, reference and layout, by their identities: to compare them would take as long as to make them."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._found: dict[tuple[int, int, int], tuple[Plan, Any]] = {}
        self._layouts: dict[tuple[Any, ...], Layout] = {}
        self._columns: list[_Column] = [
            _Column(np.float64 if name in ("low", "high", "edges") else np.int64) for name in Arrays._fields
        ]
        self._edges_at: dict[int, int] = {}
        self._kept: list[Any] = []
        self._columns[0].extend([0])

    @property
    def arrays(self) -> Arrays:
        """Of all plans; valid until the next one is made."""
        return Arrays(*(column.view for column in self._columns))

    def bound(self) -> None:
        """Forget all when they are too many. Plans of before mean nothing then."""
        if len(self._found) > PLANS_MAX:
            self.clear()

    def of(self, contract: ModelContract, reference: Reference | None, held: Layout | None) -> Plan:
        """The plan under the layout that a cell holds, extended if need be; None: under the contract's own."""
        key = (id(contract), id(reference), id(held))
        found = self._found.get(key)
        if found is None:
            layout = self._layout(contract, reference, held)
            plan = self._made(contract, layout)
            # What it is known by must live as long as it does.
            found = self._found[key] = (plan, (contract, reference, held))
            self._found.setdefault((id(contract), id(reference), id(layout)), found)
        return found[0]

    def _layout(self, contract: ModelContract, reference: Reference | None, held: Layout | None) -> Layout:
        own = [
            Part(f.name, (), (*f.categories, OTHER))
            if f.kind == "categorical"
            else Part(f.name, feature_edges(f, contract.monitoring.histogram_bins, reference))
            for f in contract.features
        ]
        if held is not None:
            own = _extended(held, own)
            if tuple(own) == held.parts:
                return held
        key = tuple((part.name, id(part.edges), part.categories) for part in own)
        found = self._layouts.get(key)
        if found is None:
            found = self._layouts[key] = Layout(tuple(own))
        return found

    def _made(self, contract: ModelContract, layout: Layout) -> Plan:
        first, start, edge, edge_end, code, other, low, high, edges, cells = self._columns
        parts = [layout.parts[layout.place[feature.name]] for feature in contract.features]
        starts = [int(layout.starts[layout.place[feature.name]]) for feature in contract.features]
        coded = [_cells(part, feature) for part, feature in zip(parts, contract.features, strict=True)]
        for feature, part, of in zip(contract.features, parts, coded, strict=True):
            at = self._edges_at.get(id(part.edges))
            if at is None:
                at = self._edges_at[id(part.edges)] = len(edges.view)
                self._kept.append(part.edges)
                edges.extend(part.edges)
            edge.extend([at])
            edge_end.extend([at + len(part.edges)])
            code.extend([len(cells.view) if of else -1])
            other.extend([of[-1] if of else -1])
            low.extend([-np.inf if feature.low is None else feature.low])
            high.extend([np.inf if feature.high is None else feature.high])
            cells.extend(of)
        start.extend(starts)
        number = len(first.view) - 1
        first.extend([len(start.view)])
        return Plan(number, layout, starts, [part.edges for part in parts], coded)


class _Column:
    """Numbers that become more."""

    def __init__(self, kind: Any) -> None:
        self._data = np.zeros(64, kind)
        self._size = 0

    @property
    def view(self) -> NDArray[Any]:
        return self._data[: self._size]

    def extend(self, values: Any) -> None:
        end = self._size + len(values)
        if end > len(self._data):
            self._data = np.concatenate([self._data, np.zeros(max(end, len(self._data)), self._data.dtype)])
        self._data[self._size : end] = values
        self._size = end


def _cells(part: Part, feature: Feature) -> list[int]:
    """In which cell each of a feature's categories is counted, and what is none of them."""
    if not part.categories:
        return []
    last = len(part.categories) - 1 - part.categories[::-1].index(OTHER)
    return [*map(part.categories.index, feature.categories), last]


def _extended(held: Layout, own: list[Part]) -> list[Part]:
    """The features of ``held``, with room for those of ``own``. A feature that has become one of another kind
    begins anew."""
    parts = {part.name: part for part in held.parts}
    for part in own:
        before = parts.get(part.name)
        if before is None or bool(before.categories) != bool(part.categories):
            parts[part.name] = part
        elif fresh := [name for name in part.categories if name not in before.categories]:
            parts[part.name] = before._replace(categories=(*before.categories, *fresh))
    return list(parts.values())


def feature_edges(feature: Feature, bins: int, reference: Reference | None) -> tuple[float, ...]:
    """Cell borders of a numeric feature: the reference's quantiles where there is one, else the contract's range."""
    column = reference.columns.get(feature.name) if reference is not None else None
    if column is not None and len(column.quantiles) > 1:
        return _of_quantiles(column.quantiles, bins)
    if feature.low is not None and feature.high is not None:
        return _of_range(feature.low, feature.high, bins)
    return ()


@lru_cache(maxsize=4_096)
def _of_quantiles(quantiles: tuple[float, ...], bins: int) -> tuple[float, ...]:
    places = np.linspace(0, len(quantiles) - 1, bins + 1)[1:-1]
    return tuple(np.unique(np.interp(places, range(len(quantiles)), quantiles)).tolist())


@lru_cache(maxsize=4_096)
def _of_range(low: float, high: float, bins: int) -> tuple[float, ...]:
    return tuple(np.linspace(low, high, bins + 1)[1:-1].tolist())
