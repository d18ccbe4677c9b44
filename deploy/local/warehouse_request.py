"""Why: the ClickHouse HTTP protocol spreads one request over URL, headers, form and body; here it becomes one value.

A body is received whole (decoded, on disk above 8 MiB) before a byte of it reaches the engine: a client that dies
half-way through an insert stores nothing.
"""

from __future__ import annotations

import base64
import binascii
import email.parser
import email.policy
import hmac
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from starlette.requests import Request

from deploy.local.warehouse_sql import HEAD_BYTES_MAX, Kind, Statement, parse
from deploy.local.warehouse_wire import Decoder, WireError

BODY_BYTES_MAX = 2 * 1024**3
STATEMENT_BYTES_MAX = 64 * 1024**2
FORM_BYTES_MAX = 16 * 1024**2
FIELD_BYTES_MAX = 128 * 1024
"""A server's own limit (``http_max_field_value_size``): what passes here must pass there."""
SPOOL_BYTES = 8 * 1024**2
SESSION_TIMEOUT_S_DEFAULT = 60.0
SESSION_TIMEOUT_S_MAX = 3600.0
#: URL parameters of the protocol itself; every other one is a setting of the query, unknown ones are refused by name.
_PROTOCOL = frozenset(
    (
        "add_http_cors_header",
        "buffer_size",
        "cancel_http_readonly_queries_on_client_close",
        "client_protocol_version",
        "close_session",
        "compress",
        "database",
        "decompress",
        "default_format",
        "enable_http_compression",
        "http_headers_progress_interval_ms",
        "http_response_buffer_size",
        "http_wait_end_of_query",
        "http_zlib_compression_level",
        "password",
        "query",
        "query_id",
        "quota_key",
        "role",
        "send_progress_in_http_headers",
        "session_check",
        "session_id",
        "session_timeout",
        "stacktrace",
        "user",
        "wait_end_of_query",
    )
)


@dataclass(frozen=True, slots=True)
class WarehouseSpec:
    """Who may enter (the defaults are a fresh server's), how large a decoded body may be, where large ones are kept."""

    user: str = "default"
    password: str = ""
    body_bytes_max: int = BODY_BYTES_MAX
    spool_dir: Path | None = None

    def spool(self) -> IO[bytes]:
        """A file in memory up to 8 MiB and on disk, without a name, above."""
        return tempfile.SpooledTemporaryFile(
            SPOOL_BYTES, dir=None if self.spool_dir is None else str(self.spool_dir)
        )


@dataclass(frozen=True, slots=True)
class Received:
    """One request: parameters from URL and form, the statement, and the file that holds statement and data."""

    parameters: Mapping[str, str]
    statement: Statement
    body: IO[bytes]

    def flag(self, *names: str) -> bool:
        return any(self.parameters.get(name, "0") not in ("0", "false", "") for name in names)

    @property
    def settings(self) -> dict[str, str]:
        return {k: v for k, v in self.parameters.items() if k not in _PROTOCOL and not k.startswith("param_")}

    @property
    def query_parameters(self) -> dict[str, str]:
        return {k[len("param_") :]: v for k, v in self.parameters.items() if k.startswith("param_")}

    @property
    def session_timeout_s(self) -> float:
        text = self.parameters.get("session_timeout", "")
        if not text:
            return SESSION_TIMEOUT_S_DEFAULT
        if not text.isdecimal() or not 0 < int(text) <= SESSION_TIMEOUT_S_MAX:
            raise WireError(
                374, "INVALID_SESSION_TIMEOUT", f"session_timeout {text!r} is not within 1..3600 seconds", 400
            )
        return float(text)


