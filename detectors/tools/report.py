"""What a trial or a calibration found, laid out for people and for programs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectors.tools.calibrate import duration
from detectors.tools.trial import Said, Trial
from schemas.verdicts import Evidence

if TYPE_CHECKING:
    from rich.table import Table

_COLOURS = {"drift": "red", "warning": "yellow", "stable": "green"}
#: Changes of verdict printed; a longer list is for ``--json``.
_CHANGES_MAX = 40


def instant(time_ms: int) -> str:
    """Event time as ``2013-02-08 13:00``, UTC."""
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


def figure(value: float | None) -> str:
    """A number to four digits; empty for none."""
    return "" if value is None else f"{value:.4g}"


def heading(kind: str, file: Path, trial: Trial) -> list[str]:
    """What was run on what, and what is known of its false alarms."""
    columns = ", ".join(trial.context.columns)
    reference = trial.context.reference
    rows = 0 if reference is None else max((c.rows for c in reference.columns.values()), default=0)
    return [
        f"{kind} on {trial.context.stream} of {file}: {len(trial.context.columns)} columns ({columns})",
        f"rows {trial.rows - trial.start:,}, reference {max(rows, trial.start):,} rows",
        f"false alarms: {standing(trial)}",
    ]


def standing(trial: Trial) -> str:
    """What is known of the detector's false alarms, in words."""
    found = trial.standing
    basis = {"proved": "bounded by a theorem", "resampled": "counted on resampled reference", "none": ""}[
        found.basis
    ]
    promised = f"one in {duration(found.promised_ms)} promised" if found.promised_ms is not None else ""
    pages = "may page" if found.pages else "never pages"
    return "; ".join(part for part in (basis, promised, found.note, pages) if part)


def changes(trial: Trial) -> Table:
    """The changes of verdict as a table."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("line", "time", "verdict", "score", "threshold", "evidence"):
        table.add_column(name, justify="right" if name in ("line", "score", "threshold") else "left")
    shown = trial.said if len(trial.said) <= _CHANGES_MAX else trial.said[: _CHANGES_MAX - 1]
    for said in shown:
        state = str(said.verdict.state)
        colour = _COLOURS.get(state, "default")
        table.add_row(
            f"{said.line:,}",
            instant(said.time_ms) if trial.timed else f"+{duration(said.time_ms)}",
            f"[{colour}]{state}[/{colour}]",
            figure(said.verdict.score),
            figure(said.verdict.threshold),
            words(said.verdict.evidence),
        )
    if len(shown) < len(trial.said):
        table.add_row("", "", "", "", "", f"and {len(trial.said) - len(shown):,} more; --json prints all")
    if not trial.said:
        table.add_row(
            "", "", "no change", "", "", "the verdict was inconclusive throughout: too few rows for this kind"
        )
    return table


def words(evidence: Evidence) -> str:
    """The evidence in one line."""
    parts = []
    if evidence.column:
        parts.append(evidence.column)
    if evidence.effect is not None:
        parts.append(f"{evidence.effect_name or 'effect'} {evidence.effect:.4g}")
    if evidence.current is not None:
        against = "" if evidence.reference is None else f", reference {evidence.reference:.4g}"
        parts.append(f"now {evidence.current:.4g}{against}")
    if evidence.rows:
        parts.append(f"{evidence.rows:,} rows")
    if evidence.note:
        parts.append(evidence.note)
    return "; ".join(parts)


def trial_json(trial: Trial) -> dict[str, Any]:
    """The trial as JSON, times in milliseconds."""
    return {
        "kind": trial.spec.kind,
        "options": trial.spec.model_dump(mode="json"),
        "stream": trial.context.stream,
        "columns": list(trial.context.columns),
        "reference_rows": trial.start,
        "rows": trial.rows - trial.start,
        "notes": list(trial.notes),
        "pages": trial.standing.pages,
        "false_alarms": standing(trial),
        "alarms": len(trial.alarms),
        "changes": [_said_json(said) for said in trial.said],
    }


def _said_json(said: Said) -> dict[str, Any]:
    verdict = said.verdict.model_dump(mode="json")
    return {
        "line": said.line,
        "row": said.row,
        "time_ms": said.time_ms,
        "previous": str(said.previous),
        **verdict,
    }
