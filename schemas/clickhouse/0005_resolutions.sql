-- One view a kind of fact for every resolution: column `resolution` is window (as counted), hopping (overlapping windows,
-- put together from their steps), minute, hour or day. A query of one resolution reads nothing for the others.
--
-- A window is in a minute, hour or day when its length divides that: daily windows are in no hour. Sums are made when they
-- are asked for: a view that feeds on inserts would count a replay twice. What is put together is closed (final) when all
-- of its parts are and the archive has passed its end.

CREATE OR REPLACE VIEW windows_all AS
WITH arraySort(mapKeys(latency_map)) AS buckets,
     arrayCumSum(arrayMap(b -> latency_map[b], buckets)) AS reached,
     (SELECT min(reached) FROM (SELECT max(event_time_ms) AS reached FROM archive_progress WHERE topic = 'predictions' GROUP BY partition)) AS reached_ms
SELECT resolution, window_start, window_ms, model, model_version, role, segment,
       predictions, errors, fallbacks, late, positives, payload_bytes,
       latency_sum_us / nullIf(predictions, 0) / 1000 AS latency_mean_ms,
       if(empty(reached), 0, 2 * pow(1.02, buckets[arrayFirstIndex(c -> c >= 0.5 * reached[-1], reached)]) / 2.02 / 1000) AS latency_p50_ms,
       if(empty(reached), 0, 2 * pow(1.02, buckets[arrayFirstIndex(c -> c >= 0.99 * reached[-1], reached)]) / 2.02 / 1000) AS latency_p99_ms,
       errors / nullIf(predictions, 0) AS error_rate,
       score_histogram,
       toUInt8(closed_parts AND (resolution = 'window' OR reached_ms >= toUnixTimestamp64Milli(window_start) + window_ms)) AS closed
FROM
(
    SELECT 'window' AS resolution, c.window_start AS window_start, c.window_ms AS window_ms, model, model_version, role, segment,
           sum(c.predictions) AS predictions, sum(c.errors) AS errors, sum(c.fallbacks) AS fallbacks, sum(c.late) AS late,
           sum(c.positives) AS positives, sum(c.payload_bytes) AS payload_bytes, sum(c.latency_sum_us) AS latency_sum_us,
           sumMap(c.latency_buckets) AS latency_map, sumForEach(c.score_histogram) AS score_histogram, min(c.closed) AS closed_parts
    FROM window_counts AS c FINAL
    GROUP BY window_start, window_ms, model, model_version, role, segment
    UNION ALL
    SELECT 'hopping' AS resolution, c.start AS window_start, c.span_ms AS window_ms, model, model_version, role, segment,
           sum(c.predictions) AS predictions, sum(c.errors) AS errors, sum(c.fallbacks) AS fallbacks, sum(c.late) AS late,
           sum(c.positives) AS positives, sum(c.payload_bytes) AS payload_bytes, sum(c.latency_sum_us) AS latency_sum_us,
           sumMap(c.latency_buckets) AS latency_map, sumForEach(c.score_histogram) AS score_histogram, min(c.closed) AS closed_parts
    FROM
    (
        SELECT *, window_start - toIntervalMillisecond(window_ms * arrayJoin(range(intDiv(span_ms, window_ms)))) AS start
        FROM window_counts FINAL WHERE span_ms > window_ms
    ) AS c
    GROUP BY window_start, window_ms, model, model_version, role, segment
    UNION ALL
    SELECT 'minute' AS resolution, toStartOfMinute(c.window_start) AS window_start, toUInt64(60000) AS window_ms, model, model_version, role, segment,
           sum(c.predictions) AS predictions, sum(c.errors) AS errors, sum(c.fallbacks) AS fallbacks, sum(c.late) AS late,
           sum(c.positives) AS positives, sum(c.payload_bytes) AS payload_bytes, sum(c.latency_sum_us) AS latency_sum_us,
           sumMap(c.latency_buckets) AS latency_map, sumForEach(c.score_histogram) AS score_histogram, min(c.closed) AS closed_parts
    FROM window_counts AS c FINAL WHERE 60000 % c.window_ms = 0
    GROUP BY window_start, model, model_version, role, segment
    UNION ALL
    SELECT 'hour' AS resolution, toStartOfHour(c.window_start) AS window_start, toUInt64(3600000) AS window_ms, model, model_version, role, segment,
           sum(c.predictions) AS predictions, sum(c.errors) AS errors, sum(c.fallbacks) AS fallbacks, sum(c.late) AS late,
           sum(c.positives) AS positives, sum(c.payload_bytes) AS payload_bytes, sum(c.latency_sum_us) AS latency_sum_us,
           sumMap(c.latency_buckets) AS latency_map, sumForEach(c.score_histogram) AS score_histogram, min(c.closed) AS closed_parts
    FROM window_counts AS c FINAL WHERE 3600000 % c.window_ms = 0
    GROUP BY window_start, model, model_version, role, segment
    UNION ALL
    SELECT 'day' AS resolution, toStartOfDay(c.window_start) AS window_start, toUInt64(86400000) AS window_ms, model, model_version, role, segment,
           sum(c.predictions) AS predictions, sum(c.errors) AS errors, sum(c.fallbacks) AS fallbacks, sum(c.late) AS late,
           sum(c.positives) AS positives, sum(c.payload_bytes) AS payload_bytes, sum(c.latency_sum_us) AS latency_sum_us,
           sumMap(c.latency_buckets) AS latency_map, sumForEach(c.score_histogram) AS score_histogram, min(c.closed) AS closed_parts
    FROM window_counts AS c FINAL WHERE 86400000 % c.window_ms = 0
    GROUP BY window_start, model, model_version, role, segment
);

