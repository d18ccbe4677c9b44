"""How long an answer takes at a steady load: against the batch deadline, and against a loop that only copies.

The copying loop reads a request and writes it back, with and without a transaction: the difference is what it costs that
answers, prediction log and offsets become visible together.
"""

from __future__ import annotations

import threading
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition

from deploy.scoring.service import transactional
from schemas.settings import KafkaSettings
from tests.bench.figures import say
from tests.bench.scorer.harness import Answers, Ground, Load, ScorerProcess, Seen, percentile
from tests.bench.scorer.subjects import requests

_DEADLINES_MS = (1, 5, 20)
_RATE_PER_S = 1_000


def run(bootstrap: str, folder: Path, quick: bool) -> None:
    """p50 and p99 in milliseconds from handing a request to the client to having its committed answer."""
    seconds = 2 if quick else 10
    plain = _copied(bootstrap, folder, seconds, in_transactions=False)
    whole = _copied(bootstrap, folder, seconds, in_transactions=True)
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        say(f"copy.plain.{name}", percentile(plain, share), "ms", requests_per_s=_RATE_PER_S)
        value, baseline = percentile(whole, share), percentile(plain, share)
        say(f"copy.transaction.{name}", value, "ms", f"copy.plain.{name}", value / baseline)
    for deadline_ms in _DEADLINES_MS[1:2] if quick else _DEADLINES_MS:
        found = _scored(bootstrap, folder, seconds, deadline_ms)
        for share, name in ((0.5, "p50"), (0.99, "p99")):
            value, baseline = percentile(found, share), percentile(plain, share)
            say(
                f"scorer.deadline_{deadline_ms}ms.{name}", value, "ms", f"copy.plain.{name}", value / baseline
            )


def _scored(bootstrap: str, folder: Path, seconds: int, deadline_ms: int) -> list[float]:
    ground = Ground(bootstrap, folder, f"deadline-{deadline_ms}")
    ground.deploy()
    with ScorerProcess(ground, provider="cpu", batch_deadline=deadline_ms):
        return _latencies(ground, seconds)


def _copied(bootstrap: str, folder: Path, seconds: int, in_transactions: bool) -> list[float]:
    ground = Ground(bootstrap, folder, f"copy-{in_transactions}".lower())
    stop = threading.Event()
    thread = threading.Thread(target=_copy, args=(ground.kafka, stop, in_transactions))
    thread.start()
    try:
        return _latencies(ground, seconds)
    finally:
        stop.set()
        thread.join()


def _latencies(ground: Ground, seconds: int) -> list[float]:
    answers = Answers(ground.kafka)
    warm = requests(200, 10_000_000)
    ground.send(warm)
    answers.wait(lambda seen: len(seen) >= len(warm))
    count = seconds * _RATE_PER_S
    with Load(ground, requests(count), _RATE_PER_S) as load:
        load.join()
        answers.wait(lambda seen: len(seen) >= count + len(warm))
    seen: list[Seen] = answers.close()
    return [one.here_ms - load.sent_ms[one.request_id] for one in seen if one.request_id in load.sent_ms]


def _copy(kafka: KafkaSettings, stop: threading.Event, in_transactions: bool) -> None:
    """Requests back as answers, as few as come at once; the least a service on these topics can do."""
    consumer = Consumer(kafka.consumer("copy"))
    settings = transactional(kafka, "copy") if in_transactions else kafka.producer(**{"linger.ms": 0})
    producer = Producer(settings)
    if in_transactions:
        producer.init_transactions(30)
    consumer.subscribe([kafka.topic("scoring-requests")])
    topic = kafka.topic("scores")
    while not stop.is_set():
        first = consumer.poll(0.02)
        if first is None:
            continue
        records = [r for r in [first, *consumer.consume(500, 0)] if r.error() is None]
        if in_transactions:
            producer.begin_transaction()
        for record in records:
            value = (record.value() or b"").replace(
                b'"entity"', b'"version":"1","revision":1,"status":"ok","entity"'
            )
            producer.produce(topic, value, record.key(), int(record.partition() or 0))
        if in_transactions:
            ends = {int(record.partition() or 0): int(record.offset() or 0) + 1 for record in records}
            where = [TopicPartition(kafka.topic("scoring-requests"), p, offset) for p, offset in ends.items()]
            producer.send_offsets_to_transaction(where, consumer.consumer_group_metadata(), 30)
            producer.commit_transaction(30)
        producer.poll(0)
    consumer.close()
    producer.close()
