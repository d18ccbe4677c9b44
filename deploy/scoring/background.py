"""Work that takes long and that no answer may wait for: loading a version, running its golden set.

One thread, in order. What comes of it is applied by the scoring loop between two batches, like everything else it hears.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Background:
    """``submit`` work with what to do afterwards; ``done`` is called with the latter, on the background thread."""

    def __init__(self, done: Callable[[Callable[[], None]], None]) -> None:
        self._done = done
        # Bounded by what is asked: one load a model and one proof a revision are under way at most.
        self._work: queue.SimpleQueue[Callable[[], Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Callable[[], None]]) -> None:
        """Run ``work`` soon; what it returns is handed on. It must not raise."""
        self._work.put(work)

    def close(self, timeout_s: float = 5.0) -> None:
        """End after what is running."""
        self._work.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._done(work())
