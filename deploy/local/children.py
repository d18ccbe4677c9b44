"""Why: a local platform that leaves a Kafka or a database behind after a crash is worse than none.

A child is started with ``--parent-pid``; the first thing it does is :func:`bind_to_parent`, which asks the kernel
to send it SIGTERM when its parent dies, even by ``kill -9``. The wish survives ``exec``, so the Java process that
replaces our launcher keeps it. It is asked for by the child itself, not in a ``preexec_fn``, because Python code
between fork and exec is unsafe in a parent with threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from deploy.local.cache import cache_dir
from schemas.errors import PlatformError

HOST = "127.0.0.1"
PROJECT_ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02
_given: deque[int] = deque(maxlen=1_000)
#: The kernel counts the THREAD that forked as the parent: a child started from a short-lived worker thread would
#: die with it. So every child is started from this one thread, which lives as long as the process.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def bind_to_parent(parent_pid: int) -> None:
    """Ask for SIGTERM when the parent dies. Exits at once if it already has. Does nothing outside Linux."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
            raise PlatformError(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:
        sys.exit("the process that started this one is gone")


def spawn_module(
    module: str, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Run ``python -m module arguments --parent-pid N`` with its output appended to ``log``.

    The module must call :func:`bind_to_parent` with that number. The child gets its own session, so that Ctrl-C
    in the terminal reaches the parent alone, which then stops its children in order.
    """
    inherited = {**os.environ, **(environment or {})}
    paths = [str(PROJECT_ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    inherited["PYTHONPATH"] = os.pathsep.join(paths)
    if inherited.pop("PYTHONDONTWRITEBYTECODE", ""):
        # Whoever wants no bytecode beside the code: each start of a child would compile all that it imports, for seconds.
        inherited["PYTHONPYCACHEPREFIX"] = str(cache_dir() / "bytecode")
    command = [sys.executable, "-m", module, *arguments, "--parent-pid", str(os.getpid())]

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=inherited,
                start_new_session=True,
            )

    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return _spawner.submit(start).result()
    except OSError as error:
        raise PlatformError(f"cannot start {module}: {error}; its log would be {log}") from error


def stop_child(child: subprocess.Popen[bytes], *, timeout_s: float) -> None:
    """SIGTERM, wait, and SIGKILL only when the child does not go in time."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout_s)
    if child.poll() is None:
        child.kill()
    child.wait()


def wait_until(
    ready: Callable[[], bool], child: subprocess.Popen[bytes], *, name: str, log: Path, timeout_s: float
) -> None:
    """Wait until ``ready()``; a child that dies or is late is a :class:`PlatformError` with the end of its log."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if child.poll() is not None:
            raise PlatformError(
                f"{name} died while starting (exit status {child.returncode}); {log} ends with:\n{tail(log)}"
            )
        if time.monotonic() > deadline:
            raise PlatformError(f"{name} is not ready after {timeout_s:.0f} s; {log} ends with:\n{tail(log)}")
        time.sleep(_POLL_S)


def tail(log: Path, lines_max: int = 15) -> str:
    """The last lines of a log, for an error message; empty if it cannot be read."""
    try:
        with log.open("rb") as source:
            source.seek(max(0, os.fstat(source.fileno()).st_size - 16_384))
            text = source.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines_max:])


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on at this moment, and that this process was not given before:
    of several that are wanted at once no two are the same."""
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.append(port)
            return port


def require_free_port(port: int, name: str) -> None:
    """Raise :class:`PlatformError` naming the port, who wants it and, where the system tells, who has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PlatformError(
                    f"{name} cannot listen on {HOST}:{port}: {error.strerror}; choose another port"
                ) from error
            raise PlatformError(
                f"port {port} is already in use{_holder(port)}; {name} needs it: stop that process or choose another port"
            ) from None


def _holder(port: int) -> str:
    try:
        import psutil  # type: ignore[import-untyped,unused-ignore]

        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and getattr(connection.laddr, "port", None) == port
                and connection.pid
            ):
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except Exception:  # noqa: BLE001 - only decorates a message; other users' processes may be hidden from us
        return ""
    return ""
