"""The policy stage: which signals alert, which act, when an action waits, and that its state can be cut anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.contracts import Feature, ModelContract, ModelRecord, ModelVersion, Policy, Rule
from schemas.control import (
    COMMANDS,
    Alert,
    Answer,
    AnyCommand,
    CanaryAnalysis,
    Command,
    ControlTick,
    Decision,
    Deployment,
    Outcome,
    Phase,
    RetrainRequested,
    RollbackRequested,
    Severity,
)
from schemas.errors import SignatureError, SnapshotError
from schemas.events import HEADER_KIND, KIND_TICK, Tick
from schemas.settings import MonitorSettings
from schemas.signing import Signer, Verifier
from schemas.verdicts import Family, SignalChanged, State, Verdict
from streams.core.delivery import Out, StageContext
from streams.core.policy import PolicyCore, Sign
from streams.core.records import Record
from tests.support_examples import examples

DAY = 86_400_000
HARM = Rule(name="harm", detectors=("harm",), severity="page", action="retrain", cooldown=DAY)
POLICY = Policy(
    rules=(
        Rule(
            name="canary-harm",
            families=(Family.COMPARISON,),
            roles=("canary",),
            severity="page",
            action="rollback",
        ),
        HARM,
        Rule(name="sick", detectors=("sick",), severity="page", action="rollback"),
        Rule(name="shift", families=(Family.INPUT,), severity="ticket", streak=2),
        Rule(name="others", severity="info", states=(State.DRIFT, State.ERROR)),
    ),
    retrain_interval=30 * DAY,
)


class Stage:
    """A policy task of one partition, fed record by record; what it writes, by topic, as types."""

    def __init__(self, policy: Policy = POLICY, sign: Sign = lambda message: message) -> None:
        contract = ModelContract(model="m", features=(Feature(name="x"),), policy=policy)
        self.core = PolicyCore(StageContext("policy", 0, 1, MonitorSettings()), sign)
        self.core.activate([ModelRecord(contract=contract)])
        self.alerts: list[Alert] = []
        self.decisions: list[Decision] = []
        self.control: list[AnyCommand] = []
        self._revision = 0

    def feed(self, record: Record) -> list[Out]:
        self.core.apply([record], now_ms=7)
        outs = self.core.outputs()
        for out in outs:
            if out.topic == "alerts":
                self.alerts.append(Alert.model_validate_json(out.value or b""))
            elif out.topic == "decisions":
                self.decisions.append(Decision.model_validate_json(out.value or b""))
            else:
                self.control.append(COMMANDS.validate_json(out.value or b""))
        return outs

    def signal(self, detector: str, state: State = State.DRIFT, at: int = 0, **changes: Any) -> None:
        self.feed(signal_record(detector, state, at, **changes))

    def tick(self, at: int, source: str = "detect/0", sources: int = 1) -> None:
        self.feed(tick_record(at, source, sources))

    def deploy(self, **changes: Any) -> None:
        """The next revision; v2 stable with predecessor v1 unless told otherwise."""
        self._revision += 1
        self.feed(deployment_record(self._revision, **changes))

    @property
    def commands(self) -> list[Command]:
        return [c for c in self.control if isinstance(c, Command)]

    def answer(self, outcome: Outcome, **changes: Any) -> None:
        """A revision that answers the newest command."""
        self.deploy(answers=(Answer(request_id=self.commands[-1].request_id, outcome=outcome),), **changes)


def signal_record(detector: str, state: State, at: int, **changes: Any) -> Record:
    base: dict[str, Any] = {
        "signal_id": f"{detector}/{state}/{at}",
        "model": "m",
        "version": "2",
        "role": "stable",
        "detector": detector,
        "kind": "k",
        "family": Family.CONCEPT,
        "previous": State.STABLE,
        "verdict": Verdict(state=state, score=2.0, threshold=1.0),
        "event_time_ms": at,
        "row": "observations/0/0/0",
        "pages": True,
    }
    value = SignalChanged(**(base | changes)).model_dump_json().encode()
    return Record("signals", 0, 0, b"m", value)


def tick_record(at: int, source: str = "detect/0", sources: int = 1) -> Record:
    value = Tick(event_time_ms=at, source=source, sources=sources).model_dump_json().encode()
    return Record("signals", 0, 0, None, value, {HEADER_KIND: KIND_TICK})


def deployment_record(revision: int, **changes: Any) -> Record:
    base: dict[str, Any] = {
        "phase": Phase.STEADY,
        "stable": "2",
        "previous": "1",
        "weights": {"2": 1.0},
    }
    deployment = Deployment(model="m", revision=revision, **(base | changes))
    return Record("deployments", 0, revision, b"m", deployment.model_dump_json().encode())


CANARY = {"phase": Phase.PROGRESSING, "candidate": "3", "weights": {"2": 0.9, "3": 0.1}, "shadow": ("3", "2")}


@pytest.fixture
def stage() -> Stage:
    """v2 on all traffic, v1 before it."""
    made = Stage()
    made.deploy()
    return made


def test_the_first_rule_that_matches_decides(stage: Stage) -> None:
    """Detector ``harm`` matches two rules; the later one hears nothing."""
    stage.signal("harm")
    stage.signal("else")
    assert [a.cause for a in stage.alerts] == ["harm", "others"]
    assert [a.severity for a in stage.alerts] == [Severity.PAGE, Severity.INFO]
    assert [type(c) for c in stage.commands] == [RetrainRequested]
    assert [d.kind for d in stage.decisions] == ["alert-opened", "retrain-requested", "alert-opened"]


def test_a_streak_needs_distinct_detectors(stage: Stage) -> None:
    """One detector twice is one; taken back before the second, it does not count, nor start a cooldown."""
    stage.signal("a", at=1, family=Family.INPUT)
    stage.signal("a", at=2, family=Family.INPUT)
    assert stage.alerts == []
    stage.signal("a", State.STABLE, at=3, family=Family.INPUT)
    stage.signal("b", at=4, family=Family.INPUT)
    assert stage.alerts == []
    stage.signal("a", at=5, family=Family.INPUT)
    assert [(a.status, {b.detector for b in a.because}) for a in stage.alerts] == [("trigger", {"a", "b"})]


def test_one_incident_a_cause(stage: Stage) -> None:
    """A second drift joins it; it is over when both have taken it back."""
    stage.signal("e")
    stage.signal("f", at=1)
    assert len(stage.alerts) == 1
    stage.signal("e", State.STABLE, at=2)
    assert len(stage.alerts) == 1
    stage.signal("f", State.STABLE, at=3)
    assert [a.status for a in stage.alerts] == ["trigger", "resolve"]
    assert len({a.dedup_key for a in stage.alerts}) == 1


def test_a_detector_that_may_not_page_makes_a_ticket_until_one_that_may_joins() -> None:
    """The resolve names the severity that went out."""
    stage = Stage(Policy(rules=(Rule(name="r", severity="page"),)))
    stage.signal("weak", pages=False)
    stage.signal("weaker", pages=False, at=1)
    assert [a.severity for a in stage.alerts] == [Severity.TICKET]
    stage.signal("strong", at=2)
    assert [a.severity for a in stage.alerts] == [Severity.TICKET, Severity.PAGE]
    assert len({a.dedup_key for a in stage.alerts}) == 1
    for name in ("weak", "weaker", "strong"):
        stage.signal(name, State.STABLE, at=3)
    assert (stage.alerts[-1].status, stage.alerts[-1].severity) == ("resolve", Severity.PAGE)
    assert len(stage.alerts) == 3


def test_an_alert_says_how_far_its_detectors_can_be_trusted() -> None:
    """What is known of their false alarms, in the summary that every channel shows."""
    stage = Stage(Policy(rules=(Rule(name="r", severity="page"),)))
    stage.signal("strong", standing="bounded by a theorem; unverified beyond 60 d")
    assert stage.alerts[0].summary == (
        "r: strong. False alarms of strong: bounded by a theorem; unverified beyond 60 d"
    )
    assert stage.decisions[0].detail == "r: strong"


@pytest.mark.parametrize(("at", "alerts"), [(2 * DAY - 1, 2), (2 * DAY, 3)])
def test_no_new_incident_within_the_cooldown(at: int, alerts: int) -> None:
    """The cooldown after a resolve, from both sides, by a new signal."""
    stage = Stage(Policy(rules=(Rule(name="r", cooldown=DAY),)))
    stage.signal("a", at=0)
    stage.signal("a", State.STABLE, at=DAY)
    stage.signal("a", at=at)
    assert len(stage.alerts) == alerts


def test_a_drift_that_stands_after_the_cooldown_opens_anew() -> None:
    """The detector says it once, within the cooldown, and never takes it back."""
    stage = Stage(Policy(rules=(Rule(name="r", cooldown=DAY),)))
    stage.signal("a", at=0)
    stage.signal("a", State.STABLE, at=DAY)
    stage.signal("a", at=DAY + 1)
    stage.tick(2 * DAY - 1)
    assert len(stage.alerts) == 2
    stage.tick(2 * DAY)
    assert [a.status for a in stage.alerts] == ["trigger", "resolve", "trigger"]
    assert len({a.dedup_key for a in stage.alerts}) == 2


def test_a_drift_taken_back_within_the_cooldown_opens_nothing() -> None:
    """What is held is let go."""
    stage = Stage(Policy(rules=(Rule(name="r", cooldown=DAY),)))
    stage.signal("a", at=0)
    stage.signal("a", State.STABLE, at=1)
    stage.signal("a", at=2)
    stage.signal("a", State.STABLE, at=3)
    stage.tick(9 * DAY)
    assert len(stage.alerts) == 2


def test_a_retrain_waits_for_a_rollout_and_fires_on_a_later_tick(stage: Stage) -> None:
    """Level-triggered: the signal comes once, the action when it can be carried out."""
    stage.deploy(**CANARY)
    stage.signal("harm")
    stage.tick(DAY)
    assert stage.commands == []
    stage.deploy(training="somebody's")
    stage.tick(2 * DAY)
    assert stage.commands == []
    stage.deploy()
    stage.tick(3 * DAY)
    stage.tick(4 * DAY)
    assert [(type(c), c.event_time_ms) for c in stage.commands] == [(RetrainRequested, 3 * DAY)]


@pytest.mark.parametrize(("at", "commands"), [(30 * DAY - 1, 1), (30 * DAY, 2)])
def test_the_interval_between_retrains(stage: Stage, at: int, commands: int) -> None:
    """``retrain_interval`` from both sides, over incidents."""
    stage.signal("harm", at=0)
    stage.answer(Outcome.ACCEPTED)
    stage.signal("harm", State.STABLE, at=1)
    stage.signal("harm", at=2 * DAY)
    stage.tick(at)
    assert len(stage.commands) == commands


def test_a_refused_retrain_is_asked_for_again_after_the_cooldown(stage: Stage) -> None:
    """It does not count for the interval between retrains, and the incident is not forgotten."""
    stage.signal("harm", at=0)
    stage.answer(Outcome.REFUSED)
    stage.tick(DAY - 1)
    assert len(stage.commands) == 1
    stage.tick(DAY)
    assert len(stage.commands) == 2
    stage.answer(Outcome.ACCEPTED)
    stage.tick(3 * DAY)
    assert len(stage.commands) == 2


def test_a_retrain_without_an_answer_is_asked_for_again_when_it_has_expired(stage: Stage) -> None:
    """Until then nobody asks for another."""
    stage.signal("harm", at=0)
    stage.tick(7 * DAY)
    assert len(stage.commands) == 1
    stage.tick(7 * DAY + 1)
    assert len(stage.commands) == 2


def test_that_a_command_has_expired_is_part_of_the_state(stage: Stage) -> None:
    """A rollout is open when it expires; the stage is cut; the next request follows when the rollout is over."""
    stage.signal("harm", at=0)
    stage.deploy(**CANARY)
    pieces = dict(stage.core.changed_pieces())
    stage.tick(8 * DAY)
    pieces |= stage.core.changed_pieces()
    restored = Stage()
    restored.core.restore({name: data for name, data in pieces.items() if data is not None}, None)
    restored.feed(deployment_record(9, answers=(Answer(request_id="other", outcome=Outcome.DONE),)))
    restored.tick(8 * DAY + 1)
    assert [type(c) for c in restored.commands] == [RetrainRequested]
    ((state, _),) = [(data, name) for name, data in pieces.items() if name == "model/m"]
    assert state is not None and b'"asked":null' in state


def test_commands_a_day_are_limited() -> None:
    """The rest waits for the next day; a command held back by the limit starts no interval."""
    rules = tuple(Rule(name=n, detectors=(n,), action="rollback") for n in "abc") + (HARM,)
    stage = Stage(Policy(rules=rules, commands_per_day_max=1))
    stage.deploy(**CANARY)
    stage.signal("a", version="3", role="canary", at=DAY - 5)
    stage.signal("b", version="3", role="canary", at=DAY + 5)
    stage.signal("c", version="3", role="canary", at=DAY - 4)
    assert [c.event_time_ms for c in stage.commands] == [DAY - 5, DAY + 5]
    stage.deploy()
    stage.signal("harm", at=DAY + 7)
    stage.tick(2 * DAY - 1)
    assert len(stage.commands) == 2
    stage.tick(2 * DAY)
    assert isinstance(stage.commands[-1], RetrainRequested)


def test_a_harmful_candidate_is_rolled_back_and_its_analysis_passed_on(stage: Stage) -> None:
    """Comparisons reach the controller whatever they say; the request names its evidence."""
    stage.deploy(**CANARY)
    about = {"version": "3", "role": "canary", "family": Family.COMPARISON}
    stage.signal("judge", State.STABLE, at=1, **about)
    stage.signal("judge", State.DRIFT, at=2, **about)
    passed = [c for c in stage.control if isinstance(c, CanaryAnalysis)]
    assert [(p.version, p.state, p.event_time_ms) for p in passed] == [("3", "stable", 1), ("3", "drift", 2)]
    (command,) = stage.commands
    assert isinstance(command, RollbackRequested)
    assert (command.version, command.deployment_revision, command.expires_ms) == ("3", 2, 2 + 7 * DAY)
    assert [b.detector for b in command.because] == ["judge"]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, RollbackRequested),
        ({"previous": None}, RetrainRequested),
        ({"tripped": ("1",)}, RetrainRequested),
    ],
)
def test_a_sick_stable_version(stage: Stage, changes: dict[str, Any], kind: type[Command]) -> None:
    """Back to its predecessor when there is a healthy one, else a successor is asked for."""
    stage.deploy(**changes)
    stage.signal("sick")
    assert [type(c) for c in stage.commands] == [kind]


@pytest.mark.parametrize("state", [State.ERROR, State.INCONCLUSIVE, State.WARNING, State.STABLE])
def test_what_is_not_drift_never_acts(state: State) -> None:
    """Even where a rule names errors, they alert and no more."""
    stage = Stage(Policy(rules=(Rule(name="r", states=(State.DRIFT, State.ERROR), action="retrain"),)))
    stage.deploy()
    stage.signal("a", state)
    stage.tick(9 * DAY)
    assert stage.commands == []
    assert len(stage.alerts) == (state is State.ERROR)


def test_an_error_before_it_does_not_hide_a_drift() -> None:
    """The incident is open and alerted already; the action still follows."""
    stage = Stage(Policy(rules=(Rule(name="r", states=(State.DRIFT, State.ERROR), action="retrain"),)))
    stage.deploy()
    stage.signal("a", State.ERROR)
    stage.signal("b", at=1)
    assert len(stage.commands) == 1
    assert len(stage.alerts) == 1


def test_incidents_end_when_the_version_leaves_the_traffic(stage: Stage) -> None:
    """And open again when it comes back with its detector still in drift."""
    stage.signal("else")
    stage.deploy(stable="3", previous="2", weights={"3": 1.0})
    assert [a.status for a in stage.alerts] == ["trigger", "resolve"]
    stage.tick(3 * DAY)
    assert len(stage.alerts) == 2
    stage.deploy(stable="2", previous=None, weights={"2": 1.0}, tripped=("3",))
    stage.tick(4 * DAY)
    assert [a.status for a in stage.alerts] == ["trigger", "resolve", "trigger"]


def test_a_late_signal_about_a_version_without_traffic_alerts_nobody(stage: Stage) -> None:
    """Labels of a version that was replaced come for weeks."""
    stage.signal("else", version="1")
    stage.tick(9 * DAY)
    assert stage.alerts == []


def test_an_incident_ends_even_when_its_rule_is_gone(stage: Stage) -> None:
    """A pager is never left ringing by an edit of the contract."""
    stage.signal("else")
    contract = ModelContract(model="m", features=(Feature(name="x"),))
    stage.core.activate([ModelRecord(contract=contract)])
    stage.signal("else", State.STABLE, at=1)
    assert [a.status for a in stage.alerts] == ["trigger", "resolve"]


def test_time_is_the_slowest_sources(stage: Stage) -> None:
    """One tick on ``control`` for every advance, none before all sources have spoken."""
    stage.tick(10, "detect/0", 2)
    assert stage.control == []
    stage.tick(5, "detect/1", 2)
    stage.tick(20, "detect/0", 2)
    stage.tick(15, "detect/1", 2)
    stage.tick(12, "detect/1", 2)
    ticks = [(c.event_time_ms, c.source) for c in stage.control if isinstance(c, ControlTick)]
    assert ticks == [(5, "policy/0"), (15, "policy/0")]


def test_facts_name_the_bytes_they_are_about(stage: Stage) -> None:
    """By the digest that was announced of the version; of one that nobody announced there is none."""
    stage.core.activate(
        [
            ModelRecord(version=ModelVersion(model="m", version=version, uri="u", sha256=digest * 64))
            for version, digest in (("1", "a"), ("2", "b"))
        ]
    )
    stage.deploy()
    stage.signal("harm", version="2")
    stage.signal("harm", version="3")
    assert {fact.version: fact.model_digest for fact in stage.decisions} == {"2": "b" * 64}
    stage.deploy(candidate="3", weights={"2": 0.5, "3": 0.5})
    stage.tick(1)
    assert {fact.model_digest for fact in stage.decisions if fact.version == "3"} == {""}


def test_commands_and_decisions_are_signed(tmp_path: Path) -> None:
    """By this stage's key; an altered copy does not verify."""
    signer = Signer.create(tmp_path / "key.pem")
    verifier = Verifier([base64.b64encode(signer.public).decode()])
    stage = Stage(sign=signer.sign)
    stage.deploy()
    stage.signal("harm")
    signed: list[Command | Decision] = [*stage.commands, *stage.decisions]
    for message in signed:
        verifier.verify(message)
    with pytest.raises(SignatureError):
        verifier.verify(stage.commands[0].model_copy(update={"version": "1"}))


