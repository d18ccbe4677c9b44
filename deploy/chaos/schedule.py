"""What is broken, when and in which order: a function of the seed, so that a failing run can be run again.

Faults are dealt like cards: every combination of a kind and a target once in a shuffled order, then again in another, so
that a short run breaks many different things and a long one breaks all of them equally often.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

SERVICES = ("monitor", "archive", "controller", "scorer", "trainer", "notifier")
STORES = ("kafka", "warehouse")
Kind = Literal["kill", "stop", "quota", "clock"]

#: The load runs undisturbed this long at first, and for the last part of the run.
LEAD_IN_S = 4.0
LEAD_OUT_S = 4.0
#: Pauses between faults; the lower end lets some meet a process that still recovers from the one before.
GAP_S = (2.0, 7.0)
STOP_S = (1.0, 10.0)
QUOTA_S = (1.0, 4.0)
CLOCK_S = (1.0, 8.0)
CLOCK_STEP_MS = 15_000
#: How often a card is in the pack; what carries the guarantee is broken more often than what stands beside it.
_PACK: tuple[tuple[Kind, str, int], ...] = (
    ("kill", "monitor", 4),
    ("kill", "archive", 2),
    ("kill", "controller", 1),
    ("kill", "scorer", 2),
    ("kill", "trainer", 1),
    ("kill", "notifier", 1),
    ("kill", "kafka", 1),
    ("kill", "warehouse", 2),
    ("stop", "monitor", 2),
    ("stop", "archive", 1),
    ("stop", "controller", 1),
    ("stop", "scorer", 1),
    ("stop", "kafka", 1),
    ("stop", "warehouse", 1),
    ("quota", "kafka", 1),
    ("clock", "all", 2),
)
#: After the broker was broken everything else has to come back first, or the run would show one long outage.
_BROKER_GAP_S = 12.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault ``at_s`` seconds after the load began, lasting ``seconds`` (0: an instant). ``step_ms``: of the clock."""

    at_s: float
    kind: Kind
    target: str
    seconds: float = 0.0
    step_ms: int = 0

    def __str__(self) -> str:
        text = f"{self.at_s:6.1f} s  {self.kind} {self.target}"
        if self.step_ms:
            text += f" by {self.step_ms / 1000:+.1f} s"
        return text + (f" for {self.seconds:.1f} s" if self.seconds else "")

    def document(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def schedule(seed: int, minutes: float, workers: int = 1) -> list[Fault]:
    """Every fault of a run in its order; the same for the same arguments. Of several ``workers`` each fault of the
    monitor meets one."""
    rng = random.Random(seed)
    which = random.Random(seed + 1)
    cards = _cards(rng)
    faults: list[Fault] = []
    at_s, end_s = LEAD_IN_S, 60 * minutes - LEAD_OUT_S
    while True:
        kind, target = next(cards)
        if target == "monitor" and (number := which.randrange(workers)):
            target = f"monitor-{number}"
        fault = _fault(rng, at_s, kind, target)
        if fault.at_s + fault.seconds > end_s:
            return faults
        faults.append(fault)
        pause_s = rng.uniform(*GAP_S)
        if target == "kafka":
            pause_s = max(pause_s, fault.seconds + _BROKER_GAP_S)
        at_s = round(at_s + pause_s, 2)


def _cards(rng: random.Random) -> Iterator[tuple[Kind, str]]:
    while True:
        pack = [(kind, target) for kind, target, times in _PACK for _ in range(times)]
        rng.shuffle(pack)
        yield from pack


def _fault(rng: random.Random, at_s: float, kind: Kind, target: str) -> Fault:
    match kind:
        case "kill":
            return Fault(at_s, kind, target)
        case "stop":
            return Fault(at_s, kind, target, round(rng.uniform(*STOP_S), 2))
        case "quota":
            return Fault(at_s, kind, target, round(rng.uniform(*QUOTA_S), 2))
        case "clock":
            size_ms = rng.randint(1_000, CLOCK_STEP_MS) * rng.choice((-1, 1))
            return Fault(at_s, kind, target, round(rng.uniform(*CLOCK_S), 2), size_ms)
