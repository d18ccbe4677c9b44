"""What was read from afar and checked, kept near: files named by their SHA-256, looked at again whenever they are read.

Bounded in bytes; what was not used for longest leaves first. Processes of one machine may share it: files come by one
rename, and one that is gone or altered is simply not there.
"""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from schemas.ids import content_hash

log = logging.getLogger(__name__)
_DRAFT, _SIGNATURE = ".draft-", ".signature"


class Cache:
    """Bytes by their SHA-256 in ``directory``, at most ``bytes_max`` of them. It never fails: without it things are slower."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self._directory = directory
        self._bytes_max = bytes_max

    def get(self, sha256: str) -> bytes | None:
        """The bytes with this digest, or None. What has another one by now is thrown away."""
        data = self._read(sha256)
        if data is None or content_hash(data) == sha256:
            return data
        log.error("%s/%s is not what was put there and is thrown away", self._directory, sha256)
        with suppress(OSError):
            (self._directory / sha256).unlink()
        return None

    def signature(self, sha256: str) -> bytes | None:
        """What was kept as the signature of the bytes with this digest. It is its reader's to check."""
        return self._read(sha256 + _SIGNATURE)

    def put(self, sha256: str, data: bytes, signature: bytes | None = None) -> None:
        """Keep ``data``, which has this digest, and a signature of it, if they fit; others leave for them."""
        if signature is not None:
            self._write(sha256 + _SIGNATURE, signature)
        if not (self._directory / sha256).exists():
            self._write(sha256, data)

    def _read(self, name: str) -> bytes | None:
        path = self._directory / name
        try:
            data = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error)
            return None
        return data

    def _write(self, name: str, data: bytes) -> None:
        if len(data) > self._bytes_max:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data))
            descriptor, draft = tempfile.mkstemp(prefix=_DRAFT, dir=self._directory)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                Path(draft).rename(self._directory / name)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise
        except OSError as error:
            log.warning("%s cannot be kept in the cache: %s", name, error)

    def _make_room(self, size: int) -> None:
        files = []
        for path in self._directory.iterdir():
            with suppress(FileNotFoundError):
                stat = path.stat()
                files.append((stat.st_mtime_ns, stat.st_size, path))
        held = sum(kept for _, kept, _ in files)
        for _, kept, path in sorted(files):
            if held + size <= self._bytes_max:
                break
            path.unlink(missing_ok=True)
            held -= kept
