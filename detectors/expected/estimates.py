"""An estimate with an interval against a reference with a tolerance: one rule for all that is estimated without labels.

Drift: the whole interval of ``current - reference`` lies beyond the tolerance on one side. Warning: the estimate does,
its interval not yet. Score: the end of the interval that is nearest to no change, so drift is score >= tolerance.
"""

from __future__ import annotations

from schemas.verdicts import Evidence, State, Verdict


def judged(
    *,
    column: str,
    name: str,
    current: float,
    reference: float,
    error: float,
    tolerance: float,
    rows: int,
    since_ms: int,
    note: str,
) -> Verdict:
    """``error``: half width of the interval of ``current - reference``; all in the metric's own units."""
    effect = current - reference
    score = abs(effect) - error
    state = State.DRIFT if score >= tolerance else State.WARNING if abs(effect) >= tolerance else State.STABLE
    evidence = Evidence(
        column=column,
        statistic="distance of the interval from the reference",
        effect=effect,
        effect_name=name,
        reference=reference,
        current=current,
        rows=rows,
        since_ms=since_ms,
        interval=(effect - error, effect + error),
        note=note,
    )
    return Verdict(state=state, score=score, threshold=tolerance, evidence=evidence)
