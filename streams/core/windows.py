"""Event-time windows: where counted rows go, when a window closes, what the warehouse still has to be told.

A window lives in memory until its labels can no longer change it and ClickHouse has confirmed its last value. Each
(window, model) is one piece of state; each (version, role, segment) in it is a cell of mergeable sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.codecs import STATUSES, PredictionColumns
from schemas.contracts import ModelContract, Reference
from schemas.errors import StateCorrupt
from schemas.ids import ROLES
from schemas.rows import CALIBRATION_BINS, MICRO, NANO, OUTCOME_BINS, PROBABILITY_MIN, SCORE_BINS
from streams.core.aggregates import (
    Cell,
    Counts,
    FeatureCounts,
    Outcomes,
    latency_bucket,
    pack,
    unit_bin,
    unpack,
)
from streams.core.delivery import Upsert

WINDOW_SCHEMA = 1
OTHER, NULL = "(other)", "(null)"
_ERROR, _FALLBACK = STATUSES.index("error"), STATUSES.index("fallback")

CellKey = tuple[str, str, str]
GroupKey = tuple[str, int]


def segments_of(contract: ModelContract, features: NDArray[np.float64]) -> list[list[str]]:
    """For each segment feature of the contract, every row's segment: ``origin=EWR``."""
    names = contract.feature_names
    found = []
    for name in contract.monitoring.segments:
        at = names.index(name)
        labels = segment_labels(contract, at)
        codes = np.nan_to_num(features[:, at], nan=float(len(labels) - 1)).astype(np.int64)
        found.append([labels[code] for code in codes.tolist()])
    return found


def segment_labels(contract: ModelContract, at: int) -> list[str]:
    """Segment of each category code of feature ``at``; then the one of unknown values, then the one of null."""
    feature = contract.features[at]
    most = contract.monitoring.segments_max
    labels = [f"{feature.name}={c if code < most else OTHER}" for code, c in enumerate(feature.categories)]
    return [*labels, f"{feature.name}={OTHER}", f"{feature.name}={NULL}"]


@dataclass(slots=True)
class Group:
    """One window of one model."""

    start_ms: int
    window_ms: int
    cells: dict[CellKey, Cell] = field(default_factory=dict)
    closed: bool = False
    final: bool = False
    changed: bool = True
    dirty: set[tuple[str, CellKey, str]] = field(default_factory=set)
    sent: set[tuple[str, CellKey, str]] = field(default_factory=set)

    @property
    def end_ms(self) -> int:
        return self.start_ms + self.window_ms

    def cell(self, key: CellKey) -> Cell:
        found = self.cells.get(key)
        if found is None:
            found = self.cells[key] = Cell()
        return found

    def touch(self, table: str, key: CellKey, feature: str = "") -> None:
        self.dirty.add((table, key, feature))
        self.changed = True

    def touch_all(self, table: str) -> None:
        for key in self.cells:
            self.touch(table, key)


