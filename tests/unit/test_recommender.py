"""The shipped example, hour by hour of simulated time: 5 % for a day, 25 % for a day, then all; each bound from both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.controller.measure import fact_of
from deploy.core.schedule import due
from schemas.contracts import load_contract
from schemas.control import Alert, ApproveRequested, DeployRequested, Outcome, PauseReason, Phase
from schemas.measures import Measurement
from schemas.rollout import Metric
from tests.support_rollout import Play

HOUR = 3_600_000
CONTRACT = load_contract(Path(__file__).parents[2] / "deploy" / "demo" / "recommender.yaml")
START = 1_000 * 24 * HOUR


@dataclass(frozen=True)
class Shop:
    """What the candidate is like: p99 in ms, share of errors, clicks relative to the stable version's 5 %."""

    p99: float = 80.0
    errors: float = 0.0002
    clicks: float = 1.0
    rows: int = 200_000

    def measure(self, metric: Metric, version: str, beside: str | None, start: int, end: int) -> Measurement:
        mine = self if version == "2" else Shop()
        theirs = Shop()
        values: dict[str, Callable[[Shop], float]] = {
            "latency_p99": lambda shop: shop.p99,
            "error_rate": lambda shop: shop.errors,
            "business": lambda shop: 0.05 * shop.clicks,
        }
        of = values[metric.source]
        counted = metric.judge and beside is not None
        return Measurement(
            metric=metric.name, value=of(mine), rows=mine.rows, from_ms=start, to_ms=end,
            reference=None if beside is None else of(theirs), reference_rows=0 if beside is None else theirs.rows,
            events=round(of(mine) * mine.rows) if counted else None,
            reference_events=round(of(theirs) * theirs.rows) if counted else None,
        )  # fmt: skip


class Shops:
    """The rollout of version 2, played hour by hour."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.hour = 0
        self.play = Play(
            CONTRACT.model_copy(update={"rollout": CONTRACT.rollout.model_copy(update={"gates": ()})})
        )
        self.play.tick(START)
        assert self.play.ask(DeployRequested, START, version="1", issued_by="ada").outcome is Outcome.DONE
        self.play.contract = CONTRACT
        assert self.play.ask(DeployRequested, START, version="2", issued_by="ada").outcome is Outcome.ACCEPTED

    def run(self, until_hour: int) -> None:
        while self.hour < until_hour:
            self.hour += 1
            at = START + self.hour * HOUR
            self.play.tick(at)
            for task in due(self.play.now, self.play.contract.rollout, at):
                found = [
                    self.shop.measure(metric, task.version, task.beside, start, task.at_ms)
                    for metric, start in task.metrics
                ]
                self.play.send(fact_of(task, found))

    def approve(self) -> None:
        at = START + self.hour * HOUR
        assert self.play.ask(ApproveRequested, at, version="2", issued_by="grace").outcome is Outcome.DONE

    @property
    def share(self) -> float:
        return self.play.now.weights.get("2", 0.0)

    def told(self, name: str) -> list[Alert]:
        return [alert for alert in self.play.alerts if alert.dedup_key.endswith(f"/{name}")]


def test_a_good_version_takes_two_days() -> None:
    """5 % for 24 h, 25 % for 24 h, then, with one person's yes, all of it."""
    shops = Shops(Shop())
    shares = []
    for hour in range(1, 50):
        shops.run(hour)
        shares.append(shops.share)
    assert shares == [0.05] * 23 + [0.25] * 26
    assert shops.play.now.gate is not None and shops.play.now.gate.kind == "confirm-promotion"
    shops.approve()
    shops.run(50)
    assert (shops.share, shops.play.now.phase, shops.play.alerts) == (1.0, Phase.SUCCEEDED, [])


@pytest.mark.parametrize(
    ("shop", "promoted"),
    [
        (Shop(p99=99.9), True),
        (Shop(p99=100.0), False),
        (Shop(errors=0.00099), True),
        (Shop(errors=0.001), False),
        (Shop(clicks=0.5), True),
    ],
)
def test_promotion_needs_latency_under_100_ms_and_errors_under_a_thousandth(
    shop: Shop, promoted: bool
) -> None:
    """Each bound from both sides; clicks alert, and decide nothing."""
    shops = Shops(shop)
    shops.run(48)
    assert (shops.play.now.gate is not None) is promoted
    if promoted:
        shops.approve()
    shops.run(24 * 7)
    assert shops.share == (1.0 if promoted else 0.0)
    assert max(revision.weights.get("2", 0.0) for revision in shops.play.published) == (
        1.0 if promoted else 0.05
    )
    assert shops.play.now.phase is (Phase.SUCCEEDED if promoted else Phase.FAILED)


@pytest.mark.parametrize(
    ("shop", "metric", "told"),
    [
        (Shop(p99=200.0), "latency-p99", False),
        (Shop(p99=200.1), "latency-p99", True),
        (Shop(clicks=0.9), "ctr", False),
        (Shop(clicks=0.899), "ctr", True),
    ],
)
def test_somebody_is_told_when_clicks_fall_by_more_than_a_tenth_or_latency_passes_200_ms(
    shop: Shop, metric: str, told: bool
) -> None:
    """Within an hour, once, as a page; each bound from both sides."""
    shops = Shops(shop)
    shops.run(24)
    triggers = [alert for alert in shops.told(metric) if alert.status == "trigger"]
    assert [alert.severity for alert in triggers] == (["page"] if told else [])


@pytest.mark.parametrize(("shop", "metric"), [(Shop(p99=200.1), "latency-p99"), (Shop(clicks=0.899), "ctr")])
def test_it_is_watched_in_the_same_way_after_the_promotion(shop: Shop, metric: str) -> None:
    """Clicks against what the version before had; latency against its bound, with the way back taken."""
    shops = Shops(Shop())
    shops.run(49)
    shops.approve()
    shops.run(50)
    assert shops.share == 1.0
    shops.shop = shop
    shops.run(24 * 20)
    assert [alert.status for alert in shops.told(metric)][:1] == ["trigger"]
    assert shops.share == (0.0 if metric == "latency-p99" else 1.0)


@pytest.mark.parametrize(("p99", "share"), [(200.0, 0.05), (200.1, 0.0)])
def test_a_version_that_is_much_too_slow_is_taken_back_within_the_hour(p99: float, share: float) -> None:
    """Its first step is the most it ever had."""
    shops = Shops(Shop(p99=p99))
    shops.run(2)
    assert shops.share == share


@pytest.mark.parametrize(("errors", "rows", "share"), [(0.7, 10, 0.0), (0.0, 10, 0.05), (0.02, 50, 0.05)])
def test_seven_errors_in_ten_need_no_further_request(errors: float, rows: int, share: float) -> None:
    """The judge sees what the share of 500 requests cannot show yet; one error in fifty is no proof of anything."""
    shops = Shops(Shop(errors=errors, rows=rows))
    shops.run(1)
    assert shops.share == share


def test_a_shop_without_visitors_waits_and_is_not_promoted() -> None:
    """Too few requests are missing data: a typed pause, a deadline, never a promotion."""
    shops = Shops(Shop(rows=100))
    shops.run(30)
    assert (shops.play.now.pause, shops.share) == (PauseReason.MISSING_DATA, 0.05)
    shops.run(24 * 5)
    assert (shops.play.now.phase, shops.share) == (Phase.FAILED, 0.0)
