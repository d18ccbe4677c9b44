"""Routing, trips, breaker and the scoring core: every request gets one answer, by the version that should give it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.core.breaker import Breaker
from deploy.core.microbatch import MicroBatch
from deploy.core.routing import Route, Routes, caller_unit
from deploy.core.trips import Trip, Trips
from deploy.registry import Lineage, Registry
from deploy.training.scores import score
from schemas.control import Answer, Deployment, Outcome, Phase, RollbackRequested
from tests.support_deploy import CONTRACT, START_MS, artifact, trained
from tests.support_scoring import Incoming, ask, deploy, deploy_canary, dump, make_core, run


def _rollback(
    revision: int = 1, version: str = "1", request_id: str = "r", **changes: Any
) -> RollbackRequested:
    base: dict[str, Any] = {"cause": "c", "event_time_ms": 10, "expires_ms": 1_000, "issued_by": "policy"}
    return RollbackRequested(
        request_id=request_id,
        model="delay",
        version=version,
        deployment_revision=revision,
        **(base | changes),
    )


def _answer(request_id: str = "r") -> Answer:
    return Answer(request_id=request_id, outcome=Outcome.REFUSED)


# --- micro-batches


def test_a_batch_is_due_when_full_or_old() -> None:
    """Empty: nothing presses. Then the first row's deadline counts down. Full: at once, whatever the time."""
    batch: MicroBatch[str] = MicroBatch(rows_max=3, deadline_ms=5)
    assert batch.wait_ms(0) is None
    batch.add(["a"], 100)
    batch.add(["b"], 104)
    assert (batch.wait_ms(104), batch.wait_ms(105), batch.wait_ms(200)) == (1, 0, 0)
    batch.add(["c"], 104)
    assert batch.wait_ms(104) == 0
    with pytest.raises(ValueError, match="room"):
        batch.add(["d"], 104)
    assert batch.take() == ["a", "b", "c"]
    assert batch.wait_ms(300) is None


# --- routing


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_callers_of_a_candidate_keep_it_when_its_share_grows(unit: float, one: float, other: float) -> None:
    """Whoever had the candidate at the smaller share has it at the larger one."""
    small, large = sorted((one, other))
    first, second = Routes("delay"), Routes("delay")
    first.add(deploy_canary(1, small))
    second.add(deploy_canary(1, large))
    if first.route(0, unit, ()).version == "2":
        assert second.route(0, unit, ()) == Route("2", "canary", 1)


def test_shares_of_callers_are_the_weights() -> None:
    """Of 20,000 callers about a quarter get the candidate of a quarter."""
    routes = Routes("delay")
    routes.add(deploy_canary(1, 0.25))
    got = sum(routes.route(0, caller_unit("delay", f"c{i}"), ()).version == "2" for i in range(20_000))
    assert abs(got / 20_000 - 0.25) < 0.015


@pytest.mark.parametrize(
    ("unhealthy", "drawn", "expected"),
    [
        ((), 0.01, ("2", "canary")),
        ((), 0.9, ("1", "stable")),
        (("2",), 0.01, ("1", "stable")),
        (("1",), 0.9, ("0", "stable")),
        (("1", "2"), 0.01, ("0", "stable")),
        (("0", "1", "2"), 0.01, (None, "stable")),
        (("1",), 0.01, ("2", "canary")),
        (("0", "1"), 0.9, (None, "stable")),
    ],
)
def test_a_sick_version_gives_way(
    unhealthy: tuple[str, ...], drawn: float, expected: tuple[str | None, str]
) -> None:
    """A sick candidate to the stable version, a sick stable one to its predecessor and never to the unproven
    candidate, and when none is left to the fallback."""
    routes = Routes("delay")
    routes.add(deploy_canary(1, 0.05))
    route = routes.route(0, drawn, unhealthy)
    assert (route.version, route.role) == expected


def test_requests_follow_the_revision_of_their_event_time() -> None:
    """A planned change binds requests from its effective time on; a rollback binds all; old revisions are refused."""
    routes = Routes("delay")
    assert routes.route(0, 0.0, ()) == Route(None, "stable", 0)
    routes.add(deploy(1))
    routes.add(deploy_canary(2, 0.5, effective_ms=1_000))
    assert [routes.route(t, 0.1, ()).version for t in (999, 1_000)] == ["1", "2"]
    routes.add(deploy_canary(3, 0.9, effective_ms=2_000))
    assert [routes.route(t, 0.6, ()).revision for t in (999, 1_999, 2_000)] == [1, 2, 3]
    assert not routes.add(deploy(3))
    routes.add(deploy(4, phase=Phase.ROLLED_BACK, tripped=("2",)))
    assert {routes.route(t, 0.1, ()).version for t in (0, 999, 5_000)} == {"1"}
    assert routes.versions() == ["1"]


