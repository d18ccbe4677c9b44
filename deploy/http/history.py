"""What the page of a deployment draws: who had the traffic when, and what was measured. Bounded; newest last."""

from __future__ import annotations

from collections import deque

from pydantic import BaseModel, ConfigDict, Field

from schemas.control import CanaryAnalysis, Decision, Deployment

POINTS_KEPT = 2_000


class WeightPoint(BaseModel):
    """The traffic from ``event_time_ms`` on."""

    model_config = ConfigDict(frozen=True)

    revision: int
    event_time_ms: int
    weights: dict[str, float]
    regions: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="The same by region, in a rollout by regions."
    )
    kind: str = Field(default="", description="What led to it, when a fact says so.")


class AnalysisPoint(BaseModel):
    """One look at one metric of one version. ``low`` and ``high``: the confidence sequence of ``value`` so far."""

    model_config = ConfigDict(frozen=True)

    event_time_ms: int
    version: str
    metric: str
    region: str = Field(default="", description="Where it was measured; empty: everywhere.")
    value: float | None = None
    low: float | None = None
    high: float | None = None
    state: str = ""
    rows: int = 0


class History:
    """One model's. Facts and revisions tell the same story: facts are kept for ever and know less."""

    def __init__(self) -> None:
        self._weights: dict[int, WeightPoint] = {}
        self._analysis: deque[AnalysisPoint] = deque(maxlen=POINTS_KEPT)
        self._seen: dict[tuple[str, str, str], AnalysisPoint] = {}

    def decided(self, fact: Decision) -> None:
        """Take what a fact says of the traffic."""
        if fact.weights is not None and fact.deployment_revision is not None:
            self._put(
                WeightPoint(
                    revision=fact.deployment_revision,
                    event_time_ms=fact.event_time_ms,
                    weights=fact.weights,
                    regions=fact.regions,
                    kind=fact.kind,
                )
            )

    def deployed(self, deployment: Deployment) -> None:
        """Take what a revision says of traffic and measurements."""
        self._put(
            WeightPoint(
                revision=deployment.revision,
                event_time_ms=deployment.event_time_ms,
                weights=deployment.weights,
                regions=deployment.regional_weights,
            )
        )
        if deployment.analysis is not None:
            self.analysed(deployment.analysis)
        version = deployment.candidate or deployment.stable or ""
        here = "" if deployment.here is None else deployment.here.region
        for region, metrics in ((here, deployment.metrics), *deployment.region_metrics.items()):
            for name, found in metrics.items():
                low, high = found.interval or (None, None)
                self._measured(
                    AnalysisPoint(
                        event_time_ms=found.event_time_ms,
                        version=version,
                        metric=name,
                        region=region,
                        value=found.value,
                        low=low,
                        high=high,
                        state=found.standing,
                        rows=found.rows,
                    )
                )

    def analysed(self, analysis: CanaryAnalysis) -> None:
        """Take the comparison of a candidate with the stable version."""
        evidence = analysis.evidence
        low, high = evidence.interval or (None, None)
        self._measured(
            AnalysisPoint(
                event_time_ms=analysis.event_time_ms,
                version=analysis.version,
                metric=analysis.detector,
                value=evidence.effect,
                low=low,
                high=high,
                state=analysis.state,
                rows=evidence.rows,
            )
        )

    def weights(self, limit: int) -> list[WeightPoint]:
        """The newest ``limit``, oldest first; a revision that moved no traffic is left out."""
        found: list[WeightPoint] = []
        for revision in sorted(self._weights):
            point = self._weights[revision]
            if not found or (point.weights, point.regions) != (found[-1].weights, found[-1].regions):
                found.append(point)
        return found[-limit:]

    def analysis(self, limit: int) -> list[AnalysisPoint]:
        """The newest ``limit``, oldest first."""
        return list(self._analysis)[-limit:]

    def _put(self, point: WeightPoint) -> None:
        if point.kind or point.revision not in self._weights:
            self._weights[point.revision] = point
        if len(self._weights) > POINTS_KEPT:
            del self._weights[min(self._weights)]

    def _measured(self, point: AnalysisPoint) -> None:
        place = (point.version, point.metric, point.region)
        if self._seen.get(place) != point:
            if len(self._seen) >= POINTS_KEPT:
                self._seen.clear()
            self._seen[place] = point
            self._analysis.append(point)
