"""Why: one command must give a newcomer the whole system, and take all of it away again.

The platform starts a real Kafka, the warehouse, the topics and migrations, then every service as its own process with
the same settings keys it would have in production. It watches them: a child that dies is named, started again, and
given up on only when it dies again and again. Everything it knows is in ``platform.json`` beside the data, so that
``driftline status``, ``down`` and ``logs`` work from another terminal.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from deploy.local.children import HOST, free_port, require_free_port, spawn_module, stop_child, tail
from deploy.local.kafka import LocalKafka
from deploy.local.machine_code import compile_once
from deploy.local.warehouse import LocalWarehouse
from schemas.errors import PlatformError
from schemas.settings import ClickHouseSettings, KafkaSettings
from schemas.signing import Signer

#: Service name to the module that is it and that module's arguments, in the order of starting.
SERVICES: dict[str, tuple[str, ...]] = {
    "archive": ("streams", "archive"),
    "monitor": ("streams", "monitor"),
    "controller": ("deploy.controller",),
    "scorer": ("deploy.scoring",),
    "trainer": ("deploy.training",),
    "notifier": ("deploy.notify",),
}
COMPILED = ("archive", "monitor")
#: What the services need: started before them, stopped after them.
STORES = ("kafka", "warehouse")
STATE_FILE = "platform.json"
#: A store that starts again over much data on a busy machine may take its time.
REVIVE_S = 180.0
FREE_BYTES_MIN = 512 * 1024 * 1024
RESTARTS_MAX = 6
RESTART_WINDOW_S = 60.0
_READY_MARK = '"ready"'

Say = Callable[[str, str], None]


@dataclass(slots=True)
class Service:
    """One running child and how often it had to be started."""

    name: str
    module: str
    arguments: tuple[str, ...]
    log: Path
    environment: dict[str, str]
    child: subprocess.Popen[bytes] | None = None
    log_from: int = 0
    said_ready: bool = False
    restarts: deque[float] = field(default_factory=deque)
    restarted: int = 0
    died: str = ""
    #: Several threads ask whether it is ready; two that look at once must not both go on by what both have read.
    looking: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        with self.looking:
            self.log_from = self.log.stat().st_size if self.log.exists() else 0
            self.said_ready = False
        self.child = spawn_module(
            "deploy.local.launch", [self.module, *self.arguments], log=self.log, environment=self.environment
        )

    def ready(self) -> bool:
        """Whether the service has said so in its log since it was last started."""
        with self.looking:
            if not self.said_ready:
                with suppress(OSError), self.log.open("rb") as source:
                    source.seek(self.log_from)
                    text = source.read()
                    self.said_ready = _READY_MARK.encode() in text
                    # What was looked through is not looked through again, but for a mark cut in two.
                    self.log_from += max(0, len(text) - len(_READY_MARK))
            return self.said_ready


class Platform:
    """Kafka, warehouse and services over one data directory. Also a context manager.

    ``environment`` adds settings for every service (``DRIFTLINE_…``); ``monitors`` workers share the monitor's work,
    named ``monitor``, ``monitor-1`` and so on; ``say(service, text)`` receives one line for each
    thing worth knowing. Ports of 0 are chosen freely.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        kafka_port: int = 0,
        warehouse_port: int = 0,
        api_port: int = 0,
        services: tuple[str, ...] = tuple(SERVICES),
        environment: Mapping[str, str] | None = None,
        input_partitions: int = 4,
        monitors: int = 1,
        restarts_max: int = RESTARTS_MAX,
        say: Say = lambda _service, _text: None,
    ) -> None:
        unknown = sorted(set(services) - set(SERVICES))
        if unknown:
            raise PlatformError(f"unknown services: {', '.join(unknown)}; known: {', '.join(SERVICES)}")
        self.data_dir = data_dir.resolve()
        self._ports = {"kafka": kafka_port, "warehouse": warehouse_port, "api": api_port or free_port()}
        workers = tuple(f"monitor-{number}" for number in range(1, monitors))
        self._wanted = services + (workers if "monitor" in services else ())
        self._extra = dict(environment or {})
        self._partitions = input_partitions
        self._restarts_max = restarts_max
        self._say = say
        self._kafka = LocalKafka()
        self._warehouse = LocalWarehouse()
        self._services: dict[str, Service] = {}
        self._metrics_ports: dict[str, int] = {}
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._revived = dict.fromkeys(STORES, 0)
        #: Stores that are being started again: alive, and not yet there.
        self._reviving: set[str] = set()
        self._lock = threading.Lock()
        self.failure: str | None = None

    # what clients need

    @property
    def kafka(self) -> KafkaSettings:
        return KafkaSettings(bootstrap=self._kafka.bootstrap, input_partitions=self._partitions)

    @property
    def clickhouse(self) -> ClickHouseSettings:
        return ClickHouseSettings(host=HOST, port=self._warehouse.port)

    @property
    def api_url(self) -> str:
        return f"http://{HOST}:{self._ports['api']}"

    @property
    def registry(self) -> Path:
        return self.data_dir / "registry"

    @property
    def signing_key(self) -> Path:
        return self.data_dir / "keys" / "driftline.pem"

    def environment(self) -> dict[str, str]:
        """The settings every service is started with."""
        signer = Signer.create(self.signing_key)
        return {
            "DRIFTLINE_KAFKA__BOOTSTRAP": self._kafka.bootstrap,
            "DRIFTLINE_KAFKA__INPUT_PARTITIONS": str(self._partitions),
            "DRIFTLINE_CLICKHOUSE__HOST": HOST,
            "DRIFTLINE_CLICKHOUSE__PORT": str(self._warehouse.port),
            "DRIFTLINE_SIGNING__KEY_FILE": str(self.signing_key),
            "DRIFTLINE_SIGNING__TRUSTED": json.dumps([base64.b64encode(signer.public).decode()]),
            "DRIFTLINE_SCORER__REGISTRY": str(self.registry),
            "DRIFTLINE_CONTROLLER__REGISTRY": str(self.registry),
            "DRIFTLINE_TRAINER__REGISTRY": str(self.registry),
            "DRIFTLINE_CONTROLLER__API_PORT": str(self._ports["api"]),
            # A name of its own gives whoever is killed its partitions back at once.
            "DRIFTLINE_MONITOR__INSTANCE": "monitor-0",
            "DRIFTLINE_ARCHIVE__INSTANCE": "archive-0",
            # One BLAS and OpenMP thread a process: six processes share the machine.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        } | self._extra

    # life

    def start(self) -> None:
        """Bring everything up; raises PlatformError that names what failed, with everything stopped again."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        running = read_state(self.data_dir)
        if running is not None:
            raise PlatformError(
                f"a platform already runs over {self.data_dir} (pid {running['pid']}); `driftline down` stops it"
            )
        free = shutil.disk_usage(self.data_dir).free
        if free < FREE_BYTES_MIN:
            raise PlatformError(
                f"{self.data_dir}: {free // 2**20} MiB free on that disk, {FREE_BYTES_MIN // 2**20} MiB are needed; "
                "free some space or choose another --data-dir"
            )
        require_free_port(self._ports["api"], "the controller's API")
        (self.data_dir / "logs").mkdir(exist_ok=True)
        began = time.monotonic()
        self._kafka.start(self.data_dir / "kafka", self._ports["kafka"])
        self._warehouse.start(self.data_dir / "warehouse", self._ports["warehouse"])
        self._warehouse.wait_ready()
        self._say("warehouse", f"ready on {self._warehouse.url} after {time.monotonic() - began:.1f} s")
        migrated = threading.Thread(target=self._guard, args=(self._migrate,), daemon=True)
        migrated.start()
        self._kafka.wait_ready()
        self._say("kafka", f"ready on {self._kafka.bootstrap} after {time.monotonic() - began:.1f} s")
        from deploy.topics import create_topics

        create_topics(self.kafka)
        migrated.join()
        if self.failure:
            raise PlatformError(self.failure)
        self._add(self._wanted, began)
        self._watcher = threading.Thread(target=self._watch, name="watch-children", daemon=True)
        self._watcher.start()

    def add(self, *services: str) -> None:
        """Start further services of a platform that runs, and wait until they are ready."""
        with self._lock:
            self._add(services, time.monotonic())

    def _add(self, services: tuple[str, ...], began: float) -> None:
        environment = self.environment()
        started = []
        if any(name.partition("-")[0] in COMPILED for name in services):
            compile_once(lambda text: self._say("monitor", text))
        for name in services:
            kind, _, number = name.partition("-")
            module, *arguments = SERVICES[kind]
            log = self.data_dir / "logs" / f"{name}.log"
            port = free_port()
            self._metrics_ports[name] = port
            own = environment | {"DRIFTLINE_METRICS_PORT": str(port)}
            if number:
                own[f"DRIFTLINE_{kind.upper()}__INSTANCE"] = name
            service = Service(name, module, tuple(arguments), log, own)
            service.start()
            started.append(service)
            self._services[name] = service
        self._write_state()
        for service in started:
            self._wait_ready(service, began)

    def _migrate(self) -> None:
        from deploy.migrate import migrate

        migrate(self.clickhouse)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - told to whoever waits, whatever it is
            self.failure = f"{type(error).__name__}: {error}"

    def _wait_ready(self, service: Service, began: float, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not service.ready():
            assert service.child is not None
            if service.child.poll() is not None:
                raise PlatformError(
                    f"{service.name} died while starting (exit status {service.child.returncode}); "
                    f"{service.log} ends with:\n{tail(service.log)}"
                )
            if time.monotonic() > deadline:
                raise PlatformError(
                    f"{service.name} is not ready after {timeout_s:.0f} s; {service.log} ends with:\n{tail(service.log)}"
                )
            if self._stopping.wait(0.02):
                raise PlatformError("stopped while starting")
        self._say(service.name, f"ready after {time.monotonic() - began:.1f} s")

    def _watch(self) -> None:
        """Start again what died, and give up on what keeps dying."""
        while not self._stopping.wait(0.1):
            with self._lock:
                if self._stopping.is_set():
                    return
                if not all(self.alive(name) for name in STORES):
                    self._revive_stores()
                for service in self._services.values():
                    if service.child is not None and service.child.poll() is not None:
                        self._restart(service)

    def _revive_stores(self) -> None:
        try:
            died = [name for name in STORES if not self.alive(name)]
            self._reviving = set(died)
            if "kafka" in died:
                self._say("kafka", "died; starting it again over the same data")
                port = int(self._kafka.bootstrap.rpartition(":")[2])
                self._kafka.stop()
                self._kafka.start(self.data_dir / "kafka", port)
                self._kafka.wait_ready(REVIVE_S)
                self._reviving.discard("kafka")
                self._say("kafka", "ready again")
            if "warehouse" in died:
                self._say("warehouse", "died; starting it again over the same data")
                port = self._warehouse.port
                self._warehouse.stop()
                self._warehouse.start(self.data_dir / "warehouse", port)
                self._warehouse.wait_ready(REVIVE_S)
                self._reviving.discard("warehouse")
                self._say("warehouse", "ready again")
            for name in died:
                self._revived[name] += 1
            self._write_state()
        except PlatformError as error:
            self.failure = str(error)
            self._stopping.set()

    def _restart(self, service: Service) -> None:
        assert service.child is not None
        status = service.child.returncode
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        now = time.monotonic()
        service.restarts.append(now)
        while service.restarts and now - service.restarts[0] > RESTART_WINDOW_S:
            service.restarts.popleft()
        service.died = how
        if len(service.restarts) > self._restarts_max:
            self.failure = (
                f"{service.name} died {len(service.restarts)} times within {RESTART_WINDOW_S:.0f} s, last: {how}; "
                f"{service.log} ends with:\n{tail(service.log)}"
            )
            self._say(service.name, f"given up: {how}")
            self._stopping.set()
            return
        self._say(service.name, f"died ({how}); starting it again")
        service.restarted += 1
        service.start()
        self._write_state()

    def kill(self, service: str, sign: int = signal.SIGKILL) -> int:
        """Send ``sign`` to a service's process, for tests of recovery. Returns the pid."""
        child = self._services[service].child
        assert child is not None
        child.send_signal(sign)
        return child.pid

    def pid(self, name: str) -> int | None:
        """The process of a service, of ``kafka`` or of ``warehouse``; None when it is not started."""
        if name in STORES:
            return self._kafka.pid if name == "kafka" else self._warehouse.pid
        child = self._services[name].child
        return None if child is None else child.pid

    def alive(self, name: str) -> bool:
        """Whether that process is there; one that is stopped by a signal counts as alive."""
        pid = self.pid(name)
        return pid is not None and _alive(pid)

    def ready(self, name: str) -> bool:
        """Whether it is there and, for a service, has said that it is ready since it was last started."""
        return self.alive(name) and (
            name not in self._reviving if name in STORES else self._services[name].ready()
        )

    @property
    def restarted(self) -> dict[str, int]:
        """How often each service had to be started again; a store only if it had to be."""
        revived = {name: times for name, times in self._revived.items() if times}
        return {service.name: service.restarted for service in self._services.values()} | revived

    def log(self, service: str) -> Path:
        return self._services[service].log

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until something failed for good or the platform is stopped. True when it is over."""
        return self._stopping.wait(timeout_s)

    def stop(self) -> None:
        """Stop services, then the stores, in order; no process of ours is left. May be called twice."""
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        with self._lock:
            for service in self._services.values():
                if service.child is not None and service.child.poll() is None:
                    service.child.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 10.0
            for service in self._services.values():
                if service.child is not None:
                    stop_child(service.child, timeout_s=max(0.1, deadline - time.monotonic()))
                    self._say(service.name, "stopped")
            self._warehouse.stop()
            self._kafka.stop()
            with suppress(OSError):
                (self.data_dir / STATE_FILE).unlink()

    def _write_state(self) -> None:
        shared = {
            name: value
            for name, value in self.environment().items()
            if name.startswith("DRIFTLINE_") and not name.endswith("__INSTANCE")
        }
        state: dict[str, Any] = {
            "environment": shared | {"DRIFTLINE_API": self.api_url},
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "kafka": self._kafka.bootstrap,
            "clickhouse": self._warehouse.url,
            "api": self.api_url,
            "metrics": {name: f"http://{HOST}:{port}/metrics" for name, port in self._metrics_ports.items()},
            "processes": {"kafka": self._kafka.pid, "warehouse": self._warehouse.pid}
            | {s.name: s.child.pid for s in self._services.values() if s.child is not None},
            "restarted": self.restarted,
            "logs": {s.name: str(s.log) for s in self._services.values()}
            | {
                "kafka": str(self.data_dir / "kafka" / "kafka.log"),
                "warehouse": str(self.data_dir / "warehouse" / "warehouse.log"),
            },
        }
        draft = self.data_dir / (STATE_FILE + ".new")
        draft.write_text(json.dumps(state, indent=1))
        draft.replace(self.data_dir / STATE_FILE)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read_state(data_dir: Path) -> dict[str, Any] | None:
    """What the platform over ``data_dir`` wrote about itself, or None when none runs there.

    A file left by a killed platform is recognised: the process is gone or is another one under the same number.
    """
    try:
        state: dict[str, Any] = json.loads((data_dir / STATE_FILE).read_text())
        process = psutil.Process(int(state["pid"]))
        if abs(process.create_time() - float(state["started"])) > 1.0:
            return None
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None
    return state


def stop_running(data_dir: Path, timeout_s: float = 30.0) -> bool:
    """Ask the platform over ``data_dir`` to stop and wait for it. False when none was running.

    Raises PlatformError when it has not gone in time.
    """
    state = read_state(data_dir)
    if state is None:
        return False
    process = psutil.Process(int(state["pid"]))
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            raise PlatformError(
                f"the platform (pid {process.pid}) has not stopped after {timeout_s:.0f} s"
            ) from None
    return True
