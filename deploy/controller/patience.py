"""Questions to a registry far away must not hold up the controller: a rollback never waits for somebody else's bucket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from schemas.errors import StoreUnavailable

T = TypeVar("T")
_OPEN_MAX = 8
#: An answer nobody came back for is no answer to who asks later.
_KEPT_S = 30.0


class Patience:
    """Asks on threads, each question on one, and waits ``wait_s`` for the answer; later ones find it or ask again."""

    def __init__(self, wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._wait_s = wait_s
        self._clock = clock
        self._open: dict[Hashable, tuple[float, Future[Any]]] = {}

    def ask(self, question: Hashable, find: Callable[[], T]) -> T:
        """What ``find`` returns or raises. Raises StoreUnavailable when it takes too long: then ``find`` goes on, and the
        next who asks ``question`` gets what it found."""
        now = self._clock()
        self._open = {
            key: (at, future)
            for key, (at, future) in self._open.items()
            if not future.done() or now - at <= _KEPT_S
        }
        known = self._open.get(question)
        if known is None:
            if len(self._open) >= _OPEN_MAX:
                raise StoreUnavailable(f"{len(self._open)} questions to the registry are open; ask again")
            future: Future[T] = Future()
            threading.Thread(target=_answer, args=(future, find), name="registry", daemon=True).start()
            self._open[question] = (now, future)
            wait([future], self._wait_s)
        else:
            future = known[1]
        if not future.done():
            raise StoreUnavailable(
                f"the registry has not answered yet ({now - self._open[question][0]:.0f} s)"
            )
        del self._open[question]
        return future.result()


def _answer(future: Future[T], find: Callable[[], T]) -> None:
    try:
        future.set_result(find())
    except BaseException as error:  # noqa: BLE001 - raised where it was asked
        future.set_exception(error)
