"""Who is compared with whom, told from the roles in which versions answer, row by row.

The pair is decided at each outcome in its order and never by what else is fed with it, so how far time moved at once
cannot show. A late label of an earlier canary does not bring that canary back: a role passes to another version only with
a prediction that is not older than the last one that held it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.blocks import ObservationBlock
from schemas.ids import ROLES

BEGINNING_MS = -(2**62)
#: What answers when no version is healthy; a heuristic is compared with nothing.
FALLBACK = "fallback"
_STABLE, _CANARY, _SHADOW = (ROLES.index(role) for role in ("stable", "canary", "shadow"))


@dataclass(slots=True)
class Pair:
    """The versions last seen in role stable and in role canary, and the newest prediction that showed each."""

    stable: str | None = None
    candidate: str | None = None
    stable_ms: int = BEGINNING_MS
    candidate_ms: int = BEGINNING_MS


class Span(NamedTuple):
    """Rows ``start`` to ``stop`` of a block, over which one pair holds."""

    start: int
    stop: int
    stable: str
    candidate: str


def spans(pair: Pair, block: ObservationBlock) -> list[Span]:
    """Cut outcomes (in order) where the pair changes; ``pair`` becomes what holds after the last row.

    Spans without two different versions are left out.
    """
    stable, pair.stable, pair.stable_ms = _holders(block, _STABLE, pair.stable, pair.stable_ms)
    candidate, pair.candidate, pair.candidate_ms = _holders(block, _CANARY, pair.candidate, pair.candidate_ms)
    changed = np.flatnonzero((stable[1:] != stable[:-1]) | (candidate[1:] != candidate[:-1])) + 1
    edges = [0, *changed.tolist(), len(block)]
    found = []
    for start, stop in pairwise(edges):
        ours, theirs = candidate[start], stable[start]
        if ours and theirs and ours != theirs:
            found.append(Span(start, stop, str(theirs), str(ours)))
    return found


def groups(block: ObservationBlock, span: Span) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Positions of the span's rows that take part, and their group: 1 the candidate's, 0 the stable version's."""
    part = slice(span.start, span.stop)
    versions = np.array(block.versions, "U")[block.version[part]]
    role = block.role[part]
    ours = (versions == span.candidate) & np.isin(role, [_CANARY, _SHADOW])
    theirs = (versions == span.stable) & np.isin(role, [_STABLE, _SHADOW])
    rows = np.flatnonzero(ours | theirs)
    return rows + span.start, ours[rows].astype(np.int8)


def _holders(
    block: ObservationBlock, role: int, holder: str | None, since_ms: int
) -> tuple[NDArray[np.str_], str | None, int]:
    """Who holds ``role`` at each row ('' for nobody yet), who after the last, and by a prediction of when."""
    versions = np.array([*block.versions, holder or ""], "U")
    at = np.flatnonzero((block.role == role) & (versions[block.version] != FALLBACK))
    times = block.event_time_ms[at]
    newest = np.maximum.accumulate(np.concatenate([[since_ms], times]))
    at = at[times >= newest[:-1]]
    code = np.full(len(block), len(versions) - 1)
    if len(at):
        last = np.searchsorted(at, np.arange(len(block)), "right") - 1
        code = np.where(last >= 0, block.version[at][np.maximum(last, 0)], code)
    held = versions[code]
    return held, (str(held[-1]) or None) if len(held) else holder, int(newest[-1])
