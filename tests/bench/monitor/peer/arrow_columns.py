"""aiokafka reads Arrow batches, and pyarrow makes columns of them: what any consumer of such a topic has done before it begins."""

from __future__ import annotations

import asyncio
import sys

import pyarrow as pa
from aiokafka import AIOKafkaConsumer
from meter import Meter


def columns(value: bytes) -> int:
    """Open one batch, its numbers as numpy has them. How many rows; 0: it is no batch."""
    try:
        table = pa.ipc.open_stream(value).read_all()
    except pa.ArrowInvalid:
        return 0
    for column in table.itercolumns():
        for chunk in column.chunks:
            if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
                chunk.to_numpy(zero_copy_only=False)
    return int(table.num_rows)


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
            rows = sum(columns(record.value) for records in got.values() for record in records)
            if rows and meter.add(rows):
                break
        meter.say()
    finally:
        await consumer.stop()


asyncio.run(consume(sys.argv[1], sys.argv[2], Meter(int(sys.argv[3]))))
