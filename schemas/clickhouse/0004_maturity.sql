-- What a partial figure is corrected by: labels and losses of each class, and when they came. Delays are counted in
-- buckets of 5 % of the time since the window's start. And the length of the hopping windows a row is a step of.

ALTER TABLE window_counts
    ADD COLUMN IF NOT EXISTS `span_ms` UInt64 DEFAULT window_ms AFTER `score_histogram`;

ALTER TABLE window_features
    ADD COLUMN IF NOT EXISTS `span_ms` UInt64 DEFAULT window_ms AFTER `categories`;

ALTER TABLE window_outcomes
    ADD COLUMN IF NOT EXISTS `positive_log_loss_nano` Int64 AFTER `calibration_positives`,
    ADD COLUMN IF NOT EXISTS `positive_brier_nano` Int64 AFTER `positive_log_loss_nano`,
    ADD COLUMN IF NOT EXISTS `positive_delays` Map(Int16, UInt64) AFTER `positive_brier_nano`,
    ADD COLUMN IF NOT EXISTS `negative_delays` Map(Int16, UInt64) AFTER `positive_delays`,
    ADD COLUMN IF NOT EXISTS `first_label_ms` Int64 AFTER `negative_delays`,
    ADD COLUMN IF NOT EXISTS `last_label_ms` Int64 AFTER `first_label_ms`,
    ADD COLUMN IF NOT EXISTS `final_ms` Int64 AFTER `last_label_ms`,
    ADD COLUMN IF NOT EXISTS `settled_ms` Int64 AFTER `final_ms`,
    ADD COLUMN IF NOT EXISTS `span_ms` UInt64 DEFAULT window_ms AFTER `settled_ms`;
