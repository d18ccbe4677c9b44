"""API tokens: 256 random bits shown once, kept as their SHA-256 in one small file, revoked by a word in it.

A slow hash (scrypt, argon2) protects secrets that people choose; a token nobody chose cannot be guessed, so a fast one is
enough and costs a caller nothing. The file is read again when it has changed: a revoked token is refused at the next call.
A file that cannot be read lets nobody in.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from deploy.http.callers import ApiRole, Caller, RoleName
from schemas.errors import AccessError

log = logging.getLogger(__name__)
PREFIX = "dlt"
_TEXT = re.compile(rf"{PREFIX}_([0-9a-f]{{12}})_([A-Za-z0-9_-]{{43}})")

_NO_HASH = "0" * 64


class TokenRecord(BaseModel):
    """What is kept of a token. ``sha256`` is of its secret half."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_id: str
    name: str = Field(min_length=1, max_length=100, description="Who uses it; goes on record.")
    role: RoleName
    sha256: str
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None

    def state(self, now_ms: int) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_ms is not None:
            return "revoked"
        return "expired" if self.expires_ms is not None and self.expires_ms <= now_ms else "active"


_RECORDS: TypeAdapter[list[TokenRecord]] = TypeAdapter(list[TokenRecord])


class TokenFile:
    """The tokens in ``path``; a file that is not there holds none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: dict[str, TokenRecord] = {}
        self._stamp: tuple[int, int, int] | None = None

    def records(self) -> list[TokenRecord]:
        """All of them, oldest first. Raises AccessError when the file cannot be read."""
        try:
            return _RECORDS.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            raise AccessError(
                f"token file {self.path} cannot be read: {type(error).__name__}; nobody can use it"
            ) from error

    def create(
        self, name: str, role: RoleName, now_ms: int, expires_ms: int | None = None
    ) -> tuple[str, TokenRecord]:
        """A new token: its text, which nobody can see again, and what is kept. Raises AccessError."""
        secret = secrets.token_urlsafe(32)
        try:
            record = TokenRecord(
                token_id=secrets.token_hex(6),
                name=name,
                role=role,
                sha256=_hash(secret),
                created_ms=now_ms,
                expires_ms=expires_ms,
            )
        except ValidationError as error:
            raise AccessError(f"a token's name has 1 to 100 characters, not {len(name)}") from error
        with self._locked():
            self._write([*self.records(), record])
        return f"{PREFIX}_{record.token_id}_{secret}", record

    def revoke(self, token_id: str, now_ms: int) -> TokenRecord:
        """End a token, for good. Raises AccessError when there is none of that id."""
        with self._locked():
            records = self.records()
            found = next((record for record in records if record.token_id == token_id), None)
            if found is None:
                raise AccessError(f"no token {token_id!r}; `driftline tokens list` shows their ids")
            ended = found.model_copy(update={"revoked_ms": found.revoked_ms or now_ms})
            self._write([ended if record is found else record for record in records])
        return ended

    def caller(self, text: str, now_ms: int) -> Caller | None:
        """Who holds the token ``text``; None unless it is one of ours and in force."""
        match = _TEXT.fullmatch(text)
        record = None if match is None else self._known().get(match[1])
        # Something is compared in any case, so that the time it takes does not tell which ids there are.
        right = hmac.compare_digest(
            _hash("" if match is None else match[2]), _NO_HASH if record is None else record.sha256
        )
        if record is None or not right or record.state(now_ms) != "active":
            return None
        key = f"token {record.token_id}"
        return Caller(record.name, ApiRole.named(record.role), key, key)

    def _known(self) -> dict[str, TokenRecord]:
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._read = {record.token_id: record for record in self.records()}
                self._stamp = stamp
        except (OSError, AccessError) as error:
            if not isinstance(error, FileNotFoundError):
                log.error("%s", error, extra={"event": "tokens-unreadable"})
            self._read, self._stamp = {}, None
        return self._read

    def _write(self, records: list[TokenRecord]) -> None:
        """Whole or not at all: who reads meanwhile sees the file before or the one after."""
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            beside.unlink(missing_ok=True)
            beside.touch(mode=0o600)
            beside.write_bytes(_RECORDS.dump_json(records, indent=1) + b"\n")
            beside.replace(self.path)
        except OSError as error:
            raise AccessError(f"token file {self.path} cannot be written: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, or one of two tokens made together would be lost."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_name(f".{self.path.name}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise AccessError(f"token file {self.path} cannot be written: {error}") from error


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