class Windows:
    """All windows of one task. ``add`` and ``settle`` change sums, ``advance`` closes and forgets."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._groups: dict[GroupKey, Group] = {}
        self._unsent: dict[tuple[Any, ...], tuple[GroupKey, tuple[str, CellKey, str], int]] = {}
        self._gone: set[str] = set()
        self.too_late: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def group(self, model: str, contract: ModelContract, start_ms: int) -> Group:
        found = self._groups.get((model, start_ms))
        if found is None:
            found = self._groups[(model, start_ms)] = Group(start_ms, contract.monitoring.window)
            self._gone.discard(piece_name(model, start_ms))
        return found

    def add(
        self,
        columns: PredictionColumns,
        references: dict[str, Reference],
        watermark_ms: int,
        segments: list[list[str]],
    ) -> None:
        """Count predictions. Rows behind ``watermark`` by more than the allowed lateness are counted as late too."""
        contract = columns.contract
        model, window_ms = contract.model, contract.monitoring.window
        starts = columns.event_time_ms // window_ms * window_ms
        late = starts + window_ms + contract.monitoring.allowed_lateness <= watermark_ms
        if late.any():
            self.too_late[model] = self.too_late.get(model, 0) + int(late.sum())
        versions, version_of = np.unique(
            np.array(columns.versions, dtype=object).astype(str), return_inverse=True
        )
        unique_starts, start_of = np.unique(starts, return_inverse=True)
        base = (start_of * len(versions) + version_of) * len(ROLES) + columns.role
        for which, labels in enumerate([None, *segments]):
            names = [""] if labels is None else sorted(set(labels))
            index = {name: at for at, name in enumerate(names)}
            codes = (
                np.zeros(len(columns), np.int64)
                if labels is None
                else np.fromiter((index[label] for label in labels), np.int64, len(columns))
            )
            found, member = np.unique(base * len(names) + codes, return_inverse=True)
            cells = []
            for code in found.tolist():
                rest, segment = divmod(code, len(names))
                rest, role = divmod(rest, len(ROLES))
                start, version = divmod(rest, len(versions))
                group = self.group(model, contract, int(unique_starts[start]))
                key = (str(versions[version]), ROLES[role], names[segment])
                cells.append((group, key))
            _count(cells, member, columns, late)
            if which == 0:
                _count_features(cells, member, columns, references)

    def settle(
        self,
        model: str,
        contract: ModelContract,
        event_time_ms: int,
        keys: Iterable[CellKey],
        score: float,
        label: float,
        sign: int,
        revision: bool,
    ) -> None:
        """Add (``sign`` 1) or take back (-1) one outcome in all its cells. Windows that are gone stay as they are."""
        start = event_time_ms // contract.monitoring.window * contract.monitoring.window
        group = self._groups.get((model, start))
        if group is None:
            return
        for key in keys:
            outcomes = group.cell(key).outcomes
            _settle(outcomes, contract.threshold, score, label, sign)
            outcomes.revisions += int(revision and sign > 0)
            group.touch("window_outcomes", key)

    def advance(self, contracts: dict[str, ModelContract], watermark_ms: int, feedback_ms: int) -> None:
        """Close what the watermarks have passed; forget what is final and confirmed."""
        for (model, start), group in list(self._groups.items()):
            contract = contracts.get(model)
            if contract is None:
                continue
            monitoring = contract.monitoring
            if not group.closed and watermark_ms >= group.end_ms + monitoring.allowed_lateness:
                group.closed = True
                group.touch_all("window_counts")
            settled = feedback_ms >= group.end_ms + monitoring.label_horizon
            if group.closed and settled and not group.final:
                group.final = True
                group.touch_all("window_outcomes")
            if group.final and not group.dirty and not group.sent:
                del self._groups[(model, start)]
                self._gone.add(piece_name(model, start))

    # -- warehouse ------------------------------------------------------------------------------------------------

    def upserts(self, version: int) -> list[Upsert]:
        """Rows changed since the last call, as of manifest ``version``. They stay marked until confirmed."""
        found = []
        for group_key, group in self._groups.items():
            for mark in group.dirty:
                upsert = self._upsert(group_key[0], group, mark, version)
                found.append(upsert)
                self._unsent[(upsert.table, upsert.key)] = (group_key, mark, version)
            group.sent |= group.dirty
            group.dirty = set()
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
                group.sent.discard(waiting[1])
                group.changed = True

    def _upsert(self, model: str, group: Group, mark: tuple[str, CellKey, str], version: int) -> Upsert:
        table, (model_version, role, segment), feature = mark
        cell = group.cells[(model_version, role, segment)]
        start = datetime.fromtimestamp(group.start_ms / 1000, UTC)
        key: tuple[Any, ...] = (start, group.window_ms, model, model_version, role, segment, self._partition)
        if table == "window_counts":
            c = cell.counts
            row = (
                c.predictions, c.errors, c.fallbacks, c.late, c.positives, c.payload_bytes, c.latency_sum_us,
                dict(sorted(c.latency_buckets.items())), c.score_histogram.tolist(), int(group.closed),
            )  # fmt: skip
        elif table == "window_outcomes":
            o = cell.outcomes
            final = group.final or (group.closed and o.predictions > 0 and o.labelled == o.predictions)
            row = (
                o.predictions, o.labelled, o.revisions, o.true_positive, o.false_positive, o.true_negative,
                o.false_negative, o.log_loss_nano, o.brier_nano, o.positive_scores.tolist(),
                o.negative_scores.tolist(), o.calibration_counts.tolist(), o.calibration_score_nano.tolist(),
                o.calibration_positives.tolist(), int(final),
            )  # fmt: skip
        else:
            f = cell.features[feature]
            key += (feature,)
            row = (
                f.rows, f.missing, f.invalid, f.sum_micro, f.low, f.high, list(f.edges), f.histogram.tolist(),
                dict(sorted(f.categories.items())),
            )  # fmt: skip
        return Upsert(table, key, (*key, *row, version), version)

    # -- state ----------------------------------------------------------------------------------------------------

    def changed_pieces(self) -> dict[str, bytes | None]:
        """Pieces of groups that changed since the last call; None for groups that are gone."""
        pieces: dict[str, bytes | None] = dict.fromkeys(self._gone)
        self._gone = set()
        for (model, start), group in self._groups.items():
            if group.changed:
                pieces[piece_name(model, start)] = _encode(model, group)
                group.changed = False
        return pieces

    def restore(self, pieces: dict[str, bytes]) -> None:
        """Become what ``pieces`` hold. Everything unconfirmed is dirty again."""
        for name, data in pieces.items():
            model, group = _decode(name, data)
            self._groups[(model, group.start_ms)] = group


def piece_name(model: str, start_ms: int) -> str:
    """Name of a window group's piece."""
    return f"window/{model}/{start_ms}"


