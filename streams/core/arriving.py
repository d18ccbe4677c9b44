"""What is asked of each prediction as it comes, compiled: its window, whether it is too late or somebody else's, and of which
combination of window, version, role and segments it is. One pass over a batch, where each question by itself would be several.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled
from schemas.json_text import Whole

Ints = NDArray[np.int64]


@compiled
def look_at(
    time_ms: Ints, model: Ints, murmur: NDArray[np.uint32], pane_ms: Ints, floor_ms: Ints, partitions: int, partition: int,
    start_ms: Ints,
) -> tuple[Whole, Whole]:  # fmt: skip
    """Fill ``start_ms`` with where each row's window begins, of ``pane_ms`` of its model. How many rows are of other partitions
    than ``partition``, and of how many the window ends by ``floor_ms`` of its model."""
    elsewhere, late = 0, 0
    of, start, end, floor = -1, 0, 0, 0
    for i in range(len(time_ms)):
        # Mostly it is the window of the one before: no division.
        if model[i] != of or time_ms[i] < start or time_ms[i] >= end:
            of = model[i]
            start = time_ms[i] // pane_ms[of] * pane_ms[of]
            end, floor = start + pane_ms[of], floor_ms[of]
        start_ms[i] = start
        late += end <= floor
        elsewhere += np.int32(murmur[i] & np.uint32(0x7FFFFFFF)) % np.int32(partitions) != partition
    return elsewhere, late


@compiled
def steps(start_ms: Ints, model: Ints, pane_ms: Ints, into: Ints) -> tuple[Whole, Whole]:
    """Fill ``into`` with the numbers of windows that begin at ``start_ms``, at least one; the least and the greatest."""
    of, start, step = -1, 0, 0
    least, most = np.int64(2**63 - 1), np.int64(-(2**63 - 1))
    for i in range(len(start_ms)):
        if model[i] != of or start_ms[i] != start:
            of, start = model[i], start_ms[i]
            step = start // pane_ms[of]
            least, most = min(least, step), max(most, step)
        into[i] = step
    return least, most


@compiled
def combinations(
    step: Ints, first: int, model: Ints, models: int, version: Ints, versions: Ints, most: int, role: NDArray[np.int8],
    roles: int, segments: Ints, widths: Ints, table: Ints, of_row: Ints, one: Ints,
) -> Whole:  # fmt: skip
    """How many combinations there are. ``of_row`` becomes which of them each row is of, ``one`` a row of each.

    ``versions``: of each version, its number among those of its model, which are at most ``most``; ``segments (s, n)``, each below
    its ``widths``. ``table``: -1 for each combination that there may be.
    """
    count = 0
    for i in range(len(step)):
        code = (step[i] - first) * models + model[i]
        code = (code * most + versions[version[i]]) * roles + role[i]
        for s in range(len(widths)):
            code = code * widths[s] + segments[s, i]
        if table[code] < 0:
            table[code] = count
            one[count] = i
            count += 1
        of_row[i] = table[code]
    return count


@compiled
def put(
    start: int, number: int, kind: Ints, codes: Ints, wide: NDArray[np.uint64], narrow: NDArray[np.uint32],
    identity: NDArray[np.uint64], check: NDArray[np.uint32], numbers: Ints, keys: NDArray[np.uint64],
    checks: NDArray[np.uint32], kinds: NDArray[np.int32],
) -> None:  # fmt: skip
    """From row ``start`` on: numbers that count up, and of rows of these kinds the codes and, of the hashes of ids, the keys."""
    for i in range(len(kind)):
        of = kind[i]
        numbers[start + i] = number + i
        keys[start + i] = identity[i] ^ wide[of]
        checks[start + i] = check[i] ^ narrow[of]
        kinds[start + i] = codes[of]


@compiled
def paired(first: Ints, second: Ints, least: int, into: Ints) -> None:
    """Count each row in ``into[first[i], second[i] - least]``."""
    for i in range(len(first)):
        into[first[i], second[i] - least] += 1
