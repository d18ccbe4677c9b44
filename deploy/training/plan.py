"""What the trainer has to do now, told from the topics alone: so a crash at any instruction loses no request. Pure.

Level-triggered: a model whose newest deployment names a retrain request that nobody has reported as finished is work,
whether the process heard of it a second ago or died over it yesterday.
"""

from __future__ import annotations

from schemas.contracts import ModelContract, ModelRecord
from schemas.control import Deployment, RetrainRequested, TrainingFinished


class Plan:
    """Contracts, deployments, requests and reports as far as they have been read."""

    def __init__(self) -> None:
        self.contracts: dict[str, ModelContract] = {}
        self._deployments: dict[str, Deployment] = {}
        self._requests: dict[str, RetrainRequested] = {}
        self._finished: set[str] = set()

    def record(self, record: ModelRecord) -> None:
        """A contract or version was published."""
        if record.contract is not None:
            self.contracts[record.contract.model] = record.contract

    def deployment(self, deployment: Deployment) -> None:
        """A deployments revision was read."""
        known = self._deployments.get(deployment.model)
        if known is None or known.revision < deployment.revision:
            self._deployments[deployment.model] = deployment

    def request(self, request: RetrainRequested) -> None:
        """A retrain request was read."""
        self._requests[request.request_id] = request

    def finished(self, report: TrainingFinished) -> None:
        """A training was reported as finished, whatever came of it."""
        self._finished.add(report.retrain_id)

    def work(self) -> list[tuple[RetrainRequested, ModelContract]]:
        """Requests to work on, in the order of their models."""
        found = []
        for model, deployment in sorted(self._deployments.items()):
            wanted = deployment.training
            if wanted is None or wanted in self._finished:
                continue
            request, contract = self._requests.get(wanted), self.contracts.get(model)
            if request is not None and contract is not None:
                found.append((request, contract))
        return found
