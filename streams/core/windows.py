"""Event-time windows: where counted rows go, when a window closes, what the warehouse still has to be told.

A window lives in memory until its labels can no longer change it and ClickHouse has confirmed its last value. Each
(window, model) is one piece of state; each (version, role, segment) in it is a cell of mergeable sums. A piece is written
when its sums have changed: that a window has closed, or is final, follows from the time, and is found out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.codecs import PredictionColumns
from schemas.contracts import ModelContract, Reference
from schemas.ids import ROLES
from streams.core.aggregates import Cell, Outcomes, listed
from streams.core.counting import Members, PredictionFacts, count_features, count_outcomes
from streams.core.delivery import Upsert
from streams.core.distinct import distinct
from streams.core.join_state import WindowKey
from streams.core.outcomes import OutcomeRows
from streams.core.window_state import (
    PREFIX,
    CellKey,
    Group,
    Layouts,
    Mark,
    decode_group,
    encode_group,
    piece_name,
)

_INT64_MAX = 2**63 - 1
_NOT_LATE = np.zeros(0, np.bool_)


class Windows:
    """All windows of one task. ``add`` and ``settle`` change sums, ``advance`` closes and forgets."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._groups: dict[WindowKey, Group] = {}
        self._unsent: dict[tuple[Any, ...], tuple[WindowKey, Mark, int]] = {}
        self._gone: set[str] = set()
        self._layouts = Layouts()
        self.late: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def group(self, key: WindowKey) -> Group:
        """The window, open it if need be. Never one that was settled: its rows are in no figure any more."""
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = Group(key)
        return found

    def add(
        self,
        columns: PredictionColumns,
        members: Members,
        references: Mapping[str, Reference],
        watermark_ms: int,
    ) -> None:
        """Count predictions. Rows that come when their window has been closed are counted, and counted as late."""
        contract, monitoring = columns.contract, columns.contract.monitoring
        model, lateness_ms = contract.model, monitoring.allowed_lateness
        closed = np.array([w.end_ms + lateness_ms <= watermark_ms for w in members.windows], bool)
        late = closed[members.window][members.of_row] if closed.any() else _NOT_LATE
        if late.any():
            self.late[model] = self.late.get(model, 0) + int(late.sum())
        groups = len(members.window)
        facts = PredictionFacts(columns, late, members.of_row, groups)
        everywhere = np.zeros(groups, np.int64)
        base = (members.window * len(members.versions) + members.version) * len(ROLES) + members.role
        segments = [([""], everywhere), *zip(members.labels, members.segments, strict=True)]
        for which, (names, code) in enumerate(segments):
            found, of_group = distinct(base * len(names) + code)
            cells: list[tuple[str, Cell]] = []
            for one in found.tolist():
                rest, segment = divmod(one, len(names))
                rest, role = divmod(rest, len(ROLES))
                window, version = divmod(rest, len(members.versions))
                key = (members.versions[version], ROLES[role], names[segment])
                group = self.group(members.windows[window])
                group.span_ms = monitoring.window
                if closed[window]:
                    group.close(monitoring)
                cells.append((members.versions[version], group.cell(key)))
                group.touch("window_counts", key)
                group.touch("window_outcomes", key)
                if which == 0:
                    for feature in contract.feature_names:
                        group.touch("window_features", key, feature)
            facts.count([cell for _, cell in cells], of_group)
            if which == 0:
                count_features(cells, of_group[members.of_row], columns, references)

    def settle(self, outcomes: OutcomeRows, losses_nano: NDArray[np.int64], threshold: float) -> None:
        """Add outcomes of one model and take back those they replace, in every cell of their predictions."""

        def touched(window: WindowKey, key: CellKey) -> Cell:
            group = self.group(window)
            group.touch("window_outcomes", key)
            return group.cell(key)

        add_outcomes(touched, outcomes, losses_nano, threshold)

    def advance(
        self, contracts: Mapping[str, ModelContract], watermark_ms: int, floor_ms: Mapping[str, int]
    ) -> None:
        """Close what the watermark has passed; what is settled (ends at or before its model's floor) is final, and
        forgotten once the warehouse has confirmed it."""
        for key, group in list(self._groups.items()):
            contract = contracts.get(key.model)
            if contract is None:
                continue
            if not group.closed and watermark_ms >= key.end_ms + contract.monitoring.allowed_lateness:
                group.close(contract.monitoring)
                group.tell("window_counts", "window_outcomes")
            if not group.final and key.end_ms <= floor_ms.get(key.model, key.start_ms):
                group.close(contract.monitoring)
                group.final = True
                group.tell("window_counts", "window_outcomes")
            if group.final and not group.dirty and not group.sent:
                del self._groups[key]
                self._layouts.release(group.layouts)
                self._gone.add(piece_name(key))

    # -- warehouse ------------------------------------------------------------------------------------------------

    def upserts(self, version: int) -> list[Upsert]:
        """Rows changed since the last call, as of manifest ``version``. They stay marked until confirmed."""
        found = []
        for group in self._groups.values():
            for mark in group.dirty:
                upsert = self._upsert(group, mark, version)
                found.append(upsert)
                self._unsent[(upsert.table, upsert.key)] = (group.key, mark, version)
            group.sent |= group.dirty
            group.dirty = {}
        return found

    def confirm(self, sent: Iterable[Upsert]) -> None:
        """The warehouse has these rows; marks go, except of rows that changed after their version."""
        for upsert in sent:
            waiting = self._unsent.get((upsert.table, upsert.key))
            if waiting is None or waiting[2] > upsert.version:
                continue
            del self._unsent[(upsert.table, upsert.key)]
            group = self._groups.get(waiting[0])
            if group is not None:
                # The piece is not written anew for this: after a restart the row is sent once more, and is the same.
                group.sent.pop(waiting[1], None)

    def _upsert(self, group: Group, mark: Mark, version: int) -> Upsert:
        table, own, feature = mark
        cell = group.cells[own]
        key = row_key(group.key, own, self._partition)
        row: tuple[Any, ...]
        if table == "window_counts":
            c = cell.counts
            row = (
                c.predictions, c.errors, c.fallbacks, c.late, c.positives, c.payload_bytes, c.latency_sum_us,
                dict(sorted(c.latency_buckets.items())), listed(c.score_histogram), group.span_ms,
                int(group.closed),
            )  # fmt: skip
        elif table == "window_outcomes":
            o = cell.outcomes
            complete = group.closed and o.predictions > 0 and o.labelled == o.predictions
            settled_ms = group.settles_ms if group.final else 0
            final_ms = max(group.closes_ms, o.last_label_ms) if complete else settled_ms
            key += (0,)
            row = outcome_row(o, final_ms, settled_ms, group.span_ms, complete or group.final)
        else:
            f = cell.features[feature]
            key += (feature,)
            row = (
                f.rows, f.missing, f.invalid, max(-_INT64_MAX, min(f.sum_micro, _INT64_MAX)), f.low, f.high, list(f.edges), f.histogram.tolist(),
                dict(sorted(f.categories.items())), group.span_ms,
            )  # fmt: skip
        return Upsert(table, key, (*key, *row, version), version)

    # -- state ----------------------------------------------------------------------------------------------------

    def reconfigured(self, model: str) -> None:
        """The model's contract has changed: under which one its windows closed has to be stored now."""
        for key, group in self._groups.items():
            group.changed = group.changed or (key.model == model and group.closed)

    def changed_pieces(self) -> dict[str, bytes | None]:
        """Pieces of groups that changed since the last call; None for groups that are gone."""
        pieces: dict[str, bytes | None] = dict.fromkeys(self._gone)
        self._gone = set()
        for key, group in self._groups.items():
            if group.changed:
                pieces[piece_name(key)] = encode_group(group, self._layouts)
                group.changed = False
        return pieces | self._layouts.changed_pieces()

    def restore(self, pieces: Mapping[str, bytes]) -> None:
        """Become what ``pieces`` hold. Of everything that was not confirmed when they were written all is dirty again."""
        self._layouts.restore(pieces)
        for name, data in pieces.items():
            if name.startswith(PREFIX):
                group = decode_group(name, data, self._layouts)
                self._groups[group.key] = group


