-- How good is a model now, when labels are hours or weeks behind and do not come at random?
--
-- live_accuracy has one row a window with all that is known of it: an estimate from the scores alone, the naive figure of the
-- labels so far, the figure corrected for labels that come late for a reason, and the final one; and since when each holds.
--
-- The correction. Of class c (positive, negative) labels_c are in when the window is `age` old. Settled windows say which
-- part of that class's labels is in at that age (arrived_c) and how many of a class come per prediction (rate_c). Labels
-- still to come of class c are the posterior mean of a Poisson count with a gamma prior that weighs like a tenth of a window:
--     due_c = (1 - arrived_c) * (labels_c + rate_c * predictions / 10) / (arrived_c + 1 / 10)
-- With much in hand that is the inverse probability weight labels_c / arrived_c; with little it leans on the rate, which
-- bounds what one label may weigh. All that is due is never more than the predictions so far without a label. Those still to come
-- are taken to fare as those of their class that are in (and, with the weight of five labels, as those of settled windows).
-- History is the 28 days of settled windows before: the segment's own with 50 labels of each class, else the whole model's,
-- else there is none and the corrected figure is the naive one, and says so (`correction`).
--
-- The estimate. Expected accuracy and loss given the score (CBPE), calibrated on the version's settled windows by 20 score
-- bins; a version without 200 settled labels is taken at its word, and the row says so (`estimate`).
--
-- "Now" is the newest label's time, as far as the archive has come: a broken feed of labels is not taken for silence.

CREATE OR REPLACE VIEW label_delay_history AS
SELECT model, window_ms, segment, ready_ms, past.positives >= 50 AND past.negatives >= 50 AS enough,
       CAST((sum(predictions) OVER days, sum(positives) OVER days, sum(negatives) OVER days,
             sum(true_positive) OVER days, sum(true_negative) OVER days,
             sum(positive_log_loss) OVER days, sum(negative_log_loss) OVER days,
             sum(positive_brier) OVER days, sum(negative_brier) OVER days,
             sumMap(delays_of_positives) OVER days, sumMap(delays_of_negatives) OVER days),
            'Tuple(predictions Float64, positives Float64, negatives Float64, true_positive Float64, true_negative Float64,
                   positive_log_loss Float64, negative_log_loss Float64, positive_brier Float64, negative_brier Float64,
                   positive_delays Map(Int16, UInt64), negative_delays Map(Int16, UInt64))') AS past
FROM
(
    SELECT model, window_ms, segment, intDiv(toUnixTimestamp64Milli(window_start), greatest(window_ms, 86400000)) AS day,
           max(settled_ms) AS ready_ms, sum(o.predictions) AS predictions,
           sum(o.true_positive + o.false_negative) AS positives, sum(o.true_negative + o.false_positive) AS negatives,
           sum(o.true_positive) AS true_positive, sum(o.true_negative) AS true_negative,
           sum(o.positive_log_loss_nano) AS positive_log_loss, sum(o.log_loss_nano) - positive_log_loss AS negative_log_loss,
           sum(o.positive_brier_nano) AS positive_brier, sum(o.brier_nano) - positive_brier AS negative_brier,
           sumMap(o.positive_delays) AS delays_of_positives, sumMap(o.negative_delays) AS delays_of_negatives
    FROM window_outcomes AS o FINAL
    WHERE settled_ms > 0 AND role != 'shadow'
    GROUP BY model, window_ms, segment, day
)
WINDOW days AS (PARTITION BY model, window_ms, segment ORDER BY day RANGE BETWEEN 27 PRECEDING AND CURRENT ROW);

CREATE OR REPLACE VIEW calibration_history AS
SELECT model, model_version, ready_ms,
       sumForEach(d.rows) OVER days AS past_rows, sumForEach(d.positives) OVER days AS past_positives,
       sumForEach(d.log_losses) OVER days AS past_log_losses, sumForEach(d.briers) OVER days AS past_briers
FROM
(
    WITH arrayMap(f -> (f + 0.5) / 200, range(200)) AS score,
         x -> arrayMap(b -> arraySum(arraySlice(x, 10 * b + 1, 10)), range(20)) AS coarse
    SELECT model, model_version, intDiv(toUnixTimestamp64Milli(window_start), 86400000) AS day, max(settled_ms) AS ready_ms,
           sumForEach(o.positive_scores) AS p, sumForEach(o.negative_scores) AS n,
           coarse(arrayMap((a, b) -> a + b, p, n)) AS rows, coarse(p) AS positives,
           coarse(arrayMap((a, b, s) -> -a * log(s) - b * log(1 - s), p, n, score)) AS log_losses,
           coarse(arrayMap((a, b, s) -> a * pow(1 - s, 2) + b * pow(s, 2), p, n, score)) AS briers
    FROM window_outcomes AS o FINAL
    WHERE settled_ms > 0 AND role != 'shadow' AND segment = ''
    GROUP BY model, model_version, day
) AS d
WINDOW days AS (PARTITION BY model, model_version ORDER BY day RANGE BETWEEN 27 PRECEDING AND CURRENT ROW);

