"""What only the embedded warehouse has to show: its process, its directory, and the bare HTTP protocol."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import Any

import clickhouse_connect
import numpy as np
import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from deploy.local.children import PROJECT_ROOT, free_port
from deploy.local.warehouse import LocalWarehouse
from schemas.errors import PlatformError

pytestmark = pytest.mark.integration


@pytest.fixture
def own() -> Iterator[LocalWarehouse]:
    """A warehouse the test starts and stops itself."""
    with LocalWarehouse() as server:
        yield server


def _http(
    url: str, body: bytes | None = None, *, headers: dict[str, str] | None = None, **parameters: str
) -> tuple[int, Message, bytes]:
    """(status, headers, body) of one request: GET without a body, POST with one."""
    target = f"{url}/?{urllib.parse.urlencode(parameters)}"
    request = urllib.request.Request(target, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_kill_and_restart_lose_nothing_acknowledged(own: LocalWarehouse, tmp_path: Path) -> None:
    """kill -9 right after an answer, start again over the same directory: tables and every acknowledged row are there."""
    own.start(tmp_path)
    own.wait_ready()
    client = clickhouse_connect.get_client(dsn=own.url)
    client.command("CREATE DATABASE kept")
    client.command("CREATE TABLE kept.t (a UInt64) ENGINE = ReplacingMergeTree ORDER BY a")
    rows = 100_000
    for batch in range(5):
        numbers = np.arange(batch * rows, (batch + 1) * rows, dtype=np.uint64)
        columns: list[Any] = [numbers]
        client.insert("kept.t", columns, column_names=["a"], column_oriented=True)
    own.kill()
    own.start(tmp_path)
    own.wait_ready()
    again = clickhouse_connect.get_client(dsn=own.url)
    assert again.query("SELECT count(), max(a) FROM kept.t").result_rows == [(500_000, 499_999)]
    own.stop()
    own.start(tmp_path)
    own.wait_ready()
    third = clickhouse_connect.get_client(dsn=own.url)
    assert third.query("SELECT count() FROM kept.t").result_rows == [(500_000,)]


def test_kill_between_answers_loses_no_acknowledged_insert(own: LocalWarehouse, tmp_path: Path) -> None:
    """kill -9 while inserts are under way: every acknowledged one is there, every other is there whole or not at all."""
    own.start(tmp_path)
    own.wait_ready()
    setup = clickhouse_connect.get_client(dsn=own.url)
    setup.command(
        "CREATE TABLE t (writer UInt8, sequence UInt32) ENGINE = MergeTree ORDER BY (writer, sequence)"
    )
    rows, url = 2_000, own.url
    enough = threading.Barrier(3, timeout=120)

    def write(writer: int) -> int:
        client, acknowledged = clickhouse_connect.get_client(dsn=url), 0
        with suppress(ClickHouseError, ConnectionError):
            while True:
                columns: list[Any] = [np.full(rows, writer, np.uint8), np.full(rows, acknowledged, np.uint32)]
                client.insert("t", columns, column_names=["writer", "sequence"], column_oriented=True)
                acknowledged += 1
                if acknowledged == 20:
                    enough.wait()
        return acknowledged

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, number) for number in range(2)]
        enough.wait()
        own.kill()
        acknowledged = [each.result(timeout=120) for each in writers]
    own.start(tmp_path)
    own.wait_ready()
    again = clickhouse_connect.get_client(dsn=own.url)
    for writer, count in enumerate(acknowledged):
        query = "SELECT sequence, count() FROM t WHERE writer = {w:UInt8} GROUP BY sequence ORDER BY sequence"
        found = again.query(query, {"w": writer}).result_rows
        assert [each[0] for each in found][:count] == list(range(count))
        assert len(found) <= count + 1
        assert {each[1] for each in found} == {rows}


def test_sigterm_in_the_foreground_exits_cleanly(tmp_path: Path) -> None:
    """The module run by a supervisor stops on SIGTERM with status 0."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "deploy.local.warehouse",
        "--data-dir",
        str(tmp_path),
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, cwd=PROJECT_ROOT) as child:
        try:
            _wait_for_listener(port, child)
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=120) == 0
        finally:
            child.kill()


