"""Windows: what is counted where, when a window closes, is final, is forgotten, and what the warehouse is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrow import encode_arrow
from schemas.columns import PredictionColumns
from schemas.contracts import (
    ColumnReference,
    Feature,
    ModelContract,
    ModelRecord,
    ModelVersion,
    Monitoring,
    Reference,
)
from schemas.errors import StateCorrupt
from schemas.rows import DELAY_GAMMA, LATENCY_GAMMA, MICRO, SCORE_BINS, TABLES
from schemas.spans import Spans
from streams.core import counting
from streams.core.aggregates import Outcomes, latency_bucket, pack, unit_bin, unpack
from streams.core.counting import FEW_ROWS
from streams.core.delivery import Upserts
from streams.core.maturity import delay_bucket
from streams.core.members import Segments, coded
from streams.core.pipeline import JoinCore
from streams.core.together import Together
from streams.core.windows import Windows
from tests.support_examples import examples
from tests.support_join import CONTRACT, HOUR, T0, Stream, blocks, join_core, prediction, truth
from tests.support_upserts import spread

END = T0 + HOUR
LATENESS = CONTRACT.monitoring.allowed_lateness
HORIZON = CONTRACT.monitoring.label_horizon


def row(upserts: list[Upserts], table: str, segment: str = "", feature: str | None = None) -> dict[str, Any]:
    """The one row of a table for a segment, by column name."""
    names = TABLES[table].names
    found = [dict(zip(names, u.row, strict=True)) for u in spread(upserts) if u.table == table]
    found = [r for r in found if r["segment"] == segment and r.get("feature") == feature]
    assert len(found) == 1, (table, segment, feature)
    return found[0]


def committed(core: JoinCore, sequence: int) -> list[Upserts]:
    """What a shell does at a commit."""
    core.outputs()
    core.changed_pieces()
    core.committed(sequence)
    return core.upserts()


def test_every_upsert_is_a_row_of_its_table_and_its_key_leads_it() -> None:
    """Rows fit the columns in number, and the columns' key is the upsert's key."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction()), stream.event(truth())], 0)
    upserts = committed(core, 3)
    assert {u.table for u in upserts} == {"window_counts", "window_features", "window_outcomes"}
    for upsert in spread(upserts):
        table = TABLES[upsert.table]
        named = dict(zip(table.names, upsert.row, strict=True))
        assert tuple(named[name] for name in table.key) == upsert.key
        assert named["version"] == upsert.version == 3


def test_a_window_counts_by_version_role_and_segment() -> None:
    """The whole and each value of a segment feature; unknown and null values have segments of their own."""
    core, stream = join_core(), Stream()
    where = ["EWR", "EWR", "JFK", "BOS"]
    events = [
        prediction(
            f"p{at}", features={"distance": 1.0, "origin": o}, latency_ms=2.5, status="error" if at else "ok"
        )
        for at, o in enumerate(where)
    ]
    core.apply([stream.event(e) for e in events], 0)
    upserts = committed(core, 1)
    whole = row(upserts, "window_counts")
    assert (whole["predictions"], whole["errors"], whole["positives"], whole["latency_sum_us"]) == (
        4,
        3,
        4,
        10_000,
    )
    assert sum(whole["score_histogram"]) == 4
    assert whole["score_histogram"][unit_bin(np.array([0.75]), SCORE_BINS)[0]] == 4
    counts = {
        s: row(upserts, "window_counts", s)["predictions"]
        for s in ("origin=EWR", "origin=JFK", "origin=(other)")
    }
    assert counts == {"origin=EWR": 2, "origin=JFK": 1, "origin=(other)": 1}