-- Of each window its figures so far, and what was known of labels and scores: for live_accuracy.
CREATE OR REPLACE VIEW live_accuracy_inputs AS
SELECT f.window_start AS window_start, f.window_ms AS window_ms, f.model AS model, f.model_version AS model_version,
       f.role AS role, f.segment AS segment, f.* EXCEPT (window_start, window_ms, model, model_version, role, segment),
       c.positives AS positives, c.score_histogram AS score_histogram, clock.clock_ms - toUnixTimestamp64Milli(f.window_start) AS age_ms,
       multiIf(own.enough AND f.segment != '', 'segment', whole.enough, 'model', 'naive') AS history,
       if(own.enough, own.past, whole.past) AS past,
       arrayResize(k.past_rows, 20) AS past_rows, arrayResize(k.past_positives, 20) AS past_positives, arrayResize(k.past_log_losses, 20) AS past_log_losses, arrayResize(k.past_briers, 20) AS past_briers
FROM
(
    SELECT window_start, window_ms, model, model_version, role, segment,
           toUnixTimestamp64Milli(window_start) + toInt64(window_ms) AS end_ms,
           toInt64(sum(o.predictions)) AS predictions, toInt64(sum(o.labelled)) AS labelled,
           sum(o.true_positive) AS true_positive, sum(o.false_positive) AS false_positive,
           sum(o.true_negative) AS true_negative, sum(o.false_negative) AS false_negative,
           sum(o.log_loss_nano) AS log_loss_nano, sum(o.brier_nano) AS brier_nano,
           sum(o.positive_log_loss_nano) AS positive_log_loss_nano, sum(o.positive_brier_nano) AS positive_brier_nano,
           minIf(o.first_label_ms, o.first_label_ms > 0) AS first_label_ms, max(o.last_label_ms) AS last_label_ms,
           max(o.final_ms) AS final_ms, multiIf(min(o.final), 'final', labelled = 0, 'estimated', 'partial') AS maturity
    FROM window_outcomes AS o FINAL
    GROUP BY window_start, window_ms, model, model_version, role, segment
) AS f
INNER JOIN
(
    SELECT window_start, window_ms, model, model_version, role, segment,
           toInt64(sum(w.positives)) AS positives, sumForEach(w.score_histogram) AS score_histogram
    FROM window_counts AS w FINAL
    GROUP BY window_start, window_ms, model, model_version, role, segment
) AS c
    ON f.window_start = c.window_start AND f.window_ms = c.window_ms AND f.model = c.model
    AND f.model_version = c.model_version AND f.role = c.role AND f.segment = c.segment
INNER JOIN
(
    SELECT model,
           least(max(last_label_ms), ifNull((SELECT minOrNull(reached) FROM (SELECT max(event_time_ms) AS reached FROM archive_progress
                                             WHERE topic = 'feedback' GROUP BY partition)), max(last_label_ms))) AS clock_ms
    FROM window_outcomes
    GROUP BY model
) AS clock ON f.model = clock.model
ASOF LEFT JOIN label_delay_history AS own
    ON f.model = own.model AND f.window_ms = own.window_ms AND f.segment = own.segment AND clock.clock_ms >= own.ready_ms
ASOF LEFT JOIN (SELECT * FROM label_delay_history WHERE segment = '') AS whole
    ON f.model = whole.model AND f.window_ms = whole.window_ms AND clock.clock_ms >= whole.ready_ms
ASOF LEFT JOIN calibration_history AS k
    ON f.model = k.model AND f.model_version = k.model_version AND f.end_ms >= k.ready_ms;

CREATE OR REPLACE VIEW live_accuracy AS
SELECT window_start, window_ms, model, model_version, role, segment,
       predictions, labelled, labelled / nullIf(predictions, 0) AS labelled_share, labels_expected,
       labelled / nullIf(labels_expected, 0) AS labels_in, maturity,
       multiIf(maturity = 'final', 'final', labelled = 0, 'none', history) AS correction,
       if(calibrated, 'calibrated', 'scores as they are') AS estimate,
       if(labelled = 0, estimated_accuracy, corrected_accuracy) AS accuracy,
       if(labelled = 0, estimated_log_loss, corrected_log_loss) AS log_loss,
       if(labelled = 0, estimated_brier, corrected_brier) AS brier,
       estimated_accuracy, estimated_log_loss, estimated_brier,
       (true_positive + true_negative) / nullIf(labelled, 0) AS naive_accuracy,
       log_loss_nano / 1e9 / nullIf(labelled, 0) AS naive_log_loss,
       brier_nano / 1e9 / nullIf(labelled, 0) AS naive_brier,
       if(labelled = 0, NULL, (true_positive_all + true_negative_all) / labels_expected) AS corrected_accuracy,
       if(labelled = 0, NULL, log_loss_all / 1e9 / labels_expected) AS corrected_log_loss,
       if(labelled = 0, NULL, brier_all / 1e9 / labels_expected) AS corrected_brier,
       if(labelled = 0, NULL, true_positive_all / nullIf(true_positive_all + negative + negative_due - true_negative_all, 0)) AS corrected_precision,
       if(labelled = 0, NULL, true_positive_all / nullIf(positive + positive_due, 0)) AS corrected_recall,
       window_start + toIntervalMillisecond(window_ms) AS estimated_since,
       if(labelled > 0, fromUnixTimestamp64Milli(first_label_ms, 'UTC'), NULL) AS partial_since,
       if(labelled > 0, fromUnixTimestamp64Milli(last_label_ms, 'UTC'), NULL) AS last_label_time,
       if(maturity = 'final', fromUnixTimestamp64Milli(final_ms, 'UTC'), NULL) AS final_since
