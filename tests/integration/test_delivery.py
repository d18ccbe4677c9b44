"""The delivery protocol on a real Kafka, under real Faust worker processes that are killed."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from support_streams import PARTITIONS, Reader, Workers, create_topics, is_tick, send_rows, send_ticks

from deploy.local.kafka import LocalKafka
from schemas.contracts import Feature, ModelContract, ModelRecord
from schemas.errors import DeliveryError, Fenced
from schemas.events import Tick
from schemas.settings import KafkaSettings, MonitorSettings
from schemas.topics import state_partition
from streams.broadcast import Broadcast, model_records
from streams.core.delivery import Manifest, Out, assembled, load, plan
from streams.store import TaskStore, read_to_end
from streams.ticker import Ticker

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> KafkaSettings:
    """A deployment of its own on the shared broker, with its topics."""
    found = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, input_partitions=PARTITIONS)
    create_topics(found)
    return found


@pytest.fixture
def workers(settings: KafkaSettings) -> Iterator[Workers]:
    started = Workers(settings)
    yield started
    started.close()


def counted(settings: KafkaSettings, task: str) -> int:
    """Rows of ``predictions`` in the committed state of a task."""
    import msgspec

    stage, partition = task.split("/")
    where = state_partition(stage, int(partition), settings.input_partitions)
    loaded = load(task, read_to_end(settings, settings.topic("state"), where))
    return int(msgspec.msgpack.decode(loaded.pieces["state"])["rows"].get("predictions", 0))


def test_a_worker_that_slept_through_its_replacement_does_no_harm(
    settings: KafkaSettings, workers: Workers
) -> None:
    """It wakes with rows in memory that its successor has long passed on: fenced, and nobody sees them twice."""
    sleeper = workers.start("sleeper")
    sleeper.wait_for("ready")
    send_rows(settings, "predictions", range(400))
    reader = Reader(settings, "observations", PARTITIONS)
    rows = reader.rows(400)
    sleeper.pause()
    send_rows(settings, "predictions", range(400, 800))
    workers.start("other").wait_for("ready")
    rows += reader.rows(400)
    sleeper.resume()
    for start in range(800, 2_000, 200):
        send_rows(settings, "predictions", range(start, start + 200))
        rows += reader.rows(200, settle_s=0.01)
    rows += reader.rows(1, timeout_s=1.0)
    reader.close()
    assert Counter(rows) == Counter(range(2_000))


def committed_end(settings: KafkaSettings, topic: str, partition: int, wanted: int) -> int:
    """The group's committed offset, once it is as far as ``wanted``."""
    consumer = Consumer(settings.consumer("driftline-monitor"))
    where = [TopicPartition(settings.topic(topic), partition)]
    deadline_s = time.monotonic() + 120
    while (offset := consumer.committed(where, 5)[0].offset) < wanted and time.monotonic() < deadline_s:
        time.sleep(0.1)
    consumer.close()
    return offset


def test_killed_at_every_failpoint_each_row_is_passed_on_and_counted_once(
    settings: KafkaSettings, workers: Workers
) -> None:
    """Each worker recovers from its predecessor's death and dies at the next point; the last one finishes."""
    points = ("before-apply:3", "after-apply:3", "before-state:2", "before-commit:3", "after-commit:2")
    sent = 0
    for point in points:
        worker = workers.start("only", failpoint=f"join.{point}")
        send_rows(settings, "predictions", range(sent, sent + 600))
        sent += 600
        assert worker.wait() == 137, f"{point}: {''.join(worker.log[-20:])}"
    workers.start("only").wait_for("ready")
    reader = Reader(settings, "observations", PARTITIONS)
    rows = reader.rows(sent)
    reader.close()
    assert Counter(rows) == Counter(range(sent))
    assert sum(counted(settings, f"join/{p}") for p in range(PARTITIONS)) == sent