def test_dies_with_its_parent(tmp_path: Path) -> None:
    """kill -9 of the process that started it leaves no orphan."""
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from deploy.local.warehouse import LocalWarehouse
        server = LocalWarehouse()
        server.start(Path(sys.argv[1]))
        server.wait_ready()
        print(server.pid, flush=True)
        time.sleep(600)
    """)
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    orphan.wait(timeout=120)


def test_one_owner_of_a_directory(own: LocalWarehouse, tmp_path: Path) -> None:
    """A second server over the same directory refuses with the reason."""
    own.start(tmp_path)
    own.wait_ready()
    second = LocalWarehouse()
    second.start(tmp_path)
    with pytest.raises(PlatformError, match="already owns the warehouse directory"):
        second.wait_ready()
    assert second.pid is None


def test_port_in_use_is_named(own: LocalWarehouse, tmp_path: Path) -> None:
    """A taken port is an error with the port in it, before anything starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PlatformError, match=f"port {port} is already in use by .*pid"):
            own.start(tmp_path, port)


def test_password_is_checked(own: LocalWarehouse, tmp_path: Path) -> None:
    """With a password set, headers, basic authentication and URL parameters all work, and nothing else does."""
    own.start(tmp_path, user="watcher", password="s'cret")
    own.wait_ready()
    with clickhouse_connect.get_client(dsn=own.url, username="watcher", password="s'cret") as client:
        assert client.command("SELECT 1") == 1
    with pytest.raises(DatabaseError) as refused:
        clickhouse_connect.get_client(dsn=own.url, username="watcher", password="wrong")
    assert refused.value.code == 516
    keys = {"X-ClickHouse-User": "watcher", "X-ClickHouse-Key": "s'cret"}
    assert _http(own.url, b"SELECT 1", headers=keys)[2] == b"1\n"
    assert _http(own.url, b"SELECT 1", user="watcher", password="s'cret")[2] == b"1\n"
    status, headers, text = _http(own.url, b"SELECT 1")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (403, "516")
    assert b"s'cret" not in text


def test_body_limit(own: LocalWarehouse, tmp_path: Path) -> None:
    """A body over the limit, measured after decompression, is refused with the limit and stores nothing."""
    own.start(tmp_path, body_bytes_max=100_000)
    own.wait_ready()
    _http(own.url, b"CREATE TABLE t (a String) ENGINE = MergeTree ORDER BY a")
    status, headers, text = _http(own.url, b"x\n" * 100_000, query="INSERT INTO t FORMAT TSV")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (413, "307")
    assert b"100000 bytes" in text
    assert _http(own.url, b"SELECT count() FROM t")[2] == b"0\n"


def test_unfinished_body_stores_nothing(warehouse: LocalWarehouse, unique_name: str) -> None:
    """A client that dies in the middle of an insert's body leaves no row."""
    _http(warehouse.url, f"CREATE TABLE {unique_name} (a String) ENGINE = MergeTree ORDER BY a".encode())
    query = urllib.parse.quote(f"INSERT INTO {unique_name} FORMAT TSV")
    with socket.create_connection((warehouse.host, warehouse.port)) as dying:
        head = f"POST /?query={query} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        dying.sendall(head.encode() + b"row\n" * 10)
    assert _http(warehouse.url, f"SELECT count() FROM {unique_name}".encode())[2] == b"0\n"


def test_plain_protocol(warehouse: LocalWarehouse) -> None:
    """What curl sees: query in the URL or the body, formats, parameters, headers, ping."""
    url = warehouse.url
    for path in ("/ping", "/replicas_status", "/"):
        with urllib.request.urlopen(url + path, timeout=120) as response:
            assert response.read() == b"Ok.\n"
    status, headers, body = _http(
        url, query="SELECT 1 AS a, 'x' AS b", default_format="JSONEachRow", query_id="mine"
    )
    assert (status, body) == (200, b'{"a":1,"b":"x"}\n')
    assert headers["X-ClickHouse-Query-Id"] == "mine"
    assert headers["X-ClickHouse-Format"] == "JSONEachRow"
    assert headers["X-ClickHouse-Timezone"] == "UTC"
    assert json.loads(headers["X-ClickHouse-Summary"])["result_rows"] == "1"
    assert _http(url, b"SELECT {n:UInt8} + 1", param_n="41")[2] == b"42\n"
    assert _http(url, b" 'tail'", query="SELECT")[2] == b"tail\n"
    whole = _http(url, b"SELECT number FROM numbers(300000)", wait_end_of_query="1")
    assert whole[2].count(b"\n") == 300_000
    assert json.loads(whole[1]["X-ClickHouse-Summary"])["result_rows"] == "300000"


