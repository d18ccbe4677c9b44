"""Requests in and answers out as bytes, at the speed of a full queue.

The request's head is decoded first and its features a second time by a type compiled from the model's contract, so a
wrong type, a missing or an unknown feature is refused here, at the edge, with its reason. The documents are those of
``schemas.events``; a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec.structs import astuple

from schemas.contracts import ModelContract
from schemas.errors import BadMessage
from schemas.events import ID_CHARS_MAX, MESSAGE_BYTES_MAX, DeadLetter
from schemas.ids import RowId

#: What msgspec raises on bytes it cannot read; text that is no UTF-8 and nesting without end are no DecodeErrors.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_INT64 = 2**63
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TIME_MAX_MS = 7_258_118_400_000

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]


class Record(Protocol):
    """One record of ``scoring-requests``, as Kafka's client hands it out: what is not needed is never asked for."""

    def topic(self) -> str | None: ...
    def partition(self) -> int | None: ...
    def offset(self) -> int | None: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Any: ...
    def timestamp(self) -> tuple[int, int]: ...


class Head(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A ScoringRequest whose features are still bytes."""

    request_id: Identifier
    model: str
    event_time_ms: int
    features: msgspec.Raw
    entity: Annotated[str, msgspec.Meta(max_length=ID_CHARS_MAX)] | None = None
    trace_id: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class PredictionOut(msgspec.Struct, omit_defaults=True, gc=False):
    """``schemas.events.PredictionMade``; ``features`` is the JSON that was checked, so that it is not made again."""

    prediction_id: str
    model: str
    version: str
    role: str
    event_time_ms: int
    features: msgspec.Raw
    score: float | None
    latency_ms: float
    status: str
    entity: str | None = None
    trace_id: str | None = None
    region: str | None = None


class ScoreOut(msgspec.Struct, omit_defaults=True, gc=False):
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


class Features(msgspec.Struct, gc=False):
    """The checked features of one request: their JSON, complete, and the same as values in the contract's order.

    ``encoded``: the row as encoders that have read it made it, float32 bytes by the encoder's name.
    """

    raw: msgspec.Raw
    values: tuple[Any, ...]
    encoded: dict[int, bytes]


class CompiledContract:
    """A model's contract as a decoder: bytes of ``features`` to a checked row, rows to columns.

    Callers repeat themselves (the same entity asked about again, a retry): the last ``cache_rows`` different rows are
    kept with what encoders made of them, longest unused first out, so that each is checked and encoded once.
    """

    def __init__(self, contract: ModelContract, cache_rows: int = 0) -> None:
        self.contract = contract
        fields: list[Any] = []
        for at, feature in enumerate(contract.features):
            kind: Any = (float if feature.kind == "numeric" else str) | None
            if feature.nullable:
                fields.append((f"f{at}", kind | msgspec.UnsetType, msgspec.UNSET))
            else:
                fields.append((f"f{at}", float if feature.kind == "numeric" else str))
        names = {f"f{at}": feature.name for at, feature in enumerate(contract.features)}
        self._type = msgspec.defstruct(
            "Features", fields, rename=names, forbid_unknown_fields=True, kw_only=True, gc=False
        )
        self._decoder = msgspec.json.Decoder(self._type)
        self._nullable = any(feature.nullable for feature in contract.features)
        self._cache: dict[bytes, Features] = {}
        self._cache_rows = cache_rows
        self._found = 0

    @property
    def caches(self) -> bool:
        """Whether rows outlive their batch."""
        return self._cache_rows > 0

    def take_found(self) -> int:
        """Rows found in the cache since this was last asked."""
        found, self._found = self._found, 0
        return found

    def decode(self, raw: msgspec.Raw) -> Features:
        """One row. An absent nullable feature is null. Raises BadMessage."""
        if not self._cache_rows:
            return self._decode(raw)
        key = bytes(raw)
        row = self._cache.pop(key, None)
        if row is None:
            # A copy: what a decoder hands out keeps the whole message it came from.
            row = self._decode(msgspec.Raw(key))
            if len(self._cache) >= self._cache_rows:
                del self._cache[next(iter(self._cache))]
        else:
            self._found += 1
        self._cache[key] = row
        return row

    def _decode(self, raw: msgspec.Raw) -> Features:
        try:
            row = self._decoder.decode(raw)
        except _UNREADABLE as error:
            raise _refusal(error, in_features=True) from error
        values = astuple(row)
        if self._nullable and msgspec.UNSET in values:
            values = tuple(None if value is msgspec.UNSET else value for value in values)
            names = self.contract.feature_names
            raw = msgspec.Raw(encode(dict(zip(names, values, strict=True))))
        return Features(raw, values, {})

    def table(self, rows: Sequence[Features]) -> dict[str, Any]:
        """Rows as columns by feature name, each of length n, null as None."""
        columns = zip(*[row.values for row in rows], strict=True)
        return dict(zip(self.contract.feature_names, columns, strict=True))


def decode_head(value: bytes | None) -> Head:
    """The head of a request. Raises BadMessage with the reason it goes to ``dead-letters`` for."""
    if not value:
        raise BadMessage("empty", "a scoring request has no content")
    if len(value) > MESSAGE_BYTES_MAX:
        raise BadMessage("oversize", f"{len(value)} bytes, at most {MESSAGE_BYTES_MAX} are allowed")
    try:
        head = _HEAD.decode(value)
    except _UNREADABLE as error:
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
        return found.request_id, _name(found.model), _int64(found.event_time_ms)
    except _UNREADABLE:
        pass
    try:
        data = msgspec.json.decode(value)
    except _UNREADABLE:
        return None
    identity = data.get("request_id") if isinstance(data, dict) else None
    if not isinstance(identity, str) or not 0 < len(identity) <= ID_CHARS_MAX:
        return None
    return identity, _name(data.get("model")), _int64(data.get("event_time_ms"))


def _name(value: object) -> str:
    """The model's name as an answer may carry it: what was sent there may be anything, of any length."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else "unknown"


def _int64(value: object) -> int:
    """A number that can be written into an answer; 0 for any other."""
    return value if isinstance(value, int) and -_INT64 <= value < _INT64 else 0


def dead_letter(record: Record, error: BadMessage) -> DeadLetter:
    """``record`` as it came, with its address and why it could not be used."""
    return DeadLetter.of(
        RowId("scoring-requests", record.partition() or 0, record.offset() or 0, 0),
        error.reason,
        error.detail[:1_000],
        record.key(),
        record.value() or b"",
        record.headers() or (),
        record.timestamp()[1],
    )


def _refusal(error: Exception, *, in_features: bool) -> BadMessage:
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
