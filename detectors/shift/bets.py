"""Bets against "this column did not move": tables of log e-values by level, each proved fair or losing under the null.

The null. On the normal-score scale (a standard normal with the reference's ranks) the column may have moved by up to
``zone`` standard deviations, or spread or shrunk by up to ``scale_zone``; and the reference is only a sample. For sets of
levels A from a nested family (all levels from j on; all levels farther than d from the middle; one category) this gives
a largest probability S(A). A bet whose payoff grows along the family then has its largest expectation under the
distribution with exactly those probabilities, the least favourable one (Huber and Strassen 1973); dividing an
alternative's probabilities by the least favourable ones is the bet that grows fastest against that alternative, and its
expectation under everything in the null is at most one. Nothing is assumed about how columns depend on each other.

Alternatives: location shifts and changes of scale in reference standard deviations, more rows in one region, more or
less of one category, more missing. A table holds them as integers, millionths of a nat, rounded down: still fair, and
sums do not depend on the order of addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from detectors.shift.levels import Levels, at_most

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

#: Parts of a nat that one unit of a table stands for.
UNIT = 1e-6
#: No row may say more than this many nats for or against; what a cell adds up stays far from overflow.
NATS_MAX = 4.0
_SHIFTS = ((0.3, 0.3), (0.55, 0.32), (1.05, 0.38))
_WIDER = ((1.3, 0.5), (1.8, 0.5))
_NARROWER = ((0.7, 0.6), (0.45, 0.4))
_REGIONS = (0.1, 0.3, 0.7, 0.9)
_CATEGORY_SHIFT = 0.5
_MISSING_SHIFT = 0.7
#: How much of a column's weight goes to bets of each sort; what a column has no bets for goes to the others.
_WEIGHTS = {"location": 0.9, "spread": 0.06, "region": 0.02, "missing": 0.02, "category": 0.95}
_SHARE_MIN = 0.005


@dataclass(frozen=True, slots=True)
class Bets:
    """``table (levels, bets)`` in UNITs of nats; ``weights (bets,)`` sum to one; ``names (bets,)`` for people."""

    table: Ints
    weights: Floats
    names: tuple[str, ...]


def bets_on(levels: Levels, zone: float, scale_zone: float, delta: float) -> Bets:
    """All bets on one column; wrong about the reference itself with probability at most ``delta``."""
    made: list[tuple[str, str, float, Floats]] = []
    part = delta / 8
    if levels.numeric:
        made += [("location", *bet) for bet in _location(levels, zone, scale_zone, part)]
        made += [("spread", *bet) for bet in _spread(levels, zone, scale_zone, part)]
        made += [("region", *bet) for bet in _regions(levels, zone, scale_zone, part)]
    else:
        made += [("category", *bet) for bet in _categories(levels, zone, part)]
    made += [("missing", *bet) for bet in _missing(levels, zone, part)]
    weights = np.array([_WEIGHTS[sort] * weight for sort, _, weight, _ in made])
    table = np.column_stack([log_e for _, _, _, log_e in made])
    table = np.floor(np.clip(table, -NATS_MAX, NATS_MAX) / UNIT).astype(np.int32)
    return Bets(table, weights / weights.sum(), tuple(name for _, name, _, _ in made))


def fastest(most: Floats, alternative: Floats) -> Floats:
    """Log e-values of the levels 0..m: the best fair bet that grows with the level.

    ``most (m,)``: largest probability under the null of being at level 1 or above, 2 or above, ...; ``alternative
    (m+1,)``: probabilities of the levels under the alternative.
    """
    tail = np.concatenate([[1.0], np.minimum.accumulate(np.clip(most, 0, 1))])
    null = tail - np.append(tail[1:], 0.0)
    ratio = np.full(len(null), np.nan)
    np.divide(alternative, null, out=ratio, where=null > 1e-12)
    # Where the least favourable distribution never is, the payoff is that of the next level it does reach.
    for at in range(len(ratio) - 2, -1, -1):
        if np.isnan(ratio[at]):
            ratio[at] = ratio[at + 1]
    ratio = np.where(np.isnan(ratio), np.nanmax(ratio, initial=1.0), ratio)
    payoff = np.maximum.accumulate(np.clip(ratio, np.exp(-NATS_MAX), np.exp(NATS_MAX)))
    return np.asarray(np.log(payoff) - np.log(max(float((null * payoff).sum()), 1e-300)), np.float64)


def _padded(log_e: Floats) -> Floats:
    """With a last level, missing, on which the bet is off."""
    return np.append(log_e, 0.0)


def _location(
    levels: Levels, zone: float, scale_zone: float, delta: float
) -> list[tuple[str, float, Floats]]:
    if not len(levels.edges):
        return []
    above = ndtr(ndtri(at_most(1 - levels.below_min, levels.rows, delta)) + zone)
    below = ndtr(ndtri(at_most(levels.below_max, levels.rows, delta)) + zone)
    middle = ndtri((levels.below_min + levels.below_max) / 2)
    corners = _corners(middle, zone, scale_zone)
    made = []
    for shift, weight in _SHIFTS:
        higher = fastest(above, _level_shares(middle, shift, 1.0))
        lower = fastest(below[::-1], _level_shares(middle, -shift, 1.0)[::-1])[::-1]
        made += [
            ("higher", weight / 2, _padded(_fair(higher, corners))),
            ("lower", weight / 2, _padded(_fair(lower, corners))),
        ]
    return made


def _level_shares(middle: Floats, shift: float, scale: float) -> Floats:
    """Probabilities of the levels between cuts at normal scores ``middle`` when the column moved so."""
    return np.diff(np.concatenate([[0.0], ndtr((middle - shift) / scale), [1.0]]))


def _corners(middle: Floats, zone: float, scale_zone: float) -> Floats:
    """Level probabilities at the corners of the zone, shape (corners, levels): a shift or a change of scale."""
    ends = ((-zone, 1.0), (zone, 1.0), (0.0, 1 / (1 + scale_zone)), (0.0, 1 + scale_zone))
    return np.array([_level_shares(middle, shift, scale) for shift, scale in ends])


def _fair(log_e: Floats, corners: Floats) -> Floats:
    """Made smaller where a change of scale within its zone would let a bet on location grow, or the reverse."""
    return np.asarray(
        log_e - max(0.0, float(np.log((corners * np.exp(log_e)).sum(axis=1).max()))), np.float64
    )


def _spread(levels: Levels, zone: float, scale_zone: float, delta: float) -> list[tuple[str, float, Floats]]:
    """Nested pairs of tails: the k lowest cuts with the k highest, as far as they lie on both sides of the middle."""
    pairs = min(np.count_nonzero(levels.below_max < 0.45), np.count_nonzero(levels.below_min > 0.55))
    if pairs < 2:
        return []
    low_min, low_max = levels.below_min[:pairs][::-1], levels.below_max[:pairs][::-1]
    high_min, high_max = (1 - levels.below_max[-pairs:]), (1 - levels.below_min[-pairs:])
    outside = at_most(low_max + high_max, levels.rows, delta)
    inside = at_most(1 - low_min - high_min, levels.rows, delta)
    split = low_max / np.maximum(low_max + high_max, 1e-12)
    # The reference's outside share, in the proportion of its tails, moved as far as the null allows.
    left, right = ndtri(np.clip(outside * split, 1e-12, 1)), ndtri(np.clip(outside * (1 - split), 1e-12, 1))
    most_out = np.max(
        [
            ndtr((left + s) / (1 + scale_zone)) + ndtr((right - s) / (1 + scale_zone))
            for s in (-zone, 0.0, zone)
        ],
        axis=0,
    )
    least = np.clip(1 - inside, 1e-12, 1)
    left, right = ndtri(least * split), ndtri(np.maximum(least * (1 - split), 1e-12))
    least_out = np.min(
        [
            ndtr((left + s) * (1 + scale_zone)) + ndtr((right - s) * (1 + scale_zone))
            for s in (-zone, 0.0, zone)
        ],
        axis=0,
    )
    ring = np.zeros(levels.size - 1, np.intp)
    for at in range(pairs):
        ring[: pairs - at] = np.maximum(ring[: pairs - at], at + 1)
        ring[len(ring) - pairs + at :] = np.maximum(ring[len(ring) - pairs + at :], at + 1)
    left, right = ndtri((low_min + low_max) / 2), ndtri((high_min + high_max) / 2)
    corners = _corners(ndtri((levels.below_min + levels.below_max) / 2), zone, scale_zone)
    made = []
    for scale, weight in _WIDER:
        tail = ndtr(left / scale) + ndtr(right / scale)
        out = fastest(most_out, -np.diff(np.concatenate([[1.0], tail, [0.0]])))
        made.append(("wider", weight / 2, _padded(_fair(out[ring], corners))))
    for scale, weight in _NARROWER:
        tail = ndtr(left / scale) + ndtr(right / scale)
        level = np.diff(np.concatenate([[0.0], tail[::-1], [1.0]]))
        inner = fastest((1 - least_out)[::-1], level)[::-1]
        made.append(("narrower", weight / 2, _padded(_fair(inner[ring], corners))))
    return made


def _regions(levels: Levels, zone: float, scale_zone: float, delta: float) -> list[tuple[str, float, Floats]]:
    """More rows than before in one of five regions: what neither a shift nor a change of scale describes."""
    middle = (levels.below_min + levels.below_max) / 2
    edges = sorted({int(np.argmin(np.abs(middle - share))) + 1 for share in _REGIONS}) if len(middle) else []
    bounds = [0, *edges, levels.size - 1]
    made: list[tuple[str, float, Floats]] = []
    for low, high in pairwise(bounds):
        start = 0.0 if low == 0 else float(levels.below_min[low - 1])
        stop = 1.0 if high == levels.size - 1 else float(levels.below_max[high - 1])
        share = float(at_most(np.array([max(0.0, stop - start)]), levels.rows, delta / 5)[0])
        # On the normal-score scale a region of share p gains most from moving towards it and from shrinking around it.
        most = _moved(share, zone + scale_zone)
        member = np.zeros(levels.size - 1)
        member[low:high] = 1
        made.append(
            (
                f"more in region {len(made) + 1} of {len(bounds) - 1}",
                1.0 / (len(bounds) - 1),
                _padded(_more(member, most, _moved(share, 0.6))),
            )
        )
    return made


def _categories(levels: Levels, zone: float, delta: float) -> list[tuple[str, float, Floats]]:
    made = []
    known = levels.size - 1
    for at in range(known):
        share: Floats = np.array([float(levels.shares[at])])
        member = np.zeros(known)
        member[at] = 1
        most = _moved(float(at_most(share, levels.rows, delta / known)[0]), zone)
        made.append(
            (
                f"more of category {at}",
                0.5 / known,
                _padded(_more(member, most, _moved(float(share[0]), _CATEGORY_SHIFT))),
            )
        )
        most = _moved(float(at_most(1.0 - share, levels.rows, delta / known)[0]), zone)
        others = _moved(1 - float(share[0]), _CATEGORY_SHIFT)
        made.append((f"less of category {at}", 0.5 / known, _padded(_more(1 - member, most, others))))
    return made


def _missing(levels: Levels, zone: float, delta: float) -> list[tuple[str, float, Floats]]:
    total = round(levels.rows / max(1e-9, 1 - levels.missing)) if levels.missing < 1 else levels.rows
    most = _moved(float(at_most(np.array([levels.missing]), max(1, total), delta)[0]), zone)
    member = np.zeros(levels.size)
    member[-1] = 1
    return [(f"more missing ({name})", 0.5, _more(member, most, max(_moved(levels.missing, _MISSING_SHIFT), least)))
            for name, least in (("some", 0.02), ("many", 0.3))]  # fmt: skip


def _moved(share: float, zone: float) -> float:
    """A share moved up by ``zone`` on the normal-score scale, by half a percent at least."""
    moved = float(ndtr(ndtri(min(max(share, 0.0), 1.0)) + zone)) if 0 < share < 1 else share
    return min(1.0, max(moved, share + _SHARE_MIN * min(1.0, zone / 0.07)))


def _more(member: Floats, most: float, alternative: float) -> Floats:
    """Log e-values of a bet that the levels in ``member`` hold ``alternative`` of the rows, when null allows ``most``."""
    if most >= 1 - 1e-9:
        return np.zeros(len(member))
    share = min(max(alternative, most + 0.25 * (1 - most) * most), 1 - 1e-3 * (1 - most))
    return np.where(member > 0, np.log(share / most), np.log((1 - share) / (1 - most)))


def stacked(bets: Sequence[Bets], total: int) -> tuple[Ints, Floats, list[tuple[str, ...]]]:
    """Bets of all columns as one: table ``(total levels, most bets of any)``, weights ``(columns, most bets)``.

    Padding neither wins nor loses and has no weight. Columns share the weight evenly.
    """
    width = max((len(bet.weights) for bet in bets), default=0)
    table = np.zeros((total, width), np.int32)
    weights = np.zeros((len(bets), width))
    at = 0
    for row, bet in enumerate(bets):
        high, wide = bet.table.shape
        table[at : at + high, :wide] = bet.table
        weights[row, :wide] = bet.weights
        at += high
    return table, weights, [bet.names for bet in bets]
