"""The rows written to ClickHouse: one place for each table's columns, in the order in which rows carry them.

The numbered migrations in ``schemas/clickhouse`` create these tables; a test compares the two on the real engine.

Aggregates are cumulative values of ONE source partition's log prefix; ``version`` is the sequence of the manifest they
belong to. A replay writes the same key with the same or a higher version, so a reader takes the row of the highest
version for each key and then merges over partitions. Logs are keyed by the address of the row they copy.

Part 0 of a row of ``window_outcomes`` is the window as it was when its state left the monitor's memory. Each further part
says what a batch of labels that came later has changed, and may be negative where a revision took something back; it is
written once. Views add parts up as they add up partitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TableRows:
    """``columns``: (name, ClickHouse type) in row order. ``key``: the columns that identify a row among replays."""

    name: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(kind for _, kind in self.columns)


_TEXT = "LowCardinality(String)"
_TIME = "DateTime64(3, 'UTC')"
_COUNTS = "Array(UInt64)"
_CHANGES = "Array(Int64)"
_DELAYS = "Map(Int16, UInt64)"

_WINDOW: tuple[tuple[str, str], ...] = (
    ("window_start", _TIME),
    ("window_ms", "UInt64"),
    ("model", _TEXT),
    ("model_version", _TEXT),
    ("role", _TEXT),
    ("segment", _TEXT),
    ("source_partition", "UInt16"),
)
_SOURCE: tuple[tuple[str, str], ...] = (
    ("source_partition", "UInt16"),
    ("source_offset", "Int64"),
    ("source_row", "UInt32"),
)
_VERSION = (("version", "UInt64"),)
_WINDOW_KEY = tuple(name for name, _ in _WINDOW)


def _log(name: str, columns: tuple[tuple[str, str], ...], key: tuple[str, ...] = ()) -> TableRows:
    return TableRows(name, columns + _SOURCE, (*key, *(n for n, _ in _SOURCE)))


#: Score histograms have this many equal bins of [0, 1]; outcome ones are finer, because the AUC is read off them.
#:
#: What is not exact, and by how much. Scores in one bin count as equal, so the AUC is off by at most half the pairs of a
#: positive and a negative score that share a bin: the sum over bins of p * n / 2, by all pairs. That is 0.25 % for scores
#: spread evenly, 50 % when all are in one bin; the view says it of each row (``auc_error``). Counts, means, rates, losses,
#: the confusion matrix and the calibration error are exact: sums of integers (losses to a billionth each).
SCORE_BINS = 20
OUTCOME_BINS = 200
CALIBRATION_BINS = 10
#: Latency buckets: bucket b holds (GAMMA**(b-1), GAMMA**b] microseconds. A quantile is read as the middle of its bucket
#: and so is off by at most (GAMMA - 1) / (GAMMA + 1) of itself, that is 1 %, whatever the latencies; those under a
#: microsecond count as one, those over eleven days as eleven days. The same of the quantiles of merged windows.
LATENCY_GAMMA = 1.02
#: Label delay buckets: bucket b holds (GAMMA**(b-1), GAMMA**b] milliseconds from the window's start to the label.
DELAY_GAMMA = 1.05
#: Probabilities are kept this far from 0 and 1 before a logarithm is taken.
PROBABILITY_MIN = 1e-6
NANO = 1_000_000_000
MICRO = 1_000_000

TABLES: dict[str, TableRows] = {
    t.name: t
    for t in (
        TableRows(
            "window_counts",
            _WINDOW
            + (
                ("predictions", "UInt64"),
                ("errors", "UInt64"),
                ("fallbacks", "UInt64"),
                ("late", "UInt64"),
                ("positives", "UInt64"),
                ("payload_bytes", "UInt64"),
                ("latency_sum_us", "UInt64"),
                ("latency_buckets", "Map(Int16, UInt64)"),
                ("score_histogram", _COUNTS),
                ("span_ms", "UInt64"),
                ("closed", "UInt8"),
            )
            + _VERSION,
            _WINDOW_KEY,
        ),
        TableRows(
            "window_features",
            _WINDOW
            + (
                ("feature", _TEXT),
                ("rows", "UInt64"),
                ("missing", "UInt64"),
                ("invalid", "UInt64"),
                ("sum_micro", "Int64"),
                ("low", "Float64"),
                ("high", "Float64"),
                ("edges", "Array(Float64)"),
                ("histogram", _COUNTS),
                ("categories", "Map(LowCardinality(String), UInt64)"),
                ("span_ms", "UInt64"),
            )
            + _VERSION,
            (*_WINDOW_KEY, "feature"),
        ),
        TableRows(
            "window_outcomes",
            _WINDOW
            + (
                ("part", "UInt64"),
                ("predictions", "UInt64"),
                ("labelled", "UInt64"),
                ("revisions", "UInt64"),
                ("true_positive", "Int64"),
                ("false_positive", "Int64"),
                ("true_negative", "Int64"),
                ("false_negative", "Int64"),
                ("log_loss_nano", "Int64"),
                ("brier_nano", "Int64"),
                ("positive_scores", _CHANGES),
                ("negative_scores", _CHANGES),
                ("calibration_counts", _CHANGES),
                ("calibration_score_nano", _CHANGES),
                ("calibration_positives", _CHANGES),
                ("positive_log_loss_nano", "Int64"),
                ("positive_brier_nano", "Int64"),
                ("positive_delays", _DELAYS),
                ("negative_delays", _DELAYS),
                ("first_label_ms", "Int64"),
                ("last_label_ms", "Int64"),
                ("final_ms", "Int64"),
                ("settled_ms", "Int64"),
                ("span_ms", "UInt64"),
                ("final", "UInt8"),
            )
            + _VERSION,
            (*_WINDOW_KEY, "part"),
        ),
        _log(
            "prediction_log",
            (
                ("model", _TEXT),
                ("model_version", "String"),
                ("role", "String"),
                ("prediction_id", "String"),
                ("event_time", _TIME),
                ("numbers", "Map(String, Float64)"),
                ("categories", "Map(String, String)"),
                ("score", "Nullable(Float64)"),
                ("latency_ms", "Float64"),
                ("status", "String"),
                ("entity", "String"),
                ("trace_id", "String"),
                ("region", "String"),
            ),
        ),
        _log(
            "label_log",
            (
                ("model", _TEXT),
                ("prediction_id", "String"),
                ("label", "Float64"),
                ("label_time", _TIME),
                ("revision", "UInt32"),
                ("trace_id", "String"),
            ),
        ),
        _log(
            "signal_log",
            (
                ("model", _TEXT),
                ("model_version", _TEXT),
                ("role", _TEXT),
                ("detector", _TEXT),
                ("kind", _TEXT),
                ("family", _TEXT),
                ("previous", _TEXT),
                ("state", _TEXT),
                ("score", "Float64"),
                ("threshold", "Float64"),
                ("column", _TEXT),
                ("event_time", _TIME),
                ("document", "String"),
            ),
        ),
        _log(
            "alert_log",
            (
                ("model", _TEXT),
                ("model_version", _TEXT),
                ("dedup_key", "String"),
                ("status", _TEXT),
                ("severity", _TEXT),
                ("title", "String"),
                ("cause", _TEXT),
                ("action", _TEXT),
                ("incident", "String"),
                ("event_time", _TIME),
                ("document", "String"),
            ),
        ),
        _log(
            "control_log",
            (
                ("model", _TEXT),
                ("type", _TEXT),
                ("request_id", "String"),
                ("model_version", _TEXT),
                ("cause", _TEXT),
                ("issued_by", _TEXT),
                ("event_time", _TIME),
                ("document", "String"),
            ),
        ),
        _log(
            "deployment_log",
            (
                ("model", _TEXT),
                ("revision", "UInt64"),
                ("phase", _TEXT),
                ("stable", _TEXT),
                ("candidate", _TEXT),
                ("weights", "Map(LowCardinality(String), Float64)"),
                ("reason", "String"),
                ("event_time", _TIME),
                ("document", "String"),
            ),
        ),
        _log(
            "decision_log",
            (
                ("model", _TEXT),
                ("decision_id", "String"),
                ("kind", _TEXT),
                ("model_version", _TEXT),
                ("actor", _TEXT),
                ("request_id", "String"),
                ("incident", "String"),
                ("detail", "String"),
                ("event_time", _TIME),
                ("recorded", _TIME),
                ("document", "String"),
            ),
        ),
        _log(
            "dead_letter_log",
            (
                ("topic", _TEXT),
                ("bad_partition", "UInt16"),
                ("bad_offset", "Int64"),
                ("bad_row", "UInt32"),
                ("reason", _TEXT),
                ("detail", "String"),
                ("value_base64", "String"),
                ("kafka_time", _TIME),
            ),
        ),
        TableRows(
            "label_index",
            (
                ("identity", "UInt64"),
                ("model", _TEXT),
                *_SOURCE,
                ("check", "UInt32"),
                ("model_version", "String"),
                ("role", "Int8"),
                ("event_time_ms", "Int64"),
                ("score", "Float64"),
                ("status", "Int8"),
                ("segments", "Array(Int32)"),
                ("contract_hash", "String"),
                ("copied_time", _TIME),
            ),
            ("identity", "model", *(n for n, _ in _SOURCE)),
        ),
        TableRows(
            "label_states",
            (
                ("identity", "UInt64"),
                ("model", _TEXT),
                *_SOURCE,
                ("revision", "Int32"),
                ("label", "Float64"),
                ("label_time_ms", "Int64"),
                ("copied_time", _TIME),
            ),
            ("identity", "model", *(n for n, _ in _SOURCE), "revision"),
        ),
        TableRows(
            "label_index_progress",
            (
                ("partition", "UInt16"),
                ("source", _TEXT),
                ("position", "Int64"),
            ),
            ("partition", "source"),
        ),
        TableRows(
            "archive_progress",
            (
                ("topic", _TEXT),
                ("partition", "UInt16"),
                ("next_offset", "Int64"),
                ("event_time_ms", "Int64"),
            ),
            ("topic", "partition"),
        ),
    )
}


def whole_outcomes(rows: Iterable[Sequence[Any]]) -> dict[tuple[Any, ...], list[Any]]:
    """Rows of ``window_outcomes`` without their version, parts put together as the views do it: key without the part to the
    values behind it."""
    names = TABLES["window_outcomes"].names[len(_WINDOW_KEY) + 1 : -1]
    found: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        key, values = tuple(row[: len(_WINDOW_KEY)]), list(row[len(_WINDOW_KEY) + 1 :])
        held = found.get(key)
        found[key] = (
            values if held is None else [_put(*three) for three in zip(names, held, values, strict=True)]
        )
    return found


def _put(name: str, one: Any, other: Any) -> Any:
    """Two parts' values as one."""
    if isinstance(one, Mapping):
        return {at: one.get(at, 0) + other.get(at, 0) for at in sorted({*one, *other})}
    if isinstance(one, Sequence):
        return [a + b for a, b in zip(one, other, strict=True)]
    match name:
        case "final":
            return min(one, other)
        case "first_label_ms":
            return min(filter(None, (one, other)), default=0)
        case "last_label_ms" | "final_ms" | "settled_ms" | "span_ms":
            return max(one, other)
        case _:
            return one + other
