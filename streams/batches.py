"""Faust reads record batches, committed records only, from where the tasks' manifests say.

Faust hands out one message at a time at about 16,000 a second, starts from the group's committed offsets, and reads
uncommitted. All three are changed here through its own extension points: a scheduler that turns what one fetch brought
into chunks of records, a transport whose consumer reads committed and seeks to given positions, and an assignor that
keeps the partitions of a stage's topics together without a changelog table.

Every chunk is numbered within its seek, so that a task can prove that nothing between two chunks was dropped: offsets
alone cannot tell (transaction markers leave holes in them).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import aiokafka
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from faust.serializers.schemas import Schema
from faust.transport.drivers import aiokafka as driver
from faust.transport.utils import DefaultSchedulingStrategy
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from streams.core.records import RecordBatch
from streams.fetched import hand_out_batches

#: How long the broker may hold a fetch of some of a worker's partitions. One is under way a broker, and a partition whose
#: records were just taken is asked for in the next one: this bounds how long an idle partition can hold up a busy one.
FETCH_WAIT_MS = 10
BUFFERS_FULL_PAUSE_S = 0.01

#: (topic on the broker, partition) to an offset.
Positions = Mapping[tuple[str, int], int]


class OffsetsOwner(Protocol):
    """What the consumer asks of its app: how tasks are assigned, where to read from, what to show as read."""

    stage_assignor: StageAssignor

    def positions(self, seek: int) -> Positions: ...

    def commit_offsets(self) -> Positions: ...


class Chunk:
    """Some consecutive records of one partition, as they were fetched. ``number`` counts from 0 in each ``seek``."""

    __slots__ = ("came_s", "log_end", "number", "records", "seek")

    def __init__(self, records: RecordBatch, log_end: int = 0, came_s: float | None = None) -> None:
        self.records = records
        #: Where the log ended, as far as was known when this was handed over.
        self.log_end = log_end
        #: When it was here, by a clock that does not go back.
        self.came_s = time.monotonic() if came_s is None else came_s
        self.seek = 0
        self.number = 0

    @property
    def topic(self) -> str:
        """Its name on the broker."""
        return self.records.topic

    @property
    def partition(self) -> int:
        """Where it comes from."""
        return self.records.partition

    @property
    def end_offset(self) -> int:
        """The offset after the last record."""
        return int(self.records.offsets[-1]) + 1

    def cut(self, count: int) -> tuple[Chunk, Chunk]:
        """The first ``count`` records, and the others."""
        records = self.records
        first, others = records.part(0, count), records.part(count, len(records))
        return Chunk(first, self.log_end, self.came_s), Chunk(others, self.log_end, self.came_s)

    def to_batch(self, topic: str) -> RecordBatch:
        """As the core takes it, under the logical name ``topic``."""
        return self.records.named(topic)


def chunk_scheduler(chunk_records: int) -> type[DefaultSchedulingStrategy]:
    """A Faust ``ConsumerScheduler`` that yields chunks of at most ``chunk_records``, round robin over partitions."""

    class ChunkScheduler(DefaultSchedulingStrategy):
        def iterate(self, records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, Any]]:
            return super().iterate(
                {
                    tp: [
                        Chunk(fetched.part(start, min(start + chunk_records, len(fetched))))
                        for fetched in batches
                        for start in range(0, len(fetched), chunk_records)
                    ]
                    for tp, batches in records.items()
                }
            )

    return ChunkScheduler


class RawSchema(Schema[Any, Any]):
    """Hands keys and values through as they are: decoding is the core's work, and a bad value no exception."""

    def __init__(self) -> None:
        super().__init__(key_type=bytes, value_type=bytes, allow_empty=True)

    def loads_key(self, app: Any, message: Any, **_: Any) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:
        return message.value


