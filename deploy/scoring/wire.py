"""Requests in and answers out as bytes, at the speed of a full queue.

The request's head is decoded first and its features a second time by a type compiled from the model's contract, so a
wrong type, a missing or an unknown feature is refused here, at the edge, with its reason. The documents are those of
``schemas.events``; a test holds the two together.
"""

from __future__ import annotations

import base64
from operator import attrgetter
from typing import Annotated, Any

import msgspec

from schemas.contracts import ModelContract
from schemas.errors import BadMessage
from schemas.events import ID_CHARS_MAX, MESSAGE_BYTES_MAX, DeadLetter

_VALUE_BYTES_MAX = 262_144
_TIME_MAX_MS = 7_258_118_400_000

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]


class Incoming(msgspec.Struct, frozen=True):
    """One record of ``scoring-requests`` as it came, with its address."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_ms: int = 0


class Out(msgspec.Struct, frozen=True):
    """One record to write. ``topic`` is the logical name."""

    topic: str
    key: bytes
    value: bytes
    partition: int


class Head(msgspec.Struct, forbid_unknown_fields=True):
    """A ScoringRequest whose features are still bytes."""

    request_id: Identifier
    model: str
    event_time_ms: int
    features: msgspec.Raw
    entity: Annotated[str, msgspec.Meta(max_length=ID_CHARS_MAX)] | None = None
    trace_id: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class PredictionOut(msgspec.Struct, omit_defaults=True):
    """``schemas.events.PredictionMade``; ``features`` is a contract's compiled type."""

    prediction_id: str
    model: str
    version: str
    role: str
    event_time_ms: int
    features: Any
    score: float | None
    latency_ms: float
    status: str
    entity: str | None = None
    trace_id: str | None = None


class ScoreOut(msgspec.Struct, omit_defaults=True):
    """``schemas.events.Score``."""

    request_id: str
    model: str
    version: str | None
    role: str
    score: float | None
    status: str
    latency_ms: float
    event_time_ms: int
    revision: int
    error: str | None = None
    trace_id: str | None = None


class _Rescue(msgspec.Struct):
    """What must be readable for a caller to get at least an error."""

    request_id: Identifier
    model: str = ""
    event_time_ms: int = 0


_HEAD = msgspec.json.Decoder(Head)
_RESCUE = msgspec.json.Decoder(_Rescue)
_ENCODER = msgspec.json.Encoder()
encode = _ENCODER.encode


class CompiledContract:
    """A model's contract as a decoder: bytes of ``features`` to a typed row, rows to columns."""

    def __init__(self, contract: ModelContract) -> None:
        self.contract = contract
        fields: list[Any] = []
        for at, feature in enumerate(contract.features):
            kind: Any = (float if feature.kind == "numeric" else str) | None
            fields.append((f"f{at}", kind, None) if feature.nullable else (f"f{at}", kind))
        names = {f"f{at}": feature.name for at, feature in enumerate(contract.features)}
        # Required fields must come first in a struct without keywords only.
        self._type = msgspec.defstruct(
            "Features", fields, rename=names, forbid_unknown_fields=True, kw_only=True, gc=False
        )
        self._decoder = msgspec.json.Decoder(self._type)
        self._columns = attrgetter(*names) if len(names) > 1 else None

    def decode(self, features: msgspec.Raw) -> Any:
        """One row. An absent nullable feature is null. Raises BadMessage."""
        try:
            return self._decoder.decode(features)
        except msgspec.DecodeError as error:
            raise _refusal(error, in_features=True) from error

    def table(self, rows: list[Any]) -> dict[str, Any]:
        """Rows as columns by feature name, each of length n, null as None."""
        names = self.contract.feature_names
        if self._columns is None:
            return {names[0]: [row.f0 for row in rows]}
        return dict(zip(names, zip(*map(self._columns, rows), strict=True), strict=True))


def decode_head(value: bytes | None) -> Head:
    """The head of a request. Raises BadMessage with the reason it goes to ``dead-letters`` for."""
    if not value:
        raise BadMessage("empty", "a scoring request has no content")
    if len(value) > MESSAGE_BYTES_MAX:
        raise BadMessage("oversize", f"{len(value)} bytes, at most {MESSAGE_BYTES_MAX} are allowed")
    try:
        head = _HEAD.decode(value)
    except msgspec.DecodeError as error:
        raise _refusal(error, in_features=False) from error
    if not 0 <= head.event_time_ms <= _TIME_MAX_MS:
        raise BadMessage(
            "absurd-timestamp", f"event_time_ms {head.event_time_ms} is no time between 1970 and 2200"
        )
    return head


def rescue(value: bytes | None) -> tuple[str, str, int] | None:
    """Request id, model and event time of a request that was refused, if at least the id can be read."""
    if not value or len(value) > MESSAGE_BYTES_MAX:
        return None
    try:
        found = _RESCUE.decode(value)
        return found.request_id, found.model, found.event_time_ms
    except msgspec.DecodeError:
        pass
    try:
        data = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return None
    identity = data.get("request_id") if isinstance(data, dict) else None
    if not isinstance(identity, str) or not 0 < len(identity) <= ID_CHARS_MAX:
        return None
    model, time_ms = data.get("model"), data.get("event_time_ms")
    return identity, model if isinstance(model, str) else "", time_ms if isinstance(time_ms, int) else 0


def dead_letter(record: Incoming, error: BadMessage) -> DeadLetter:
    """``record`` as it came, with its address and why it could not be used."""
    value = record.value or b""
    return DeadLetter(
        topic="scoring-requests",
        partition=record.partition,
        offset=record.offset,
        reason=error.reason,
        detail=error.detail[:1_000],
        key_base64=base64.b64encode(record.key).decode() if record.key is not None else None,
        value_base64=base64.b64encode(value[:_VALUE_BYTES_MAX]).decode(),
        truncated=len(value) > _VALUE_BYTES_MAX,
        headers={name: (data or b"").decode("utf-8", "replace") for name, data in record.headers},
        timestamp_ms=record.timestamp_ms,
    )


def _refusal(error: msgspec.DecodeError, *, in_features: bool) -> BadMessage:
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return BadMessage("not-json", text)
    if "unknown field" in text:
        return BadMessage("unknown-field", text)
    if "missing required field" in text:
        return BadMessage("missing-feature" if in_features else "wrong-type", text)
    if "out of range" in text:
        return BadMessage("not-finite", text)
    if "length" in text:
        return BadMessage("invalid-value", text)
    return BadMessage("wrong-type", text)