def test_outcomes_of_a_window_and_a_revision() -> None:
    """A revision leaves the sums as if its label had come first, and says that there was one."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction()), stream.event(truth(label=0.0))], 0)
    first = row(committed(core, 1), "window_outcomes")
    assert (first["labelled"], first["false_positive"], first["revisions"]) == (1, 1, 0)
    core.apply([stream.event(truth(label=1.0, revision=1))], 0)
    second = row(committed(core, 2), "window_outcomes", "origin=JFK")
    assert (second["labelled"], second["false_positive"], second["true_positive"], second["revisions"]) == (
        1,
        0,
        1,
        1,
    )
    assert second["log_loss_nano"] == round(-math.log(0.75) * 1e9)
    assert second["brier_nano"] == 62_500_000
    assert (sum(second["negative_scores"]), sum(second["positive_scores"])) == (0, 1)
    assert second["calibration_score_nano"][7] == 750_000_000


#   predictions   |---- window ----|-- lateness --|
#   feedback      |---- window ----|---------------- label horizon ----------------|
#                 T0              END          closed                            final, forgotten when confirmed
def test_a_window_closes_by_prediction_time_and_is_final_by_feedback_time() -> None:
    """Feedback time never holds a window open; labels may come until the horizon."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction()), stream.tick(END + LATENESS - 1)], 0)
    assert row(committed(core, 1), "window_counts")["closed"] == 0
    core.apply([stream.tick(END + LATENESS)], 0)
    upserts = committed(core, 2)
    assert row(upserts, "window_counts")["closed"] == 1
    assert row(upserts, "window_outcomes")["final"] == 0
    core.apply([stream.tick(END + HORIZON - 1, "feedback")], 0)
    assert committed(core, 3) == []
    core.apply([stream.tick(END + HORIZON, "feedback")], 0)
    assert row(committed(core, 4), "window_outcomes")["final"] == 1


def test_a_window_whose_rows_are_all_labelled_is_final_when_it_closes() -> None:
    """Nobody waits a week for labels that are all there."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction()), stream.event(truth()), stream.tick(END + LATENESS)], 0)
    assert row(committed(core, 1), "window_outcomes")["final"] == 1


def test_a_late_row_corrects_its_window_and_one_of_a_settled_window_is_only_counted() -> None:
    """A settled window never opens again: its row in the warehouse would be replaced by one that knows only this row."""
    core, stream = join_core(), Stream()
    core.apply(
        [stream.event(prediction("a")), stream.tick(END + LATENESS), stream.event(prediction("late"))], 0
    )
    first = committed(core, 1)
    late = row(first, "window_counts")
    assert (late["predictions"], late["late"], late["closed"]) == (2, 1, 1)
    core.apply([stream.tick(END + HORIZON, "feedback")], 0)
    core.confirm([*first, *committed(core, 2)])
    core.apply([stream.event(prediction("too late")), stream.event(truth("a"))], 0)
    assert committed(core, 3) == []
    measured = {name: value for name, _, value in core.measurements()}
    assert measured["driftline_too_late_rows_total"] == 1
    assert measured["driftline_late_rows_total"] == 1
    assert measured["driftline_open_windows"] == 0


def test_a_settled_window_stays_until_the_warehouse_has_it() -> None:
    """An outage of any length loses no window."""
    core, stream = join_core(), Stream()
    ticks = [stream.tick(END + HORIZON), stream.tick(END + HORIZON, "feedback")]
    core.apply([stream.event(prediction()), *ticks], 0)
    core.outputs()
    pieces = core.changed_pieces()
    assert any(name.startswith("window/") for name, data in pieces.items() if data)
    core.committed(1)
    sent = core.upserts()
    core.apply([stream.tick(END + 2 * HORIZON, "feedback")], 0)
    assert not any(data is None for name, data in core.changed_pieces().items() if name.startswith("window/"))
    core.confirm(sent)
    assert [d for n, d in core.changed_pieces().items() if n.startswith("window/")] == [None]


def test_a_confirmation_of_an_older_value_does_not_clear_a_newer_one() -> None:
    """What was sent before the last change is not what the warehouse must have."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction("a"))], 0)
    first = committed(core, 1)
    core.apply([stream.event(prediction("b"))], 0)
    second = committed(core, 2)
    core.confirm(first)
    core.apply([stream.tick(END + HORIZON), stream.tick(END + HORIZON, "feedback")], 0)
    third = committed(core, 3)
    assert third
    core.confirm(second)
    assert {n: v for n, _, v in core.measurements()}["driftline_open_windows"] == 1
    core.confirm(third)
    assert {n: v for n, _, v in core.measurements()}["driftline_open_windows"] == 0


