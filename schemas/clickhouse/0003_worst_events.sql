-- From a signal's worst events to the rows they were. A detector knows a prediction by a 64-bit hash of its id: two Kafka
-- murmur2 hashes, of the id and of the id with a byte 1 behind it. ClickHouse's kafkaMurmurHash leaves out the highest bit
-- of each, so the two sides are compared without bits 31 and 63.
--
-- The events behind a model's outlier signals, newest first (a bound on event_time keeps the scan of the log short):
--   SELECT * FROM worst_events WHERE model = 'flights' AND event_time >= now() - INTERVAL 2 DAY ORDER BY signal_time DESC
-- One identity out of a message or an alert:
--   SELECT * FROM prediction_identities WHERE model = 'flights' AND identity = bitAnd({identity}, 9223372034707292159)

CREATE OR REPLACE VIEW prediction_identities AS
SELECT *,
       bitShiftLeft(toUInt64(kafkaMurmurHash(prediction_id)), 32) + kafkaMurmurHash(concat(prediction_id, '\x01')) AS identity
FROM prediction_log FINAL;

CREATE OR REPLACE VIEW worst_events AS
SELECT p.model AS model, p.model_version AS model_version, w.detector AS detector, w.signal_time AS signal_time,
       w.outlier_score AS outlier_score, p.prediction_id AS prediction_id, p.event_time AS event_time, p.role AS role,
       p.numbers AS numbers, p.categories AS categories, p.score AS score, p.status AS status, p.entity AS entity,
       p.source_partition AS source_partition, p.source_offset AS source_offset, p.source_row AS source_row
FROM prediction_identities AS p
INNER JOIN
(
    SELECT model, model_version, role, detector, event_time AS signal_time,
           arrayJoin(JSONExtract(document, 'verdict', 'evidence', 'worst', 'Array(Tuple(identity UInt64, score Float64))')) AS one,
           bitAnd(one.identity, 9223372034707292159) AS identity, one.score AS outlier_score
    FROM signal_log FINAL
) AS w ON p.model = w.model AND p.model_version = w.model_version AND p.identity = w.identity;
