"""One detector over one table: what it would have said, before it is put on a model.

The first rows, or another file, are the reference; the rest is read as the monitor would feed it, in order of time, with
the knob fitted to the budget where the kind has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import STREAM_COLUMNS, Context, Rows, Spec, Standing, Stream
from detectors.columns import context_of
from detectors.registry import spec_for
from detectors.tools.calibrate import calibrated, duration
from detectors.tools.plot import Point
from detectors.tools.tables import ROW_MS, Table, feature, numbers, times, worth_reading
from schemas.contracts import DetectorConfig, FalsePages, Feature, ModelContract, Monitoring, Reference
from schemas.errors import ConfigurationError
from schemas.reference import code_column, log_losses, reference_of
from schemas.verdicts import State, Verdict

REFERENCE_ROWS = 2_000
_POINTS = 400
#: Columns of a stream that a file need not have, and what stands for them.
_DEFAULTS: Mapping[str, float] = {"latency_ms": math.nan, "error": 0.0}

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Said:
    """A change of verdict. ``line`` and ``time_ms``: of the row at which it was reached."""

    line: int
    row: int
    time_ms: int
    previous: State
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it. ``start``: the first row read after the reference; ``notes``: what was assumed, for people."""

    spec: Spec
    context: Context
    standing: Standing
    said: Sequence[Said]
    points: Sequence[Point]
    alarms: Sequence[int]
    start: int
    rows: int
    timed: bool
    notes: Sequence[str]


def default_stream(spec: type[Spec], table: Table) -> Stream:
    """The stream to try a kind on when none is named: features where it reads them, else what the file has."""
    if "features" in spec.streams:
        return "features"
    fitting = [s for s in spec.streams if all(c in table.texts or c in _DEFAULTS for c in STREAM_COLUMNS[s])]
    return (fitting or list(spec.streams))[0]


def try_kind(
    kind: str,
    table: Table,
    *,
    stream: Stream,
    options: Mapping[str, Any],
    columns: Sequence[str] = (),
    time: str | None = None,
    row_ms: int = ROW_MS,
    reference_rows: int = REFERENCE_ROWS,
    reference: Table | None = None,
    false_pages: FalsePages = FalsePages(),  # noqa: B008 - frozen
    seed: int = 0,
) -> Trial:
    """Run ``kind`` over the rows of ``table`` behind its reference.

    ``columns``: features or segments (on ``score``: the one column that holds the score); by default all that say
    something. Raises ConfigurationError naming the file, line and column, or the option, that cannot be read.
    """
    notes: list[str] = []
    table = ordered(table, time, row_ms, notes)
    reference = None if reference is None else ordered(reference, time, row_ms, notes)
    source, cut = (reference, len(reference)) if reference is not None else (table, reference_rows)
    if reference is None and cut > len(table) // 2:
        cut = len(table) // 2
        notes.append(f"the file has {len(table):,} rows: its first half is the reference")
    if cut < 1:
        raise ConfigurationError(f"{source.path}: no rows for a reference")
    named = {"score": columns[0]} if stream == "score" and len(columns) == 1 else {}
    features = _features(source, cut, stream, () if named else columns, time, notes)
    contract = _contract(kind, stream, options, features, false_pages)
    (config,) = contract.monitoring.detectors
    spec = spec_for(config)
    made = reference_from(source, cut, contract, stream, named, time, row_ms)
    context = context_of(contract, config, spec, reference=made, version="file", seed=seed)
    dropped = [f.name for f in features if f.name not in context.columns]
    if dropped:
        notes.append(f"{kind} reads numbers only; left out: {', '.join(dropped)}")
    if time is None:
        notes.append(f"no column of times: one row every {duration(row_ms)}")
    start = cut if reference is None else 0
    values = np.column_stack([column_of(table, name, contract, stream, named) for name in context.columns])
    group, identity = _pairs(table, stream)
    rows = Rows.of(values, times(table, time, row_ms), identity, group).take(slice(start, None))
    spec, standing = calibrated(spec, context)
    said, points, alarms = _run(spec, context, rows, table.lines[start:], start)
    return Trial(
        spec, context, standing, said, points, alarms, start, len(table), time is not None, tuple(notes)
    )


def ordered(table: Table, time: str | None, row_ms: int, notes: list[str]) -> Table:
    """The rows in order of time; a note when they were not."""
    order = np.argsort(times(table, time, row_ms), kind="stable")
    if (np.diff(order) == 1).all():
        return table
    notes.append(f"the rows of {table.path} were put in order of {time}")
    return table.take(order.tolist())


def _features(
    table: Table, cut: int, stream: Stream, columns: Sequence[str], time: str | None, notes: list[str]
) -> tuple[Feature, ...]:
    """What the file's columns are. Contracts need a feature, so a stream without any gets an unread one."""
    # What a model answered and what came of it is no input of its.
    own = {*STREAM_COLUMNS.get(stream, ()), "score", "label", "loss", "identity", "group", time}
    if columns:
        chosen = list(columns)
    elif stream in ("features", "predictions"):
        candidates = [name for name in table.texts if name not in own]
        chosen = [name for name in candidates if worth_reading(table, name)]
        left = [name for name in candidates if name not in chosen]
        if left:
            notes.append(
                f"left out, empty or with a different text in too many rows: {', '.join(left)} "
                "(--columns reads them anyhow)"
            )
    else:
        chosen = []
    if not chosen and stream == "features":
        raise ConfigurationError(f"{table.path}: no column to read; --columns names some")
    return tuple(feature(table, name, cut) for name in chosen)


