"""How often a request was tried, on disk: so that a training that kills its process is not begun for ever."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from schemas.ids import content_hash

log = logging.getLogger(__name__)

_ERRORS_KEPT = 10
_DOUBLINGS_MAX = 10


@dataclass(frozen=True, slots=True)
class Attempts:
    """``begun`` attempts at one request, the next not before wall-clock time ``not_before_ms``; ``errors`` of those that
    ended with one. An attempt that is begun and has no error died with its process, or is under way."""

    request_id: str
    begun: int = 0
    not_before_ms: int = 0
    errors: tuple[str, ...] = ()

    def describe(self) -> str:
        """What became of them, for the report."""
        died = self.begun - len(self.errors)
        said = [f"{died} died with the process"] if died > 0 else []
        return "; ".join([*said, *dict.fromkeys(self.errors)])


class Journal:
    """One small file a request that is being worked on, replaced by a rename."""

    def __init__(self, directory: Path, backoff_ms: int) -> None:
        self._directory = directory
        self._backoff_ms = backoff_ms

    def read(self, request_id: str) -> Attempts:
        """What is known of ``request_id``."""
        try:
            found = json.loads(self._file(request_id).read_text())
            return Attempts(
                request_id, int(found["begun"]), int(found["not_before_ms"]), tuple(found["errors"])
            )
        except FileNotFoundError:
            return Attempts(request_id)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("attempts at %s cannot be read and are counted anew: %r", request_id, error)
            return Attempts(request_id)

    def begin(self, attempts: Attempts, now_ms: int) -> Attempts:
        """Note, before it begins, that another attempt does."""
        doublings = min(attempts.begun, _DOUBLINGS_MAX)
        begun = Attempts(
            attempts.request_id,
            attempts.begun + 1,
            now_ms + self._backoff_ms * 2**doublings,
            attempts.errors,
        )
        self._write(begun)
        return begun

    def failed(self, attempts: Attempts, error: str, now_ms: int) -> Attempts:
        """Note how the attempt ended; the wait before the next counts from now."""
        doublings = min(attempts.begun - 1, _DOUBLINGS_MAX)
        noted = Attempts(
            attempts.request_id,
            attempts.begun,
            now_ms + self._backoff_ms * 2**doublings,
            (*attempts.errors, error[:500])[-_ERRORS_KEPT:],
        )
        self._write(noted)
        return noted

    def forget(self, request_id: str) -> None:
        """The request is answered."""
        self._file(request_id).unlink(missing_ok=True)

    def _file(self, request_id: str) -> Path:
        return self._directory / f"{content_hash(request_id.encode())[:32]}.json"

    def _write(self, attempts: Attempts) -> None:
        file = self._file(attempts.request_id)
        draft = file.with_suffix(".draft")
        self._directory.mkdir(parents=True, exist_ok=True)
        with draft.open("w") as text:
            json.dump(asdict(attempts), text)
            text.flush()
            os.fsync(text.fileno())
        draft.rename(file)
