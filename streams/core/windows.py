"""Event-time windows: where counted rows go, when a window closes, what the warehouse still has to be told.

A window lives in memory until its labels can no longer change it and ClickHouse has confirmed its last value. Each
(window, model) is one piece of state; each (version, role, segment) in it is a cell of mergeable sums. A piece is written
when its sums have changed: that a window has closed, or is final, follows from the time, and is found out again.

There may be ten thousand models with as many windows each as their labels have time: so nothing here looks at all windows,
and what a batch brings for many is counted, stored and told in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.contracts import ModelContract, Reference
from schemas.ids import ROLES
from streams.core.aggregates import Cell, Outcomes
from streams.core.counting import count_features, count_outcomes, count_predictions
from streams.core.delivery import Upserts
from streams.core.distinct import distinct
from streams.core.join_state import WindowKey
from streams.core.layouts import Plan, Plans
from streams.core.members import Members, Segments
from streams.core.outcomes import OutcomeRows
from streams.core.together import Together
from streams.core.window_rows import Told, counts_rows, features_rows, outcomes_rows, row_key
from streams.core.window_state import (
    COUNTS,
    FEATURES,
    OUTCOMES,
    PREFIX,
    CellKey,
    Group,
    Layouts,
    decode_group,
    encode_groups,
    piece_name,
    put_by,
)

_NOT_LATE = np.zeros(0, np.bool_)
_NOBODY = -1


@dataclass(slots=True)
class _End:
    """Windows that end at one time; ``open``: those that are not closed."""

    groups: dict[WindowKey, Group] = field(default_factory=dict)
    open: dict[WindowKey, Group] = field(default_factory=dict)


class Windows:
    """All windows of one task. ``add`` and ``settle`` change sums, ``advance`` closes and forgets."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._groups: dict[WindowKey, Group] = {}
        self._ends: dict[int, _End] = {}
        self._changed: dict[WindowKey, Group] = {}
        self._dirty: dict[WindowKey, Group] = {}
        self._gone: set[str] = set()
        self._layouts = Layouts()
        #: Versions of which the warehouse has not confirmed all, oldest first, and how many pieces of each.
        self._waiting: dict[int, int] = {}
        self._plans = Plans()
        self.late: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def group(self, key: WindowKey) -> Group:
        """The window, open it if need be. Never one that was settled: its rows are in no figure any more."""
        found = self._groups.get(key)
        if found is None:
            found = Group(key)
            self._enter(found)
        return found

    def _enter(self, group: Group) -> None:
        self._groups[group.key] = group
        end = self._ends.get(group.key.end_ms)
        if end is None:
            end = self._ends[group.key.end_ms] = _End()
        end.groups[group.key] = group
        if not group.closed:
            end.open[group.key] = group

    def add(
        self,
        rows: Together,
        members: Members,
        segments: Sequence[Segments],
        references: Sequence[Mapping[str, Reference]],
        watermark_ms: int,
    ) -> None:
        """Count predictions. Rows that come when their window has been closed are counted, and counted as late.

        ``segments`` and ``references`` (by version): of the parts.
        """
        groups = self._reached(rows, members, watermark_ms)
        closed = np.array([group.closed for group in groups], bool)
        late = closed[members.window][members.of_row] if closed.any() else _NOT_LATE
        if late.any():
            for part, count in enumerate(np.bincount(rows.model[late], minlength=len(rows.parts)).tolist()):
                if count:
                    model = rows.parts[part].contract.model
                    self.late[model] = self.late.get(model, 0) + count
        cells: list[Cell] = []
        base = (members.window * len(rows.versions) + members.version) * len(ROLES) + members.role
        cells_of = [self._whole(rows, members, groups, base, cells, tables=COUNTS | OUTCOMES | FEATURES)]
        whole = len(cells)
        cells_of += [
            self._segment(rows, members, groups, base, cells, segments, which)
            for which in range(len(members.segments))
        ]
        count_predictions(rows, members, late, np.array(cells_of, np.int64), cells)
        self._count_features(rows, members, cells_of[0], cells[:whole], references)

    def _reached(self, rows: Together, members: Members, watermark_ms: int) -> list[Group]:
        """The windows of rows, which will have changed."""
        spans = {}
        for part in rows.parts:
            monitoring = part.contract.monitoring
            spans[part.contract.model] = (
                monitoring,
                monitoring.window,
                watermark_ms - monitoring.allowed_lateness,
            )
        groups = []
        for key in members.windows:
            group = self.group(key)
            monitoring, group.span_ms, closed_ms = spans[key.model]
            if key.end_ms <= closed_ms and not group.closed:
                group.close(monitoring)
                self._ends[key.end_ms].open.pop(key, None)
            self._changed[key] = self._dirty[key] = group
            groups.append(group)
        return groups

    def _whole(
        self,
        rows: Together,
        members: Members,
        groups: list[Group],
        base: NDArray[np.int64],
        cells: list[Cell],
        tables: int,
    ) -> NDArray[np.int64]:
        """The cells of versions and roles; which of them each combination belongs to."""
        found, cell_of = distinct(base)
        window, rest = np.divmod(found, len(rows.versions) * len(ROLES))
        version, role = np.divmod(rest, len(ROLES))
        for w, v, r in zip(window.tolist(), version.tolist(), role.tolist(), strict=True):
            key = (rows.versions[v], ROLES[r], "")
            groups[w].dirty[key] = tables
            cells.append(groups[w].cell(key))
        return cell_of

    def _segment(
        self, rows: Together, members: Members, groups: list[Group], base: NDArray[np.int64], cells: list[Cell],
        segments: Sequence[Segments], which: int,
    ) -> NDArray[np.int64]:  # fmt: skip
        """The same of a segment feature, ``which`` of each model; a model may have fewer."""
        labels = [of.labels[which] if which < len(of.labels) else [] for of in segments]
        widths = np.array([len(of) for of in labels], np.int64)
        there = np.flatnonzero(widths[members.model] > 0)
        most = int(widths.max())
        found, place = distinct(base[there] * most + members.segments[which][there])
        one = np.zeros(len(found), np.int64)
        one[place] = there
        cell_of = np.full(len(members), _NOBODY, np.int64)
        cell_of[there] = place + len(cells)
        columns = (members.model, members.window, members.version, members.role, members.segments[which])
        for model, w, v, r, code in zip(*(column[one].tolist() for column in columns), strict=True):
            key, group = (rows.versions[v], ROLES[r], labels[model][code]), groups[w]
            group.touch(key, COUNTS | OUTCOMES)
            cells.append(group.cell(key))
        return cell_of

    def _count_features(
        self, rows: Together, members: Members, cell_of: NDArray[np.int64], cells: list[Cell],
        references: Sequence[Mapping[str, Reference]],
    ) -> None:  # fmt: skip
        self._plans.bound()
        one = np.zeros(len(cells), np.int64)
        one[cell_of] = np.arange(len(members))
        plans: list[Plan] = []
        for cell, model, version in zip(
            cells, members.model[one].tolist(), members.version[one].tolist(), strict=True
        ):
            reference = references[model].get(rows.versions[version])
            plan = self._plans.of(rows.parts[model].contract, reference, cell.layout)
            if cell.layout is not plan.layout:
                cell.sums = (
                    plan.layout.empty if cell.layout is None else plan.layout.moved(cell.sums, cell.layout)
                )
                cell.layout = plan.layout
            plans.append(plan)
        of_row = cell_of[members.of_row] if len(cells) > 1 else np.zeros(len(rows), np.int64)
        count_features(cells, plans, of_row, rows, self._plans.arrays)

    def settle(self, outcomes: OutcomeRows, losses_nano: NDArray[np.int64], threshold: float) -> None:
        """Add outcomes of one model and take back those they replace, in every cell of their predictions."""

        def touched(window: WindowKey, key: CellKey) -> Outcomes:
            group = self.group(window)
            self._changed[window] = self._dirty[window] = group
            group.touch(key, OUTCOMES)
            cell = group.cell(key)
            if cell.outcomes is None:
                cell.outcomes = Outcomes()
            return cell.outcomes

        add_outcomes(touched, outcomes, losses_nano, threshold)

    def advance(
        self, contracts: Mapping[str, ModelContract], watermark_ms: int, floor_ms: Mapping[str, int]
    ) -> None:
        """Close what the watermark has passed; what is settled (ends at or before its model's floor) is final, and
        forgotten once the warehouse has confirmed it."""
        highest_ms, closed = max(floor_ms.values(), default=None), list[Group]()
        for end_ms, end in list(self._ends.items()):
            if watermark_ms >= end_ms:
                for key, group in list(end.open.items()):
                    contract = contracts.get(key.model)
                    if contract is not None and watermark_ms >= end_ms + contract.monitoring.allowed_lateness:
                        self._close(end, group, contract)
                        closed.append(group)
            if highest_ms is not None and end_ms <= highest_ms:
                for key, group in list(end.groups.items()):
                    contract = contracts.get(key.model)
                    if contract is not None:
                        self._settled(end, group, contract, floor_ms.get(key.model, key.start_ms))
                if not end.groups:
                    del self._ends[end_ms]
        put_by(closed)

    def _close(self, end: _End, group: Group, contract: ModelContract) -> None:
        end.open.pop(group.key, None)
        group.close(contract.monitoring)
        group.tell(COUNTS | OUTCOMES)
        self._dirty[group.key] = group

    def _settled(self, end: _End, group: Group, contract: ModelContract, floor_ms: int) -> None:
        if not group.final and group.key.end_ms <= floor_ms:
            self._close(end, group, contract)
            group.final = True
        if group.final and group.is_confirmed(self._oldest):
            for of in (self._groups, self._changed, self._dirty, end.groups):
                of.pop(group.key, None)
            self._layouts.release(group.layouts)
            self._gone.add(piece_name(group.key))

    # -- warehouse ------------------------------------------------------------------------------------------------

    @property
    def _oldest(self) -> int | None:
        """The oldest version of which the warehouse has not confirmed all."""
        return next(iter(self._waiting), None)

    def upserts(self, version: int) -> list[Upserts]:
        """Rows changed since the last call, as of manifest ``version``. They stay marked until confirmed."""
        dirty, self._dirty = self._dirty, {}
        cells: dict[int, list[Told]] = {COUNTS: [], OUTCOMES: [], FEATURES: []}
        for group in dirty.values():
            for own, tables in group.dirty.items():
                told = Told(group, group.cells[own], row_key(group.key, own, self._partition))
                for table, of in cells.items():
                    if tables & table:
                        of.append(told)
            group.dirty, group.told = {}, version
        found = [
            *counts_rows(cells[COUNTS], version),
            *features_rows(cells[FEATURES], version),
            *outcomes_rows(cells[OUTCOMES], version),
        ]
        if found:
            self._waiting[version] = self._waiting.get(version, 0) + len(found)
        return found

    def confirm(self, sent: Iterable[Upserts]) -> None:
        """The warehouse has these; of a version all of whose rows are in, and of those before, none is waited for. Pieces are
        not written anew for this: after a restart rows are sent once more, and are the same."""
        for upserts in sent:
            left = self._waiting.get(upserts.version, 0) - 1
            if upserts.mark is not None or left < 0:
                continue
            if left:
                self._waiting[upserts.version] = left
            else:
                del self._waiting[upserts.version]

    # -- state ----------------------------------------------------------------------------------------------------

    def reconfigured(self, model: str) -> None:
        """The model's contract has changed: under which one its windows closed has to be stored now."""
        for key, group in self._groups.items():
            if key.model == model and group.closed:
                self._changed[key] = group

    def changed_pieces(self) -> dict[str, bytes | None]:
        """Pieces of groups that changed since the last call; None for groups that are gone."""
        pieces: dict[str, bytes | None] = dict.fromkeys(self._gone)
        self._gone = set()
        changed, self._changed = self._changed, {}
        pieces |= encode_groups(list(changed.values()), self._layouts, self._oldest)
        return pieces | self._layouts.changed_pieces()

    def restore(self, pieces: Mapping[str, bytes]) -> None:
        """Become what ``pieces`` hold. Of everything that was not confirmed when they were written all is dirty again."""
        self._layouts.restore(pieces)
        for name, data in pieces.items():
            if name.startswith(PREFIX):
                group = decode_group(name, data, self._layouts)
                self._enter(group)
                if group.dirty:
                    self._dirty[group.key] = group


def add_outcomes(
    cell_of: Callable[[WindowKey, CellKey], Outcomes],
    outcomes: OutcomeRows,
    losses_nano: NDArray[np.int64],
    threshold: float,
) -> None:
    """Add outcomes of one model, and take back those they replace, in every cell of their predictions."""
    cells: dict[tuple[WindowKey, CellKey], int] = {}
    cells_of: list[list[int]] = []
    for window, version, role, segments in outcomes.kinds:
        keys = [(window, (version, ROLES[role], segment)) for segment in ("", *segments)]
        cells_of.append([cells.setdefault(key, len(cells)) for key in keys])
    found = [cell_of(window, key) for window, key in cells]
    # Rows may have a different number of segments: those that have fewer end in a cell that is nobody's.
    nobody, width = Outcomes(), max(map(len, cells_of))
    if any(len(of) < width for of in cells_of):
        cells_of = [of + [len(found)] * (width - len(of)) for of in cells_of]
        found.append(nobody)
    member = np.array(cells_of, np.int64)[outcomes.kind]
    starts_ms = np.array([window.start_ms for window, _ in cells], np.int64)
    count_outcomes(found, starts_ms, member, outcomes, losses_nano, threshold)
