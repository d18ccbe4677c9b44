"""Quality and poisoning checks on real flights: a clean sample passes, each kind of poison is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.demo.flights import DAY_MS, load_flights, month_start_ms
from deploy.training.candidate import TrainedModel, train
from deploy.training.label_checks import Incumbent
from deploy.training.quality import check, outside_contract
from deploy.training.scores import score
from deploy.training.snapshot import Origin, Snapshot
from deploy.training.trainers import trainer_for
from schemas.contracts import ModelContract, TrainingChecks, load_contract

CONTRACT = load_contract(Path(__file__).parents[2] / "deploy" / "demo" / "flights.yaml")
ONCE = CONTRACT.model_copy(
    update={"training": CONTRACT.training.model_copy(update={"weightings": ("uniform",)})}
)
INCUMBENT = Incumbent("1", 0.70)

Spoil = Callable[[Snapshot], Snapshot]


_year = cache(load_flights)


@cache
def _flights(month: int) -> Snapshot:
    """Sixty days of flights before a month, of every tenth flight or so, with ids and no scores."""
    end = month_start_ms(month)
    found = _year(0.1).between(end - 60 * DAY_MS, end)
    labelled = found.rows(np.flatnonzero(found.labelled))
    return Snapshot.of(
        labelled.features,
        labelled.late,
        labelled.departs_ms,
        prediction_ids=labelled.flight_id,
        entities=np.array([text.split("/")[2] for text in labelled.flight_id], object),
    )


@pytest.fixture(scope="module")
def incumbent() -> TrainedModel:
    """Trained on January and February."""
    return train(_flights(3), ONCE, trainer_for(ONCE))


@pytest.fixture(scope="module")
def clean(incumbent: TrainedModel) -> Snapshot:
    """May and June, with what the incumbent says of them."""
    taken = _flights(7)
    return taken.said_by("1", score(incumbent.onnx, incumbent.encoder.encode(taken.table)).astype(np.float64))


def _checks(**changes: Any) -> ModelContract:
    checks = TrainingChecks(**changes)
    return CONTRACT.model_copy(update={"training": CONTRACT.training.model_copy(update={"checks": checks})})


@pytest.mark.parametrize("month", [3, 5, 9, 11, 12, 13])
def test_clean_flights_pass_in_every_season(month: int) -> None:
    """Storms, holidays and calm autumns are no poison; every row is kept."""
    taken = _flights(month)
    checked = check(taken, CONTRACT, INCUMBENT)
    assert checked.refusals == (), checked.reason()
    assert len(checked.snapshot) == len(taken)


def test_clean_flights_pass_beside_the_incumbents_scores(clean: Snapshot) -> None:
    """A model of another season is worse on them, and nowhere against them."""
    assert check(clean, CONTRACT, INCUMBENT).refusals == ()


def _with(snapshot: Snapshot, name: str, rows: Any, value: Any) -> Snapshot:
    column = snapshot.table[name].copy()
    column[rows] = value
    return dataclasses.replace(snapshot, table={**snapshot.table, name: column})


def _flip(snapshot: Snapshot, rows: Any) -> Snapshot:
    labels = snapshot.labels.copy()
    labels[rows] ^= 1
    return dataclasses.replace(snapshot, labels=labels)


def _some(share: float, last: float = 1.0) -> Callable[[Snapshot], Any]:
    """A mask of that share of the latest ``last`` of the rows."""

    def chosen(snapshot: Snapshot) -> Any:
        rows = len(snapshot)
        return (np.random.default_rng(5).random(rows) < share) & (np.arange(rows) >= rows * (1 - last))

    return chosen


def _one_class(s: Snapshot) -> Snapshot:
    return dataclasses.replace(s, labels=np.zeros_like(s.labels))


def _filled(s: Snapshot) -> Snapshot:
    labels = s.labels.copy()
    labels[_some(0.7, 0.2)(s)] = 1
    return dataclasses.replace(s, labels=labels)


def _sent_twice(s: Snapshot) -> Snapshot:
    """A tenth of the rows comes from a source that sends each row twice, under another id."""
    again = np.flatnonzero(_some(0.1)(s))
    order = np.concatenate([np.arange(len(s)), again])
    doubled = s.take(order)
    ids = doubled.prediction_ids.copy()
    ids[len(s) :] = [f"again-{at}" for at in range(len(again))]
    return Snapshot.of(
        doubled.table, doubled.labels, doubled.event_ms, prediction_ids=ids, scores=doubled.scores,
        entities=doubled.entities,
    )  # fmt: skip


def _same_row(s: Snapshot) -> Snapshot:
    """A third of the latest rows is one row, again and again, at times of its own."""
    rows = np.flatnonzero(_some(0.35, 0.2)(s))
    table = {name: column.copy() for name, column in s.table.items()}
    labels = s.labels.copy()
    for column in table.values():
        column[rows] = column[rows[0]]
    labels[rows] = 1
    return dataclasses.replace(s, table=table, labels=labels)


def _one_source(s: Snapshot) -> Snapshot:
    entities = s.entities.copy()
    entities[_some(0.3)(s)] = "feed-7"
    return dataclasses.replace(s, entities=entities)


_POISONS: dict[str, tuple[str, Spoil]] = {
    "too few": ("too-few-rows", lambda s: s.take(np.arange(500))),
    "one class": ("one-class", _one_class),
    "every row of a source twice": ("duplicated-rows", _sent_twice),
    "one row again and again": ("repeated-rows", _same_row),
    "one source": ("one-entity", _one_source),
    "an hour of 30": ("out-of-contract", lambda s: _with(s, "hour", _some(0.1)(s), 30.0)),
    "infinite numbers": ("out-of-contract", lambda s: _with(s, "temp", _some(0.1)(s), np.inf)),
    "carriers nobody knows": ("unknown-categories", lambda s: _with(s, "carrier", _some(0.3)(s), "??")),
    "distances missing": ("missing-values", lambda s: _with(s, "distance", _some(0.6)(s), np.nan)),
    "one airport everywhere": ("segment-share", lambda s: _with(s, "origin", _some(0.6, 0.2)(s), "EWR")),
    "labels of one carrier negated": (
        "labels-against-scores",
        lambda s: _flip(s, s.table["carrier"] == "B6"),
    ),
    "labels of one entity negated": (
        "labels-against-scores",
        lambda s: _flip(
            dataclasses.replace(s, entities=(np.arange(len(s)) % 12).astype("U").astype(object)),
            np.arange(len(s)) % 12 == 3,
        ),
    ),
    "two fifths of the latest labels flipped": (
        "labels-against-neighbours",
        lambda s: _flip(s, _some(0.4, 0.2)(s)),
    ),
    "a third of all labels flipped": ("labels-against-neighbours", lambda s: _flip(s, _some(0.33)(s))),
    "labels negated since a date": ("labels-against-scores", lambda s: _flip(s, _some(1.0, 0.2)(s))),
    "labels filled with ones": ("label-share", _filled),
}


@pytest.mark.parametrize("poison", _POISONS)
def test_poisoned_flights_are_refused_by_name(clean: Snapshot, poison: str) -> None:
    """Each kind is enough by itself."""
    name, spoil = _POISONS[poison]
    poisoned = spoil(clean)
    if "entity" in poison:
        poisoned = dataclasses.replace(
            poisoned, entities=(np.arange(len(clean)) % 12).astype("U").astype(object)
        )
    found = check(poisoned, CONTRACT, INCUMBENT)
    assert name in [refusal.check for refusal in found.refusals], found.reason()


def test_few_rows_outside_the_contract_are_left_out(clean: Snapshot) -> None:
    """What is below the limit does not cost the good rows, and is counted."""
    spoilt = _with(clean, "hour", _some(0.02)(clean), 30.0)
    wrong = outside_contract(spoilt, CONTRACT)
    checked = check(spoilt, CONTRACT, INCUMBENT)
    assert checked.refusals == ()
    assert 0 < wrong.sum() == checked.snapshot.origin.left_out
    assert len(checked.snapshot) == len(clean) - wrong.sum()
    assert not outside_contract(checked.snapshot, CONTRACT).any()


@pytest.mark.parametrize(
    ("poison", "off"),
    [
        ("every row of a source twice", {"duplicates_max": 1.0}),
        ("one row again and again", {"repeats_step_max": 1.0}),
        ("one source", {"entity_max": 1.0}),
        ("one airport everywhere", {"segment_step_max": 1.0}),
        ("a third of all labels flipped", {"information_min": 0.0}),
        ("labels of one carrier negated", {"against_scores_min": 0.0}),
        ("labels filled with ones", {"label_step_max": 1.0}),
        ("an hour of 30", {"out_of_contract_max": 1.0}),
        ("carriers nobody knows", {"unknown_max": 1.0}),
        ("distances missing", {"missing_max": 1.0}),
    ],
)
def test_thresholds_are_the_contracts(clean: Snapshot, poison: str, off: dict[str, float]) -> None:
    """Whoever knows better can say so, check by check."""
    name, spoil = _POISONS[poison]
    found = check(spoil(clean), _checks(**off), INCUMBENT)
    assert name not in [refusal.check for refusal in found.refusals]


def test_what_cannot_be_told_is_not_missed() -> None:
    """Labels that no feature tells, and an incumbent that guesses, refuse nothing."""
    clean = _flights(3)
    rng = np.random.default_rng(1)
    noise = dataclasses.replace(
        clean,
        labels=(rng.random(len(clean)) < 0.3).astype(np.int8),
        scores=rng.random(len(clean)),
    )
    assert check(noise, CONTRACT, Incumbent("1", 0.52)).refusals == ()
    assert [r.check for r in check(noise, CONTRACT, INCUMBENT).refusals] == ["labels-against-neighbours"]


def test_too_few_rows_say_where_the_others_went() -> None:
    """The reason names the span's end and the predictions without a label."""
    origin = Origin(backed_off_ms=7_000, predictions=900, unlabelled=400)
    few = dataclasses.replace(_flights(3).take(np.arange(500)), origin=origin)
    assert "400 of 900 predictions had no label" in check(few, CONTRACT).reason()
    assert "7000 ms before" in check(few, CONTRACT).reason()
