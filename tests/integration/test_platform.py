"""The local platform: everything comes up, a dead child is named and started again, nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from deploy.local.platform import Platform, read_state, stop_running
from schemas.errors import PlatformError

pytestmark = pytest.mark.integration


def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait for ``condition``; fail the test when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def children() -> set[psutil.Process]:
    """Every process below this one: the suite's shared broker and warehouse too, so tests compare before and after."""
    return set(psutil.Process().children(recursive=True))


def test_a_dead_child_is_named_and_started_again_and_nothing_is_left(tmp_path: Path) -> None:
    """kill -9 of a service, of the warehouse and of Kafka: each is said, each comes back; a stop leaves no process."""
    before = children()
    said: list[tuple[str, str]] = []
    platform = Platform(
        tmp_path, services=("archive",), say=lambda service, text: said.append((service, text))
    )
    with platform:
        state = read_state(tmp_path)
        assert state is not None
        assert state["pid"] == os.getpid()
        for name in ("archive", "warehouse", "kafka"):
            pid = state["processes"][name]
            os.kill(pid, signal.SIGKILL)
            until(lambda name=name: any(s == name and "starting it again" in t for s, t in said))  # type: ignore[misc]
            until(lambda pid=pid: not psutil.pid_exists(pid) or _zombie(pid))  # type: ignore[misc]
        until(lambda: ("kafka", "ready again") in said and ("warehouse", "ready again") in said)
        assert platform.restarted["archive"] >= 1
        assert platform.failure is None
        running = children() - before
        assert len(running) >= 3
    _, alive = psutil.wait_procs(running, timeout=60)
    assert alive == []
    assert read_state(tmp_path) is None


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """The message says which port, who wants it and what to do; nothing stays behind."""
    before = children()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PlatformError, match=rf"port {port} is already in use.*Kafka"):
            Platform(tmp_path, services=(), kafka_port=port).start()
    assert children() <= before


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started: how much is free, how much is needed."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: _Usage(10, 9, 1))
    with pytest.raises(PlatformError, match="0 MiB free on that disk, 512 MiB are needed"):
        Platform(tmp_path, services=()).start()


def test_the_command_starts_shows_and_stops_the_whole_system(tmp_path: Path) -> None:
    """``driftline up`` with every service; the API answers; ``driftline down`` from elsewhere leaves no process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deploy.cli", "up", "--data-dir", str(tmp_path), "--kafka-port", "0"]
    command += ["--warehouse-port", "0", "--api-port", str(port), "--partitions", "1"]
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until(lambda: "Ctrl-C" in log.read_text() or process.poll() is not None, 240)
        assert process.poll() is None, log.read_text()
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=60).json() == {"status": "ok"}
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 8
        assert stop_running(tmp_path)
        assert process.wait(120) == 0, log.read_text()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []
    finally:
        process.kill()
        process.wait()


def _zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
