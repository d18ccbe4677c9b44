"""The JOIN stage: one partition of predictions and its partition of feedback become aggregates, outcomes, observations.

An event's way: decode (bad: dead letter) → right partition? (no: sent on once with its address) → new? (a duplicate counts
once) → windows → join index → observation block; a label's way: decode → every role of its prediction → windows →
outcome row. Ticks move event time, close windows, and go on to every observations partition after what came before them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from schemas.blocks import ObservationBlock, encode_block
from schemas.codecs import Bad, Label, PredictionColumns, PredictionDecoder, decode_labels, read_arrow
from schemas.contracts import ModelContract, ModelRecord, Reference
from schemas.errors import DeliveryError, StateCorrupt
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, HEADER_ORIGIN, KIND_TICK, DeadLetter, Tick
from schemas.ids import ROLES, RowId, murmur2_many, partitions_of
from schemas.rows import NANO
from streams.core.delivery import Manifest, Out, Record, StageContext, TopicPartition, Upsert
from streams.core.join import Entry, JoinIndex, Settled, drain
from streams.core.windows import Windows, log_loss_nano, segments_of

META_SCHEMA = 1
DEAD_LETTER_BYTES_MAX = 262_144
#: The share of bad messages is judged over at least this many.
BAD_WINDOW_ROWS = 1_000
BEGINNING_MS = -(2**62)
#: A block stays well under what a broker takes in one message.
BLOCK_BYTES_MAX = 700_000
Message = tuple[bytes | None, bytes | None, bool]


def create(context: StageContext) -> JoinCore:
    """The join stage's core for one partition."""
    return JoinCore(context)


@dataclass(slots=True)
class _Row:
    """One row that will become part of an observation block."""

    entry: Entry
    features: Any
    latency_ms: float
    version: str
    label: float = 0.0
    label_time_ms: int = 0
    sign: int = 1


@dataclass(slots=True)
class _Meta:
    """What is stored besides windows and the index."""

    prediction_ms: int = BEGINNING_MS
    feedback_ms: int = BEGINNING_MS
    judged: int = 0
    bad: int = 0


@dataclass(slots=True)
class _Measured:
    dead: dict[str, int] = field(default_factory=dict)
    rerouted: dict[str, int] = field(default_factory=dict)


