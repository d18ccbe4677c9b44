"""A registry on a file system: a group is a directory that appears by one rename."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from deploy.store.base import Absent, Entry, checked
from schemas.errors import StoreUnavailable

DRAFT, GONE = ".draft-", ".gone-"


class DirectoryStore:
    """Objects as files below ``root``, which is made when the first one is written."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def address(self) -> str:
        return str(self._root)

    def get(self, key: str) -> bytes:
        path = self._path(key)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Absent(f"{path}: there is no such file") from error
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be read: {error}") from error

    def put(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = _draft(path.parent)
            try:
                with draft.open("xb") as file:
                    _write(file.fileno(), data)
                # A link, unlike a rename, never replaces.
                os.link(draft, path)
                _settle(path.parent)
            finally:
                draft.unlink(missing_ok=True)
        except FileExistsError:
            return self.get(key) == data
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be written: {error}") from error
        return True

    def publish(self, group: str, files: Mapping[str, bytes]) -> bool:
        target = self._path(group)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = _draft(target.parent)
            draft.mkdir()
            try:
                for name, data in files.items():
                    with (draft / name).open("wb") as file:
                        _write(file.fileno(), data)
                _settle(draft)
                try:
                    # A rename onto a directory that has files in it fails, so two writers cannot both win.
                    draft.rename(target)
                except OSError:
                    if target.exists():
                        return False
                    raise
                _settle(target.parent)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            raise StoreUnavailable(f"{target} cannot be written: {error}") from error
        return True

    def groups(self, prefix: str) -> dict[str, bool]:
        directory = self._path(prefix)
        try:
            return {p.name: True for p in directory.iterdir() if p.is_dir() and not p.name.startswith(".")}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise StoreUnavailable(f"{directory} cannot be read: {error}") from error

    def entries(self, prefix: str) -> list[Entry]:
        top = self._path(prefix)
        found = []
        try:
            for path in sorted(top.rglob("*")):
                hidden = any(part.startswith(".") for part in path.relative_to(top).parts)
                with suppress(FileNotFoundError):
                    if not hidden and path.is_file():
                        stat = path.stat()
                        key = path.relative_to(self._root).as_posix()
                        found.append(Entry(key, stat.st_size, stat.st_mtime_ns // 1_000_000))
        except OSError as error:
            raise StoreUnavailable(f"{top} cannot be read: {error}") from error
        return found

    def delete(self, group: str) -> None:
        path = self._path(group)
        gone = path.with_name(f"{GONE}{path.name}")
        try:
            path.rename(gone)
            shutil.rmtree(gone)
        except FileNotFoundError as error:
            raise Absent(f"{path}: there is no such directory") from error
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be removed: {error}") from error

    def sweep(self, prefix: str, before_ms: int) -> list[str]:
        gone = []
        for path in sorted(self._path(prefix).glob(".*")):
            unfinished = path.name.startswith((DRAFT, GONE))
            if unfinished and path.is_dir() and path.stat().st_mtime_ns // 1_000_000 < before_ms:
                shutil.rmtree(path, ignore_errors=True)
                gone.append(path.name)
        return gone

    def _path(self, key: str) -> Path:
        return self._root / checked(key)


def _draft(directory: Path) -> Path:
    """A name of one's own. What is made under it has the rights that the process's umask gives: readers may be others."""
    return directory / f"{DRAFT}{secrets.token_hex(8)}"


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _settle(directory: Path) -> None:
    """Names in ``directory`` survive a loss of power from here on."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
