"""What a row costs: every kind in blocks of 1, 100 and 2,000, beside river's and alibi-detect's own loops in the same run.

Processor time of one core, ten columns (more for the kinds that read many), rows of normals at 50,000 a day of event
time, ``update`` and ``advance`` as the service calls them, after a warm-up; closing a block of time is stated by itself.
Of several rounds the fastest counts: other people's load can only slow one down.
"""

from __future__ import annotations

import time
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from detectors.base import DAY_MS, Context, Detector, Spec, Stream
from detectors.registry import KINDS, spec_class
from schemas.contracts import DEFAULT_DETECTORS
from tests.bench.detectors import peers
from tests.bench.detectors.settings import SAMPLE_ROWS, Setting, setting, spec_of
from tests.bench.figures import say, table

Floats = NDArray[np.float64]
BLOCKS = (1, 100, 2_000)
_ROUNDS = 4
_ROUND_S = 0.06
#: Kinds dearer than this a row are not tried on wide rows.
_WIDE_NS_MAX = 4_000
#: One loop of a peer over ten columns reads at most so many rows.
_PEER_ROWS = 1_000
_WARM_ROWS = 2_500
GOALS_US = {10: 1.0, 1_000: 60.0}


def us_per_row(loop: peers.Loop, rows: Floats) -> float:
    """Microseconds a row of a peer's loop over ``rows``: the fastest of some rounds."""
    loop(rows)
    best = np.inf
    for _ in range(_ROUNDS):
        began, turns = time.process_time(), 0
        while turns == 0 or time.process_time() - began < _ROUND_S:
            loop(rows)
            turns += 1
        best = min(best, (time.process_time() - began) / (turns * len(rows)))
    return best * 1e6


