"""Faust as its documentation has it: an agent that is handed one event at a time, and does nothing."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid

import faust
from meter import Meter

meter = Meter(int(sys.argv[3]))
app = faust.App(
    f"peer-{uuid.uuid4().hex}", broker=f"kafka://{sys.argv[1]}", store="memory://", datadir=tempfile.mkdtemp(), web_enabled=False,
    topic_allow_declare=False, topic_disable_leader=True, value_serializer="json",
    consumer_auto_offset_reset="earliest", broker_max_poll_records=20_000,
)  # fmt: skip


@app.agent(app.topic(sys.argv[2], value_serializer="json", key_serializer="raw"))
async def read(events):  # type: ignore[no-untyped-def]
    async for _ in events:
        if meter.add(1):
            meter.say()
            os._exit(0)


sys.argv = ["peer", "worker", "-l", "error", "--without-web"]
app.main()
