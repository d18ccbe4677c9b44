"""Online detectors: pure machines from rows to verdicts.

They know nothing of Kafka, ClickHouse, models' names or the wall clock. ``base`` is the protocol, ``registry`` lists
what exists; a new detector is one file and one line there.
"""
