"""Quix Streams reads the topic and parses the JSON."""

from __future__ import annotations

import os
import sys
import uuid

from meter import Meter
from quixstreams import Application

meter = Meter(int(sys.argv[3]))
app = Application(
    broker_address=sys.argv[1], consumer_group=f"peer-{uuid.uuid4().hex}", auto_offset_reset="earliest", loglevel="ERROR",
    auto_create_topics=False,
)  # fmt: skip
stream = app.dataframe(app.topic(sys.argv[2], value_deserializer="json"))


def look(_: object) -> None:
    if meter.add(1):
        meter.say()
        os._exit(0)


stream.update(look)
app.run()
