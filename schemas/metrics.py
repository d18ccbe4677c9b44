"""The closed list of metric names. A name that is not here cannot be exported; the documentation prints this list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One exported series. Names follow the Prometheus conventions; ``labels`` is the whole set."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        # Monitor: delivery
        Metric("driftline_rows_total", "counter", "Rows applied by a task.", ("stage", "partition", "topic")),
        Metric("driftline_dead_letters_total", "counter", "Rows sent to dead-letters.", ("reason",)),
        Metric("driftline_rerouted_rows_total", "counter", "Rows found on the wrong partition and sent on.", ("topic",)),
        Metric("driftline_commits_total", "counter", "Transactions committed.", ("stage", "partition")),
        Metric("driftline_commit_seconds", "histogram", "Time of one transaction.", ("stage",)),
        Metric("driftline_task_ready", "gauge", "1 while a task has loaded its state and runs.", ("stage", "partition")),
        Metric("driftline_halted", "gauge", "1 while a task has stopped because most of its input is bad; the log says what is.", ("stage", "partition")),
        Metric("driftline_broker_up", "gauge", "1 while a Kafka broker answers this process."),
        Metric("driftline_watermark_ms", "gauge", "Event time a task has reached.", ("stage", "partition", "source")),
        Metric("driftline_state_bytes_total", "counter", "Bytes of state written.", ("stage", "partition")),
        Metric("driftline_input_bytes_total", "counter", "Bytes of input read.", ("stage", "partition")),
        Metric("driftline_lag_records", "gauge", "Records between a task and the end of its input.", ("stage", "partition")),
        # Monitor: labels and windows
        Metric("driftline_pending_predictions", "gauge", "Predictions in the hot join index.", ("partition",)),
        Metric("driftline_pending_labels", "gauge", "Labels waiting for their prediction.", ("partition",)),
        Metric("driftline_hot_index_bytes", "gauge", "Memory of the hot join index, estimated; monitor.hot_index_bytes_max over all partitions bounds it.", ("partition",)),
        Metric("driftline_hot_index_covers_ms", "gauge", "Event time from the oldest prediction in the hot join index to now.", ("partition",)),
        Metric("driftline_unlabelled_predictions", "gauge", "Predictions whose window was settled before a label came; exact, in the state.", ("partition", "model")),
        Metric("driftline_evicted_predictions", "gauge", "Predictions that had to leave the hot join index unlabelled; exact, in the state.", ("partition", "model")),
        Metric("driftline_labels_total", "counter", "Labels by what became of them.", ("outcome",)),
        Metric("driftline_pending_label_lookups", "gauge", "Predictions that labels look for in ClickHouse.", ("partition",)),
        Metric("driftline_label_lookups_total", "counter", "Predictions that labels have looked for in ClickHouse, found or unknown there.", ("outcome",)),
        Metric("driftline_late_rows_total", "counter", "Rows later than their window's allowed lateness.", ("model",)),
        Metric("driftline_too_late_rows_total", "counter", "Rows of windows that are settled: in the log, in no figure.", ("model",)),
        Metric("driftline_open_windows", "gauge", "Windows held in state.", ("partition",)),
        # Monitor: detection and policy
        Metric("driftline_signals_total", "counter", "Changes of a verdict.", ("model", "detector", "state")),
        Metric("driftline_detector_seconds_total", "counter", "Time spent in a detector.", ("kind",)),
        Metric("driftline_alerts_total", "counter", "Alerts published.", ("model", "severity", "status")),
        Metric("driftline_commands_total", "counter", "Commands published.", ("model", "type")),
        # Warehouse
        Metric("driftline_warehouse_rows_total", "counter", "Rows written to ClickHouse.", ("table",)),
        Metric("driftline_warehouse_errors_total", "counter", "Failed writes, each tried again.", ("table",)),
        Metric("driftline_warehouse_dirty", "gauge", "Aggregates not yet confirmed by ClickHouse.", ("partition",)),
        Metric("driftline_raw_log_waiting_bytes", "gauge", "Events read that wait to be written to the raw log; monitor.raw_log_bytes_max bounds them."),
        Metric("driftline_raw_log_partitions_behind", "gauge", "Partitions that are read again for the raw log, because the warehouse was away or a worker ended."),
        # Scorer
        Metric("driftline_requests_total", "counter", "Scoring requests answered.", ("model", "version", "status")),
        Metric("driftline_score_seconds", "histogram", "Time of one inference batch.", ("model", "version")),
        Metric("driftline_batch_rows", "histogram", "Rows in one inference batch.", ("model",)),
        Metric("driftline_trips_total", "counter", "Versions tripped by a rollback request.", ("model", "version")),
        Metric("driftline_trip_unanswered", "gauge", "Trips still without the controller's answer.", ("model",)),
        Metric("driftline_region_unlisted", "gauge", "1 while a rollout by regions does not name this scorer's: it serves the stable version alone.", ("model",)),
        Metric("driftline_rate_limited_total", "counter", "Requests answered with an error because their model's rate limit was reached.", ("model",)),
        Metric("driftline_shadow_rows_total", "counter", "Requests a shadow scored, that were dropped because it could not keep up, and of those scored the ones lost on the way.", ("model", "outcome")),
        Metric("driftline_cached_rows_total", "counter", "Requests whose features were found checked and encoded.", ("model",)),
        Metric("driftline_in_flight_rows", "gauge", "Requests read and not yet committed."),
        Metric("driftline_loaded_bytes", "gauge", "Estimated memory of loaded versions."),
        Metric("driftline_awaited_versions", "gauge", "Versions that are wanted and not loaded because the registry is away.", ("model",)),
        Metric("driftline_writers_replaced_total", "counter", "Transactional producers given up because the client no longer answered."),
        # Controller, trainer, notifier
        Metric("driftline_deployment_revision", "gauge", "Newest deployment revision.", ("model",)),
        Metric("driftline_decisions_total", "counter", "Facts recorded.", ("model", "kind")),
        Metric("driftline_trainings_total", "counter", "Training runs by outcome.", ("model", "outcome")),
        Metric("driftline_notifications_total", "counter", "Notifications sent.", ("channel", "outcome")),
        # Every process
        Metric("driftline_errors_total", "counter", "Unexpected errors that were survived.", ("where",)),
    )
}  # fmt: skip
