-- Where a prediction was answered: rollouts by regions are measured by it. Empty where services name no region.

ALTER TABLE prediction_log ADD COLUMN IF NOT EXISTS `region` LowCardinality(String) DEFAULT '' AFTER `trace_id`;

CREATE OR REPLACE VIEW predictions AS SELECT * FROM prediction_log FINAL;
