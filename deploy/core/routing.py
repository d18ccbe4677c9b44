"""Which version answers a request: a function of the deployments revisions, the instance's region, the request's event time
and its caller.

Nothing else enters, so a replay on a slow machine sends every request to the version a fast one sent it to. A caller
is hashed with the model's name and nothing that changes between revisions: when a candidate goes from 5 % to 25 %,
everyone who had it keeps it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from schemas.control import Deployment
from schemas.ids import Role, stable_unit

#: Revisions of a model held for requests of earlier event times; the oldest one then stands in for those before it.
REVISIONS_MAX = 64
_SALT = "route"


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers. ``version`` None: no healthy version, the fallback answers. ``shadows`` are scored beside it.
    ``region``: of the instance that answers, None where it has none."""

    version: str | None
    role: Role
    revision: int
    shadows: tuple[str, ...] = ()
    region: str | None = None


def caller_unit(model: str, caller: str) -> float:
    """Where ``caller`` (entity, or request id when there is none) stands in [0, 1), the same for every revision."""
    return stable_unit(model, _SALT, caller)


def versions_of(deployment: Deployment) -> list[str]:
    """The versions that ``deployment`` may send a request to, or keeps warm; the most needed first."""
    named = (deployment.stable, deployment.candidate, deployment.previous)
    rest = (*sorted(deployment.reached), *deployment.warm)
    return [*dict.fromkeys(version for version in (*named, *rest) if version is not None)]


def role_of(deployment: Deployment, version: str) -> Role:
    """The role in which ``version`` answers: the stable version and its stand-in are stable, all others canary."""
    if version == deployment.stable or (version == deployment.previous and version != deployment.candidate):
        return "stable"
    return "canary"


class Plan:
    """Routes of every request to an instance of ``region`` while neither the revisions nor the health of their versions
    change."""

    def __init__(self, revisions: list[Deployment], unhealthy: frozenset[str], region: str = "") -> None:
        self._starts = [r.effective_ms for r in revisions[1:]]
        barred = unhealthy | (set(revisions[-1].tripped) if revisions else set())
        nobody = Route(None, "stable", 0, region=region or None)
        self._shares = [_shares(r, barred | set(r.tripped), region) for r in revisions] or [([], [nobody])]

    @property
    def splits(self) -> bool:
        """Whether callers of one event time may go to different versions, so that :func:`caller_unit` is needed."""
        return any(bounds for bounds, _ in self._shares)

    def route(self, event_time_ms: int, unit: float) -> Route:
        """Who answers a request of ``event_time_ms`` from the caller at ``unit``."""
        # Revisions are in the order of their effective times. The topic is compacted: the revision that an early request
        # belonged to may be gone, and the oldest known one takes its place.
        at = bisect_right(self._starts, event_time_ms) if self._starts else 0
        bounds, routes = self._shares[at]
        return routes[bisect_right(bounds, unit)] if bounds else routes[0]


class Routes:
    """Deployments revisions of one model, as far as requests may still need them.

    A request follows the newest revision whose ``effective_ms`` is not after its event time. A revision that a newer
    one with the same or an earlier ``effective_ms`` hides is dropped: a rollback (``effective_ms`` 0) hides them all.
    """

    def __init__(self, model: str, region: str = "") -> None:
        self.model = model
        self.region = region
        self._revisions: list[Deployment] = []
        self._plan: tuple[frozenset[str], Plan] | None = None

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
        self._plan = None
        return True

    def versions(self) -> list[str]:
        """Every version that a revision held here may send a request to, or keeps warm; the most needed first."""
        return [*dict.fromkeys(v for revision in reversed(self._revisions) for v in versions_of(revision))]

    def plan(self, unhealthy: Collection[str]) -> Plan:
        """Routes by the revisions known now, never to one of ``unhealthy`` nor to what the newest revision tripped."""
        barred = frozenset(unhealthy)
        if self._plan is None or self._plan[0] != barred:
            self._plan = (barred, Plan(self._revisions, barred, self.region))
        return self._plan[1]

    def route(self, event_time_ms: int, unit: float, unhealthy: Collection[str]) -> Route:
        """One request's route by :meth:`plan`."""
        return self.plan(unhealthy).route(event_time_ms, unit)


def _shares(deployment: Deployment, barred: Collection[str], region: str) -> tuple[list[float], list[Route]]:
    """Bounds between the routes on [0, 1), and the routes; neighbours that are equal are one."""
    weights, beside_all = deployment.traffic_in(region)
    shadows = [v for v in beside_all if v not in barred]
    bounds: list[float] = []
    routes: list[Route] = []
    for drawn, reached in _cumulative(deployment, weights):
        route = Route(None, "stable", deployment.revision, tuple(shadows), region or None)
        for version in (drawn, deployment.stable, deployment.previous):
            if version is not None and version not in barred:
                beside = tuple(v for v in shadows if v != version)
                route = Route(
                    version, role_of(deployment, version), deployment.revision, beside, region or None
                )
                break
        if routes and routes[-1] == route:
            bounds[-1] = reached
        else:
            bounds.append(reached)
            routes.append(route)
    # The last share goes to the end, however the weights round.
    return bounds[:-1], routes


def _cumulative(deployment: Deployment, weights: Mapping[str, float]) -> list[tuple[str | None, float]]:
    """Versions with the end of their share of [0, 1); the candidate's share starts at 0, so it only grows."""
    found: list[tuple[str | None, float]] = []
    reached = 0.0
    for name in sorted(weights, key=lambda v: (v == deployment.stable, v != deployment.candidate, v)):
        if weights[name] > 0:
            reached += weights[name]
            found.append((name, reached))
    return found or [(None, 1.0)]
