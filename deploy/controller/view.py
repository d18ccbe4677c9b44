"""What the HTTP API and the status page see: the topics as the controller has read them, safe to read from any thread."""

from __future__ import annotations

import threading
from collections import defaultdict, deque

from deploy.http.history import AnalysisPoint, History, WeightPoint
from schemas.contracts import ModelContract, ModelRecord, ModelVersion
from schemas.control import Alert, CanaryAnalysis, Decision, Deployment

DECISIONS_KEPT = 2_000
ALERTS_KEPT = 500


class View:
    """Newest contracts, versions and deployments; the latest decisions and alerts; event time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contracts: dict[str, ModelContract] = {}
        self._versions: dict[str, dict[str, ModelVersion]] = {}
        self._deployments: dict[str, Deployment] = {}
        self._decisions: deque[Decision] = deque(maxlen=DECISIONS_KEPT)
        self._alerts: deque[Alert] = deque(maxlen=ALERTS_KEPT)
        self._histories: defaultdict[str, History] = defaultdict(History)
        self._time_ms: int | None = None

    def begin(self) -> None:
        """The topics are read from their beginnings again: what would be there twice is forgotten."""
        with self._lock:
            self._decisions.clear()
            self._alerts.clear()
            self._histories.clear()

    def record(self, record: ModelRecord) -> None:
        with self._lock:
            if record.contract is not None:
                self._contracts[record.contract.model] = record.contract
            if record.version is not None:
                self._versions.setdefault(record.version.model, {})[record.version.version] = record.version

    def deployed(self, deployment: Deployment) -> None:
        with self._lock:
            self._deployments[deployment.model] = deployment
            self._histories[deployment.model].deployed(deployment)

    def measured(self, deployment: Deployment) -> None:
        """Metrics as they stand between two revisions, of the revision that is shown."""
        with self._lock:
            shown = self._deployments.get(deployment.model)
            if shown is not None and shown.revision == deployment.revision:
                self._deployments[deployment.model] = deployment
                self._histories[deployment.model].deployed(deployment)

    def decided(self, decision: Decision) -> None:
        with self._lock:
            self._decisions.append(decision)
            self._histories[decision.model].decided(decision)

    def analysed(self, analysis: CanaryAnalysis) -> None:
        with self._lock:
            self._histories[analysis.model].analysed(analysis)

    def alerted(self, alert: Alert) -> None:
        with self._lock:
            self._alerts.append(alert)

    def reached(self, time_ms: int) -> None:
        with self._lock:
            self._time_ms = time_ms

    # what deploy.http asks

    def contract(self, model: str) -> ModelContract | None:
        with self._lock:
            return self._contracts.get(model)

    def contracts(self) -> list[ModelContract]:
        with self._lock:
            return list(self._contracts.values())

    def deployments(self) -> dict[str, Deployment]:
        with self._lock:
            return dict(self._deployments)

    def version(self, model: str, version: str) -> ModelVersion | None:
        with self._lock:
            return self._versions.get(model, {}).get(version)

    def versions(self, model: str) -> list[ModelVersion]:
        with self._lock:
            return list(self._versions.get(model, {}).values())

    def decisions(self, model: str | None = None, limit: int = 100) -> list[Decision]:
        """The newest ``limit``, newest first."""
        with self._lock:
            chosen = [d for d in self._decisions if model is None or d.model == model]
        return chosen[::-1][:limit]

    def weights(self, model: str, limit: int = 100) -> list[WeightPoint]:
        """Traffic over time, oldest first."""
        with self._lock:
            return self._histories[model].weights(limit) if model in self._histories else []

    def analysis(self, model: str, limit: int = 100) -> list[AnalysisPoint]:
        """What was measured, oldest first."""
        with self._lock:
            return self._histories[model].analysis(limit) if model in self._histories else []

    def alerts(self, limit: int = 100) -> list[Alert]:
        with self._lock:
            return list(self._alerts)[::-1][:limit]

    def event_time_ms(self) -> int | None:
        with self._lock:
            return self._time_ms
