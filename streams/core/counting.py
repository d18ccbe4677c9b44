"""From columns to sums: counts a batch of rows, or of outcomes, into the cells they belong to, without a Python loop
over rows.

Everything that is summed is an integer, so no order and no cut of the input can change a bit of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.blocks import SEGMENT_NULL
from schemas.codecs import STATUSES, PredictionColumns
from schemas.contracts import Feature, ModelContract, Reference
from schemas.edges import Edges
from schemas.ids import ROLES
from schemas.rows import CALIBRATION_BINS, OUTCOME_BINS
from streams.core import tally
from streams.core.aggregates import Cell, FeatureCounts, latency_bucket
from streams.core.distinct import distinct
from streams.core.join_state import Kind, WindowKey
from streams.core.maturity import delay_bucket
from streams.core.outcomes import OutcomeRows

#: Of so many rows all numeric features are counted in one call; of more, one after the other along memory.
FEW_ROWS = 512
OTHER, NULL = "(other)", "(null)"
_ERROR, _FALLBACK = STATUSES.index("error"), STATUSES.index("fallback")
Ints = NDArray[np.int64]
#: Of latencies in whole microseconds, up to a twentieth of a second.
_LATENCY_BUCKETS = latency_bucket(np.arange(50_000, dtype=np.float64)).astype(np.int16)


class Segments:
    """The segments of one contract: for each segment feature, ``origin=EWR`` and the like by category code.

    ``contract_hash``: the contract's, which takes as long to make as a batch does to count.
    """

    def __init__(self, contract: ModelContract) -> None:
        self.contract_hash = contract.hash
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
            own = np.empty(len(features), np.int64)
            tally.translated(features[:, place], codes, own)
            found.append(own)
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
        step = (starts_ms - first_ms) // window_ms
        combined: Ints = step
        size = int(step.max()) + 1
        of_version = [(len(columns.versions), columns.version)] if len(columns.versions) > 1 else []
        of_segments = [(len(of), code) for of, code in zip(segments.labels, codes, strict=True)]
        parts: list[tuple[int, NDArray[Any]]] = [*of_version, (len(ROLES), columns.role), *of_segments]
        for width, code in parts:
            if size * width > 4 * len(step):
                # Made small again, so that any number of segment features fits.
                found, combined = distinct(combined)
                size = len(found)
            combined, size = combined * width + code, size * width
        combined = distinct(combined)[1]
        one = np.zeros(int(combined.max()) + 1, np.int64)
        one[combined] = np.arange(len(combined))
        found, window = distinct(step[one])
        return cls(
            [WindowKey(contract.model, first_ms + at * window_ms, window_ms) for at in found.tolist()],
            columns.versions,
            segments.labels,
            combined,
            window,
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


class PredictionFacts:
    """What is counted of each prediction, summed once by combination: segments add up combinations, not rows.

    ``member (n,)``: the combination of each row, of ``groups``. ``late (n,)``: which came late; empty: none.
    """

    def __init__(
        self, columns: PredictionColumns, late: NDArray[np.bool_], member: Ints, groups: int
    ) -> None:
        self._whole = np.zeros((groups, tally.FACTS_WIDTH), np.int64)
        bucket = np.empty(len(member), np.int64)
        tally.facts(
            member, late, columns.score, columns.latency_ms, columns.status, columns.payload_bytes, _ERROR, _FALLBACK,
            columns.contract.threshold, _LATENCY_BUCKETS, bucket, self._whole,
        )  # fmt: skip
        if len(long := np.flatnonzero(bucket < 0)):
            latency_us = np.rint(np.minimum(columns.latency_ms[long] * 1000.0, tally.LATENCY_US_MAX))
            bucket[long] = latency_bucket(latency_us)
        self._first, self._latencies = _counted_pairs(member, groups, bucket)

    def count(self, cells: Sequence[Cell], of_group: Ints) -> None:
        """Add what combination g has to ``cells[of_group[g]]``."""
        whole, latencies = (
            _rows_summed(of_group, len(cells), table) for table in (self._whole, self._latencies)
        )
        names = tally.FACTS
        for cell, row, buckets in zip(cells, whole, latencies, strict=True):
            counts = cell.counts
            for name, total in zip(names, row[: len(names)].tolist(), strict=True):
                if total:
                    setattr(counts, name, getattr(counts, name) + total)
            cell.outcomes.predictions += int(row[0])
            counts.score_histogram = counts.score_histogram + row[len(names) :]
            _add_buckets(counts.latency_buckets, self._first, buckets)


def _counted_pairs(member: Ints, cells: int, bucket: Ints) -> tuple[int, Ints]:
    """The least bucket, and how often each from there on is in each cell: shape (cells, buckets)."""
    first, last = int(bucket.min()), int(bucket.max())
    found = np.zeros((cells, last - first + 1), np.int64)
    tally.pairs(member, bucket, first, found)
    return first, found


def _add_buckets(held: dict[int, int], first: int, times: Ints) -> None:
    at = np.flatnonzero(times)
    for bucket, count in zip(at.tolist(), times[at].tolist(), strict=True):
        held[first + bucket] = held.get(first + bucket, 0) + count


def _rows_summed(member: Ints, cells: int, table: Ints) -> Ints:
    total = np.zeros((cells, table.shape[1]), np.int64)
    if cells == 1:
        np.sum(table, axis=0, out=total[0])
        return total
    np.add.at(total, member, table)
    return total


def count_features(
    cells: Sequence[tuple[str, Cell]],
    member: Ints,
    columns: PredictionColumns,
    references: Mapping[str, Reference],
) -> None:
    """Add every feature of row i to the cell of ``cells[member[i]]``, which is (version, cell). No cell is empty."""
    contract, values = columns.contract, columns.features
    rows = np.bincount(member, minlength=len(cells)).tolist()
    numeric: list[list[FeatureCounts]] = []
    places: list[int] = []
    for place, feature in enumerate(contract.features):
        counts = [_feature_counts(contract, place, cell, references.get(version)) for version, cell in cells]
        for one, times in zip(counts, rows, strict=True):
            one.rows += times
        if feature.kind == "categorical":
            _count_categories(counts, feature.categories, member, values[:, place])
        else:
            numeric.append(counts)
            places.append(place)
    if len(values) <= FEW_ROWS and all(one.edges is counts[0].edges for counts in numeric for one in counts):
        _count_few(numeric, member, columns)
        return
    for place, counts in zip(places, numeric, strict=True):
        _count_numbers(counts, contract.features[place], member, values[:, place])


class _Numbers:
    """All numeric features of a contract, each with one histogram's edges, as ``tally.few_numbers`` takes them."""

    def __init__(self, contract: ModelContract, edges: tuple[tuple[float, ...], ...]) -> None:
        # What they are known by must live as long as they do.
        self.made_of = contract, edges
        of = [(place, f) for place, f in enumerate(contract.features) if f.kind == "numeric"]
        self.places = np.array([place for place, _ in of], np.int64)
        self.low = np.array([-math.inf if f.low is None else f.low for _, f in of])
        self.high = np.array([math.inf if f.high is None else f.high for _, f in of])
        self.edges = np.array([edge for one in edges for edge in one], np.float64)
        self.starts = np.cumsum([0, *map(len, edges)])
        first = [start + at for at, start in enumerate(self.starts.tolist())]
        self.bins = [slice(begin, end) for begin, end in itertools.pairwise(first)]