def test_what_the_newest_revision_tripped_is_never_served() -> None:
    """Not even to requests that still follow an older revision, and whatever the weights say."""
    routes = Routes("delay")
    routes.add(deploy_canary(1, 0.5))
    routes.add(deploy_canary(2, 0.5, effective_ms=10_000, tripped=("2",), shadow=("3", "2")))
    assert routes.route(0, 0.1, ()).version == "1"
    assert routes.route(20_000, 0.1, ()) == Route("1", "stable", 2, ("3",))


# --- trips


def test_a_trip_begins_with_the_request_and_ends_with_its_answer() -> None:
    """Any answer ends it; the same request read again afterwards does nothing."""
    trips = Trips()
    trips.deployment(deploy_canary(5, 0.5), 0, 0)
    assert trips.request(_rollback(5, "2"), 20, 100) is Trip.TRIPPED
    assert trips.tripped == {"2"}
    trips.deployment(deploy_canary(6, 0.5), 20, 150)
    assert trips.tripped == {"2"}
    trips.deployment(deploy_canary(7, 0.5, answers=(_answer(),)), 20, 200)
    assert trips.tripped == frozenset()
    assert trips.request(_rollback(7, "2"), 20, 300) is Trip.ANSWERED


@pytest.mark.parametrize(
    ("command", "event_time_ms", "expected"),
    [
        (_rollback(5, "2"), 10, Trip.TRIPPED),
        (_rollback(8, "2"), 10, Trip.TRIPPED),
        (_rollback(0, "2"), 10, Trip.TRIPPED),
        (_rollback(4, "2"), 10, Trip.STALE),
        (_rollback(4, "1"), 10, Trip.TRIPPED),
        (_rollback(9, "2"), 10, Trip.WAITING),
        (_rollback(8, "7"), 10, Trip.NOT_SERVING),
        (_rollback(5, "2"), 1_001, Trip.EXPIRED),
    ],
)
def test_only_a_request_that_fits_trips(
    command: RollbackRequested, event_time_ms: int, expected: Trip
) -> None:
    """Version 2 came into traffic with revision 5; a request decided before that is about an earlier stay."""
    trips = Trips()
    trips.deployment(deploy(3), 0, 0)
    for revision in (5, 8):
        trips.deployment(deploy_canary(revision, 0.5), 0, 0)
    assert trips.request(command, event_time_ms, 0) is expected


def test_a_request_ahead_of_the_deployments_waits_for_them() -> None:
    """It trips when its revision comes, unless that revision answers it already."""
    for answers, tripped in (((), {"2"}), ((_answer(),), set())):
        trips = Trips()
        trips.deployment(deploy(3), 0, 0)
        assert trips.request(_rollback(4, "2"), 10, 0) is Trip.WAITING
        trips.deployment(deploy_canary(4, 0.5, answers=answers), 10, 5)
        assert trips.tripped == tripped


def test_an_unanswered_trip_is_reported_once_and_goes_on() -> None:
    """After the timeout it is counted, told once, and still in force."""
    trips = Trips()
    trips.deployment(deploy(1), 0, 0)
    trips.request(_rollback(), 10, now_ms=1_000)
    assert (trips.unanswered(1_500, 500), trips.unanswered(1_501, 500)) == (0, 1)
    assert [c.request_id for c in trips.to_report(1_501, 500)] == ["r"]
    assert trips.to_report(9_000, 500) == []
    assert trips.tripped == {"1"}


def test_the_breaker_opens_after_consecutive_failures_only() -> None:
    """A success in between starts the count again; opening is told once."""
    breaker = Breaker(failures_max=2)
    assert not breaker.failed("1", 0)
    breaker.succeeded("1")
    assert [breaker.failed("1", 0), breaker.failed("1", 0), breaker.failed("1", 0)] == [False, True, False]
    assert breaker.open == {"1"}
    breaker.reset("1")
    assert breaker.open == frozenset()


def test_an_open_breaker_asks_for_trials_ever_later() -> None:
    """After the pause a version may be tried; each trial in vain doubles the pause, up to a bound."""
    breaker = Breaker(failures_max=1, pause_ms=100)
    assert breaker.failed("1", 1_000)
    assert (breaker.to_try(1_099), breaker.to_try(1_100)) == ([], ["1"])
    breaker.tried_in_vain("1", 1_100)
    assert (breaker.to_try(1_299), breaker.to_try(1_300)) == ([], ["1"])
    for _ in range(20):
        breaker.tried_in_vain("1", 2_000)
    assert breaker.to_try(2_000 + 64 * 100) == ["1"]


