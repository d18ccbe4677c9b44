"""What a column of good data allows, by its contract and its reference: the bounds that ``quality`` holds a block to.

Every check is a number of nats: evidence against "this block is like the reference, give or take ``effect_min``". So one
threshold serves rates (a share of rows that are missing, invalid, out of range, with a fraction) and varieties (how few
values a block may hold, if rows came one by one from the reference: frozen, a handful, integers only).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.base import Context
from detectors.health.rates import NATS_MAX, rate_nats, rate_upper
from detectors.transform import column_reference, sample_of
from schemas.contracts import ColumnReference, Feature, Reference

#: A numeric column is watched for holding at most this many values.
HANDFUL = 5
#: One value's largest share of a column that is watched for freezing.
_SHARE_MAX = 0.95
#: Share of integers above which a column that turns to integers only is no finding.
_INTEGERS_MAX = 0.5
#: How wrong a bound read off the reference may be: with probability e^-7, one in a thousand.
_REFERENCE_NATS = 7.0
#: A block of the reference with fewer rows does not say how high a rate may go.
_BLOCK_ROWS_MIN = 30
#: A block of the sample with fewer rows says nothing of variety, nor do fewer such blocks.
_SAMPLE_ROWS_MIN = 10
_BLOCKS_MIN = 5
#: Bounds that the platform's own columns have; a probability is one if the reference's scores all are.
_OWN = {"latency_ms": (0.0, math.inf), "error": (0.0, 1.0)}


@dataclass(frozen=True, slots=True)
class Allowed:
    """One column's bounds. A rate of None is not checked; ``variety``: the most distinct values that are a finding, 0 for
    no such check; ``whole_rows``: fewer rows are but a part of a block and may hold a part of its values."""

    name: str
    categories: int = 0
    low: float = -math.inf
    high: float = math.inf
    missing: float | None = None
    invalid: float = 0.0
    outside: float | None = None
    fractional: float | None = None
    integers: float | None = None
    variety: int = 0
    top_share: float = 1.0
    whole_rows: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of one column of one block, ``nats`` of evidence that it is beyond ``allowed`` (``least``: below it)."""

    nats: float
    column: str
    check: str
    current: float
    allowed: float
    rows: int
    least: bool = False

    @property
    def line(self) -> str:
        bound = "at least" if self.least else "at most"
        return f"{self.column}: {self.check} {self.current:.4g} of {self.rows} rows, {bound} {self.allowed:.4g} expected"


def allowed(context: Context, at: int, block_ms: int, offset_ms: int) -> Allowed:
    """What the context says of its column number ``at``, for blocks of ``block_ms``."""
    name = context.columns[at]
    categories = context.categories[at] if at < len(context.categories) else 0
    feature = context.features.get(name)
    reference = context.reference
    found = _any_reference(reference, name)
    low, high = _range(name, feature, found)
    missing = _missing(feature, found, reference, name)
    past = _Past(reference, name, block_ms, offset_ms)
    if categories and (found is None or not found.shares):
        return Allowed(name, categories, missing=missing)
    if categories:
        assert found is not None
        top = _upper(max(found.shares), found.rows)
        return Allowed(
            name,
            categories,
            missing=missing,
            invalid=_upper(found.shares[-1], found.rows),
            variety=min(1, past.poorest - 1) if top < _SHARE_MAX else 0,
            top_share=top,
            whole_rows=past.whole_rows,
        )
    bounded = math.isfinite(low) or math.isfinite(high)
    outside = _outside(found, low, high) if bounded else None
    if found is None or not found.quantiles or name == "error":
        return Allowed(name, low=low, high=high, missing=missing, outside=outside)
    top, distinct = _variety(found)
    fractional, integers = _fractions(past)
    variety = HANDFUL if distinct >= 4 * HANDFUL else 1 if top < _SHARE_MAX else 0
    return Allowed(
        name,
        low=low,
        high=high,
        missing=missing,
        outside=outside,
        fractional=fractional,
        integers=integers,
        variety=min(variety, past.poorest - 1),
        top_share=top,
        whole_rows=past.whole_rows,
    )


def rate_finding(column: str, check: str, count: int, rows: int, bound: float, effect_min: float) -> Finding:
    """A share of rows against ``bound + effect_min``."""
    limit = min(1.0, bound + effect_min)
    return Finding(rate_nats(count, rows, limit), column, check, count / rows if rows else 0.0, bound, rows)


def variety_finding(column: Allowed, distinct: int, rows: int) -> Finding:
    """``rows`` readable rows holding ``distinct`` values: the chance of it is at most ``C(n, d) (d top)^(n - d)``."""
    mass = min(1.0, distinct * column.top_share)
    if rows <= distinct or mass >= 1:
        nats = 0.0
    else:
        nats = max(0.0, (rows - distinct) * -math.log(mass) - distinct * math.log(rows))
    check = "frozen, distinct values" if distinct == 1 else "a handful of values, distinct"
    return Finding(
        min(nats, NATS_MAX), column.name, check, float(distinct), float(column.variety + 1), rows, True
    )