FROM
(
    -- How what is due will fare: as its class fares here, with the weight of five labels from the history.
    WITH (due, here, n, there, m) -> if(due > 0, due * (here + 5 * there / m) / (n + 5), 0) AS fares
    SELECT *, labelled + positive_due + negative_due AS labels_expected,
           true_positive + fares(positive_due, true_positive, positive, past.true_positive, past.positives) AS true_positive_all,
           true_negative + fares(negative_due, true_negative, negative, past.true_negative, past.negatives) AS true_negative_all,
           log_loss_nano + fares(positive_due, positive_log_loss_nano, positive, past.positive_log_loss, past.positives)
               + fares(negative_due, log_loss_nano - positive_log_loss_nano, negative, past.negative_log_loss, past.negatives) AS log_loss_all,
           brier_nano + fares(positive_due, positive_brier_nano, positive, past.positive_brier, past.positives)
               + fares(negative_due, brier_nano - positive_brier_nano, negative, past.negative_brier, past.negatives) AS brier_all,
           arraySum((h, yes, c) -> h * (yes * c + (1 - yes) * (1 - c)), score_histogram, answered_yes, chance) / nullIf(scored, 0) AS estimated_accuracy,
           arraySum((h, l) -> h * l, score_histogram, log_loss_of) / nullIf(scored, 0) AS estimated_log_loss,
           arraySum((h, l) -> h * l, score_histogram, brier_of) / nullIf(scored, 0) AS estimated_brier
    FROM
    (
        SELECT *,
               if(as_it_is, 0, least(1, (predictions - labelled) / (positive_wanted + negative_wanted))) AS part,
               if(as_it_is, 0, part * positive_wanted) AS positive_due, if(as_it_is, 0, part * negative_wanted) AS negative_due,
               -- What the scores alone say: of each bin how much is answered with yes, and what came of such scores before.
               arrayMap((n, above) -> if(n = 0, 0, least(1, greatest(0, (positives - (scored - above)) / n))),
                        score_histogram, arrayCumSum(score_histogram)) AS answered_yes,
               arrayMap((k, x, n, s) -> if(k = 1, (x + 2 * s) / (n + 2), s), known, past_positives, past_rows, score) AS chance,
               arrayMap((k, x, n, s) -> if(k = 1, (x - 2 * (s * log(s) + (1 - s) * log(1 - s))) / (n + 2), -s * log(s) - (1 - s) * log(1 - s)),
                        known, past_log_losses, past_rows, score) AS log_loss_of,
               arrayMap((k, x, n, s) -> if(k = 1, (x + 2 * s * (1 - s)) / (n + 2), s * (1 - s)), known, past_briers, past_rows, score) AS brier_of
        FROM
        (
            SELECT *,
                   (1 - positive_in) * (positive + 0.1 * predictions * past.positives / past.predictions) / (positive_in + 0.1) AS positive_wanted,
                   (1 - negative_in) * (negative + 0.1 * predictions * past.negatives / past.predictions) / (negative_in + 0.1) AS negative_wanted,
                   maturity = 'final' OR history = 'naive' OR positive_wanted + negative_wanted <= 0 AS as_it_is,
                   arrayMap(b -> (b + 0.5) / 20, range(20)) AS score, arrayMap(b -> toUInt8(calibrated), range(20)) AS known
            FROM
            (
                WITH (m, age) -> arraySum((b, n) -> n * least(1, greatest(0, (age - pow(1.05, b - 1)) / (pow(1.05, b) - pow(1.05, b - 1)))),
                                          mapKeys(m), mapValues(m)) / arraySum(mapValues(m)) AS arrived
                SELECT *, true_positive + false_negative AS positive, true_negative + false_positive AS negative,
                       arrived(past.positive_delays, age_ms) AS positive_in, arrived(past.negative_delays, age_ms) AS negative_in,
                       arraySum(score_histogram) AS scored, arraySum(past_rows) >= 200 AS calibrated
                FROM live_accuracy_inputs
            )
        )
    )
);