# --- the core


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Versions 1 and 2 of the model, which differ; 3 is altered after registration."""
    made = Registry(tmp_path_factory.mktemp("registry"))
    for flip in (False, True, False):
        made.register(CONTRACT, artifact(flip=flip), Lineage())
    (Path(made.address) / "delay" / "3" / "model.onnx").write_bytes(b"not a model")
    return made


def test_answers_and_prediction_log_are_what_the_model_says(registry: Registry) -> None:
    """Score, log and the model run by hand agree; features are logged as they were sent; latency is measured."""
    requests = ask(300)
    predictions, scores, letters = run(make_core(registry, deploy()), *dump(requests))
    expected = score(trained().onnx, trained().encoder.encode_rows([r["features"] for r in requests]))
    assert not letters
    np.testing.assert_allclose([s.score for s in scores], expected, atol=1e-6)
    assert [p.score for p in predictions] == [s.score for s in scores]
    assert [p.features for p in predictions] == [r["features"] for r in requests]
    assert {(p.version, p.role, p.status, p.latency_ms) for p in predictions} == {("1", "stable", "ok", 3.5)}
    assert [(s.request_id, p.prediction_id) for s, p in zip(scores, predictions, strict=True)] == [
        (r["request_id"], r["request_id"]) for r in requests
    ]


def test_a_canary_and_a_shadow_are_logged_in_their_roles(registry: Registry) -> None:
    """Callers are split, each answered once; with both in shadow, every request is scored once by each version."""
    deployment = deploy_canary(2, 0.3, shadow=("1", "2"))
    predictions, scores, _ = run(make_core(registry, deployment), *dump(ask(200)))
    answered = {p.prediction_id: p for p in predictions if p.role != "shadow"}
    assert len(scores) == len(answered) == 200
    assert {p.version for p in answered.values() if p.role == "canary"} == {"2"}
    assert 30 < sum(p.role == "canary" for p in answered.values()) < 90
    assert len(predictions) == 400
    assert {(p.prediction_id, p.version) for p in predictions} == {
        (i, v) for i in answered for v in ("1", "2")
    }


@pytest.mark.parametrize(
    "deployments", [(), (deploy(weights={}, stable=None),), (deploy(tripped=("1",)),), (deploy(stable="9", weights={"9": 1}),), (deploy(stable="3", weights={"3": 1}),)],
    ids=["no-deployment", "no-version", "tripped", "not-registered", "altered"],
)  # fmt: skip
def test_without_a_healthy_version_the_fallback_answers(
    registry: Registry, deployments: tuple[Deployment, ...]
) -> None:
    """The contract's heuristic, under its own name, in answer and log."""
    predictions, scores, _ = run(make_core(registry, *deployments), *dump(ask(3)))
    assert {(s.version, s.status, s.score) for s in scores} == {("fallback", "fallback", 0.2)}
    assert {(p.version, p.status, p.score) for p in predictions} == {("fallback", "fallback", 0.2)}


_GOOD = {"hour": 3, "wind.speed": 1.5, "carrier": "AA"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "nobody"}, "unknown-model"),
        ({"features": {"hour": 3, "wind.speed": 1}}, "missing-feature"),
        ({"features": _GOOD | {"hour": "3"}}, "wrong-type"),
        ({"features": _GOOD | {"carrier": 7}}, "wrong-type"),
        ({"features": _GOOD | {"more": 7}}, "unknown-field"),
        ({"features": [1]}, "wrong-type"),
        ({"event_time_ms": -5}, "absurd-timestamp"),
        ({"event_time_ms": "now"}, "wrong-type"),
        ({"color": "red"}, "unknown-field"),
        ({"entity": "x" * 201}, "invalid-value"),
    ],
)
def test_a_refused_request_is_answered_and_dead_lettered(
    registry: Registry, change: dict[str, Any], reason: str
) -> None:
    """Its caller gets the reason, the message goes on record with its address, its neighbours are not touched."""
    good, bad = dump(ask(1))[0], dump(ask(1, request_id="bad", features=_GOOD))[0]
    bad = json.dumps(json.loads(bad) | change).encode()
    predictions, scores, letters = run(make_core(registry, deploy()), bad, good)
    assert {s.request_id: s.status for s in scores} == {"bad": "error", "q0": "ok"}
    assert next(s.error for s in scores if s.request_id == "bad").startswith(reason)  # type: ignore[union-attr]
    assert [p.prediction_id for p in predictions] == ["q0"]
    assert [(d.topic, d.partition, d.offset, d.reason) for d in letters] == [
        ("scoring-requests", 2, 40, reason)
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(b"{", "not-json"), (None, "empty"), (b"", "empty"), (b"x" * 1_000_001, "oversize"), (b"[]", "wrong-type"),
     (b'{"request_id": "", "model": "delay"}', "invalid-value"), (b'{"request_id": NaN}', "not-json")],
)  # fmt: skip
def test_a_request_without_an_id_is_dead_lettered_only(
    registry: Registry, value: bytes | None, reason: str
) -> None:
    """There is nobody to answer; nothing is lost."""
    predictions, scores, letters = run(make_core(registry, deploy()), value)
    assert (predictions, scores) == ([], [])
    assert [d.reason for d in letters] == [reason]


