"""What the detect stage keeps: detectors at work, watermarks, who is compared with whom; and how that is stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from detectors.base import Context, Detector, Spec, Standing
from schemas.contracts import DetectorConfig
from schemas.errors import SnapshotError
from schemas.ids import content_hash
from schemas.verdicts import State
from streams.core.comparing import BEGINNING_MS, Pair
from streams.core.feed import Columns

DETECT_SCHEMA = 1
#: Of the pieces that are no detectors.
META_SCHEMA = 2
DETECTOR, PROGRESS = "detector/", "model/"
#: Versions of a model whose detectors are kept; the one unseen for longest goes first.
VERSIONS_MAX = 8
Key = tuple[str, str, str]


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
    #: Of the piece as it was last written.
    digest: bytes = b""
    address: str = ""


@dataclass(slots=True)
class Meta:
    """Watermarks by source, and what they make together."""

    predictions: dict[str, int] = field(default_factory=dict)
    feedback: dict[str, int] = field(default_factory=dict)
    prediction_ms: int = BEGINNING_MS
    outcome_ms: int = BEGINNING_MS

    def reached(self, kind: str) -> int:
        """The watermark of rows of this kind."""
        return self.prediction_ms if kind == "predictions" else self.outcome_ms


@dataclass(slots=True)
class Progress:
    """How far a model has been read. ``fed_ms``: by kind, rows up to it have been fed and later ones have not; ``seen``:
    when each version was last."""

    fed_ms: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    pair: Pair = field(default_factory=Pair)
    changed: bool = True

    def see(self, rows: Columns) -> list[str]:
        """Remember which versions are alive; those that are forgotten for it."""
        seen, forgotten, times = self.seen, [], rows.event_time_ms
        alone = len(rows.versions) == 1
        for code in [0] if alone else np.flatnonzero(np.bincount(rows.version)).tolist():
            newest = int((times if alone else times[rows.version == code]).max())
            seen[rows.versions[code]] = max(newest, seen.get(rows.versions[code], newest))
        while len(seen) > VERSIONS_MAX:
            oldest = min(seen, key=lambda version: (seen[version], version))
            del seen[oldest]
            forgotten.append(oldest)
        return forgotten


def piece_name(key: Key) -> str:
    """Name of a detector's piece; model and version hold no slash."""
    return f"{DETECTOR}{key[0]}/{key[1]}/{key[2]}"


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


def config_hash(config: DetectorConfig, context: Context, reference: str) -> str:
    """Changes with anything that makes an old snapshot meaningless. ``reference``: the hash of the version's."""
    text = config.model_dump_json() + "|".join((*context.columns, repr(context.decision), reference))
    return content_hash(text.encode())[:16]


def encode_meta(meta: Meta) -> bytes:
    """The piece that is not a detector."""
    body = [META_SCHEMA, meta.predictions, meta.feedback, meta.prediction_ms, meta.outcome_ms]
    return msgspec.msgpack.encode(body)


def decode_meta(data: bytes) -> Meta:
    """Inverse of :func:`encode_meta`. Raises SnapshotError."""
    schema, *values = msgspec.msgpack.decode(data)
    if schema != META_SCHEMA:
        raise SnapshotError(
            f"piece meta of a detect task has schema {schema}, this code reads {META_SCHEMA}: run the version that "
            "wrote it, or delete the task's records on the state topic to read its observations again"
        )
    return Meta(*values)


def progress_name(model: str) -> str:
    """Name of the piece that says how far a model was read."""
    return f"{PROGRESS}{model}"


def encode_progress(progress: Progress) -> bytes:
    """That piece."""
    pair = progress.pair
    held = [pair.stable, pair.candidate, pair.stable_ms, pair.candidate_ms]
    return msgspec.msgpack.encode([progress.fed_ms, progress.seen, held])


def decode_progress(data: bytes) -> Progress:
    """Inverse of :func:`encode_progress`; its layout is that of ``META_SCHEMA``."""
    fed_ms, seen, pair = msgspec.msgpack.decode(data)
    return Progress(fed_ms, seen, Pair(*pair), changed=False)
