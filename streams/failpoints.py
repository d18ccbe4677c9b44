"""Named places at which a test may kill the process, as ``kill -9`` would: no handler runs, nothing is flushed."""

from __future__ import annotations

import os

ENVIRONMENT = "DRIFTLINE_FAILPOINT"
EXIT_CODE = 137

_name, _, _count = os.environ.get(ENVIRONMENT, "").partition(":")
_left = int(_count or 1)


def failpoint(name: str) -> None:
    """End the process if ``DRIFTLINE_FAILPOINT`` is ``name`` (``name:n``: at the n-th passing)."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0:
            os._exit(EXIT_CODE)
