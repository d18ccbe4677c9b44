"""A registry in a bucket of an S3-compatible store, spoken to by obstore: the same keys as in a directory.

Objects appear one by one there, so a group begins with a claim and ends with its manifest. Every write says
``If-None-Match: *``: of all writers one gets the claim, only that one writes on, and nobody replaces anything. The claim
carries a number of its writer's own, because an answer can be lost after the write was done; asking again then finds the
writer's own number. A group without a manifest is no version: somebody is writing it, or died over it.
"""

from __future__ import annotations

import configparser
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from deploy.store.base import MANIFEST, Absent, Entry, checked
from schemas.clock import wall_ms
from schemas.errors import ConfigurationError, RegistryError, StoreUnavailable
from schemas.stores import S3Settings, bucket_and_prefix

if TYPE_CHECKING:
    from obstore.store import S3Store as Client

CLAIM = ".claim"
#: After a failure the store is not asked for this long; doubled for each further one, up to the second number.
_PAUSE_S, _PAUSE_S_MAX = 1.0, 30.0
_CREDENTIALS_FOR = timedelta(minutes=5)
_DETAIL_MAX = 300
#: Listing and deleting report these as errors of any kind.
_REFUSALS = ("403 Forbidden", "401 Unauthorized", "AccessDenied")


class S3Store:
    """Objects below a prefix of a bucket. While the store is away, calls fail at once for a while instead of each waiting."""

    def __init__(
        self, address: str, settings: S3Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = address
        self._settings = settings
        self._bucket, self._prefix = bucket_and_prefix(address)
        self._client = _client(self._bucket, self._prefix, settings)
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._ask_at = 0.0
        self._why = ""

    @property
    def address(self) -> str:
        return self._address

    def get(self, key: str) -> bytes:
        def read() -> Any:
            found = self._client.get(checked(key))
            size = found.meta["size"]
            if size > self._settings.object_bytes_max:
                raise RegistryError(
                    f"{self._address}/{key} has {size} bytes; s3.object_bytes_max lets {self._settings.object_bytes_max} in"
                )
            return found.bytes()

        return bytes(self._ask(key, read))

    def put(self, key: str, data: bytes) -> bool:
        try:
            self._create(key, data)
        except _Exists:
            return self.get(key) == data
        return True

    def publish(self, group: str, files: Mapping[str, bytes]) -> bool:
        claim, mine = f"{group}/{CLAIM}", secrets.token_hex(16).encode()
        if not self.put(claim, mine):
            return False
        if self.put(claim, secrets.token_hex(16).encode()):
            raise RegistryError(
                f"{self._address} ignores `If-None-Match: *`: two writers could overwrite each other there; "
                "use a store with conditional writes"
            )
        for name in (*sorted(files.keys() - {MANIFEST}), MANIFEST):
            if not self.put(f"{group}/{name}", files[name]):
                raise RegistryError(
                    f"{self._address}/{group}/{name} is there already with other bytes: somebody wrote past the registry"
                )
        return True

    def groups(self, prefix: str) -> dict[str, bool]:
        top = f"{checked(prefix)}/"
        found: dict[str, bool] = {}
        for entry in self._entries(prefix):
            name, _, rest = entry.key.removeprefix(top).partition("/")
            if rest and not name.startswith("."):
                found[name] = found.get(name, False) or rest == MANIFEST
        return found

    def entries(self, prefix: str) -> list[Entry]:
        top = f"{checked(prefix)}/"
        return [
            entry
            for entry in self._entries(prefix)
            if not any(part.startswith(".") for part in entry.key.removeprefix(top).split("/"))
        ]

    def delete(self, group: str) -> None:
        if not self._entries(group):
            raise Absent(f"{self._address}/{group}: there is no such version")
        # Without its manifest it is no version any more, whatever becomes of the rest.
        self._delete([f"{group}/{MANIFEST}"])
        self._delete([entry.key for entry in self._entries(group)])

    def sweep(self, prefix: str, before_ms: int) -> list[str]:
        newest: dict[str, int] = {}
        whole = self.groups(prefix)
        for entry in self._entries(prefix):
            name = entry.key.removeprefix(f"{prefix}/").partition("/")[0]
            if not whole.get(name, True):
                newest[name] = max(newest.get(name, 0), entry.modified_ms)
        gone = []
        for name in sorted(name for name, at_ms in newest.items() if at_ms < before_ms):
            try:
                # A list may be behind; what is deleted is gone, so it is asked for by name.
                self.get(f"{prefix}/{name}/{MANIFEST}")
            except Absent:
                self.delete(f"{prefix}/{name}")
                gone.append(name)
        return gone

    def _create(self, key: str, data: bytes) -> None:
        # One request, however large: the condition holds for the whole of it.
        self._ask(key, lambda: self._client.put(checked(key), data, mode="create", use_multipart=False))

    def _entries(self, prefix: str) -> list[Entry]:
        def read() -> list[Entry]:
            pages = self._client.list(checked(prefix))
            return [
                Entry(found["path"], found["size"], int(found["last_modified"].timestamp() * 1000))
                for page in pages
                for found in page
            ]

        return sorted(self._ask(prefix, read), key=lambda entry: entry.key)

    def _delete(self, keys: list[str]) -> None:
        if keys:
            self._ask(keys[0], lambda: self._client.delete(keys))

    def _ask(self, key: str, call: Callable[[], Any]) -> Any:
        """Do ``call``, unless the store failed a moment ago; its errors as this project's."""
        with self._lock:
            if self._clock() < self._ask_at:
                raise StoreUnavailable(self._why)
        try:
            found = call()
        except (_Exists, RegistryError):
            raise
        except Exception as error:  # noqa: BLE001 - obstore's classes share no base with the operating system's
            self._translate(key, error)
        with self._lock:
            self._failures, self._ask_at = 0, 0.0
        return found

    def _translate(self, key: str, error: Exception) -> NoReturn:
        from obstore import exceptions

        said, _, debug = str(error).partition("\n\nDebug source:")
        text = " ".join(said.split())
        if "NoSuchBucket" in text:
            self._away(
                f"there is no bucket {self._bucket} at {self._where}: make it, or mend the address", error
            )
        if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
            raise _Exists from error
        if isinstance(error, FileNotFoundError):
            raise Absent(f"{self._address}/{key}: there is no such object") from error
        refused = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
        if refused or any(said in text for said in _REFUSALS):
            self._away(
                f"{self._where} refuses us at {self._address}/{key} ({_code(text)}): look at the keys in s3.access_key, "
                "s3.credentials_file or AWS_ACCESS_KEY_ID, and at what they may do",
                error,
            )
        self._away(
            f"{self._where} does not answer for {self._address}/{key}: {text[:_DETAIL_MAX]}{_cause(debug)}",
            error,
        )

    def _away(self, why: str, error: Exception) -> NoReturn:
        with self._lock:
            pause = min(_PAUSE_S * 2.0 ** min(self._failures, 10), _PAUSE_S_MAX)
            self._failures += 1
            self._ask_at = self._clock() + pause
            self._why = why
        raise StoreUnavailable(why) from error

    @property
    def _where(self) -> str:
        return self._settings.endpoint or f"S3 in {self._settings.region}"


class _Exists(Exception):
    """The key holds something."""


def _client(bucket: str, prefix: str, settings: S3Settings) -> Client:
    try:
        from obstore.store import S3Store as Client
    except ImportError as error:
        raise ConfigurationError(
            f"an s3:// registry needs obstore, which is not installed ({error}): install driftline[s3]"
        ) from error
    options: dict[str, Any] = {
        "timeout": timedelta(milliseconds=settings.timeout),
        "connect_timeout": timedelta(milliseconds=settings.connect_timeout),
        "allow_http": (settings.endpoint or "").startswith("http://"),
    }
    if settings.ca_file is not None:
        try:
            options["root_certificate"] = settings.ca_file.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"s3.ca_file {settings.ca_file} cannot be read: {error}") from error
    config: dict[str, Any] = {"region": settings.region, "conditional_put": "etag"}
    path_style = settings.path_style if settings.path_style is not None else settings.endpoint is not None
    config["virtual_hosted_style_request"] = not path_style
    if settings.endpoint is not None:
        config["endpoint"] = settings.endpoint
    # As a provider, so that keys which are named here are never mixed with others from the environment.
    if settings.access_key is not None:
        config["credential_provider"] = lambda: _from_settings(settings)
    elif settings.credentials_file is not None:
        config["credential_provider"] = lambda: _from_file(settings)
        _from_file(settings)
    return Client(
        bucket,
        prefix=prefix or None,
        client_options=options,  # type: ignore[arg-type]  # made key by key
        retry_config={
            "max_retries": settings.retries_max,
            "retry_timeout": timedelta(milliseconds=settings.timeout),
        },
        **config,
    )


