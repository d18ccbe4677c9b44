"""A real Kafka and the real ClickHouse engine on a bare machine, from Python packages alone.

Every service talks to these two through the same clients and settings as in production;
only an address changes.
"""
