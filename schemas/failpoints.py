"""Named places at which a test may kill a process, as ``kill -9`` would: no handler runs, nothing is flushed.

Names begin with the stage or the service.
Each stage of the monitor: ``before-apply``, ``after-apply``, ``before-transaction``, ``before-state`` (outputs produced),
``before-commit`` (all produced), ``after-commit`` (nothing acknowledged yet), as in ``join.before-commit``.
Archive: ``archive.before-progress`` (rows written), ``archive.before-commit`` (progress written). The monitor's raw log:
``raw-log.before-progress`` (rows written), ``raw-log.before-commit`` (progress written).
Scorer: ``scorer.gathered``, ``scorer.scored``, ``scorer.begun``, ``scorer.produced`` (outputs, no offsets yet),
``scorer.before-commit``, ``scorer.after-commit`` (nothing acknowledged in the process), ``scorer.shadow-scored``,
``scorer.tripped`` (the trip not reported yet), ``scorer.swapped`` (a revision applied).
Controller: ``controller.decided`` (nothing written), ``controller.produced`` (facts, alerts and the revision, not
committed), ``controller.committed`` (nothing acknowledged in the process).
Trainer: ``training.taken-up``, ``training.attempt-noted``, ``training.snapshot-taken``, ``training.trained`` (not registered),
``training.registered`` (not announced), ``training.announced`` (not reported), ``training.before-commit`` (report and alert
produced), ``training.after-commit`` (reported, the attempt still noted).
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
