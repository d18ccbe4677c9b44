"""The rollout machine over any history of messages: what always holds, and that a crash anywhere changes nothing."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deploy.core.rollout import World, decide
from schemas.contracts import CanaryStep, Feature, ModelContract, Rollout
from schemas.control import (
    AnyCommand,
    CanaryAnalysis,
    ControlTick,
    Decision,
    Deployment,
    DeployRequested,
    PauseRequested,
    Phase,
    PromoteRequested,
    ResumeRequested,
    RetrainRequested,
    RollbackRequested,
    ScorerReport,
    TrainingFinished,
)
from schemas.verdicts import Evidence, State
from tests.support_examples import examples

CONTRACT = ModelContract(
    model="m",
    features=(Feature(name="x"),),
    rollout=Rollout(
        steps=(CanaryStep(weight=0.05, bake=5), CanaryStep(weight=0.25, bake=5)), labels_min=5, deadline=20
    ),
)
TIMES = st.integers(0, 60)
VERSIONS = st.sampled_from(["1", "2", "3", "4"])
Entry = tuple[AnyCommand, str | None]


def _asked(kind: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[AnyCommand]:
    """Commands with few ids, so that duplicates are common, and expiries that matter."""
    base: dict[str, st.SearchStrategy[Any]] = {
        "request_id": st.sampled_from([f"r{n}" for n in range(25)]),
        "model": st.just("m"),
        "cause": st.just("c"),
        "event_time_ms": TIMES,
        "expires_ms": st.sampled_from([5, 30, 1_000]),
        "issued_by": st.just("p"),
    }
    return st.builds(kind, **(base | fields))


TICKS = st.builds(ControlTick, event_time_ms=TIMES, source=st.just("clock"))
ANALYSES = st.builds(
    CanaryAnalysis,
    model=st.just("m"),
    version=VERSIONS,
    detector=st.just("judge"),
    state=st.sampled_from([State.STABLE, State.STABLE, State.INCONCLUSIVE, State.ERROR, State.DRIFT]),
    evidence=st.builds(Evidence, rows=st.integers(0, 40)),
    event_time_ms=TIMES,
)
STEPS = st.sampled_from([None, None, (), ((0.5, 3),), ((1.0, 0),), ((2.0, 1),)])
REPORTS = _asked(
    ScorerReport,
    instance=st.just("s"),
    failed=st.dictionaries(VERSIONS, st.just("why"), max_size=1),
    golden=st.dictionaries(VERSIONS, st.booleans(), max_size=1),
)
COMMANDS = st.one_of(
    _asked(DeployRequested, version=VERSIONS, steps=STEPS),
    _asked(DeployRequested, version=VERSIONS),
    _asked(RollbackRequested, version=VERSIONS),
    _asked(RetrainRequested, version=VERSIONS),
    _asked(PromoteRequested),
    _asked(PauseRequested),
    _asked(ResumeRequested),
    _asked(
        TrainingFinished,
        retrain_id=st.sampled_from([f"r{n}" for n in range(25)]),
        outcome=st.sampled_from(["registered", "failed"]),
        version=VERSIONS,
    ),
)
LOGS = st.lists(
    st.one_of(
        st.tuples(st.one_of(COMMANDS, TICKS, TICKS, ANALYSES, REPORTS), st.none()),
        st.tuples(COMMANDS, st.sampled_from([None, "unknown key"])),
    ),
    max_size=60,
)


@dataclass
class Topics:
    """What is committed: every revision with the offset and time it names, and every fact."""

    revisions: list[Deployment] = field(default_factory=list)
    facts: list[Decision] = field(default_factory=list)


def serve(log: list[Entry], topics: Topics, until: int) -> None:
    """A controller's life: starts from what is committed, ends after message ``until`` of ``control``."""
    state = topics.revisions[-1] if topics.revisions else None
    start = 0 if state is None else state.control_offsets[0]
    time_ms = -1 if state is None else state.control_times.get("clock", -1)
    recorded = {fact.decision_id for fact in topics.facts}
    for offset in range(start, until):
        message, refused = log[offset]
        if isinstance(message, ControlTick):
            if message.event_time_ms <= time_ms:
                continue
            time_ms = message.event_time_ms
        verify = {"4": "altered"}.get
        step = decide(state, message, (0, offset), World(CONTRACT, verify, time_ms, 2), refused)
        state = step.state
        topics.facts += [
            fact for fact in step.decisions if step.deployment is not None or fact.decision_id not in recorded
        ]
        if step.deployment is not None:
            named = {"control_offsets": {0: offset + 1}, "control_times": {"clock": time_ms}}
            state = step.deployment.model_copy(update=named)
            topics.revisions.append(state)


@examples(25)
@given(LOGS)
def test_what_holds_in_every_revision(log: list[Entry]) -> None:
    """Weights are shares of healthy versions, one rollout at a time, revisions count up, phases and fields agree."""
    topics = Topics()
    serve(log, topics, len(log))
    for number, revision in enumerate(topics.revisions, 1):
        assert revision.revision == number
        assert not revision.weights or abs(sum(revision.weights.values()) - 1) < 1e-9
        assert all(0 <= weight <= 1 for weight in revision.weights.values())
        assert not set(revision.weights) & set(revision.tripped)
        assert "4" not in revision.weights
        serving = {revision.stable, revision.candidate} - {None}
        # Who has no share is not named: the stable version beside a step of everything.
        everything = revision.candidate is not None and revision.steps[revision.step][0] == 1
        assert set(revision.weights) == serving - ({revision.stable} if everything else set())
        assert revision.stable is None or revision.stable != revision.candidate
        rolling = revision.phase in (Phase.PROGRESSING, Phase.WAITING, Phase.PAUSED)
        assert rolling == (revision.candidate is not None) == bool(revision.steps)
        assert (revision.pause is not None) == (revision.phase is Phase.PAUSED)
        if revision.phase in (Phase.ROLLED_BACK, Phase.FAILED):
            assert revision.effective_ms == 0


@examples(25)
@given(LOGS, st.lists(st.integers(0, 60), max_size=4))
def test_a_crash_anywhere_changes_nothing(log: list[Entry], crashes: list[int]) -> None:
    """Killed after any messages and started from what was committed: the same revisions, answers and facts."""
    straight = Topics()
    serve(log, straight, len(log))
    broken = Topics()
    for crash in sorted(min(crash, len(log)) for crash in crashes):
        serve(log, broken, crash)
    serve(log, broken, len(log))
    assert broken.revisions == straight.revisions
    assert {f.decision_id for f in broken.facts} == {f.decision_id for f in straight.facts}


@examples(25)
@given(LOGS)
def test_a_command_acts_once_and_every_one_is_answered(log: list[Entry]) -> None:
    """However often it is sent; its answer is in some revision."""
    topics = Topics()
    serve(log, topics, len(log))
    acted: dict[str, set[int | None]] = defaultdict(set)
    for fact in topics.facts:
        refused = fact.kind.endswith(("-refused", "-expired", "-stale"))
        if fact.request_id is not None and fact.deployment_revision is not None and not refused:
            acted[fact.request_id].add(fact.deployment_revision)
    reported = {m.request_id for m, _ in log if isinstance(m, ScorerReport)}
    assert all(len(revisions) == 1 for request, revisions in acted.items() if request not in reported)
    asked = {m.request_id for m, _ in log if not isinstance(m, ControlTick | CanaryAnalysis | ScorerReport)}
    assert {a.request_id for r in topics.revisions for a in r.answers} == asked
