"""What the warehouse says of figures whose labels are not all in, on real flights."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any

import clickhouse_connect
import numpy as np
import pandas as pd
import pytest

from deploy.demo import verify
from deploy.demo.flights import DAY_MS, Flights, load_flights, month_start_ms
from deploy.local.warehouse import LocalWarehouse
from deploy.migrate import migrate
from schemas.settings import ClickHouseSettings
from streams.sink import ClickHouseSink
from tests.support_maturity import CONTRACT, FIGURES, SHARES, Partial, Replay, partials, scores

pytestmark = pytest.mark.integration

SPRING = month_start_ms(3) // DAY_MS * DAY_MS
#: The second day has no history yet.
DAYS = [SPRING + at * DAY_MS for at in (1, *range(34, 62, 5))]
HORIZON = CONTRACT.monitoring.label_horizon
PARTIAL = SHARES[1:]


@pytest.fixture(scope="module")
def client(warehouse: LocalWarehouse) -> Iterator[Any]:
    """A reader of a database of this module's own."""
    settings = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database="live")
    migrate(settings)
    with clickhouse_connect.get_client(**settings.client()) as reader:
        reader.settings = settings
        yield reader


@pytest.fixture(scope="module")
def flights() -> Flights:
    """A tenth of the year."""
    return load_flights(0.1)


@pytest.fixture(scope="module")
def spring(client: Any, flights: Flights) -> list[Partial]:
    """Seven days, each stopped at five shares of its labels."""
    score = scores(flights)
    keep = (flights.departs_ms >= SPRING) & (flights.departs_ms < DAYS[-1] + 2 * DAY_MS)
    sink = ClickHouseSink(client.settings)
    replay = Replay(flights.rows(keep), score[keep], sink)
    found = partials(client, replay, flights.rows(keep), DAYS, ("", "origin=EWR"))
    sink.close()
    return found


def of(spring: list[Partial], share: float, segment: str = "") -> list[Partial]:
    """The days that have a history, at one share."""
    return [
        p
        for p in spring
        if (p.share, p.then["segment"]) == (share, segment) and p.then["window_start"].month > 3
    ]


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("share", PARTIAL)
def test_the_corrected_figure_is_nearer_to_the_final_one(
    spring: list[Partial], share: float, figure: str
) -> None:
    """Late flights land late, so the labels that are in flatter the model; the mean error falls at every share."""
    mine = of(spring, share)
    assert len(mine) == len(DAYS) - 1
    assert np.mean([p.error("corrected", figure) for p in mine]) < np.mean(
        [p.error("naive", figure) for p in mine]
    )


def test_a_figure_is_estimated_then_partial_then_final_and_says_since_when(spring: list[Partial]) -> None:
    """One row a window; ``accuracy`` is the best of the three, and each has its time."""
    for share in SHARES:
        for p in of(spring, share):
            then, start = p.then, p.then["window_start"].replace(tzinfo=UTC)
            assert then["estimate"] == "calibrated"
            assert then["estimated_since"].replace(tzinfo=UTC) == start + timedelta(days=1)
            if not share:
                assert (then["maturity"], then["correction"], then["labelled"]) == ("estimated", "none", 0)
                assert then["accuracy"] == then["estimated_accuracy"]
                assert then["partial_since"] is then["corrected_accuracy"] is None
            else:
                assert (then["maturity"], then["correction"]) == ("partial", "model")
                assert then["accuracy"] == then["corrected_accuracy"]
                assert (
                    start
                    <= then["partial_since"].replace(tzinfo=UTC)
                    <= then["last_label_time"].replace(tzinfo=UTC)
                )
                assert then["labelled"] / p.final["labelled"] == pytest.approx(share, abs=0.05)
                assert then["labelled_share"] <= then["labels_in"] <= 1.0
            assert then["final_since"] is None
    for p in spring:
        final, start = p.final, p.final["window_start"].replace(tzinfo=UTC)
        assert (final["maturity"], final["correction"], final["labels_in"]) == ("final", "final", 1.0)
        for figure in FIGURES:
            assert final[figure] == final[f"corrected_{figure}"] == final[f"naive_{figure}"]
        latest = start + timedelta(days=1, milliseconds=HORIZON)
        assert final["last_label_time"] <= final["final_since"] <= latest.replace(tzinfo=None)