class StageAssignor(AbstractPartitionAssignor):  # type: ignore[misc]
    """Gives whole tasks to members: partition p of all of a stage's topics goes to one of them, and stays with the
    member that has it as far as an even distribution allows."""

    name = "driftline-stage"
    version = 0

    def __init__(self, stages: Mapping[str, Sequence[str]], partitions: int) -> None:
        self._stages = {stage: tuple(topics) for stage, topics in stages.items()}
        self._partitions = partitions
        self.owned: tuple[tuple[str, int], ...] = ()

    def assign(  # aiokafka declares class methods; it calls them on the instance
        self,
        cluster: ClusterMetadata,
        members: Mapping[str, ConsumerProtocolMemberMetadata],
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        owned = {member: _decode_owned(metadata.user_data) for member, metadata in members.items()}
        shares = share_out([(s, p) for p in range(self._partitions) for s in self._stages], owned)
        result = {}
        for member, tasks in shares.items():
            topics: dict[str, list[int]] = defaultdict(list)
            for stage, partition in tasks:
                for topic in self._stages[stage]:
                    topics[topic].append(partition)
            result[member] = ConsumerProtocolMemberAssignment(self.version, sorted(topics.items()), b"")
        return result

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(self.version, list(topics), json.dumps(self.owned).encode())

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        assigned = {(tp.topic, tp.partition) for tp in assignment.partitions()}
        self.owned = tuple(
            (stage, partition)
            for stage, topics in self._stages.items()
            for partition in range(self._partitions)
            if all((topic, partition) in assigned for topic in topics)
        )


def _decode_owned(data: bytes) -> list[tuple[str, int]]:
    try:
        return [(str(stage), int(partition)) for stage, partition in json.loads(data or b"[]")]
    except (ValueError, TypeError):
        return []


def share_out(
    tasks: Sequence[tuple[str, int]], owned: Mapping[str, Sequence[tuple[str, int]]]
) -> dict[str, list[tuple[str, int]]]:
    """Tasks by member: evenly, and where possible to the member that owns the task already. Deterministic."""
    members = sorted(owned)
    most, extra = divmod(len(tasks), len(members))
    left = dict.fromkeys(tasks)
    shares: dict[str, list[tuple[str, int]]] = {}
    by_claim = sorted(members, key=lambda m: (-len(owned[m]), m))
    quotas = {member: most + (index < extra) for index, member in enumerate(by_claim)}
    for member in by_claim:
        shares[member] = [task for task in owned[member] if task in left][: quotas[member]]
        for task in shares[member]:
            del left[task]
    rest = iter(list(left))
    for member in by_claim:
        shares[member] += [next(rest) for _ in range(quotas[member] - len(shares[member]))]
    return shares


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        self._assignor = cast(OffsetsOwner, self.app).stage_assignor
        hand_out_batches()
        return aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            # As librdkafka does by default: the broker has checked what it stores, TCP and TLS what they carry.
            check_crcs=False,
            max_poll_records=conf.broker_max_poll_records,
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 1000) * 1000),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            **driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
        )


class _Consumer(driver.Consumer):
    """Positions and commits come from the app (``app.positions``, ``app.commit_offsets``), not from acks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seeks = 0
        self._numbers: dict[TP, int] = defaultdict(int)

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, record: Chunk) -> ConsumerMessage:
        record.seek = self._seeks
        record.log_end = self._log_end(tp)
        record.number = self._numbers[tp]
        self._numbers[tp] += 1
        value: Any = record  # Faust says bytes; RawSchema hands through whatever it is
        return ConsumerMessage(
            record.topic, record.partition, record.end_offset - 1, int(record.records.timestamps_ms[-1]) / 1000, 0,
            None, None, value, None, 0, 0, tp, generation_id=self.app.consumer_generation_id,
        )  # fmt: skip

    def _log_end(self, tp: TP) -> int:
        """0 when it is not known: a rebalance may be under way."""
        try:
            return self._thread.highwater(tp) or 0
        except (AssertionError, AttributeError):
            return 0

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109  # Faust's signature
        """Faust sleeps a whole second when every partition's buffer is full; they are emptied in milliseconds."""
        if self.flow_active and not self._get_active_partitions():
            await asyncio.sleep(BUFFERS_FULL_PAUSE_S)
            return {}, set()
        return await super()._wait_next_records(timeout)

    async def perform_seek(self) -> None:
        """Seek each assigned partition of a live task to what the task has not yet taken in."""
        self._seeks += 1
        self._numbers.clear()
        positions = cast(OffsetsOwner, self.app).positions(self._seeks)
        wanted = {(tp.topic, tp.partition): tp for tp in self.assignment()}
        known = {tp: positions[pair] for pair, tp in wanted.items() if pair in positions}
        if known:
            await self._thread.seek_wait(known)

    async def force_commit(self, *_: Any, **__: Any) -> bool:
        """Write the manifests' offsets to the group: for lag display only, nobody starts from them."""
        assigned = self.assignment()
        offsets = {
            TP(topic, partition): offset
            for (topic, partition), offset in cast(OffsetsOwner, self.app).commit_offsets().items()
            if (topic, partition) in assigned
        }
        changed = {tp: offset for tp, offset in offsets.items() if self._committed_offset[tp] != offset}
        if not changed or self.app.rebalancing:
            return False
        self._committed_offset.update(changed)
        return await self._commit(changed)


class BatchTransport(driver.Transport):
    """Faust's aiokafka transport with the consumer above."""

    Consumer = _Consumer
