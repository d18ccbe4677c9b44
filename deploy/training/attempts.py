"""How often a request was tried, on disk: so that a training that kills its process is not begun for ever."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from schemas.errors import PlatformError
from schemas.ids import content_hash

log = logging.getLogger(__name__)

_ERRORS_KEPT = 10
_DOUBLINGS_MAX = 10


@dataclass(frozen=True, slots=True)
class Attempts:
    """``begun`` attempts at one request, the next not in the ``wait_ms`` after wall-clock time ``since_ms``; ``errors`` of
    those that ended with one. An attempt that is begun and has no error died with its process, or is under way."""

    request_id: str
    begun: int = 0
    since_ms: int = 0
    wait_ms: int = 0
    errors: tuple[str, ...] = ()

    def due(self, now_ms: int) -> bool:
        """Whether the wait is over. A clock that was set back ends it too: else it could last for years."""
        return not self.since_ms <= now_ms < self.since_ms + self.wait_ms

    def describe(self) -> str:
        """What became of them, for the report."""
        died = self.begun - len(self.errors)
        said = [f"{died} died with the process"] if died > 0 else []
        return "; ".join([*said, *dict.fromkeys(self.errors)])


class Journal:
    """One small file a request that is being worked on, replaced by a rename. Raises PlatformError when it cannot be."""

    def __init__(self, directory: Path, backoff_ms: int) -> None:
        self._directory = directory
        self._backoff_ms = backoff_ms

    def read(self, request_id: str) -> Attempts:
        """What is known of ``request_id``."""
        try:
            found = json.loads(self._file(request_id).read_text())
            begun, since_ms, wait_ms = (int(found[name]) for name in ("begun", "since_ms", "wait_ms"))
            return Attempts(request_id, begun, since_ms, wait_ms, tuple(found["errors"]))
        except FileNotFoundError:
            return Attempts(request_id)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("attempts at %s cannot be read and are counted anew: %r", request_id, error)
            return Attempts(request_id)

    def begin(self, attempts: Attempts, now_ms: int) -> Attempts:
        """Note, before it begins, that another attempt does."""
        return self._write(
            replace(
                attempts, begun=attempts.begun + 1, since_ms=now_ms, wait_ms=self._wait_ms(attempts.begun)
            )
        )

    def failed(self, attempts: Attempts, error: str, now_ms: int) -> Attempts:
        """Note how the attempt ended; the wait before the next counts from now."""
        errors = (*attempts.errors, error[:500])[-_ERRORS_KEPT:]
        return self._write(replace(attempts, errors=errors, since_ms=now_ms))

    def stopped(self, attempts: Attempts) -> None:
        """The attempt was ended by request: it counts for nothing."""
        self._write(replace(attempts, begun=attempts.begun - 1, wait_ms=0))

    def forget(self, request_id: str) -> None:
        """The request is answered."""
        self._file(request_id).unlink(missing_ok=True)

    def _file(self, request_id: str) -> Path:
        return self._directory / f"{content_hash(request_id.encode())[:32]}.json"

    def _wait_ms(self, before: int) -> int:
        return self._backoff_ms * int(2 ** min(before, _DOUBLINGS_MAX))

    def _write(self, attempts: Attempts) -> Attempts:
        file = self._file(attempts.request_id)
        draft = file.with_suffix(".draft")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with draft.open("w") as text:
                json.dump(asdict(attempts), text)
                text.flush()
                os.fsync(text.fileno())
            draft.rename(file)
        except OSError as error:
            raise PlatformError(
                f"an attempt cannot be noted in {self._directory}, so none is begun: {error}"
            ) from error
        return attempts
