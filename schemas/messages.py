"""What decoders of every kind of event share: what a message is, what is said of a bad one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadMessage
from schemas.events import ID_CHARS_MAX, MESSAGE_BYTES_MAX
from schemas.spans import Spans

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]
TRACE_CHARS_MAX = 64
Trace = Annotated[str, msgspec.Meta(max_length=TRACE_CHARS_MAX)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
#: Event times outside these years are absurd whatever the stream's own time is.
TIME_MIN_MS = 946_684_800_000
TIME_MAX_MS = 4_102_444_800_000
#: Key, value, whether it is Arrow.
Message = tuple[bytes | None, bytes | None, bool]


@dataclass(frozen=True, slots=True)
class Bad:
    """One row that cannot be used: position of its message, row in it, reason and detail; ``alone``: that row and not the whole
    message."""

    message: int
    row: int
    reason: str
    detail: str
    alone: bool = False


@dataclass(slots=True)
class Messages:
    """``n`` messages as columns: keys, values, whether each is Arrow ``(n,)``."""

    keys: Spans
    values: Spans
    arrow: NDArray[np.bool_]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> Messages:
        """A copy of what is in a list."""
        keys, values = [m[0] for m in messages], [m[1] for m in messages]
        return cls(Spans.of(keys), Spans.of(values), np.array([m[2] for m in messages], np.bool_))

    def __len__(self) -> int:
        return len(self.arrow)

    def __getitem__(self, at: int) -> Message:
        return self.keys[at], self.values[at], bool(self.arrow[at])


def checked(decode: Callable[[bytes], Any], key: bytes | None, value: bytes | None) -> Any:
    """The decoded message. Raises BadMessage with a reason of the closed list."""
    event = _decoded(decode, value)
    if key is not None and key != event.prediction_id.encode():
        raise BadMessage("wrong-key", f"key {key[:60]!r} is not the prediction_id {event.prediction_id!r}")
    return event


def _decoded(decode: Callable[[bytes], Any], value: bytes | None) -> Any:
    if not value:
        raise BadMessage("empty", "the message has no value")
    if len(value) > MESSAGE_BYTES_MAX:
        raise BadMessage("oversize", f"{len(value)} bytes; at most {MESSAGE_BYTES_MAX}")
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        raise BadMessage(*reason_of(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if re.search(rb":\s*-?(NaN|Infinity)", value) or "out of range" in str(error):
            raise BadMessage("not-finite", f"{error}; JSON has no NaN or Infinity: send null") from error
        raise BadMessage("not-json", str(error)) from error


def reason_of(error: msgspec.ValidationError) -> tuple[str, str]:
    """Reason and detail of what a decoder refused."""
    text = str(error)
    if "out of range" in text:
        return "not-finite", text
    unnamed = "missing required field `model`" in text and "$.features" not in text
    if unnamed or ("$.model`" in text and "Invalid value" in text):
        return "unknown-model", text
    if "unknown field" in text:
        return "unknown-field", text
    if "$.features" in text and ("missing required" in text or "got `null`" in text):
        return "missing-feature", text
    if (
        "Invalid enum" in text
        or "of length" in text
        or "Invalid value" in text
        or ">=" in text
        or "<=" in text
    ):
        return "invalid-value", text
    return "wrong-type", text
