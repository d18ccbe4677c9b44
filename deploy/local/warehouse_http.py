"""Why: every process and tool uses the same ClickHouse HTTP client, whether the server is a cluster or this engine.

Speaks the HTTP protocol of a ClickHouse server before :class:`Engine`, so that an unmodified clickhouse-connect or
curl works and production differs by a URL alone.

Not supported, and refused with NOT_IMPLEMENTED: ClickHouse's own block compression (``compress=1``,
``decompress=1``: use Accept-Encoding and Content-Encoding), roles, external data files, bearer tokens. A query id
is echoed but unknown to the engine, so ``KILL QUERY`` does not find it.
"""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack
from functools import partial
from typing import IO, TypeVar

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from deploy.local.warehouse_engine import Call, Engine, Opened, Stats
from deploy.local.warehouse_request import Received, WarehouseSpec, authenticate, receive
from deploy.local.warehouse_sql import Kind, MalformedStatement
from deploy.local.warehouse_wire import (
    WireError,
    choose_encoding,
    encoder,
    engine_error,
    exception_trailer,
    http_status,
)

CONCURRENT_MAX = 32
_READ_BYTES = 1 << 20
T = TypeVar("T")


def build_app(engine: Engine, spec: WarehouseSpec) -> Starlette:
    """The ASGI application before one engine."""
    server = _Server(engine, spec)
    return Starlette(
        routes=[
            Route("/", server.query, methods=["GET", "POST", "PUT"]),
            Route("/ping", _ok, methods=["GET"]),
            Route("/replicas_status", _ok, methods=["GET"]),
        ]
    )


async def _ok(_: Request) -> Response:
    return PlainTextResponse("Ok.\n")


class _Server:
    def __init__(self, engine: Engine, spec: WarehouseSpec) -> None:
        self._engine = engine
        self._spec = spec
        self._limiter = anyio.CapacityLimiter(CONCURRENT_MAX)

    async def query(self, request: Request) -> Response:
        headers = {
            "X-ClickHouse-Query-Id": request.query_params.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Server-Display-Name": self._engine.display_name,
            "X-ClickHouse-Timezone": self._engine.timezone,
        }
        if request.method == "GET" and not request.query_params.get("query"):
            return PlainTextResponse("Ok.\n", headers=headers)
        cleanup = ExitStack()
        try:
            authenticate(request, self._spec)
            received = await receive(request, self._spec, cleanup)
            return await self._answer(request, received, headers, cleanup)
        except ClientDisconnect:
            cleanup.close()
            return Response(status_code=499)
        except (WireError, MalformedStatement, RuntimeError, OSError) as error:
            cleanup.close()
            return self._failure(error, headers)
        except BaseException:
            cleanup.close()
            raise

    async def _answer(
        self, request: Request, received: Received, headers: dict[str, str], cleanup: ExitStack
    ) -> Response:
        statement = received.statement
        if request.method == "GET" and statement.kind in (Kind.INSERT, Kind.COMMAND):
            raise WireError(
                164, "READONLY", "Cannot execute query in readonly mode: use POST to change anything"
            )
        parameters = received.parameters
        call = Call(
            statement,
            output_format=parameters.get("default_format")
            or request.headers.get("x-clickhouse-format")
            or "TabSeparated",
            database=parameters.get("database") or request.headers.get("x-clickhouse-database"),
            settings=received.settings,
            parameters=received.query_parameters,
        )
        session_id = parameters.get("session_id")
        opened = self._engine.session(
            session_id,
            timeout_s=received.session_timeout_s,
            must_exist=received.flag("session_check"),
        )
        if session_id and received.flag("close_session"):
            cleanup.callback(self._engine.close_session, session_id)
        if statement.kind is Kind.INSERT:
            written = await self._in_thread(partial(_insert, self._engine, opened, call, received.body))
            await self._in_thread(cleanup.close)
            return Response(headers={**headers, "X-ClickHouse-Summary": _summary(written)})
        stats = Stats()
        blocks = _blocks(self._engine, opened, call, stats)
        cleanup.callback(blocks.close)
        source: Iterator[bytes] = blocks
        if received.flag("wait_end_of_query", "http_wait_end_of_query"):
            spool = cleanup.enter_context(self._spec.spool())
            await self._in_thread(partial(_drain, blocks, spool))
            source = iter(partial(spool.read, _READ_BYTES), b"")
        first = await self._in_thread(partial(next, source, None))
        headers["X-ClickHouse-Summary"] = _summary(stats)
        media_type = "text/plain"
        if first is not None or statement.kind in (Kind.SELECT, Kind.READ):
            headers["X-ClickHouse-Format"] = statement.format or call.output_format
            media_type = _media_type(headers["X-ClickHouse-Format"])
        encoding = ""
        if received.flag("enable_http_compression"):
            encoding = choose_encoding(request.headers.get("accept-encoding", ""))
        if encoding:
            headers["Content-Encoding"] = encoding
        tag = headers["X-ClickHouse-Exception-Tag"] = secrets.token_hex(8)
        body = self._encoded(first, source, encoding, tag, cleanup)
        return _Streamed(
            body, headers=headers, media_type=media_type, done=partial(self._in_thread, cleanup.close)
        )

    async def _encoded(
        self, first: bytes | None, source: Iterator[bytes], encoding: str, tag: str, cleanup: ExitStack
    ) -> AsyncIterator[bytes]:
        compressor = encoder(encoding)
        block = first
        try:
            while block is not None:
                out = await self._in_thread(partial(compressor.feed, block)) if encoding else block
                if out:
                    yield out
                block = await self._in_thread(partial(next, source, None))
        except RuntimeError as error:  # the status line is gone: say it in the body, as a server does
            yield compressor.feed(exception_trailer(tag, engine_error(str(error), self._engine.version)[1]))
        await self._in_thread(cleanup.close)  # before the end is sent: the client may ask again at once
        tail = compressor.finish()
        if tail:
            yield tail

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    def _failure(self, error: Exception, headers: dict[str, str]) -> Response:
        if isinstance(error, MalformedStatement):
            error = WireError(62, "SYNTAX_ERROR", str(error))
        elif isinstance(error, OSError):
            error = WireError(243, "NOT_ENOUGH_SPACE", f"cannot buffer the request: {error}")
        if isinstance(error, WireError):
            code, status = error.code, error.status
            text = f"{error.text} (version {self._engine.version})\n"
        else:
            code, text = engine_error(str(error), self._engine.version)
            status = http_status(code)
        return PlainTextResponse(text, status, headers={**headers, "X-ClickHouse-Exception-Code": str(code)})