def test_a_changed_window_length_opens_windows_of_its_own() -> None:
    """Rows of the old length stay with the old windows, and their labels find them."""
    core, stream = join_core(), Stream()
    core.apply([stream.event(prediction("a"))], 0)
    longer = CONTRACT.model_copy(
        update={"monitoring": CONTRACT.monitoring.model_copy(update={"window": 2 * HOUR})}
    )
    core.activate([ModelRecord(contract=longer)])
    core.apply([stream.event(prediction("b")), stream.event(truth("a")), stream.event(truth("b"))], 0)
    rows = [
        dict(zip(TABLES[u.table].names, u.row, strict=True))
        for u in spread(committed(core, 1))
        if u.table == "window_outcomes"
    ]
    assert {(r["window_ms"], r["labelled"]) for r in rows} == {(HOUR, 1), (2 * HOUR, 1)}


def test_histograms_use_the_quantiles_of_the_versions_reference() -> None:
    """Equal shares of the reference in each cell, so that a shift is seen where the data is."""
    reference = Reference(
        columns={"wind": ColumnReference(rows=100, quantiles=tuple(float(q) ** 2 for q in range(101)))}
    )
    version = ModelVersion(model="flights", version="v1", uri="x", sha256="0" * 64, reference=reference)
    core, stream = join_core(), Stream()
    core.activate([ModelRecord(version=version)])
    winds = [(at + 0.5) ** 2 for at in range(100)]
    core.apply(
        [
            stream.event(prediction(f"p{at}", features={"distance": -1.0, "wind": w, "origin": "JFK"}))
            for at, w in enumerate(winds)
        ],
        0,
    )
    upserts = committed(core, 1)
    wind = row(upserts, "window_features", feature="wind")
    assert wind["histogram"] == [5] * 20
    assert wind["sum_micro"] == sum(round(w * MICRO) for w in winds)
    distance = row(upserts, "window_features", feature="distance")
    assert (distance["invalid"], distance["histogram"][0], distance["low"]) == (100, 100, -1.0)
    assert row(upserts, "window_features", feature="origin")["categories"] == {"JFK": 100}


def test_sums_beyond_64_bits_are_cut_where_they_leave_for_the_warehouse() -> None:
    """A broken feature must not make every later insert fail."""
    core, stream = join_core(), Stream()
    features = {"distance": 1.0, "wind": 9e300, "origin": "JFK"}
    core.apply([stream.event(prediction(f"p{at}", features=features)) for at in range(5)], 0)
    assert row(committed(core, 1), "window_features", feature="wind")["sum_micro"] == 2**63 - 1


def test_segments_beyond_the_limit_share_one() -> None:
    """The number of cells is bounded by the contract, whatever the values."""
    feature = Feature(name="c", kind="categorical", categories=tuple("abcdef"))
    contract = ModelContract(
        model="m", features=(feature,), monitoring=Monitoring(segments=("c",), segments_max=2)
    )
    segments = Segments(contract)
    keys = Spans.of([b""] * 6)
    none = np.zeros(6, np.int64)
    columns = PredictionColumns(
        contract, none, none.astype(np.int32), keys, ("1",), none.astype(np.int32), none.astype(np.int8), none,
        none.astype(float), none.astype(float), none.astype(np.int8),
        np.array([[0.0], [1.0], [2.0], [5.0], [6.0], [np.nan]]), none,
    )  # fmt: skip
    codes, told = coded(Together.of([columns]), [segments])
    assert told[:, 0].tolist() == [0, 1, 6, 6, 6, -1]
    named = ["c=a", "c=b", "c=(other)", "c=(other)", "c=(other)", "c=(null)"]
    assert [segments.labels[0][code] for code in codes[0].tolist()] == named


