"""A rollout region after region: whose turn it is, what holds it up, what ends it everywhere."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from deploy.core.routing import Routes
from deploy.core.schedule import due
from deploy.core.trips import Trip, Trips
from schemas.contracts import CanaryStep, ModelContract, Rollout
from schemas.control import (
    ApproveRequested,
    Deployment,
    DeployRequested,
    Measured,
    Outcome,
    Phase,
    PromoteRequested,
    RollbackRequested,
)
from schemas.rollout import Gate, Metric
from schemas.verdicts import State
from tests.support_rollout import DAY, LABELS, Play, rollout_of, started, value

EU, US = {"name": "eu", "bake": DAY}, {"name": "us", "bake": 2 * DAY}
STABLE, HALF, WHOLE = {"1": 1.0}, {"1": 0.5, "2": 0.5}, {"2": 1.0}
P99 = Metric(name="p99", source="latency_p99", limit=100, interval=DAY // 2)
CLICKS = Metric(name="ctr", source="business", compare="change", limit=-0.1, direction="higher", interval=DAY)


def contract(**changes: Any) -> ModelContract:
    """Half of eu for a day, all of it for a day; then us, where the bake is two days."""
    plain = {"steps": (CanaryStep(weight=0.5, bake=DAY),), "regions": (EU, US), "unproven": "promote"}
    return rollout_of(**(plain | {"labels_min": 0} | changes))


def where(play: Play) -> dict[str, dict[str, float]]:
    return play.now.regional_weights


def measured(play: Play, at: int, number: float, region: str, metric: str = "p99", **more: Any) -> None:
    """One measurement of one region."""
    assert play.send(_measured(play, at, number, region, metric, **more)) is None


def _measured(play: Play, at: int, number: float, region: str, metric: str = "p99", **more: Any) -> Any:
    fields = play.fields(at) | {"version": "2", "deployment_revision": play.now.revision, "region": region}
    return Measured(measurements=(value(metric, at, number, **more),), **fields)


def test_one_region_after_another() -> None:
    """Half of eu, all of eu, a bake; then us the same; then it is the stable version, and no region is named any more."""
    play = started(contract())
    assert where(play) == {"eu": HALF, "us": STABLE}
    quarters = range(1, 28)
    assert [(at, where(play)) for at in quarters if play.tick(at * DAY // 4) is not None] == [
        (4, {"eu": WHOLE, "us": STABLE}),
        (8, {"eu": WHOLE, "us": HALF}),
        (12, {"eu": WHOLE, "us": WHOLE}),
        (20, {}),
    ]
    assert (play.now.stable, play.now.weights, play.now.region_metrics) == ("2", WHOLE, {})
    told = [(fact.kind, fact.detail) for fact in play.facts[1:]]
    assert told == [
        ("canary-started", "v2 gets 50% of eu beside v1"),
        ("step-passed", "v2 from 50% to 100% of eu"),
        ("region-passed", "v2 has baked in eu: 50% of us next"),
        ("step-passed", "v2 from 50% to 100% of us"),
        ("promoted", "v2: all its metrics passed"),
    ]


def test_where_nobody_is_named_the_stable_version_answers() -> None:
    """In a region that is not on the list, in none, and for a reader that knows no regions."""
    play = started(contract())
    assert (play.now.weights, play.now.shadow) == (STABLE, ())
    assert play.now.traffic_in("asia") == play.now.traffic_in("") == (STABLE, ())
    assert play.now.traffic_in("eu") == (HALF, ("2", "1"))


@pytest.mark.parametrize("region", ["eu", "us", "asia", ""])
def test_an_instance_obeys_its_own_region(region: str) -> None:
    """Only where its turn has come is the candidate served or scored beside; the answer says where it was given."""
    routes = Routes("m", region)
    routes.add(started(contract()).now)
    drawn = [routes.route(0, unit / 100, ()) for unit in range(100)]
    served = sum(route.version == "2" for route in drawn)
    assert served == (50 if region == "eu" else 0)
    assert all("2" not in route.shadows for route in drawn) == (region != "eu")
    assert {route.region for route in drawn} == {region or None}


def test_a_request_to_roll_back_is_obeyed_in_every_region() -> None:
    """Also where the version's turn has not come: an instance there must not begin with it meanwhile."""
    play = started(contract())
    trips = Trips()
    trips.deployment(play.now, 0, 0)
    request = RollbackRequested(**(play.fields(0) | {"version": "2"}))
    assert trips.request(request, 0, 0) is Trip.TRIPPED
    assert play.ask(RollbackRequested, version="2").outcome is Outcome.DONE
    assert (play.now.phase, play.now.weights, play.now.regions) == (Phase.ROLLED_BACK, STABLE, ())


