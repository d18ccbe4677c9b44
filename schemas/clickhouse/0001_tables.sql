-- Tables. Aggregates hold cumulative values per source partition; logs are keyed by the address of the row they copy.
-- ReplacingMergeTree absorbs every replay: equal keys collapse, the highest version stays.

CREATE TABLE IF NOT EXISTS window_counts
(
    `window_start` DateTime64(3, 'UTC'),
    `window_ms` UInt64,
    `model` LowCardinality(String),
    `model_version` LowCardinality(String),
    `role` LowCardinality(String),
    `segment` LowCardinality(String),
    `source_partition` UInt16,
    `predictions` UInt64,
    `errors` UInt64,
    `fallbacks` UInt64,
    `late` UInt64,
    `positives` UInt64,
    `payload_bytes` UInt64,
    `latency_sum_us` UInt64,
    `latency_buckets` Map(Int16, UInt64),
    `score_histogram` Array(UInt64),
    `closed` UInt8,
    `version` UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(window_start)
ORDER BY (window_start, window_ms, model, model_version, role, segment, source_partition);

CREATE TABLE IF NOT EXISTS window_features
(
    `window_start` DateTime64(3, 'UTC'),
    `window_ms` UInt64,
    `model` LowCardinality(String),
    `model_version` LowCardinality(String),
    `role` LowCardinality(String),
    `segment` LowCardinality(String),
    `source_partition` UInt16,
    `feature` LowCardinality(String),
    `rows` UInt64,
    `missing` UInt64,
    `invalid` UInt64,
    `sum_micro` Int64,
    `low` Float64,
    `high` Float64,
    `edges` Array(Float64),
    `histogram` Array(UInt64),
    `categories` Map(LowCardinality(String), UInt64),
    `version` UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(window_start)
ORDER BY (window_start, window_ms, model, model_version, role, segment, source_partition, feature);

CREATE TABLE IF NOT EXISTS window_outcomes
(
    `window_start` DateTime64(3, 'UTC'),
    `window_ms` UInt64,
    `model` LowCardinality(String),
    `model_version` LowCardinality(String),
    `role` LowCardinality(String),
    `segment` LowCardinality(String),
    `source_partition` UInt16,
    `predictions` UInt64,
    `labelled` UInt64,
    `revisions` UInt64,
    `true_positive` UInt64,
    `false_positive` UInt64,
    `true_negative` UInt64,
    `false_negative` UInt64,
    `log_loss_nano` Int64,
    `brier_nano` Int64,
    `positive_scores` Array(UInt64),
    `negative_scores` Array(UInt64),
    `calibration_counts` Array(UInt64),
    `calibration_score_nano` Array(Int64),
    `calibration_positives` Array(UInt64),
    `final` UInt8,
    `version` UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(window_start)
ORDER BY (window_start, window_ms, model, model_version, role, segment, source_partition);

CREATE TABLE IF NOT EXISTS prediction_log
(
    `model` LowCardinality(String),
    `model_version` LowCardinality(String),
    `role` LowCardinality(String),
    `prediction_id` String,
    `event_time` DateTime64(3, 'UTC'),
    `numbers` Map(LowCardinality(String), Float64),
    `categories` Map(LowCardinality(String), LowCardinality(String)),
    `score` Nullable(Float64),
    `latency_ms` Float64,
    `status` LowCardinality(String),
    `entity` String,
    `trace_id` String,
    `source_partition` UInt16,
    `source_offset` Int64,
    `source_row` UInt32
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(event_time)
ORDER BY (model, toDate(event_time), source_partition, source_offset, source_row);

CREATE TABLE IF NOT EXISTS label_log
(
    `model` LowCardinality(String),
    `prediction_id` String,
    `label` Float64,
    `label_time` DateTime64(3, 'UTC'),
    `revision` UInt32,
    `trace_id` String,
    `source_partition` UInt16,
    `source_offset` Int64,
    `source_row` UInt32
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(label_time)
ORDER BY (model, toDate(label_time), source_partition, source_offset, source_row);

CREATE TABLE IF NOT EXISTS signal_log
(
    `model` LowCardinality(String),
    `model_version` LowCardinality(String),
    `role` LowCardinality(String),
    `detector` LowCardinality(String),
    `kind` LowCardinality(String),
    `family` LowCardinality(String),
    `previous` LowCardinality(String),
    `state` LowCardinality(String),
    `score` Float64,
    `threshold` Float64,
    `column` LowCardinality(String),
    `event_time` DateTime64(3, 'UTC'),
    `document` String,
    `source_partition` UInt16,
    `source_offset` Int64,
    `source_row` UInt32
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(event_time)
ORDER BY (source_partition, source_offset, source_row);

CREATE TABLE IF NOT EXISTS alert_log
(
    `model` LowCardinality(String),
    `model_version` LowCardinality(String),
    `dedup_key` String,
    `status` LowCardinality(String),
    `severity` LowCardinality(String),
    `title` String,
    `cause` LowCardinality(String),
    `action` LowCardinality(String),
    `incident` String,
    `event_time` DateTime64(3, 'UTC'),
    `document` String,
    `source_partition` UInt16,
    `source_offset` Int64,
    `source_row` UInt32
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(event_time)
ORDER BY (source_partition, source_offset, source_row);

CREATE TABLE IF NOT EXISTS control_log
(
    `model` LowCardinality(String),
    `type` LowCardinality(String),
    `request_id` String,
    `model_version` LowCardinality(String),
    `cause` LowCardinality(String),
    `issued_by` LowCardinality(String),
    `event_time` DateTime64(3, 'UTC'),
    `document` String,
    `source_partition` UInt16,
    `source_offset` Int64,
    `source_row` UInt32
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(event_time)
ORDER BY (source_partition, source_offset, source_row);

CREATE TABLE IF NOT EXISTS deployment_log
(
    `model` LowCardinality(String),
    `revision` UInt64,
    `phase` LowCardinality(String),
    `stable` LowCardinality(String),
    `candidate` LowCardinality(String),
    `weights` Map(LowCardinality(String), Float64),
    `reason` String,
    `event_time` DateTime64(3, 'UTC'),
    `document` String,
    `source_partition` UInt16,
    `source_offset` Int64,
    `source_row` UInt32
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(event_time)
ORDER BY (source_partition, source_offset, source_row);

CREATE TABLE IF NOT EXISTS decision_log
(
    `model` LowCardinality(String),
    `decision_id` String,
    `kind` LowCardinality(String),
    `model_version` LowCardinality(String),
    `actor` LowCardinality(String),
    `request_id` String,
    `incident` String,
    `detail` String,
    `event_time` DateTime64(3, 'UTC'),
    `recorded` DateTime64(3, 'UTC'),
    `document` String,
    `source_partition` UInt16,
    `source_offset` Int64,
    `source_row` UInt32
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(event_time)
ORDER BY (source_partition, source_offset, source_row);

CREATE TABLE IF NOT EXISTS dead_letter_log
(
    `topic` LowCardinality(String),
    `bad_partition` UInt16,
    `bad_offset` Int64,
    `bad_row` UInt32,
    `reason` LowCardinality(String),
    `detail` String,
    `value_base64` String,
    `kafka_time` DateTime64(3, 'UTC'),
    `source_partition` UInt16,
    `source_offset` Int64,
    `source_row` UInt32
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(kafka_time)
ORDER BY (source_partition, source_offset, source_row);

CREATE TABLE IF NOT EXISTS archive_progress
(
    `topic` LowCardinality(String),
    `partition` UInt16,
    `next_offset` Int64,
    `event_time_ms` Int64
)
ENGINE = ReplacingMergeTree(next_offset)
ORDER BY (topic, partition);
