"""The reference of a version: what monitoring compares with, made of the rows it was judged on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schemas.bins import Binning
from schemas.contracts import Feature, ModelContract, ModelRecord, ModelVersion, Reference
from schemas.reference import (
    SAMPLE_VALUES_MAX,
    code_column,
    log_losses,
    reference_of,
    shortened,
    time_blocks,
)
from schemas.settings import KafkaSettings
from schemas.topics import TOPICS, topic_config
from tests.support_deploy import CONTRACT, DAY_MS, START_MS, rows


def test_reference_describes_the_held_out_rows() -> None:
    """Quantiles, shares in the contract's order, missing share, loss and its day blocks are those of the rows."""
    table, labels, event_ms = rows(4_000)
    scores = np.clip(0.3 + 0.01 * table["hour"], 0, 1)
    reference = reference_of(table, scores, CONTRACT, labels=labels, event_ms=event_ms)
    hour, wind, carrier = (reference.columns[name] for name in CONTRACT.feature_names)
    assert (hour.rows, hour.quantiles[0], hour.quantiles[-1], len(hour.quantiles)) == (4_000, 0.0, 23.0, 101)
    assert wind.missing == pytest.approx(np.isnan(table["wind.speed"]).mean())
    assert wind.rows + round(wind.missing * 4_000) == 4_000
    assert carrier.shares == pytest.approx(
        [*(np.mean(table["carrier"] == c) for c in ("AA", "B6", "UA")), 0.0]
    )
    losses = log_losses(scores, labels)
    assert (reference.loss_mean, reference.loss_rows) == (pytest.approx(losses.mean()), 4_000)
    days = event_ms // DAY_MS
    assert reference.loss_blocks == pytest.approx([losses[days == day].mean() for day in np.unique(days)])
    assert set(reference.bins) == {*CONTRACT.feature_names, "score"}
    assert len(reference.sample) == 2_000
    assert Reference.model_validate_json(reference.model_dump_json()) == reference


def test_reference_without_labels_or_times_has_no_loss_and_no_blocks() -> None:
    """Nothing is made up for what is not known; even no rows at all are a reference."""
    table, _, _ = rows(100)
    reference = reference_of(table, np.full(100, 0.5), CONTRACT)
    assert (reference.loss_mean, reference.loss_blocks, reference.bins) == (None, (), {})
    empty = reference_of(
        {n: np.array([]) for n in CONTRACT.feature_names}, np.array([]), CONTRACT, labels=np.array([])
    )
    assert (empty.columns["hour"].rows, empty.loss_mean, empty.sample) == (0, None, ())
    assert (reference.bins, reference.block_starts_ms, reference.from_ms, empty.rows) == ({}, (), None, 0)


