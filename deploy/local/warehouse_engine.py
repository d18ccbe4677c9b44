"""Why: one process owns the data directory; this is the only module that talks to the chDB engine in it.

Each request without a session gets a connection of its own (0.1 ms), so that settings and temporary tables cannot
leak from one to the next; a session keeps its connection between requests. Connections work in parallel: the
engine releases the interpreter while it runs.
"""

from __future__ import annotations

import fcntl
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from deploy.local.warehouse_sql import Statement
from deploy.local.warehouse_wire import WireError
from schemas.errors import PlatformError

SESSIONS_MAX = 1024
SESSION_WAIT_S = 1.0
_APPEND_BYTES = 1 << 20
#: send_query hands out one encoding per block; only formats without header or footer may be joined that way.
_JOINABLE_FORMATS = {
    "native",
    "tabseparated",
    "tsv",
    "csv",
    "rowbinary",
    "jsoneachrow",
    "ndjson",
    "jsonlines",
    "jsoncompacteachrow",
    "lineasstring",
    "tabseparatedraw",
    "tsvraw",
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(slots=True)
class Stats:
    """What the summary header reports about one statement."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    elapsed_ns: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One statement with everything that shapes it; ``parameters`` are texts as the HTTP protocol carries them."""

    statement: Statement
    output_format: str
    database: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Session:
    """One engine connection and what the protocol remembers about it. Made by :meth:`Engine.session` only."""

    connection: Any
    database: str = "default"  # what USE chose; a request's own database does not change it
    active: str = "default"
    #: settings of the last request, still in force; None while they change
    applied: dict[str, str] | None = field(default_factory=dict)
    undo: list[str] = field(default_factory=list)
    passing: bool = False
    expires_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


Opened = AbstractContextManager[Session]


class Engine:
    """The ClickHouse engine over one data directory. Thread-safe."""

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Open or create ``data_dir``. Raises :class:`PlatformError` if another process has it or it cannot be read."""
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._owner = (data_dir / "owner.lock").open("w")
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PlatformError(
                f"another process already owns the warehouse directory {data_dir}; stop it or choose another directory"
            ) from None
        except OSError as error:
            raise PlatformError(f"cannot write the warehouse directory {data_dir}: {error}") from error
        try:
            from chdb.state.sqlitelike import connect
        except ImportError as error:
            raise PlatformError(
                f"the embedded warehouse needs chdb ({error}): install driftline[local]"
            ) from error
        self._clock = clock
        self._connect = connect
        self._path = str(data_dir / "store")
        self._sessions: dict[str, Session] = {}
        self._sessions_lock = threading.Lock()
        try:
            self._root = connect(self._path)  # kept open: the engine shuts down with its last connection
            self.version, self.timezone, self.display_name = self._lines(
                "SELECT version(), timezone(), displayName()"
            )[0].split("\t")
        except RuntimeError as error:
            raise PlatformError(f"the warehouse directory {data_dir} cannot be opened: {error}") from error

    def _lines(self, sql: str) -> list[str]:
        return str(self._root.query(sql, "TSV").bytes().decode()).splitlines()

    @contextmanager
    def session(self, session_id: str | None, *, timeout_s: float, must_exist: bool) -> Iterator[Session]:
        """A session to run calls in: a passing one for ``None``, else the named one, held exclusively."""
        if session_id is None:
            passing = Session(self._connect(self._path), passing=True)
            try:
                yield passing
            finally:
                passing.connection.close()
            return
        held = self._named(session_id, must_exist=must_exist, now_s=self._clock())
        if not held.lock.acquire(timeout=SESSION_WAIT_S):
            raise WireError(
                373, "SESSION_IS_LOCKED", f"Session {session_id} is locked by a concurrent client"
            )
        try:
            held.expires_s = float("inf")
            yield held
        finally:
            held.expires_s = self._clock() + timeout_s
            held.lock.release()

    def _named(self, session_id: str, *, must_exist: bool, now_s: float) -> Session:
        with self._sessions_lock:
            expired = [key for key, each in self._sessions.items() if each.expires_s < now_s]
            for key in expired:
                if self._sessions[key].lock.acquire(blocking=False):
                    self._sessions.pop(key).connection.close()
            held = self._sessions.get(session_id)
            if held is None:
                if must_exist:
                    raise WireError(372, "SESSION_NOT_FOUND", f"Session {session_id} not found")
                if len(self._sessions) >= SESSIONS_MAX:
                    raise WireError(
                        202,
                        "TOO_MANY_SIMULTANEOUS_QUERIES",
                        f"more than {SESSIONS_MAX} sessions are open",
                        503,
                    )
                held = self._sessions[session_id] = Session(self._connect(self._path), expires_s=float("inf"))
            held.expires_s = float("inf")  # not while somebody is about to use it
            return held

    def close_session(self, session_id: str) -> None:
        """Forget a session and its temporary tables."""
        with self._sessions_lock:
            held = self._sessions.pop(session_id, None)
        if held is not None:
            with held.lock:
                held.connection.close()

    @contextmanager
    def prepared(self, session: Session, call: Call) -> Iterator[None]:
        """Put the call's database, settings and parameters in force for the time of the call.

        A session keeps them until a call with others comes: clients send the same ones each time.
        """
        wanted = call.database or session.database
        if wanted != session.active:
            session.connection.query(f"USE {_identifier(wanted)}")
            session.active = wanted
        self._apply(session, {} if call.statement.keyword == "SET" else dict(call.settings))
        for name, text in call.parameters.items() if call.statement.data_at is not None else ():
            session.connection.query(f"SET param_{_checked(name)} = {_literal(text)}")
        yield
        if call.statement.keyword == "USE":
            session.database = session.active = self._current_database(session)

    def _current_database(self, session: Session) -> str:
        return str(
            session.connection.query("SELECT currentDatabase()", "TSVRaw").bytes().decode().rstrip("\n")
        )

    def _apply(self, session: Session, settings: dict[str, str]) -> None:
        if settings == session.applied:
            return
        session.applied = None
        for statement in session.undo:
            session.connection.query(statement)
        session.undo = []
        if settings and not session.passing:
            names = ", ".join(_literal(_checked(name)) for name in settings)
            before = f"SELECT name, changed, value FROM system.settings WHERE name IN ({names})"
            for row in session.connection.query(before, "TSVRaw").bytes().decode().splitlines():
                name, changed, value = row.split("\t", 2)
                session.undo.append(f"SET {name} = {_literal(value) if changed == '1' else 'DEFAULT'}")
        for name, value in settings.items():
            session.connection.query(f"SET {_checked(name)} = {_literal(value)}")
        session.applied = settings

    def stream(self, session: Session, call: Call, stats: Stats) -> Iterator[bytes]:
        """Run a statement that gives a result, block by block where the format allows, else in one piece."""
        name = call.statement.format or call.output_format
        parameters = dict(call.parameters) or None
        if call.statement.kind == "select" and name.lower() in _JOINABLE_FORMATS:
            result = None
            try:
                result = session.connection.send_query(
                    call.statement.sql, call.output_format, params=parameters
                )
            except RuntimeError as error:
                if "Streaming query is not supported" not in str(error):
                    raise
            if result is not None:
                try:
                    for block in result:
                        stats.result_rows += block.rows_read()
                        stats.read_bytes += block.bytes_read()
                        yield block.bytes()
                finally:
                    result.close()
                stats.read_rows = max(stats.read_rows, stats.result_rows)
                return
        whole = session.connection.query(call.statement.sql, call.output_format, params=parameters)
        stats.result_rows = whole.rows_read()
        stats.read_rows = whole.storage_rows_read()
        stats.read_bytes = whole.storage_bytes_read()
        stats.elapsed_ns = int(whole.elapsed() * 1e9)
        content = whole.bytes()
        if content:
            yield content

    def insert(self, session: Session, call: Call, data: IO[bytes]) -> Stats:
        """Feed ``data`` from its position to its end into an INSERT: every block of it, or an error and nothing acknowledged.

        As on a server, an insert is one part, and so all or nothing, up to the engine's squash size
        (``min_insert_block_size_rows``, about a million rows, or 256 MiB); beyond, earlier parts may stay.
        """
        inserter = session.connection.send_insert(call.statement.sql, call.statement.format)
        try:
            while chunk := data.read(_APPEND_BYTES):
                inserter.append(chunk)
        except BaseException:
            with suppress(RuntimeError):
                inserter.cancel()
            raise
        result = inserter.finish()
        return Stats(
            read_rows=result.rows_written,
            read_bytes=result.bytes_written,
            written_rows=result.rows_written,
            written_bytes=result.bytes_written,
            elapsed_ns=int(result.elapsed * 1e9),
        )

    def close(self) -> None:
        """Close every session and the engine; the directory may then be opened again."""
        with self._sessions_lock:
            for held in self._sessions.values():
                held.connection.close()
            self._sessions.clear()
        self._root.close()
        self._owner.close()


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise WireError(36, "BAD_ARGUMENTS", f"{name!r} is not the name of a setting or parameter", 400)
    return name


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"'{escaped}'"


def _identifier(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"