def add_outcomes(
    cell_of: Callable[[WindowKey, CellKey], Cell],
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
    nobody, width = Cell(), max(map(len, cells_of))
    if any(len(of) < width for of in cells_of):
        cells_of = [of + [len(found)] * (width - len(of)) for of in cells_of]
        found.append(nobody)
    member = np.array(cells_of, np.int64)[outcomes.kind]
    starts_ms = np.array([window.start_ms for window, _ in cells], np.int64)
    count_outcomes(found, starts_ms, member, outcomes, losses_nano, threshold)


def row_key(window: WindowKey, cell: CellKey, partition: int) -> tuple[Any, ...]:
    """By what a cell's rows are known in the warehouse."""
    return (_moment(window.start_ms), window.window_ms, window.model, *cell, partition)


@lru_cache(maxsize=4_096)
def _moment(time_ms: int) -> datetime:
    """One for all rows of a window: it remembers its hash, which takes longer than that of the rest of a key."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def outcome_row(o: Outcomes, final_ms: int, settled_ms: int, span_ms: int, final: bool) -> tuple[Any, ...]:
    """A row of ``window_outcomes`` behind its key and before its part and version."""
    return (
        o.predictions, o.labelled, o.revisions, o.true_positive, o.false_positive, o.true_negative,
        o.false_negative, o.log_loss_nano, o.brier_nano, listed(o.positive_scores),
        listed(o.negative_scores), listed(o.calibration_counts), listed(o.calibration_score_nano),
        listed(o.calibration_positives), o.positive_log_loss_nano, o.positive_brier_nano,
        dict(sorted(o.positive_delays.items())), dict(sorted(o.negative_delays.items())), o.first_label_ms,
        o.last_label_ms, final_ms, settled_ms, span_ms, int(final),
    )  # fmt: skip
