"""A controller in a box, for the model test: topics, a shell that may die between any two effects, and broken shells.

One effect is: decide, write facts, write the revision, commit. What is not committed was never seen, as with Kafka's
transactions; the facts that measuring and asking webhooks put on ``control`` are not part of one, and may come twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from deploy.core.gates import Approvals
from deploy.core.machine import Away
from deploy.core.rollout import World, decide, needs_time
from schemas.contracts import ModelContract
from schemas.control import AnyCommand, CanaryAnalysis, ControlTick, Decision, Deployment
from schemas.rollout import Gate, Region

UNVERIFIED = "4"
HIGH_RISK = "5"


@dataclass
class Topics:
    """``control`` and what is committed: every revision with the offset and time it names, and every fact."""

    control: list[AnyCommand] = field(default_factory=list)
    revisions: list[Deployment] = field(default_factory=list)
    facts: list[Decision] = field(default_factory=list)
    #: Offsets of ``control`` from which on the registry is away, and is back, in turn.
    turns: list[int] = field(default_factory=list)


class Shell:
    """One life of a controller."""

    def __init__(self, topics: Topics, contract: ModelContract) -> None:
        self.topics = topics
        self.contract = contract
        self.state = self.newest()
        self.offset = self.start()
        self.time_ms = -1 if self.state is None else self.state.control_times.get("clock", -1)
        self.recorded = {fact.decision_id for fact in topics.facts}

    def newest(self) -> Deployment | None:
        return self.topics.revisions[-1] if self.topics.revisions else None

    def start(self) -> int:
        return 0 if self.state is None else self.state.control_offsets[0]

    def world(self) -> World:
        return World(
            self.contract,
            self.verify,
            self.time_ms,
            2,
            approvals=lambda version: Approvals(2 if version == HIGH_RISK else 0),
        )

    def verify(self, version: str) -> str | None:
        """What the registry says of a version to who works on the message read last."""
        if sum(turn < self.offset for turn in self.topics.turns) % 2:
            return Away("nobody answers")
        return "altered" if version == UNVERIFIED else None

    def before(self) -> Deployment | None:
        """The state that a message is decided on."""
        return self.state

    def effects(self) -> Iterator[str]:
        """Work on what is on ``control``, message by message; stops at every point at which a process may die."""
        while self.offset < len(self.topics.control):
            message = self.topics.control[self.offset]
            offset = self.offset
            self.offset += 1
            if isinstance(message, ControlTick):
                if message.event_time_ms <= self.time_ms:
                    continue
                self.time_ms = message.event_time_ms
                if self.state is None or not needs_time(self.state):
                    continue
            yield from self.work(message, offset)

    def work(self, message: AnyCommand, offset: int) -> Iterator[str]:
        step = decide(self.before(), message, (0, offset), self.world())
        yield "decided"
        facts = [
            f for f in step.decisions if step.deployment is not None or f.decision_id not in self.recorded
        ]
        yield "produced"
        self.state = step.state
        if step.deployment is not None:
            named = {"control_offsets": {0: offset + 1}, "control_times": {"clock": self.time_ms}}
            self.state = step.deployment.model_copy(update=named)
            self.topics.revisions.append(self.state)
        self.topics.facts += facts
        self.recorded |= {fact.decision_id for fact in facts}
        yield "committed"

    def drain(self, die_at: int | None = None) -> bool:
        """Work until nothing is left, or die at the ``die_at``-th point. Whether it lives."""
        return all(number != die_at for number, _ in enumerate(self.effects()))


class ForgetsWhatItHandled(Shell):
    """Neither the ids nor the answers of handled requests are looked at."""

    def before(self) -> Deployment | None:
        return None if self.state is None else self.state.model_copy(update={"handled": {}, "answers": ()})


class ReadsOnFromTheEnd(Shell):
    """After a restart it begins with what comes, as a consumer without the revision's offsets would."""

    def start(self) -> int:
        return len(self.topics.control) if self.topics.revisions else 0


class TrustsEveryVersion(Shell):
    """Verification always passes."""

    def world(self) -> World:
        return World(self.contract, lambda _: None, self.time_ms, 2, approvals=super().world().approvals)


class TakesSilenceForYes(Shell):
    """A version is fit when nobody says that it is not."""

    def verify(self, version: str) -> str | None:
        said = super().verify(version)
        return None if isinstance(said, Away) else said


class NeedsNobody(Shell):
    """Risk tiers are not looked at."""

    def world(self) -> World:
        return World(self.contract, super().world().verify, self.time_ms, 2)


class ForgetsTheSick(Shell):
    """What scorers could not serve counts as healthy."""

    def before(self) -> Deployment | None:
        return None if self.state is None else self.state.model_copy(update={"sick": ()})


class BlindAtGates(Shell):
    """While a gate waits, analyses are not read."""

    def work(self, message: AnyCommand, offset: int) -> Iterator[str]:
        waits = self.state is not None and self.state.gate is not None
        if waits and isinstance(message, CanaryAnalysis):
            return
        yield from super().work(message, offset)


class WritesFactsFirst(Shell):
    """Facts are written outside the transaction, and not looked for after a restart."""

    def work(self, message: AnyCommand, offset: int) -> Iterator[str]:
        step = decide(self.before(), message, (0, offset), self.world())
        self.topics.facts += step.decisions
        self.recorded |= {fact.decision_id for fact in step.decisions}
        yield "facts"
        kept = len(self.topics.facts)
        yield from super().work(message, offset)
        del self.topics.facts[kept:]


class HurriesThroughRegions(Shell):
    """The next region does not wait for the bake of the one before."""

    def before(self) -> Deployment | None:
        if self.state is None or not self.state.regions:
            return self.state
        steps = tuple((weight, 0 if weight == 1 else bake_ms) for weight, bake_ms in self.state.steps)
        return self.state.model_copy(update={"steps": steps})


class StartsEveryRegion(Shell):
    """A revision gives the candidate the same share in all regions."""

    def work(self, message: AnyCommand, offset: int) -> Iterator[str]:
        yield from super().work(message, offset)
        last = self.newest()
        if last is not None and last.here is not None and last.here.since_ms is not None:
            same = tuple(last.here.model_copy(update={"region": r.region}) for r in last.regions)
            self.state = self.topics.revisions[-1] = last.model_copy(update={"regions": same})


#: Each with what its histories are given: the configuration in which its bug does harm.
_PLAIN: dict[str, Any] = {"strategy": "canary", "gates": (), "metrics": (), "regions": ()}
_REGIONS = _PLAIN | {
    "labels_min": 0,
    "unproven": "promote",
    "regions": (Region(name="a", bake=9), Region(name="b", bake=9)),
}
_GATED = _PLAIN | {"gates": (Gate(kind="confirm-rollout", expires=30),)}
BROKEN: tuple[tuple[type[Shell], dict[str, Any]], ...] = (
    (ForgetsWhatItHandled, _PLAIN),
    (ReadsOnFromTheEnd, _PLAIN),
    (TrustsEveryVersion, _PLAIN),
    (TakesSilenceForYes, _PLAIN),
    (NeedsNobody, _PLAIN),
    (ForgetsTheSick, _PLAIN),
    (BlindAtGates, _GATED),
    (WritesFactsFirst, _PLAIN),
    (HurriesThroughRegions, _REGIONS),
    (StartsEveryRegion, _REGIONS),
)