@pytest.mark.parametrize("encoding", ["gzip", "lz4", "zstd", "deflate"])
def test_compressed_answers(warehouse: LocalWarehouse, encoding: str) -> None:
    """An encoding the client accepts is used when it asks for compression, and decodes to the same bytes."""
    with clickhouse_connect.get_client(
        dsn=warehouse.url, compress=encoding if encoding != "deflate" else False
    ) as client:
        assert int(client.query_np("SELECT number FROM numbers(200000)").sum()) == 19_999_900_000
    headers = _http(
        warehouse.url, b"SELECT 1", headers={"Accept-Encoding": encoding}, enable_http_compression="1"
    )[1]
    assert headers["Content-Encoding"] == encoding


@pytest.mark.parametrize(
    ("body", "parameters", "status", "code"),
    [
        (b"SELECT * FROM nowhere", {}, 404, "60"),
        (b"SELEC 1", {}, 400, "62"),
        (b"", {}, 400, "62"),
        (b"SELECT 1", {"no_such_setting": "1"}, 404, "115"),
        (b"SELECT 1", {"a'; DROP": "1"}, 400, "36"),
        (b"SELECT 1", {"database": "nowhere"}, 404, "81"),
        (b"SELECT {x:UInt8}", {}, 400, "456"),
        (b"SELECT {x:UInt8}", {"param_x": "abc"}, 400, "457"),
        (b"SELECT 1", {"compress": "1"}, 501, "48"),
        (b"SELECT 1", {"role": "admin"}, 501, "48"),
        (b"SELECT 1", {"session_id": "unheard-of", "session_check": "1"}, 404, "372"),
        (b"SELECT 1", {"session_id": "s", "session_timeout": "-1"}, 400, "374"),
        (b"SELECT 1 FORMAT NoSuchFormat", {}, 404, "73"),
        (None, {"query": "CREATE DATABASE by_get"}, 403, "164"),
    ],
)
def test_refusals(
    warehouse: LocalWarehouse, body: bytes | None, parameters: dict[str, str], status: int, code: str
) -> None:
    """Each refusal has the status and code of a server and a message that starts with the code."""
    answered, headers, text = _http(warehouse.url, body, headers=None, **parameters)
    assert (answered, headers["X-ClickHouse-Exception-Code"]) == (status, code)
    assert text.startswith(f"Code: {code}. DB::Exception: ".encode())


def test_long_form_fields_are_refused_as_by_a_server(warehouse: LocalWarehouse) -> None:
    """A parameter over 128 KiB fails here too, so that it is not found out in production."""
    client = clickhouse_connect.get_client(dsn=warehouse.url)
    with client, pytest.raises(DatabaseError, match="over 131072 bytes"):
        client.query("SELECT length({s:String})", {"s": "y" * 131_073})


def test_foreign_web_pages_are_refused(warehouse: LocalWarehouse) -> None:
    """A page in a browser can post to the loopback address; it is turned away."""
    assert _http(warehouse.url, b"SELECT 1", headers={"Origin": "https://evil.example"})[0] == 403


def test_sessions(warehouse: LocalWarehouse, unique_name: str) -> None:
    """USE, SET and a failed request's settings stay in their session; a closed session forgets."""
    url, name = warehouse.url, unique_name
    _http(url, f"CREATE DATABASE {name}".encode())
    _http(url, f"USE {name}".encode(), session_id=name)
    assert _http(url, b"SELECT currentDatabase()", session_id=name)[2] == f"{name}\n".encode()
    assert _http(url, b"SELECT currentDatabase()", session_id=name, database="system")[2] == b"system\n"
    assert _http(url, b"SELECT currentDatabase()", session_id=name)[2] == f"{name}\n".encode()
    assert _http(url, b"SELECT currentDatabase()")[2] == b"default\n"
    threads = b"SELECT getSetting('max_block_size')"
    usual = _http(url, threads, session_id=name)[2]
    assert _http(url, threads, session_id=name, max_block_size="77", no_such_setting="1")[0] == 404
    assert _http(url, threads, session_id=name)[2] == usual
    _http(url, b"SELECT 1", session_id=name, close_session="1")
    assert _http(url, b"SELECT 1", session_id=name, session_check="1")[0] == 404


def _wait_for_listener(port: int, child: subprocess.Popen[bytes]) -> None:
    import time

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail("nobody listens")
