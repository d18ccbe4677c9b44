"""What the archive makes of records: rows of the log tables, and how far event time has come on a partition.

A log row is a copy, not a judgement: whatever can be read as its topic's type is kept. What cannot is left out here,
because the stage that consumes the topic has put it into ``dead-letters``, from where it is archived with its reason.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from schemas.arrow import documents, model_of, read_arrow
from schemas.arrow_log import arrow_rows
from schemas.control import COMMANDS, Alert, CanaryAnalysis, ControlTick, Decision, Deployment
from schemas.errors import BadMessage
from schemas.events import (
    FORMAT_ARROW,
    HEADER_FORMAT,
    HEADER_KIND,
    HEADER_ORIGIN,
    ID_CHARS_MAX,
    KIND_TICK,
    REVISION_MAX,
    STATUSES,
    DeadLetter,
    Status,
    Tick,
)
from schemas.ids import ROLES, RowId
from schemas.labels import Label
from schemas.messages import TIME_MAX_MS, TIME_MIN_MS
from schemas.row_binary import RowBlock
from schemas.rows import TABLES
from schemas.scan_log import Field, LogScanner
from schemas.verdicts import SignalChanged
from streams.core.records import Record, RecordBatch

log = logging.getLogger(__name__)
Row = tuple[Any, ...]
Address = tuple[int, int, int]
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]


class _Prediction(msgspec.Struct, forbid_unknown_fields=True):
    """:class:`schemas.events.PredictionMade`, decoded ten times as fast."""

    prediction_id: _Id
    model: str
    version: str
    event_time_ms: int
    features: dict[str, float | str | bool | None]
    role: Literal["stable", "canary", "shadow"] = "stable"
    score: float | None = None
    latency_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    status: Literal["ok", "error", "fallback"] = "ok"
    entity: str | None = None
    trace_id: str | None = None
    region: str | None = None


_PREDICTION_FIELDS = frozenset(_Prediction.__struct_fields__)
_predictions = msgspec.json.Decoder(_Prediction)
_labels = msgspec.json.Decoder(Label)


def _prediction_row(event: _Prediction, address: Address) -> Row:
    numbers = {k: float(v) for k, v in event.features.items() if isinstance(v, bool | int | float)}
    categories = {k: v for k, v in event.features.items() if isinstance(v, str)}
    return (
        event.model, event.version, event.role, event.prediction_id, event.event_time_ms, numbers, categories,
        event.score, event.latency_ms, event.status, event.entity or "", event.trace_id or "",
        event.region or "", *address,
    )  # fmt: skip


def _label_row(event: Label, address: Address) -> Row:
    return (
        event.model, event.prediction_id, event.label, event.label_time_ms, event.revision, event.trace_id or "",
        *address,
    )  # fmt: skip


def _signal_row(text: bytes, address: Address) -> Row:
    s = SignalChanged.model_validate_json(text)
    v = s.verdict
    return (
        s.model, s.version, s.role, s.detector, s.kind, s.family.value, s.previous.value, v.state.value, v.score,
        v.threshold, v.evidence.column or "", s.event_time_ms, text.decode(), *address,
    )  # fmt: skip


def _alert_row(text: bytes, address: Address) -> Row:
    a = Alert.model_validate_json(text)
    return (
        a.model, a.version or "", a.dedup_key, a.status, a.severity.value, a.title, a.cause, a.action, a.incident,
        a.event_time_ms, text.decode(), *address,
    )  # fmt: skip


def _command_row(text: bytes, address: Address) -> Row | None:
    c = COMMANDS.validate_json(text)
    if isinstance(c, ControlTick):
        return None
    if isinstance(c, CanaryAnalysis):
        return (
            c.model, c.type, c.signal_id, c.version, c.detector, "policy", c.event_time_ms, text.decode(), *address,
        )  # fmt: skip
    return (
        c.model, c.type, c.request_id, getattr(c, "version", None) or "", c.cause, c.issued_by, c.event_time_ms,
        text.decode(), *address,
    )  # fmt: skip


def _deployment_row(text: bytes, address: Address) -> Row:
    d = Deployment.model_validate_json(text)
    return (
        d.model, d.revision, d.phase.value, d.stable or "", d.candidate or "", d.weights, d.reason, d.event_time_ms,
        text.decode(), *address,
    )  # fmt: skip


def _decision_row(text: bytes, address: Address) -> Row:
    d = Decision.model_validate_json(text)
    return (
        d.model, d.decision_id, d.kind, d.version or "", d.actor, d.request_id or "", d.incident or "", d.detail,
        d.event_time_ms, d.recorded_ms, text.decode(), *address,
    )  # fmt: skip


def _dead_letter_row(text: bytes, address: Address) -> Row:
    d = DeadLetter.model_validate_json(text)
    return (
        d.topic, d.partition, d.offset, d.row, d.reason, d.detail, d.value_base64, d.timestamp_ms, *address,
    )  # fmt: skip


_DOCUMENTS: dict[str, tuple[str, Callable[[bytes, Address], Row | None]]] = {
    "signals": ("signal_log", _signal_row),
    "alerts": ("alert_log", _alert_row),
    "control": ("control_log", _command_row),
    "deployments": ("deployment_log", _deployment_row),
    "decisions": ("decision_log", _decision_row),
    "dead-letters": ("dead_letter_log", _dead_letter_row),
}
_EVENTS: dict[str, tuple[str, Any, Callable[[Any, Address], Row]]] = {
    "predictions": ("prediction_log", _predictions, _prediction_row),
    "feedback": ("label_log", _labels, _label_row),
}
#: Topics that are copied, and those of them that are the raw log.
ARCHIVED = (*_EVENTS, *_DOCUMENTS)
EVENTS = tuple(_EVENTS)
#: The same documents as the decoders above read, in the order of the tables' columns.
_FIELDS: dict[str, tuple[Field, ...]] = {
    "predictions": (
        Field("model", "text"),
        Field("version", "text"),
        Field("role", "text", ROLES[0], values=ROLES),
        Field("prediction_id", "text", low=1, high=ID_CHARS_MAX),
        Field("event_time_ms", "long", low=TIME_MIN_MS, high=TIME_MAX_MS),
        Field("features", "maps"),
        Field("score", "real or null", "", null=True),
        Field("latency_ms", "real from 0", ""),
        Field("status", "text", Status.OK.value, values=STATUSES),
        Field("entity", "text", "", null=True),
        Field("trace_id", "text", "", null=True),
        Field("region", "text", "", null=True),
    ),
    "feedback": (
        Field("model", "text", low=1, high=100),
        Field("prediction_id", "text", low=1, high=ID_CHARS_MAX),
        Field("label", "real"),
        Field("label_time_ms", "long", low=TIME_MIN_MS, high=TIME_MAX_MS),
        Field("revision", "short", "", high=REVISION_MAX),
        Field("trace_id", "text", "", high=64, null=True),
    ),
}
#: What a record with one of these is has to be looked at.
_SPECIAL = (HEADER_KIND, HEADER_FORMAT, HEADER_ORIGIN)


def table_of(topic: str) -> str:
    """The table of the log of ``topic``."""
    return _EVENTS[topic][0] if topic in _EVENTS else _DOCUMENTS[topic][0]


def is_plain(batch: RecordBatch) -> NDArray[np.bool_]:
    """``(n,)``: which records are, as far as their headers say, one JSON event that was sent here in the first place."""
    plain = np.ones(len(batch), np.bool_)
    plain[[at for at, held in batch.headers.items() if any(name in held for name in _SPECIAL)]] = False
    return plain


def is_own(batch: RecordBatch) -> NDArray[np.bool_]:
    """``(n,)``: which records were sent here in the first place, and so have their own address."""
    own = np.ones(len(batch), np.bool_)
    own[[at for at, held in batch.headers.items() if HEADER_ORIGIN in held]] = False
    return own


@functools.cache
def scanner_of(topic: str) -> LogScanner:
    """What reads the plain events of ``topic``; one thread at a time may use it."""
    return LogScanner(_FIELDS[topic])


def log_copy(batch: RecordBatch) -> Iterator[tuple[str, list[Row] | RowBlock]]:
    """(table, rows) of records of one topic, in no order; what cannot be read is left out."""
    places: Sequence[int] = range(len(batch))
    if batch.topic in _FIELDS:
        plain = is_plain(batch)
        if plain.any():
            scanner = scanner_of(batch.topic)
            block, left = scanner.rows(batch.values, ~plain, batch.partition, batch.offsets)
            yield table_of(batch.topic), block
            places = left.tolist()
        opened, places = _opened(batch, places)
        # Schemas are equal whatever their metadata say, and there the model is named.
        for _, alike in itertools.groupby(opened, lambda one: (one[1].schema, one[1].schema.metadata)):
            yield from ((table_of(batch.topic), found) for found in _arrow_blocks(batch, list(alike), places))
    for at in places:
        try:
            yield log_rows(batch[at])
        except BadMessage as error:
            _left_out(error)


def _opened(batch: RecordBatch, places: Sequence[int]) -> tuple[list[tuple[int, pa.Table]], list[int]]:
    """Of the records at ``places`` the Arrow batches, each with its place, and the places of the others."""
    found, others = [], []
    for at in places:
        said = batch.headers.get(at, {})
        if said.get(HEADER_FORMAT) != FORMAT_ARROW or said.get(HEADER_KIND) == KIND_TICK:
            others.append(at)
            continue
        try:
            found.append((at, read_arrow(batch.values.view(at))))
        except BadMessage as error:
            _left_out(error)
    return found, others


def _arrow_blocks(
    batch: RecordBatch, opened: Sequence[tuple[int, pa.Table]], others: list[int]
) -> Iterator[RowBlock]:
    """Rows of Arrow batches of one schema, together where that can be; those of ``others`` are to be read row by row."""
    block = _arrow_block(batch, opened)
    if block is not None:
        yield block
    elif len(opened) == 1:
        others.append(opened[0][0])
    else:
        for one in opened:
            yield from _arrow_blocks(batch, [one], others)


def _arrow_block(batch: RecordBatch, opened: Sequence[tuple[int, pa.Table]]) -> RowBlock | None:
    """Rows of Arrow batches of one schema, and so of one model; None: they cannot be read together."""
    first = opened[0][1]
    try:
        begins = [
            _origin(batch.headers.get(at, {}), batch.partition, int(batch.offsets[at])) for at, _ in opened
        ]
        model = model_of(first.schema)
    except ValueError:
        return None
    table = first if len(opened) == 1 else pa.concat_tables([table for _, table in opened])
    counts = [table.num_rows for _, table in opened]
    partition, offset, row = (
        np.repeat(np.array(begin, np.int64), counts) for begin in zip(*begins, strict=True)
    )
    row += np.concatenate([np.arange(count) for count in counts])
    return arrow_rows(
        _FIELDS[batch.topic],
        TABLES[table_of(batch.topic)].columns,
        table,
        model if batch.topic == "predictions" else None,
        (partition, offset, row),
    )


def _left_out(error: BadMessage) -> None:
    log.debug("left out", extra={"event": "bad-message", "detail": str(error)})


def log_rows(record: Record) -> tuple[str, list[Row]]:
    """(table, rows) of one record; no rows for ticks and tombstones. Raises BadMessage when it cannot be read.

    A row that was sent on from the wrong partition keeps its first address, so both copies are one row.
    """
    table = table_of(record.topic)
    if record.value is None or record.headers.get(HEADER_KIND) == KIND_TICK:
        return table, []
    try:
        if record.topic in _DOCUMENTS:
            row = _DOCUMENTS[record.topic][1](record.value, (record.partition, record.offset, 0))
            return table, [] if row is None else [_checked(row)]
        partition, offset, first = _origin(record.headers, record.partition, record.offset)
        return table, [
            to_row(event, (partition, offset, first + place)) for place, event, to_row in _events(record)
        ]
    except (msgspec.MsgspecError, ValidationError, ValueError) as error:
        raise BadMessage(
            "invalid-value", f"{record.topic}[{record.partition}]@{record.offset}: {error}"
        ) from error


def _events(record: Record) -> list[tuple[int, Any, Callable[[Any, Address], Row]]]:
    """(row, event, what makes a log row of it) for each event of a message that is usable."""
    _, decoder, to_row = _EVENTS[record.topic]
    if record.headers.get(HEADER_FORMAT) != FORMAT_ARROW:
        event = decoder.decode(record.value)
        if not _has_sane_time(event):
            raise BadMessage("absurd-timestamp", "not within the years 2000 to 2100")
        return [(0, event, to_row)]
    table = read_arrow(record.value)
    model = model_of(table.schema)
    found = []
    for place, document in enumerate(documents(table)):
        if record.topic == "predictions":
            features = {name: document.pop(name) for name in list(document) if name not in _PREDICTION_FIELDS}
            document = {name: value for name, value in document.items() if value is not None}
            document |= {"model": model, "features": features}
        try:
            event = msgspec.convert(document, decoder.type)
        except msgspec.ValidationError:
            continue
        if _has_sane_time(event):
            found.append((place, event, to_row))
    return found


def _has_sane_time(event: _Prediction | Label) -> bool:
    at_ms = event.event_time_ms if isinstance(event, _Prediction) else event.label_time_ms
    return TIME_MIN_MS <= at_ms <= TIME_MAX_MS


def _checked(row: Sequence[Any]) -> Row:
    """``row``, unless it holds a number no column can: one such row would hold up the archive for ever."""
    for value in row:
        if isinstance(value, int) and not 0 <= value <= TIME_MAX_MS:
            raise BadMessage("invalid-value", f"{value} is out of range")
    return tuple(row)


def _origin(headers: Mapping[str, bytes], partition: int, offset: int) -> Address:
    """Where the first row of a record was first read."""
    header = headers.get(HEADER_ORIGIN)
    if header is None:
        return partition, offset, 0
    first = RowId.parse(header.decode())
    return first.partition, first.offset, first.row


class PartitionTime:
    """Event time of one partition: the least over its sources of their newest tick, never going back."""

    def __init__(self, event_time_ms: int = -1) -> None:
        self.event_time_ms = event_time_ms
        self._sources: dict[str, int] = {}

    def take(self, record: Record, sources: int) -> None:
        """Learn from ``record`` if it carries time. ``sources``: how many to wait for when it does not say."""
        tick = _time_of(record)
        if tick is None:
            return
        self._sources[tick.source] = max(
            tick.event_time_ms, self._sources.get(tick.source, tick.event_time_ms)
        )
        if len(self._sources) >= (getattr(tick, "sources", 0) or sources):
            self.event_time_ms = max(self.event_time_ms, min(self._sources.values()))


def _time_of(record: Record) -> Tick | ControlTick | None:
    if record.value is None:
        return None
    kind: type[BaseModel] | None = None
    if record.headers.get(HEADER_KIND) == KIND_TICK:
        kind = ControlTick if record.topic == "control" else Tick
    elif record.topic == "control" and b'"tick"' in record.value:
        kind = ControlTick
    try:
        return None if kind is None else kind.model_validate_json(record.value)  # type: ignore[return-value]
    except ValidationError:
        return None


def sources_of(topic: str, partitions: int) -> int:
    """How many writers of ticks ``topic`` has a partition, where ticks do not say."""
    many: Mapping[str, int] = {"control": partitions, "signals": partitions}
    return many.get(topic, 1)