def test_state_of_another_schema_is_not_guessed_at() -> None:
    """A clear error instead of a wrong state."""
    with pytest.raises(SnapshotError, match="schema"):
        Stage().core.restore({"time": b"\x93\x01\x00\x80"}, None)


SIGNALS = st.builds(
    signal_record,
    st.sampled_from(["harm", "sick", "else", "judge"]),
    st.sampled_from([State.DRIFT, State.DRIFT, State.STABLE, State.ERROR, State.WARNING]),
    st.integers(0, 40).map(lambda n: n * DAY // 4),
    version=st.sampled_from(["1", "2", "3"]),
    role=st.sampled_from(["stable", "canary"]),
    family=st.sampled_from([Family.CONCEPT, Family.INPUT, Family.COMPARISON]),
    pages=st.booleans(),
)
TICKS = st.builds(tick_record, st.integers(0, 40).map(lambda n: n * DAY // 4))
DEPLOYMENTS = st.builds(
    lambda changes, training: {**changes, "training": training},
    st.sampled_from(
        [{}, CANARY, {"stable": "1", "previous": None, "weights": {"1": 1.0}, "tripped": ("2",)}]
    ),
    st.sampled_from([None, None, "t"]),
)


@examples(50)
@given(
    st.lists(st.one_of(SIGNALS, TICKS, DEPLOYMENTS), max_size=40),
    st.integers(0, 40),
    st.sampled_from([Outcome.ACCEPTED, Outcome.REFUSED, None]),
)
def test_state_can_be_cut_at_any_record(history: Sequence[Any], cut: int, outcome: Outcome | None) -> None:
    """Restored from its pieces, the stage writes what it would have written; no request id comes twice. ``outcome``: how
    the controller answers, None: not at all."""
    straight, broken = Stage(), Stage()
    pieces: dict[str, bytes] = {}
    for number, item in enumerate(history, 1):
        record = item
        if not isinstance(item, Record):
            asked = [] if outcome is None else straight.commands
            answers = tuple(Answer(request_id=c.request_id, outcome=outcome) for c in asked)
            record = deployment_record(number, **item, answers=answers)
        assert broken.feed(record) == straight.feed(record)
        for name, data in broken.core.changed_pieces().items():
            assert data is not None
            pieces[name] = data
        if number == cut:
            broken = Stage()
            broken.core.restore(pieces, None)
    ids = [command.request_id for command in straight.commands]
    assert len(ids) == len(set(ids))