class JoinCore:
    """See the module. All state is in ``Windows``, ``JoinIndex`` and a small meta piece."""

    stage = "join"

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._partition = context.partition
        self._partitions = context.partitions
        self._contracts: dict[str, ModelContract] = {}
        self._references: dict[str, dict[str, Reference]] = {}
        self._decoder = PredictionDecoder(())
        self._windows = Windows(context.partition)
        self._index = JoinIndex(context.settings.monitor.early_labels_max)
        self._meta = _Meta()
        self._meta_changed = True
        self._outs: list[Out] = []
        self._rows: dict[tuple[str, str], list[_Row]] = {}
        self._sequence = 0
        self._measured = _Measured()

    # -- configuration --------------------------------------------------------------------------------------------

    def activate(self, records: Sequence[ModelRecord]) -> None:
        """Learn contracts and the references of versions."""
        changed = False
        for record in records:
            if record.contract is not None:
                self._contracts[record.contract.model] = record.contract
                changed = True
            elif record.version is not None:
                versions = self._references.setdefault(record.version.model, {})
                versions[record.version.version] = record.version.reference
        if changed:
            self._decoder = PredictionDecoder(self._contracts.values())

    # -- input ----------------------------------------------------------------------------------------------------

    def apply(self, records: Sequence[Record], now_ms: int) -> None:
        """Take records of both topics in; runs of one topic between ticks are decoded together."""
        run: list[Record] = []
        for record in records:
            if record.headers.get(HEADER_KIND) == KIND_TICK:
                self._run(run)
                run = []
                self._tick(record)
            else:
                if run and run[0].topic != record.topic:
                    self._run(run)
                    run = []
                run.append(record)
        self._run(run)

    def _run(self, records: list[Record]) -> None:
        if not records:
            return
        if records[0].topic == "predictions":
            self._predictions(records)
        else:
            self._labels(records)

    def _messages(self, records: list[Record]) -> list[Message]:
        return [(r.key, r.value, r.headers.get(HEADER_FORMAT) == FORMAT_ARROW) for r in records]

    def _predictions(self, records: list[Record]) -> None:
        time_ms = None if self._meta.prediction_ms == BEGINNING_MS else self._meta.prediction_ms
        columns, bad = self._decoder.decode(self._messages(records), time_ms)
        self._reject(records, bad, sum(map(len, columns)) + len(bad))
        for batch in columns:
            kept = self._here(records, batch)
            if len(kept):
                self._take(records, kept)

    def _here(self, records: list[Record], columns: PredictionColumns) -> PredictionColumns:
        """The rows that belong on this partition or were sent here before; the others are sent on."""
        where = partitions_of([i.encode() for i in columns.ids], self._partitions)
        wrong = where != self._partition
        if not wrong.any():
            return columns
        stay = ~wrong
        for at in np.flatnonzero(wrong):
            record = records[int(columns.message[at])]
            if HEADER_ORIGIN in record.headers:
                stay[at] = True
                continue
            self._send_on(record, int(columns.row[at]), columns.ids[at], int(where[at]))
        return columns.take(np.flatnonzero(stay))

    def _send_on(self, record: Record, row: int, prediction_id: str, partition: int) -> None:
        value = record.value or b""
        if record.headers.get(HEADER_FORMAT) == FORMAT_ARROW:
            value = _row_as_json(value, row, record.topic)
        headers = {k: v for k, v in record.headers.items() if k != HEADER_FORMAT}
        headers[HEADER_ORIGIN] = str(RowId(record.topic, record.partition, record.offset, row)).encode()
        self._outs.append(Out(record.topic, prediction_id.encode(), value, partition, headers))
        self._measured.rerouted[record.topic] = self._measured.rerouted.get(record.topic, 0) + 1

    def _take(self, records: list[Record], columns: PredictionColumns) -> None:
        contract = columns.contract
        segments = segments_of(contract, columns.features)
        identities = _identities(columns.ids)
        horizon_ms = contract.monitoring.label_horizon
        new = np.ones(len(columns), bool)
        waiting: list[tuple[int, Settled]] = []
        entries: list[Entry] = []
        for at in range(len(columns)):
            address = _address(records[int(columns.message[at])], int(columns.row[at]))
            score = float(columns.score[at])
            entry = Entry(
                columns.ids[at],
                contract.model,
                columns.versions[at],
                int(columns.role[at]),
                int(columns.event_time_ms[at]),
                None if score != score else score,
                int(columns.status[at]),
                tuple(labels[at] for labels in segments),
                address.partition,
                address.offset,
                address.row,
                int(identities[at]),
            )
            new[at], settled = self._index.add(entry, horizon_ms)
            entries.append(entry)
            if settled is not None:
                waiting.append((at, settled))
        keep = np.flatnonzero(new)
        kept = columns if len(keep) == len(columns) else columns.take(keep)
        if len(kept):
            self._windows.add(
                kept,
                self._references.get(contract.model, {}),
                self._meta.prediction_ms,
                [[labels[i] for i in keep] for labels in segments],
            )
            rows = self._rows.setdefault(("predictions", contract.model), [])
            for place, at in enumerate(keep.tolist()):
                rows.append(_Row(entries[at], kept.features[place], float(kept.latency_ms[place]), entries[at].version))
        for _, settled in waiting:
            self._outcome(contract, settled)

    def _labels(self, records: list[Record]) -> None:
        good, bad = decode_labels(self._messages(records), self._contracts)
        self._reject(records, bad, len(good) + len(bad))
        where = partitions_of([label.prediction_id.encode() for _, _, label in good], self._partitions)
        for (message, row, label), partition in zip(good, where.tolist(), strict=True):
            record = records[message]
            if partition != self._partition and HEADER_ORIGIN not in record.headers:
                self._send_on(record, row, label.prediction_id, partition)
            else:
                self._label(label)

    def _label(self, label: Label) -> None:
        contract = self._contracts[label.model]
        for settled in self._index.label(label):
            self._outcome(contract, settled)

    def _outcome(self, contract: ModelContract, settled: Settled) -> None:
        """Put an outcome into its cells and on the way to the detectors; a replaced one is taken back first."""
        entry = settled.entry
        if entry.score is None:
            return
        role = ROLES[entry.role]
        keys = [(entry.version, role, segment) for segment in ("", *entry.segments)]
        rows = self._rows.setdefault(("outcomes", contract.model), [])
        changes = [(entry.label, 1)]
        if settled.old_label is not None:
            changes.insert(0, (settled.old_label, -1))
        for label, sign in changes:
            self._windows.settle(
                contract.model,
                contract,
                entry.event_time_ms,
                keys,
                entry.score,
                label,
                sign,
                settled.old_label is not None,
            )
            rows.append(_Row(entry, None, 0.0, entry.version, label, entry.label_time_ms, sign))

    # -- time -----------------------------------------------------------------------------------------------------

    def _tick(self, record: Record) -> None:
        try:
            tick = msgspec.json.decode(record.value or b"", type=_TickValue)
        except msgspec.DecodeError as error:
            self._dead_letter(record, Bad(0, 0, "not-json", f"a tick that cannot be read: {error}"))
            return
        meta = self._meta
        if record.topic == "predictions":
            moved = tick.event_time_ms > meta.prediction_ms
            meta.prediction_ms = max(meta.prediction_ms, tick.event_time_ms)
        else:
            moved = tick.event_time_ms > meta.feedback_ms
            meta.feedback_ms = max(meta.feedback_ms, tick.event_time_ms)
        if not moved:
            return
        self._meta_changed = True
        self._flush_rows()
        horizons = {name: c.monitoring.label_horizon for name, c in self._contracts.items()}
        self._windows.advance(self._contracts, meta.prediction_ms, meta.feedback_ms)
        self._index.expire(meta.feedback_ms, horizons)
        value = (
            Tick(
                event_time_ms=meta.prediction_ms,
                source=self._context.task,
                sources=self._partitions,
                feedback_time_ms=meta.feedback_ms,
            )
            .model_dump_json()
            .encode()
        )
        headers = {HEADER_KIND: KIND_TICK}
        self._outs += [Out("observations", None, value, p, headers) for p in range(self._partitions)]

    # -- what leaves ----------------------------------------------------------------------------------------------

    def _flush_rows(self) -> None:
        for (kind, model), rows in self._rows.items():
            contract = self._contracts[model]
            most = max(1, BLOCK_BYTES_MAX // (8 * len(contract.features) + 96))
            for start in range(0, len(rows), most):
                block = _block(kind, contract, rows[start : start + most])
                self._outs.append(Out("observations", model.encode(), encode_block(block)))
        self._rows = {}

    def _reject(self, records: list[Record], bad: list[Bad], total: int) -> None:
        if bad:
            self._judge(records, bad, total)
        else:
            self._meta.judged += total
        if self._meta.judged >= 2 * BAD_WINDOW_ROWS:
            self._meta.judged, self._meta.bad = self._meta.judged // 2, self._meta.bad // 2
        self._meta_changed = True
        for one in bad:
            self._dead_letter(records[one.message], one)

    def _judge(self, records: list[Record], bad: list[Bad], total: int) -> None:
        """Halt when a broken producer would empty the stream into ``dead-letters``."""
        self._meta.judged += total
        self._meta.bad += len(bad)
        share_max = min((c.monitoring.bad_share_max for c in self._contracts.values()), default=1.0)
        if self._meta.judged >= BAD_WINDOW_ROWS and self._meta.bad > share_max * self._meta.judged:
            first, record = bad[0], records[bad[0].message]
            raise DeliveryError(
                f"{self._meta.bad} of the last {self._meta.judged} messages are bad, more than {share_max:.0%}: halted "
                f"instead of dead-lettering the stream. First here: {record.topic}/{record.partition}/{record.offset} "
                f"{first.reason}: {first.detail}. Mend the producer, or raise monitoring.bad_share_max to let them pass"
            )

    def _dead_letter(self, record: Record, bad: Bad) -> None:
        value = record.value or b""
        origin = _address(record, bad.row)
        letter = DeadLetter(
            topic=origin.topic,
            partition=origin.partition,
            offset=origin.offset,
            row=origin.row,
            reason=bad.reason,
            detail=bad.detail[:2_000],
            key_base64=None if record.key is None else base64.b64encode(record.key[:1_000]).decode(),
            value_base64=base64.b64encode(value[:DEAD_LETTER_BYTES_MAX]).decode(),
            truncated=len(value) > DEAD_LETTER_BYTES_MAX,
            headers={name: v.decode("utf-8", "replace") for name, v in record.headers.items()},
            timestamp_ms=record.timestamp_ms,
        )
        key = f"{record.topic}/{record.partition}".encode()
        self._outs.append(Out("dead-letters", key, letter.model_dump_json().encode(), 0))
        self._measured.dead[bad.reason] = self._measured.dead.get(bad.reason, 0) + 1

    def outputs(self) -> list[Out]:
        self._flush_rows()
        outs, self._outs = self._outs, []
        return outs

    # -- state ----------------------------------------------------------------------------------------------------

    def changed_pieces(self) -> dict[str, bytes | None]:
        pieces = self._windows.changed_pieces() | self._index.changed_pieces()
        if self._meta_changed:
            m = self._meta
            pieces["meta"] = msgspec.msgpack.encode([META_SCHEMA, m.prediction_ms, m.feedback_ms, m.judged, m.bad])
            self._meta_changed = False
        return pieces

    def restore(self, pieces: Mapping[str, bytes], manifest: Manifest | None) -> None:
        if manifest is None:
            return
        self._sequence = manifest.sequence
        if "meta" in pieces:
            schema, *values = msgspec.msgpack.decode(pieces["meta"])
            if schema != META_SCHEMA:
                raise StateCorrupt(f"piece meta: schema {schema}, this code reads {META_SCHEMA}")
            self._meta = _Meta(*values)
        self._index.restore({n: d for n, d in pieces.items() if n.startswith("join/")})
        self._windows.restore({n: d for n, d in pieces.items() if n.startswith("window/")})

    def positions(self) -> dict[TopicPartition, int]:
        """Nothing is read again: all that was applied is in the state."""
        return {}

    def watermarks(self) -> dict[str, int]:
        return {"predictions": self._meta.prediction_ms, "feedback": self._meta.feedback_ms}

    # -- warehouse ------------------------------------------------------------------------------------------------

    def committed(self, sequence: int) -> None:
        self._sequence = sequence

    def upserts(self) -> list[Upsert]:
        return self._windows.upserts(self._sequence)

    def confirm(self, sent: Sequence[Upsert]) -> None:
        self._windows.confirm(sent)
        self._windows.advance(self._contracts, self._meta.prediction_ms, self._meta.feedback_ms)

    def measurements(self) -> Iterable[tuple[str, dict[str, str], float]]:
        """Counters since the last call, gauges as they are."""
        measured, self._measured = self._measured, _Measured()
        partition = {"partition": str(self._partition)}
        for reason, count in measured.dead.items():
            yield "driftline_dead_letters_total", {"reason": reason}, count
        for topic, count in measured.rerouted.items():
            yield "driftline_rerouted_rows_total", {"topic": topic}, count
        for outcome, count in drain(self._index.counts):
            yield "driftline_labels_total", {"outcome": outcome}, count
        for model, count in self._windows.too_late.items():
            yield "driftline_late_rows_total", {"model": model}, count
        self._windows.too_late = {}
        yield "driftline_pending_predictions", partition, len(self._index)
        yield "driftline_pending_labels", partition, self._index.early
        yield "driftline_open_windows", partition, len(self._windows)


class _TickValue(msgspec.Struct):
    event_time_ms: int


def _identities(ids: list[str]) -> Any:
    keys = [i.encode() for i in ids]
    high = murmur2_many(keys).astype(np.uint64)
    low = murmur2_many([key + b"\x01" for key in keys]).astype(np.uint64)
    return (high << np.uint64(32)) | low


def _address(record: Record, row: int) -> RowId:
    """Where a row was first read: its origin if it was sent on."""
    origin = record.headers.get(HEADER_ORIGIN)
    if origin is not None:
        try:
            return RowId.parse(origin.decode())
        except (ValueError, UnicodeDecodeError):
            pass
    return RowId(record.topic, record.partition, record.offset, row)


def _row_as_json(value: bytes, row: int, topic: str) -> bytes:
    """One row of an Arrow batch as the JSON document it stands for."""
    table = read_arrow(value)
    data = {name: item for name, item in table.slice(row, 1).to_pylist()[0].items() if item is not None}
    if topic == "feedback":
        return msgspec.json.encode(data)
    own = {"prediction_id", "version", "role", "event_time_ms", "score", "latency_ms", "status", "entity", "trace_id"}
    event = {name: data[name] for name in own if name in data}
    event["model"] = (table.schema.metadata or {}).get(b"model", b"").decode()
    event["features"] = {name: item for name, item in data.items() if name not in own}
    return msgspec.json.encode(event)


def _block(kind: str, contract: ModelContract, rows: list[_Row]) -> ObservationBlock:
    versions = sorted({row.version for row in rows})
    index = {version: at for at, version in enumerate(versions)}
    n = len(rows)
    labelled = kind == "outcomes"
    entries = [row.entry for row in rows]
    losses = [
        log_loss_nano(e.score, row.label) / NANO if labelled and e.score is not None else 0.0
        for e, row in zip(entries, rows, strict=True)
    ]
    empty: list[Any] = []
    return ObservationBlock(
        kind="outcomes" if labelled else "predictions",
        model=contract.model,
        versions=tuple(versions),
        contract_hash=contract.hash,
        partition=np.fromiter((e.partition for e in entries), np.int32, n),
        offset=np.fromiter((e.offset for e in entries), np.int64, n),
        row=np.fromiter((e.row for e in entries), np.int32, n),
        identity=np.fromiter((e.identity for e in entries), np.uint64, n),
        event_time_ms=np.fromiter((e.event_time_ms for e in entries), np.int64, n),
        version=np.fromiter((index[row.version] for row in rows), np.int32, n),
        role=np.fromiter((e.role for e in entries), np.int8, n),
        score=np.fromiter((np.nan if e.score is None else e.score for e in entries), np.float64, n),
        latency_ms=np.fromiter((row.latency_ms for row in rows), np.float64, n),
        status=np.fromiter((e.status for e in entries), np.int8, n),
        features=np.empty((0, 0)) if labelled else np.array([row.features for row in rows], np.float64),
        label=np.array([row.label for row in rows] if labelled else empty, np.float64),
        label_time_ms=np.array([row.label_time_ms for row in rows] if labelled else empty, np.int64),
        loss=np.array(losses if labelled else empty, np.float64),
        sign=np.array([row.sign for row in rows] if labelled else empty, np.int8),
    )
