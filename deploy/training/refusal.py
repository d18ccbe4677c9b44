"""How a check says no: its name, for alerts and filters, and the figures, for people."""

from __future__ import annotations

from dataclasses import dataclass

#: In how many parts of equal size, in time order, a snapshot is looked at.
PARTS = 5


@dataclass(frozen=True, slots=True)
class Refusal:
    """``check`` is one of: too-few-rows, one-class, duplicated-rows, repeated-rows, one-entity, out-of-contract,
    unknown-categories, missing-values, segment-share, label-share, labels-against-scores, labels-against-neighbours."""

    check: str
    detail: str


def parts(rows: int) -> list[slice]:
    """The parts of ``rows`` rows."""
    cuts = [rows * at // PARTS for at in range(PARTS + 1)]
    return [slice(cuts[at], cuts[at + 1]) for at in range(PARTS)]
