"""Five days of a model and its canary as the join would send them, and what the detect stage says of them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from schemas.blocks import ObservationBlock
from schemas.events import Tick
from schemas.verdicts import SignalChanged
from streams.core.detect import DetectCore
from streams.core.records import Record
from tests.support_detect import HOUR, T0, outcomes, predictions, signals, tick

DAYS = 5
EVERY_MS = 10 * 60_000


def story(seed: int = 1) -> dict[str, list[ObservationBlock]]:
    """Five days of v1, and of v2 as its canary from the second day: inputs move, v2 errs. Row by row, by partition."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[ObservationBlock]] = {"0": [], "1": []}
    for i in range(DAYS * 24 * HOUR // EVERY_MS):
        at = T0 + i * EVERY_MS + int(rng.integers(0, EVERY_MS))
        moved = i > 2 * 144
        x = float(rng.uniform(0.7, 1.0) if moved else rng.uniform(0, 1))
        label = float(rng.random() < (0.7 if moved else 0.1))
        ours = 0.3 if moved else 0.1
        roles = [("v1", "stable", ours)]
        if i > 144:
            roles = (
                [("v1", "shadow", ours), ("v2", "canary", 0.6)]
                if i % 4 == 0
                else [*roles, ("v2", "shadow", 0.6)]
            )
        mine = rows[str(i % 2)]
        identity = [int(rng.integers(0, 2**62))]
        label_ms = [at + int(rng.integers(HOUR, 4 * HOUR))]
        for who, role, score in roles:
            told: dict[str, Any] = {"identity": identity, "who": who, "role": role, "score": [score]}
            mine.append(predictions([at], x=[x], **told))
            mine.append(outcomes([at], label=[label], label_ms=label_ms, **told))
    return rows


def steps(seed: int, hours: int) -> list[list[ObservationBlock | Tick]]:
    """The story as two join tasks would write it: each its rows up to a time, then its tick; every so many hours."""
    left = story()
    found: list[list[ObservationBlock | Tick]] = []
    rng = random.Random(seed)
    for source, rows in left.items():
        written: list[ObservationBlock | Tick] = []
        order = sorted(rows, key=lambda block: int(block.order_ms[0]))
        for hour in range(hours, DAYS * 24 + 24 + hours, hours):
            until = T0 + hour * HOUR
            due = [block for block in order if int(block.order_ms[0]) <= until]
            order = order[len(due) :]
            rng.shuffle(due)
            written += [*due, tick(until, int(source), 2, until)]
        found.append(written)
    return found


def interleaved(sources: list[list[ObservationBlock | Tick]], seed: int) -> list[ObservationBlock | Tick]:
    """Each source in its own order, mixed at random."""
    rng, heads = random.Random(seed), [list(source) for source in sources]
    mixed = []
    while any(heads):
        head = rng.choice([head for head in heads if head])
        mixed.append(head.pop(0))
    return mixed


def heard(core: DetectCore, given_records: list[Record], batch: int = 10_000) -> list[SignalChanged]:
    """The signals of ``given_records``, applied in batches."""
    found: list[SignalChanged] = []
    for start in range(0, len(given_records), batch):
        core.apply(given_records[start : start + batch], 0)
        found += signals(core.outputs())
    return found
