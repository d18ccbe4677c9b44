"""What decoders of every kind of event share: what a message is, what is said of a bad one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from schemas.errors import BadMessage
from schemas.events import ID_CHARS_MAX, MESSAGE_BYTES_MAX

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]
Trace = Annotated[str, msgspec.Meta(max_length=64)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
#: Event times outside these years are absurd whatever the stream's own time is.
TIME_MIN_MS = 946_684_800_000
TIME_MAX_MS = 4_102_444_800_000
#: Key, value, whether it is Arrow.
Message = tuple[bytes | None, bytes | None, bool]


@dataclass(frozen=True, slots=True)
class Bad:
    """One row that cannot be used: position of its message, row in it, reason and detail."""

    message: int
    row: int
    reason: str
    detail: str


def checked(decode: Callable[[bytes], Any], value: bytes | None) -> Any:
    """The decoded message. Raises BadMessage with a reason of the closed list."""
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
