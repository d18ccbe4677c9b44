"""From columns to sums: counts a batch of rows, or of outcomes, into the cells they belong to, without a Python loop
over rows.

Everything that is summed is an integer, so no order and no cut of the input can change a bit of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.blocks import SEGMENT_NULL
from schemas.codecs import STATUSES, PredictionColumns
from schemas.contracts import Feature, ModelContract, Reference
from schemas.rows import CALIBRATION_BINS, MICRO, NANO, OUTCOME_BINS, PROBABILITY_MIN, SCORE_BINS
from streams.core.aggregates import Cell, FeatureCounts, latency_bucket, unit_bin
from streams.core.join import Settled

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

    def codes(self, features: NDArray[np.float64]) -> list[Ints]:
        """For each segment feature, the place in its ``labels`` of every row of ``features`` (n, k)."""
        found = []
        for place, codes in zip(self._places, self._codes, strict=True):
            column = np.nan_to_num(features[:, place], nan=float(len(codes) - 1)).astype(np.int64)
            found.append(codes[column])
        return found

    def of_rows(self, codes: list[Ints], rows: int) -> list[tuple[str, ...]]:
        """For every row, its segment of each segment feature; equal tuples are one object."""
        if not codes:
            return [()] * rows
        combined = codes[0]
        for labels, column in zip(self.labels[1:], codes[1:], strict=True):
            combined = combined * len(labels) + column
        known: dict[int, tuple[str, ...]] = {}
        for at in np.unique(combined, return_index=True)[1].tolist():
            segments = zip(self.labels, codes, strict=True)
            known[int(combined[at])] = tuple(labels[int(column[at])] for labels, column in segments)
        return [known[code] for code in combined.tolist()]

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


def _sums(member: Ints, cells: int, values: NDArray[Any]) -> list[int]:
    total = np.zeros(cells, np.int64)
    np.add.at(total, member, values.astype(np.int64))
    return [int(x) for x in total]


class PredictionFacts:
    """What is counted of each prediction, worked out once for all segments."""

    def __init__(self, columns: PredictionColumns, late: NDArray[np.bool_]) -> None:
        scored = ~np.isnan(columns.score)
        latency_us = np.rint(np.clip(columns.latency_ms * 1000.0, 0.0, LATENCY_US_MAX))
        self.sums: dict[str, NDArray[Any]] = {
            "errors": columns.status == _ERROR,
            "fallbacks": columns.status == _FALLBACK,
            "late": late,
            "positives": scored & (columns.score >= columns.contract.threshold),
            "payload_bytes": columns.payload_bytes,
            "latency_sum_us": latency_us,
        }
        self._scored = scored
        self._bins = unit_bin(columns.score, SCORE_BINS)
        self._buckets = latency_bucket(latency_us)

    def count(self, cells: Sequence[Cell], member: Ints) -> None:
        """Add row i to ``cells[member[i]]``."""
        n = len(cells)
        rows = np.bincount(member, minlength=n).tolist()
        flat = (member * SCORE_BINS + self._bins)[self._scored]
        scores = np.bincount(flat, minlength=n * SCORE_BINS).reshape(n, SCORE_BINS)
        totals = {name: _sums(member, n, values) for name, values in self.sums.items()}
        for at, cell in enumerate(cells):
            counts = cell.counts
            counts.predictions += rows[at]
            cell.outcomes.predictions += rows[at]
            counts.score_histogram += scores[at]
            for name, total in totals.items():
                if total[at]:
                    setattr(counts, name, getattr(counts, name) + total[at])
        pairs, times = np.unique(member << 16 | self._buckets, return_counts=True)
        for pair, count in zip(pairs.tolist(), times.tolist(), strict=True):
            held = cells[pair >> 16].counts.latency_buckets
            held[pair & 0xFFFF] = held.get(pair & 0xFFFF, 0) + count


def count_features(
    cells: Sequence[tuple[str, Cell]],
    member: Ints,
    columns: PredictionColumns,
    references: Mapping[str, Reference],
) -> None:
    """Add every feature of row i to the cell of ``cells[member[i]]``, which is (version, cell)."""
    contract = columns.contract
    for place, feature in enumerate(contract.features):
        counts = [_feature_counts(contract, place, cell, references.get(version)) for version, cell in cells]
        column = columns.features[:, place]
        known = ~np.isnan(column)
        for one, rows, missing in zip(
            counts,
            np.bincount(member, minlength=len(cells)).tolist(),
            np.bincount(member[~known], minlength=len(cells)).tolist(),
            strict=True,
        ):
            one.rows += rows
            one.missing += missing
        if feature.kind == "categorical":
            _count_categories(counts, feature.categories, member[known], column[known].astype(np.int64))
        else:
            _count_numbers(counts, feature, member[known], column[known])


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


def _count_numbers(
    counts: list[FeatureCounts], feature: Feature, member: Ints, values: NDArray[np.float64]
) -> None:
    n = len(counts)
    if not len(values):
        return
    wrong = np.zeros(len(values), bool)
    if feature.low is not None:
        wrong |= values < feature.low
    if feature.high is not None:
        wrong |= values > feature.high
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, member, values)
    np.maximum.at(high, member, values)
    sums, invalid = _sums_micro(member, n, values), _sums(member, n, wrong)
    edges_of = [one.edges for one in counts]
    for edges in set(edges_of):
        mine = np.array([e == edges for e in edges_of], bool)
        rows = slice(None) if mine.all() else mine[member]
        width = len(edges) + 1
        cut = np.searchsorted(np.asarray(edges), values[rows], side="right") if edges else 0
        table = np.bincount(member[rows] * width + cut, minlength=n * width).reshape(n, width)
        for at in np.flatnonzero(mine).tolist():
            counts[at].histogram += table[at]
    for at, one in enumerate(counts):
        one.invalid += invalid[at]
        one.sum_micro += sums[at]
        one.low = min(one.low, float(low[at]))
        one.high = max(one.high, float(high[at]))


def _sums_micro(member: Ints, cells: int, values: NDArray[np.float64]) -> list[int]:
    """Exact sums in 1e-6 units, whatever their size."""
    units = np.rint(np.clip(values, -VALUE_MAX, VALUE_MAX) * MICRO).astype(np.int64)
    if int(np.abs(units).max()) < 2**62 // len(units):
        return _sums(member, cells, units)
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


def log_loss(score: float, label: float) -> float:
    """Log loss of one row in nats, the score kept ``PROBABILITY_MIN`` away from 0 and 1."""
    p = min(max(score, PROBABILITY_MIN), 1 - PROBABILITY_MIN)
    return -math.log(p) if label == 1.0 else -math.log1p(-p)


@dataclass(frozen=True, slots=True)
class OutcomeArrays:
    """Outcomes of one model as columns, those that are taken back in front of those that replace them.

    ``source``: position in the list they were made of. ``sign``: -1 for one that is taken back. ``replaces``: 1 for
    one that replaces another. Losses in 1e-9 units.
    """

    source: Ints
    score: NDArray[np.float64]
    label: NDArray[np.float64]
    label_time_ms: Ints
    sign: Ints
    replaces: Ints
    log_loss_nano: Ints

    @classmethod
    def of(cls, outcomes: Sequence[Settled]) -> OutcomeArrays:
        """Columns of ``outcomes``."""
        rows: list[tuple[int, float, float, int, int, int]] = []
        for at, (entry, old_label, label, label_time_ms) in enumerate(outcomes):
            if old_label is not None:
                rows.append((at, entry.score, old_label, label_time_ms, -1, 0))
            rows.append((at, entry.score, label, label_time_ms, 1, int(old_label is not None)))
        source, score, label_of, times, sign, replaces = zip(*rows, strict=True)
        losses = [log_loss(s, y) for s, y in zip(score, label_of, strict=True)]
        return cls(
            np.array(source, np.int64),
            np.array(score, np.float64),
            np.array(label_of, np.float64),
            np.array(times, np.int64),
            np.array(sign, np.int64),
            np.array(replaces, np.int64),
            np.rint(np.array(losses) * NANO).astype(np.int64),
        )

    def count(self, cells: Sequence[Cell], member: Ints, threshold: float) -> None:
        """Add row i to each of the cells ``cells[member[i, :]]``; ``member`` has shape (rows, cells of a row)."""
        n, width = len(cells), member.shape[1]
        flat = member.ravel()
        sign = np.repeat(self.sign, width)
        positive, said = self.label == 1.0, self.score >= threshold
        score = np.clip(self.score, 0.0, 1.0)
        brier = np.rint((score - self.label) ** 2 * NANO).astype(np.int64)
        each = {
            "labelled": np.ones(len(positive), np.int64),
            "true_positive": said & positive,
            "false_positive": said & ~positive,
            "true_negative": ~said & ~positive,
            "false_negative": ~said & positive,
            "log_loss_nano": self.log_loss_nano,
            "brier_nano": brier,
            "revisions": self.replaces,
        }
        sums = {name: _sums(flat, n, np.repeat(values, width) * sign) for name, values in each.items()}
        for at, cell in enumerate(cells):
            for name, total in sums.items():
                if total[at]:
                    setattr(cell.outcomes, name, getattr(cell.outcomes, name) + total[at])
        fine, coarse = unit_bin(score, OUTCOME_BINS), unit_bin(score, CALIBRATION_BINS)
        by_score = _pairs(flat, np.repeat(fine + positive * OUTCOME_BINS, width), sign)
        for at, place, times in by_score:
            outcomes = cells[at].outcomes
            kept = outcomes.positive_scores if place >= OUTCOME_BINS else outcomes.negative_scores
            kept[place % OUTCOME_BINS] += times
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
