"""Rows that stand for "no drift": where they come from, and how more of them are drawn.

A version's reference keeps a sample of whole rows in time order; a file of the model's history does as well. Drawing rows
independently keeps what columns have to do with each other and loses what neighbours in time have; drawing whole days
keeps both within a day. Seeded; no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import DAY_MS, STREAM_COLUMNS, Context, Rows
from schemas.contracts import ColumnReference, Feature, ModelContract, Reference
from schemas.errors import ConfigurationError
from schemas.reference import log_losses, reference_of

_CHUNK = 512
_DAYS_MEAN = 3
#: Event time between rows of a reference that has no times.
SPACING_MS = 60_000


@dataclass(frozen=True, slots=True)
class History:
    """Rows in time order that stand for "no drift". ``spacing_ms``: event time between rows of the whole traffic, of
    which these may be a thinned sample; ``timed``: whether their times are real."""

    rows: Rows
    spacing_ms: float
    timed: bool


def history(context: Context) -> History | None:
    """The reference's sample as rows of the context's stream; None when it has none, or lacks what the stream needs.

    Latency and failures are not part of a reference: on ``predictions`` they are NaN and 0. ``comparison`` has none.
    """
    reference = context.reference
    if reference is None or not reference.sample or context.stream == "comparison":
        return None
    sample = np.array(
        [[math.nan if value is None else value for value in row] for row in reference.sample], float
    )
    n = len(sample)
    columns: dict[str, NDArray[np.float64]] = {
        name: sample[:, at] for at, name in enumerate(reference.columns)
    }
    columns |= {"latency_ms": np.full(n, math.nan), "error": np.zeros(n)}
    if len(reference.sample_score) == n:
        columns["score"] = np.array(reference.sample_score)
        if len(reference.sample_label) == n:
            columns["label"] = np.array(reference.sample_label)
            columns["loss"] = log_losses(columns["score"], columns["label"])
    if any(name not in columns for name in context.columns):
        return None
    values = np.column_stack([columns[name] for name in context.columns])
    timed = len(reference.sample_time_ms) == n
    times = (
        np.array(reference.sample_time_ms, np.int64) if timed else np.arange(n, dtype=np.int64) * SPACING_MS
    )
    span = (reference.to_ms or int(times[-1])) - (reference.from_ms or int(times[0]))
    spacing = span / max(n, reference.rows) if timed and span > 0 else SPACING_MS
    return History(Rows.of(values, times), spacing, timed)


def resampled_rows(source: History, n: int, seed: int) -> Iterator[Rows]:
    """``n`` rows drawn independently and with replacement, evenly spaced in time as the traffic is."""
    rng = np.random.default_rng((seed, 1))
    start = int(source.rows.time_ms[0]) // DAY_MS * DAY_MS
    for first in range(0, n, _CHUNK):
        places = np.arange(first, min(n, first + _CHUNK))
        drawn = rng.integers(0, len(source.rows), len(places))
        times = start + (places * source.spacing_ms).astype(np.int64)
        yield Rows.of(source.rows.values[drawn], times, places.astype(np.uint64))


def resampled_days(source: History, n: int, seed: int) -> Iterator[Rows]:
    """About ``n`` rows: whole days, each followed by the next one of the history with probability 2/3, else by any."""
    rng = np.random.default_rng((seed, 2))
    number = source.rows.time_ms // DAY_MS
    days = np.unique(number)
    cuts = np.append(np.searchsorted(number, days), len(number))
    at, slot, given = int(rng.integers(len(days))), int(days[0]), 0
    while given < n:
        drawn: list[NDArray[np.int64]] = []
        times: list[NDArray[np.int64]] = []
        size = 0
        while size < _CHUNK:
            rows = np.arange(cuts[at], cuts[at + 1])
            drawn.append(rows)
            times.append(source.rows.time_ms[rows] + (slot - int(days[at])) * DAY_MS)
            size += len(rows)
            slot += 1
            # Days that are missing from the history leave no gap: what follows a day is the next one there is.
            at = (at + 1) % len(days) if rng.random() >= 1 / _DAYS_MEAN else int(rng.integers(len(days)))
        identity = np.arange(given, given + size, dtype=np.uint64)
        yield Rows.of(source.rows.values[np.concatenate(drawn)], np.concatenate(times), identity)
        given += size


def in_order(source: History) -> Iterator[Rows]:
    """The rows as they are, in chunks."""
    for first in range(0, len(source.rows), _CHUNK):
        yield source.rows.take(slice(first, first + _CHUNK))


def held_out(context: Context, source: History) -> tuple[Context, History]:
    """A context whose reference is the first half of the history, and the second half. Raises ConfigurationError when
    that cannot be: the first half of a version's sample must be whole rows with times."""
    reference = context.reference
    if reference is None or not source.timed or len(source.rows) < 2 or len(reference.sample) < 2:
        raise ConfigurationError(
            "the reference has no rows with times: train the version again to record them"
        )
    half = len(reference.sample) // 2
    cut = int(reference.sample_time_ms[half])
    sample = np.array(
        [[math.nan if v is None else v for v in row] for row in reference.sample[:half]], np.float64
    )
    features = tuple(_declared(name, column) for name, column in reference.columns.items())
    table = {feature.name: _raw(sample[:, at], feature) for at, feature in enumerate(features)}
    contract = ModelContract(model="history", features=features)
    scores = np.array(reference.sample_score[:half] or (math.nan,) * half, np.float64)
    labels = np.array(reference.sample_label[:half], np.float64) if reference.sample_label else None
    times = np.array(reference.sample_time_ms[:half], np.int64)
    made = reference_of(table, scores, contract, labels=labels, event_ms=times)
    later = source.rows.take(source.rows.time_ms >= cut)
    return replace(context, reference=made), replace(source, rows=later)


def _declared(name: str, column: ColumnReference) -> Feature:
    """The feature whose codes the column counts; its categories' names do not matter to a reference."""
    if not column.shares:
        return Feature(name=name)
    return Feature(
        name=name, kind="categorical", categories=tuple(f"c{at}" for at in range(len(column.shares) - 1))
    )


def _raw(coded: NDArray[np.float64], feature: Feature) -> NDArray[Any]:
    """Inverse of the coding: categories by name, an unknown one as empty text, null as None."""
    if feature.kind == "numeric":
        return coded
    names: list[str | None] = [*feature.categories, "", None]
    places = np.where(np.isnan(coded), len(names) - 1, np.nan_to_num(coded)).astype(np.int64)
    return np.array([names[place] for place in places.tolist()], object)


def unread(reference: Reference | None, context: Context) -> str:
    """Why :func:`history` has no rows, for people."""
    if context.stream == "comparison":
        return "a comparison needs two versions; its promise is by theorem, and is not resampled"
    if reference is None or not reference.sample:
        return "the version's reference has no sample of rows: train it again to record one"
    lacking = [name for name in context.columns if name in STREAM_COLUMNS.get(context.stream, ())]
    return f"the reference's sample lacks {', '.join(lacking) or 'columns'} of stream {context.stream}"
