"""What e-detectors share: how long a run is promised, and when evidence is a warning, a drift, and over.

Evidence is a share of the threshold, so 1 means: as much as a false page may cost. A drift lasts until the evidence has
fallen to ``LOW``; the threshold is raised by as much, so that the RATE of alarms keeps the promise and not only the time
to the first (from LOW up to 1 a supermartingale climbs at most once in that much time: Doob's upcrossings); whoever
begins anew at LOW needs no such raise. So evidence that comes and goes around the threshold is one alarm and not many.
"""

from __future__ import annotations

from detectors.base import Context
from schemas.verdicts import State

#: Below this share of the threshold a drift is over; above it, short of a drift, is a warning.
LOW = 0.1
RUN_DEFAULT_MS = 30 * 86_400_000


def run_length_ms(option: int | None, context: Context) -> float:
    """Event time to a false alarm that is promised: the option, else the detector's share of the model's budget."""
    return float(option or context.budget_ms or RUN_DEFAULT_MS)


def threshold_ms(run_ms: float) -> float:
    """Evidence in event time at which a drift is said, so that alarms come no more often than once in ``run_ms``."""
    return run_ms / (1 - LOW)


def next_state(state: State, score: float, warning: float = LOW) -> State:
    """The state after ``score``, a share of the threshold; ``warning``: the share that is one."""
    if score >= 1 or (state is State.DRIFT and score >= LOW):
        return State.DRIFT
    return State.WARNING if score >= warning else State.STABLE