#: By identity: a model's are the same in every batch, and to compare them would take as long as to make them.
_NUMBERS: dict[tuple[int, ...], _Numbers] = {}
_NUMBERS_MAX = 16_384


def _numbers(contract: ModelContract, edges: tuple[tuple[float, ...], ...]) -> _Numbers:
    key = (id(contract), *map(id, edges))
    found = _NUMBERS.get(key)
    if found is None:
        if len(_NUMBERS) >= _NUMBERS_MAX:
            _NUMBERS.clear()
        found = _NUMBERS[key] = _Numbers(contract, edges)
    return found


def _count_few(numeric: list[list[FeatureCounts]], member: Ints, columns: PredictionColumns) -> None:
    """``numeric[f][c]``: of each numeric feature, the counts of cell c; their edges are the same in all cells."""
    if not numeric:
        return
    of, n = _numbers(columns.contract, tuple(counts[0].edges for counts in numeric)), len(numeric[0])
    whole, range_ = np.zeros((n, len(numeric), len(tally.NUMBERS)), np.int64), np.empty((n, len(numeric), 2))
    range_[:] = math.inf, -math.inf
    bins = np.zeros((n, len(of.edges) + len(numeric)), np.int64)
    tally.few_numbers(
        columns.features, member, of.places, of.low, of.high, of.edges, of.starts, whole, range_, bins
    )
    for at in range(n):
        rows = zip(numeric, whole[at].tolist(), range_[at].tolist(), of.bins, strict=True)
        for counts, sums, (least, most), cells in rows:
            _add_numbers(counts[at], sums, least, most, bins[at, cells])


def _add_numbers(one: FeatureCounts, sums: list[int], least: float, most: float, bins: Ints) -> None:
    missing, invalid, upper, lower = sums
    one.missing += missing
    one.invalid += invalid
    one.sum_micro += (upper << tally.HALF) + lower
    one.low, one.high = min(one.low, least), max(one.high, most)
    one.histogram = one.histogram + bins


def _count_categories(
    counts: list[FeatureCounts], names: tuple[str, ...], member: Ints, values: NDArray[np.float64]
) -> None:
    table = np.zeros((len(counts), len(names) + 2), np.int64)
    tally.categories(values, member, table)
    for one, row in zip(counts, table, strict=True):
        *known, unknown, missing = row.tolist()
        one.missing += missing
        one.invalid += unknown
        for name, times in zip((*names, OTHER), (*known, unknown), strict=True):
            if times:
                one.categories[name] = one.categories.get(name, 0) + times


