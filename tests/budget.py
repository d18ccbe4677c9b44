"""Streams without drift, and how often a detector pages on them: what the false-page budget is tested and measured by.

Flights are the real ones: whole rows drawn with replacement keep the dependence between columns and nothing else. To
stand at the edge of what counts as no drift, numeric columns are moved by the zone on the normal-score scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from deploy.demo.flights import CALENDAR, WEATHER, load_flights
from detectors.base import DAY_MS, Context, Detector, Rows, Spec
from schemas.bins import Binning
from schemas.contracts import ColumnReference, Reference
from schemas.verdicts import State

Floats = NDArray[np.float64]
Mover = Callable[[Floats], Floats]
#: Of ``flight_rows``: nine numeric columns and the carrier.
FLIGHT_CATEGORIES = (0,) * 9 + (17,)


@cache
def flight_rows() -> Floats:
    """The year's flights, numeric columns and the carrier as a code; shape (n, 10)."""
    flights = load_flights()
    columns = [np.asarray(flights.features[name], np.float64) for name in (*CALENDAR, *WEATHER)]
    _, carrier = np.unique(flights.features["carrier"].astype("U"), return_inverse=True)
    return np.column_stack([*columns, carrier.astype(np.float64)])


@cache
def flight_days() -> NDArray[np.int64]:
    """Day of the year of each of ``flight_rows``, counted from its first."""
    days: NDArray[np.int64] = load_flights().departs_ms // DAY_MS
    return days - days.min()


def flight_reference(first_day: int, days: int) -> Reference:
    """The reference of consecutive days, with the bins of each day."""
    day = flight_days()
    chosen = (day >= first_day) & (day < first_day + days)
    rows, of_row = flight_rows()[chosen], day[chosen]
    reference = reference_from(rows, FLIGHT_CATEGORIES)
    bins = {}
    for at, (name, column) in enumerate(reference.columns.items()):
        binning = Binning(column)
        bins[name] = tuple(
            tuple(int(n) for n in binning.counts(rows[of_row == value, at])) for value in np.unique(of_row)
        )
    return reference.model_copy(update={"bins": bins})


@cache
def mixed_rows(width: int) -> Floats:
    """``width`` columns made of the flights' ten: each a random mix of three of their normal scores."""
    rows = flight_rows()
    rng = np.random.default_rng(width)
    order = rows.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    scores = ndtri((order + 0.5) / len(rows))
    chosen = rng.permutation(len(rows))[: 100_000 if width <= 100 else 5_000]
    out = np.empty((len(chosen), width))
    for at in range(width):
        columns = rng.choice(scores.shape[1], 3, replace=False)
        out[:, at] = scores[chosen][:, columns] @ rng.normal(size=3)
    return out


def population(width: int) -> Floats:
    """Rows to draw streams from: the flights themselves for ten columns, mixes of them beyond."""
    return flight_rows() if width == 10 else mixed_rows(width)


def reference_from(rows: Floats, categories: tuple[int, ...], claimed_rows: int | None = None) -> Reference:
    """The reference of a sample. ``claimed_rows``: pretend that it had so many (a mutant's lie)."""
    columns = {}
    for at, count in enumerate(categories):
        known = rows[np.isfinite(rows[:, at]), at]
        size, missing = claimed_rows or len(known), 1 - len(known) / len(rows)
        if count:
            shares = np.bincount(known.astype(np.int64), minlength=count) / len(known)
            columns[f"x{at}"] = ColumnReference(rows=size, missing=missing, shares=tuple(shares.tolist()))
        else:
            quantiles = np.quantile(known, np.linspace(0, 1, 101))
            columns[f"x{at}"] = ColumnReference(
                rows=size, missing=missing, quantiles=tuple(quantiles.tolist())
            )
    sample = tuple(tuple(None if not np.isfinite(v) else v for v in row) for row in rows[:2_000].tolist())
    return Reference(columns=columns, rows=len(rows), sample=sample)


def moved_to_edge(everything: Floats, categories: tuple[int, ...], zone: float) -> Mover:
    """Moves numeric columns up by ``zone`` on the normal-score scale of the whole population."""
    grids = [np.sort(everything[np.isfinite(everything[:, at]), at]) for at in range(len(categories))]

    def move(rows: Floats) -> Floats:
        out = rows.copy()
        for at, (grid, count) in enumerate(zip(grids, categories, strict=True)):
            if count:
                continue
            low = np.searchsorted(grid, rows[:, at], "left")
            high = np.searchsorted(grid, rows[:, at], "right")
            # Ties are spread over the ranks they hold, evenly by position, so that the move is not rounded away.
            place = (low + (high - low) * (np.arange(len(rows)) % 97 + 0.5) / 97) / len(grid)
            rank = ndtr(ndtri(np.clip(place, 1e-9, 1 - 1e-9)) + zone)
            moved = grid[np.minimum((rank * len(grid)).astype(np.int64), len(grid) - 1)]
            out[:, at] = np.where(np.isfinite(rows[:, at]), moved, rows[:, at])
        return out

    return move


def context_of(reference: Reference, categories: tuple[int, ...]) -> Context:
    """A context that reads all columns of the reference."""
    return Context(tuple(reference.columns), categories, "features", reference)


def drawn(rows: Floats, count: int, rng: np.random.Generator, block: int = 4_000) -> Iterator[Floats]:
    """``count`` whole rows drawn with replacement, in blocks."""
    for start in range(0, count, block):
        yield rows[rng.integers(0, len(rows), min(block, count - start))]


def pages(detector: Detector, blocks: Iterator[Floats], row_ms: int = 1) -> int | None:
    """The row at which the detector first said drift; None when it never did. One row each ``row_ms``."""
    at = 0
    for block in blocks:
        times = (at + np.arange(len(block), dtype=np.int64)) * row_ms
        for change in detector.update(Rows.of(block, times)) + detector.advance(int(times[-1])):
            if change.verdict.state is State.DRIFT:
                return at + max(0, change.index)
        at += len(block)
    return None


def share_that_pages(
    spec: Spec,
    everything: Floats,
    categories: tuple[int, ...],
    *,
    streams: int,
    rows: int,
    reference_rows: int,
    move: Mover | None = None,
    claimed_rows: int | None = None,
    references: int = 20,
    seed: int = 0,
    block: int = 4_000,
    stream_from: Floats | None = None,
) -> float:
    """Share of ``streams`` of ``rows`` rows each with a page, over ``references`` references drawn anew.

    ``stream_from``: rows that streams are drawn from, where they are not those of the references.
    """
    hits = 0
    detector: Detector | None = None
    for stream in range(streams):
        rng = np.random.default_rng((seed, stream))
        if stream % max(1, streams // references) == 0 or detector is None:
            chosen = everything[
                np.random.default_rng((seed, 1, stream)).integers(0, len(everything), reference_rows)
            ]
            reference = reference_from(chosen, categories, claimed_rows)
            detector = spec.build(context_of(reference, categories))
        detector.reset()
        blocks = drawn(everything if stream_from is None else stream_from, rows, rng, block)
        hits += pages(detector, (move(b) for b in blocks) if move else blocks) is not None
    return hits / streams
