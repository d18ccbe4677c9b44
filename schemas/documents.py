"""What everything people write has in common: immutable, unknown keys are errors, durations as people write them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def parse_duration_ms(value: Any) -> Any:
    """``"90s"``, ``"1h30m"``, ``"30d"`` or a number of milliseconds (also as text), as milliseconds. Raises ValueError."""
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    if isinstance(value, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", value.replace(" ", ""))
        if not parts or "".join(n + u for n, u in parts) != value.replace(" ", ""):
            raise ValueError(f"{value!r} is not a duration; write for example 500ms, 90s, 15m, 6h, 30d")
        return round(sum(float(n) * _UNITS_MS[u] for n, u in parts))
    return value


DurationMs = Annotated[int, BeforeValidator(parse_duration_ms), Field(ge=0)]


class Document(BaseModel):
    """Base of everything people write: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
