"""Why: the embedded warehouse as something to start, wait for and stop, mirroring :class:`LocalKafka`.

``python -m deploy.local.warehouse --data-dir D --port P`` runs it in the foreground; SIGTERM stops it cleanly.
The password, if any, comes from the environment (``DRIFTLINE_WAREHOUSE_PASSWORD``): a command line is public.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from deploy.local.children import (
    HOST,
    bind_to_parent,
    free_port,
    require_free_port,
    spawn_module,
    stop_child,
    wait_until,
)
from schemas.errors import PlatformError

PORT_DEFAULT = 8123
PASSWORD_VARIABLE = "DRIFTLINE_WAREHOUSE_PASSWORD"
_GRACE_S = 5


class LocalWarehouse:
    """The embedded warehouse as a child process that dies with this one. Not thread-safe; also a context manager."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._output = Path()
        self._port = 0

    def start(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        user: str = "default",
        password: str = "",
        body_bytes_max: int | None = None,
    ) -> None:
        """Start over ``data_dir`` (kept between starts) on ``port``, 0 for a free one. Returns before it is ready.

        Raises :class:`PlatformError` for a port in use.
        """
        if self._child is not None:
            raise PlatformError("this LocalWarehouse is already started; stop it first")
        data_dir = data_dir.resolve()
        self._port = port or free_port()
        require_free_port(self._port, "the warehouse")
        self._output = data_dir / "warehouse.out"
        arguments = ["--data-dir", str(data_dir), "--port", str(self._port), "--user", user]
        if body_bytes_max is not None:
            arguments += ["--body-bytes-max", str(body_bytes_max)]
        environment = {PASSWORD_VARIABLE: password}
        self._child = spawn_module(
            "deploy.local.warehouse", arguments, log=self._output, environment=environment
        )

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the server answers. Raises :class:`PlatformError` with the end of its log if it dies or is late."""
        if self._child is None:
            raise PlatformError("this LocalWarehouse is not started")
        try:
            wait_until(
                lambda: answers_ping(self.url),
                self._child,
                name="the warehouse",
                log=self._output,
                timeout_s=timeout_s,
            )
        except PlatformError:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """``http://host:port`` for clients."""
        return f"http://{HOST}:{self._port}"

    @property
    def host(self) -> str:
        return HOST

    @property
    def port(self) -> int:
        return self._port

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


def answers_ping(url: str) -> bool:
    """Whether a ClickHouse server, embedded or real, answers at ``url``."""
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=2.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def serve(data_dir: Path, port: int, *, user: str, password: str, body_bytes_max: int) -> None:
    """Run until SIGTERM or SIGINT. Raises :class:`PlatformError` when the port or the directory cannot be had."""
    os.environ["TZ"] = "UTC"  # before the engine loads: its server timezone must not depend on the machine
    import uvicorn

    from deploy.local.warehouse_engine import Engine
    from deploy.local.warehouse_http import build_app
    from deploy.local.warehouse_request import WarehouseSpec

    require_free_port(port, "the warehouse")
    engine = Engine(data_dir)
    spool_dir = (
        data_dir / "spool"
    )  # beside the data: the system's temporary directory may be small or in memory
    spool_dir.mkdir(exist_ok=True)
    spec = WarehouseSpec(user, password, body_bytes_max, spool_dir)

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """As uvicorn's, without raising the signal again at the end: a clean stop exits with status 0."""

            def stop(_: int, __: FrameType | None) -> None:
                self.should_exit = True

            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
            yield

    config = uvicorn.Config(
        build_app(engine, spec),
        http="h11",
        h11_max_incomplete_event_size=1 << 20,  # a server's own limit for the request line
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=75,
    )
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        Server(config).run(sockets=[listener])
    # A query still running in a thread would hold the exit up for as long as it likes: bound it.
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(_GRACE_S)
    os._exit(0)


def main(arguments: list[str] | None = None) -> None:
    """The command line of the foreground server."""
    from deploy.local.warehouse_request import BODY_BYTES_MAX

    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.warehouse", description="ClickHouse HTTP before chDB."
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=PORT_DEFAULT)
    parser.add_argument("--user", default="default")
    parser.add_argument("--body-bytes-max", type=int, default=BODY_BYTES_MAX)
    parser.add_argument(
        "--parent-pid", type=int, default=None, help="stop when this process, the parent, dies"
    )
    options = parser.parse_args(arguments)
    if options.parent_pid is not None:
        bind_to_parent(options.parent_pid)
    try:
        serve(
            options.data_dir.resolve(),
            options.port,
            user=options.user,
            password=os.environ.get(PASSWORD_VARIABLE, ""),
            body_bytes_max=options.body_bytes_max,
        )
    except PlatformError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
