"""The false-page budget at length: how many of a thousand streams without drift page within half of the promised run.

Streams are whole rows of the real flights, drawn with replacement; a run length is a bound on the mean time to a page, so
by Markov's inequality at most half of the streams may page within half of it. Settings:

    resampled  references are samples themselves, nothing moved
    edge       every numeric column moved by the whole zone, the reference known exactly, no joint bets; one column so
               moved, with them; and all together with them, which their null (each MADE column within its zone) excludes
    ordered    flights in time order: the first 30 days of 60 against the next 30, from every starting day

The last holds for ``drift-e-blocks`` only; ``drift-e`` by rows is beside it to show why it must not page on such rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import betaincinv

from deploy.demo.flights import load_flights
from detectors.base import DAY_MS, Context, Rows
from detectors.shift.drift_e import DriftESpec
from detectors.shift.drift_e_blocks import DriftEBlocksSpec
from schemas.contracts import FalsePages
from schemas.verdicts import State
from tests.bench.figures import say, table
from tests.budget import (
    FLIGHT_CATEGORIES,
    context_of,
    flight_days,
    flight_reference,
    flight_rows,
    mixed_rows,
    moved_to_edge,
    population,
    reference_from,
    share_that_pages,
)

#: Columns and promised rows to a page, cheapest first.
RUNS = (
    (10, 1_000), (10, 10_000), (100, 1_000), (100, 10_000), (10, 100_000), (1_000, 1_000), (100, 100_000), (1_000, 10_000)
)  # fmt: skip
EDGE_RUNS = (1_000, 10_000, 100_000)
BOUND = 0.5
ZONE = 0.07
REFERENCE_ROWS = 5_000
#: A claim that the reference is the truth.
EXACT = 10**9
DAYS = 60
HALF_DAYS = DAYS // 2
_PLAYED_ROWS = 2_000


def resampled(streams: int, runs: Sequence[tuple[int, int]] = RUNS) -> list[list[object]]:
    """Rows of the table: nothing moved."""
    out: list[list[object]] = []
    for width, run in runs:
        categories = FLIGHT_CATEGORIES if width == 10 else (0,) * width
        share = share_that_pages(
            DriftESpec(run=run, rows_min=1), population(width), categories, streams=streams, rows=run // 2,
            reference_rows=REFERENCE_ROWS, references=20 if width < 1_000 else 5, block=500,
        )  # fmt: skip
        out.append(_row("resampled", width, run, streams, share))
    return out


def at_edge(streams: int, runs: Sequence[int] = EDGE_RUNS) -> list[list[object]]:
    """Rows of the table: ten dependent columns, all or one of them moved by the whole zone, the reference exact."""
    everything = mixed_rows(10)
    moved = moved_to_edge(everything, (0,) * 10, ZONE)(everything)
    one = everything.copy()
    one[:, 0] = moved[:, 0]
    out: list[list[object]] = []
    for setting, rows, joint in (
        ("edge", moved, False),
        ("edge of one column, joint bets", one, True),
        ("all up together, joint bets", moved, True),
    ):
        for run in runs:
            share = share_that_pages(
                DriftESpec(run=run, rows_min=1, joint=joint), everything, (0,) * 10, streams=streams, rows=run // 2,
                reference_rows=len(everything), claimed_rows=EXACT, references=1, block=500, stream_from=rows,
            )  # fmt: skip
            out.append(_row(setting, 10, run, streams, share))
    return out


def _row(setting: str, width: int, run: int, streams: int, share: float) -> list[object]:
    figure = f"budget.{setting.replace(', ', '.').replace(' ', '-')}.{width}x{run}.pages"
    say(
        figure, share, "share of streams", "bound", share / BOUND, at_most=round(at_most(share, streams), 4), streams=streams, rows=run // 2
    )  # fmt: skip
    return [setting, width, run, streams, run // 2, share, at_most(share, streams), BOUND]


def at_most(share: float, streams: int) -> float:
    """Upper end of the exact 95 % interval of the share (Clopper and Pearson 1934)."""
    hits = round(share * streams)
    return 1.0 if hits == streams else float(betaincinv(hits + 1, streams - hits, 0.975))


def in_time_order(step_days: int) -> list[list[object]]:
    """Rows of the second table: pages of the held-out days, from every ``step_days``-th starting day."""
    budget = FalsePages(max=1, per=HALF_DAYS * DAY_MS)
    starts = range(0, int(flight_days().max()) + 2 - DAYS, step_days)
    alarms = by_rows = clean = clean_by_rows = 0
    verified_ms = 0.0
    for start in starts:
        reference = flight_reference(start, DAYS)
        context = Context(tuple(reference.columns), (), "features", reference, false_pages=budget)
        found = DriftEBlocksSpec().standing(context)
        alarms += found.alarms
        clean += found.alarms == 0
        verified_ms += found.verified_ms
        drifts = _pages_by_rows(start)
        by_rows += drifts
        clean_by_rows += drifts == 0
    allowed = verified_ms / (HALF_DAYS * DAY_MS)
    out: list[list[object]] = []
    for name, count, without in (
        ("drift-e-blocks", alarms, clean), ("drift-e, by rows", by_rows, clean_by_rows)
    ):  # fmt: skip
        say(
            f"budget.ordered.{name.replace(', ', '.').replace(' ', '-')}.pages", count, "pages", "allowed", count / allowed,
            starts=len(starts), starts_without=without, allowed=allowed,
        )  # fmt: skip
        out.append([name, len(starts), verified_ms / DAY_MS, allowed, count, without])
    return out


def _pages_by_rows(start: int) -> int:
    """Drifts that ``drift-e`` says over the second thirty days against the first, at one page in thirty days."""
    day = flight_days()
    past = (day >= start) & (day < start + HALF_DAYS)
    now = (day >= start + HALF_DAYS) & (day < start + DAYS)
    detector = DriftESpec(run=HALF_DAYS * DAY_MS).build(
        context_of(reference_from(flight_rows()[past], FLIGHT_CATEGORIES), FLIGHT_CATEGORIES)
    )
    values, times = flight_rows()[now], load_flights().departs_ms[now]
    order = np.argsort(times, kind="stable")
    drifts = 0
    for at in range(0, len(order), _PLAYED_ROWS):
        chosen = order[at : at + _PLAYED_ROWS]
        changes = detector.update(Rows.of(values[chosen], times[chosen]))
        drifts += sum(change.verdict.state is State.DRIFT for change in changes)
    return drifts


def run(streams: int, quick: bool) -> str:
    """All settings; the tables as Markdown. ``quick``: only runs of up to 10,000 rows, up to 100 columns."""
    rows = resampled(streams, RUNS[:4] if quick else RUNS)
    rows += at_edge(streams, EDGE_RUNS[:2] if quick else EDGE_RUNS)
    held = in_time_order(30 if quick else 1)
    head = [
        "setting",
        "columns",
        "promised run",
        "streams",
        "rows each",
        "share that pages",
        "at most (95 %)",
        "bound",
    ]
    ordered = ["detector", "starting days", "days held out", "pages allowed", "pages", "starts without"]
    return (
        table("False pages on streams without drift", head, rows)
        + "\n"
        + table("False pages on held-out flights in time order", ordered, held)
    )