def _from_settings(settings: S3Settings) -> Any:
    secret, token = settings.secret_key, settings.session_token
    return {
        "access_key_id": settings.access_key,
        "secret_access_key": None if secret is None else secret.get_secret_value(),
        "token": None if token is None else token.get_secret_value(),
        "expires_at": None,
    }


def _from_file(settings: S3Settings) -> Any:
    """The profile's keys, to be read again after some minutes. Raises ConfigurationError."""
    file, parser = settings.credentials_file, configparser.ConfigParser(interpolation=None)
    assert file is not None
    try:
        parser.read_string(file.read_text())
        section = parser[settings.profile]
        return {
            "access_key_id": section["aws_access_key_id"],
            "secret_access_key": section["aws_secret_access_key"],
            "token": section.get("aws_session_token"),
            "expires_at": datetime.fromtimestamp(wall_ms() / 1_000, UTC) + _CREDENTIALS_FOR,
        }
    except (OSError, KeyError, configparser.Error, UnicodeDecodeError) as error:
        # What the parser says may quote the line it stumbled over.
        why = str(error) if isinstance(error, OSError | KeyError) else type(error).__name__
        raise ConfigurationError(f"s3.credentials_file {file}, profile {settings.profile}: {why}") from None


def _code(text: str) -> str:
    _, found, rest = text.partition("<Code>")
    return rest.partition("</Code>")[0] if found else "access denied"


def _cause(debug: str) -> str:
    """What lies at the bottom of an error of the connection, which its sentence leaves out."""
    inner = debug.partition("inner:")[2]
    found = re.findall(r'"([^"]+)"', inner) or re.findall(r"\b[A-Z][a-z]+[A-Z]\w+", inner)
    return f" ({', '.join(found[-2:])})" if found else ""
