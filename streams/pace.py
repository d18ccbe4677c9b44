"""When what a task has applied is committed.

A transaction costs about the same whatever it holds. So a task that keeps up commits soon, for what it found to be seen soon;
one that is behind reads what has waited already, lets it wait for a quarter as long again, and does more of its work meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from schemas.settings import MonitorSection

#: Two transactions that only move event time are at least this far apart, and so many times as far as the last one took:
#: where the broker or this machine has much to do, several ticks go on in one.
TICK_COMMIT_INTERVAL_S = 0.025
TICK_COMMIT_TIMES = 2
#: Of the time that the newest record of a task had waited before it was read, and how much at most.
LATE_SHARE = 0.25
LATE_S_MAX = 3.0
#: Of input in one transaction: what leaves for it is in memory until then, and is read again should the process die.
COMMIT_BYTES_MAX = 33_554_432


class Lags:
    """How far the tasks of a process are behind: of each the seconds that what it read last had waited, 0 once nothing more
    waits."""

    def __init__(self) -> None:
        self._waited_s: dict[tuple[str, int], float] = {}

    def tell(self, stage: str, partition: int, waited_s: float) -> None:
        """Of this task."""
        self._waited_s[stage, partition] = waited_s

    def forget(self, stage: str, partition: int) -> None:
        """The task is not this process's any more."""
        self._waited_s.pop((stage, partition), None)

    def of(self, stage: str, partition: int) -> float:
        """Of this task."""
        return self._waited_s.get((stage, partition), 0.0)

    def most(self, stage: str) -> float:
        """Of the task of a stage that is furthest behind."""
        return max((s for (name, _), s in self._waited_s.items() if name == stage), default=0.0)


class Pace:
    """``clock``: seconds that do not go back."""

    def __init__(self, limits: MonitorSection, clock: Callable[[], float]) -> None:
        self._rows_max = limits.commit_rows_max
        self._interval_s = limits.commit_interval / 1000
        self._clock = clock
        self._since_s: float | None = None
        self._rows = 0
        self._bytes = 0
        self._moved = False
        self._tick_due_s = 0.0

    @property
    def pending(self) -> bool:
        """Whether something was applied that no transaction holds."""
        return self._since_s is not None

    def applied(self, rows: int, size: int, moved: bool) -> None:
        """So many records, of so many bytes; ``moved``: they brought event time on."""
        if self._since_s is None:
            self._since_s = self._clock()
        self._rows += rows
        self._bytes += size
        self._moved = self._moved or moved

    def wait_s(self, waited_s: float) -> float | None:
        """Seconds until the next transaction is due; None: nothing is pending. ``waited_s``: how long what was read last had
        waited."""
        if self._since_s is None:
            return None
        if self._rows >= self._rows_max or self._bytes >= COMMIT_BYTES_MAX:
            return 0.0
        late_s = min(LATE_SHARE * waited_s, LATE_S_MAX)
        due_s = self._since_s + max(self._interval_s, late_s)
        if self._moved:
            due_s = min(due_s, max(self._tick_due_s, self._since_s + late_s))
        return max(0.0, due_s - self._clock())

    def begun(self) -> None:
        """A transaction holds everything that was applied."""
        self._since_s, self._rows, self._bytes, self._moved = None, 0, 0, False

    def committed(self, started_s: float) -> None:
        """One that was begun at this time of the clock is over."""
        took_s = self._clock() - started_s
        self._tick_due_s = started_s + max(TICK_COMMIT_INTERVAL_S, TICK_COMMIT_TIMES * took_s)
