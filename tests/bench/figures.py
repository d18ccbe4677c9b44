"""Figures for machines and tables for people: what every benchmark prints, in one place so that all lines look the same."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any


def say(
    figure: str, value: float, unit: str, baseline: str | None = None, ratio: float | None = None, **more: Any
) -> None:
    """One figure on standard output; what is not known is null."""
    line = {"figure": figure, "value": round(value, 3), "unit": unit, "baseline": baseline,
            "ratio": None if ratio is None else round(ratio, 3)}  # fmt: skip
    print(json.dumps({name: _known(of) for name, of in (line | more).items()}), flush=True)


def _known(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown section with one table; numbers to the right."""
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |"]
    lines.append("|---|" + "---:|" * (len(head) - 1))
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
