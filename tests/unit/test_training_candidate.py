"""From a snapshot to a verdict: identity of the rows, weighting, the held-out span, candidate against incumbent."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from deploy.training.candidate import train
from deploy.training.comparison import Comparison, Verdict, compare
from deploy.training.packing import pack
from deploy.training.scores import auc, auc_error, brier, log_loss, score
from deploy.training.snapshot import Snapshot
from deploy.training.trainers import Fitted, Job, trainer_for
from deploy.training.weighting import Weighting
from schemas.contracts import Training
from schemas.errors import ConfigurationError, TrainingError
from schemas.reference import log_losses
from tests.support_deploy import CONTRACT, DAY_MS, START_MS, rows

HOUR_MS = 3_600_000
RULES = Training(block=HOUR_MS)


def _snapshot(count: int = 3_000, **changes: Any) -> Snapshot:
    return dataclasses.replace(Snapshot.of(*rows(count)), **changes)


def _contract(**rules: Any) -> Any:
    return CONTRACT.model_copy(update={"training": CONTRACT.training.model_copy(update=rules)})


# --- identity


def test_the_content_hash_does_not_depend_on_how_rows_or_columns_are_ordered() -> None:
    """The same rows, shuffled, with columns in another order and zeros of the other sign."""
    base = _snapshot()
    order = np.random.default_rng(0).permutation(len(base))
    table = dict(reversed(base.table.items()))
    table["hour"] = np.where(table["hour"] == 0, -0.0, table["hour"])
    shuffled = dataclasses.replace(base, table=table).take(order)
    assert shuffled.content_hash() == base.content_hash()
    again = Snapshot.of(
        shuffled.table, shuffled.labels, shuffled.event_ms, prediction_ids=shuffled.prediction_ids
    )
    np.testing.assert_array_equal(again.prediction_ids, base.prediction_ids)


def test_the_content_hash_names_the_rows() -> None:
    """One other label, value, null, time or id is another hash; scores are not what is learnt from."""
    base = _snapshot()
    labels, times, ids = base.labels.copy(), base.event_ms.copy(), base.prediction_ids.copy()
    labels[7] ^= 1
    times[7] += 1
    ids[0] = "x"
    hours, carriers = base.table["hour"].copy(), base.table["carrier"].astype(object)
    hours[3] += 0.5
    carriers[3] = None
    others = [
        dataclasses.replace(base, labels=labels),
        dataclasses.replace(base, event_ms=times),
        dataclasses.replace(base, prediction_ids=ids),
        dataclasses.replace(base, table={**base.table, "hour": hours}),
        dataclasses.replace(base, table={**base.table, "carrier": carriers}),
        base.take(np.arange(len(base) - 1)),
    ]
    hashes = {base.content_hash(), *(other.content_hash() for other in others)}
    assert len(hashes) == 1 + len(others)
    assert dataclasses.replace(base, scores=np.zeros(len(base))).content_hash() == base.content_hash()


def test_scores_are_one_versions_alone() -> None:
    """As it answered then, where it did; else as it would have; else unknown."""
    base = _snapshot(
        4, scores=np.array([0.1, 0.2, np.nan, 0.4]), versions=np.array(["1", "2", "1", "1"], object)
    )
    np.testing.assert_array_equal(base.said_by("1", np.full(4, 0.9)).scores, [0.1, 0.9, 0.9, 0.4])
    np.testing.assert_array_equal(base.said_by("1", None).scores, [0.1, np.nan, np.nan, 0.4])
    assert np.isnan(base.said_by(None, None).scores).all()


# --- weighting


def test_weightings_are_read_from_the_contract() -> None:
    """Weights by age: all alike, halved each half-life, or none beyond the span."""
    ages = np.array([0, 7, 14, 21], np.int64) * DAY_MS
    now = START_MS
    assert Weighting.parse("uniform").weights(now - ages, now).tolist() == [1, 1, 1, 1]
    assert Weighting.parse("half-life 7d").weights(now - ages, now).tolist() == [1, 0.5, 0.25, 0.125]
    assert Weighting.parse("recent 14d").weights(now - ages, now).tolist() == [1, 1, 0, 0]
    for wrong in ("half-life", "recent 0d", "newest 3d", "half-life soon", ""):
        with pytest.raises(ValidationError):
            Training(weightings=(wrong,))
    with pytest.raises(ValidationError, match="twice"):
        Training(weightings=("uniform", "uniform"))


def _turned(count: int) -> Snapshot:
    """The relation of the hour to the label turns round after three tenths."""
    base = _snapshot(count)
    late = np.random.default_rng(1).random(count) < np.where(base.table["hour"] > 12, 0.8, 0.2)
    labels = np.where(np.arange(count) < 0.3 * count, late, ~late).astype(np.int8)
    return dataclasses.replace(base, labels=labels)


def test_old_rows_count_less_where_the_world_has_turned() -> None:
    """Recent rows alone win on the span before the last; where nothing turned, the simplest way stays."""
    offered = ("uniform", "half-life 30h", "recent 20h")
    contract = _contract(weightings=offered, block=HOUR_MS, options={"trees": 30, "leaves": 4})
    turned = train(_turned(4_000), contract, trainer_for(contract))
    assert turned.report["weighting"] == "recent 20h", turned.report
    assert [tried["weighting"] for tried in turned.report["weightings_tried"]] == list(offered)
    assert turned.metrics["recent_days"] == pytest.approx(20 / 24)
    assert turned.metrics["log_loss"] < 0.6
    steady = train(_snapshot(4_000), contract, trainer_for(contract))
    assert steady.report["weighting"] == "uniform"


def test_the_judging_rows_are_seen_by_no_fit_before_the_last() -> None:
    """Neither the choice nor the judged model may know them; the shipped one is fitted on all rows."""
    seen: list[int] = []
    inner = trainer_for(CONTRACT)

    def spy(job: Job) -> Fitted:
        seen.append(int(job.event_ms[-1]))
        return inner(job)

    snapshot = _snapshot(2_000)
    trained = train(snapshot, _contract(weightings=("uniform", "half-life 1d")), spy)
    first_held_out = int(trained.reference["event_ms"][0])
    assert len(seen) == 4
    assert max(seen[:3]) < first_held_out == int(snapshot.event_ms[1_600])
    assert max(seen[:2]) < seen[2]
    assert seen[3] == int(snapshot.event_ms[-1])
    assert log_loss(trained.reference["label"], trained.reference["score"]) == trained.metrics["log_loss"]


def test_a_weighting_that_leaves_too_little_is_passed_over_and_named() -> None:
    """It is no reason to fail while another one can be used."""
    contract = _contract(weightings=("recent 1h", "uniform"))
    trained = train(_snapshot(2_000), contract, trainer_for(contract))
    assert trained.report["weighting"] == "uniform"
    assert "at least 200 rows" in trained.report["weightings_tried"][0]["left_out"]
    with pytest.raises(TrainingError, match="no weighting leaves enough rows"):
        train(_snapshot(2_000), _contract(weightings=("recent 1h", "recent 2h")), trainer_for(CONTRACT))


# --- candidate against incumbent


def _compare(difference: NDArray[np.float64], blocks: int, **rules: Any) -> Comparison:
    """Scores of 0.5 against such that make the losses differ by ``difference``, all labels 1."""
    count = len(difference)
    other = np.full(count, 0.5)
    found = compare(
        np.ones(count),
        other * np.exp(-difference),
        other,
        np.arange(count, dtype=np.int64) * (blocks * DAY_MS // count),
        Training(**rules),
    )
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("mean", "noise", "blocks", "verdict"),
    [
        (-0.05, 0.02, 12, Verdict.BETTER),
        (+0.05, 0.02, 12, Verdict.WORSE),
        (-0.05, 0.20, 12, Verdict.UNDECIDED),
        (-0.05, 0.02, 4, Verdict.UNDECIDED),
        (-0.001, 0.0001, 12, Verdict.UNDECIDED),
        (+0.001, 0.0001, 12, Verdict.WORSE),
    ],
)
def test_a_verdict_needs_certainty_blocks_and_an_effect_that_matters(
    mean: float, noise: float, blocks: int, verdict: Verdict
) -> None:
    """A gain of 0.1 % is certain and does not matter; four days decide nothing; noise between days hides a gain."""
    days = mean + noise * np.random.default_rng(3).normal(size=blocks)
    found = _compare(np.repeat(days, 100), blocks)
    assert (found.verdict, found.rows, found.blocks) == (verdict, 100 * blocks, blocks)
    assert found.difference == pytest.approx(days.mean())


def test_rows_of_a_day_are_not_taken_for_independent() -> None:
    """Without any difference but that of days, a test of rows would be sure most of the time; this one errs as often as it
    says, 5 %: counted on 600 made-up comparisons, with days of uneven size."""
    rng = np.random.default_rng(11)
    wrong = by_rows = 0
    for _ in range(600):
        sizes = rng.integers(50, 300, 12)
        day = np.repeat(np.arange(12), sizes)
        difference = np.repeat(0.1 * rng.normal(size=12), sizes) + 0.1 * rng.normal(size=len(day))
        found = compare(np.ones(len(day)), 0.5 * np.exp(-difference), np.full(len(day), 0.5), day * DAY_MS, Training())  # fmt: skip
        assert found is not None
        wrong += found.low > 0 or found.high < 0
        by_rows += abs(difference.mean()) > 2 * difference.std() / np.sqrt(len(day))
    assert 0.03 < wrong / 600 < 0.09
    assert by_rows / 600 > 0.5


def test_the_interval_is_students_t_over_equal_blocks() -> None:
    """With blocks of one size it is the textbook's interval of the block means."""
    from scipy.stats import ttest_1samp

    days = np.random.default_rng(4).normal(-0.03, 0.05, 15)
    found = _compare(np.repeat(days, 40), 15, confidence=0.9)
    textbook = ttest_1samp(days, 0.0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((textbook.low, textbook.high))
    assert found.blocks_better == int((days < 0).sum())


def test_only_rows_that_both_have_scored_count() -> None:
    """Rows without the incumbent's score say nothing; without any there is no comparison."""
    labels, other = np.array([0, 1, 1, 0]), np.array([0.2, np.nan, 0.6, np.nan])
    mine = np.array([0.1, 0.1, 0.9, 0.9])
    found = compare(labels, mine, other, np.arange(4, dtype=np.int64), RULES)
    assert found is not None and found.rows == 2
    assert found.candidate_loss == pytest.approx(log_losses(mine[[0, 2]], labels[[0, 2]]).mean())
    assert found.document()["low"] is None
    assert "matters: undecided" in found.describe()
    assert compare(labels, mine, np.full(4, np.nan), np.arange(4, dtype=np.int64), RULES) is None


# --- trainers


def test_trainers_are_found_by_entry_point() -> None:
    """The contract names one; a name that is not installed says which are."""
    trained = train(_snapshot(), _contract(weightings=("uniform",)), trainer_for(CONTRACT))
    artifact = pack(trained, CONTRACT, notes={"training.json": "{}"})
    assert len(artifact.golden.inputs) == 64
    assert artifact.golden.agrees(artifact.golden.scores)
    assert artifact.notes == {"training.json": "{}"}
    with pytest.raises(ConfigurationError, match="command, sklearn"):
        trainer_for(_contract(trainer="abacus"))
    with pytest.raises(ConfigurationError, match="colour"):
        trainer_for(CONTRACT)(_job(options={"colour": "red"}))


def _job(**rules: Any) -> Job:
    snapshot = _snapshot(1_000)
    return Job(_contract(**rules), snapshot.table, snapshot.labels, np.ones(len(snapshot)), snapshot.event_ms)


def test_the_shipped_trainer_takes_its_options() -> None:
    """More trees are more bytes."""
    few, many = (trainer_for(CONTRACT)(_job(options={"trees": trees})) for trees in (2, 40))
    assert len(few.onnx) < len(many.onnx) / 5


@pytest.mark.parametrize("answer", ["shape", "range", "name"])
def test_a_model_that_answers_no_probabilities_is_refused(answer: str) -> None:
    """Whatever trainer it came from."""
    from onnx import TensorProto, helper

    output = "other" if answer == "name" else "score"
    if answer == "shape":
        node = helper.make_node("Identity", ["features"], [output])
    else:
        node = helper.make_node("ReduceSum", ["features"], [output], keepdims=0)
    shape = [None, 3] if answer == "shape" else None
    graph = helper.make_graph(
        [node],
        "wrong",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    words = {"shape": "one score a row", "range": "one score a row", "name": "cannot be run"}
    with pytest.raises(TrainingError, match=words[answer]):
        score(model.SerializeToString(), np.full((5, 3), 2.0, np.float32))


def test_scores_of_probability_agree_with_their_definitions() -> None:
    """AUC counts ties half; log loss and Brier of known numbers; the AUC's error is that of repeated draws."""
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.5, 0.5, 0.9])
    assert auc(labels, scores) == pytest.approx(3.5 / 4)
    assert np.isnan(auc(np.ones(3), np.ones(3)))
    assert brier(labels, scores) == pytest.approx((0.01 + 0.25 + 0.25 + 0.01) / 4)
    assert log_loss(np.array([1]), np.array([0.5])) == pytest.approx(np.log(2))
    rng = np.random.default_rng(2)
    drawn = [auc(np.r_[np.ones(60), np.zeros(140)], np.r_[rng.normal(1, 1, 60), rng.normal(0, 1, 140)]) for _ in range(400)]  # fmt: skip
    assert auc_error(float(np.mean(drawn)), 60, 140) == pytest.approx(np.std(drawn), rel=0.15)
