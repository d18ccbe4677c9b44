"""How many rows until a change is seen, every detector's knob set so that all alarm equally often where nothing changed.

A detector that alarms more often sees sooner, so figures at defaults compare nothing. Here each knob is fitted on streams
without drift until the realised run length is the same, the realised figure is printed beside it, and the delays are
medians over fresh streams that change after ``BEFORE`` rows. Alarms at random, by the clock, and never, are in the same
table: what they reach is what a figure means nothing below.

Two populations: nine independent normals with a category, and real flights with whole rows drawn anew. The oracle is a
CUSUM of likelihood ratios that knows the kind and the size of the change and not the column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from detectors.adapters.river_drift import AdwinSpec, KswinSpec, PageHinkleySpec
from detectors.base import Context
from detectors.joint_shift.mmd import MmdSpec
from detectors.shift.cusum import CusumSpec
from detectors.shift.drift_e import DriftESpec
from detectors.shift.windowed_kinds import CramerVonMisesSpec
from schemas.contracts import Reference
from tests.bench.detectors import headline
from tests.bench.detectors.settings import sample_reference
from tests.bench.detectors.subjects import (
    Calibrated,
    Chance,
    Clockwork,
    Llr,
    Never,
    Ours,
    Player,
    Source,
    Subject,
    calibrated,
    delay,
    logarithmic,
    mean_steps,
    scale_steps,
)
from tests.bench.figures import say, table
from tests.budget import FLIGHT_CATEGORIES, flight_rows, moved_to_edge, reference_from

Floats = NDArray[np.float64]
#: Rows from one stream without drift to an alarm, for every detector alike.
RUN_ROWS = 20_000
BEFORE = 1_000
AFTER = 3_000
COLUMNS = 10
_SHARES = (0.4, 0.3, 0.2, 0.1)
_WINDOW_ROWS = 200
NUMERIC = tuple(range(COLUMNS - 1))


@dataclass(frozen=True, slots=True)
class World:
    """A population: blocks of it without drift, and by name its changes."""

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
        x[:, -1] = rng.choice(4, len(x), p=(0.3, 0.3, 0.2, 0.2))

    shifts = {f"mean {by:g} in {count}": (by, count) for count in (1, 5) for by in (0.3, 0.5, 1.0)}
    changes = {name: shift(*of) for name, of in shifts.items()}
    changes |= {"sd x1.3": scale(1.3), "sd x1.6": scale(1.6), "category": category}
    changes |= {"corr 0.5": bind(0.5), "corr 0.9": bind(0.9), "ramp to 0.5": ramp}
    oracles = {name: mean_steps(by, 0.0) for name, (by, _) in shifts.items()}
    oracles |= {"ramp to 0.5": mean_steps(0.5, 0.0)}
    oracles |= {"sd x1.3": scale_steps(1.3), "sd x1.6": scale_steps(1.6)}
    return World(
        "normals",
        sample_reference(COLUMNS, np.random.default_rng(1), category=True),
        (0,) * (COLUMNS - 1) + (4,),
        lambda rng: _forever(lambda: rows(rng, 500)),
        {name: changed(change) for name, change in changes.items()},
        oracles,
    )


def _forever(block: Callable[[], Floats]) -> Iterator[Floats]:
    while True:
        yield block()


def flights() -> World:
    """Real flights, whole rows drawn anew; columns as ``tests.budget.flight_rows`` has them."""
    everything = flight_rows()
    hour, distance, temp, visib, carrier = 0, 2, 3, 6, 9
    changed: dict[str, Floats] = {}
    for by in (0.3, 0.5):
        moved = moved_to_edge(everything[:, [temp]], (0,), by)(everything[:, [temp]])
        changed[f"temp +{by:g} by rank"] = _with(everything, temp, moved[:, 0])
    rng = np.random.default_rng(4)
    changed["hour +1"] = _with(everything, hour, (everything[:, hour] + 1) % 24)
    changed["distance in km"] = _with(everything, distance, everything[:, distance] * 1.609)
    lost = rng.uniform(size=len(everything)) < 0.1
    changed["visib 10 % null"] = _with(everything, visib, np.where(lost, np.nan, everything[:, visib]))
    recoded = rng.uniform(size=len(everything)) < 0.1
    changed["carrier, 10 % recoded"] = _with(
        everything, carrier, np.where(recoded, 0.0, everything[:, carrier])
    )

    def stream(of: Floats) -> Callable[[np.random.Generator], Floats]:
        def made(rng: np.random.Generator) -> Floats:
            drawn = rng.integers(0, len(everything), BEFORE + AFTER)
            return np.concatenate([everything[drawn[:BEFORE]], of[drawn[BEFORE:]]])

        return made

    chosen = everything[np.random.default_rng(2).integers(0, len(everything), 100_000)]
    return World(
        "flights",
        reference_from(chosen, FLIGHT_CATEGORIES),
        FLIGHT_CATEGORIES,
        lambda rng: _forever(lambda: everything[rng.integers(0, len(everything), 500)]),
        {name: stream(of) for name, of in changed.items()},
        {},
    )


def _with(rows: Floats, at: int, column: Floats) -> Floats:
    out = rows.copy()
    out[:, at] = column
    return out


def subjects(world: World) -> list[Subject]:
    """Everything that needs no knowledge of the change, each with the knobs to calibrate it over."""
    names = tuple(world.reference.columns)
    whole = Context(names, world.categories, "features", world.reference, seed=5)
    numbers = Context(names[:-1], world.categories[:-1], "features", world.reference, seed=5)

    def ours(run: float, joint: bool) -> Player:
        return Ours(DriftESpec(run=max(1, round(run)), rows_min=1, joint=joint), whole)

    return [
        logarithmic("drift-e", lambda k: ours(k, True), (100, 300, 1_000, 3_000), rows=300_000),
        logarithmic("drift-e, no joint bets", lambda k: ours(k, False), (30, 100, 300, 1_000, 3_000), rows=400_000),
        logarithmic("adwin", lambda k: Ours(AdwinSpec(delta=k), numbers, NUMERIC), (0.05, 0.01, 2e-3, 4e-4, 1e-4, 2e-5, 4e-6), rows=60_000, dear=3),
        logarithmic("kswin", lambda k: Ours(KswinSpec(alpha=k), numbers, NUMERIC), (3e-4, 1e-4, 3e-5, 1e-5), rows=12_000, dear=12),
        Subject("page-hinkley", lambda k: Ours(PageHinkleySpec(threshold=k), numbers, NUMERIC), (8.0, 12.0, 18.0, 25.0, 35.0), rows=150_000),
        Subject("cusum", lambda k: Ours(CusumSpec(threshold=k), whole), (5.0, 6.0, 7.0, 8.0, 9.0), rows=500_000),
        logarithmic("cramer-von-mises, windows", lambda k: Ours(CramerVonMisesSpec(alpha=k, effect_min=0, block_ms=_WINDOW_ROWS, rows_min=50), numbers, NUMERIC), (0.1, 0.03, 0.01, 3e-3), rows=60_000),
        Subject("mmd", lambda k: Ours(MmdSpec(threshold=k), whole), (0.3, 0.5, 0.7, 0.85, 1.0), rows=200_000),
        Subject("alarms at random", Chance, (), rows=0),
        Subject("alarms by the clock", Clockwork, (), rows=0),
        Subject("never alarms", lambda _: Never(), (), rows=0),
    ]  # fmt: skip


def fitted(subject: Subject, world: World) -> Calibrated:
    """The subject at ``RUN_ROWS``; what has no grid takes the run length itself."""
    if subject.grid:
        return calibrated(subject, world.source, RUN_ROWS)
    run = 0.0 if subject.name == "never alarms" else float(RUN_ROWS)
    return Calibrated(subject, subject.make(float(RUN_ROWS)), run, run or float("inf"), 0)


def one_world(world: World, repeats: int) -> str:
    """The table of one population."""
    rows: list[list[object]] = []
    for subject in subjects(world):
        found = fitted(subject, world)
        say(
            f"delay.{world.name}.{_slug(subject.name)}.run-length",
            min(found.realised, 1e12),
            "rows",
            knob=found.knob,
            alarms=found.alarms,
        )
        row: list[object] = [
            subject.name,
            f"{found.realised:.0f} ({found.alarms})" if subject.grid else f"{found.realised:.0f}",
        ]
        enough = max(8, repeats // subject.dear)
        row += [_cell(world, subject.name, found.player, name, enough) for name in world.changes]
        rows.append(row)
    if world.oracles:
        rows.append(_oracle_row(world, repeats))
    title = f"Delay in rows, {world.name}, {RUN_ROWS:,} rows between alarms without drift, {repeats} streams"
    return table(title, ["detector", "realised run (alarms)", *world.changes], rows)


def _oracle_row(world: World, repeats: int) -> list[object]:
    row: list[object] = ["oracle CUSUM", "each"]
    for name in world.changes:
        if name not in world.oracles:
            row.append("")
            continue
        subject = Subject(
            name, partial(_oracle, world.oracles[name]), (3.0, 4.0, 5.0, 6.0, 7.0), rows=300_000
        )
        row.append(_cell(world, "oracle", fitted(subject, world).player, name, repeats))
    return row


def _oracle(steps: Callable[[Floats], Floats], threshold: float) -> Player:
    """Over the numeric columns."""
    return Llr(lambda x: steps(x[:, :-1]), threshold)


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