CREATE OR REPLACE VIEW feature_windows_all AS
SELECT resolution, window_start, window_ms, model, model_version, role, segment, feature, rows, missing, invalid,
       missing / nullIf(rows, 0) AS missing_rate,
       invalid / nullIf(rows, 0) AS invalid_rate,
       sum_micro / 1000000 / nullIf(rows - missing, 0) AS mean,
       low, high, edges, histogram, categories
FROM
(
    SELECT 'window' AS resolution, f.window_start AS window_start, f.window_ms AS window_ms, model, model_version, role, segment, feature,
           sum(f.rows) AS rows, sum(f.missing) AS missing, sum(f.invalid) AS invalid, sum(f.sum_micro) AS sum_micro,
           min(f.low) AS low, max(f.high) AS high, any(f.edges) AS edges,
           if(uniqExact(f.edges) = 1, sumForEach(f.histogram), []) AS histogram, sumMap(f.categories) AS categories
    FROM window_features AS f FINAL
    GROUP BY window_start, window_ms, model, model_version, role, segment, feature
    UNION ALL
    SELECT 'hopping' AS resolution, f.start AS window_start, f.span_ms AS window_ms, model, model_version, role, segment, feature,
           sum(f.rows) AS rows, sum(f.missing) AS missing, sum(f.invalid) AS invalid, sum(f.sum_micro) AS sum_micro,
           min(f.low) AS low, max(f.high) AS high, any(f.edges) AS edges,
           if(uniqExact(f.edges) = 1, sumForEach(f.histogram), []) AS histogram, sumMap(f.categories) AS categories
    FROM
    (
        SELECT *, window_start - toIntervalMillisecond(window_ms * arrayJoin(range(intDiv(span_ms, window_ms)))) AS start
        FROM window_features FINAL WHERE span_ms > window_ms
    ) AS f
    GROUP BY window_start, window_ms, model, model_version, role, segment, feature
    UNION ALL
    SELECT 'minute' AS resolution, toStartOfMinute(f.window_start) AS window_start, toUInt64(60000) AS window_ms, model, model_version, role, segment, feature,
           sum(f.rows) AS rows, sum(f.missing) AS missing, sum(f.invalid) AS invalid, sum(f.sum_micro) AS sum_micro,
           min(f.low) AS low, max(f.high) AS high, any(f.edges) AS edges,
           if(uniqExact(f.edges) = 1, sumForEach(f.histogram), []) AS histogram, sumMap(f.categories) AS categories
    FROM window_features AS f FINAL WHERE 60000 % f.window_ms = 0
    GROUP BY window_start, model, model_version, role, segment, feature
    UNION ALL
    SELECT 'hour' AS resolution, toStartOfHour(f.window_start) AS window_start, toUInt64(3600000) AS window_ms, model, model_version, role, segment, feature,
           sum(f.rows) AS rows, sum(f.missing) AS missing, sum(f.invalid) AS invalid, sum(f.sum_micro) AS sum_micro,
           min(f.low) AS low, max(f.high) AS high, any(f.edges) AS edges,
           if(uniqExact(f.edges) = 1, sumForEach(f.histogram), []) AS histogram, sumMap(f.categories) AS categories
    FROM window_features AS f FINAL WHERE 3600000 % f.window_ms = 0
    GROUP BY window_start, model, model_version, role, segment, feature
    UNION ALL
    SELECT 'day' AS resolution, toStartOfDay(f.window_start) AS window_start, toUInt64(86400000) AS window_ms, model, model_version, role, segment, feature,
           sum(f.rows) AS rows, sum(f.missing) AS missing, sum(f.invalid) AS invalid, sum(f.sum_micro) AS sum_micro,
           min(f.low) AS low, max(f.high) AS high, any(f.edges) AS edges,
           if(uniqExact(f.edges) = 1, sumForEach(f.histogram), []) AS histogram, sumMap(f.categories) AS categories
    FROM window_features AS f FINAL WHERE 86400000 % f.window_ms = 0
    GROUP BY window_start, model, model_version, role, segment, feature
);

