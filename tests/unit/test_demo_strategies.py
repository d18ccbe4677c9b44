"""The trials of the strategies: what ships is sound, and the verdict sees what it must, each sin by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.core.routing import caller_unit
from deploy.demo.traffic import Answer, Share, traffic_of
from deploy.demo.trials import QUALITIES, STRATEGIES, Trial, rollouts
from deploy.demo.verdicts import result_of
from deploy.demo.watch import Stamped
from schemas.control import Deployment, Phase

T0 = 1_000_000
BAD = Trial("canary", "bad")


def revision(number: int, **changes: Any) -> Stamped[Deployment]:
    base: dict[str, Any] = {
        "model": BAD.model, "revision": number, "phase": Phase.PROGRESSING, "stable": "1", "event_time_ms": T0,
    }  # fmt: skip
    return Stamped(Deployment(**(base | changes)), kafka_ms=number * 1_000)


#: v1 alone; v2 at 5 % from T0 on; v2 rolled back.
REVISIONS = [
    revision(1, weights={"1": 1.0}, phase=Phase.SUCCEEDED),
    revision(
        2, weights={"1": 0.95, "2": 0.05}, candidate="2", steps=((0.05, 10), (0.25, 10)), effective_ms=T0,
        rollout_since_ms=T0,
    ),
    revision(3, weights={"1": 1.0}, tripped=("2",), phase=Phase.ROLLED_BACK, reason="v2 rolled back: harm"),
]  # fmt: skip
CALLERS = [f"flight-{n}" for n in range(2_000)]
INSIDE = [name for name in CALLERS if caller_unit(BAD.model, name) < 0.05]
OUTSIDE = [name for name in CALLERS if name not in INSIDE]


def answer(caller: str, version: str, at_revision: int, **changes: Any) -> Answer:
    base = Answer(f"{caller}@{BAD.model}", BAD.model, version, T0 + 1, at_revision, kafka_ms=2_500)
    return msgspec.structs.replace(base, **changes)


def well_behaved() -> list[Answer]:
    """Those of its share from v2 while it had one, everything else from v1."""
    during = [answer(name, "2", 2) for name in INSIDE] + [answer(name, "1", 2) for name in OUTSIDE]
    return [*during, *(answer(name, "1", 3, kafka_ms=3_500) for name in CALLERS[:100])]


def failures(answers: list[Answer], revisions: list[Stamped[Deployment]] = REVISIONS) -> list[str]:
    traffic = traffic_of(revisions, answers, "2")
    return result_of(BAD, [stamped.record for stamped in revisions], traffic).failures


def test_a_candidate_that_kept_to_its_share_passes() -> None:
    """Counted from answers: how much it had and gave, and who answers afterwards."""
    traffic = traffic_of(REVISIONS, well_behaved(), "2")
    assert traffic.weight_max == 0.05
    assert traffic.shares == [Share(0.05, len(INSIDE), len(CALLERS))]
    assert (traffic.beyond, traffic.last_s, traffic.after) == (0, 0.0, {"1": 100})
    assert failures(well_behaved()) == []


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (answer(OUTSIDE[0], "2", 2), "1 answers beyond its step"),
        (answer(INSIDE[0], "2", 1), "1 answers beyond its step"),
        (answer(INSIDE[0], "2", 2, event_time_ms=T0 - 1), "1 answers beyond its step"),
        (answer(INSIDE[0], "2", 9), "1 answers beyond its step"),
        (answer(INSIDE[0], "2", 2, kafka_ms=4_000), "for 1.00 s after it was rolled back"),
        (answer(INSIDE[0], "2", 3), "afterwards v1 alone should answer"),
    ],
    ids=["another's caller", "no share", "too early", "unknown revision", "too late", "after its end"],
)
def test_one_answer_too_many_is_seen(more: Answer, complaint: str) -> None:
    """Each way in which a candidate can have more than its step."""
    assert any(complaint in text for text in failures([*well_behaved(), more]))


def test_an_answer_of_the_last_second_is_none_too_many() -> None:
    """The scorer obeys within a second; this is the other side of that bound."""
    assert failures([*well_behaved(), answer(INSIDE[0], "2", 2, kafka_ms=3_999)]) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"weights": {"1": 0.75, "2": 0.25}}, "25% of the traffic, its step is 5%"),
        ({"step": 1, "weights": {"1": 0.75, "2": 0.25}}, ""),
    ],
)
def test_more_weight_than_the_step_is_seen(changes: dict[str, Any], complaint: str) -> None:
    """The revision's own steps say what was allowed."""
    wider = replace(REVISIONS[1], record=REVISIONS[1].record.model_copy(update=changes))
    found = failures(well_behaved(), [REVISIONS[0], wider, REVISIONS[2]])
    assert found == [] if not complaint else complaint in found[0]


def test_a_bad_candidate_that_is_promoted_or_left_open_is_a_failure() -> None:
    """As is a good one that is not promoted: the end must be the expected one."""
    assert "it is open" in failures(well_behaved(), REVISIONS[:2])[0]
    won = revision(3, stable="2", weights={"2": 1.0}, phase=Phase.SUCCEEDED)
    assert "it is promoted" in failures(well_behaved(), [*REVISIONS[:2], won])[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("candidate", QUALITIES)
def test_each_trial_has_a_contract_with_its_strategy_and_a_judge(strategy: str, candidate: str) -> None:
    """The shipped rollouts fit the flights' contract; all but a dark launch compare by the monitor or by a metric."""
    trial = Trial.named(strategy, candidate)
    contract = trial.contract()
    assert (contract.model, contract.rollout.strategy) == (f"flights-{strategy}-{candidate}", strategy)
    assert [d.kind for d in contract.monitoring.detectors] == ["paired-judge"]
    assert [rule.action for rule in contract.policy.rules] == ["rollback"]
    judged = [metric for metric in contract.rollout.metrics if metric.judge]
    assert bool(judged) is (strategy in ("shadow", "ab"))


def test_every_strategy_that_a_contract_may_name_is_tried() -> None:
    """A new strategy needs its trial."""
    assert set(rollouts()) == set(STRATEGIES)
    assert {rollout.strategy for rollout in rollouts().values()} == set(STRATEGIES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strategy", "big-bang"], "canary, shadow, blue-green, ab, dark"),
        (["--strategy", "ab", "--candidate", "ugly"], "good or bad"),
        (["--candidate", "bad"], "--strategy"),
        (["--strategy", "ab", "--no-drift"], "belong to the year's story"),
        (["--strategy", "ab", "--kill", "scorer@09-02"], "belong to the year's story"),
    ],
)
def test_what_cannot_be_tried_is_said_before_anything_starts(
    words: list[str], said: str, tmp_path: Path
) -> None:
    """With what there is instead."""
    result = CliRunner().invoke(app, ["demo", "--data-dir", str(tmp_path / "data"), *words])
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "data").exists()
