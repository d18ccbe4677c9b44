"""The JOIN stage: one partition of predictions and its partition of feedback become aggregates, outcomes, observations.

An event's way: decode (bad: dead letter) → right partition? (no: sent on once with its address) → new? (a duplicate counts
once) → windows → join index → observation block; a label's way: decode → every role of its prediction → windows →
outcome row. Ticks move event time, close windows, and go on to every observations partition after what came before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.codecs import PredictionDecoder
from schemas.contracts import ModelContract, ModelRecord, Reference
from schemas.errors import Halted
from schemas.events import FORMAT_ARROW, HEADER_FORMAT, HEADER_KIND, KIND_TICK, Tick
from schemas.hashing import KeyHashes, key_hashes
from schemas.labels import LabelColumns, LabelDecoder
from schemas.messages import Bad, Messages
from schemas.scan_rows import LogRows
from streams.core.archive import is_own, is_plain
from streams.core.arriving import look_at
from streams.core.astray import sent_on
from streams.core.cold import ANSWERS, ColdLabels, Question, known_labels
from streams.core.dead_letters import dead_letter, dead_letters
from streams.core.delivery import Manifest, Out, StageContext, TopicPartition, Upserts
from streams.core.distinct import distinct
from streams.core.join import Arrivals, JoinIndex, LabelRows, drain
from streams.core.join_meta import BEGINNING_MS, Meta, restored
from streams.core.join_pieces import JoinPieces
from streams.core.members import Members, Segments, coded
from streams.core.observe import Observed, Predictions, addresses_of, outcome_block
from streams.core.outcomes import OutcomeRows
from streams.core.records import Input, Record, RecordBatch, batches, joined
from streams.core.together import Together
from streams.core.windows import Windows

NO_ROOM = (
    "monitor.early_labels_max labels of this partition wait already, for their prediction or for ClickHouse to be looked up "
    "in: send it again when there is room, or raise the limit"
)
#: The share of bad messages is judged over at least this many.
BAD_WINDOW_ROWS = 1_000
#: From so many models on it is dearer to handle the few rows of each in every batch than to put batches together.
MODELS_MANY = 8


def create(context: StageContext) -> JoinCore:
    """The join stage's core for one partition."""
    return JoinCore(context)