def test_numbers_out_of_range_are_refused(registry: Registry) -> None:
    """1e999 is valid JSON and no number a model can read."""
    value = dump(ask(1, features=_GOOD))[0].replace(b'"hour": 3', b'"hour": 1e999')
    _, scores, letters = run(make_core(registry, deploy()), value)
    assert (scores[0].status, letters[0].reason) == ("error", "not-finite")


def test_a_failing_version_answers_errors_and_then_trips(registry: Registry) -> None:
    """Three failed batches open the breaker, which is told once; the next batch goes to the predecessor."""
    told: list[tuple[str, str]] = []
    deployment = deploy(previous="2")
    core = make_core(registry, deployment, on_break=lambda _m, version, why: told.append((version, why)))
    loaded = core._engine.get("delay", "1")
    assert loaded is not None
    loaded._session = None  # type: ignore[assignment]
    for _ in range(3):
        predictions, scores, _letters = run(core, *dump(ask(2)))
        assert {(s.version, s.status, s.score) for s in scores} == {("1", "error", None)}
        assert {p.status for p in predictions} == {"error"}
    _, scores, _letters = run(core, *dump(ask(2)))
    assert {(s.version, s.status, s.role) for s in scores} == {("2", "ok", "stable")}
    assert [version for version, _ in told] == ["1"]


def test_trace_id_comes_from_field_header_or_request(registry: Registry) -> None:
    """The field wins, then the header, then one made from the request id, the same for answer and log."""
    requests = dump(ask(1, trace_id="f" * 32)) + dump(ask(2))
    headers = ((("driftline-trace", b"a" * 32),), (("driftline-trace", b"a" * 32),), None)
    records = [Incoming(value, headers=header) for value, header in zip(requests, headers, strict=True)]
    outs = make_core(registry, deploy()).score(records, [0.0] * 3, 0).records(4)
    ids = [json.loads(o["value"])["trace_id"] for topic in ("scores", "predictions") for o in outs[topic]]
    assert ids[:2] == ["f" * 32, "a" * 32]
    assert len(ids[2]) == 32
    assert ids[:3] == ids[3:]


def test_a_nullable_feature_may_be_left_out(registry: Registry) -> None:
    """It is logged as null, which the monitor counts as missing, and the model sees NaN."""
    predictions, scores, _ = run(
        make_core(registry, deploy()), *dump(ask(1, features={"hour": 3, "carrier": "AA"}))
    )
    assert predictions[0].features == {"hour": 3, "wind.speed": None, "carrier": "AA"}
    assert scores[0].status == "ok"


@pytest.mark.parametrize("inline", [False, True])
def test_what_a_left_version_said_is_said_by_another(registry: Registry, inline: bool) -> None:
    """Scored, not yet written, and a rollback comes: its rows are scored again, all others keep what they have."""
    core = make_core(registry, deploy_canary(2, 0.4, shadow=("1", "2")), shadows_inline=inline)
    values = [*dump(ask(60)), b"{"]
    records = [Incoming(value, offset=at) for at, value in enumerate(values)]
    scored = core.score(records, [1_000.0] * len(values), START_MS)
    before = {row.head.request_id: (row.route.version, row.score) for row in scored.rows}
    model = core.model("delay")
    model.trips.deployment(deploy_canary(2, 0.4), 0, 0)
    assert model.trips.request(_rollback(2, "2"), 10, 0) is Trip.TRIPPED
    core.reroute(scored, START_MS)
    after = {row.head.request_id: (row.route.version, row.score) for row in scored.rows}
    assert {version for version, _ in before.values()} == {"1", "2"}
    assert {version for version, _ in after.values()} == {"1"}
    assert {k: v for k, v in before.items() if v[0] == "1"}.items() <= after.items()
    expected = [score for _, score in after.values()]
    again = [row.score for row in core.score(records, [1_000.0] * len(values), START_MS).rows]
    assert expected == again
    out = scored.records(4)
    assert len(out["scores"]) == 60
    assert len(out["dead-letters"]) == 1
    shadows = [json.loads(one["value"]) for one in out["predictions"] if b'"shadow"' in one["value"]]
    owed = sum(len(job.rows) for job in scored.shadows) + len(shadows)
    assert owed == sum(version == "1" for version, _ in before.values())
