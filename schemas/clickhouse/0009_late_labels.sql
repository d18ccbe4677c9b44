-- Labels that come when their prediction is no longer in the monitor's memory: where they find it, and what they change.
--
-- label_index has what a loss is made of for each prediction that was counted, label_states each label that was joined to
-- it, both copied from `observations`. Both are ordered by the hash of the prediction's id, in small granules: a look-up reads
-- some hundred rows for each id. label_index_progress says up to which of a task's ticks the copy has come.

CREATE TABLE IF NOT EXISTS label_index
(
    `identity` UInt64,
    `model` LowCardinality(String),
    `source_partition` UInt16,
    `source_offset` Int64,
    `source_row` UInt32,
    `check` UInt32,
    `model_version` LowCardinality(String),
    `role` Int8,
    `event_time_ms` Int64,
    `score` Float64,
    `status` Int8,
    `segments` Array(Int32),
    `contract_hash` LowCardinality(String),
    `copied_time` DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(copied_time)
ORDER BY (identity, model, source_partition, source_offset, source_row)
SETTINGS index_granularity = 512;

CREATE TABLE IF NOT EXISTS label_states
(
    `identity` UInt64,
    `model` LowCardinality(String),
    `source_partition` UInt16,
    `source_offset` Int64,
    `source_row` UInt32,
    `revision` Int32,
    `label` Float64,
    `label_time_ms` Int64,
    `copied_time` DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(copied_time)
ORDER BY (identity, model, source_partition, source_offset, source_row, revision)
SETTINGS index_granularity = 512;

CREATE TABLE IF NOT EXISTS label_index_progress
(
    `partition` UInt16,
    `source` LowCardinality(String),
    `position` Int64
)
ENGINE = ReplacingMergeTree(position)
ORDER BY (partition, source);

-- A window's outcomes in parts: 0 is the window as it left memory, each other one what late labels have changed since. A
-- revision takes back what may stand in another part, so a part's counts may be negative.
ALTER TABLE window_outcomes
    ADD COLUMN IF NOT EXISTS `part` UInt64 AFTER `source_partition`,
    MODIFY ORDER BY (window_start, window_ms, model, model_version, role, segment, source_partition, part);

ALTER TABLE window_outcomes
    MODIFY COLUMN `true_positive` Int64,
    MODIFY COLUMN `false_positive` Int64,
    MODIFY COLUMN `true_negative` Int64,
    MODIFY COLUMN `false_negative` Int64,
    MODIFY COLUMN `positive_scores` Array(Int64),
    MODIFY COLUMN `negative_scores` Array(Int64),
    MODIFY COLUMN `calibration_counts` Array(Int64),
    MODIFY COLUMN `calibration_positives` Array(Int64);