CREATE OR REPLACE VIEW accuracy_all AS
WITH (SELECT min(reached) FROM (SELECT max(event_time_ms) AS reached FROM archive_progress WHERE topic = 'predictions' GROUP BY partition)) AS reached_ms
SELECT resolution, window_start, window_ms, model, model_version, role, segment,
       predictions, labelled, labelled / nullIf(predictions, 0) AS labelled_share, revisions,
       multiIf(final_parts AND (resolution = 'window' OR reached_ms >= toUnixTimestamp64Milli(window_start) + window_ms), 'final',
               labelled = 0, 'estimated', 'partial') AS maturity,
       true_positive, false_positive, true_negative, false_negative,
       (true_positive + true_negative) / nullIf(labelled, 0) AS accuracy,
       true_positive / nullIf(true_positive + false_positive, 0) AS precision,
       true_positive / nullIf(true_positive + false_negative, 0) AS recall,
       2 * true_positive / nullIf(2 * true_positive + false_positive + false_negative, 0) AS f1,
       log_loss_nano / 1e9 / nullIf(labelled, 0) AS log_loss,
       brier_nano / 1e9 / nullIf(labelled, 0) AS brier,
       arraySum(arrayMap((p, n, c) -> p * (c - n / 2), positive_scores, negative_scores, arrayCumSum(negative_scores)))
           / nullIf(arraySum(positive_scores) * arraySum(negative_scores), 0) AS auc,
       arraySum(arrayMap((p, n) -> p * n, positive_scores, negative_scores)) / 2
           / nullIf(arraySum(positive_scores) * arraySum(negative_scores), 0) AS auc_error,
       arraySum(arrayMap((s, p) -> abs(s / 1e9 - p), calibration_score_nano, calibration_positives))
           / nullIf(labelled, 0) AS calibration_error,
       positive_scores, negative_scores, calibration_counts, calibration_score_nano, calibration_positives,
       if(labelled > 0, fromUnixTimestamp64Milli(first_label_ms, 'UTC'), NULL) AS first_label_time,
       if(labelled > 0, fromUnixTimestamp64Milli(last_label_ms, 'UTC'), NULL) AS last_label_time,
       if(maturity = 'final', fromUnixTimestamp64Milli(final_ms, 'UTC'), NULL) AS final_time