def _encode(model: str, group: Group) -> bytes:
    return msgspec.msgpack.encode(
        {
            "schema": WINDOW_SCHEMA,
            "model": model,
            "start_ms": group.start_ms,
            "window_ms": group.window_ms,
            "closed": group.closed,
            "final": group.final,
            "dirty": sorted((t, list(k), f) for t, k, f in group.dirty | group.sent),
            "cells": [
                [
                    list(key),
                    pack(cell.counts),
                    pack(cell.outcomes),
                    {n: pack(f) for n, f in cell.features.items()},
                ]
                for key, cell in group.cells.items()
            ],
        }
    )


def _decode(name: str, data: bytes) -> tuple[str, Group]:
    raw = msgspec.msgpack.decode(data, strict=False)
    if raw["schema"] != WINDOW_SCHEMA:
        raise StateCorrupt(f"piece {name}: schema {raw['schema']}, this code reads {WINDOW_SCHEMA}")
    group = Group(raw["start_ms"], raw["window_ms"], {}, raw["closed"], raw["final"], changed=False)
    for key, counts, outcomes, features in raw["cells"]:
        group.cells[tuple(key)] = Cell(
            unpack(Counts, counts),
            unpack(Outcomes, outcomes),
            {feature: unpack(FeatureCounts, packed) for feature, packed in features.items()},
        )
    group.dirty = {(table, tuple(key), feature) for table, key, feature in raw["dirty"]}
    return raw["model"], group


def _count(
    cells: list[tuple[Group, CellKey]],
    member: NDArray[Any],
    columns: PredictionColumns,
    late: NDArray[np.bool_],
) -> None:
    n = len(cells)

    def sums(values: NDArray[Any]) -> list[int]:
        total = np.zeros(n, np.int64)
        np.add.at(total, member, values.astype(np.int64))
        return [int(x) for x in total]

    scored = ~np.isnan(columns.score)
    microseconds = np.rint(columns.latency_ms * 1000).astype(np.int64)
    rows = np.bincount(member, minlength=n).tolist()
    errors, fallbacks = sums(columns.status == _ERROR), sums(columns.status == _FALLBACK)
    positives = sums(scored & (columns.score >= columns.contract.threshold))
    sizes, latencies, lates = sums(columns.payload_bytes), sums(microseconds), sums(late)
    bins = unit_bin(columns.score, SCORE_BINS)
    scores = np.bincount((member * SCORE_BINS + bins)[scored], minlength=n * SCORE_BINS).reshape(
        n, SCORE_BINS
    )
    buckets = latency_bucket(microseconds.astype(np.float64))
    pairs, times = np.unique(member.astype(np.int64) << 16 | buckets, return_counts=True)
    for at, (group, key) in enumerate(cells):
        cell = group.cell(key)
        c = cell.counts
        c.predictions += rows[at]
        c.errors += errors[at]
        c.fallbacks += fallbacks[at]
        c.late += lates[at]
        c.positives += positives[at]
        c.payload_bytes += sizes[at]
        c.latency_sum_us += latencies[at]
        c.score_histogram += scores[at]
        cell.outcomes.predictions += rows[at]
        group.touch("window_counts", key)
        group.touch("window_outcomes", key)
    for pair, count in zip(pairs.tolist(), times.tolist(), strict=True):
        group, key = cells[pair >> 16]
        held = group.cells[key].counts.latency_buckets
        bucket = pair & 0xFFFF
        held[bucket] = held.get(bucket, 0) + count