def integers_finding(column: Allowed, rows: int) -> Finding:
    """``rows`` readable rows, all integers, of a column whose reference mostly is not."""
    assert column.integers is not None
    nats = min(NATS_MAX, rows * -math.log(column.integers))
    return Finding(nats, column.name, "integers only, share", 1.0, column.integers, rows)


def _any_reference(reference: Reference | None, name: str) -> ColumnReference | None:
    """Also of a column that was always null, which has neither quantiles nor shares."""
    if reference is None:
        return None
    return column_reference(reference, name) or reference.columns.get(name)


def _upper(share: float, rows: int) -> float:
    return rate_upper(share, rows, _REFERENCE_NATS) if rows else 1.0


def _range(name: str, feature: Feature | None, found: ColumnReference | None) -> tuple[float, float]:
    if name in _OWN:
        return _OWN[name]
    if name == "score" and found is not None and found.quantiles:
        return (0.0, 1.0) if found.quantiles[0] >= 0 and found.quantiles[-1] <= 1 else (-math.inf, math.inf)
    low = feature.low if feature is not None and feature.low is not None else -math.inf
    return low, feature.high if feature is not None and feature.high is not None else math.inf


def _missing(
    feature: Feature | None, found: ColumnReference | None, reference: Reference | None, name: str
) -> float | None:
    """Highest rate of nulls that is nothing new: the reference's with its error, or the worst of its blocks of time."""
    if found is None:
        # The contract alone says something only where it allows no null at all.
        return 0.0 if feature is not None and not feature.nullable else None
    if found.missing >= 1:
        return 1.0
    rates = [_upper(found.missing, round(found.rows / (1 - found.missing)))]
    counts = reference.bins.get(name, ()) if reference is not None else ()
    rates += [block[-1] / sum(block) for block in counts if sum(block) >= _BLOCK_ROWS_MIN]
    return max(rates)


def _outside(found: ColumnReference | None, low: float, high: float) -> float:
    if found is None or not found.quantiles:
        return 0.0
    quantiles = np.asarray(found.quantiles)
    share = float(np.mean((quantiles < low) | (quantiles > high)))
    # Quantiles know a share to one step; none outside means none, for the first and the last are the extremes.
    return _upper(share + 1 / len(quantiles), found.rows) if share else _upper(0.0, found.rows)


def _variety(found: ColumnReference) -> tuple[float, int]:
    """Bound of the largest share of one value, and how many values the quantiles tell apart."""
    _values, runs = np.unique(np.asarray(found.quantiles), return_counts=True)
    return min(1.0, (int(runs.max()) + 1) / max(1, len(found.quantiles) - 1)), len(runs)


class _Past:
    """A column's values in the reference's sample, whole and block by block of time. ``poorest``: distinct values in the
    block that has fewest; more than any check asks for where the reference knows no time, 1 where it knows too little."""

    def __init__(self, reference: Reference | None, name: str, block_ms: int, offset_ms: int) -> None:
        self.values = _sampled(reference, name)
        self.blocks: list[NDArray[np.float64]] = []
        self.poorest = HANDFUL + 1
        self.whole_rows = 0.0
        if reference is None or not reference.sample_time_ms or not len(self.values):
            return
        times = np.asarray(reference.sample_time_ms, np.int64)
        if len(times) != len(self.values):
            return
        numbers = (times - offset_ms) // block_ms
        blocks = [self.values[numbers == number] for number in np.unique(numbers).tolist()]
        blocks = [block[np.isfinite(block)] for block in blocks]
        self.blocks = [block for block in blocks if len(block) >= _SAMPLE_ROWS_MIN]
        enough = len(self.blocks) >= _BLOCKS_MIN
        self.poorest = min(len(np.unique(block)) for block in self.blocks) if enough else 1
        if reference.rows and reference.from_ms is not None and reference.to_ms is not None:
            span = max(block_ms, reference.to_ms - reference.from_ms)
            self.whole_rows = reference.rows * block_ms / span / 2


def _sampled(reference: Reference | None, name: str) -> NDArray[np.float64]:
    """The sample's values of a column, null as NaN; none where there is no sample."""
    if reference is None:
        return np.empty(0)
    if name == "score" and name not in reference.columns:
        return np.asarray(reference.sample_score, np.float64)
    if name not in reference.columns or not reference.sample:
        return np.empty(0)
    if len(reference.columns) != len(reference.sample[0]):
        return np.empty(0)
    return sample_of(reference)[:, list(reference.columns).index(name)]


def _fractions(past: _Past) -> tuple[float | None, float | None]:
    """Bounds on the share with a fraction and on that of integers, from whole rows: quantiles lie between values."""
    values = past.values[np.isfinite(past.values)]
    if len(values) < _BLOCK_ROWS_MIN:
        return None, None
    whole = float(np.mean(values == np.rint(values)))
    integers = _upper(whole, len(values))
    ever = any(bool((block == np.rint(block)).all()) for block in past.blocks)
    return (
        _upper(0.0, len(values)) if whole == 1 else None,
        integers if integers <= _INTEGERS_MAX and not ever else None,
    )