def _contract(
    kind: str, stream: Stream, options: Mapping[str, Any], features: Sequence[Feature], budget: FalsePages
) -> ModelContract:
    config = DetectorConfig(name=kind, kind=kind, stream=stream, options=dict(options))
    segments = tuple(f.name for f in features if f.kind == "categorical") if stream == "loss" else ()
    try:
        return ModelContract(
            model="file",
            features=tuple(features) or (Feature(name="none"),),
            monitoring=Monitoring(false_pages=budget, detectors=(config,), segments=segments),
        )
    except ValueError as error:
        raise ConfigurationError(f"columns cannot be features: {error}") from error


def column_of(
    table: Table, name: str, contract: ModelContract, stream: Stream, named: Mapping[str, str]
) -> Floats:
    """A column of the stream as numbers, ``(n,)``; ``named``: what the file calls it, where that is another name.

    Raises ConfigurationError when the file has no such column, or a value in it that is no number.
    """
    declared = {f.name: f for f in contract.features}
    if name in declared:
        return coded(table, declared[name])
    written = named.get(name, name)
    if written in table.texts:
        return numbers(table, written)
    if name == "loss" and {"score", "label"} <= table.texts.keys():
        return log_losses(numbers(table, "score"), numbers(table, "label"))
    if name in _DEFAULTS:
        return np.full(len(table), _DEFAULTS[name])
    if name == "score" and stream == "predictions":
        return np.full(len(table), math.nan)
    wanted = ", ".join(STREAM_COLUMNS[stream])
    hint = "--columns names the column that holds it" if stream == "score" else "rename a column of the file"
    raise ConfigurationError(
        f"{table.path}: stream {stream} has columns {wanted}, and the file has no {written!r}; {hint}"
    )


def coded(table: Table, declared: Feature) -> Floats:
    """A feature's column as the monitor codes it: a category as its place in the contract, null as NaN."""
    if declared.kind == "numeric":
        return numbers(table, declared.name)
    return code_column(declared, np.array(table.column(declared.name), object))


def reference_from(
    table: Table,
    cut: int,
    contract: ModelContract,
    stream: Stream,
    named: Mapping[str, str],
    time: str | None,
    row_ms: int,
) -> Reference:
    """The reference of the first ``cut`` rows of ``table``, made as a version's is."""
    raw: dict[str, NDArray[Any]] = {}
    for declared in contract.features:
        if declared.name not in table.texts:
            raw[declared.name] = np.zeros(cut)
        elif declared.kind == "numeric":
            raw[declared.name] = numbers(table, declared.name)[:cut]
        else:
            raw[declared.name] = np.array(table.column(declared.name)[:cut], object)
    scored = named.get("score", "score")
    scores = numbers(table, scored)[:cut] if scored in table.texts else np.full(cut, math.nan)
    labels = numbers(table, "label")[:cut] if "label" in table.texts and stream != "features" else None
    return reference_of(raw, scores, contract, labels=labels, event_ms=times(table, time, row_ms)[:cut])


def _pairs(table: Table, stream: Stream) -> tuple[NDArray[np.int8] | None, NDArray[np.uint64] | None]:
    """Group and identity of each row, for a comparison."""
    if stream != "comparison":
        return None, None
    for name in ("group", "identity"):
        if name not in table.texts:
            raise ConfigurationError(
                f"{table.path}: a comparison needs a column {name!r}: group is 0 for the stable version and 1 for the "
                "candidate, rows of one identity are one request that both answered"
            )
    known: dict[str | None, int] = {}
    identity = [known.setdefault(text, len(known)) for text in table.column("identity")]
    return numbers(table, "group").astype(np.int8), np.array(identity, np.uint64)


def _run(
    spec: Spec, context: Context, rows: Rows, lines: Sequence[int], start: int
) -> tuple[list[Said], list[Point], list[int]]:
    detector = spec.build(context)
    said: list[Said] = []
    points: list[Point] = []
    before = detector.verdict.state
    size = max(1, len(rows) // _POINTS)
    for first in range(0, len(rows), size):
        block = rows.take(slice(first, first + size))
        last = first + len(block) - 1
        # Rows of the last instant may go on in the next block.
        ended = int(block.time_ms[-1]) - (last + 1 < len(rows))
        for change in [*detector.update(block), *detector.advance(ended)]:
            at = last if change.index < 0 else first + change.index
            verdict = change.verdict
            points.append(Point(start + at, str(verdict.state), verdict.score, verdict.threshold))
            if verdict.state is not before:
                said.append(Said(lines[at], start + at, change.time_ms, before, verdict))
                before = verdict.state
        verdict = detector.verdict
        points.append(Point(start + last, str(verdict.state), verdict.score, verdict.threshold))
    alarms = [item.row for item in said if item.verdict.state is State.DRIFT]
    return said, points, alarms
