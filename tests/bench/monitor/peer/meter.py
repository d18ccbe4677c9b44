"""Counts events and says what they took: shared by the peers, which run as scripts."""

from __future__ import annotations

import json
import sys
import time


class Meter:
    """From the first event on, in CPU-seconds of the whole process and in seconds."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.seen = 0
        self._cpu_s = self._wall_s = 0.0

    def add(self, events: int) -> bool:
        """Count; true when all have been seen."""
        if not self.seen:
            self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        self.seen += events
        return self.seen >= self.events

    def say(self) -> None:
        """One JSON line."""
        cpu_s, wall_s = time.process_time() - self._cpu_s, time.perf_counter() - self._wall_s
        # Faust takes what is printed for a log.
        print(
            json.dumps({"events": self.seen, "cpu_s": cpu_s, "wall_s": wall_s}),
            file=sys.__stdout__,
            flush=True,
        )
