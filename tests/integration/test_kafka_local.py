"""The embedded Kafka is a real one: what is written is read, transactions hold, restarts and kills lose nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined,unused-ignore]

from deploy.local.children import PROJECT_ROOT, free_port
from deploy.local.jars import kafka_classpath, read_lock
from deploy.local.kafka import LocalKafka, broker_answers
from schemas.errors import PlatformError

pytestmark = pytest.mark.integration


def _create(bootstrap: str, topic: str, partitions: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)


def _produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0, "message.max.bytes": 4_000_000})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(120) == 0


def _read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    """The first ``count`` committed records of a topic; fails when they do not come within two minutes."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": str(uuid.uuid4()),
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    try:
        consumer.subscribe([topic])
        values: list[bytes] = []
        while len(values) < count:
            message = consumer.poll(120)
            assert message is not None, f"only {len(values)} of {count} records came"
            assert message.error() is None
            values.append(message.value() or b"")
        return values
    finally:
        consumer.close()


def test_produce_and_consume(kafka: LocalKafka, topic_prefix: str) -> None:
    """Records come back in order, small ones and one of 3 MB."""
    topic = f"{topic_prefix}plain"
    _create(kafka.bootstrap, topic)
    sent = [b"%d" % i for i in range(1000)] + [os.urandom(3_000_000)]
    _produce(kafka.bootstrap, topic, sent)
    assert _read(kafka.bootstrap, topic, len(sent)) == sent


def test_topics_are_not_created_by_accident(kafka: LocalKafka, topic_prefix: str) -> None:
    """A misspelt topic is an error, not a new topic with the wrong partition count."""
    misspelt = f"{topic_prefix}nowhere"
    failures: list[str] = []
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0, "message.timeout.ms": 5000})
    producer.produce(
        misspelt, b"lost?", on_delivery=lambda error, _: failures.append(error.name() if error else "none")
    )
    producer.flush(30)
    assert failures in (["UNKNOWN_TOPIC_OR_PART"], ["_UNKNOWN_TOPIC"], ["_MSG_TIMED_OUT"])
    assert misspelt not in producer.list_topics(timeout=10).topics


def test_transactions(kafka: LocalKafka, topic_prefix: str) -> None:
    """Committed records are read, aborted ones never, and a fenced producer cannot commit."""
    topic, name = f"{topic_prefix}tx", f"{topic_prefix}task"
    _create(kafka.bootstrap, topic)
    settings: dict[str, str | int | float | bool] = {
        "bootstrap.servers": kafka.bootstrap,
        "transactional.id": name,
        "log_level": 0,
    }
    zombie = Producer(settings)
    zombie.init_transactions(30)
    zombie.begin_transaction()
    zombie.produce(topic, b"first")
    zombie.commit_transaction(30)
    zombie.begin_transaction()
    zombie.produce(topic, b"aborted")
    zombie.abort_transaction(30)
    zombie.begin_transaction()
    zombie.produce(topic, b"zombie")
    zombie.flush(30)
    owner = Producer(settings)
    owner.init_transactions(30)
    with pytest.raises(KafkaException) as fenced:
        zombie.commit_transaction(30)
    assert fenced.value.args[0].name() == "_FENCED"
    owner.begin_transaction()
    owner.produce(topic, b"last")
    owner.commit_transaction(30)
    assert _read(kafka.bootstrap, topic, 2) == [b"first", b"last"]


def test_restart_and_kill_keep_the_data(tmp_path: Path) -> None:
    """Stop and start, then kill -9 and start, on other ports, over one directory: every acknowledged record is there."""
    with LocalKafka() as broker:
        broker.start(tmp_path)
        broker.wait_ready()
        _create(broker.bootstrap, "kept", partitions=1)
        _produce(broker.bootstrap, "kept", [b"a", b"b"])
        broker.stop()
        broker.start(tmp_path)
        broker.wait_ready()
        assert _read(broker.bootstrap, "kept", 2) == [b"a", b"b"]
        _produce(broker.bootstrap, "kept", [b"c"])
        broker.kill()
        broker.start(tmp_path)
        broker.wait_ready()
        assert _read(broker.bootstrap, "kept", 3) == [b"a", b"b", b"c"]