def measured(detector: Detector, made: Setting, block: int) -> float:
    """Microseconds a row in calls of ``block`` rows, the making of the rows not counted."""
    calls = max(2, min(200, 20_000 // block))
    detector.update(made.rows(0, _WARM_ROWS))
    start, best, spent_all = _WARM_ROWS, np.inf, 0.0
    for _ in range(50):
        ready = [made.rows(start + at * block, block) for at in range(calls)]
        began = time.process_time()
        for rows in ready:
            detector.update(rows)
            detector.advance(int(rows.time_ms[-1]) - 1)
        spent = time.process_time() - began
        start += calls * block
        best, spent_all = min(best, spent / (calls * block)), spent_all + spent
        if spent_all > _ROUNDS * _ROUND_S:
            break
    return best * 1e6


def closing_ms(detector: Detector, made: Setting) -> float:
    """Milliseconds that closing a block of time takes: what ``advance`` over a day costs, rows in it."""
    detector.reset()
    best = np.inf
    for day in range(3):
        rows = made.rows(day * 50_000, 4_000)
        detector.update(rows)
        began = time.process_time()
        detector.advance((day + 8) * DAY_MS if day == 2 else (day + 1) * DAY_MS)
        best = min(best, time.process_time() - began)
    return best * 1e3


def one(kind: str, stream: Stream, width: int, blocks: tuple[int, ...] = BLOCKS) -> dict[str, float]:
    """Figures of one kind: ``us_<block>``, ``closing_ms``, ``state_bytes``, ``build_s``."""
    spec = spec_of(kind)
    made = setting(type(spec), stream, width)
    if kind in ("cvm-online", "fet-online") and stream == "features":
        context = made.context
        made = Setting(
            Context(context.columns[:1], (0,), stream, context.reference, features=context.features), made.values[:, :1]
        )  # fmt: skip
    began = time.process_time()
    detector = spec.build(made.context)
    found = {"build_s": time.process_time() - began}
    for block in blocks:
        detector.reset()
        # A machine a column: ten cost ten times as much as one.
        machines = width if made.values.shape[1] == 1 and stream == "features" else 1
        found[f"us_{block}"] = machines * measured(detector, made, block)
    found["state_bytes"] = float(len(detector.snapshot()))
    found["closing_ms"] = closing_ms(detector, made)
    return found


def every_kind() -> tuple[list[list[object]], dict[str, float]]:
    """Rows of the table at ten columns, and microseconds a row in blocks of 2,000 by kind."""
    out: list[list[object]] = []
    costs = {}
    loops = peers.makers()
    # As many rows of reference as ours have.
    reference, rows = np.split(
        np.random.default_rng(5).normal(size=(SAMPLE_ROWS + _PEER_ROWS, 10)), [SAMPLE_ROWS]
    )
    for kind in KINDS:
        spec = spec_class(kind)
        missing = [name for name in spec.needs if find_spec(name) is None]
        stream = _stream_of(spec)
        if missing:
            out.append([kind, stream, *[None] * 8, f"not installed: {', '.join(missing)}"])
            continue
        found = one(kind, stream, 10)
        costs[kind] = found["us_2000"]
        peer, theirs = None, None
        if kind in loops:
            peer, maker = loops[kind]
            theirs = us_per_row(maker(reference), rows[: 50 if kind == "kswin" else 200])
            theirs *= 10 if kind == "cvm-online" else 1  # its loop reads one column
        for block in BLOCKS:
            say(
                f"cost.{kind}.{stream}.block{block}", found[f"us_{block}"], "us/row", peer,
                found[f"us_{block}"] / theirs if theirs else None, ns_per_feature=round(found[f"us_{block}"] * 100, 1),
                state_bytes=found["state_bytes"], closing_ms=round(found["closing_ms"], 3),
            )  # fmt: skip
        out.append(
            [kind, stream, *(found[f"us_{block}"] for block in BLOCKS), found["us_2000"] * 100,
             int(found["state_bytes"]), found["closing_ms"], spec.cost_ns / 1_000, theirs,
             "" if theirs is None else f"{peer}: {found['us_2000'] / theirs:.2g} of it"]
        )  # fmt: skip
    return out, costs


def _stream_of(spec: type[Spec]) -> Stream:
    """Where it is measured: on features if it reads them."""
    return "features" if "features" in spec.streams else next(iter(spec.streams))


def wide(widths: tuple[int, ...]) -> list[list[object]]:
    """Rows of the second table: kinds that read many columns, in blocks of 2,000."""
    out: list[list[object]] = []
    for kind in KINDS:
        spec = spec_class(kind)
        if "features" not in spec.streams or spec.cost_ns > _WIDE_NS_MAX or spec.needs:
            continue
        row: list[object] = [kind]
        for width in widths:
            found = one(kind, "features", width, (2_000,))
            say(
                f"cost.{kind}.features{width}.block2000", found["us_2000"], "us/row",
                ns_per_feature=round(found["us_2000"] / width * 1e3, 1), state_bytes=found["state_bytes"],
                build_s=round(found["build_s"], 3), closing_ms=round(found["closing_ms"], 3),
            )  # fmt: skip
            row += [
                found["us_2000"],
                found["us_2000"] / width * 1e3,
                found["closing_ms"],
                int(found["state_bytes"]),
            ]
        out.append(row)
    return out


def default_set() -> list[list[object]]:
    """Rows of the third table: what runs where a contract says ``default``, and what a prediction costs beside the goal."""
    out: list[list[object]] = []
    for width, goal in GOALS_US.items():
        total = 0.0
        for detector in DEFAULT_DETECTORS:
            cost = one(detector.kind, detector.stream, width, (2_000,))["us_2000"]
            outcome = detector.stream in ("loss", "comparison")
            total += 0.0 if outcome else cost
            of_what = "a joined outcome" if outcome else "a prediction"
            out.append([f"{detector.kind} on {detector.stream}", width, of_what, cost, None])
        say(f"cost.default-set.features{width}.block2000", total, "us/prediction", "goal", total / goal)
        out.append(["**sum**", width, "a prediction", total, goal])
    return out


def run(quick: bool) -> str:
    """All tables as Markdown. ``quick``: no wide rows."""
    defaults = default_set()
    rows, _ = every_kind()
    many = [] if quick else wide((100, 1_000))
    us = [f"us a row, blocks of {block}" for block in BLOCKS]
    head = [
        "kind",
        "stream",
        *us,
        "ns a feature",
        "state, bytes",
        "closing a day, ms",
        "declared us",
        "peer us",
        "peer",
    ]
    parts = [
        "Measured beside "
        + ", ".join(f"{name} {number}" for name, number in peers.versions().items())
        + ".\n",
        table(
            "The default set, blocks of 2,000", ["detector", "features", "for", "us a row", "goal"], defaults
        ),
        table("Every kind, ten features", head, rows),
    ]
    if many:
        each = ["us a row", "ns a feature", "closing, ms", "state, bytes"]
        columns = [f"{name} ({width})" for width in (100, 1_000) for name in each]
        parts.append(table("Many features, blocks of 2,000", ["kind", *columns], many))
    return "\n".join(parts)
