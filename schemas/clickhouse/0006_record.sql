-- The record of decisions with its chain in columns, and the way between a decision and the predictions it rests on.
--
-- What a prediction fed (by its trace id; an id or a bound on event_time keeps the scan of the log short):
--   SELECT kind, decided, detector, detail FROM decision_predictions WHERE prediction_trace_id = '...'
-- What a decision rests on:
--   SELECT prediction_id, event_time, score FROM decision_predictions WHERE trace_id = '...' ORDER BY event_time
-- A signal says since when its evidence counts (since_ms); where a detector does not, a day before the signal is taken.

CREATE OR REPLACE VIEW decisions AS
SELECT *, model_version AS version,
       JSONExtractString(document, 'writer') AS writer,
       JSONExtractUInt(document, 'sequence') AS sequence,
       JSONExtractString(document, 'previous') AS previous,
       JSONExtractString(document, 'trace_id') AS trace_id,
       JSONExtractString(document, 'config_hash') AS config_hash,
       JSONExtractString(document, 'model_digest') AS model_digest,
       JSONExtractUInt(document, 'deployment_revision') AS deployment_revision,
       JSONExtract(document, 'weights', 'Map(String, Float64)') AS weights,
       JSONExtractString(document, 'key_id') AS key_id
FROM decision_log FINAL;

CREATE OR REPLACE VIEW decision_evidence AS
SELECT d.model AS model, d.version AS version, d.decision_id AS decision_id, d.kind AS kind, d.actor AS actor,
       d.detail AS detail, d.request_id AS request_id, d.incident AS incident, d.trace_id AS trace_id,
       d.event_time AS decided, d.signal_id AS signal_id, d.detector AS detector, d.score AS score,
       d.threshold AS threshold, d.rows AS rows,
       if(s.signal_id = '', d.event_time, s.event_time) AS until,
       if(d.since_ms > 0, fromUnixTimestamp64Milli(d.since_ms, 'UTC'), until - toIntervalDay(1)) AS since,
       d.worst AS worst
FROM
(
    SELECT model, version, decision_id, kind, actor, detail, request_id, incident, trace_id, event_time,
           arrayJoin(JSONExtractArrayRaw(document, 'because')) AS because,
           JSONExtractString(because, 'signal_id') AS signal_id, JSONExtractString(because, 'detector') AS detector,
           JSONExtractFloat(because, 'score') AS score, JSONExtractFloat(because, 'threshold') AS threshold,
           JSONExtractUInt(because, 'evidence', 'rows') AS rows, JSONExtractInt(because, 'evidence', 'since_ms') AS since_ms,
           arrayMap(w -> bitAnd(w.identity, 9223372034707292159),
                    JSONExtract(because, 'evidence', 'worst', 'Array(Tuple(identity UInt64, score Float64))')) AS worst
    FROM decisions
) AS d
LEFT JOIN
(
    SELECT JSONExtractString(document, 'signal_id') AS signal_id, max(s.event_time) AS event_time
    FROM signal_log AS s FINAL GROUP BY signal_id
) AS s ON d.signal_id = s.signal_id;

CREATE OR REPLACE VIEW decision_predictions AS
SELECT e.decision_id AS decision_id, e.kind AS kind, e.actor AS actor, e.detail AS detail, e.trace_id AS trace_id,
       e.decided AS decided, e.detector AS detector, e.score AS evidence_score, e.threshold AS threshold,
       p.model AS model, p.model_version AS version, p.role AS role, p.prediction_id AS prediction_id,
       p.event_time AS event_time, p.score AS score, p.status AS status, p.entity AS entity,
       p.trace_id AS prediction_trace_id,
       p.source_partition AS source_partition, p.source_offset AS source_offset, p.source_row AS source_row
FROM predictions AS p
INNER JOIN decision_evidence AS e ON p.model = e.model AND p.model_version = e.version
WHERE p.event_time >= e.since AND p.event_time <= e.until;