@given(st.lists(st.integers(1, 10**9), min_size=1))
def test_a_latency_is_known_to_one_percent(microseconds: list[int]) -> None:
    """The middle of a bucket, as the views take it, is never further than gamma allows."""
    buckets = latency_bucket(np.array(microseconds, np.float64))
    middle = 2 * LATENCY_GAMMA ** buckets.astype(float) / (LATENCY_GAMMA + 1)
    assert (np.abs(middle / microseconds - 1) < 0.01).all()


def test_outcomes_are_packed_without_loss() -> None:
    """Sparse or dense."""
    outcomes = Outcomes(labelled=5, log_loss_nano=2**70)
    outcomes.positive_scores = np.bincount([7] * 9, minlength=len(outcomes.positive_scores))
    back = unpack(pack(outcomes))
    assert back.positive_scores.tolist() == outcomes.positive_scores.tolist()
    assert (back.labelled, back.log_loss_nano) == (5, 2**70)


def test_log_loss_is_finite_at_the_ends() -> None:
    """A score of exactly 0 or 1 costs much, not infinitely much."""
    core, stream = join_core(), Stream()
    for at, score in enumerate((0.0, 1.0)):
        core.apply([stream.event(prediction(f"p{at}", score=score)), stream.event(truth(f"p{at}"))], 0)
    (block,) = (b for b in blocks(core.outputs()) if b.kind == "outcomes")
    assert block.loss.tolist() == pytest.approx([-math.log(1e-6), 1e-6], rel=1e-3)


def test_a_window_piece_that_cannot_be_read_is_named() -> None:
    """Never a silent start from less."""
    with pytest.raises(StateCorrupt, match="window/m/0/1"):
        Windows(0).restore({"window/m/0/1": b"?"})


def outcome_row(events: list[dict[str, Any] | int]) -> dict[str, Any]:
    """What the warehouse is told of the whole window after events; a number is a tick on both inputs."""
    core, stream = join_core(), Stream()
    for event in events:
        if isinstance(event, int):
            core.apply([stream.tick(event), stream.tick(event, "feedback")], 0)
        else:
            core.apply([stream.event(event)], 0)
    return row(committed(core, 1), "window_outcomes")


def test_labels_are_counted_by_class_and_delay() -> None:
    """From the window's start, so that when in the window rows of a class come is part of it; a revision moves no delay."""
    labels = [
        truth("a", label=1.0, label_time_ms=T0 + 2 * HOUR),
        truth("b", label=0.0, label_time_ms=T0 + HOUR),
        truth("b", label=1.0, label_time_ms=T0 + 5 * HOUR, revision=1),
    ]
    found = outcome_row([prediction("a", event_time_ms=END - 1), prediction("b"), *labels])
    hour, two = delay_bucket(np.array([HOUR, 2 * HOUR])).tolist()
    assert (found["positive_delays"], found["negative_delays"]) == ({two: 1}, {hour: 1})
    assert DELAY_GAMMA ** (hour - 1) < HOUR <= DELAY_GAMMA**hour
    assert (found["first_label_ms"], found["last_label_ms"]) == (T0 + HOUR, T0 + 5 * HOUR)
    assert found["positive_log_loss_nano"] == found["log_loss_nano"] == 2 * round(-math.log(0.75) * 1e9)
    assert found["positive_brier_nano"] == found["brier_nano"] == 125_000_000


def test_a_figure_says_when_it_became_final() -> None:
    """When all labels are in, or when none is waited for any more; in event time, so a replay says the same."""
    events = [prediction("a"), truth("a", label_time_ms=T0 + 3 * HOUR), prediction("b")]
    partial = outcome_row([*events, END + LATENESS])
    assert (partial["final"], partial["final_ms"], partial["settled_ms"]) == (0, 0, 0)
    complete = outcome_row([*events, truth("b", label_time_ms=T0 + 4 * HOUR), END + LATENESS])
    assert (complete["final"], complete["final_ms"], complete["settled_ms"]) == (1, T0 + 4 * HOUR, 0)
    settled = outcome_row([*events, END + HORIZON])
    assert (settled["final"], settled["final_ms"], settled["settled_ms"]) == (1, END + HORIZON, END + HORIZON)


