"""Which versions a scorer leaves at once because a rollback was requested, and when it may believe again.

A trip is the scorer's half of request and answer: it begins with a RollbackRequested that fits what the scorer runs
and ends with the deployments revision that answers the request, whatever the answer is. A request decided on a
revision the scorer has not seen yet waits for that revision; one about an earlier stay of the version in traffic, one
that was answered and one that has expired are passed over. A trip that stays unanswered goes on, and is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.control import Deployment, RollbackRequested

_ANSWERS_KEPT = 10_000


class Trip(StrEnum):
    """What became of a rollback request in this scorer."""

    TRIPPED = "tripped"
    WAITING = "waiting"
    ANSWERED = "answered"
    EXPIRED = "expired"
    STALE = "stale"
    NOT_SERVING = "not-serving"


@dataclass(slots=True)
class _Open:
    request: RollbackRequested
    since_ms: int
    reported: bool = False


class Trips:
    """Trips of one model. Feed it every deployments revision, in order, and every rollback request."""

    def __init__(self) -> None:
        self._newest: Deployment | None = None
        self._entered: dict[str, int] = {}
        self._answered: dict[str, None] = {}
        self._open: dict[str, _Open] = {}
        self._waiting: dict[str, tuple[RollbackRequested, int]] = {}

    @property
    def tripped(self) -> frozenset[str]:
        """Versions that get no request now."""
        return frozenset(trip.request.version for trip in self._open.values())

    def request(self, command: RollbackRequested, event_time_ms: int, now_ms: int) -> Trip:
        """A rollback request was read. ``event_time_ms``: how far event time is known to be; ``now_ms``: wall clock."""
        if command.request_id in self._answered:
            return Trip.ANSWERED
        if command.expires_ms < event_time_ms:
            return Trip.EXPIRED
        newest = self._newest
        if newest is None or command.deployment_revision > newest.revision:
            self._waiting[command.request_id] = (command, now_ms)
            return Trip.WAITING
        entered = self._entered.get(command.version)
        if entered is None:
            return Trip.NOT_SERVING
        # 0 says that the sender does not know revisions; that the version is in traffic is then all there is to check.
        if 0 < command.deployment_revision < entered:
            return Trip.STALE
        self._open[command.request_id] = _Open(command, now_ms)
        return Trip.TRIPPED

    def deployment(
        self, deployment: Deployment, event_time_ms: int, now_ms: int
    ) -> list[tuple[RollbackRequested, Trip]]:
        """A deployments revision was read: end answered trips, and judge the requests that waited for it."""
        self._newest = deployment
        # Of every region: a trip is obeyed wherever the version may be served next.
        self._entered = {v: self._entered.get(v, deployment.revision) for v in deployment.reached}
        for answer in deployment.answers:
            self._answered[answer.request_id] = None
            self._open.pop(answer.request_id, None)
            self._waiting.pop(answer.request_id, None)
        while len(self._answered) > _ANSWERS_KEPT:
            del self._answered[next(iter(self._answered))]
        waiting, self._waiting = self._waiting, {}
        return [(command, self.request(command, event_time_ms, since)) for command, since in waiting.values()]

    def unanswered(self, now_ms: int, timeout_ms: int) -> int:
        """How many trips have waited longer than ``timeout_ms`` for the controller's answer."""
        return sum(now_ms - trip.since_ms > timeout_ms for trip in self._open.values())

    def to_report(self, now_ms: int, timeout_ms: int) -> list[RollbackRequested]:
        """Requests whose answer is overdue, each once."""
        late = [t for t in self._open.values() if not t.reported and now_ms - t.since_ms > timeout_ms]
        for trip in late:
            trip.reported = True
        return [trip.request for trip in late]
