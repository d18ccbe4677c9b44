"""Decides when a worker hangs: it is better ended, since the next one goes on from the last committed manifests.

Faust can end its recovery, or stop handing over records, without a word; a core may never return. What is held against
each task is its own input: it stands still while there is something to do. Time in which no broker answers does not
count, nor does time in which this process itself did not run: nothing is repaired by ending then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from schemas.errors import DeliveryError

#: The longest time between two looks that counts; more is a process that was stopped, or a machine that slept.
GAP_S_MAX = 5.0


class Reading(NamedTuple):
    """Offsets of one input: the first not handed over by Faust, the first not applied, the committed end."""

    taken: int
    applied: int
    end: int


class Watchdog:
    """``look`` regularly. ``limit_s``: how long a process may be unready, or a task stand still. ``slack_records``:
    how far ahead an input's end may be of what was handed over (transaction markers and aborted records are not)."""

    def __init__(self, limit_s: float, slack_records: int) -> None:
        self._limit_s = limit_s
        self._slack = slack_records
        self._looked_s: float | None = None
        #: Seconds in which there was a broker and this process ran.
        self._served_s = 0.0
        self._unready_since_s: float | None = None
        self._stands: dict[tuple[str, tuple[str, int]], tuple[int, float]] = {}

    def look(self, now_s: float, *, ready: bool, readings: Mapping[tuple[str, int], Reading] | None) -> None:
        """``now_s`` is of any clock that does not go back; ``readings`` by (topic, partition), None when no broker
        answers. Raises DeliveryError that says what stands still."""
        passed_s = 0.0 if self._looked_s is None else min(now_s - self._looked_s, GAP_S_MAX)
        self._looked_s = now_s
        if readings is None:
            return
        self._served_s += passed_s
        if ready:
            self._unready_since_s = None
        elif self._unready_since_s is None:
            self._unready_since_s = self._served_s
        elif self._served_s - self._unready_since_s > self._limit_s:
            raise DeliveryError(
                f"not ready within {self._limit_s:.0f} s although a broker answers: do all topics exist?"
            )
        for gone in [key for key in self._stands if key[1] not in readings]:
            del self._stands[gone]
        for tp, reading in readings.items():
            self._judge("applied", tp, reading.applied, reading.taken > reading.applied, reading)
            self._judge("taken", tp, reading.taken, reading.end > reading.taken + self._slack, reading)

    def _judge(self, what: str, tp: tuple[str, int], at: int, due: bool, reading: Reading) -> None:
        before = self._stands.get((what, tp))
        if not due or before is None or before[0] != at:
            self._stands[what, tp] = (at, self._served_s)
        elif self._served_s - before[1] > self._limit_s:
            raise DeliveryError(
                f"{tp[0]}[{tp[1]}] has not moved for {self._limit_s:.0f} s: applied to {reading.applied}, handed over "
                f"to {reading.taken}, its end is {reading.end}"
            )