@dataclass(slots=True)
class _Measured:
    dead: dict[str, int] = field(default_factory=dict)
    rerouted: dict[str, int] = field(default_factory=dict)
    too_late: dict[str, int] = field(default_factory=dict)


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
        self._label_decoder = LabelDecoder({})
        self._windows = Windows(context.partition)
        limits = context.settings.monitor
        # A worker may come to own every partition.
        self._index = JoinIndex(limits.early_labels_max, limits.hot_index_bytes_max // context.partitions)
        self._cold = ColdLabels(
            self._index,
            context.partition,
            context.partitions,
            limits.warehouse and limits.label_lookup_interval > 0,
            limits.label_lookup_rows_max,
        )
        self._pieces = JoinPieces(self._index)
        self._meta = Meta()
        self._outs: list[Out] = []
        self._observed = Observed()
        self._segments: dict[str, Segments] = {}
        #: Why the core refuses to go on, once it does.
        self.halted: str | None = None
        self._sequence = 0
        self._measured = _Measured()
        #: Rows of the raw log, made on the way where this worker writes it.
        self._logs = limits.warehouse and context.settings.clickhouse.raw_log == "monitor"
        self._logged: list[LogRows] = []

    # -- configuration --------------------------------------------------------------------------------------------

    def activate(self, records: Sequence[ModelRecord]) -> None:
        """Learn contracts and the references of versions."""
        changed = False
        for record in records:
            if record.contract is not None:
                model = record.contract.model
                self._cold.activate(record.contract, self._contracts.get(model), self._segments.get(model))
                if model in self._contracts:
                    self._windows.reconfigured(model)
                self._contracts[model] = record.contract
                self._segments[model] = Segments(record.contract)
                changed = True
            elif record.version is not None:
                versions = self._references.setdefault(record.version.model, {})
                versions[record.version.version] = record.version.reference
        if changed:
            self._decoder = PredictionDecoder(self._contracts.values())
            self._label_decoder = LabelDecoder(self._contracts)

    # -- input ----------------------------------------------------------------------------------------------------

    def apply(self, records: Sequence[Input], now_ms: int) -> None:
        """Take records of both topics in; what lies between ticks of one topic is decoded together."""
        self._logged = []
        parts = batches(records)
        for batch in joined(parts) if len(self._contracts) >= MODELS_MANY else parts:
            start = 0
            for at in sorted(batch.headers):
                if batch.headers[at].get(HEADER_KIND) == KIND_TICK:
                    self._run(batch.part(start, at))
                    self._tick(batch[at])
                    start = at + 1
            self._run(batch.part(start, len(batch)))
        self._evict()

    def _evict(self) -> None:
        first_number = self._index.first_number
        self._index.evict()
        self._meta.changed = self._meta.changed or self._index.first_number != first_number

    def _run(self, records: RecordBatch) -> None:
        if not len(records):
            return
        if records.topic == "predictions":
            self._predictions(records)
        elif records.topic == ANSWERS:
            for contract, outcomes in self._cold.take(
                records, self._contracts, self._oldest_waiting_ms(), self._segments
            ):
                self._settle(contract, outcomes, cold=True)
        else:
            self._labels(records)

    def _messages(self, records: RecordBatch) -> Messages:
        arrow = np.zeros(len(records), np.bool_)
        arrow[[at for at, held in records.headers.items() if held.get(HEADER_FORMAT) == FORMAT_ARROW]] = True
        return Messages(records.keys, records.values, arrow)

    def _predictions(self, records: RecordBatch) -> None:
        time_ms = None if self._meta.prediction_ms == BEGINNING_MS else self._meta.prediction_ms
        log = None
        if self._logs:
            log = LogRows(records.partition, records.offsets, is_own(records), is_plain(records))
        columns, bad = self._decoder.decode(self._messages(records), time_ms, log)
        if log is not None and log.blocks:
            self._logged.append(log)
        self._reject(records, bad, sum(map(len, columns)) + len(bad))
        if columns:
            self._take(records, Together.of(columns))

    def _stays(
        self,
        records: RecordBatch,
        rows: Together | LabelColumns,
        hashes: KeyHashes,
    ) -> NDArray[np.bool_]:
        """Which rows are taken in here: of this partition, or sent here before; the others are sent on."""
        where = hashes.partitions(self._partitions)
        astray: NDArray[np.bool_] = where != self._partition
        if astray.any():
            astray &= is_own(records)[rows.message]
            outs = list(sent_on(records, rows, astray, where))
            self._outs += outs
            rerouted = self._measured.rerouted
            rerouted[records.topic] = rerouted.get(records.topic, 0) + len(outs)
        return ~astray

    def _take(self, records: RecordBatch, rows: Together) -> None:
        """Count what is new, put it into the index and on the way to the detectors."""
        contracts = [part.contract for part in rows.parts]
        hashes = key_hashes(rows.keys)
        pane_ms = np.array([contract.monitoring.pane_ms for contract in contracts], np.int64)
        floors = [self._meta.floor_ms.get(contract.model, BEGINNING_MS) for contract in contracts]
        floor_ms, starts = np.array(floors, np.int64), np.empty(len(rows), np.int64)
        elsewhere, late = look_at(
            rows.event_time_ms,
            rows.model,
            hashes.murmur,
            pane_ms,
            floor_ms,
            self._partitions,
            self._partition,
            starts,
        )
        addresses = addresses_of(records, rows, hashes)
        if elsewhere or late:
            stays = self._stays(records, rows, hashes)
            in_time = starts + pane_ms[rows.model] > floor_ms[rows.model]
            self._count_too_late(rows, stays & ~in_time)
            at = np.flatnonzero(stays & in_time)
            rows, addresses, starts = rows.take(at), addresses.take(at), starts[at]
        if not len(rows):
            return
        segments = [self._segments[contract.model] for contract in contracts]
        codes, told = coded(rows, segments)
        members = Members.of(rows, starts, codes)
        kinds = members.kinds(rows.versions, segments)
        last = [contract.monitoring.last_label for contract in contracts]
        last_ms = [
            kind.window.end_ms + last[of] for kind, of in zip(kinds, members.model.tolist(), strict=True)
        ]
        new, outcomes = self._index.add(
            Arrivals(
                kinds, last_ms, members.of_row, addresses.identity, addresses.check, rows.event_time_ms, rows.score,
                rows.status, addresses.partition, addresses.offset, addresses.row,
            )
        )  # fmt: skip
        if not new.all():
            at = np.flatnonzero(new)
            rows, addresses, members, told = rows.take(at), addresses.take(at), members.take(at), told[at]
        if len(rows):
            references = [self._references.get(contract.model, {}) for contract in contracts]
            self._windows.add(rows, members, segments, references, self._meta.prediction_ms)
            self._observed.put_predictions(Predictions.of(rows, addresses, told, segments))
        for model, found in outcomes:
            self._settle(self._contracts[model], found)

    def _count_too_late(self, rows: Together, which: NDArray[np.bool_]) -> None:
        for part, count in enumerate(np.bincount(rows.model[which], minlength=len(rows.parts)).tolist()):
            if count:
                model = rows.parts[part].contract.model
                self._measured.too_late[model] = self._measured.too_late.get(model, 0) + count

    def _labels(self, records: RecordBatch) -> None:
        labels, bad = self._label_decoder.decode(self._messages(records))
        self._reject(records, bad, len(labels) + len(bad))
        hashes = key_hashes(labels.keys)
        stays = self._stays(records, labels, hashes)
        oldest_ms = self._oldest_waiting_ms()
        every = bool(stays.all())
        codes = distinct(labels.model if every else labels.model[stays])[0].tolist()
        for code in codes:
            contract = self._contracts[labels.models[code]]
            # Mostly they are all of one model.
            whole = every and len(codes) == 1
            at = np.arange(len(labels)) if whole else np.flatnonzero(stays & (labels.model == code))
            rows = (
                LabelRows(labels, hashes.identity, hashes.check)
                if whole
                else LabelRows(labels.take(at), hashes.identity[at], hashes.check[at])
            )
            outcomes = self._index.label(rows, oldest_ms[contract.model], contract.monitoring.last_label)
            self._settle(contract, outcomes)
            refused = [
                Bad(int(labels.message[one]), int(labels.row[one]), "no-room", NO_ROOM, alone=True)
                for one in at[self._index.refused].tolist()
            ]
            self._lay_down(dead_letters(records, refused), refused)

    def _oldest_waiting_ms(self) -> dict[str, int]:
        """By model: a label older than this no longer waits for its prediction.

        A prediction is not younger than its label, so the window of one that is still to come ends within a window's
        length after it. As long as that is not settled the label waits, however far one input is ahead of the other.
        """
        floors = self._meta.floor_ms
        return {
            model: floors.get(model, BEGINNING_MS) - contract.monitoring.pane_ms + 1
            for model, contract in self._contracts.items()
        }

    def _settle(self, contract: ModelContract, outcomes: OutcomeRows, *, cold: bool = False) -> None:
        """Put outcomes into their cells and on the way to the detectors."""
        if len(outcomes) and (unscored := np.isnan(outcomes.score)).any():
            self._outs.append(known_labels(contract, outcomes.take(unscored), self._segments[contract.model]))
            outcomes = outcomes.take(~unscored)
        if len(outcomes):
            losses = outcomes.log_loss_nano()
            if cold:
                floor_ms = self._meta.floor_ms.get(contract.model, BEGINNING_MS)
                self._cold.settle(outcomes, losses, contract, floor_ms, self._windows)
            else:
                self._windows.settle(outcomes, losses, contract.threshold)
            self._observed.put(outcome_block(contract, outcomes, losses, self._segments[contract.model]))

    # -- time -----------------------------------------------------------------------------------------------------

    def _tick(self, record: Record) -> None:
        try:
            tick = msgspec.json.decode(record.value or b"", type=_TickValue)
        except msgspec.DecodeError as error:
            bad = Bad(0, 0, "not-json", f"a tick that cannot be read: {error}")
            self._lay_down([dead_letter(record, bad)], [bad])
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
        self._meta.changed = True
        self._cold.asks.position = meta.prediction_ms + meta.feedback_ms
        self._outs += self._observed.flush()
        meta.settle(self._contracts)
        self._windows.advance(self._contracts, meta.prediction_ms, meta.floor_ms)
        self._index.expire(meta.floor_ms, self._oldest_waiting_ms())
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

    def _reject(self, records: RecordBatch, bad: list[Bad], total: int) -> None:
        if bad:
            self._judge(records, bad, total)
        else:
            self._meta.judged += total
        if self._meta.judged >= 2 * BAD_WINDOW_ROWS:
            self._meta.judged, self._meta.bad = self._meta.judged // 2, self._meta.bad // 2
        self._meta.changed = True
        self._lay_down(dead_letters(records, bad), bad)

    def _lay_down(self, letters: Iterable[Out], bad: Sequence[Bad]) -> None:
        self._outs += letters
        dead = self._measured.dead
        for one in bad:
            dead[one.reason] = dead.get(one.reason, 0) + 1

    def _judge(self, records: RecordBatch, bad: list[Bad], total: int) -> None:
        """Halt when a broken producer would empty the stream into ``dead-letters``.

        Nothing of this batch is committed then: after the repair it is read again.
        """
        self._meta.judged += total
        self._meta.bad += len(bad)
        share_max = min((c.monitoring.bad_share_max for c in self._contracts.values()), default=1.0)
        if self._meta.judged >= BAD_WINDOW_ROWS and self._meta.bad > share_max * self._meta.judged:
            first, record = bad[0], records[bad[0].message]
            self.halted = (
                f"{self._meta.bad} of the last {self._meta.judged} messages are bad, more than {share_max:.0%}: halted "
                f"instead of dead-lettering the stream. First here: {record.topic}/{record.partition}/{record.offset} "
                f"{first.reason}: {first.detail}. Mend the producer, or raise monitoring.bad_share_max to let them pass"
            )
            raise Halted(self.halted)

    def logged(self) -> list[LogRows]:
        """Rows of the raw log made of what the last call of ``apply`` brought."""
        return self._logged

    def outputs(self) -> list[Out]:
        self._outs += self._observed.flush()
        outs, self._outs = self._outs, []
        return outs

    # -- state ----------------------------------------------------------------------------------------------------

    def changed_pieces(self) -> dict[str, bytes | None]:
        pieces = self._windows.changed_pieces() | self._pieces.changed() | self._cold.changed_pieces()
        self._meta.first_number = self._index.first_number
        pieces |= self._meta.changed_pieces(self._contracts, self._index.totals)
        return pieces

    def restore(self, pieces: Mapping[str, bytes], manifest: Manifest | None) -> None:
        if manifest is None:
            return
        self._sequence = manifest.sequence
        self._meta, self._index.totals = restored(pieces, self._contracts)
        self._cold.asks.position = self._meta.prediction_ms + self._meta.feedback_ms
        self._cold.restore(pieces)
        self._pieces.restore(pieces, self._meta.floor_ms, self._oldest_waiting_ms(), self._meta.first_number)
        self._evict()
        self._windows.restore(pieces)
        # Under the contracts of then, which are known before any that came since.
        self._windows.advance(self._contracts, self._meta.prediction_ms, self._meta.floor_ms)

    def positions(self) -> dict[TopicPartition, int]:
        """Nothing is read again: all that was applied is in the state."""
        return {}

    def watermarks(self) -> dict[str, int]:
        return {"predictions": self._meta.prediction_ms, "feedback": self._meta.feedback_ms}

    # -- warehouse ------------------------------------------------------------------------------------------------

    def committed(self, sequence: int) -> None:
        self._sequence = sequence

    def upserts(self) -> list[Upserts]:
        return self._windows.upserts(self._sequence) + self._cold.late.upserts(self._sequence)

    def confirm(self, sent: Sequence[Upserts]) -> None:
        self._windows.confirm(sent)
        self._cold.late.confirm(sent)
        self._windows.advance(self._contracts, self._meta.prediction_ms, self._meta.floor_ms)

    def questions(self) -> list[Question]:
        """Labels to be looked up; the answers come back as records of ``ANSWERS``."""
        return self._cold.questions()

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
        for model, count in measured.too_late.items():
            yield "driftline_too_late_rows_total", {"model": model}, count
        for model, count in self._windows.late.items():
            yield "driftline_late_rows_total", {"model": model}, count
        self._windows.late = {}
        yield "driftline_pending_predictions", partition, len(self._index)
        yield "driftline_pending_labels", partition, self._index.early
        yield "driftline_hot_index_bytes", partition, self._index.bytes_held
        if (oldest_ms := self._index.oldest_ms) is not None:
            yield "driftline_hot_index_covers_ms", partition, max(0, self._meta.prediction_ms - oldest_ms)
        for model, total in self._index.totals.items():
            own = partition | {"model": model}
            yield "driftline_unlabelled_predictions", own, total.unlabelled
            yield "driftline_evicted_predictions", own, total.evicted
        for outcome, count in self._cold.drain():
            yield "driftline_label_lookups_total", {"outcome": outcome}, count
        yield "driftline_pending_label_lookups", partition, len(self._cold.asks)
        yield "driftline_open_windows", partition, len(self._windows)


class _TickValue(msgspec.Struct):
    event_time_ms: int