def test_rows_a_core_still_holds_are_read_again_after_a_kill_and_counted_once(
    settings: KafkaSettings, workers: Workers
) -> None:
    """The manifest says from where: a row neither gets lost in memory nor is passed on twice."""
    worker = workers.start("only", "hold", failpoint="join.after-commit:8")
    producer = Producer(settings.producer(**{"linger.ms": 0}))
    reader = Reader(settings, "observations", PARTITIONS)
    send_rows(settings, "predictions", range(400))
    send_ticks(producer, settings, "predictions", 10)
    send_rows(settings, "predictions", range(400, 800))
    rows = reader.rows(400)
    send_rows(settings, "predictions", range(800, 1_200))
    assert worker.wait() == 137
    workers.start("only", "hold").wait_for("ready")
    rows += reader.rows(1, timeout_s=1.0)
    assert Counter(rows) == Counter(range(400)), "rows behind the last tick stay held"
    send_ticks(producer, settings, "predictions", 20)
    rows += reader.rows(800)
    reader.close()
    assert Counter(rows) == Counter(range(1_200))


def test_when_one_of_two_workers_is_killed_the_other_takes_over_without_loss_or_double(
    settings: KafkaSettings, workers: Workers
) -> None:
    """Tasks are shared out whole; after a kill -9 the survivor has them all and every row is there once."""
    first = workers.start("one")
    assert len(first.wait_for("ready")["tasks"]) == PARTITIONS
    second = workers.start("two")
    assert len(second.wait_for("ready")["tasks"]) == PARTITIONS // 2
    send_rows(settings, "predictions", range(1_000))
    send_rows(settings, "feedback", range(1_000, 1_400))
    first.kill()
    send_rows(settings, "predictions", range(1_400, 2_400))
    reader = Reader(settings, "observations", PARTITIONS)
    rows = reader.rows(2_400)
    reader.close()
    assert Counter(rows) == Counter(range(2_400))
    assert second.terminate() == 0


def test_a_worker_that_hangs_is_ended_and_its_successor_loses_nothing(settings: KafkaSettings) -> None:
    """It still answers its group and looks alive; its input does not move."""
    workers = Workers(settings, DRIFTLINE_MONITOR__READY_TIMEOUT="15s")
    try:
        worker = workers.start("only", "hang")
        worker.wait_for("ready")
        send_rows(settings, "predictions", range(100))
        assert "has not moved for 15 s" in worker.wait_for("fatal", 240.0)["message"]
        assert worker.wait(120.0) == 70
        workers.start("only").wait_for("ready")
        reader = Reader(settings, "observations", PARTITIONS)
        assert Counter(reader.rows(100)) == Counter(range(100))
        reader.close()
    finally:
        workers.close()


def test_a_tick_passes_three_stages_quickly_and_sigterm_ends_cleanly(
    settings: KafkaSettings, workers: Workers
) -> None:
    """Event time comes out at the end soon after it went in: nothing on the way polls in its sleep."""
    worker = workers.start("only", stages=3)
    worker.wait_for("ready")
    producer = Producer(settings.producer(**{"linger.ms": 0}))
    reader = Reader(settings, "control", 1)

    def passed(event_time_ms: int) -> float:
        """Seconds that one tick takes."""
        start_s = time.monotonic()
        send_ticks(producer, settings, "predictions", event_time_ms)
        arrived = 0
        while arrived < PARTITIONS:
            message = reader.poll(60.0)
            assert message is not None
            arrived += f'"event_time_ms":{event_time_ms},'.encode() in (message.value() or b"")
        return time.monotonic() - start_s

    sent, median_s = 0, math.inf
    # What polls in its sleep does so each time; a machine that is busy with something else is so for a while.
    for _ in range(3):
        if median_s >= 0.5:
            median_s = statistics.median(passed(at) for at in range(sent + 1, sent + 26))
            sent += 25
    reader.close()
    print(f"tick to control: median {median_s * 1000:.0f} ms")
    assert median_s < 0.5
    shown = committed_end(settings, "predictions", 0, sent)
    assert shown == sent, "the group's offsets are what lag displays read"
    assert worker.terminate() == 0


