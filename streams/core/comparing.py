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

from schemas.ids import ROLES
from streams.core.feed import Columns

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


def spans(pair: Pair, block: Columns) -> list[Span]:
    """Cut outcomes (in order) where the pair changes; ``pair`` becomes what holds after the last row.

    Spans without two different versions are left out.
    """
    stable, theirs, pair.stable_ms = _holders(block, _STABLE, pair.stable, pair.stable_ms)
    candidate, ours, pair.candidate_ms = _holders(block, _CANARY, pair.candidate, pair.candidate_ms)
    if len(block):
        pair.stable, pair.candidate = theirs[stable[-1]] or None, ours[candidate[-1]] or None
    changed = np.flatnonzero((stable[1:] != stable[:-1]) | (candidate[1:] != candidate[:-1])) + 1
    edges = [0, *changed.tolist(), len(block)]
    found = []
    for start, stop in pairwise(edges if len(block) else ()):
        one, other = ours[candidate[start]], theirs[stable[start]]
        if one and other and one != other:
            found.append(Span(start, stop, other, one))
    return found


def groups(block: Columns, span: Span) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Positions of the span's rows that take part, and their group: 1 the candidate's, 0 the stable version's."""
    part = slice(span.start, span.stop)
    versions = np.array(block.versions, "U")[block.version[part]]
    role = block.role[part]
    ours = (versions == span.candidate) & np.isin(role, [_CANARY, _SHADOW])
    theirs = (versions == span.stable) & np.isin(role, [_STABLE, _SHADOW])
    rows = np.flatnonzero(ours | theirs)
    return rows + span.start, ours[rows].astype(np.int8)


def _holders(
    block: Columns, role: int, holder: str | None, since_ms: int
) -> tuple[NDArray[np.int64], list[str], int]:
    """Who holds ``role`` at each row, as place among the names ('' for nobody yet); and by a prediction of when after the last."""
    names = [*block.versions, holder or ""]
    # Of a name that is there twice the first place.
    place = np.array([names.index(name) for name in names], np.int64)
    held = np.full(len(block), place[-1])
    answered = block.role == role
    if FALLBACK in block.versions:
        answered &= block.version != block.versions.index(FALLBACK)
    at = np.flatnonzero(answered)
    if not len(at):
        return held, names, since_ms
    times = block.event_time_ms[at]
    newest = np.maximum.accumulate(times)
    at = at[(times >= newest) & (times >= since_ms)]
    if len(at):
        # Each holds it until the next.
        held[at[0] :] = np.repeat(place[block.version[at]], np.diff(at, append=len(block)))
    return held, names, max(since_ms, int(newest[-1]))