FROM
(
    SELECT 'window' AS resolution, o.window_start AS window_start, o.window_ms AS window_ms, model, model_version, role, segment,
           sum(o.predictions) AS predictions, sum(o.labelled) AS labelled, sum(o.revisions) AS revisions,
           sum(o.true_positive) AS true_positive, sum(o.false_positive) AS false_positive,
           sum(o.true_negative) AS true_negative, sum(o.false_negative) AS false_negative,
           sum(o.log_loss_nano) AS log_loss_nano, sum(o.brier_nano) AS brier_nano,
           sumForEach(o.positive_scores) AS positive_scores, sumForEach(o.negative_scores) AS negative_scores,
           sumForEach(o.calibration_counts) AS calibration_counts,
           sumForEach(o.calibration_score_nano) AS calibration_score_nano,
           sumForEach(o.calibration_positives) AS calibration_positives,
           minIf(o.first_label_ms, o.first_label_ms > 0) AS first_label_ms, max(o.last_label_ms) AS last_label_ms,
           max(o.final_ms) AS final_ms, min(o.final) AS final_parts
    FROM window_outcomes AS o FINAL
    GROUP BY window_start, window_ms, model, model_version, role, segment
    UNION ALL
    SELECT 'hopping' AS resolution, o.start AS window_start, o.span_ms AS window_ms, model, model_version, role, segment,
           sum(o.predictions) AS predictions, sum(o.labelled) AS labelled, sum(o.revisions) AS revisions,
           sum(o.true_positive) AS true_positive, sum(o.false_positive) AS false_positive,
           sum(o.true_negative) AS true_negative, sum(o.false_negative) AS false_negative,
           sum(o.log_loss_nano) AS log_loss_nano, sum(o.brier_nano) AS brier_nano,
           sumForEach(o.positive_scores) AS positive_scores, sumForEach(o.negative_scores) AS negative_scores,
           sumForEach(o.calibration_counts) AS calibration_counts,
           sumForEach(o.calibration_score_nano) AS calibration_score_nano,
           sumForEach(o.calibration_positives) AS calibration_positives,
           minIf(o.first_label_ms, o.first_label_ms > 0) AS first_label_ms, max(o.last_label_ms) AS last_label_ms,
           max(o.final_ms) AS final_ms, min(o.final) AS final_parts
    FROM
    (
        SELECT *, window_start - toIntervalMillisecond(window_ms * arrayJoin(range(intDiv(span_ms, window_ms)))) AS start
        FROM window_outcomes FINAL WHERE span_ms > window_ms
    ) AS o
    GROUP BY window_start, window_ms, model, model_version, role, segment
    UNION ALL
    SELECT 'minute' AS resolution, toStartOfMinute(o.window_start) AS window_start, toUInt64(60000) AS window_ms, model, model_version, role, segment,
           sum(o.predictions) AS predictions, sum(o.labelled) AS labelled, sum(o.revisions) AS revisions,
           sum(o.true_positive) AS true_positive, sum(o.false_positive) AS false_positive,
           sum(o.true_negative) AS true_negative, sum(o.false_negative) AS false_negative,
           sum(o.log_loss_nano) AS log_loss_nano, sum(o.brier_nano) AS brier_nano,
           sumForEach(o.positive_scores) AS positive_scores, sumForEach(o.negative_scores) AS negative_scores,
           sumForEach(o.calibration_counts) AS calibration_counts,
           sumForEach(o.calibration_score_nano) AS calibration_score_nano,
           sumForEach(o.calibration_positives) AS calibration_positives,
           minIf(o.first_label_ms, o.first_label_ms > 0) AS first_label_ms, max(o.last_label_ms) AS last_label_ms,
           max(o.final_ms) AS final_ms, min(o.final) AS final_parts
    FROM window_outcomes AS o FINAL WHERE 60000 % o.window_ms = 0
    GROUP BY window_start, model, model_version, role, segment
    UNION ALL
    SELECT 'hour' AS resolution, toStartOfHour(o.window_start) AS window_start, toUInt64(3600000) AS window_ms, model, model_version, role, segment,
           sum(o.predictions) AS predictions, sum(o.labelled) AS labelled, sum(o.revisions) AS revisions,
           sum(o.true_positive) AS true_positive, sum(o.false_positive) AS false_positive,
           sum(o.true_negative) AS true_negative, sum(o.false_negative) AS false_negative,
           sum(o.log_loss_nano) AS log_loss_nano, sum(o.brier_nano) AS brier_nano,
           sumForEach(o.positive_scores) AS positive_scores, sumForEach(o.negative_scores) AS negative_scores,
           sumForEach(o.calibration_counts) AS calibration_counts,
           sumForEach(o.calibration_score_nano) AS calibration_score_nano,
           sumForEach(o.calibration_positives) AS calibration_positives,
           minIf(o.first_label_ms, o.first_label_ms > 0) AS first_label_ms, max(o.last_label_ms) AS last_label_ms,
           max(o.final_ms) AS final_ms, min(o.final) AS final_parts
    FROM window_outcomes AS o FINAL WHERE 3600000 % o.window_ms = 0
    GROUP BY window_start, model, model_version, role, segment
    UNION ALL
    SELECT 'day' AS resolution, toStartOfDay(o.window_start) AS window_start, toUInt64(86400000) AS window_ms, model, model_version, role, segment,
           sum(o.predictions) AS predictions, sum(o.labelled) AS labelled, sum(o.revisions) AS revisions,
           sum(o.true_positive) AS true_positive, sum(o.false_positive) AS false_positive,
           sum(o.true_negative) AS true_negative, sum(o.false_negative) AS false_negative,
           sum(o.log_loss_nano) AS log_loss_nano, sum(o.brier_nano) AS brier_nano,
           sumForEach(o.positive_scores) AS positive_scores, sumForEach(o.negative_scores) AS negative_scores,
           sumForEach(o.calibration_counts) AS calibration_counts,
           sumForEach(o.calibration_score_nano) AS calibration_score_nano,
           sumForEach(o.calibration_positives) AS calibration_positives,
           minIf(o.first_label_ms, o.first_label_ms > 0) AS first_label_ms, max(o.last_label_ms) AS last_label_ms,
           max(o.final_ms) AS final_ms, min(o.final) AS final_parts
    FROM window_outcomes AS o FINAL WHERE 86400000 % o.window_ms = 0
    GROUP BY window_start, model, model_version, role, segment
);

CREATE OR REPLACE VIEW windows AS SELECT * EXCEPT (resolution) FROM windows_all WHERE resolution = 'window';

CREATE OR REPLACE VIEW feature_windows AS SELECT * EXCEPT (resolution) FROM feature_windows_all WHERE resolution = 'window';

CREATE OR REPLACE VIEW accuracy AS SELECT * EXCEPT (resolution) FROM accuracy_all WHERE resolution = 'window';