def _count_features(
    cells: list[tuple[Group, CellKey]],
    member: NDArray[Any],
    columns: PredictionColumns,
    references: dict[str, Reference],
) -> None:
    contract = columns.contract
    for at, (group, key) in enumerate(cells):
        values = columns.features[member == at]
        reference = references.get(key[0])
        cell = group.cell(key)
        for place, feature in enumerate(contract.features):
            counts = cell.features.get(feature.name)
            if counts is None:
                edges = () if feature.kind == "categorical" else _edges(contract, place, reference)
                counts = FeatureCounts(edges=edges, histogram=np.zeros(len(edges) + 1, np.int64))
                cell.features[feature.name] = counts
            column = values[:, place]
            known = column[~np.isnan(column)]
            counts.rows += len(column)
            counts.missing += len(column) - len(known)
            if feature.kind == "categorical":
                _count_categories(counts, feature.categories, known)
            elif len(known):
                low, high = feature.low, feature.high
                if low is not None:
                    counts.invalid += int((known < low).sum())
                if high is not None:
                    counts.invalid += int((known > high).sum())
                counts.sum_micro += _sum_micro(known)
                counts.low = min(counts.low, float(known.min()))
                counts.high = max(counts.high, float(known.max()))
                cut = np.searchsorted(np.asarray(counts.edges), known, side="right")
                counts.histogram += np.bincount(cut, minlength=len(counts.histogram))
            group.touch("window_features", key, feature.name)


def _count_categories(counts: FeatureCounts, categories: tuple[str, ...], codes: NDArray[np.float64]) -> None:
    for code, times in enumerate(np.bincount(codes.astype(np.int64)).tolist()):
        if times:
            unknown = code >= len(categories)
            counts.invalid += times if unknown else 0
            name = OTHER if unknown else categories[code]
            counts.categories[name] = counts.categories.get(name, 0) + times


_SUM_LIMIT = 9.0e12


def _sum_micro(values: NDArray[np.float64]) -> int:
    """Exact sum in 1e-6 units of values clipped to what 64 bits hold in the warehouse; order cannot matter."""
    units = np.rint(np.clip(values, -_SUM_LIMIT, _SUM_LIMIT) * MICRO)
    if float(np.abs(units).max()) * len(units) < 2**62:
        return int(units.astype(np.int64).sum())
    return sum(int(unit) for unit in units)


def _edges(contract: ModelContract, place: int, reference: Reference | None) -> tuple[float, ...]:
    """Cell borders of a numeric feature: the reference's quantiles where there is one, else the contract's range."""
    feature, bins = contract.features[place], contract.monitoring.histogram_bins
    column = reference.columns.get(feature.name) if reference is not None else None
    if column is not None and len(column.quantiles) > 1:
        places = np.linspace(0, len(column.quantiles) - 1, bins + 1)[1:-1]
        return tuple(np.unique(np.interp(places, range(len(column.quantiles)), column.quantiles)).tolist())
    if feature.low is not None and feature.high is not None:
        return tuple(np.linspace(feature.low, feature.high, bins + 1)[1:-1].tolist())
    return ()


def log_loss_nano(score: float, label: float) -> int:
    """Log loss of one row in 1e-9 nats, the score kept ``PROBABILITY_MIN`` away from 0 and 1."""
    p = min(max(score, PROBABILITY_MIN), 1 - PROBABILITY_MIN)
    return round(-float(np.log(p) if label == 1.0 else np.log1p(-p)) * NANO)


def _settle(o: Outcomes, threshold: float, score: float, label: float, sign: int) -> None:
    positive = label == 1.0
    said = score >= threshold
    o.labelled += sign
    if said and positive:
        o.true_positive += sign
    elif said:
        o.false_positive += sign
    elif positive:
        o.false_negative += sign
    else:
        o.true_negative += sign
    o.log_loss_nano += sign * log_loss_nano(score, label)
    o.brier_nano += sign * round((score - label) ** 2 * NANO)
    fine = min(max(int(score * OUTCOME_BINS), 0), OUTCOME_BINS - 1)
    (o.positive_scores if positive else o.negative_scores)[fine] += sign
    coarse = min(max(int(score * CALIBRATION_BINS), 0), CALIBRATION_BINS - 1)
    o.calibration_counts[coarse] += sign
    o.calibration_score_nano[coarse] += sign * round(score * NANO)
    o.calibration_positives[coarse] += sign * int(positive)
