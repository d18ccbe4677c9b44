"""Training: the exported file answers as the trained model, the encoding travels with it, bad snapshots are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deploy.training.candidate import TrainedModel
from deploy.training.candidate import train as train_candidate
from deploy.training.features import Encoder, fit_encoder
from deploy.training.scores import log_loss, score
from deploy.training.snapshot import Snapshot
from deploy.training.trainers import trainer_for
from schemas.contracts import Feature, ModelContract, Training
from schemas.errors import ContractError, TrainingError

FEATURES = ("carrier", "hour", "temp")
CONTRACT = ModelContract(
    model="late",
    features=(
        Feature(name="carrier", kind="categorical"),
        Feature(name="hour"),
        Feature(name="temp", nullable=True),
    ),
    training=Training(weightings=("uniform",)),
)
Columns = dict[str, npt.NDArray[Any]]


def _snapshot(rows: int, seed: int) -> tuple[Columns, npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """Late more often in the evening and with carrier C; the temperature is missing now and then."""
    rng = np.random.default_rng(seed)
    carrier = rng.choice(np.array(["A", "B", "C"], dtype=object), rows)
    hour = rng.integers(5, 24, rows).astype(np.float64)
    temp = np.where(rng.random(rows) < 0.1, np.nan, rng.normal(50, 15, rows))
    p = 1 / (1 + np.exp(-(-3 + 0.15 * (hour - 5) + 1.5 * (carrier == "C") + 0.8 * np.isnan(temp))))
    labels = (rng.random(rows) < p).astype(np.int8)
    return {"carrier": carrier, "hour": hour, "temp": temp}, labels, np.arange(rows, dtype=np.int64) * 60_000


def train(table: Columns, labels: Any, event_ms: Any) -> TrainedModel:
    """One fit of the shipped trainer after another, as a retrain does it."""
    return train_candidate(Snapshot.of(table, labels, event_ms), CONTRACT, trainer_for(CONTRACT))


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    """One small model, trained once."""
    table, labels, event_ms = _snapshot(6_000, 1)
    return train(table, labels, event_ms)


def test_the_model_beats_the_base_rate_on_the_later_span(trained: TrainedModel) -> None:
    """Metrics come from held-out rows and say what the export differed by."""
    assert trained.metrics["log_loss"] < trained.metrics["log_loss_base_rate"] - 0.03
    assert trained.metrics["auc"] > 0.7
    assert trained.metrics["holdout_rows"] == 1_200
    assert trained.metrics["onnx_difference_max"] < 1e-5


def test_unseen_rows_with_gaps_and_unknown_categories_get_sensible_scores(trained: TrainedModel) -> None:
    """Missing numbers take the branch learnt for them; an unknown category is like a rare one, never an error."""
    table, labels, _ = _snapshot(4_000, 2)
    scores = score(trained.onnx, trained.encoder.encode(table))
    assert scores.dtype == np.float32 and scores.shape == (4_000,)
    assert log_loss(labels, scores) < trained.metrics["log_loss_base_rate"] - 0.03
    gaps = np.isnan(table["temp"])
    assert scores[gaps].mean() > scores[~gaps].mean() + 0.03
    unknown = trained.encoder.encode_rows([{"carrier": "ZZ", "hour": 12.0, "temp": None}])
    assert unknown[0, 0] == trained.encoder.other["carrier"]
    assert 0.0 < float(score(trained.onnx, unknown)[0]) < 1.0


def test_training_is_a_function_of_its_inputs(trained: TrainedModel) -> None:
    """The same snapshot in another row order gives the same bytes."""
    table, labels, event_ms = _snapshot(6_000, 1)
    order = np.random.default_rng(0).permutation(len(labels))
    again = train({name: column[order] for name, column in table.items()}, labels[order], event_ms[order])
    assert again.onnx == trained.onnx
    assert again.encoder.to_json() == trained.encoder.to_json()


def test_the_reference_is_out_of_sample_and_in_time_order(trained: TrainedModel) -> None:
    """Its own loss is the validated loss, and its rows are the latest ones."""
    reference = trained.reference
    assert log_loss(reference["label"], reference["score"]) == pytest.approx(
        trained.metrics["log_loss"], abs=1e-6
    )
    assert np.all(np.diff(reference["event_ms"]) > 0)
    assert reference["event_ms"][0] == 4_800 * 60_000


def test_the_hour_defect_moves_only_the_hour(trained: TrainedModel) -> None:
    """23:00 becomes 03:00 with four hours added; the other columns and the stored file stay."""
    broken = trained.encoder.with_hour_shift(4)
    rows = [{"carrier": "A", "hour": 23.0, "temp": 40.0}]
    right, wrong = trained.encoder.encode_rows(rows), broken.encode_rows(rows)
    assert wrong[0, 1] == 3.0 and right[0, 1] == 23.0
    assert np.array_equal(right[0, [0, 2]], wrong[0, [0, 2]])
    assert broken.with_hour_shift(0) == trained.encoder


def test_the_encoder_survives_storage_and_agrees_with_itself(trained: TrainedModel) -> None:
    """Text and back; columns and JSON rows give the same matrix."""
    restored = Encoder.from_json(trained.encoder.to_json())
    table, _, _ = _snapshot(200, 4)
    rows = [
        {"carrier": c, "hour": h, "temp": None if np.isnan(t) else t}
        for c, h, t in zip(table["carrier"], table["hour"], table["temp"], strict=True)
    ]
    assert np.array_equal(restored.encode(table), trained.encoder.encode_rows(rows), equal_nan=True)
    with pytest.raises(ContractError, match="cannot be read"):
        Encoder.from_json("{}")
    with pytest.raises(ContractError, match="temp"):
        restored.encode({"carrier": table["carrier"], "hour": table["hour"]})


def test_rare_categories_share_the_code_of_unknown_ones() -> None:
    """Codes are ranks by the labels' mean; every code is used once, rare texts have none of their own."""
    carrier = np.array(["A"] * 100 + ["B"] * 100 + ["R"] * 3, dtype=object)
    labels = np.array([0] * 90 + [1] * 10 + [1] * 80 + [0] * 20 + [1, 0, 0])
    encoder = fit_encoder({"c": carrier}, labels, features=("c",), categorical=("c",))
    assert dict(encoder.categories["c"]) == {"A": 0, "B": 2}
    assert encoder.other["c"] == 1
    with pytest.raises(ContractError, match="not among"):
        fit_encoder({"c": carrier}, labels, features=("c",), categorical=("d",))


@pytest.mark.parametrize(
    ("spoil", "words"), [("one label", "both 0 and 1"), ("few rows", "at least"), ("no column", "lacks temp")]
)
def test_a_snapshot_that_cannot_be_used_is_refused(spoil: str, words: str) -> None:
    """Each refusal says what is wrong."""
    table, labels, event_ms = _snapshot(1_000, 5)
    if spoil == "one label":
        labels = np.zeros_like(labels)
    elif spoil == "few rows":
        table = {name: column[:50] for name, column in table.items()}
        labels, event_ms = labels[:50], event_ms[:50]
    else:
        del table["temp"]
    with pytest.raises(TrainingError, match=words):
        train(table, labels, event_ms)
