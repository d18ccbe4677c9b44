"""Loops that count rows into cells, compiled: one pass over a batch, whatever is counted of each row.

They fill arrays they are given and know nothing else. All sums are of integers: values in millionths and losses in
billionths, a value's in two halves, so that no sum of them leaves 64 bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, inlined
from schemas.edges import place_of
from schemas.rows import CALIBRATION_BINS, MICRO, NANO, OUTCOME_BINS, PROBABILITY_MIN, SCORE_BINS
from streams.core.layouts import HEAD, INVALID, LEAST, LOWER, MISSING, MOST, ROWS, UPPER, Arrays

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
#: Latencies are summed up to eleven days, values up to what 64 bits hold in millionths; beyond that they are cut.
LATENCY_US_MAX, VALUE_MAX = 1e12, 9.0e12
#: Columns of what ``facts`` sums; after them, as many as there are bins, the histogram of scores.
FACTS = ("predictions", "errors", "fallbacks", "late", "positives", "payload_bytes", "latency_sum_us")
FACTS_WIDTH = len(FACTS) + SCORE_BINS
#: Columns of what ``numbers`` sums; the sum of values is ``upper << HALF`` and ``lower``.
NUMBERS = ("missing", "invalid", "upper", "lower")
HALF = 32
#: With no more edges than this it is cheaper to compare all values with each, so many values at a time as stay at hand.
REACHED_MAX, AT_HAND = 24, 1_024
LAST_PLACE = 2**63 - 1
#: Columns of what ``outcomes`` sums.
OUTCOMES = (
    "labelled", "revisions", "true_positive", "false_positive", "true_negative", "false_negative", "log_loss_nano",
    "brier_nano", "positive_log_loss_nano", "positive_brier_nano",
)  # fmt: skip


@compiled
def facts(
    member: Ints, late: NDArray[np.bool_], score: Floats, latency_ms: Floats, status: NDArray[np.int8], payload: Ints,
    error: int, fallback: int, thresholds: Floats, table: NDArray[np.int16], bucket: Ints, into: Ints,
) -> None:  # fmt: skip
    """Add row i to ``into[member[i]]``, whose scores are positive from ``thresholds[member[i]]`` on; ``bucket[i]`` becomes that
    of its latency, by ``table`` as far as that goes."""
    for i in range(len(member)):
        cell, threshold = into[member[i]], thresholds[member[i]]
        cell[0] += 1
        if status[i] == error:
            cell[1] += 1
        elif status[i] == fallback:
            cell[2] += 1
        if len(late) and late[i]:
            cell[3] += 1
        value = score[i]
        if value == value:
            if value >= threshold:
                cell[4] += 1
            cell[7 + unit_bin(value, SCORE_BINS)] += 1
        cell[5] += payload[i]
        latency_us = np.int64(np.rint(min(max(latency_ms[i] * 1000.0, 0.0), LATENCY_US_MAX)))
        cell[6] += latency_us
        bucket[i] = table[latency_us] if latency_us < len(table) else -1


@compiled
def unit_bin(value: float, bins: int) -> int:
    """``streams.core.aggregates.unit_bin`` of one value that is a number."""
    return min(int(min(max(value, 0.0), 1.0) * bins), bins - 1)


@compiled
def summed(cells: Ints, table: Ints, into: Ints) -> None:
    """Add row j of ``table (m, w)`` to each of the rows ``cells[:, j]`` of ``into (c, w)``; -1 is nobody."""
    for s in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            cell = cells[s, j]
            if cell >= 0:
                for k in range(table.shape[1]):
                    into[cell, k] += table[j, k]


@compiled
def numbers(
    values: Floats, member: Ints, slot: Ints, low: float, high: float, edges: Floats, before: Ints, first: float,
    scale: float, looks: int, into: Ints, range_: Floats, histogram: Ints,
) -> None:  # fmt: skip
    """Add value i of a numeric feature to ``into[slot[member[i]]]``, where that is not negative; NaN is missing.

    ``low`` and ``high``: what the contract allows. ``edges`` to ``looks``: the borders of the histogram's cells, see
    ``schemas.edges``. ``range_ (cells, 2)``: least and greatest.
    """
    # Neighbours are mostly of one cell: what they come to is kept at hand until another one's turn.
    now, cell = -1, -1
    missing, invalid, upper, lower = 0, 0, 0, 0
    least, most = np.inf, -np.inf
    for i in range(len(member) + 1):
        if i == len(member) or member[i] != now:
            if cell >= 0:
                into[cell, 0] += missing
                into[cell, 1] += invalid
                into[cell, 2] += upper
                into[cell, 3] += lower
                range_[cell, 0] = min(range_[cell, 0], least)
                range_[cell, 1] = max(range_[cell, 1], most)
            if i == len(member):
                break
            now = member[i]
            cell = slot[now]
            missing, invalid, upper, lower = 0, 0, 0, 0
            least, most = np.inf, -np.inf
        if cell < 0:
            continue
        value = values[i]
        if value != value:
            missing += 1
            continue
        if value < low or value > high:
            invalid += 1
        unit: Any = np.int64(np.rint(min(max(value, -VALUE_MAX), VALUE_MAX) * MICRO))
        upper += unit >> HALF
        lower += unit & 0xFFFFFFFF
        least, most = min(least, value), max(most, value)
        histogram[cell, place_of(value, edges, before, first, scale, looks)] += 1


@compiled
def numbers_alone(
    values: Floats, bits: Ints, low: float, high: float, edges: Floats, before: Ints, first: float, scale: float, looks: int,
    reached: Ints, block: Ints,
) -> None:  # fmt: skip
    """What :func:`numbers` does where all values are of one cell, whose numbers ``block`` are, as ``streams.core.layouts`` says:
    loops in which no branch depends on a value, so that the machine takes several at a time. ``bits``: of the same values.

    ``reached (edges,)``, zeros: where edges are few, how many values are at or above each.
    """
    missing = 0
    block[LEAST], block[MOST] = ordered(block[LEAST]), ordered(block[MOST])
    for start in range(0, len(values), AT_HAND):
        some = values[start : start + AT_HAND]
        missing += _sums(some, low, high, block)
        _range(some, bits[start : start + AT_HAND], block)
        if len(edges) <= REACHED_MAX:
            for j in range(len(edges)):
                reached[j] += _at_or_above(some, edges[j])
        else:
            for i in range(len(some)):
                if some[i] == some[i]:
                    block[HEAD + place_of(some[i], edges, before, first, scale, looks)] += 1
    block[MISSING] += missing
    block[LEAST], block[MOST] = ordered(block[LEAST]), ordered(block[MOST])
    if len(edges) <= REACHED_MAX:
        above = len(values) - missing
        for j in range(len(edges)):
            block[HEAD + j] += above - reached[j]
            above = reached[j]


@compiled
def features_alone(
    values: Floats,
    bits: Ints,
    at: int,
    apart: int,
    rows: int,
    plan: int,
    start: int,
    of: Arrays,
    reached: Ints,
    sums: Ints,
) -> None:
    """Count all features of so many rows of one cell, column by column: the first column begins at ``at`` of ``values``, each further
    one ``apart`` behind. The cell's numbers begin at ``start`` of ``sums``, and are counted by plan ``plan`` of ``of``, in which
    no feature has more than ``REACHED_MAX`` borders. ``bits``: of the same values; ``reached (REACHED_MAX,)``: room."""
    first = of.first[plan]
    for f in range(of.first[plan + 1] - first):
        own, begin = first + f, at + f * apart
        column, same = values[begin : begin + rows], bits[begin : begin + rows]
        block = sums[start + of.start[own] :]
        block[ROWS] += rows
        if of.code[own] >= 0:
            _codes(column, of.cells[of.code[own] :], of.other[own], block)
            continue
        borders = of.edges[of.edge[own] : of.edge_end[own]]
        reached[:] = 0
        block[LEAST], block[MOST] = ordered(block[LEAST]), ordered(block[MOST])
        above = rows
        for low in range(0, rows, AT_HAND):
            some = column[low : low + AT_HAND]
            above -= _sums(some, of.low[own], of.high[own], block)
            _range(some, same[low : low + AT_HAND], block)
            for j in range(len(borders)):
                reached[j] += _at_or_above(some, borders[j])
        block[LEAST], block[MOST] = ordered(block[LEAST]), ordered(block[MOST])
        block[MISSING] += rows - above
        for j in range(len(borders)):
            block[HEAD + j] += above - reached[j]
            above = reached[j]
        block[HEAD + len(borders)] += above


@compiled
def _codes(values: Floats, cells: Ints, other: int, block: Ints) -> None:
    """Count codes of categories, each in its one of ``cells``."""
    missing, invalid = 0, 0
    for i in range(len(values)):
        if values[i] != values[i]:
            missing += 1
            continue
        place = cells[int(values[i])]
        block[HEAD + place] += 1
        invalid += place == other
    block[MISSING] += missing
    block[INVALID] += invalid


@compiled
def _sums(values: Floats, low: float, high: float, block: Ints) -> Any:
    """How many are missing; the others are summed."""
    missing, invalid, upper, lower = 0, 0, 0, 0
    for i in range(len(values)):
        there = values[i] == values[i]
        value = values[i] if there else 0.0
        missing += not there
        invalid += (values[i] < low) | (values[i] > high)
        unit: Any = np.int64(np.rint(min(max(value, -VALUE_MAX), VALUE_MAX) * MICRO))
        upper += unit >> HALF
        lower += unit & 0xFFFFFFFF
    block[INVALID] += invalid
    block[UPPER] += upper
    block[LOWER] += lower
    return missing


@compiled
def _range(values: Floats, bits: Ints, block: Ints) -> None:
    least, most = block[LEAST], block[MOST]
    for i in range(len(values)):
        place, there = ordered(bits[i]), values[i] == values[i]
        least = min(least, place if there else LAST_PLACE)
        most = max(most, place if there else -LAST_PLACE)
    block[LEAST], block[MOST] = least, most


@compiled
def _at_or_above(values: Floats, edge: float) -> Any:
    count = 0
    for i in range(len(values)):
        count += values[i] >= edge
    return count


@compiled
def ordered(bits: int) -> Any:
    """The bits of a double as a whole number by which they are in order of value; and back again."""
    return bits ^ (bits >> 63 & LAST_PLACE)


@inlined
def count_value(value: float, to: int, edges: Floats, begin: int, end: int, sums: Ints) -> None:
    """Add a number to the sum and the histogram of the feature at ``to``, whose edges are those from ``begin`` to below
    ``end``."""
    unit: Any = np.int64(np.rint(min(max(value, -VALUE_MAX), VALUE_MAX) * MICRO))
    sums[to + UPPER] += unit >> HALF
    sums[to + LOWER] += unit & 0xFFFFFFFF
    below, above = begin, end
    while below < above:
        middle = (below + above) // 2
        if edges[middle] <= value:
            below = middle + 1
        else:
            above = middle
    sums[to + HEAD + below - begin] += 1


@compiled
def features(
    values: Floats, at: Ints, step: Ints, model: Ints, cell: Ints, plans: Ints, starts: Ints, of: Arrays, sums: Ints,
    reals: Floats,
) -> None:  # fmt: skip
    """Count all features of row i, which lie from ``at[i]`` on in ``values``, ``step[model[i]]`` apart, in the cell ``cell[i]``;
    -1: nowhere.

    A cell's numbers begin at ``starts[c]`` of ``sums``, which ``reals`` is too, and are counted by plan ``plans[c]`` of ``of``.
    """
    for i in range(len(at)):
        c = cell[i]
        if c < 0:
            continue
        first, apart = of.first[plans[c]], step[model[i]]
        for f in range(of.first[plans[c] + 1] - first):
            own = first + f
            to = starts[c] + of.start[own]
            value = values[at[i] + f * apart]
            sums[to + ROWS] += 1
            if value != value:
                sums[to + MISSING] += 1
                continue
            if of.code[own] >= 0:
                place = of.cells[of.code[own] + int(value)]
                sums[to + HEAD + place] += 1
                sums[to + INVALID] += place == of.other[own]
                continue
            if value < of.low[own] or value > of.high[own]:
                sums[to + INVALID] += 1
            reals[to + LEAST] = min(reals[to + LEAST], value)
            reals[to + MOST] = max(reals[to + MOST], value)
            count_value(value, to, of.edges, of.edge[own], of.edge_end[own], sums)


@compiled
def segments(
    values: Floats, at: Ints, step: Ints, model: Ints, first: Ints, places: Ints, ends: Ints, labelled: Ints, told: Ints,
    label: Ints, code: NDArray[np.int32],
) -> None:  # fmt: skip
    """Of row i, whose features begin at ``at[i]``, ``step[model[i]]`` apart, put into ``label[:, i]`` and ``code[i]`` what its segments are.

    The segment features of model ``m`` are those from ``first[m]`` to below ``first[m + 1]``: ``places``, and up to where in
    ``labelled`` and ``told`` its categories are, null in the end.
    """
    for i in range(len(at)):
        begin = first[model[i]]
        for s in range(first[model[i] + 1] - begin):
            own = begin + s
            value = values[at[i] + places[own] * step[model[i]]]
            start = ends[own - 1] if own else 0
            place = ends[own] - 1 if value != value else start + int(value)
            label[s, i] = labelled[place]
            code[i, s] = told[place]


@compiled
def categories(values: Floats, member: Ints, into: Ints) -> None:
    """Count code i of a categorical feature in ``into[member[i]]``; NaN, which is missing, in the last column."""
    last = into.shape[1] - 1
    for i in range(len(member)):
        value = values[i]
        into[member[i], last if value != value else int(value)] += 1


@compiled
def outcomes(
    member: Ints, score: Floats, label: Floats, label_time_ms: Ints, sign: Ints, replaces: Ints, losses_nano: Ints,
    threshold: float, bucket: Ints, first_bucket: int, into: Ints, times_ms: Ints, scores: Ints, calibration: Ints,
    delays: Ints,
) -> None:  # fmt: skip
    """Add outcome i to each of the cells ``member[i, :]``. ``bucket``: of its label's delay.

    ``into (cells, 10)`` as ``OUTCOMES``; ``times_ms (cells, 2)``: first and last label; ``scores (cells, 2, bins)`` and ``delays
    (cells, 2, buckets)`` of negatives and positives; ``calibration (cells, 3, bins)``: how many, their scores, positives.
    """
    for i in range(len(score)):
        p = min(max(score[i], 0.0), 1.0)
        positive, said = label[i] == 1.0, score[i] >= threshold
        away = p - label[i]
        brier, units = np.int64(np.rint(away * away * NANO)), np.int64(np.rint(p * NANO))
        fine, coarse = unit_bin(p, OUTCOME_BINS), unit_bin(p, CALIBRATION_BINS)
        side, s = int(positive), sign[i]
        for j in range(member.shape[1]):
            cell = member[i, j]
            into[cell, 0] += s
            into[cell, 1] += s * replaces[i]
            into[cell, (2 if said else 5) if positive else (3 if said else 4)] += s
            into[cell, 6] += s * losses_nano[i]
            into[cell, 7] += s * brier
            if positive:
                into[cell, 8] += s * losses_nano[i]
                into[cell, 9] += s * brier
            scores[cell, side, fine] += s
            calibration[cell, 0, coarse] += s
            calibration[cell, 1, coarse] += s * units
            calibration[cell, 2, coarse] += s * side
            times_ms[cell, 0] = min(times_ms[cell, 0], label_time_ms[i])
            times_ms[cell, 1] = max(times_ms[cell, 1], label_time_ms[i])
            if s > 0 and replaces[i] == 0:
                delays[cell, side, bucket[i] - first_bucket] += 1


@compiled
def losses(score: Floats, label: Floats, into: Ints) -> None:
    """Log loss of each in billionths, the score kept ``PROBABILITY_MIN`` away from 0 and 1; logarithms are the C library's."""
    for i in range(len(score)):
        p = min(max(score[i], PROBABILITY_MIN), 1 - PROBABILITY_MIN)
        loss = -math.log(p) if label[i] == 1.0 else -math.log1p(-p)
        into[i] = np.int64(np.rint(loss * NANO))
