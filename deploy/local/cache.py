"""Where what was fetched or made once is kept for the next time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$DRIFTLINE_CACHE`` or ``~/.cache/driftline``, never the checkout."""
    configured = os.environ.get("DRIFTLINE_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "driftline"
