"""Which version answers a request: a function of the deployments revisions, the request's event time and its caller.

Nothing else enters, so a replay on a slow machine sends every request to the version a fast one sent it to. A caller
is hashed with the model's name and nothing that changes between revisions: when a candidate goes from 5 % to 25 %,
everyone who had it keeps it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from schemas.control import Deployment
from schemas.ids import Role, stable_unit

#: Revisions of a model held for requests of earlier event times; the oldest one then stands in for those before it.
REVISIONS_MAX = 64
_SALT = "route"


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers. ``version`` None: no healthy version, the fallback answers. ``shadows`` are scored beside it."""

    version: str | None
    role: Role
    revision: int
    shadows: tuple[str, ...] = ()


def caller_unit(model: str, caller: str) -> float:
    """Where ``caller`` (entity, or request id when there is none) stands in [0, 1), the same for every revision."""
    return stable_unit(model, _SALT, caller)


def role_of(deployment: Deployment, version: str) -> Role:
    """The role in which ``version`` answers: the stable version and its stand-in are stable, all others canary."""
    if version == deployment.stable or (version == deployment.previous and version != deployment.candidate):
        return "stable"
    return "canary"


class Routes:
    """Deployments revisions of one model, as far as requests may still need them.

    A request follows the newest revision whose ``effective_ms`` is not after its event time. A revision that a newer
    one with the same or an earlier ``effective_ms`` hides is dropped: a rollback (``effective_ms`` 0) hides them all.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._revisions: list[Deployment] = []

    @property
    def newest(self) -> Deployment | None:
        """The newest revision seen."""
        return self._revisions[-1] if self._revisions else None

    def add(self, deployment: Deployment) -> bool:
        """Take in a revision; False when one as new or newer is known."""
        newest = self.newest
        if newest is not None and deployment.revision <= newest.revision:
            return False
        self._revisions = [r for r in self._revisions if r.effective_ms < deployment.effective_ms]
        self._revisions = [*self._revisions, deployment][-REVISIONS_MAX:]
        return True

    def versions(self) -> set[str]:
        """Every version that a revision held here may send a request to, or keeps warm."""
        held: set[str] = set()
        for r in self._revisions:
            held.update(r.weights, r.shadow, r.warm)
            held.update(v for v in (r.stable, r.candidate, r.previous) if v is not None)
        return held

    def at(self, event_time_ms: int) -> Deployment | None:
        """The revision that a request of this event time follows; None when there is none at all.

        The topic is compacted: after a restart the revision a request belonged to may be gone, and the oldest known one
        takes its place.
        """
        for deployment in reversed(self._revisions):
            if deployment.effective_ms <= event_time_ms:
                return deployment
        return self._revisions[0] if self._revisions else None

    def route(self, event_time_ms: int, unit: float, unhealthy: Collection[str]) -> Route:
        """Who answers a request of ``event_time_ms`` from the caller at ``unit``; never one of ``unhealthy``.

        What the newest revision calls tripped is never served, whichever revision the request follows.
        """
        deployment, newest = self.at(event_time_ms), self.newest
        if deployment is None or newest is None:
            return Route(None, "stable", 0)
        barred = {*unhealthy, *newest.tripped, *deployment.tripped}
        shadows = [v for v in deployment.shadow if v not in barred]
        for version in (_drawn(deployment, unit), deployment.stable, deployment.previous):
            if version is not None and version not in barred:
                beside = tuple(v for v in shadows if v != version)
                return Route(version, role_of(deployment, version), deployment.revision, beside)
        return Route(None, "stable", deployment.revision, tuple(shadows))


def _drawn(deployment: Deployment, unit: float) -> str | None:
    """The version whose share of [0, 1) holds ``unit``; the candidate's share starts at 0, so it only grows."""
    if not deployment.weights:
        return None
    names = sorted(deployment.weights, key=lambda v: (v == deployment.stable, v != deployment.candidate, v))
    reached = 0.0
    for name in names:
        reached += deployment.weights[name]
        if unit < reached:
            return name
    return names[-1]
