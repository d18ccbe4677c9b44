"""The trainer's plan and its memory: what is to be done, when the schedule asks, how often a request is tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from deploy.training import incident
from deploy.training.attempts import Attempts, Journal
from deploy.training.plan import NOT_BETTER, TOO_SOON, Plan
from schemas.contracts import ModelContract, ModelRecord, ModelVersion
from schemas.control import ControlTick, Deployment, Phase, RetrainRequested, TrainingFinished
from schemas.errors import PlatformError
from tests.support_deploy import CONTRACT, DAY_MS, START_MS


def _request(request_id: str, day: float = 0, issued_by: str = "policy") -> RetrainRequested:
    return RetrainRequested(
        request_id=request_id,
        model="delay",
        cause="c",
        event_time_ms=START_MS + int(day * DAY_MS),
        expires_ms=START_MS,
        issued_by=issued_by,
    )


def _finished(
    retrain_id: str,
    day: float = 0,
    outcome: Literal["registered", "refused", "failed"] = "failed",
    detail: str = "",
) -> TrainingFinished:
    return TrainingFinished(
        request_id=f"trained-{retrain_id}", model="delay", cause=retrain_id, expires_ms=0, issued_by="trainer",
        event_time_ms=START_MS + int(day * DAY_MS), retrain_id=retrain_id, version=None, outcome=outcome, detail=detail,
    )  # fmt: skip


def _deployed(revision: int = 2, **changes: Any) -> Deployment:
    return Deployment(model="delay", revision=revision, phase=Phase.STEADY, stable="1", **changes)


def _version(day: float, trained: bool = True) -> ModelRecord:
    return ModelRecord(
        version=ModelVersion(
            model="delay",
            version="1",
            uri="delay/1",
            sha256="0" * 64,
            trained_to_ms=START_MS if trained else None,
            created_event_ms=START_MS + int(day * DAY_MS),
        )
    )


_STEPS: dict[str, Callable[[Plan], None]] = {
    "contract": lambda plan: plan.record(ModelRecord(contract=CONTRACT)),
    "request": lambda plan: plan.request(_request("r1")),
    "wanted": lambda plan: plan.deployment(_deployed(training="r1")),
    "answered": lambda plan: plan.deployment(_deployed(3)),
    "older": lambda plan: plan.deployment(_deployed(1)),
    "finished": lambda plan: plan.finished(_finished("r1")),
    "version": lambda plan: plan.record(_version(0)),
}


@pytest.mark.parametrize(
    ("told", "work"),
    [
        ("request contract", []),
        ("wanted", []),
        ("wanted request", []),
        ("wanted contract request", ["r1"]),
        ("request wanted version contract", ["r1"]),
        ("wanted contract request older", ["r1"]),
        ("wanted contract request finished", []),
        ("finished wanted contract request", []),
        ("wanted contract request answered", []),
    ],
)
def test_work_is_what_the_newest_deployment_wants_and_nobody_finished(told: str, work: list[str]) -> None:
    """In whatever order the topics are read, and again after a restart."""
    plan = Plan()
    for step in told.split():
        _STEPS[step](plan)
    assert [request.request_id for request, _ in plan.work()] == work


@pytest.mark.parametrize(
    ("issued_by", "day", "soon"),
    [("policy", 10.5, True), ("policy", 11, False), ("trainer", 10.5, True), ("api/ann", 10.01, False)],
)
def test_machines_keep_an_interval_between_trainings_and_people_need_not(
    issued_by: str, day: float, soon: bool
) -> None:
    """A day by default, counted from the last training that took place."""
    plan = Plan()
    plan.finished(_finished("before", 10, "registered"))
    plan.finished(_finished("refused at once", 10.4, "refused", f"{TOO_SOON}: x"))
    why = plan.too_soon(_request("r", day, issued_by), CONTRACT)
    assert (why is not None) == soon
    if why is not None:
        assert why.startswith(TOO_SOON)
        assert "interval_min" in why


def test_the_interval_looks_back_only() -> None:
    """A request that is worked on again, after its own report or a later one, is judged as it was."""
    plan = Plan()
    plan.finished(_finished("r", 10, "registered"))
    plan.finished(_finished("later", 10.2))
    assert plan.too_soon(_request("r", 10), CONTRACT) is None


def _scheduled(**rules: Any) -> ModelContract:
    every = {"every": 30 * DAY_MS, **rules}
    return CONTRACT.model_copy(update={"training": CONTRACT.training.model_copy(update=every)})


def _plan(day: float, *reports: TrainingFinished, contract: ModelContract | None = None, **deployed: Any) -> Plan:  # fmt: skip
    plan = Plan(2)
    plan.record(ModelRecord(contract=contract or _scheduled()))
    plan.record(_version(0))
    plan.deployment(_deployed(**deployed))
    for report in reports:
        plan.finished(report)
    for source in ("policy/0", "policy/1", "join/0"):
        late = 0 if source == "join/0" else int(day * DAY_MS)
        plan.tick(ControlTick(event_time_ms=START_MS + late, source=source))
    return plan


@pytest.mark.parametrize(
    ("day", "reports", "due"),
    [
        (29.9, [], False),
        (30, [], True),
        (59, [_finished("a", 30, "registered")], False),
        (60, [_finished("a", 30, "registered")], True),
        (89, [_finished("a", 30)], False),
        (90, [_finished("a", 30)], True),
        (149, [_finished("a", 30), _finished("b", 30.5)], False),
        (151, [_finished("a", 30), _finished("b", 30.5)], True),
        (9_999, [_finished("a", 30), _finished("b", 90), _finished("c", 210)], False),
        (9_999, [_finished("a", 30), _finished("b", 90), _finished("c", 210), _finished("d", 220, "registered")], True),
        (9_999, [_finished(x, 30, "refused", f"{NOT_BETTER}: x") for x in "abcd"], True),
    ],
)  # fmt: skip
def test_the_schedule_asks_after_its_interval_backs_off_and_gives_up(
    day: float, reports: list[TrainingFinished], due: bool
) -> None:
    """Thirty days after the last training; twice and four times that after failures; after the third it waits for a
    person. A candidate that is no better is no failure."""
    asked = _plan(day, *reports).due()
    assert bool(asked) == due
    if asked:
        request = asked[0]
        assert (request.version, request.cause, request.issued_by) == ("1", "schedule", "trainer")
        assert request.event_time_ms == START_MS + int(day * DAY_MS)


def test_the_schedule_asks_once() -> None:
    """Asked for again it is the same request; heard, it is not asked again for a day, answered or not."""
    plan = _plan(31)
    first, again = plan.due()[0], _plan(31).due()[0]
    assert first == again
    plan.request(first)
    assert plan.due() == []
    for source in ("policy/0", "policy/1"):
        plan.tick(ControlTick(event_time_ms=START_MS + 32 * DAY_MS, source=source))
    assert plan.due()[0].request_id != first.request_id


@pytest.mark.parametrize(
    "changes",
    [{"training": "r1"}, {"candidate": "2"}, {"stable": None}, {"contract": CONTRACT}],
)
def test_the_schedule_is_silent_where_it_must_be(changes: dict[str, Any]) -> None:
    """While a training or a rollout is under way, before the first version, and without a schedule."""
    plan = Plan(1)
    contract = changes.get("contract", _scheduled())
    plan.record(ModelRecord(contract=contract))
    deployed = {"stable": "1"} | {k: v for k, v in changes.items() if k != "contract"}
    plan.deployment(Deployment(model="delay", revision=2, phase=Phase.STEADY, **deployed))
    assert plan.due() == []
    plan.tick(ControlTick(event_time_ms=START_MS + 900 * DAY_MS, source="policy/0"))
    assert plan.due() == []


def test_event_time_is_the_slowest_tasks() -> None:
    """Unknown until all policy tasks have spoken; a version that was imported says nothing about the last training."""
    plan = Plan(2)
    plan.tick(ControlTick(event_time_ms=5, source="policy/0"))
    assert plan.time_ms is None
    plan.tick(ControlTick(event_time_ms=3, source="policy/1"))
    plan.tick(ControlTick(event_time_ms=2, source="policy/1"))
    assert plan.time_ms == 3
    imported = Plan(1)
    imported.record(ModelRecord(contract=_scheduled()))
    imported.record(_version(900, trained=False))
    imported.deployment(_deployed())
    imported.tick(ControlTick(event_time_ms=START_MS, source="policy/0"))
    assert len(imported.due()) == 1


def test_attempts_outlive_the_process_and_wait_longer_each_time(tmp_path: Path) -> None:
    """Each is noted before it begins; one without an error died; a torn file counts anew and says so in the log."""
    journal = Journal(tmp_path / "state", 100)
    first = journal.begin(journal.read("r"), 1_000)
    assert [first.due(now_ms) for now_ms in (999, 1_000, 1_099, 1_100)] == [True, False, False, True]
    again = Journal(tmp_path / "state", 100)
    second = again.begin(again.read("r"), 2_000)
    assert (second.begun, second.wait_ms) == (2, 200)
    failed = again.failed(second, "OSError: no", 5_000)
    assert [failed.due(now_ms) for now_ms in (5_000, 5_199, 5_200)] == [False, False, True]
    assert again.read("r") == failed
    assert failed.describe() == "1 died with the process; OSError: no"
    assert again.read("other") == Attempts("other")
    again.stopped(again.begin(failed, 6_000))
    assert (again.read("r").begun, again.read("r").due(6_000)) == (2, True)
    [file] = (tmp_path / "state").iterdir()
    file.write_text("{")
    assert again.read("r").begun == 0
    again.forget("r")
    again.forget("r")
    assert list((tmp_path / "state").iterdir()) == []


def test_an_attempt_that_cannot_be_noted_is_not_begun(tmp_path: Path) -> None:
    """Nothing would count it."""
    (tmp_path / "state").write_text("a file, not a directory")
    with pytest.raises(PlatformError, match="none is begun"):
        Journal(tmp_path / "state", 100).begin(Attempts("r"), 1_000)


def test_an_incident_has_one_key_and_ends_with_the_next_model() -> None:
    """The alert repeats under the same id when it is made again, says the reason and whether the schedule goes on."""
    request, report = _request("r"), _finished("r", detail="duplicated-rows: 60 %")
    contract = _scheduled(failures_max=2)
    raised = incident.raised(request, report, contract, 1)
    assert raised == incident.raised(request, report, contract, 1)
    assert "duplicated-rows: 60 % (1 in a row)" in raised.summary
    assert "waits for a person" in incident.raised(request, report, contract, 2).summary
    over = incident.resolved(request, _finished("s", outcome="registered"))
    assert (over.dedup_key, over.status) == (raised.dedup_key, "resolve")
    assert over.alert_id != raised.alert_id
