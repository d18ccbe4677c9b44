"""How far from the limit: ``drift-e`` at a promised run of a million rows beside the CUSUM that knows the shift.

Both know nothing of the column. The oracle tests the shift itself against the edge of the same zone, over ten columns and
two directions, and is calibrated by simulation in the same run to the same million rows, twice: with all columns at the
edge of the zone, where ``drift-e`` promises it (the same promise), and at no shift at all (an oracle that also knows that
nothing moves within the zone). Its run length at a million is read off a straight line: the logarithm of a CUSUM's run
length is linear in its threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from detectors.base import Context
from detectors.shift.drift_e import DriftESpec
from schemas.contracts import ColumnReference, Reference
from tests.bench.detectors.settings import sample_reference
from tests.bench.detectors.subjects import LlrTrace, Ours, Passage, Player, delay, mean_steps, run_length
from tests.bench.figures import say, table

Floats = NDArray[np.float64]
ZONE = 0.07
RUN = 1_000_000
SHIFTS = (0.3, 0.5, 1.0)
COLUMNS = 10
BEFORE = 1_000
AFTER = 2_500
GOAL = 1.25
_ROWS = 250_000
#: A reference known exactly, and one as a release has it.
REFERENCES = {"exact": 10**8, "100,000 rows": 10**5}


def threshold(shift: float, at: float) -> float:
    """Of the oracle for ``shift``, so that ten columns at mean ``at`` alarm once in ``RUN`` rows."""

    def source(rng: np.random.Generator) -> Iterator[Floats]:
        while True:
            yield rng.normal(size=(200, COLUMNS)) + at

    points: list[tuple[float, float, float]] = []
    for level in np.arange(3.0, 30.0, 0.75):
        length, alarms = run_length(Passage(LlrTrace(mean_steps(shift, ZONE)), float(level)), source, _ROWS)
        if alarms < 50:
            break
        # Short runs are no longer exponential, rare alarms no longer counted well.
        if length > 200:
            points.append((float(level), float(np.log(length)), float(np.sqrt(alarms))))
    x, y, weight = (np.array(part) for part in zip(*points, strict=True))
    slope, offset = np.polyfit(x, y, 1, w=weight)
    return float((np.log(RUN) - offset) / slope)


def streams(shift: float, moved: int) -> Callable[[np.random.Generator], Floats]:
    """Unit normals of which the first ``moved`` rise by ``shift`` after ``BEFORE`` rows."""

    def made(rng: np.random.Generator) -> Floats:
        out = rng.normal(size=(BEFORE + AFTER, COLUMNS))
        out[BEFORE:, :moved] += shift
        return out

    return made


def candidates() -> list[tuple[str, Player]]:
    """``drift-e`` as it comes and in variants, at the promised run."""
    found: list[tuple[str, Player]] = []
    for title, rows in REFERENCES.items():
        sampled = sample_reference(COLUMNS, np.random.default_rng(1))
        columns = {
            name: ColumnReference(rows=rows, quantiles=column.quantiles)
            for name, column in sampled.columns.items()
        }
        reference = Reference(columns=columns, rows=rows, sample=sampled.sample)
        context = Context(tuple(columns), (0,) * COLUMNS, "features", reference)
        for cell in (4, 2, 1):
            name = f"drift-e, {title}, cells of {cell}"
            found.append((name, Ours(DriftESpec(run=RUN, cell_rows=cell), context)))
    return found


def run(repeats: int) -> str:
    """The table as Markdown: medians, and ratios to both oracles."""
    edge, still = ({shift: _oracle(shift, at, repeats) for shift in SHIFTS} for at in (ZONE, 0.0))
    rows: list[list[object]] = [
        ["oracle, calibrated at the zone's edge", *(f"{edge[s]:.0f}" for s in SHIFTS), "", "", ""],
        ["oracle, calibrated at no shift", *(f"{still[s]:.0f}" for s in SHIFTS), "", "", ""],
    ]
    for name, player in candidates():
        row: list[object] = [name]
        for moved in (1, 5):
            for shift in SHIFTS:
                found = delay(player, streams(shift, moved), BEFORE, repeats)
                median = float("nan") if found.median is None else found.median
                say(
                    f"headline.{name.replace(', ', '.').replace(' ', '-')}.{shift:g}-in-{moved}", median, "rows", "oracle at the edge",
                    median / edge[shift], ratio_at_no_shift=round(median / still[shift], 3), mean=round(found.mean, 1), early=found.early,
                )  # fmt: skip
                row.append(f"{median:.0f} ({median / edge[shift]:.2f}, {median / still[shift]:.2f})")
        rows.append(row)
    head = ["median delay, rows (ratio to the oracle at the edge, at no shift)"]
    head += [f"{shift:g} sd in {moved} of 10" for moved in (1, 5) for shift in SHIFTS]
    title = f"Beside the oracle, one column moved, promised run {RUN:,} rows; goal {GOAL} with one moved, below 1 with five"
    return table(title, head, rows)


def _oracle(shift: float, at: float, repeats: int) -> float:
    level = threshold(shift, at)
    found = delay(Passage(LlrTrace(mean_steps(shift, ZONE)), level), streams(shift, 1), BEFORE, repeats)
    median = float("nan") if found.median is None else found.median
    say(
        f"headline.oracle.at-{at:g}.{shift:g}-in-1",
        median,
        "rows",
        threshold=round(level, 3),
        mean=round(found.mean, 1),
    )
    return median
