"""``python -m streams.offline OUT``: reads every log to its end and writes what the monitor must have made of them.

The shell around ``streams.core.offline``; configured as the monitor is. The document is msgpack: see :func:`compute`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from schemas.errors import DeliveryError, DriftlineError
from schemas.events import HEADER_KIND, KIND_TICK
from schemas.settings import KafkaSettings, MonitorSettings
from schemas.topics import TOPICS, partitions_of_topic, state_partition
from streams.broadcast import model_records
from streams.core import offline
from streams.core.delivery import Manifest, StageContext, decode_manifest, manifest_key
from streams.core.records import Record
from streams.store import read_to_end

READ = (
    "predictions",
    "feedback",
    "observations",
    "signals",
    "models",
    "deployments",
    "control",
    "alerts",
    "decisions",
)
_WAIT_S = 120.0
Logs = dict[tuple[str, int], list[Record]]


def compute(
    settings: MonitorSettings, logs: Logs, histories: dict[int, list[Manifest]], garbage: str
) -> dict[str, Any]:
    """``tables``: table to (key, row) pairs. ``outcomes``: (model, id, version, role, label) joined at the end.
    ``addresses``: rows that were new. ``sent_on`` and ``origins``: rows found astray, and those that arrived.
    ``signals``: task to the documents it writes. ``policy``: task to topic to documents."""
    partitions = settings.kafka.input_partitions
    models = model_records(logs["models", 0])
    contracts = {r.contract.model: r.contract for r in models if r.contract is not None}
    references: dict[str, dict[str, Any]] = defaultdict(dict)
    for record in models:
        if record.version is not None:
            references[record.version.model][record.version.version] = record.version.reference
    done: dict[str, Any] = {"tables": defaultdict(list), "outcomes": [], "addresses": [], "sent_on": [], "origins": [],
                            "duplicates": 0, "too_late": 0, "signals": {}, "policy": {}}  # fmt: skip
    for p in range(partitions):
        rows = offline.in_time_order(logs["predictions", p], logs["feedback", p])
        share = offline.joined(rows, contracts, references, p, partitions, garbage)
        for table, found in share.tables.items():
            done["tables"][table] += [[list(key), list(row)] for key, row in found.items()]
        for name in ("outcomes", "addresses", "sent_on", "origins", "duplicates", "too_late"):
            done[name] += getattr(share, name)
        outs = offline.signals(logs["observations", p], models, p, settings)
        done["signals"][f"detect/{p}"] = [
            json.loads(out.value or b"") for out in outs if out.headers.get(HEADER_KIND) != KIND_TICK
        ]
        context = StageContext("policy", p, partitions, settings)
        done["policy"][context.task] = offline.decisions(
            logs["signals", p],
            logs["deployments", 0],
            histories[p],
            [(record.offset, one) for record in logs["models", 0] for one in model_records([record])],
            _written(logs, p, partitions),
            context,
        )
    return done


def _written(logs: Logs, partition: int, partitions: int) -> offline.Documents:
    """What the policy task of ``partition`` has written."""
    found: offline.Documents = {}
    for topic in ("control", "alerts", "decisions"):
        for record in logs[topic, 0]:
            document = json.loads(record.value or b"")
            if offline.writer(topic, document, partitions) == partition:
                found.setdefault(topic, []).append(offline.settled(document))
    return found


def read_logs(kafka: KafkaSettings) -> Logs:
    """Every committed record of every topic that matters, by logical topic and partition. Raises DeliveryError."""
    consumer = Consumer(kafka.consumer(None, **{"enable.partition.eof": True}))
    logs: Logs = {
        (name, p): []
        for name in READ
        for p in range(partitions_of_topic(TOPICS[name], kafka.input_partitions))
    }
    open_ = set(logs)
    consumer.assign([TopicPartition(kafka.topic(name), p, OFFSET_BEGINNING) for name, p in logs])
    deadline_s = time.monotonic() + _WAIT_S
    try:
        while open_:
            if time.monotonic() > deadline_s:
                raise DeliveryError(f"{sorted(open_)} could not be read to their end in {_WAIT_S:.0f} s")
            for message in consumer.consume(10_000, 1.0):
                tp = (str(message.topic()).removeprefix(kafka.topic_prefix), int(message.partition() or 0))
                error = message.error()
                if error is None and tp in open_:
                    logs[tp].append(_record(tp, message))
                elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                    open_.discard(tp)
                elif error is not None:
                    raise DeliveryError(f"{tp[0]}[{tp[1]}] cannot be read: {error}")
    finally:
        consumer.close()
    return logs


def _record(tp: tuple[str, int], message: Message) -> Record:
    headers: Any = message.headers()
    return Record(
        *tp,
        int(message.offset() or 0),
        message.key(),
        message.value(),
        dict(headers or ()),
        message.timestamp()[1],
    )


def read_manifests(kafka: KafkaSettings, stage: str, partition: int) -> list[Manifest]:
    """All manifests of one task, as far as compaction has left them, in order."""
    task = f"{stage}/{partition}"
    where = state_partition(stage, partition, kafka.input_partitions)
    records = read_to_end(kafka, kafka.topic("state"), where)
    return [
        decode_manifest(value) for key, value in records if key == manifest_key(task) and value is not None
    ]


def main(arguments: list[str] | None = None) -> int:
    """Write the document; exit code 0, or 2 with one line that says what could not be read."""
    parser = argparse.ArgumentParser(prog="python -m streams.offline", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--garbage", default="", help="header of records that are known to be unusable")
    options = parser.parse_args(arguments)
    try:
        settings = MonitorSettings.load()
        # Manifests first: what they speak of is then in the logs that are read after them.
        histories = {
            p: read_manifests(settings.kafka, "policy", p) for p in range(settings.kafka.input_partitions)
        }
        document = compute(settings, read_logs(settings.kafka), histories, options.garbage)
    except DriftlineError as error:
        print(f"offline: {error}", file=sys.stderr)  # noqa: T201
        return 2
    options.out.write_bytes(msgspec.msgpack.encode(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
