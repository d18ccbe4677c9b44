"""What services send: predictions and ground truth. And what the ticker sends: time.

These pydantic models are the public contract (JSON Schema, AsyncAPI, documentation, SDKs). The monitor's hot path does
not validate with them: it decodes with msgspec types compiled from the model's own contract (``schemas.codecs``), which
accept the same documents; a test holds the two together.
"""

from __future__ import annotations

import base64
import operator
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from schemas.ids import Role, RowId

#: Header that tells a batch from a single event. Absent means ``json``.
HEADER_FORMAT = "driftline-format"
FORMAT_JSON = b"json"
FORMAT_ARROW = b"arrow"
#: Header of a record that carries time or another instruction to the stream instead of an event. Values: ``tick``; on
#: `observations` ``labels``: outcomes of predictions without a score, for the label index and not for detectors.
HEADER_KIND = "driftline-kind"
KIND_TICK = b"tick"
KIND_LABELS = b"labels"
#: Header of a row that was found on the wrong partition and sent on once: its first address, ``RowId`` as text.
HEADER_ORIGIN = "driftline-origin"
#: Header with the W3C trace id (32 hex digits) that leads from a request to the decision it fed.
HEADER_TRACE = "driftline-trace"
#: Header of an Arrow batch: the partition it was cut for; every row is checked.
HEADER_PARTITION = "driftline-partition"

MESSAGE_BYTES_MAX = 1_000_000
ID_CHARS_MAX = 200
REVISION_MAX = 1_000_000

Identifier = Annotated[str, Field(min_length=1, max_length=ID_CHARS_MAX)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
FeatureValue = float | str | bool | None


class Status(StrEnum):
    """How a prediction request ended. ``fallback`` means that a heuristic answered in the model's place."""

    OK = "ok"
    ERROR = "error"
    FALLBACK = "fallback"


#: Statuses by the code that stands for each in columns.
STATUSES: tuple[str, ...] = tuple(status.value for status in Status)


class Event(BaseModel):
    """Base of everything on the input topics: immutable, unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PredictionMade(Event):
    """One answered prediction. Topic ``predictions``, key ``prediction_id``, partition murmur2(key)."""

    prediction_id: Identifier
    model: Name
    version: Name
    role: Role = "stable"
    event_time_ms: int = Field(
        description="When the prediction was asked for, Unix epoch milliseconds (UTC)."
    )
    features: dict[str, FeatureValue] = Field(description="By name, as the model's contract declares them.")
    score: float | None = Field(
        default=None, description="Model output; P(positive) for a binary classifier."
    )
    latency_ms: float = Field(default=0.0, ge=0)
    status: Status = Status.OK
    entity: str | None = Field(
        default=None, max_length=ID_CHARS_MAX, description="Who it is about; splits by it."
    )
    trace_id: str | None = Field(default=None, max_length=64)
    region: str | None = Field(
        default=None,
        max_length=ID_CHARS_MAX,
        exclude_if=operator.not_,
        description="Where it was answered; rollouts by regions are measured by it.",
    )


class GroundTruth(Event):
    """The outcome of one prediction. Topic ``feedback``, key ``prediction_id``, same partitioner as ``predictions``.

    It may come before the prediction, long after it, or again: a higher ``revision`` replaces a lower one, an equal
    one is a duplicate and counts once.
    """

    prediction_id: Identifier
    model: Name
    label: float = Field(description="1/0 for a binary classifier, the value for a regression.")
    label_time_ms: int = Field(description="When the outcome became known, Unix epoch milliseconds (UTC).")
    revision: int = Field(default=0, ge=0, le=REVISION_MAX)
    trace_id: str | None = Field(default=None, max_length=64)


class Tick(Event):
    """Time as data. Says: on this partition, everything up to ``event_time_ms`` is before this record.

    ``source`` names the writer; a consumer of several sources takes the minimum over them (``sources`` says how many
    to expect, 0 meaning "a single one").
    """

    event_time_ms: int
    source: str = "ticker"
    sources: int = 0
    idle: bool = False
    feedback_time_ms: int | None = Field(
        default=None,
        description="Downstream of the join: the feedback watermark beside the prediction watermark.",
    )


class ScoringRequest(Event):
    """Ask for one score. Topic ``scoring-requests``, key ``request_id``; it becomes the ``prediction_id``."""

    request_id: Identifier
    model: Name
    event_time_ms: int
    features: dict[str, FeatureValue]
    entity: str | None = Field(default=None, max_length=ID_CHARS_MAX)
    trace_id: str | None = Field(default=None, max_length=64)


class Score(Event):
    """The answer to one request: exactly one a ``request_id``, in one transaction with its prediction log."""

    request_id: Identifier
    model: Name
    version: str | None
    role: Role = "stable"
    score: float | None
    status: Status
    error: str | None = None
    latency_ms: float = 0.0
    event_time_ms: int
    revision: int = Field(default=0, description="Deployment revision that routed the request.")
    trace_id: str | None = None


#: Of a message or row in a dead letter; what is longer is cut.
DEAD_LETTER_BYTES_MAX = 262_144


class DeadLetter(Event):
    """A message that could not be used, as it came, with its address. Topic ``dead-letters``."""

    topic: str
    partition: int
    offset: int
    row: int = 0
    reason: str
    detail: str
    key_base64: str | None = None
    value_base64: str = Field(
        description="The message's bytes, of a row of an Arrow batch that row as a batch of one, if it can be told apart; cut at 256 KiB, then "
        "``truncated`` is true."
    )
    truncated: bool = False
    headers: dict[str, str] = Field(default_factory=dict)
    timestamp_ms: int = 0

    @classmethod
    def of(
        cls,
        address: RowId,
        reason: str,
        detail: str,
        key: bytes | None,
        value: bytes,
        headers: Iterable[tuple[str, bytes | None]],
        timestamp_ms: int,
    ) -> Self:
        """The letter of what came as these bytes."""
        return cls(
            topic=address.topic,
            partition=address.partition,
            offset=address.offset,
            row=address.row,
            reason=reason,
            detail=detail,
            key_base64=None if key is None else base64.b64encode(key).decode(),
            value_base64=base64.b64encode(value[:DEAD_LETTER_BYTES_MAX]).decode(),
            truncated=len(value) > DEAD_LETTER_BYTES_MAX,
            headers={name: (data or b"").decode("utf-8", "replace") for name, data in headers},
            timestamp_ms=timestamp_ms,
        )


Rejection = Literal[
    "not-json",
    "wrong-type",
    "unknown-field",
    "unknown-model",
    "missing-feature",
    "not-finite",
    "absurd-timestamp",
    "oversize",
    "wrong-key",
    "bad-arrow",
    "invalid-value",
    "empty",
    "no-room",
]
#: The closed list of reasons a message may be dead-lettered for.
REJECTIONS: tuple[str, ...] = Rejection.__args__  # type: ignore[attr-defined]