class _Streamed(StreamingResponse):
    """A streamed body that frees its query whatever ends it: the last block, an error or a client that left."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        *,
        headers: dict[str, str],
        media_type: str,
        done: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._done()


def _insert(engine: Engine, opened: Opened, call: Call, body: IO[bytes]) -> Stats:
    body.seek(call.statement.data_at or 0)
    with opened as session, engine.prepared(session, call):
        return engine.insert(session, call, body)


def _blocks(engine: Engine, opened: Opened, call: Call, stats: Stats) -> Generator[bytes, None, None]:
    with opened as session, engine.prepared(session, call):
        yield from engine.stream(session, call, stats)


def _drain(blocks: Iterator[bytes], spool: IO[bytes]) -> None:
    for block in blocks:
        spool.write(block)
    spool.seek(0)


def _summary(stats: Stats) -> str:
    """The figures a server reports, as text like it does."""
    figures = {
        "read_rows": stats.read_rows,
        "read_bytes": stats.read_bytes,
        "written_rows": stats.written_rows,
        "written_bytes": stats.written_bytes,
        "total_rows_to_read": stats.read_rows,
        "result_rows": stats.result_rows,
        "result_bytes": 0,
        "elapsed_ns": stats.elapsed_ns,
    }
    return json.dumps({name: str(value) for name, value in figures.items()})


def _media_type(name: str) -> str:
    if name.startswith("JSON"):
        return "application/json"
    if name.startswith("CSV"):
        return "text/csv"
    if name.startswith(("TSV", "TabSeparated")):
        return "text/tab-separated-values"
    return "application/octet-stream" if name in ("Native", "RowBinary", "Arrow", "Parquet") else "text/plain"