def authenticate(request: Request, spec: WarehouseSpec) -> None:
    """Check who asks, as a server does: headers, basic authentication, then URL. Raises :class:`WireError`.

    Requests from foreign web pages are refused: a browser lets any page post to the loopback address.
    """
    origin = request.headers.get("origin")
    if origin and urlsplit(origin).hostname not in ("localhost", "127.0.0.1", "::1"):
        raise WireError(497, "ACCESS_DENIED", f"requests from web pages of {origin} are not served")
    user = request.headers.get("x-clickhouse-user")
    password = request.headers.get("x-clickhouse-key", "")
    authorization = request.headers.get("authorization", "")
    if user is None and authorization[:6].lower() == "basic ":
        with suppress(binascii.Error, UnicodeDecodeError):
            user, _, password = base64.b64decode(authorization[6:]).decode().partition(":")
    elif user is None and authorization:
        raise WireError(48, "NOT_IMPLEMENTED", "only basic authentication is supported")
    if user is None:
        user = request.query_params.get("user", "default")
        password = request.query_params.get("password", "")
    known = hmac.compare_digest(user.encode(), spec.user.encode())
    if not (hmac.compare_digest(password.encode(), spec.password.encode()) and known):
        reason = "Authentication failed: password is incorrect, or there is no user with such name."
        raise WireError(516, "AUTHENTICATION_FAILED", f"{user}: {reason}")


async def receive(request: Request, spec: WarehouseSpec, cleanup: ExitStack) -> Received:
    """Read one request to its end. The body's file is closed by ``cleanup``. Raises :class:`WireError`."""
    parameters = dict(request.query_params)
    for name in ("compress", "decompress"):
        if parameters.get(name, "0") not in ("0", "false", ""):
            raise WireError(48, "NOT_IMPLEMENTED", f"{name}=1 is not supported; use HTTP content encodings")
    if parameters.get("role"):
        raise WireError(48, "NOT_IMPLEMENTED", "roles are not supported")
    body = cleanup.enter_context(spec.spool())
    content_type = request.headers.get("content-type", "")
    is_form = content_type.startswith("multipart/form-data")
    if not is_form and "query" in parameters:
        body.write(parameters["query"].encode() + b"\n")
    limit = min(FORM_BYTES_MAX, spec.body_bytes_max) if is_form else spec.body_bytes_max
    decoder = Decoder(request.headers.get("content-encoding", "").lower())
    size_bytes = 0
    async for chunk in request.stream():
        decoded = decoder.feed(chunk)
        size_bytes += len(decoded)
        if size_bytes > limit:
            raise WireError(
                307, "TOO_MANY_BYTES", f"the request body is over {limit} bytes; send smaller inserts", 413
            )
        body.write(decoded)
    decoder.finish()
    if is_form:
        body.seek(0)
        parameters |= _form(content_type, body.read())
        body.seek(0)
        body.truncate()
        body.write(parameters.get("query", "").encode())
    return Received(parameters, _split(body), body)


def _split(body: IO[bytes]) -> Statement:
    size_bytes = body.tell()
    body.seek(0)
    head = body.read(HEAD_BYTES_MAX)
    statement = parse(head)
    if size_bytes <= HEAD_BYTES_MAX or statement.kind is Kind.INSERT:
        return statement
    if size_bytes > STATEMENT_BYTES_MAX:
        raise WireError(62, "SYNTAX_ERROR", f"the statement is over {STATEMENT_BYTES_MAX} bytes")
    return parse(head + body.read())


def _form(content_type: str, content: bytes) -> dict[str, str]:
    """The text fields of a multipart form (how clickhouse-connect sends many or long parameters)."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + content)
    if not message.is_multipart():
        raise WireError(36, "BAD_ARGUMENTS", "the multipart form cannot be read", 400)
    fields = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        if part.get_filename() is not None or not isinstance(name, str):
            raise WireError(
                48, "NOT_IMPLEMENTED", "external data files are not supported; insert into a temporary table"
            )
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes) and len(payload) > FIELD_BYTES_MAX:
            reason = (
                f"form field {name} is over {FIELD_BYTES_MAX} bytes; use a temporary table for long lists"
            )
            raise WireError(1000, "POCO_EXCEPTION", reason, 400)
        fields[name] = payload.decode("utf-8") if isinstance(payload, bytes) else ""
    return fields