def test_a_zombie_cannot_commit_and_its_records_stay_invisible(settings: KafkaSettings) -> None:
    """The successor's init fences the predecessor, whose transaction nobody ever sees."""

    def transaction(before: Manifest, text: bytes) -> object:
        outs = [Out("observations", text, text, 0)]
        return plan(
            before, outs=outs, changed={"piece": text}, offsets={}, high={}, watermarks={}, activations={}
        )

    zombie, successor = TaskStore(settings, "join", 0), TaskStore(settings, "join", 0)
    assert zombie.open() == {}
    zombie.commit(transaction(Manifest(task="join/0"), b"1"))  # type: ignore[arg-type]
    loaded = assembled("join/0", successor.open())
    assert loaded.pieces == {"piece": b"1"}
    assert loaded.manifest is not None
    with pytest.raises(Fenced, match="join/0"):
        zombie.commit(transaction(loaded.manifest, b"2"))  # type: ignore[arg-type]
    successor.commit(transaction(loaded.manifest, b"3"))  # type: ignore[arg-type]
    reader = Reader(settings, "observations", PARTITIONS)
    assert reader.rows(2) == [1, 3]
    reader.close()


def test_the_ticker_writes_the_clock_less_its_delay_to_every_input(settings: KafkaSettings) -> None:
    """One tick a partition, behind the clock by the delay, told apart from events by its header."""
    monitor = MonitorSettings(kafka=settings)
    ticker = Ticker(monitor, lambda: [(settings.topic("predictions"), p) for p in range(PARTITIONS)])
    ticker.tick(1_000_000)
    ticker.stop()
    reader = Reader(settings, "predictions", PARTITIONS)
    ticks = [reader.poll(60.0) for _ in range(PARTITIONS)]
    reader.close()
    assert all(tick is not None and is_tick(tick) for tick in ticks)
    times = {
        Tick.model_validate_json(tick.value() or b"").event_time_ms for tick in ticks if tick is not None
    }
    assert times == {1_000_000 - monitor.monitor.tick_delay}
    assert {tick.partition() for tick in ticks if tick is not None} == set(range(PARTITIONS))


def test_a_model_is_known_as_soon_as_its_publication_was_acknowledged(settings: KafkaSettings) -> None:
    """``refresh`` after the flush sees the record, and a task can ask for what it has not seen."""
    broadcast = Broadcast(settings)
    broadcast.start()
    try:
        assert broadcast.since("models", 0) == []
        record = ModelRecord(contract=ModelContract(model="m", features=(Feature(name="x"),)))
        producer = Producer(settings.producer(**{"linger.ms": 0}))
        producer.produce(settings.topic("models"), record.model_dump_json().encode(), b"m")
        producer.flush(10)
        published_s = time.monotonic()
        # Who was here before it was published has nothing to ask; who came after it, everything.
        assert not broadcast.asked_since("models", published_s)
        broadcast.refresh("models")
        assert broadcast.asked_since("models", published_s)
        assert not broadcast.asked_since("models", time.monotonic())
        assert model_records(broadcast.since("models", 0)) == [record]
        assert broadcast.since("models", broadcast.next_offset("models")) == []
    finally:
        broadcast.stop()


def test_whoever_asks_while_another_does_knows_what_was_published_before(settings: KafkaSettings) -> None:
    """One question to the broker answers all who wait for it, but only what was asked after their call answers them."""
    broadcast = Broadcast(settings)
    broadcast.start()
    producer = Producer(settings.producer(**{"linger.ms": 0}))

    def knows(number: int) -> bool:
        name = f"m{number}"
        record = ModelRecord(contract=ModelContract(model=name, features=(Feature(name="x"),)))
        with publishing:
            producer.produce(settings.topic("models"), record.model_dump_json().encode(), name.encode())
            producer.flush(10)
        broadcast.refresh("models")
        return record in model_records(broadcast.since("models", 0))

    publishing = threading.Lock()
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(knows, range(200)))
    finally:
        broadcast.stop()


def test_broadcast_topics_that_do_not_exist_are_said_so(kafka: LocalKafka) -> None:
    """A missing topic is an error with its name, not an endless wait."""
    broadcast = Broadcast(KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix="nobody-made-"))
    try:
        with pytest.raises(DeliveryError, match="nobody-made-models"):
            broadcast.start()
    finally:
        broadcast.stop()
