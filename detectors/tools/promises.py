"""Every detector of a contract: the run length it promises beside the ones it has, and whether it may page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from detectors.base import Context, Rows, Standing
from detectors.columns import context_of, share_of_budget
from detectors.registry import spec_for
from detectors.tools.calibrate import HOW, Realised, calibrated, duration, realised
from detectors.tools.history import History, history, unread
from detectors.tools.tables import ROW_MS, Table, times
from detectors.tools.trial import column_of, ordered, reference_from
from schemas.contracts import DetectorConfig, ModelContract, ModelVersion, Reference
from schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table as Printed


@dataclass(frozen=True, slots=True)
class Measured:
    """One detector. ``pages``: its standing allows it, and no run had more alarms than promised in time order."""

    name: str
    kind: str
    stream: str
    standing: Standing
    runs: Sequence[Realised]
    pages: bool
    note: str


def measure(
    contract: ModelContract,
    version: ModelVersion | None,
    table: Table | None,
    time: str | None,
    seed: int = 0,
) -> list[Measured]:
    """All detectors of ``contract``, in its order.

    ``table``: rows of the model's history in which nothing had moved. Without a ``version`` its first half is the
    reference and the second is held out. Raises ConfigurationError when there is neither.
    """
    reference = None if version is None else version.reference
    start = 0
    if table is not None:
        table = ordered(table, time, ROW_MS, [])
        if reference is None:
            start = len(table) // 2
            reference = _reference(contract, table, start, time)
    if reference is None:
        raise ConfigurationError(f"{contract.model} has no version yet: --file names a CSV of its history")
    cache: dict[str, bytes] = {}
    found = []
    for config in contract.monitoring.detectors:
        try:
            found.append(_measure(contract, config, version, reference, table, time, start, seed, cache))
        except (ConfigurationError, ImportError) as error:
            found.append(Measured(config.name, config.kind, config.stream, Standing(), (), False, str(error)))
    return found


def _reference(contract: ModelContract, table: Table, rows: int, time: str | None) -> Reference:
    lacking = [name for name in contract.feature_names if name not in table.texts]
    if lacking:
        raise ConfigurationError(f"{table.path}: no column for features {', '.join(lacking)} of the contract")
    return reference_from(table, rows, contract, "loss", {}, time, ROW_MS)


def _measure(
    contract: ModelContract,
    config: DetectorConfig,
    version: ModelVersion | None,
    reference: Reference,
    table: Table | None,
    time: str | None,
    start: int,
    seed: int,
    cache: dict[str, bytes],
) -> Measured:
    spec = spec_for(config)
    context = context_of(
        contract,
        config,
        spec,
        reference=reference,
        version="" if version is None else version.version,
        share=share_of_budget(contract),
        seed=seed,
        trained_to_ms=None if version is None else version.trained_to_ms,
        cache=cache,
    )
    spec, standing = calibrated(spec, context)
    promised = standing.promised_ms
    if promised is None and standing.basis != "none":
        promised = context.budget_ms
    source = history(context) if table is None else _history(contract, context, table, time)
    if source is None:
        note = unread(reference, context)
        return Measured(config.name, config.kind, config.stream, standing, (), standing.pages, note)
    runs = []
    for how in HOW:
        rows = source
        if table is not None and how == "order":
            rows = replace(source, rows=source.rows.take(slice(start, None)))
        elif table is not None and start:
            rows = replace(source, rows=source.rows.take(slice(0, start)))
        found = realised(spec, context, rows, how, promised, own=table is not None)
        if found is not None:
            runs.append(found)
    over = [run.how for run in runs if run.holds is False]
    notes = [
        "" if not over else f"more alarms than promised over {' and '.join(_NAMES[how] for how in over)}"
    ]
    notes += [run.note for run in runs if run.how == "order"] if not over else []
    note = "; ".join(n for n in (*notes, standing.note) if n)
    return Measured(
        config.name, config.kind, config.stream, standing, runs, standing.pages and "order" not in over, note
    )


def _history(contract: ModelContract, context: Context, table: Table, time: str | None) -> History | None:
    if context.stream == "comparison":
        return None
    columns = [column_of(table, name, contract, context.stream, {}) for name in context.columns]
    when = times(table, time)
    spacing = float(when[-1] - when[0]) / max(1, len(table) - 1)
    return History(Rows.of(np.column_stack(columns), when), max(spacing, 1.0), time is not None)


_NAMES: Mapping[str, str] = {"rows": "resampled rows", "days": "resampled days", "order": "time order"}


def as_json(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """As JSON, times in milliseconds; an interval without an upper end has null there."""
    return [
        {
            **asdict(one),
            "runs": [
                {
                    **asdict(run),
                    "run_length_ms": run.run_length_ms,
                    "interval_ms": run.interval_ms,
                    "holds": run.holds,
                    "note": run.note,
                }
                for run in one.runs
            ],
        }
        for one in found
    ]


def printed(found: Sequence[Measured]) -> Printed:
    """Promised and realised side by side."""
    from rich.table import Table as Printed

    table = Printed(box=None, header_style="bold", padding=(0, 2, 1, 0))
    table.add_column("detector", no_wrap=True)
    table.add_column("promised", no_wrap=True)
    for how in HOW:
        table.add_column(_NAMES[how], min_width=16)
    table.add_column("may page", no_wrap=True)
    table.add_column("")
    for one in found:
        runs = {run.how: run for run in one.runs}
        promised = one.standing.promised_ms
        if promised is None and one.runs:
            promised = one.runs[0].promised_ms
        table.add_row(
            f"{one.name}\n{one.kind}",
            "nothing" if promised is None else f"1 in {duration(promised)}",
            *(_cell(runs.get(how)) for how in HOW),
            "[green]yes[/green]" if one.pages else "no",
            one.note,
        )
    return table


def _cell(run: Realised | None) -> str:
    """``3 in 85 d`` and the exact interval of the run length below."""
    if run is None:
        return "-"
    low, high = run.interval_ms
    to = "" if high is None else f" to {duration(high)}"
    head = f"{run.alarms:,} in {duration(run.time_ms)}"
    colour = "red" if run.holds is False else "default"
    between = f"1 in {duration(low)}{to}" if high is not None else f"1 in > {duration(low)}"
    return f"[{colour}]{head}[/{colour}]\n[dim]{between}[/dim]"
