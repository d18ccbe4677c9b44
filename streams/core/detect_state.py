"""What the detect stage keeps: detectors at work, watermarks, who is compared with whom; and how that is stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from detectors.base import Context, Detector, Spec, Standing
from schemas.blocks import ObservationBlock
from schemas.contracts import DetectorConfig
from schemas.errors import SnapshotError
from schemas.ids import content_hash
from schemas.verdicts import State
from streams.core.comparing import BEGINNING_MS, Pair

DETECT_SCHEMA = 1
Key = tuple[str, str, str]


@dataclass(slots=True)
class Waiting:
    """Rows of one record that the watermark has not passed."""

    offset: int
    block: ObservationBlock


@dataclass(slots=True)
class Running:
    """One detector at work, with what was last said of it."""

    config: DetectorConfig
    spec: Spec
    context: Context
    detector: Detector
    role: str
    columns: tuple[int, ...]
    content: str
    standing_key: str
    known: bytes
    standing: Standing
    said: State = State.INCONCLUSIVE
    failed: bool = False
    touched: bool = True
    written: bytes = b""
    address: str = ""


@dataclass(slots=True)
class Meta:
    """Watermarks by source, pairs by model, versions last seen by model."""

    predictions: dict[str, int] = field(default_factory=dict)
    feedback: dict[str, int] = field(default_factory=dict)
    prediction_ms: int = BEGINNING_MS
    outcome_ms: int = BEGINNING_MS
    pairs: dict[str, Pair] = field(default_factory=dict)
    seen: dict[str, dict[str, int]] = field(default_factory=dict)


def piece_name(key: Key) -> str:
    """Name of a detector's piece; model and version hold no slash."""
    return f"detector/{key[0]}/{key[1]}/{key[2]}"


def key_of(name: str) -> Key:
    """Inverse of :func:`piece_name`."""
    _, model, version, detector = name.split("/", 3)
    return model, version, detector


def encode_running(running: Running) -> bytes:
    """One detector's piece."""
    return msgspec.msgpack.encode(
        [
            DETECT_SCHEMA,
            running.role,
            running.content,
            running.said.value,
            running.failed,
            running.address,
            running.detector.snapshot(),
            running.standing_key,
            running.known,
        ]
    )


def is_current(piece: bytes) -> bool:
    """Whether this code wrote a detector's piece. Schema, role, content and what was said come first in every layout."""
    return bool(msgspec.msgpack.decode(piece)[0] == DETECT_SCHEMA)


def config_hash(config: DetectorConfig, context: Context) -> str:
    """Changes with anything that makes an old snapshot meaningless. Slow for a large reference: once a detector."""
    reference = context.reference
    text = config.model_dump_json() + "|".join((*context.columns, repr(context.decision)))
    return content_hash((text + ("" if reference is None else reference.model_dump_json())).encode())[:16]


def encode_meta(meta: Meta) -> bytes:
    """The piece that is not a detector."""
    pairs = {
        model: [pair.stable, pair.candidate, pair.stable_ms, pair.candidate_ms]
        for model, pair in meta.pairs.items()
    }
    body = [
        DETECT_SCHEMA,
        meta.predictions,
        meta.feedback,
        meta.prediction_ms,
        meta.outcome_ms,
        pairs,
        meta.seen,
    ]
    return msgspec.msgpack.encode(body)


def decode_meta(data: bytes) -> Meta:
    """Inverse of :func:`encode_meta`. Raises SnapshotError."""
    schema, *values = msgspec.msgpack.decode(data)
    if schema != DETECT_SCHEMA:
        raise SnapshotError(
            f"piece meta of a detect task has schema {schema}, this code reads {DETECT_SCHEMA}: run the version that "
            "wrote it, or delete the task's records on the state topic to read its observations again"
        )
    predictions, feedback, prediction_ms, outcome_ms, pairs, seen = values
    return Meta(
        predictions, feedback, prediction_ms, outcome_ms, {m: Pair(*pair) for m, pair in pairs.items()}, seen
    )