def test_harm_rolls_back_every_region() -> None:
    """The monitor's comparison knows no regions; one that has baked loses the version as well."""
    play = started(contract())
    play.tick(DAY)
    play.tick(2 * DAY)
    assert where(play) == {"eu": WHOLE, "us": HALF}
    play.judge(2 * DAY, LABELS, State.DRIFT)
    play.tick(2 * DAY + 1)
    assert (play.now.phase, play.now.weights, play.now.regions) == (Phase.ROLLED_BACK, STABLE, ())
    assert play.now.tripped == ("2",)


def in_us(**changes: Any) -> Play:
    """eu has baked, us is at its first step since day 2; p99 was 80 ms everywhere so far."""
    play = started(contract(metrics=(P99,), **changes))
    for half in range(1, 5):
        measured(play, half * DAY // 2, 80, "eu")
        play.tick(half * DAY // 2)
    assert where(play) == {"eu": WHOLE, "us": HALF}
    return play


def test_a_breach_in_a_region_that_has_baked_rolls_back_all() -> None:
    """It is measured on, and what is bad there is bad."""
    play = in_us()
    revision = play.send(_measured(play, 5 * DAY // 2, 150, "eu"))
    assert revision is not None
    assert (revision.phase, revision.regions, revision.weights) == (Phase.ROLLED_BACK, (), STABLE)
    assert play.facts[-1].detail == "v2: p99 is 150, its limit 100 (1000 rows) in eu"


def test_only_the_region_under_way_lets_the_rollout_go_on() -> None:
    """Good figures of eu are none of us; us stands still until it has its own."""
    play = in_us()
    for half in (5, 6):
        measured(play, half * DAY // 2, 80, "eu")
        play.tick(half * DAY // 2)
    assert (play.now.phase, play.now.reason) == (Phase.PAUSED, "p99 was not measured")
    measured(play, 7 * DAY // 2, 80, "us")
    play.tick(7 * DAY // 2)
    assert where(play) == {"eu": WHOLE, "us": WHOLE}


def test_a_region_that_has_baked_holds_up_nobody() -> None:
    """Nothing measured there any more: the monitor and the region under way decide."""
    play = in_us()
    for half in (5, 6):
        measured(play, half * DAY // 2, 80, "us")
        play.tick(half * DAY // 2)
    assert where(play) == {"eu": WHOLE, "us": WHOLE}


def test_a_measurement_of_a_region_whose_turn_has_not_come_counts_nowhere() -> None:
    """Nor does one without a region, which an older controller may have left on the topic."""
    play = started(contract(metrics=(P99,)))
    for region in ("us", "asia", ""):
        measured(play, DAY // 2, 500, region)
    assert (play.now.metrics, play.now.region_metrics) == ({}, {})


def test_what_is_due_is_measured_where_the_version_is() -> None:
    """The region under way since its own start, and those that have baked since they had; never one to come."""
    play = in_us()
    rollout = play.contract.rollout
    found = [
        (d.region, d.at_ms, d.metrics[0][1]) for d in due(play.now, rollout, 3 * DAY) if d.version == "2"
    ]
    assert found == [("us", 3 * DAY, 5 * DAY // 2), ("eu", 3 * DAY, 5 * DAY // 2)]
    assert [d.region for d in due(started(play.contract).now, rollout, DAY)] == ["eu", ""]


def test_where_the_version_has_a_region_it_is_held_to_what_the_stable_one_did_there() -> None:
    """A change against nobody cannot be measured: the last value of the region's stable version stands in."""
    play = started(contract(metrics=(CLICKS,)))
    measured(play, DAY, 0.1, "eu", "ctr", reference=0.1, reference_rows=1_000)
    play.tick(DAY)
    assert play.now.regions[0].baseline == {"ctr": 0.1}
    revision = play.send(_measured(play, 2 * DAY, 0.08, "eu", "ctr"))
    assert revision is not None
    assert revision.phase is Phase.ROLLED_BACK


def test_proof_is_wanted_before_the_whole_of_each_region() -> None:
    """As before all traffic of a rollout without regions; nobody wants it again while the region bakes."""
    judged = Metric(name="clicks", source="business", judge=True, interval=DAY)
    play = started(contract(metrics=(judged,), unproven="wait"))
    play.tick(DAY)
    assert (play.now.phase, where(play)) == (Phase.PAUSED, {"eu": HALF, "us": STABLE})
    even = {"events": 500, "reference_events": 500, "reference_rows": 100_000, "rows": 100_000}
    measured(play, 2 * DAY, 0.005, "eu", "clicks", **even)
    play.tick(2 * DAY)
    assert where(play)["eu"] == WHOLE
    assert [d for d in due(play.now, play.contract.rollout, 3 * DAY) if d.version == "2"] == []
    play.tick(3 * DAY)
    assert where(play) == {"eu": WHOLE, "us": HALF}


def test_a_gate_names_the_region_it_stands_before() -> None:
    """A yes for the whole of eu is none for us."""
    play = started(contract(gates=(Gate(kind="confirm-traffic-increase", expires=10 * DAY),)))
    asked = []
    for at in range(1, 6):
        play.tick(at * DAY)
        if play.now.gate is not None:
            asked.append((play.now.gate.weight, play.now.gate.region))
            play.ask(ApproveRequested, at * DAY, version="2", issued_by="grace")
            play.tick(at * DAY)
    assert asked == [(1.0, "eu"), (0.5, "us"), (1.0, "us")]
    assert "confirm-traffic-increase before 50% of us: waits for 1 approvals" in [
        f.detail for f in play.facts
    ]


def test_shadow_then_canary_in_each_region() -> None:
    """The plan is laid out for all of them when the rollout begins."""
    plan = contract(strategy="shadow", then="canary", bake=DAY)
    play = started(plan)
    assert [weight for weight, _ in play.now.steps] == [0.0, 0.5, 1.0] * 2
    assert (where(play)["eu"], play.now.regions[0].shadow) == (STABLE, ("2",))
    assert play.now.regions[1].shadow == ()


@pytest.mark.parametrize("steps", [None, ((0.1, DAY),), ()])
def test_a_deploy_with_steps_of_its_own(steps: Any) -> None:
    """Its steps are gone through in each region; none at all is all traffic everywhere at once."""
    play = Play(contract())
    play.tick(0)
    play.ask(DeployRequested, version="1", steps=())
    play.ask(DeployRequested, version="2", steps=steps)
    share = {None: 0.5, (): None}.get(steps, 0.1)
    if share is None:
        assert (play.now.stable, play.now.regions) == ("2", ())
    else:
        assert [weight for weight, _ in play.now.steps] == [share, 1.0] * 2


def test_a_promotion_is_of_all_regions() -> None:
    """Asked for, it skips what is left everywhere."""
    play = started(contract())
    assert play.ask(PromoteRequested).outcome is Outcome.DONE
    assert (play.now.stable, play.now.weights, play.now.regions) == ("2", WHOLE, ())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"regions": (EU, EU)}, "rollout.regions: eu is named twice; a region has one turn"),
        ({"strategy": "ab"}, "ab does not end in all traffic of a region"),
        ({"strategy": "dark"}, "dark does not end in all traffic of a region"),
        ({"strategy": "shadow", "then": "stop"}, "shadow with then: stop does not end"),
        ({"regions": ({"name": "e u"},)}, "should match pattern"),
        ({"regions": ({"name": "eu", "bakes": DAY},)}, "Extra inputs are not permitted"),
    ],
)
def test_a_contract_that_cannot_be_walked_is_refused(changes: dict[str, Any], complaint: str) -> None:
    """With a sentence that says which line and why."""
    with pytest.raises(ValidationError, match=complaint):
        Rollout(**({"regions": (EU, US)} | changes))


def test_messages_without_regions_are_those_of_before() -> None:
    """What is signed or refuses unknown keys has no new key where no region is named; what is read needs none."""
    play = started(rollout_of())
    measurement = _measured(play, 1, 80, "")
    assert "region" not in measurement.model_dump_json()
    assert "region" in _measured(play, 1, 80, "eu").model_dump_json()
    assert "regions" not in play.facts[-1].model_dump_json()
    assert "regions" not in play.contract.model_dump_json()
    older = play.now.model_dump(mode="json", exclude={"regions", "region_metrics"})
    assert Deployment.model_validate(older) == play.now
