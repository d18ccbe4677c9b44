"""A topic from its first record on, by aiokafka: shared by the peers that add little to it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer
from meter import Meter


def read(count: Callable[[Sequence[Any]], int]) -> None:
    """Read the topic that the command line names, until ``count`` has found as many events in the records as it says."""
    bootstrap, topic, events = sys.argv[1:]
    asyncio.run(_consume(bootstrap, topic, Meter(int(events)), count))


async def _consume(bootstrap: str, topic: str, meter: Meter, count: Callable[[Sequence[Any]], int]) -> None:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", max_poll_records=20_000, fetch_max_bytes=8 << 20,
        max_partition_fetch_bytes=4 << 20, enable_auto_commit=False,
    )  # fmt: skip
    await consumer.start()
    try:
        while True:
            got = await consumer.getmany(timeout_ms=1_000)
            events = sum(map(count, got.values()))
            if events and meter.add(events):
                break
        meter.say()
    finally:
        await consumer.stop()
