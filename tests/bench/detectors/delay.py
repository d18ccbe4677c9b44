"""How many rows until a change is seen, every detector's knob set so that all alarm equally often where nothing changed.

A detector that alarms more often sees sooner, so figures at defaults compare nothing. Here each detector's score is
followed once over streams without drift, its threshold is read off for the run length that all share, the run length is
counted again on other streams and printed with its interval, and the delays are medians over fresh streams that change
after ``BEFORE`` rows. Alarms at random, by the clock, and never, are in the same table: what they reach is what a figure
means nothing below.

Two populations: nine independent normals with a category, and real flights with whole rows drawn anew. The oracle is a
CUSUM of likelihood ratios made for each change: of normals it knows the kind and the size and not the column (nor the
two columns of a correlation, nor that a ramp is one); of a category and of flights it knows the column and both
distributions, value by value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.adapters.river_drift import AdwinSpec, KswinSpec, PageHinkleySpec
from detectors.base import Context
from detectors.joint_shift.mmd import MmdSpec
from detectors.shift.cusum import CusumSpec
from detectors.shift.drift_e import DriftESpec
from detectors.shift.windowed_kinds import CramerVonMisesSpec
from detectors.tools.calibrate import garwood
from schemas.contracts import Reference
from tests.bench.detectors import headline
from tests.bench.detectors.settings import sample_reference
from tests.bench.detectors.subjects import (
    Chance,
    Clockwork,
    Fitted,
    LlrTrace,
    Never,
    Player,
    Source,
    Trace,
    delay,
    fitted,
    mean_steps,
    pair_steps,
    scale_steps,
    value_steps,
)
from tests.bench.detectors.traces import (
    AdwinTrace,
    CusumTrace,
    CvmTrace,
    DriftETrace,
    KswinTrace,
    MovingTrace,
    PageHinkleyTrace,
    Whole,
    WindowTrace,
)
from tests.bench.figures import say, table
from tests.budget import FLIGHT_CATEGORIES, flight_rows, moved_to_edge, reference_from

Floats = NDArray[np.float64]
#: Rows from one stream without drift to an alarm, for every detector alike.
RUN_ROWS = 2_000
BEFORE = 500
#: Streams a cell that the rows to fit on are stated for: more streams, as many times more rows.
_REPEATS = 50
AFTER = 2_000
COLUMNS = 10
_SHARES = (0.4, 0.3, 0.2, 0.1)
_SHARES_MOVED = (0.3, 0.3, 0.2, 0.2)
_WINDOW_ROWS = 200
NUMERIC = tuple(range(COLUMNS - 1))


@dataclass(frozen=True, slots=True)
class World:
    """A population: blocks of it without drift, and by name its changes; ``oracles``: whole rows to likelihood ratios."""

    name: str
    reference: Reference
    categories: tuple[int, ...]
    source: Source
    changes: Mapping[str, Callable[[np.random.Generator], Floats]]
    oracles: Mapping[str, Callable[[Floats], Floats]]


def normals() -> World:
    """Nine independent unit normals, and four categories."""

    def rows(rng: np.random.Generator, count: int) -> Floats:
        out = rng.normal(size=(count, COLUMNS))
        out[:, -1] = rng.choice(4, count, p=_SHARES)
        return out

    def changed(
        change: Callable[[Floats, np.random.Generator], None],
    ) -> Callable[[np.random.Generator], Floats]:
        def stream(rng: np.random.Generator) -> Floats:
            out = rows(rng, BEFORE + AFTER)
            change(out[BEFORE:], rng)
            return out

        return stream

    def shift(by: float, count: int) -> Callable[[Floats, np.random.Generator], None]:
        def change(x: Floats, _: np.random.Generator) -> None:
            x[:, :count] += by

        return change

    def scale(by: float) -> Callable[[Floats, np.random.Generator], None]:
        def change(x: Floats, _: np.random.Generator) -> None:
            x[:, 0] *= by

        return change

    def bind(rho: float) -> Callable[[Floats, np.random.Generator], None]:
        def change(x: Floats, _: np.random.Generator) -> None:
            x[:, 0] = rho * x[:, 1] + np.sqrt(1 - rho * rho) * x[:, 0]

        return change

    def ramp(x: Floats, _: np.random.Generator) -> None:
        x[:, 0] += 0.5 * np.minimum(np.arange(len(x)) / 1_000, 1.0)

    def category(x: Floats, rng: np.random.Generator) -> None:
        x[:, -1] = rng.choice(4, len(x), p=_SHARES_MOVED)

    shifts = {f"mean {by:g} in {count}": (by, count) for count in (1, 5) for by in (0.3, 0.5, 1.0)}
    changes = {name: shift(*of) for name, of in shifts.items()}
    changes |= {"sd x1.3": scale(1.3), "sd x1.6": scale(1.6), "category": category}
    changes |= {"corr 0.5": bind(0.5), "corr 0.9": bind(0.9), "ramp to 0.5": ramp}
    of_numbers = {name: mean_steps(by, 0.0) for name, (by, _) in shifts.items()}
    of_numbers |= {"sd x1.3": scale_steps(1.3), "sd x1.6": scale_steps(1.6)}
    of_numbers |= {
        "corr 0.5": pair_steps(0.5),
        "corr 0.9": pair_steps(0.9),
        "ramp to 0.5": mean_steps(0.5, 0.0),
    }
    codes = np.log(np.array(_SHARES_MOVED) / _SHARES)
    oracles = {name: _numeric(steps) for name, steps in of_numbers.items()}
    oracles["category"] = lambda x: codes[x[:, -1:].astype(np.int64)]
    return World(
        "normals",
        sample_reference(COLUMNS, np.random.default_rng(1), category=True),
        (0,) * (COLUMNS - 1) + (4,),
        lambda rng: _forever(lambda: rows(rng, 500)),
        {name: changed(change) for name, change in changes.items()},
        oracles,
    )


def _numeric(steps: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    return lambda x: steps(x[:, :-1])


def _forever(block: Callable[[], Floats]) -> Iterator[Floats]:
    while True:
        yield block()


def flights() -> World:
    """Real flights, whole rows drawn anew; columns as ``tests.budget.flight_rows`` has them."""
    everything = flight_rows()
    hour, distance, temp, visib, carrier = 0, 2, 3, 6, 9
    changed: dict[str, tuple[int, Floats]] = {}
    for by in (0.3, 0.5, 1.0):
        moved = moved_to_edge(everything[:, [temp]], (0,), by)(everything[:, [temp]])
        changed[f"temp +{by:g} by rank"] = temp, moved[:, 0]
    middle = float(np.nanmedian(everything[:, temp]))
    changed["temp x1.5 about its middle"] = temp, middle + 1.5 * (everything[:, temp] - middle)
    rng = np.random.default_rng(4)
    changed["hour +1"] = hour, (everything[:, hour] + 1) % 24
    changed["distance in km"] = distance, everything[:, distance] * 1.609
    lost = rng.uniform(size=len(everything)) < 0.1
    changed["visib 10 % null"] = visib, np.where(lost, np.nan, everything[:, visib])
    recoded = rng.uniform(size=len(everything)) < 0.1
    changed["carrier, 10 % recoded"] = carrier, np.where(recoded, 0.0, everything[:, carrier])

    def stream(at: int, column: Floats, ramp: int = 0) -> Callable[[np.random.Generator], Floats]:
        """Streams whose column ``at`` is drawn from ``column``; with ``ramp``, ever more of it over so many rows."""

        def made(rng: np.random.Generator) -> Floats:
            drawn = rng.integers(0, len(everything), BEFORE + AFTER)
            out: Floats = everything[drawn]
            share = np.minimum(np.arange(AFTER) / ramp, 1.0) if ramp else 1.0
            new = rng.uniform(size=AFTER) < share
            out[BEFORE:, at] = np.where(new, column[drawn[BEFORE:]], out[BEFORE:, at])
            return out

        return made

    def oracle(at: int, column: Floats) -> Callable[[Floats], Floats]:
        steps = value_steps(everything[:, at], column)
        return lambda x: steps(x[:, at : at + 1])

    changes = {name: stream(*of) for name, of in changed.items()}
    oracles = {name: oracle(*of) for name, of in changed.items()}
    gradual = "temp +0.5 by rank"
    changes["the same over 1,000 rows"] = stream(*changed[gradual], ramp=1_000)
    oracles["the same over 1,000 rows"] = oracles[gradual]
    bound = everything[rng.permutation(len(everything))]
    changes["temp torn from the rest"] = stream(temp, bound[:, temp])
    oracles["temp torn from the rest"] = _torn(everything, bound, temp)

    chosen = everything[np.random.default_rng(2).integers(0, len(everything), 100_000)]
    return World(
        "flights",
        reference_from(chosen, FLIGHT_CATEGORIES),
        FLIGHT_CATEGORIES,
        lambda rng: _forever(lambda: everything[rng.integers(0, len(everything), 500)]),
        changes,
        oracles,
    )


def _torn(before: Floats, other: Floats, at: int) -> Callable[[Floats], Floats]:
    """Of a column that keeps its distribution and loses its dependence: by cells of it and the column it depends on most."""
    kept = np.isfinite(before[:, :-1]).all(axis=1)
    ranks = before[kept, :-1].argsort(axis=0).argsort(axis=0)
    alike = np.abs(np.corrcoef(ranks.T)[at])
    alike[at] = 0
    with_ = int(alike.argmax())
    cuts = [
        np.unique(np.nanquantile(before[:, column], np.linspace(0, 1, 13)[1:-1])) for column in (at, with_)
    ]

    def cells(one: Floats, two: Floats) -> Floats:
        codes = [
            np.searchsorted(cut, np.nan_to_num(x), "right") for cut, x in zip(cuts, (one, two), strict=True)
        ]
        return np.asarray(codes[0] * (len(cuts[1]) + 1) + codes[1], np.float64)

    steps = value_steps(cells(before[:, at], before[:, with_]), cells(other[:, at], before[:, with_]))

    def of_rows(x: Floats) -> Floats:
        return steps(cells(x[:, at], x[:, with_])[:, None])

    return of_rows


@dataclass(frozen=True, slots=True)
class Subject:
    """One row of a table. ``rows``: to fit its threshold on, at 50 streams a cell; ``dear``: fewer streams by this factor."""

    name: str
    trace: Callable[[], Trace]
    rows: int = 250_000
    dear: int = 1


def subjects(world: World) -> list[Subject]:
    """Everything that needs no knowledge of the change."""
    names = tuple(world.reference.columns)
    whole = Context(names, world.categories, "features", world.reference, seed=5)
    numbers = Context(names[:-1], world.categories[:-1], "features", world.reference, seed=5)
    windows = CramerVonMisesSpec(effect_min=0, block_ms=_WINDOW_ROWS, rows_min=50)
    run = DriftESpec(run=RUN_ROWS, rows_min=1)
    without = run.model_copy(update={"joint": False})
    return [
        Subject("drift-e", lambda: Whole(DriftETrace(run, whole))),
        Subject("drift-e, no joint bets", lambda: Whole(DriftETrace(without, whole))),
        Subject("adwin", lambda: AdwinTrace(AdwinSpec(), world.reference, numbers.columns), 80_000, 3),
        Subject("kswin", lambda: KswinTrace(KswinSpec(), len(numbers.columns), 5), 40_000, 5),
        Subject("page-hinkley", lambda: PageHinkleyTrace(PageHinkleySpec(), world.reference, numbers.columns), 80_000, 3),
        Subject("cusum", lambda: Whole(CusumTrace(CusumSpec(), whole))),
        Subject("CVM, windows of 200 rows", lambda: Whole(WindowTrace(windows, numbers), NUMERIC), 60_000, 5),
        Subject("CVM, a sliding window of 100", lambda: CvmTrace(100, world.reference, numbers.columns), 120_000, 2),
        Subject("mmd", lambda: Whole(MovingTrace(MmdSpec(), whole))),
    ]  # fmt: skip


def one_world(world: World, repeats: int) -> str:
    """The table of one population."""
    rows: list[list[object]] = []
    for subject in subjects(world):
        found = fitted(subject.trace(), world.source, RUN_ROWS, subject.rows * repeats // _REPEATS)
        _say_run(world, subject.name, found)
        enough = max(8, repeats // subject.dear)
        cells = [_cell(world, subject.name, found.player, name, enough) for name in world.changes]
        rows.append([subject.name, _run(found), enough, *cells])
    rows.append(_oracle_row(world, repeats))
    controls: dict[str, tuple[Player, object]] = {
        "alarms at random": (Chance(RUN_ROWS), f"{RUN_ROWS}"),
        "alarms by the clock": (Clockwork(RUN_ROWS), f"{RUN_ROWS}"),
        "never alarms": (Never(), "endless"),
    }
    for control, (player, run) in controls.items():
        cells = [_cell(world, control, player, name, 4 * repeats) for name in world.changes]
        rows.append([control, run, 4 * repeats, *cells])
    title = f"Delay in rows, {world.name}, {RUN_ROWS:,} rows between alarms without drift"
    return table(title, ["detector", "realised run (95 %)", "streams", *world.changes], rows)


def _oracle_row(world: World, repeats: int) -> list[object]:
    """Each change has an oracle of its own; the realised run is the shortest and the longest of those that had one."""
    cells, runs = [], []
    for name in world.changes:
        found = fitted(LlrTrace(world.oracles[name]), world.source, RUN_ROWS, 250_000 * repeats // _REPEATS)
        _say_run(world, f"oracle of {name}", found)
        runs += [found.realised] if found.alarms else []
        cells.append(_cell(world, "oracle", found.player, name, repeats))
    return ["oracle CUSUM", f"{min(runs):.0f} to {max(runs):.0f}", repeats, *cells]


def _run(found: Fitted) -> str:
    """The realised run length with Garwood's interval."""
    low, high = garwood(found.alarms)
    read = found.realised * found.alarms
    return f"{found.realised:.0f} ({read / high:.0f} to {read / max(low, 1e-9):.0f})"


def _say_run(world: World, subject: str, found: Fitted) -> None:
    say(
        f"delay.{world.name}.{_slug(subject)}.run-length", found.realised, "rows", "wanted", found.realised / RUN_ROWS,
        threshold=round(found.threshold, 6), alarms=found.alarms,
    )  # fmt: skip


def _cell(world: World, subject: str, player: Player, name: str, repeats: int) -> str:
    found = delay(player, world.changes[name], BEFORE, repeats)
    say(
        f"delay.{world.name}.{_slug(subject)}.{_slug(name)}", AFTER if found.median is None else found.median, "rows",
        mean=round(found.mean, 1), seen=found.seen, streams=found.streams, early=found.early,
    )  # fmt: skip
    return f">{AFTER}" if found.median is None else f"{found.median:.0f}"


def _slug(name: str) -> str:
    return name.replace(",", "").replace("%", "pc").replace(" ", "-")


def run(repeats: int, quick: bool) -> str:
    """All tables as Markdown. ``quick``: the comparison with the oracle only."""
    parts = [headline.run(repeats if quick else 4 * repeats)]
    if not quick:
        parts += [one_world(made(), repeats) for made in (normals, flights)]
    return "\n".join(parts)
