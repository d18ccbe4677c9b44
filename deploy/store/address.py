"""From what the settings name to a store that can be asked."""

from __future__ import annotations

import os
from pathlib import Path

from deploy.store.base import Store
from deploy.store.cache import Cache
from deploy.store.directory import DirectoryStore
from schemas.errors import ConfigurationError
from schemas.stores import S3Settings, registry_address


def open_store(address: Path | str, s3: S3Settings | None = None) -> Store:
    """The store at ``address``, which is not asked anything yet. Raises ConfigurationError."""
    try:
        where = registry_address(address)
    except ValueError as error:
        raise ConfigurationError(f"registry: {error}") from None
    if isinstance(where, Path):
        return DirectoryStore(where)
    from deploy.store.s3 import S3Store

    return S3Store(where, s3 or S3Settings())


def open_cache(address: Path | str, s3: S3Settings) -> Cache | None:
    """Where what is read from ``address`` is kept; None where that is near enough, or nothing may be kept."""
    if isinstance(address, Path) or not s3.cache_bytes_max:
        return None
    home = os.environ.get("DRIFTLINE_CACHE")
    base = Path(home) if home else Path.home() / ".cache" / "driftline"
    return Cache(s3.cache or base / "models", s3.cache_bytes_max)