def test_listens_on_the_loopback_address_only(kafka: LocalKafka) -> None:
    """No other machine can reach the broker."""
    assert kafka.pid is not None
    listening = [
        each for each in psutil.Process(kafka.pid).net_connections("tcp") if each.status == psutil.CONN_LISTEN
    ]
    assert len(listening) == 2
    assert {each.laddr.ip for each in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_port_in_use_is_named(tmp_path: Path) -> None:
    """A taken port is an error with the port and its holder in it, before anything starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            LocalKafka() as broker,
            pytest.raises(PlatformError, match=f"port {port} is already in use by .*pid"),
        ):
            broker.start(tmp_path, port)


def test_broken_start_shows_the_log(tmp_path: Path) -> None:
    """A Kafka that cannot start is an error with the reason from its log, and leaves no process."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=x\n")
    broker = LocalKafka()
    broker.start(tmp_path)
    with pytest.raises(PlatformError, match=r"(?s)died while starting.*Stored node id 7"):
        broker.wait_ready()
    assert broker.pid is None


def test_altered_jar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One changed byte in one jar of the cache stops the start with the jar's name."""
    jars = kafka_classpath()
    copy = tmp_path / "cache" / jars[0].parent.name
    shutil.copytree(jars[0].parent, copy)
    victim = copy / jars[-1].name
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    monkeypatch.setenv("DRIFTLINE_CACHE", str(tmp_path / "cache"))
    with LocalKafka() as broker, pytest.raises(PlatformError, match=f"altered jar .*{victim.name}"):
        broker.start(tmp_path / "data")


def test_two_first_starts_at_once(tmp_path: Path) -> None:
    """Two processes that fill the same empty cache both succeed, and it verifies."""
    jars = kafka_classpath()
    repository = tmp_path / "m2"
    lock = (PROJECT_ROOT / "deploy/local/jars.sha256").read_text(encoding="utf-8")
    for jar, path in zip(read_lock(lock), jars, strict=True):
        target = repository / jar.repository_path
        target.parent.mkdir(parents=True)
        target.symlink_to(path)
    environment = {**os.environ, "DRIFTLINE_CACHE": str(tmp_path / "cache"), "M2_REPO": str(repository)}
    command = [sys.executable, "-m", "deploy.local.jars"]
    both = [
        subprocess.Popen(
            command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    assert [each.wait(timeout=240) for each in both] == [0, 0]
    assert len(kafka_classpath(root=tmp_path / "cache")) == len(jars)


def test_sigterm_in_the_foreground_stops_it(tmp_path: Path) -> None:
    """The module run by a supervisor becomes Kafka itself and stops on SIGTERM."""
    port = free_port()
    command = [sys.executable, "-m", "deploy.local.kafka", "--data-dir", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        try:
            while not broker_answers(f"127.0.0.1:{port}"):
                assert child.poll() is None
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=120) in (0, 128 + signal.SIGTERM)
        finally:
            child.kill()


def test_dies_with_its_parent(tmp_path: Path) -> None:
    """kill -9 of the process that started it leaves no orphan, even when a short-lived thread did the starting."""
    program = textwrap.dedent("""
        import sys, threading, time
        from pathlib import Path
        from deploy.local.kafka import LocalKafka
        broker = LocalKafka()
        starter = threading.Thread(target=broker.start, args=(Path(sys.argv[1]),))
        starter.start()
        starter.join()
        broker.wait_ready()
        print(broker.pid, flush=True)
        time.sleep(600)
    """)
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        assert "java" in orphan.name()
        parent.kill()
    orphan.wait(timeout=120)
