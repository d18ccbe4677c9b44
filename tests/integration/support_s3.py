"""A real S3-compatible store for tests: SeaweedFS from its package, as a process that dies with the tests.

``python -m tests.integration.support_s3`` is the launcher: it ties itself to its parent and becomes the server.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from pyarrow import fs

from deploy.local.children import HOST, bind_to_parent, free_port, spawn_module, stop_child, wait_until
from schemas.stores import S3Settings
from tests.support_tls import pair

KEY, SECRET = "driftline-test", "secret-of-the-test"
READER, READER_SECRET = "reader-test", "secret-of-the-reader"
BUCKET = "models"
_IDENTITIES = {
    "identities": [
        {
            "name": "writer",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER, "secretKey": READER_SECRET}],
            "actions": ["Read", "List"],
        },
    ]
}


class S3Server:
    """A running store with one empty bucket; ``endpoint`` is its address."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._child: subprocess.Popen[bytes] | None = None
        self.endpoint = ""
        #: The same in TLS, with a certificate nobody knows.
        self.secure_endpoint = ""
        self.ca_file = directory / "api.pem"
        self._ports: tuple[int, ...] = ()

    def start(self) -> None:
        """Bring it up and make the bucket: about three seconds."""
        (self._directory / "data").mkdir(parents=True)
        (self._directory / "identities.json").write_text(json.dumps(_IDENTITIES))
        log = self._directory / "server.log"
        pair(self._directory)
        options = self._options()
        self.endpoint = f"http://{HOST}:{options['s3.port']}"
        self.secure_endpoint = f"https://{HOST}:{options['s3.port.https']}"
        arguments = [f"-{name}={value}" for name, value in options.items()]
        self._child = spawn_module("tests.integration.support_s3", arguments, log=log)
        wait_until(self._answers, self._child, name="SeaweedFS", log=log, timeout_s=120)
        files = fs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, endpoint_override=self.endpoint, allow_bucket_creation=True
        )
        files.create_dir(BUCKET)

    def settings(self, **changes: object) -> S3Settings:
        """Settings of somebody who may do everything."""
        given = {
            "endpoint": self.endpoint, "access_key": KEY, "secret_key": SECRET, "timeout": "60s", "retries_max": 0,
        }  # fmt: skip
        return S3Settings.model_validate(given | changes)

    @contextmanager
    def away(self) -> Iterator[None]:
        """While it lasts the store takes connections and answers nothing."""
        assert self._child is not None
        self._child.send_signal(signal.SIGSTOP)
        # Its threads stop one after the other; until the last has, it may still answer.
        os.waitid(os.P_PID, self._child.pid, os.WSTOPPED)
        try:
            yield
        finally:
            self._child.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it without ceremony: nobody needs its data."""
        if self._child is not None:
            self._child.kill()
            stop_child(self._child, timeout_s=5)
        for port in self._ports:
            # Where its parts speak to each other; no option says where that is.
            for socket in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                socket.unlink(missing_ok=True)

    def _options(self) -> dict[str, object]:
        """One master, one volume, one filer and the S3 gateway, on ports of their own."""
        roles = ("master", "volume", "filer", "s3")
        names = [f"{role}.port{kind}" for role in roles for kind in ("", ".grpc")]
        ports = {name: free_port() for name in (*names, "s3.port.https")}
        self._ports = tuple(ports.values())
        here = self._directory
        return {
            "dir": here / "data", "ip": HOST, "ip.bind": HOST, "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64, "volume.max": 20, "volume.preStopSeconds": 0,
            "filer.localSocket": here / "f.sock", "s3.localSocket": here / "s.sock",
            "s3.cert.file": here / "api.pem", "s3.key.file": here / "api.key",
            "s3.config": here / "identities.json", "s3.iam": "false",
            "s3.autoCreateBucket": "false", "s3.port.iceberg": 0, "s3.port.lance": 0, **ports,
        }  # fmt: skip

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.endpoint}/healthz", timeout=10) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


def main() -> None:
    """Become the server, with whatever options it was given."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--parent-pid", type=int, required=True)
    given, options = parser.parse_known_args()
    bind_to_parent(given.parent_pid)
    weed = str(Path(sys.executable).with_name("weed"))
    os.execv(weed, [weed, "server", "-s3", *options])


if __name__ == "__main__":
    main()
