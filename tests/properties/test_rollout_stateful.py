"""The controller as a model: whatever comes, in whatever order, with a crash between any two effects, these things hold.

Ten broken shells (``rollout_shell``) show that the test would see it if one of them did not.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deploy.controller.measure import fact_of
from deploy.core.gates import gate_id, person
from deploy.core.schedule import due
from schemas.contracts import CanaryStep, Feature, ModelContract, Rollout
from schemas.control import (
    AnyCommand,
    ApproveRequested,
    CanaryAnalysis,
    ControlTick,
    Deployment,
    DeployRequested,
    GateAnswered,
    OverrideRequested,
    PauseRequested,
    PromoteRequested,
    RejectRequested,
    ResumeRequested,
    RetrainRequested,
    RollbackRequested,
    ScorerReport,
    TrainingFinished,
)
from schemas.control import Phase as Where
from schemas.measures import Measurement
from schemas.rollout import Gate, Metric, Region
from schemas.verdicts import Evidence, State
from tests.properties.rollout_shell import BROKEN, HIGH_RISK, UNVERIFIED, Shell, Topics
from tests.support_examples import examples

METRIC = Metric(name="p99", source="latency_p99", limit=100, interval=4, rows_min=10)
JUDGED = Metric(name="loss", source="loss", judge=True, interval=4)
STEPS = (CanaryStep(weight=0.05, bake=5), CanaryStep(weight=0.25, bake=5))
HOOK = "https://gates.example.org/"
VERSIONS = ["1", "2", "3", UNVERIFIED, HIGH_RISK, "6"]
PEOPLE = ["api/ada", "api/grace", "cli/Ada", "mary"]
TERMINAL = {Where.SUCCEEDED, Where.FAILED, Where.ROLLED_BACK, Where.INITIALIZING}


class Controller(RuleBasedStateMachine):
    """Rules put messages on ``control``; the shell works them off, and may die anywhere."""

    shell_class: ClassVar[type[Shell]] = Shell
    #: What every history of a broken shell begins with, so that its bug is found soon.
    given: ClassVar[dict[str, Any]] = {}

    @initialize(
        strategy=st.sampled_from(["canary", "canary", "blue-green", "shadow", "ab", "dark"]),
        gates=st.lists(
            st.sampled_from(
                [
                    Gate(kind="confirm-rollout", expires=30),
                    Gate(kind="confirm-traffic-increase", webhook=HOOK, expires=30),
                    Gate(kind="confirm-promotion", expires=30),
                    Gate(kind="rollback", webhook=HOOK),
                ]
            ),
            unique=True,
            max_size=2,
        ),
        metrics=st.sampled_from([(), (METRIC,), (METRIC, JUDGED)]),
        unproven=st.sampled_from(["wait", "promote"]),
        no_target=st.sampled_from(["fallback", "keep"]),
        bakes=st.lists(st.sampled_from([0, 3, 6]), max_size=3),
    )
    def set_up(
        self,
        strategy: str,
        gates: list[Gate],
        metrics: tuple[Metric, ...],
        unproven: str,
        no_target: str,
        bakes: list[int],
    ) -> None:
        chosen = {"strategy": strategy, "gates": tuple(gates), "metrics": metrics, "no_target": no_target}
        if strategy not in ("ab", "dark"):
            chosen["regions"] = tuple(Region(name=f"r{at}", bake=bake) for at, bake in enumerate(bakes))
        rollout = Rollout(
            **({"labels_min": 5, "unproven": unproven} | chosen | self.given),
            steps=STEPS, bake=5, deadline=20, keep_warm=30, proven_for=40,
        )  # fmt: skip
        self.contract = ModelContract(model="m", features=(Feature(name="x"),), rollout=rollout)
        self.topics = Topics()
        self.shell = self.shell_class(self.topics, self.contract)
        self.time_ms = 0
        self.numbered = 0
        self.checked = 0
        self.ill: set[str] = set()
        self.answered: set[str] = set()
        self.said_yes: dict[int, set[str]] = defaultdict(set)
        #: By rollout and region, since when the candidate has had all of it.
        self.whole_ms: dict[tuple[int, str], int] = {}
        self._ask(DeployRequested, version="1", steps=())

    # what happens to it

    def _put(self, *messages: AnyCommand) -> None:
        self.topics.control += messages

    def _drain(self) -> None:
        self.shell.drain()

    def _fields(self) -> dict[str, Any]:
        self.numbered += 1
        return {
            "request_id": f"r{self.numbered}",
            "model": "m",
            "cause": "c",
            "event_time_ms": self.time_ms,
            "expires_ms": 2**60,
            "issued_by": "api/ada",
            "deployment_revision": 0,
        }

    def _ask(self, kind: type[Any], **fields: Any) -> None:
        self._put(kind(**(self._fields() | fields)))
        self._drain()

    @property
    def now(self) -> Deployment | None:
        return self.shell.state

    @rule(version=st.sampled_from(VERSIONS), steps=st.sampled_from([None, None, None, (), ((0.5, 3),)]))
    def deploy(self, version: str, steps: Any) -> None:
        self._ask(DeployRequested, version=version, steps=steps)

    @rule(version=st.sampled_from(VERSIONS))
    def roll_back(self, version: str) -> None:
        self._ask(RollbackRequested, version=version)

    @rule(candidate=st.booleans())
    def roll_back_what_runs(self, candidate: bool) -> None:
        version = None if self.now is None else self.now.candidate if candidate else self.now.stable
        if version is not None:
            self._ask(RollbackRequested, version=version)

    @rule(kind=st.sampled_from([PromoteRequested, PauseRequested, ResumeRequested]))
    def steer(self, kind: type[Any]) -> None:
        self._ask(kind)

    @rule(registered=st.booleans(), version=st.sampled_from(VERSIONS))
    def retrain(self, registered: bool, version: str) -> None:
        self._ask(RetrainRequested)
        self._ask(
            TrainingFinished, retrain_id=f"r{self.numbered}", version=version,
            outcome="registered" if registered else "failed",
        )  # fmt: skip

    @precondition(lambda self: self.now is not None and self.now.gate is not None)
    @rule(kind=st.sampled_from([ApproveRequested, ApproveRequested, RejectRequested, OverrideRequested]),
          by=st.sampled_from(PEOPLE))  # fmt: skip
    def at_the_gate(self, kind: type[Any], by: str) -> None:
        assert self.now is not None
        if kind is ApproveRequested and person(by) != "ada":
            self.said_yes[self.now.entered].add(person(by))
        self._ask(kind, version=self.now.candidate, issued_by=by, reason="because")

    @precondition(lambda self: self.now is not None and self.now.candidate is not None)
    @rule(approved=st.sampled_from([True, True, False, None]), back=st.booleans(), twice=st.booleans())
    def webhook(self, approved: bool | None, back: bool, twice: bool) -> None:
        """Its answer is put on ``control`` outside any transaction, so it may be there twice."""
        now = self.now
        assert now is not None
        if not back and now.gate is None:
            return
        kind = "rollback" if back or now.gate is None else now.gate.kind
        identity = gate_id(now, "rollback") if back or now.gate is None else now.gate.gate_id
        fields = self._fields() | {
            "version": now.candidate,
            "gate": kind,
            "gate_id": identity,
            "approved": approved,
        }
        self._put(*[GateAnswered(**fields)] * (2 if twice else 1))
        self._drain()

    @precondition(lambda self: self.now is not None)
    @rule(
        number=st.sampled_from([50.0, 50.0, 150.0, None]),
        mean=st.sampled_from([-0.1, 0.0, 0.1]),
        twice=st.booleans(),
    )
    def measure(self, number: float | None, mean: float, twice: bool) -> None:
        """What is due is measured as the shell would, perhaps twice after a crash."""
        assert self.now is not None
        for task in due(self.now, self.contract.rollout, self.time_ms):
            found = [
                Measurement(metric=m.name, value=mean if m.judge else number, sd=0.1 if m.judge else None, rows=5_000,
                            from_ms=start, to_ms=task.at_ms)
                for m, start in task.metrics
            ]  # fmt: skip
            self._put(*[fact_of(task, found)] * (2 if twice else 1))
        self._drain()

    @precondition(lambda self: self.now is not None and self.now.candidate is not None)
    @rule(state=st.sampled_from([State.STABLE, State.STABLE, State.INCONCLUSIVE, State.ERROR, State.DRIFT]),
          rows=st.integers(0, 40), ahead=st.sampled_from([0, 0, 1, 3]))  # fmt: skip
    def analyse(self, state: State, rows: int, ahead: int) -> None:
        assert self.now is not None
        self._put(
            CanaryAnalysis(
                model="m", version=self.now.candidate or "", detector="judge", state=state,
                evidence=Evidence(rows=rows), event_time_ms=self.time_ms + ahead,
            )
        )  # fmt: skip
        self._drain()

    @rule(version=st.sampled_from(VERSIONS), failed=st.booleans(), same=st.sampled_from([None, True, False]))
    def scorer(self, version: str, failed: bool, same: bool | None) -> None:
        runs = None if self.now is None else self.now.stable
        fields = {"instance": "s", "failed": {runs: "why"} if failed and runs else {}}
        self._report(
            ScorerReport(**(self._fields() | fields), golden={} if same is None else {version: same})
        )

    def _report(self, report: ScorerReport) -> None:
        stable = None if self.now is None else self.now.stable
        self._put(report)
        self._drain()
        if stable is not None and (stable in report.failed or report.golden.get(stable) is False):
            self.ill.add(stable)
        elif stable is not None and stable in report.golden:
            self.ill.discard(stable)

    @rule()
    def registry_goes_or_comes(self) -> None:
        """From the next message on."""
        self.topics.turns.append(len(self.topics.control))

    @rule(by=st.integers(1, 8))
    def time_passes(self, by: int) -> None:
        self.time_ms += by
        self._put(ControlTick(event_time_ms=self.time_ms, source="clock"))
        self._drain()

    @precondition(lambda self: self.now is not None and self.now.candidate is not None)
    @rule(long=st.integers(1, 20))
    def all_goes_well(self, long: int) -> None:
        """For a while whoever is asked says yes and whatever is measured is good: how a rollout gets anywhere."""
        for _ in range(long):
            if self.now is None or self.now.candidate is None:
                return
            gate = self.now.gate
            if gate is not None and gate.webhook and not gate.answered:
                self.webhook(True, back=False, twice=False)
            elif gate is not None:
                self.at_the_gate(ApproveRequested, PEOPLE[1] if "grace" not in gate.approved_by else "mary")
            self.time_passes(3)
            self.measure(50.0, -0.1, twice=False)
            if self.now.candidate is not None:
                self.analyse(State.STABLE, 10 * self.time_ms, ahead=0)

    @rule(which=st.integers(0, 200))
    def send_again(self, which: int) -> None:
        """A message that was sent before, as it was."""
        message = self.topics.control[which % len(self.topics.control)]
        if isinstance(message, ScorerReport):
            self._report(message)
        else:
            self._put(message)
            self._drain()

    @rule(
        point=st.integers(0, 8),
        more=st.lists(st.sampled_from(["tick", "deploy", "back", "again"]), max_size=3),
    )
    def crash(self, point: int, more: list[str]) -> None:
        """The process dies at a point; messages come while it is away, and are worked off by its successor."""
        for what in more:
            if what == "tick":
                self.time_ms += 3
                self._put(ControlTick(event_time_ms=self.time_ms, source="clock"))
            elif what == "again":
                repeated = [m for m in self.topics.control if not isinstance(m, ScorerReport)]
                self._put(repeated[-1])
            else:
                kind = DeployRequested if what == "deploy" else RollbackRequested
                self._put(kind(**(self._fields() | {"version": VERSIONS[self.numbered % 3]})))
        self.shell.drain(die_at=point)
        self.shell = self.shell_class(self.topics, self.contract)
        self._drain()

    # what always holds

    @invariant()
    def every_revision_is_sound(self) -> None:
        revisions = self.topics.revisions
        for at in range(self.checked, len(revisions)):
            self._sound(revisions[at], revisions[at - 1] if at else None)
        self.checked = len(revisions)

    def _sound(self, r: Deployment, before: Deployment | None) -> None:
        assert r.revision == (1 if before is None else before.revision + 1)
        assert not r.weights or abs(sum(r.weights.values()) - 1) < 1e-9
        assert all(0 < weight <= 1 for weight in r.weights.values())
        # A command is answered once, so it acts once.
        if r.answers and r.answers[-1].control_offset == r.control_offsets[0] - 1:
            assert r.answers[-1].request_id not in self.answered
            self.answered.add(r.answers[-1].request_id)
        # One rollout at most, of a version that is not the stable one.
        assert set(r.weights) <= {r.stable, r.candidate} - {None}
        assert r.stable is None or r.weights.get(r.stable, 0) > 0
        assert r.candidate is None or r.candidate != r.stable
        assert (r.candidate is None) == (r.phase in TERMINAL)
        assert (r.pause is not None) == (r.phase is Where.PAUSED)
        assert r.gate is None or r.phase in (Where.WAITING, Where.PAUSED)
        # No traffic, not even in the shadow, for what was not verified, was rejected or was rolled back.
        reached = r.reached
        self._regions_are_sound(r)
        assert not reached & {UNVERIFIED, *r.tripped}
        if before is not None and r.stable not in (before.stable, None) and r.phase is Where.SUCCEEDED:
            # It was verified anew when it was promoted.
            self.ill.discard(r.stable)
            assert r.stable != HIGH_RISK or len(self.said_yes[before.entered]) >= 2
        if HIGH_RISK in reached and r.candidate == HIGH_RISK:
            assert len(self.said_yes[r.entered]) >= 2
        if r.gate is not None and r.gate.kind == "confirm-rollout":
            assert r.candidate not in reached
        left = before is not None and before.candidate is not None and r.candidate is None
        if left and before is not None and before.candidate in before.answering and r.stable == before.stable:
            # Its traffic is back on the stable version, which is healthy then.
            assert r.stable not in self.ill
        if before is not None and r.stable not in (before.stable, None):
            assert r.stable not in self.ill

    def _regions_are_sound(self, r: Deployment) -> None:
        """Turns come in the contract's order, each after the bake of the one before, and nobody is served before them."""
        asked = {region.name: region.bake for region in self.contract.rollout.regions}
        assert [region.region for region in r.regions] in ([], list(asked))
        if not r.regions:
            return
        assert r.stable is not None
        assert r.candidate is not None
        # What no region's instances read, older ones among them, sends nothing to the candidate.
        assert (r.weights, r.shadow) == ({r.stable: 1.0}, ())
        begun = [region.since_ms is not None for region in r.regions]
        assert begun == [at <= r.turn and r.rollout_since_ms is not None for at in range(len(begun))]
        for at, region in enumerate(r.regions):
            assert abs(sum(region.weights.values()) - 1) < 1e-9
            assert all(weight > 0 for weight in region.weights.values())
            assert {*region.weights, *region.shadow} <= {r.stable, r.candidate}
            assert (region.until_ms is not None) == (at < r.turn)
            if not begun[at]:
                assert (region.weights, region.shadow) == ({r.stable: 1.0}, ())
            if region.weights == {r.candidate: 1.0}:
                self.whole_ms.setdefault((r.entered, region.region), r.effective_ms)
            elif at < r.turn:
                raise AssertionError(f"{region.region} has baked, and its traffic is {region.weights}")
            if at and region.since_ms is not None:
                before = r.regions[at - 1].region
                assert region.since_ms >= self.whole_ms[r.entered, before] + asked[before]

    @invariant()
    def harm_does_not_stay(self) -> None:
        """A breach rolls back, whatever the rollout was waiting for: nothing harmful that was seen is still there."""
        now = self.now
        if now is None or now.candidate is None or now.strategy == "dark":
            return
        assert now.analysis is None or now.analysis.state is not State.DRIFT
        seen = [a for a in self.topics.control[self._since(now) :] if isinstance(a, CanaryAnalysis)]
        harmful = [a for a in seen if a.version == now.candidate and a.state is State.DRIFT]
        assert all(a.event_time_ms > self.shell.time_ms for a in harmful[-1:]) or now.ahead != ()
        for metrics in (now.metrics, *now.region_metrics.values()):
            assert all(state.failures == 0 for state in metrics.values())

    def _since(self, now: Deployment) -> int:
        """Where on ``control`` the candidate came in."""
        return next(r.control_offsets[0] for r in self.topics.revisions if r.revision == now.entered)

    def teardown(self) -> None:
        """The same messages without a crash come to the same end."""
        if not hasattr(self, "topics"):
            return
        straight = Topics(control=self.topics.control, turns=self.topics.turns)
        self.shell_class(straight, self.contract).drain()
        assert self.topics.revisions == straight.revisions
        ids = [fact.decision_id for fact in self.topics.facts]
        assert len(set(ids)) == len(ids)
        assert sorted(ids) == sorted(fact.decision_id for fact in straight.facts)


class ByRegions(Controller):
    """The same where every rollout goes through regions."""

    given: ClassVar[dict[str, Any]] = {
        "strategy": "canary",
        "labels_min": 0,
        "unproven": "promote",
        "regions": (Region(name="eu", bake=9), Region(name="us", bake=3)),
    }


TestController, TestByRegions = Controller.TestCase, ByRegions.TestCase
TestController.settings = TestByRegions.settings = examples(60, stateful_step_count=40)


@pytest.mark.parametrize(("broken", "given"), BROKEN)
def test_a_broken_controller_is_found(broken: type[Shell], given: dict[str, Any]) -> None:
    """Each bug breaks an invariant within a few hundred histories."""
    machine = type(f"With{broken.__name__}", (Controller,), {"shell_class": broken, "given": given})
    found = settings(
        max_examples=500, stateful_step_count=25, deadline=None, derandomize=True, phases=[Phase.generate],
        database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=found)
