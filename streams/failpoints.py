"""Named places at which a test may kill the process, as ``kill -9`` would: no handler runs, nothing is flushed.

Of each stage: ``before-apply``, ``after-apply``, ``before-transaction``, ``before-state`` (outputs produced),
``before-commit`` (all produced), ``after-commit`` (nothing acknowledged yet), as in ``join.before-commit``.
Of the archive: ``archive.before-progress`` (rows written), ``archive.before-commit`` (progress written).
"""

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