def _count_numbers(
    counts: list[FeatureCounts], feature: Feature, member: Ints, values: NDArray[np.float64]
) -> None:
    low = -math.inf if feature.low is None else feature.low
    high = math.inf if feature.high is None else feature.high
    n = len(counts)
    whole, range_ = np.zeros((n, len(tally.NUMBERS)), np.int64), np.empty((n, 2))
    range_[:] = math.inf, -math.inf
    for edges, cells in _by_edges(counts):
        slot = np.full(n, -1, np.int64)
        slot[cells] = cells
        bins = np.zeros((n, len(edges) + 1), np.int64)
        cut = _edges(edges)
        # Infinite values never come: the decoder has refused them.
        tally.numbers(values, member, slot, low, high, cut.edges, cut.before, cut.scale, whole, range_, bins)
        for at in cells:
            least, most = range_[at].tolist()
            _add_numbers(counts[at], whole[at].tolist(), least, most, bins[at])


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


def _by_edges(counts: list[FeatureCounts]) -> list[tuple[tuple[float, ...], list[int]]]:
    """Versions of different references have different edges."""
    first = counts[0].edges
    if all(one.edges is first for one in counts):
        return [(first, list(range(len(counts))))]
    found: dict[tuple[float, ...], list[int]] = {}
    for at, one in enumerate(counts):
        found.setdefault(one.edges, []).append(at)
    return list(found.items())


@lru_cache(maxsize=4_096)
def _edges(edges: tuple[float, ...]) -> Edges:
    return Edges(edges)


def feature_edges(contract: ModelContract, place: int, reference: Reference | None) -> tuple[float, ...]:
    """Cell borders of a numeric feature: the reference's quantiles where there is one, else the contract's range."""
    feature, bins = contract.features[place], contract.monitoring.histogram_bins
    column = reference.columns.get(feature.name) if reference is not None else None
    if column is not None and len(column.quantiles) > 1:
        return _of_quantiles(column.quantiles, bins)
    if feature.low is not None and feature.high is not None:
        return tuple(np.linspace(feature.low, feature.high, bins + 1)[1:-1].tolist())
    return ()


@lru_cache(maxsize=4_096)
def _of_quantiles(quantiles: tuple[float, ...], bins: int) -> tuple[float, ...]:
    places = np.linspace(0, len(quantiles) - 1, bins + 1)[1:-1]
    return tuple(np.unique(np.interp(places, range(len(quantiles)), quantiles)).tolist())


def count_outcomes(
    cells: Sequence[Cell],
    starts_ms: Ints,
    member: Ints,
    outcomes: OutcomeRows,
    losses_nano: Ints,
    threshold: float,
) -> None:
    """Add row i, at least one, to each of the cells ``cells[member[i, :]]``, whose windows begin at ``starts_ms``; ``member``
    has shape (rows, cells of a row)."""
    n, unset = len(cells), np.iinfo(np.int64)
    bucket = delay_bucket(outcomes.label_time_ms - starts_ms[member[:, 0]])
    first = int(bucket.min())
    whole = np.zeros((n, len(tally.OUTCOMES)), np.int64)
    times = np.empty((n, 2), np.int64)
    times[:] = unset.max, unset.min
    scores = np.zeros((n, 2, OUTCOME_BINS), np.int64)
    calibration = np.zeros((n, 3, CALIBRATION_BINS), np.int64)
    delays = np.zeros((n, 2, int(bucket.max()) - first + 1), np.int64)
    tally.outcomes(
        member, outcomes.score, outcomes.label, outcomes.label_time_ms, outcomes.sign, outcomes.replaces, losses_nano,
        threshold, bucket, first, whole, times, scores, calibration, delays,
    )  # fmt: skip
    for at, cell in enumerate(cells):
        kept = cell.outcomes
        for name, total in zip(tally.OUTCOMES, whole[at].tolist(), strict=True):
            if total:
                setattr(kept, name, getattr(kept, name) + total)
        kept.negative_scores = kept.negative_scores + scores[at, 0]
        kept.positive_scores = kept.positive_scores + scores[at, 1]
        kept.calibration_counts = kept.calibration_counts + calibration[at, 0]
        kept.calibration_score_nano = kept.calibration_score_nano + calibration[at, 1]
        kept.calibration_positives = kept.calibration_positives + calibration[at, 2]
        _add_buckets(kept.negative_delays, first, delays[at, 0])
        _add_buckets(kept.positive_delays, first, delays[at, 1])
        earliest, latest = times[at].tolist()
        kept.first_label_ms = min(kept.first_label_ms or unset.max, earliest)
        kept.last_label_ms = max(kept.last_label_ms, latest)
