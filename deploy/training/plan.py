"""What the trainer has to do now, told from the topics alone: so a crash at any instruction loses no request. Pure.

Level-triggered: a model whose newest deployment names a retrain request that nobody has reported as finished is work,
whether the process heard of it a second ago or died over it yesterday. So is the schedule: a model is due when the event
time its topics have reached is far enough from the last training on record.
"""

from __future__ import annotations

from schemas.contracts import ModelContract, ModelRecord
from schemas.control import ControlTick, Deployment, RetrainRequested, TrainingFinished

#: How the detail of a report begins that says nothing about data or trainer: it neither counts as a training nor as a
#: failure of one.
TOO_SOON = "too-soon"
#: ... of a training that worked and gave no better model.
NOT_BETTER = "not-better"
#: Who asks without a person.
MACHINES = frozenset({"policy", "trainer"})
SCHEDULE = "schedule"
_DOUBLINGS_MAX = 5


class Plan:
    """Contracts, deployments, requests, reports and event time as far as they have been read.

    ``partitions``: how many policy tasks there are; event time is known once all of them have spoken.
    """

    def __init__(self, partitions: int = 1) -> None:
        self.contracts: dict[str, ModelContract] = {}
        self._partitions = partitions
        self._deployments: dict[str, Deployment] = {}
        self._requests: dict[str, RetrainRequested] = {}
        self._reports: dict[str, dict[str, TrainingFinished]] = {}
        self._registered_ms: dict[str, int] = {}
        self._reached: dict[str, int] = {}

    def record(self, record: ModelRecord) -> None:
        """A contract or version was published."""
        if record.contract is not None:
            self.contracts[record.contract.model] = record.contract
        version = record.version
        if version is not None and version.trained_to_ms is not None:
            # Reports leave `control` after weeks; what they led to stays on `models`.
            known = self._registered_ms.get(version.model, version.created_event_ms)
            self._registered_ms[version.model] = max(known, version.created_event_ms)

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
        self._reports.setdefault(report.model, {}).setdefault(report.retrain_id, report)

    def tick(self, tick: ControlTick) -> None:
        """Event time moved."""
        self._reached[tick.source] = max(
            tick.event_time_ms, self._reached.get(tick.source, tick.event_time_ms)
        )

    @property
    def time_ms(self) -> int | None:
        """Event time that every policy task has reached; None until all of them have spoken."""
        policies = [at for source, at in self._reached.items() if source.startswith("policy/")]
        return min(policies) if len(policies) >= self._partitions else None

    def work(self) -> list[tuple[RetrainRequested, ModelContract]]:
        """Requests to work on, in the order of their models."""
        found = []
        for model, deployment in sorted(self._deployments.items()):
            wanted = deployment.training
            if wanted is None or wanted in self._reports.get(model, {}):
                continue
            request, contract = self._requests.get(wanted), self.contracts.get(model)
            if request is not None and contract is not None:
                found.append((request, contract))
        return found

    def too_soon(self, request: RetrainRequested, contract: ModelContract) -> str | None:
        """Why a request that no person made comes too soon after the training before it; None when it does not."""
        before = [
            report.event_time_ms
            for report in self._trainings(request.model)
            if report.retrain_id != request.request_id and report.event_time_ms <= request.event_time_ms
        ]
        if request.issued_by not in MACHINES or not before:
            return None
        since_ms = request.event_time_ms - max(before)
        if since_ms >= contract.training.interval_min:
            return None
        return (
            f"{TOO_SOON}: the last training was {since_ms} ms of event time before, and training.interval_min is "
            f"{contract.training.interval_min} ms; a person may ask at any time"
        )

    def failures(self, model: str) -> int:
        """Trainings in a row, up to the latest, that ended without a model."""
        count = 0
        for report in reversed(self._trainings(model)):
            if not _failed(report):
                break
            count += 1
        return count

    def due(self) -> list[RetrainRequested]:
        """Requests that the schedule makes now. Asked for again, they have the same ids."""
        now_ms = self.time_ms
        return [] if now_ms is None else [r for m in sorted(self.contracts) if (r := self._due(m, now_ms))]

    def _due(self, model: str, now_ms: int) -> RetrainRequested | None:
        contract, deployment = self.contracts[model], self._deployments.get(model)
        rules = contract.training
        if rules.every is None or deployment is None or deployment.stable is None:
            return None
        failures = self.failures(model)
        if (
            deployment.training is not None
            or deployment.candidate is not None
            or failures >= rules.failures_max
        ):
            return None  # fmt: skip
        asked = [r.event_time_ms for r in self._requests.values() if r.model == model]
        trained = [r.event_time_ms for r in self._trainings(model)]
        if model in self._registered_ms:
            trained.append(self._registered_ms[model])
        # Each failure in a row doubles the wait; a request that was refused is not made again at once either.
        waits = [at + rules.every * 2 ** min(failures, _DOUBLINGS_MAX) for at in trained]
        waits += [at + max(1, rules.interval_min) for at in asked]
        if waits and now_ms < max(waits):
            return None
        return RetrainRequested(
            request_id=f"{SCHEDULE}-{model}-{max(waits, default=0)}",
            model=model,
            version=deployment.stable,
            deployment_revision=deployment.revision,
            cause=SCHEDULE,
            reason=f"training.every is {rules.every} ms",
            event_time_ms=now_ms,
            expires_ms=now_ms + contract.policy.command_ttl,
            issued_by="trainer",
            config_hash=contract.hash,
        )

    def _trainings(self, model: str) -> list[TrainingFinished]:
        """Reports of trainings that took place, in the order of event time."""
        found = [r for r in self._reports.get(model, {}).values() if not r.detail.startswith(TOO_SOON)]
        return sorted(found, key=lambda report: report.event_time_ms)


def _failed(report: TrainingFinished) -> bool:
    return report.outcome != "registered" and not report.detail.startswith(NOT_BETTER)
