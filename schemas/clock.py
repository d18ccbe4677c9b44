"""The wall clock as the shells read it: one function, so that a test can step it without stepping the machine's.

``DRIFTLINE_CLOCK_OFFSET_FILE`` names a file with a whole number of milliseconds that is added to every reading; it is
read anew each time. Whoever rewrites the file steps the clock of every process that was started with the variable.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

ENVIRONMENT = "DRIFTLINE_CLOCK_OFFSET_FILE"


def wall_ms() -> int:
    """Milliseconds since the epoch; for shells only. May go back, as a machine's clock may."""
    name = os.environ.get(ENVIRONMENT)
    return time.time_ns() // 1_000_000 + (0 if name is None else offset_ms(Path(name)))


def offset_ms(file: Path) -> int:
    """The number in ``file``; 0 when it is not there or, in the middle of being written, no number."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
