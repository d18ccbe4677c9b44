"""The monitor: a pure core (``streams.core``) and the thin shells that carry it on Kafka and ClickHouse."""