#   window 1 s, step 250 ms: what is counted and stored is a step; the warehouse's views put four of them together
#   |--250--|--250--|--250--|--250--|
def test_windows_that_overlap_are_counted_in_steps() -> None:
    """An event is counted once, in the step it is in, down to parts of a second; its row says how long a window is."""
    contract = CONTRACT.model_copy(
        update={"monitoring": Monitoring(window="1s", window_step="250ms", allowed_lateness=0)}
    )
    core, stream = join_core(contract=contract), Stream()
    times = [0, 249, 250, 999]
    core.apply(
        [stream.event(prediction(f"p{at}", event_time_ms=T0 + at)) for at in times] + [stream.tick(T0 + 500)],
        0,
    )
    found = [
        dict(zip(TABLES[u.table].names, u.row, strict=True))
        for u in spread(committed(core, 1))
        if u.table == "window_counts"
    ]
    assert [
        (
            r["window_start"].timestamp() * 1000 - T0,
            r["window_ms"],
            r["span_ms"],
            r["predictions"],
            r["closed"],
        )
        for r in sorted(found, key=lambda r: r["window_start"])
    ] == [(0, 250, 1_000, 2, 1), (250, 250, 1_000, 1, 1), (750, 250, 1_000, 1, 0)]


@pytest.mark.parametrize(
    ("window", "step", "says"),
    [
        ("1s", "300ms", "does not divide"),
        ("1s", 0, "does not divide"),
        ("1s", "2s", "does not divide"),
        ("1h", "1s", "3600 steps"),
        ("400d", None, "longer than 366 days"),
    ],
)
def test_a_window_is_bounded_and_made_of_whole_steps(window: str, step: str | int | None, says: str) -> None:
    """A contract that would cost without bound, or means nothing, is refused with the reason."""
    with pytest.raises(ValueError, match=says):
        Monitoring.model_validate({"window": window, "window_step": step})


@examples(10)
@given(
    st.lists(
        st.sampled_from([-3.0, -2.0, -0.1, 0.0, 0.25, 0.5, 1.0, 1.5, 9e30, None]), min_size=1, max_size=12
    )
)
def test_few_rows_and_many_are_counted_alike(values: list[float | None]) -> None:
    """All features in one call, one after the other or as columns that lie in one piece, values on borders and beyond every range, null, in several windows."""
    found = []
    for most, arrow in ((0, False), (FEW_ROWS, False), (0, True)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(counting, "FEW_ROWS", most)
            core, stream = join_core(), Stream()
            quantiles = tuple(np.linspace(-2, 1, 7).tolist())
            columns = {"distance": ColumnReference(rows=9, quantiles=quantiles)}
            version = ModelVersion(
                model="flights", version="v1", uri="x", sha256="0" * 64, reference=Reference(columns=columns)
            )
            core.activate([ModelRecord(version=version)])
            events = [
                prediction(
                    f"p{at}",
                    event_time_ms=T0 + at % 3 * HOUR,
                    features={"distance": 0.5 if value is None else value, "wind": value, "origin": "JFK"},
                )
                for at, value in enumerate(values)
            ]
            if arrow:
                core.apply([stream.arrow(_arrow(events[at::3])) for at in range(min(3, len(events)))], 0)
            else:
                core.apply([stream.event(event) for event in events], 0)
            rows = [u.row for u in spread(committed(core, 1)) if u.table == "window_features"]
            found.append(sorted(map(repr, rows)))
    assert found[0] == found[1] == found[2] != []


def _arrow(events: list[dict[str, Any]]) -> bytes:
    """The same predictions as a batch: features column by column, not row by row."""
    names = ("prediction_id", "version", "event_time_ms", "score")
    columns = {name: pa.array([event[name] for event in events]) for name in names}
    for name in ("distance", "wind", "origin"):
        kind = pa.string() if name == "origin" else pa.float64()
        columns[name] = pa.array([event["features"][name] for event in events], kind)
    return encode_arrow(pa.table(columns).replace_schema_metadata({b"model": b"flights"}))
