"""Snapshots out of a real ClickHouse engine: what they hold is a function of the request and of mature labels alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clickhouse_connect.driver.client import Client
from support_trainer import (
    CONTRACT,
    HOUR_MS,
    LABELS,
    PREDICTIONS,
    ROW_MS,
    ROWS,
    archive,
    at_ms,
    database,
    make_settings,
    progress,
    rows,
    with_training,
)

from deploy.local.kafka import LocalKafka
from deploy.local.warehouse import LocalWarehouse
from deploy.training.extract import archived_ms, take_snapshot
from tests.support_deploy import START_MS, feature_row

pytestmark = pytest.mark.integration


@pytest.fixture
def client(
    kafka: LocalKafka, warehouse: LocalWarehouse, topic_prefix: str, unique_name: str, tmp_path: Path
) -> Iterator[Client]:
    """The migrated, empty database."""
    with database(make_settings(kafka, warehouse, topic_prefix, unique_name, tmp_path)) as made:
        yield made


def _late_changes(client: Client, until: int) -> None:
    """What a snapshot must not be moved by: repeats, shadows, late labels, other models; and a revision that counts."""
    table, labels, event_ms = rows(ROWS, seed=3)
    row: dict[str, Any] = {n: v for n, v in feature_row(table, 0).items() if isinstance(v, float)}
    base = [at_ms(int(event_ms[0])), row, {"carrier": "AA"}, 0.9, 1.0, "ok", "", ""]
    client.insert(
        "prediction_log",
        [
            ["delay", "1", "stable", "p00000", *base, 0, 900_000, 0],
            ["delay", "2", "shadow", "p00001", *base, 1, 900_000, 0],
            ["other", "1", "stable", "p99999", *base, 0, 900_001, 0],
        ],
        column_names=PREDICTIONS,
    )
    client.insert(
        "label_log",
        [
            ["delay", "p00002", 1.0, at_ms(until + 1), 9, "", 0, 900_000, 0],
            ["delay", "p00003", 1.0 - labels[3], at_ms(until), 1, "", 1, 900_001, 0],
            ["delay", "p00004", 1.0, at_ms(until), 0, "", 0, 900_002, 0],
            ["delay", "unknown", 1.0, at_ms(until), 0, "", 0, 900_003, 0],
        ],
        column_names=LABELS,
    )


def test_a_snapshot_depends_on_the_request_alone(client: Client) -> None:
    """Values come back as they were logged, in a fixed order; what came later or twice changes nothing; a higher
    revision of a label, known by then, does."""
    until = archive(client)
    first = take_snapshot(client, CONTRACT, until)
    table, labels, event_ms = rows(ROWS, seed=3)
    np.testing.assert_array_equal(first.table["hour"], table["hour"])
    np.testing.assert_array_equal(first.table["wind.speed"], table["wind.speed"])
    assert first.table["carrier"].tolist() == table["carrier"].tolist()
    np.testing.assert_array_equal(first.labels, labels)
    np.testing.assert_array_equal(first.event_ms, event_ms)
    assert take_snapshot(client, CONTRACT, until).content_hash() == first.content_hash()
    _late_changes(client, until)
    second = take_snapshot(client, CONTRACT, until)
    labels[3] = 1 - labels[3]
    assert second.content_hash() != first.content_hash()
    np.testing.assert_array_equal(second.labels, labels)
    assert len(second) == ROWS
    assert second.scores[0] == 0.5
    early = take_snapshot(client, CONTRACT, int(event_ms[299]) + 3_600_000)
    assert len(early) == 300
    assert len(take_snapshot(client, CONTRACT, 0)) == 0
    assert archived_ms(client, 2) is None
    progress(client, 77)
    assert (archived_ms(client, 2), archived_ms(client, 3)) == (77, None)


def test_the_span_ends_where_labels_have_had_time_to_come(client: Client) -> None:
    """Positives take five hours, negatives one: the last rows of a naive snapshot would be negatives alone. The end backs
    off by the time that was measured on rows past their horizon, and the snapshot says so."""
    archive(client, delay_ms=lambda label: 5 * HOUR_MS if label else HOUR_MS)
    _, labels, event_ms = rows(ROWS, seed=3)
    now = int(event_ms[-1])
    taken = take_snapshot(client, CONTRACT, now)
    origin = taken.origin
    assert (origin.backed_off_ms, origin.backed_off_by) == (5 * HOUR_MS, "measured")
    assert origin.delays == int((event_ms <= now - 6 * HOUR_MS).sum())
    assert (origin.requested_ms, origin.to_ms) == (now, now - 5 * HOUR_MS)
    assert (origin.predictions, origin.unlabelled) == (len(taken), 0)
    np.testing.assert_array_equal(taken.labels, labels[event_ms <= now - 5 * HOUR_MS])
    naive = take_snapshot(client, with_training(labels_after=0), now)
    assert naive.origin.backed_off_by == "configuration"
    assert naive.labels[-15:].sum() == 0 < labels[-15:].sum()
    assert naive.origin.unlabelled > 0


def test_too_few_delays_leave_the_label_horizon(client: Client) -> None:
    """What cannot be measured is not guessed."""
    archive(client, 120)
    now = START_MS + 119 * ROW_MS
    origin = take_snapshot(client, CONTRACT, now).origin
    assert (origin.backed_off_ms, origin.backed_off_by) == (6 * HOUR_MS, "label horizon")
    assert origin.delays == 120 - 36


def test_no_label_is_a_negative_only_after_its_horizon(client: Client) -> None:
    """Where only positives are reported (clicks): dropped unless the contract says so, and never before their time."""
    _, labels, event_ms = rows(ROWS, seed=3)
    archive(client, labels=np.where(labels == 1, 1, -1))
    now = int(event_ms[-1])
    clicks = take_snapshot(client, CONTRACT, now)
    assert clicks.labels.all()
    assert clicks.origin.unlabelled == clicks.origin.predictions - len(clicks) > 0
    taken = take_snapshot(client, with_training(unlabelled="negative"), now)
    mature = event_ms <= now - 6 * HOUR_MS
    np.testing.assert_array_equal(taken.labels, labels[mature])
    assert taken.origin.unlabelled == int((labels[mature] == 0).sum())
    assert (taken.origin.unlabelled_are, taken.origin.backed_off_by) == ("negative", "label horizon")


def test_a_busy_models_predictions_are_thinned_by_their_ids(client: Client) -> None:
    """The same every fourth row whenever it is asked for, with its label, spread over the span."""
    until = archive(client)
    whole = take_snapshot(client, CONTRACT, until)
    thin = take_snapshot(client, with_training(rows_max=500), until)
    assert (whole.origin.sampled_every, thin.origin.sampled_every) == (1, 4)
    assert 350 < len(thin) < 650
    at = np.flatnonzero(np.isin(whole.prediction_ids, thin.prediction_ids))
    assert whole.take(at).content_hash() == thin.content_hash()
    assert (thin.origin.unlabelled, thin.origin.backed_off_by) == (0, "measured")
    assert thin.event_ms[-1] - thin.event_ms[0] > 0.95 * (whole.event_ms[-1] - whole.event_ms[0])
