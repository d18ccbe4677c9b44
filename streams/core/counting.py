"""From columns to sums: counts a batch of rows, or of outcomes, into the cells they belong to, without a Python loop
over rows.

Everything that is summed is an integer, so no order and no cut of the input can change a bit of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.shift.cells import Search
from schemas.blocks import SEGMENT_NULL
from schemas.codecs import STATUSES, PredictionColumns
from schemas.contracts import Feature, ModelContract, Reference
from schemas.ids import ROLES
from schemas.rows import CALIBRATION_BINS, MICRO, NANO, OUTCOME_BINS, SCORE_BINS
from streams.core.aggregates import Cell, FeatureCounts, latency_bucket, unit_bin
from streams.core.join_state import Kind, WindowKey
from streams.core.outcomes import OutcomeRows

OTHER, NULL = "(other)", "(null)"
_ERROR, _FALLBACK = STATUSES.index("error"), STATUSES.index("fallback")
#: Latencies are summed up to eleven days, values up to what 64 bits hold in millionths; beyond that they are cut.
LATENCY_US_MAX = 1e12
VALUE_MAX = 9.0e12
Ints = NDArray[np.int64]


class Segments:
    """The segments of one contract: for each segment feature, ``origin=EWR`` and the like by category code."""

    def __init__(self, contract: ModelContract) -> None:
        names = contract.feature_names
        most = contract.monitoring.segments_max
        self._places: list[int] = []
        self.labels: list[list[str]] = []
        self._codes: list[Ints] = []
        self._category: list[dict[str, int]] = []
        for name in contract.monitoring.segments:
            place = names.index(name)
            categories = contract.features[place].categories
            shown = [f"{name}={c}" for c in categories[:most]]
            other = [len(shown)] * (len(categories) - len(shown) + 1)
            self._places.append(place)
            self.labels.append([*shown, f"{name}={OTHER}", f"{name}={NULL}"])
            self._codes.append(np.array([*range(len(shown)), *other, len(shown) + 1], np.int64))
            self._category.append(
                {label: code for code, label in enumerate(shown)}
                | {f"{name}={OTHER}": len(categories), f"{name}={NULL}": SEGMENT_NULL}
            )

    @property
    def decoding(self) -> list[dict[int, str]]:
        """For each segment feature, what the codes of ``categories`` stand for."""
        return [{code: label for label, code in of.items()} for of in self._category]

    def codes(self, features: NDArray[np.float64]) -> list[Ints]:
        """For each segment feature, the place in its ``labels`` of every row of ``features`` (n, k)."""
        found = []
        for place, codes in zip(self._places, self._codes, strict=True):
            column = np.nan_to_num(features[:, place], nan=float(len(codes) - 1)).astype(np.int64)
            found.append(codes[column])
        return found

    def categories(self, codes: list[Ints], rows: int) -> NDArray[np.int32]:
        """For every row, its segments as codes of the contract's categories: what observation blocks carry."""
        found = np.empty((rows, len(codes)), np.int32)
        for at, (labels, column) in enumerate(zip(self.labels, codes, strict=True)):
            found[:, at] = np.array([self._category[at][label] for label in labels], np.int32)[column]
        return found

    def categories_of(self, segments: Sequence[tuple[str, ...]]) -> NDArray[np.int32]:
        """The same of what :meth:`of_rows` said; null where a label was given under another contract."""
        place: dict[tuple[str, ...], int] = {}
        places = np.fromiter((place.setdefault(row, len(place)) for row in segments), np.int64, len(segments))
        coded = [
            [next((of[s] for s in row if s in of), SEGMENT_NULL) for of in self._category] for row in place
        ]
        return np.array(coded, np.int32).reshape(len(place), len(self._category))[places]


def distinct(codes: Ints) -> tuple[Ints, Ints]:
    """The distinct codes (from 0 on), ascending, and for each of ``codes`` its place among them."""
    most = int(codes.max(initial=0)) + 1
    if most > 4 * len(codes) + 4_096:
        found, place = np.unique(codes, return_inverse=True)
        return found, place.astype(np.int64)
    there = np.zeros(most, bool)
    there[codes] = True
    found = np.flatnonzero(there)
    place = np.zeros(most, np.int64)
    place[found] = np.arange(len(found))
    return found, place[codes]


