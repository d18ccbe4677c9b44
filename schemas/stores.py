"""How settings name the place where model versions are kept: a directory, or a bucket of an S3-compatible store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from schemas.contracts import DurationMs
from schemas.section import Section

S3_SCHEME = "s3://"
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?:/([A-Za-z0-9!_.*'()/-]*))?")


def registry_address(value: Any) -> Any:
    """A Path, or text of the form ``s3://bucket/prefix``. Raises ValueError for any other scheme."""
    if not isinstance(value, str) or "://" not in value:
        return Path(value) if isinstance(value, str) else value
    bucket_and_prefix(value)
    return value.rstrip("/")


def bucket_and_prefix(address: str) -> tuple[str, str]:
    """The parts of ``s3://bucket/prefix``; the prefix may be empty. Raises ValueError."""
    found = _S3.fullmatch(address)
    prefix = "" if found is None else (found[2] or "").strip("/")
    if found is None or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ValueError(f"{address!r} is neither a directory nor s3://bucket/prefix")
    return found[1], prefix


#: Where versions are kept.
RegistryAddress = Annotated[Path | str, BeforeValidator(registry_address)]


class S3Settings(Section):
    """How to reach the store that an ``s3://`` address is in. Without keys here the usual AWS_ variables, a web identity or
    the machine's role are asked for them."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="The store's address where it is not AWS. Plain http is spoken only when it says so.",
    )
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None
    credentials_file: Path | None = Field(
        default=None,
        description="Keys in the form of ~/.aws/credentials, read again every few minutes: they may be replaced.",
    )
    profile: str = Field(default="default", description="Which keys of that file.")
    path_style: bool | None = Field(
        default=None,
        description="The bucket in the path and not in the host's name; not given: with an endpoint, yes.",
    )
    ca_file: Path | None = Field(default=None, description="Whom to believe beside the usual authorities.")
    connect_timeout: DurationMs = Field(default=2_000, ge=1)
    timeout: DurationMs = Field(
        default=60_000, ge=1, description="Longest time for one request with its data."
    )
    retries_max: int = Field(default=2, ge=0, description="Of a request that failed for no lasting reason.")
    object_bytes_max: int = Field(
        default=2_147_483_648, ge=1, description="Larger objects are not read into memory."
    )
    cache: Path | None = Field(
        default=None,
        description="Where the controller and the scorer keep what they have read and checked; not given: "
        "$DRIFTLINE_CACHE/models, or ~/.cache/driftline/models.",
    )
    cache_bytes_max: int = Field(default=4_294_967_296, ge=0, description="0: no cache.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key belong together")
        if self.access_key is not None and self.credentials_file is not None:
            raise ValueError("keys are given twice: choose access_key or credentials_file")
        return self
