"""aiokafka reads the topic and looks at nothing."""

from __future__ import annotations

import asyncio
import sys

from aiokafka import AIOKafkaConsumer
from meter import Meter


async def consume(bootstrap: str, topic: str, meter: Meter) -> None:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", max_poll_records=20_000, fetch_max_bytes=8 << 20,
        max_partition_fetch_bytes=4 << 20, enable_auto_commit=False,
    )  # fmt: skip
    await consumer.start()
    try:
        while True:
            got = await consumer.getmany(timeout_ms=1_000)
            if got and meter.add(sum(map(len, got.values()))):
                break
        meter.say()
    finally:
        await consumer.stop()


asyncio.run(consume(sys.argv[1], sys.argv[2], Meter(int(sys.argv[3]))))
