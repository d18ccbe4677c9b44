-- Views for analysts: one row a fact, replays and source partitions already merged. No FINAL is needed by whoever reads.

CREATE OR REPLACE VIEW windows AS
WITH arraySort(mapKeys(latency_map)) AS buckets,
     arrayCumSum(arrayMap(b -> latency_map[b], buckets)) AS reached
SELECT window_start, window_ms, model, model_version, role, segment,
       predictions, errors, fallbacks, late, positives, payload_bytes,
       latency_sum_us / nullIf(predictions, 0) / 1000 AS latency_mean_ms,
       if(empty(reached), 0, 2 * pow(1.02, buckets[arrayFirstIndex(c -> c >= 0.5 * reached[-1], reached)]) / 2.02 / 1000) AS latency_p50_ms,
       if(empty(reached), 0, 2 * pow(1.02, buckets[arrayFirstIndex(c -> c >= 0.99 * reached[-1], reached)]) / 2.02 / 1000) AS latency_p99_ms,
       errors / nullIf(predictions, 0) AS error_rate,
       score_histogram, closed
FROM
(
    SELECT window_start, window_ms, model, model_version, role, segment,
           sum(c.predictions) AS predictions, sum(c.errors) AS errors, sum(c.fallbacks) AS fallbacks, sum(c.late) AS late,
           sum(c.positives) AS positives, sum(c.payload_bytes) AS payload_bytes, sum(c.latency_sum_us) AS latency_sum_us,
           sumMap(c.latency_buckets) AS latency_map, sumForEach(c.score_histogram) AS score_histogram, min(c.closed) AS closed
    FROM window_counts AS c FINAL
    GROUP BY window_start, window_ms, model, model_version, role, segment
);

CREATE OR REPLACE VIEW feature_windows AS
SELECT window_start, window_ms, model, model_version, role, segment, feature,
       sum(f.rows) AS rows, sum(f.missing) AS missing, sum(f.invalid) AS invalid,
       sum(f.missing) / nullIf(sum(f.rows), 0) AS missing_rate,
       sum(f.invalid) / nullIf(sum(f.rows), 0) AS invalid_rate,
       sum(f.sum_micro) / 1000000 / nullIf(sum(f.rows) - sum(f.missing), 0) AS mean,
       min(f.low) AS low, max(f.high) AS high,
       any(f.edges) AS edges, sumForEach(f.histogram) AS histogram, sumMap(f.categories) AS categories
FROM window_features AS f FINAL
GROUP BY window_start, window_ms, model, model_version, role, segment, feature;

CREATE OR REPLACE VIEW accuracy AS
SELECT window_start, window_ms, model, model_version, role, segment,
       predictions, labelled, labelled / nullIf(predictions, 0) AS labelled_share, revisions,
       if(final, 'final', 'partial') AS maturity,
       true_positive, false_positive, true_negative, false_negative,
       (true_positive + true_negative) / nullIf(labelled, 0) AS accuracy,
       true_positive / nullIf(true_positive + false_positive, 0) AS precision,
       true_positive / nullIf(true_positive + false_negative, 0) AS recall,
       2 * true_positive / nullIf(2 * true_positive + false_positive + false_negative, 0) AS f1,
       log_loss_nano / 1e9 / nullIf(labelled, 0) AS log_loss,
       brier_nano / 1e9 / nullIf(labelled, 0) AS brier,
       arraySum(arrayMap((p, n, c) -> p * (c - n / 2), positive_scores, negative_scores, arrayCumSum(negative_scores)))
           / nullIf(arraySum(positive_scores) * arraySum(negative_scores), 0) AS auc,
       arraySum(arrayMap((s, p) -> abs(s / 1e9 - p), calibration_score_nano, calibration_positives))
           / nullIf(labelled, 0) AS calibration_error,
       positive_scores, negative_scores, calibration_counts, calibration_score_nano, calibration_positives
FROM
(
    SELECT window_start, window_ms, model, model_version, role, segment,
           sum(o.predictions) AS predictions, sum(o.labelled) AS labelled, sum(o.revisions) AS revisions,
           sum(o.true_positive) AS true_positive, sum(o.false_positive) AS false_positive,
           sum(o.true_negative) AS true_negative, sum(o.false_negative) AS false_negative,
           sum(o.log_loss_nano) AS log_loss_nano, sum(o.brier_nano) AS brier_nano,
           sumForEach(o.positive_scores) AS positive_scores, sumForEach(o.negative_scores) AS negative_scores,
           sumForEach(o.calibration_counts) AS calibration_counts,
           sumForEach(o.calibration_score_nano) AS calibration_score_nano,
           sumForEach(o.calibration_positives) AS calibration_positives,
           min(o.final) AS final
    FROM window_outcomes AS o FINAL
    GROUP BY window_start, window_ms, model, model_version, role, segment
);

CREATE OR REPLACE VIEW predictions AS SELECT * FROM prediction_log FINAL;

CREATE OR REPLACE VIEW labels AS
SELECT model, prediction_id, argMax(label, r) AS label, argMax(label_time, r) AS label_time, max(r) AS revision
FROM (SELECT *, revision AS r FROM label_log FINAL)
GROUP BY model, prediction_id;

CREATE OR REPLACE VIEW outcomes AS
SELECT p.model AS model, p.model_version AS model_version, p.role AS role, p.prediction_id AS prediction_id,
       p.event_time AS event_time, p.score AS score, l.label AS label, l.label_time AS label_time, l.revision AS revision
FROM predictions AS p INNER JOIN labels AS l ON p.model = l.model AND p.prediction_id = l.prediction_id;

CREATE OR REPLACE VIEW signals AS SELECT * FROM signal_log FINAL;

CREATE OR REPLACE VIEW alerts AS SELECT * FROM alert_log FINAL;

CREATE OR REPLACE VIEW commands AS SELECT * FROM control_log FINAL;

CREATE OR REPLACE VIEW deployments AS SELECT * FROM deployment_log FINAL;

CREATE OR REPLACE VIEW decisions AS SELECT *, model_version AS version FROM decision_log FINAL;

CREATE OR REPLACE VIEW dead_letters AS SELECT * FROM dead_letter_log FINAL;
