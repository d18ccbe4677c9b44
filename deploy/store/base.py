"""The seam between the registry and what keeps its bytes: few verbs, none of which replaces anything.

A key is a path below the store's root, ``delay/3/model.onnx``. A *group* is a version's files, ``delay/3``: it appears as a
whole, by one step that only one writer can make, or not at all. No verb overwrites, so what was once read under a key is
what is read there for as long as it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from schemas.errors import RegistryError

#: The file of a group that is written last where files appear one by one: a group that has it is whole.
MANIFEST = "manifest.json"


class Absent(RegistryError):
    """There is nothing under this key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its key, its bytes, and the wall-clock time at which it was written."""

    key: str
    size: int
    modified_ms: int


class Store(Protocol):
    """Every verb raises StoreUnavailable when the store does not answer or refuses; that says nothing about a version."""

    @property
    def address(self) -> str:
        """The store as settings name it."""

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises Absent, and RegistryError when there are more of them than may be held."""

    def put(self, key: str, data: bytes) -> bool:
        """Write an object if there is none. Whether ``data`` is what the key holds now, from this call or another."""

    def publish(self, group: str, files: Mapping[str, bytes]) -> bool:
        """Write a group, MANIFEST among ``files``, for others to see as a whole. False when the name is taken."""

    def groups(self, prefix: str) -> dict[str, bool]:
        """Names of groups right below ``prefix``, and whether each is whole; names that begin with a dot are none."""

    def entries(self, prefix: str) -> list[Entry]:
        """Objects below ``prefix``, by key, without those under names that begin with a dot."""

    def delete(self, group: str) -> None:
        """Delete a group; from the first moment on nobody reads it as whole. Raises Absent."""

    def sweep(self, prefix: str, before_ms: int) -> list[str]:
        """Delete what a writer that died before wall-clock time ``before_ms`` left unfinished below ``prefix``; its names."""


def checked(key: str) -> str:
    """``key``, if it stays below the root. Raises RegistryError."""
    if not key or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in key.split("/")):
        raise RegistryError(f"{key!r} is no name for a model, a version or a file of one")
    return key