@dataclass(frozen=True, slots=True)
class Members:
    """To which of ``m`` combinations of window, version, role and segments each of ``n`` rows belongs: ``of_row (n,)``.

    Arrays of shape (m,): ``window`` and ``version`` point into ``windows`` and ``versions``, ``segments[s]`` into the
    s-th segment feature's ``labels[s]``.
    """

    windows: list[WindowKey]
    versions: tuple[str, ...]
    labels: list[list[str]]
    of_row: Ints
    window: Ints
    version: Ints
    role: Ints
    segments: list[Ints]

    @classmethod
    def of(
        cls, columns: PredictionColumns, starts_ms: Ints, segments: Segments, codes: list[Ints]
    ) -> Members:
        """``starts_ms (n,)``: where each row's window begins; ``codes``: see ``Segments.codes``."""
        contract = columns.contract
        window_ms, first_ms = contract.monitoring.pane_ms, int(starts_ms.min())
        found, window = distinct((starts_ms - first_ms) // window_ms)
        windows = [WindowKey(contract.model, first_ms + at * window_ms, window_ms) for at in found.tolist()]
        combined = (window * len(columns.versions) + columns.version) * len(ROLES) + columns.role
        combined = distinct(combined)[1]
        for labels, code in zip(segments.labels, codes, strict=True):
            # Made small again each time, so that any number of segment features fits.
            combined = distinct(combined * len(labels) + code)[1]
        one = np.zeros(int(combined.max()) + 1, np.int64)
        one[combined] = np.arange(len(combined))
        return cls(
            windows,
            columns.versions,
            segments.labels,
            combined,
            window[one],
            columns.version[one].astype(np.int64),
            columns.role[one].astype(np.int64),
            [code[one] for code in codes],
        )

    def kinds(self) -> list[Kind]:
        """The combinations as the join index knows them."""
        shown = [
            [labels[code] for code in codes.tolist()]
            for labels, codes in zip(self.labels, self.segments, strict=True)
        ]
        named = zip(*shown, strict=True) if shown else itertools.repeat(())
        rows = zip(self.window.tolist(), self.version.tolist(), self.role.tolist(), named, strict=False)
        return [Kind(self.windows[w], self.versions[v], role, of) for w, v, role, of in rows]

    def take(self, at: Ints) -> Members:
        """The rows at these places, and the combinations that they have."""
        found, of_row = distinct(self.of_row[at])
        return Members(
            self.windows,
            self.versions,
            self.labels,
            of_row,
            self.window[found],
            self.version[found],
            self.role[found],
            [codes[found] for codes in self.segments],
        )


def _sums(member: Ints, cells: int, values: NDArray[Any]) -> list[int]:
    total: list[int] = _summed(member, cells, values).tolist()
    return total


def _summed(member: Ints, cells: int, values: NDArray[Any]) -> Ints:
    total = np.zeros(cells, np.int64)
    np.add.at(total, member, values.astype(np.int64, copy=False))
    return total


class PredictionFacts:
    """What is counted of each prediction, summed once by combination: segments add up combinations, not rows.

    ``member (n,)``: the combination of each row, of ``groups``.
    """

    def __init__(
        self, columns: PredictionColumns, late: NDArray[np.bool_], member: Ints, groups: int
    ) -> None:
        scored = ~np.isnan(columns.score)
        latency_us = np.rint(np.clip(columns.latency_ms * 1000.0, 0.0, LATENCY_US_MAX)).astype(np.int64)
        each: dict[str, NDArray[Any]] = {
            "errors": columns.status == _ERROR,
            "fallbacks": columns.status == _FALLBACK,
            "late": late,
            "positives": scored & (columns.score >= columns.contract.threshold),
            "payload_bytes": columns.payload_bytes,
            "latency_sum_us": latency_us,
        }
        self._sums = {name: _summed(member, groups, values) for name, values in each.items() if values.any()}
        self._rows = np.bincount(member, minlength=groups)
        bins = member * SCORE_BINS + unit_bin(columns.score, SCORE_BINS)
        if not scored.all():
            bins = bins[scored]
        self._scores = np.bincount(bins, minlength=groups * SCORE_BINS).reshape(groups, SCORE_BINS)
        buckets, bucket_of = distinct(latency_bucket(latency_us.astype(np.float64)))
        self._buckets = buckets.tolist()
        found = member * len(buckets) + bucket_of
        width = groups * len(buckets)
        self._latencies = np.bincount(found, minlength=width).reshape(groups, len(buckets))

    def count(self, cells: Sequence[Cell], of_group: Ints) -> None:
        """Add what combination g has to ``cells[of_group[g]]``."""
        n = len(cells)
        rows = _sums(of_group, n, self._rows)
        totals = {name: _sums(of_group, n, values) for name, values in self._sums.items()}
        scores, latencies = (_rows_summed(of_group, n, table) for table in (self._scores, self._latencies))
        for at, cell in enumerate(cells):
            counts = cell.counts
            counts.predictions += rows[at]
            cell.outcomes.predictions += rows[at]
            counts.score_histogram += scores[at]
            for name, total in totals.items():
                if total[at]:
                    setattr(counts, name, getattr(counts, name) + total[at])
            held = counts.latency_buckets
            for bucket, times in zip(self._buckets, latencies[at].tolist(), strict=True):
                if times:
                    held[bucket] = held.get(bucket, 0) + times


def _rows_summed(member: Ints, cells: int, table: Ints) -> Ints:
    total = np.zeros((cells, table.shape[1]), np.int64)
    if cells == 1:
        np.sum(table, axis=0, out=total[0])
        return total
    np.add.at(total, member, table)
    return total


class _InCells:
    """Rows put in the order of their cells, so that sums, least and greatest of all columns are one call each."""

    def __init__(self, member: Ints, cells: int) -> None:
        self.rows = np.bincount(member, minlength=cells)
        self._order = None if cells == 1 else np.argsort(member, kind="stable")
        self._starts = np.cumsum(self.rows) - self.rows

    def ordered(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self._order is None else values[self._order]

    def reduced(self, reduce: np.ufunc, ordered: NDArray[Any]) -> NDArray[Any]:
        """By cell, of rows that are in order; every cell has a row."""
        found: NDArray[Any] = reduce.reduceat(ordered, self._starts, axis=0)
        return found


def count_features(
    cells: Sequence[tuple[str, Cell]],
    member: Ints,
    columns: PredictionColumns,
    references: Mapping[str, Reference],
) -> None:
    """Add every feature of row i to the cell of ``cells[member[i]]``, which is (version, cell). No cell is empty."""
    contract, split = columns.contract, _InCells(member, len(cells))
    values, member = split.ordered(columns.features), split.ordered(member)
    missing = np.isnan(values)
    least, most = split.reduced(np.fmin, values), split.reduced(np.fmax, values)
    nulls = split.reduced(np.add, missing.astype(np.int64))
    units = np.rint(np.clip(values, -VALUE_MAX, VALUE_MAX) * MICRO)
    units[missing] = 0.0
    small = np.abs(units).max(axis=0) < 2**62 // len(units)
    whole = units.astype(np.int64)
    sums = split.reduced(np.add, whole)
    for place, feature in enumerate(contract.features):
        counts = [_feature_counts(contract, place, cell, references.get(version)) for version, cell in cells]
        for at, one in enumerate(counts):
            one.rows += int(split.rows[at])
            one.missing += int(nulls[at, place])
        column, known = values[:, place], ~missing[:, place]
        if feature.kind == "categorical":
            codes = column[known].astype(np.int64)
            _count_categories(counts, feature.categories, member[known], codes)
            continue
        exact = sums[:, place] if small[place] else _large_sums(member, len(cells), whole[:, place])
        for at, one in enumerate(counts):
            one.sum_micro += int(exact[at])
            one.low = float(np.fmin(one.low, least[at, place]))
            one.high = float(np.fmax(one.high, most[at, place]))
        wrong = _outside(feature, column)
        if wrong is not None and wrong.any():
            for one, invalid in zip(counts, _sums(member, len(cells), wrong), strict=True):
                one.invalid += invalid
        _count_bins(counts, member, column, known)


def _feature_counts(
    contract: ModelContract, place: int, cell: Cell, reference: Reference | None
) -> FeatureCounts:
    feature = contract.features[place]
    found = cell.features.get(feature.name)
    if found is None:
        edges = () if feature.kind == "categorical" else feature_edges(contract, place, reference)
        found = FeatureCounts(edges=edges, histogram=np.zeros(len(edges) + 1, np.int64))
        cell.features[feature.name] = found
    return found


def _count_categories(
    counts: list[FeatureCounts], categories: tuple[str, ...], member: Ints, codes: Ints
) -> None:
    width = len(categories) + 1
    table = np.bincount(member * width + codes, minlength=len(counts) * width).reshape(len(counts), width)
    for at, code in np.argwhere(table).tolist():
        times = int(table[at, code])
        one = counts[at]
        name = OTHER if code == len(categories) else categories[code]
        one.invalid += times if code == len(categories) else 0
        one.categories[name] = one.categories.get(name, 0) + times


def _outside(feature: Feature, values: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Which values the contract's range excludes; None where it has none."""
    below = None if feature.low is None else values < feature.low
    above = None if feature.high is None else values > feature.high
    if below is None or above is None:
        return above if below is None else below
    return below | above


def _count_bins(
    counts: list[FeatureCounts], member: Ints, values: NDArray[np.float64], known: NDArray[np.bool_]
) -> None:
    edges_of = [one.edges for one in counts]
    for edges in set(edges_of):
        mine = np.array([e == edges for e in edges_of], bool)
        rows = known if mine.all() else known & mine[member]
        kept, of_kept = (values, member) if rows.all() else (values[rows], member[rows])
        width = len(edges) + 1
        # Infinite values never come: the decoder has refused them.
        cut = _search(edges)(kept, np.ones(len(kept), bool))
        table = np.bincount(of_kept * width + cut, minlength=len(counts) * width).reshape(len(counts), width)
        for at in np.flatnonzero(mine).tolist():
            counts[at].histogram += table[at]


@lru_cache(maxsize=4_096)
def _search(edges: tuple[float, ...]) -> Search:
    return Search(np.asarray(edges, np.float64))


def _large_sums(member: Ints, cells: int, units: Ints) -> list[int]:
    """Exact sums whatever their size."""
    total = [0] * cells
    for at, unit in zip(member.tolist(), units.tolist(), strict=True):
        total[at] += unit
    return total


def feature_edges(contract: ModelContract, place: int, reference: Reference | None) -> tuple[float, ...]:
    """Cell borders of a numeric feature: the reference's quantiles where there is one, else the contract's range."""
    feature, bins = contract.features[place], contract.monitoring.histogram_bins
    column = reference.columns.get(feature.name) if reference is not None else None
    if column is not None and len(column.quantiles) > 1:
        places = np.linspace(0, len(column.quantiles) - 1, bins + 1)[1:-1]
        return tuple(np.unique(np.interp(places, range(len(column.quantiles)), column.quantiles)).tolist())
    if feature.low is not None and feature.high is not None:
        return tuple(np.linspace(feature.low, feature.high, bins + 1)[1:-1].tolist())
    return ()


def count_outcomes(
    cells: Sequence[Cell], member: Ints, outcomes: OutcomeRows, losses_nano: Ints, threshold: float
) -> None:
    """Add row i to each of the cells ``cells[member[i, :]]``; ``member`` has shape (rows, cells of a row)."""
    n, width = len(cells), member.shape[1]
    flat = member.ravel()
    sign = np.repeat(outcomes.sign, width)
    positive, said = outcomes.label == 1.0, outcomes.score >= threshold
    score = np.clip(outcomes.score, 0.0, 1.0)
    brier = np.rint((score - outcomes.label) ** 2 * NANO).astype(np.int64)
    each = {
        "labelled": np.ones(len(positive), np.int64),
        "true_positive": said & positive,
        "false_positive": said & ~positive,
        "true_negative": ~said & ~positive,
        "false_negative": ~said & positive,
        "log_loss_nano": losses_nano,
        "brier_nano": brier,
        "revisions": outcomes.replaces,
    }
    sums = {name: _sums(flat, n, np.repeat(values, width) * sign) for name, values in each.items()}
    for at, cell in enumerate(cells):
        for name, total in sums.items():
            if total[at]:
                setattr(cell.outcomes, name, getattr(cell.outcomes, name) + total[at])
    fine, coarse = unit_bin(score, OUTCOME_BINS), unit_bin(score, CALIBRATION_BINS)
    by_score = _pairs(flat, np.repeat(fine + positive * OUTCOME_BINS, width), sign)
    for at, place, times in by_score:
        kept = cells[at].outcomes
        scores = kept.positive_scores if place >= OUTCOME_BINS else kept.negative_scores
        scores[place % OUTCOME_BINS] += times
    bins = np.repeat(coarse, width)
    units = np.rint(score * NANO).astype(np.int64)
    for name, values in (
        ("calibration_counts", np.ones(len(units), np.int64)),
        ("calibration_positives", positive),
        ("calibration_score_nano", units),
    ):
        for at, place, amount in _pairs(flat, bins, np.repeat(values, width) * sign):
            getattr(cells[at].outcomes, name)[place] += amount


def _pairs(member: Ints, places: Ints, values: Ints) -> list[tuple[int, int, int]]:
    """(cell, place, sum of values), for the pairs that occur."""
    pairs, which = np.unique(member << 16 | places, return_inverse=True)
    total = np.zeros(len(pairs), np.int64)
    np.add.at(total, which, values)
    return [
        (pair >> 16, pair & 0xFFFF, sum_) for pair, sum_ in zip(pairs.tolist(), total.tolist(), strict=True)
    ]