def test_reference_counts_its_time_blocks_bin_by_bin() -> None:
    """Every row of a block is in one bin of each column and of the score; the sample carries times, scores, labels."""
    table, labels, event_ms = rows(4_000)
    scores = np.clip(0.3 + 0.01 * table["hour"], 0, 1)
    reference = reference_of(table, scores, CONTRACT, labels=labels, event_ms=event_ms)
    kept = time_blocks(event_ms, DAY_MS)
    assert reference.block_ms == DAY_MS
    assert reference.block_starts_ms == tuple(int(event_ms[block[0]]) // DAY_MS * DAY_MS for block in kept)
    assert set(reference.bins) == {*CONTRACT.feature_names, "score"}
    for name, counts in reference.bins.items():
        column = reference.score if name == "score" else reference.columns[name]
        assert column is not None
        binning = Binning(column)
        values = scores if name == "score" else code_column(_feature(name), table[name])
        assert [sum(block) for block in counts] == [len(block) for block in kept]
        assert counts == tuple(tuple(binning.counts(values[block]).tolist()) for block in kept)
    missing = [int(np.isnan(table["wind.speed"][block]).sum()) for block in kept]
    assert [block[-1] for block in reference.bins["wind.speed"]] == missing
    assert (reference.rows, reference.from_ms, reference.to_ms) == (4_000, event_ms[0], event_ms[-1])
    assert reference.sample_time_ms == tuple(event_ms[::2].tolist())
    assert reference.sample_score == pytest.approx(scores[::2])
    assert reference.sample_label == tuple(labels[::2].astype(float).tolist())
    assert [row[0] for row in reference.sample] == table["hour"][::2].tolist()


def _feature(name: str) -> Feature:
    return next(f for f in CONTRACT.features if f.name == name)


def test_numbers_are_short_but_shared_values_exact() -> None:
    """Seven digits of the spread, downwards; a value that rows share, and whatever has no spread, stays as it is."""
    rng = np.random.default_rng(1)
    values = np.sort(np.concatenate([rng.normal(1e6, 1.0, 500), np.full(50, 1e6 + 1 / 3)]))
    short = shortened(values, np.array([1e6 + 1 / 3]))
    assert (short[values == 1e6 + 1 / 3] == 1e6 + 1 / 3).all()
    assert ((values - short >= -1e-9) & (values - short < 1e-6)).all()
    assert max(len(repr(value)) for value in short[values != 1e6 + 1 / 3].tolist()) <= 14
    for same in (np.full(5, 1 / 3), np.array([np.nan]), np.array([-1e308, 1e308, 0.5]), np.empty(0)):
        np.testing.assert_array_equal(shortened(same, np.empty(0)), same)
    third = np.where(np.arange(1_000) % 3 == 0, 1 / 3, rng.normal(size=1_000))
    table = {"hour": third, "wind.speed": third, "carrier": np.full(1_000, "AA", object)}
    quantiles = reference_of(table, third, CONTRACT).columns["hour"].quantiles
    assert quantiles.count(1 / 3) > 30
    assert list(quantiles) == sorted(quantiles)


def test_a_reference_of_a_thousand_features_fits_into_one_message() -> None:
    """Two years in days: below what the topic and its producers take; quantiles are never given up."""
    rng = np.random.default_rng(2)
    names = [f"feature_{at}" for at in range(1_000)]
    contract = ModelContract(model="wide", features=tuple(Feature(name=name) for name in names))
    count = 6_000
    table = {name: rng.normal(size=count) * 1e3 for name in names}
    event_ms = START_MS + np.arange(count, dtype=np.int64) * (730 * DAY_MS // count)
    scores = rng.uniform(size=count)
    reference = reference_of(table, scores, contract, labels=np.zeros(count), event_ms=event_ms)
    version = ModelVersion(model="wide", version="1", uri="u", sha256="0" * 64, reference=reference)
    size = len(ModelRecord(version=version).model_dump_json().encode())
    limit = min(
        KafkaSettings().producer()["message.max.bytes"],
        int(topic_config(TOPICS["models"])["max.message.bytes"]),
    )
    assert 1_000_000 < size < 0.9 * limit
    assert all(len(column.quantiles) == 101 for column in reference.columns.values())
    assert 50 <= len(reference.sample) <= SAMPLE_VALUES_MAX // 1_000
    assert len(reference.sample_time_ms) == len(reference.sample_score) == len(reference.sample)
    assert len(reference.bins["score"]) == len(reference.block_starts_ms)
    assert len(reference.block_starts_ms) >= 20
    assert reference.block_starts_ms[-1] == int(event_ms[-1]) // DAY_MS * DAY_MS
    assert Reference.model_validate_json(reference.model_dump_json()) == reference


def test_frequent_segments_have_a_reference_of_their_own() -> None:
    """Of their rows alone; as many as there is room for, the most frequent, and none of too few rows."""
    table, labels, event_ms = rows(4_000)
    carrier = np.where(np.arange(4_000) < 3_900, table["carrier"], "AA")
    carrier = np.where((carrier == "UA") & (np.arange(4_000) > 400), "B6", carrier)
    table = table | {"carrier": carrier}
    monitoring = CONTRACT.monitoring.model_copy(update={"segments": ("carrier",)})
    contract = CONTRACT.model_copy(update={"monitoring": monitoring})
    scores = np.clip(0.3 + 0.01 * table["hour"], 0, 1)
    reference = reference_of(table, scores, contract, labels=labels, event_ms=event_ms)
    assert list(reference.segments["carrier"]) == [1, 0]
    part, mine = reference.segments["carrier"][1], carrier == "B6"
    hours = {name: column[mine] for name, column in table.items()}
    alone = reference_of(hours, scores[mine], CONTRACT, labels=labels[mine], event_ms=event_ms[mine])
    empty: dict[str, Any] = dict.fromkeys(("sample", "sample_time_ms", "sample_score", "sample_label"), ())
    assert part == alone.model_copy(update=empty)
    assert Reference.model_validate_json(reference.model_dump_json()) == reference
    wide = [Feature(name=f"x{at}") for at in range(80)]
    crowded = contract.model_copy(update={"features": (*CONTRACT.features, *wide)})
    table |= {f.name: table["hour"] for f in wide}
    assert len(reference_of(table, scores, crowded, event_ms=event_ms).segments["carrier"]) == 2
    wider = crowded.model_copy(
        update={"features": (*crowded.features, *[Feature(name=f"y{at}") for at in range(1_200)])}
    )
    table |= {f"y{at}": table["hour"] for at in range(1_200)}
    assert reference_of(table, scores, wider, event_ms=event_ms).segments == {"carrier": {}}


def test_categories_are_coded_as_observation_blocks_code_them() -> None:
    """Index in the contract, unknown after the last, null as NaN."""
    feature = Feature(name="c", kind="categorical", categories=("a", "b"))
    coded = code_column(feature, np.array(["b", "a", "z", None], object))
    np.testing.assert_array_equal(coded, [1.0, 0.0, 2.0, np.nan])


def test_nearly_empty_time_blocks_are_left_out() -> None:
    """The day on which the span was cut says nothing about how days differ."""
    event_ms = np.array([0] + [DAY_MS + at for at in range(40)] + [2 * DAY_MS + at for at in range(40)])
    assert [len(block) for block in time_blocks(event_ms, DAY_MS)] == [40, 40]