def test_without_enough_history_the_figure_is_the_naive_one_and_says_so(spring: list[Partial]) -> None:
    """No settled window yet: nothing is known of delays, nor of what such scores were worth."""
    early = [p for p in spring if p.then["window_start"].month == 3]
    assert {p.share for p in early} == set(SHARES)
    for p in early:
        assert p.then["estimate"] == "scores as they are"
        assert p.then["correction"] == ("naive" if p.share else "none")
        assert p.then["corrected_accuracy"] == p.then["naive_accuracy"]


def test_a_segments_own_labels_correct_it(spring: list[Partial]) -> None:
    """Where a segment has 50 settled labels of each class; the whole's figure says ``model``."""
    for share in PARTIAL:
        assert {p.then["correction"] for p in of(spring, share, "origin=EWR")} == {"segment"}


def test_estimate_and_correction_are_what_their_formulas_say(spring: list[Partial], flights: Flights) -> None:
    """From the plain list of flights; with exact delays where the view has buckets of five percent."""
    score, day = scores(flights), flights.departs_ms // DAY_MS * DAY_MS
    delay_ms, hit = flights.label_ms - day, (score >= CONTRACT.threshold) == (flights.late == 1)
    for p in (p for share in PARTIAL for p in of(spring, share)):
        start_ms = round(p.then["window_start"].replace(tzinfo=UTC).timestamp() * 1000)
        now_ms = round(p.then["last_label_time"].replace(tzinfo=UTC).timestamp() * 1000)
        newest = (now_ms - HORIZON - DAY_MS) // DAY_MS * DAY_MS
        past = (day >= SPRING) & (day <= newest) & (day > newest - 28 * DAY_MS)
        here = (day == start_ms) & (flights.departs_ms <= now_ms)
        known = here & flights.label_known_by(now_ms)
        bins = np.minimum((score * 20).astype(int), 19)
        seen = np.bincount(bins[past & flights.labelled], minlength=20)
        late = np.bincount(bins[past & (flights.late == 1)], minlength=20)
        chance = (late + 2 * (np.arange(20) + 0.5) / 20) / (seen + 2)
        right = np.where(score[here] >= CONTRACT.threshold, chance[bins[here]], 1 - chance[bins[here]])
        assert p.then["estimated_accuracy"] == pytest.approx(np.mean(right), abs=1e-6)
        due, fares = [], []
        for label in (0, 1):
            of_class = past & (flights.late == label)
            arrived = np.mean(delay_ms[of_class] <= now_ms - start_ms)
            have = known & (flights.late == label)
            rate = of_class.sum() / past.sum() * here.sum()
            due.append((1 - arrived) * (have.sum() + 0.1 * rate) / (arrived + 0.1))
            fares.append((hit[have].sum() + 5 * hit[of_class].mean()) / (have.sum() + 5))
        part = min(1.0, (here.sum() - known.sum()) / sum(due))
        hits = hit[known].sum() + sum(part * d * f for d, f in zip(due, fares, strict=True))
        assert p.then["labelled"] == known.sum()
        assert p.then["corrected_accuracy"] == pytest.approx(hits / (known.sum() + part * sum(due)), abs=0.02)


@pytest.mark.usefixtures("spring")
def test_the_demos_own_computation_agrees(flights: Flights, client: Any) -> None:
    """Every count, loss and AUC of every window and segment; and a score that was never sent is seen to be missing."""
    keep = (flights.departs_ms >= SPRING) & (flights.departs_ms < DAYS[-1] + 2 * DAY_MS)
    sent = flights.rows(keep)
    log = pd.DataFrame(
        {
            "prediction_id": sent.flight_id, "version": "v1", "role": "stable", "event_time_ms": sent.departs_ms,
            "score": scores(flights)[keep], "status": "ok",
        }
    )  # fmt: skip
    have = verify.actual(client.settings, CONTRACT.model)
    checked = verify.Checked(log)
    verify.compare(checked, verify.expected(sent, log, CONTRACT), have)
    assert (checked.count, checked.mismatches) == (0, [])
    assert checked.compared > 5_000
    lacking = verify.Checked(log)
    log.loc[0, "score"] = 1 - log.loc[0, "score"]
    verify.compare(lacking, verify.expected(sent, log, CONTRACT), have)
    assert lacking.count > 0
