"""A rollout played message by message, for the tests of the machine."""

from __future__ import annotations

from typing import Any

from deploy.core.gates import Approvals
from deploy.core.rollout import World, decide
from schemas.contracts import CanaryStep, Feature, ModelContract, Rollout
from schemas.control import (
    Alert,
    Answer,
    AnyCommand,
    CanaryAnalysis,
    ControlTick,
    Decision,
    Deployment,
    DeployRequested,
    GateAnswered,
    Measured,
    Outcome,
    PromoteRequested,
    ScorerReport,
)
from schemas.measures import Measurement
from schemas.verdicts import Evidence, State

DAY = 86_400_000
LABELS = 50
DEADLINE = 10 * DAY
CONTRACT = ModelContract(
    model="m",
    features=(Feature(name="x"),),
    rollout=Rollout(
        steps=(CanaryStep(weight=0.05, bake=DAY), CanaryStep(weight=0.25, bake=2 * DAY)),
        labels_min=LABELS,
        deadline=DEADLINE,
    ),
)


class Play:
    """One model's ``control`` and what the machine makes of it. The clock is the last tick's."""

    def __init__(self, contract: ModelContract = CONTRACT, delay_ms: int = 0) -> None:
        self.contract = contract
        self.delay_ms = delay_ms
        self.state: Deployment | None = None
        self.published: list[Deployment] = []
        self.facts: list[Decision] = []
        self.alerts: list[Alert] = []
        self.time_ms = -1
        self.unfit: dict[str, str] = {}
        self.altered: dict[str, str] = {}
        self.tiers: dict[str, Approvals] = {}
        self._offset = 0

    def send(self, message: AnyCommand, refused: str | None = None) -> Deployment | None:
        """What it made public, if anything."""
        if isinstance(message, ControlTick):
            self.time_ms = max(self.time_ms, message.event_time_ms)
        world = World(
            self.contract,
            self.unfit.get,
            self.time_ms,
            self.delay_ms,
            self.altered.get,
            lambda version: self.tiers.get(version, Approvals()),
        )
        step = decide(self.state, message, (0, self._offset), world, refused)
        self._offset += 1
        self.state = step.state
        self.facts += step.decisions
        self.alerts += step.alerts
        if step.deployment is not None:
            self.published.append(step.deployment)
        return step.deployment

    @property
    def now(self) -> Deployment:
        assert self.state is not None
        return self.state

    def ask(self, kind: type[Any], at: int = 0, refused: str | None = None, **changes: Any) -> Answer:
        """Send a command and return its answer, which must be in the revision it made."""
        base = self.fields(at)
        offset = self._offset
        revision = self.send(kind(**(base | changes)), refused)
        assert revision is not None
        answer = revision.answers[-1]
        assert (answer.request_id, answer.control_partition, answer.control_offset) == (
            changes.get("request_id", f"r{offset}"),
            0,
            offset,
        )
        return answer

    def tick(self, at: int) -> Deployment | None:
        return self.send(ControlTick(event_time_ms=at, source="policy/0"))

    def judge(self, at: int, rows: int, state: State = State.INCONCLUSIVE, version: str = "2") -> None:
        evidence = Evidence(rows=rows)
        analysis = CanaryAnalysis(
            model="m", version=version, detector="judge", state=state, evidence=evidence, event_time_ms=at
        )
        assert self.send(analysis) is None

    def measure(self, at: int, *measurements: Measurement, version: str = "2") -> Deployment | None:
        """Measurements of ``version`` as of ``at``, as the controller's shell tells them."""
        fields = self.fields(at) | {"version": version, "deployment_revision": self.now.revision}
        return self.send(Measured(measurements=measurements, **fields))

    def answer(self, at: int, approved: bool | None, gate: str | None = None) -> Deployment | None:
        """The webhook's answer at the gate that waits, or at the gate named."""
        kind = self.now.gate.kind if self.now.gate is not None else "rollback"
        identity = self.now.gate.gate_id if gate is None and self.now.gate is not None else gate or ""
        fields = self.fields(at) | {"version": "2", "gate": kind, "gate_id": identity, "approved": approved}
        return self.send(GateAnswered(**fields))

    def report(self, at: int, **changes: Any) -> Deployment | None:
        """A scorer's fact."""
        return self.send(ScorerReport(**(self.fields(at) | {"instance": "scorer-0"} | changes)))

    def fields(self, at: int) -> dict[str, Any]:
        """What every command carries; the id is of the place on ``control``."""
        return {
            "request_id": f"r{self._offset}",
            "model": self.contract.model,
            "cause": "c",
            "event_time_ms": at,
            "expires_ms": 2**60,
            "issued_by": "somebody",
        }

    def kinds(self) -> list[str]:
        return [fact.kind for fact in self.facts]


def canary(contract: ModelContract = CONTRACT, delay_ms: int = 0) -> Play:
    """v1 stable, v2 at its first step since time 0."""
    play = Play(contract, delay_ms)
    assert play.ask(DeployRequested, version="1").outcome is Outcome.DONE
    assert play.ask(DeployRequested, version="2").outcome is Outcome.ACCEPTED
    return play


def second_step() -> Play:
    """v2 at 25 % since day 1, with 50 outcomes seen before."""
    play = canary()
    play.judge(DAY - 1, LABELS)
    play.tick(DAY)
    assert play.now.weights == {"1": 0.75, "2": 0.25}
    return play


def promoted() -> Play:
    """v2 stable, v1 its predecessor."""
    play = canary()
    assert play.ask(PromoteRequested).outcome is Outcome.DONE
    return play


def started(contract: ModelContract) -> Play:
    """v1 stable since 0, v2 asked for by ada."""
    play = Play(contract)
    play.tick(0)
    play.ask(DeployRequested, version="1", issued_by="api/ada", steps=())
    if play.now.gate is not None:
        raise AssertionError("a gate holds the first version; start without it")
    play.ask(DeployRequested, version="2", issued_by="api/ada")
    return play


def value(name: str, to_ms: int, number: float | None, rows: int = 1_000, **more: Any) -> Measurement:
    """One plain measurement of the hour that ends at ``to_ms``."""
    return Measurement(metric=name, value=number, rows=rows, to_ms=to_ms, **more)


def rollout_of(**changes: Any) -> ModelContract:
    base = {"steps": CONTRACT.rollout.steps, "labels_min": LABELS, "deadline": DEADLINE}
    return CONTRACT.model_copy(update={"rollout": Rollout(**(base | changes))})
