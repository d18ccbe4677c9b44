"""The DETECT stage: observation blocks in, changes of verdict out; which detector reads what, and in which order.

Rows are fed by (time, identity), never by arrival: they wait until every source partition's watermark has passed them, so
the same events give the same verdicts however partitions and blocks interleave; and, where few rows of a model come, until
one of its detectors could speak (``streams.core.holding``). What waits is not stored: the manifest points back to the first
record that is not wholly consumed, and rows that had been fed are dropped when it is read again. A row that comes behind
the watermark is fed at once, after those that wait. Every advance of time is passed on by itself, and applied wherever it
could close a block of time, so that verdicts come at the same moments on any machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import msgspec
import numpy as np

from detectors.base import Change, Rows, undecided
from detectors.columns import share_of_budget
from schemas.blocks import ObservationBlock, decode_block
from schemas.contracts import DetectorConfig, ModelContract, ModelRecord, ModelVersion
from schemas.errors import BadMessage, ConfigurationError, SnapshotError
from schemas.events import HEADER_KIND, KIND_LABELS, KIND_TICK, Tick
from schemas.ids import ROLES
from schemas.verdicts import Evidence, SignalChanged, State, Verdict
from streams.core.building import FAMILIES, build, reference_key, signal_of, written
from streams.core.comparing import BEGINNING_MS, FALLBACK, Span, groups, spans
from streams.core.delivery import Manifest, Out, StageContext, TopicPartition, Upserts, piece_digest
from streams.core.detect_state import (
    DETECTOR,
    PROGRESS,
    Key,
    Meta,
    Progress,
    Running,
    decode_meta,
    decode_progress,
    encode_meta,
    encode_progress,
    encode_running,
    is_current,
    key_of,
    piece_name,
    progress_name,
)
from streams.core.feed import Columns, InOrder
from streams.core.holding import Holding, patience_of
from streams.core.ordering import (
    STREAMS,
    chosen,
    coding,
    column_values,
    detector_rows,
    kind_of,
    readable,
    row_address,
    wanted_rows,
)
from streams.core.records import Input, Record, one_by_one

_OTHERWISE = "it is configured otherwise now"


def create(context: StageContext) -> DetectCore:
    """The detect stage's core for one partition of observations."""
    return DetectCore(context)


class DetectCore:
    """See the module."""

    stage = "detect"

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._input = ("observations", context.partition)
        self._contracts: dict[str, ModelContract] = {}
        self._codings: dict[str, ModelContract] = {}
        self._versions: dict[tuple[str, str], ModelVersion] = {}
        self._running: dict[Key, Running] = {}
        self._of: dict[str, set[Key]] = {}
        self._stored: dict[str, bytes] = {}
        self._dropped: set[str] = set()
        self._refused: set[str] = set()
        self._meta = Meta()
        self._meta_changed = True
        self._progress: dict[str, Progress] = {}
        limits = context.settings.monitor
        self._holding = Holding(limits.held_bytes_max // context.partitions)
        self._next_offset = self._reread_below = 0
        self._reread_fed: dict[tuple[str, str], int] = {}
        self._reread_ms = dict.fromkeys(STREAMS, BEGINNING_MS)
        self._outs: list[Out] = []
        self._cache: MutableMapping[str, bytes] = {}
        self._counted: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    # -- configuration --------------------------------------------------------------------------------------------

    def activate(self, records: Sequence[ModelRecord]) -> None:
        for record in records:
            if record.version is not None:
                self._versions[(record.version.model, record.version.version)] = record.version
                self._cache.pop(reference_key(record.version.model, record.version.version), None)
            elif record.contract is not None:
                self._configure(record.contract)

    def _configure(self, contract: ModelContract) -> None:
        """A detector whose configuration changed starts anew; the others go on."""
        before = self._contracts.get(contract.model)
        if before is not None and self._next_offset >= self._reread_below:
            # What the watermark has passed was read under the contract that held then.
            for kind in STREAMS:
                self._let_go(kind, contract.model)
                self._holding.queue(kind, contract.model).until_ms = BEGINNING_MS
        self._contracts[contract.model] = contract
        self._codings[contract.hash] = contract
        self._refused = {name for name in self._refused if key_of(name)[0] != contract.model}
        if before is None:
            return
        wanted = {config.name: config for config in contract.monitoring.detectors}
        budget = (contract.monitoring.false_pages, share_of_budget(contract))
        (features, segments), (features_now, segments_now) = coding(before), coding(contract)
        for key in self._keys(contract.model):
            running = self._running[key]
            same_columns = features == features_now and (
                running.config.stream != "loss" or segments == segments_now
            )
            if not same_columns or wanted.get(key[2]) != running.config:
                if key[2] in wanted:
                    self._begin_again(key, running, running.said, _OTHERWISE)
                self._drop(key)
            elif not running.failed and (running.context.false_pages, running.context.share) != budget:
                self._rebuild(contract, key)

    def _rebuild(self, contract: ModelContract, key: Key) -> None:
        """The budget or its parts have changed: the detector goes on from where it is, under its new threshold."""
        before = self._running.pop(key)
        self._stored[piece_name(key)] = encode_running(before)
        after = self._running_for(contract, before.config, key, before.role)
        if after is not None:
            after.touched = True

    def _drop(self, key: Key) -> None:
        self._running.pop(key, None)
        self._of.get(key[0], set()).discard(key)
        name = piece_name(key)
        self._stored.pop(name, None)
        self._dropped.add(name)

    def _readable(self, block: ObservationBlock) -> ObservationBlock | None:
        """The block, if its features are coded as the model's contract now says; it may change while rows wait."""
        if (contract := self._contracts.get(block.model)) is None:
            self._count("driftline_errors_total", where="detect: rows of an unknown model")
            return None
        found = readable(block, self._codings.get(block.contract_hash, contract), contract)
        if found is None:
            self._count("driftline_errors_total", where="detect: rows of another coding of the features")
        return found

    # -- input ----------------------------------------------------------------------------------------------------

    def apply(self, records: Sequence[Input], now_ms: int) -> None:
        for record in (r for r in one_by_one(records) if r.headers.get(HEADER_KIND) != KIND_LABELS):
            self._next_offset = record.offset + 1
            if record.headers.get(HEADER_KIND) == KIND_TICK:
                self._tick(record)
                continue
            try:
                self._take(record.offset, decode_block(record.value or b""))
            except BadMessage as error:
                self._count("driftline_errors_total", where=f"detect: {error.reason}")

    def _take(self, offset: int, block: ObservationBlock) -> None:
        coded_as = self._codings.get(block.contract_hash)
        unread = block.kind == "predictions" and coded_as is not None and not coded_as.monitoring.detectors
        if unread or not len(block):
            return
        reached, times = self._meta.reached(block.kind), block.order_ms
        first_ms, last_ms = int(times.min()), int(times.max())
        if offset >= self._reread_below and first_ms > reached:
            self._holding.put(offset, block, first_ms, last_ms)
            return
        if offset < self._reread_below:
            reread_ms = self._reread_ms[block.kind]
            fed = times <= self._reread_fed.get((block.kind, block.model), reread_ms)
            late = ~fed & (times <= reached) & (times > reread_ms)
            ahead = ~fed & ~late
        else:
            late = times <= reached
            ahead = ~late
        if late.any():
            self._let_go(block.kind, block.model)
            if (read := self._readable(block)) is not None:
                self._feed(block.kind, [read.take(np.flatnonzero(late))])
                self._promise(block.kind, block.model)
        if ahead.any():
            rest = block if ahead.all() else block.take(np.flatnonzero(ahead))
            self._holding.put(offset, rest, first_ms, last_ms)

    def _tick(self, record: Record) -> None:
        try:
            tick = Tick.model_validate_json(record.value or b"")
        except ValueError:
            self._count("driftline_errors_total", where="detect: not a tick")
            return
        meta = self._meta
        feedback = tick.event_time_ms if tick.feedback_time_ms is None else tick.feedback_time_ms
        meta.predictions[tick.source] = max(
            tick.event_time_ms, meta.predictions.get(tick.source, BEGINNING_MS)
        )
        meta.feedback[tick.source] = max(feedback, meta.feedback.get(tick.source, BEGINNING_MS))
        self._meta_changed = True
        if len(meta.predictions) < max(tick.sources, 1):
            return
        prediction_ms = min(meta.predictions.values())
        outcome_ms = min(prediction_ms, *meta.feedback.values())
        if prediction_ms > meta.prediction_ms:
            meta.prediction_ms = prediction_ms
            self._advance("predictions", prediction_ms)
        if outcome_ms > meta.outcome_ms:
            meta.outcome_ms = outcome_ms
            self._advance("outcomes", outcome_ms)
            value = Tick(
                event_time_ms=outcome_ms, source=self._context.task, sources=self._context.partitions
            )
            body, headers = value.model_dump_json().encode(), {HEADER_KIND: KIND_TICK}
            self._outs += [Out("signals", None, body, p, headers) for p in range(self._context.partitions)]

    def _advance(self, kind: str, time_ms: int) -> None:
        """Feed what the watermark has passed, in order, and tell detectors of the kind what time it is; all of models
        for which that may make a difference."""
        models = self._holding.ripe(kind, time_ms)
        for model in models:
            self._feed_due(kind, model)
        for model in models:
            self._tell(kind, model)

    def _let_go(self, kind: str, model: str) -> None:
        """Feed what is held of a model, and tell its detectors how far time has gone."""
        if model in self._contracts:
            self._holding.queue(kind, model).pass_(self._meta.reached(kind))
            self._feed_due(kind, model)
            self._tell(kind, model)

    def _feed_due(self, kind: str, model: str) -> None:
        due = self._holding.queue(kind, model).take()
        if read := [block for found in due if (block := self._readable(found)) is not None]:
            self._feed(kind, read)

    def _tell(self, kind: str, model: str) -> None:
        time_ms = self._meta.reached(kind)
        for key in sorted(self._keys(model)):
            running = self._running[key]
            if running.config.stream in STREAMS[kind] and not running.failed:
                running.touched = True
                self._say(key, running, self._guarded(key, running, lambda d: d.advance(time_ms)))
        self._promise(kind, model)

    def _promise(self, kind: str, model: str) -> None:
        """Work out how long nobody of the model will speak, whatever comes."""
        if (contract := self._contracts.get(model)) is None:
            return self._holding.forget(kind, model)
        found = {key: self._running[key] for key in self._keys(model)}
        pair = self._progress[model].pair if model in self._progress else None
        shown = self._holding.queue(kind, model).shown
        rows, until_ms = patience_of(kind, contract, found, shown, pair)
        self._holding.promise(kind, model, rows, until_ms, self._meta.reached(kind))

    def _keys(self, model: str) -> list[Key]:
        return [key for key in self._of.get(model, ()) if key in self._running]

    # -- feeding --------------------------------------------------------------------------------------------------

    def _feed(self, kind: str, blocks: Sequence[ObservationBlock]) -> None:
        """Rows of one model, of which every detector gets its own in order."""
        model, rows = blocks[0].model, InOrder(blocks)
        contract = self._contracts[model]
        progress = self._progress.setdefault(model, Progress())
        progress.fed_ms[kind], progress.changed = self._meta.reached(kind), True
        for version in progress.see(rows.rows):
            for key in [k for k in self._keys(model) if k[1] == version]:
                self._drop(key)
        whole = rows.whole() if kind == "outcomes" else None
        compared = [] if whole is None else spans(progress.pair, whole)
        for config in contract.monitoring.detectors:
            if config.stream not in STREAMS[kind]:
                continue
            if config.stream != "comparison":
                self._feed_versions(contract, config, rows)
                continue
            for span in compared:
                assert whole is not None
                self._feed_comparison(contract, config, whole, span)

    def _feed_versions(self, contract: ModelContract, config: DetectorConfig, rows: InOrder) -> None:
        """One detector for each version; it reads the rows that version answered in one of the configured roles.

        A heuristic that answered in a version's place says nothing of the version, so only its inputs are read, and on
        stream ``predictions`` that it answered.
        """
        for version, part in rows.by_version(config):
            key = (contract.model, version, config.name)
            if version == FALLBACK:
                continue
            running = self._running_for(contract, config, key, ROLES[int(part.role[0])])
            if running is not None:
                values = chosen(column_values(config.stream, part), running.columns)
                self._update(key, running, detector_rows(part, values, np.zeros(len(part), np.int8)), part)

    def _feed_comparison(
        self, contract: ModelContract, config: DetectorConfig, outcomes: Columns, span: Span
    ) -> None:
        """The candidate's outcomes beside the stable version's, on the same requests where both have scored them."""
        rows, group = groups(outcomes, span)
        keep = wanted_rows(config, outcomes, ROLES)[rows]
        rows, group = rows[keep], group[keep]
        key = (contract.model, span.candidate, config.name)
        if not len(rows) or (running := self._running_for(contract, config, key, "canary")) is None:
            return
        part = outcomes.take(rows)
        self._update(key, running, detector_rows(part, column_values("comparison", part), group), part)

    def _running_for(
        self, contract: ModelContract, config: DetectorConfig, key: Key, role: str
    ) -> Running | None:
        running = self._running.get(key)
        if running is None:
            self._recall(key)
            try:
                seed = self._context.settings.monitor.seed
                running = build(contract, config, key, self._versions.get(key[:2]), role, seed, self._cache)
            except ConfigurationError as error:
                self._count("driftline_errors_total", where=f"detector {config.name}: {type(error).__name__}")
                self._announce_error(key, config, role, str(error))
                return None
            self._running[key] = running
            self._of.setdefault(key[0], set()).add(key)
            # It is told the time even if no row comes.
            self._holding.queue(kind_of(config.stream), key[0])
            self._restore(key, running)
        return None if running.failed else running

    def _update(self, key: Key, running: Running, rows: Rows, part: Columns) -> None:
        running.touched = True
        running.address = row_address(part, len(part) - 1)
        self._say(key, running, self._guarded(key, running, lambda d: d.update(rows)), part)

    def _guarded(self, key: Key, running: Running, work: Any) -> list[Change]:
        """A detector that breaks says ``error`` once and is left alone; nobody else suffers."""
        try:
            changes: list[Change] = work(running.detector)
            return changes
        except Exception as error:  # noqa: BLE001 - a library's detector may raise anything
            running.failed = True
            self._count("driftline_errors_total", where=f"detector {running.config.kind}")
            time_ms = self._meta.reached(kind_of(running.config.stream))
            return [Change(-1, time_ms, _error(f"{type(error).__name__}: {error}"))]

    # -- what leaves ----------------------------------------------------------------------------------------------

    def _say(self, key: Key, running: Running, changes: list[Change], part: Columns | None = None) -> None:
        for change in changes:
            if (state := change.verdict.state) is running.said and not running.spec.announces_blocks:
                continue
            address = running.address if part is None or change.index < 0 else row_address(part, change.index)
            family = running.spec.family(running.config.stream)
            self._send(
                signal_of(
                    key, running.config, family, running.standing, running.role, running.said, change, address,
                    self._contracts[key[0]],
                )
            )  # fmt: skip
            running.said = state

    def _send(self, signal: SignalChanged) -> None:
        state = signal.verdict.state.value
        self._count("driftline_signals_total", model=signal.model, detector=signal.detector, state=state)
        self._outs.append(written(signal))

    def _announce_error(self, key: Key, config: DetectorConfig, role: str, why: str) -> None:
        """A detector that cannot be built says so once, as long as this process lives."""
        if piece_name(key) in self._refused:
            return
        self._refused.add(piece_name(key))
        change = Change(-1, max(self._meta.prediction_ms, self._meta.outcome_ms), _error(why))
        before, family, contract = State.INCONCLUSIVE, FAMILIES[config.stream], self._contracts[key[0]]
        self._send(signal_of(key, config, family, None, role, before, change, "", contract))

    def outputs(self) -> list[Out]:
        outs, self._outs = self._outs, []
        return outs

    # -- state ----------------------------------------------------------------------------------------------------

    def changed_pieces(self) -> dict[str, bytes | None]:
        pieces: dict[str, bytes | None] = dict.fromkeys(self._dropped)
        self._dropped = set()
        for key, running in self._running.items():
            if not running.touched:
                continue
            running.touched = False
            data = encode_running(running)
            if (digest := piece_digest(data)) != running.digest:
                running.digest = digest
                pieces[piece_name(key)] = data
        for model, progress in self._progress.items():
            if progress.changed:
                progress.changed = False
                pieces[progress_name(model)] = encode_progress(progress)
        if self._meta_changed:
            pieces["meta"] = encode_meta(self._meta)
            self._meta_changed = False
        return pieces

    def restore(self, pieces: Mapping[str, bytes], manifest: Manifest | None) -> None:
        if manifest is None:
            return
        self._meta = decode_meta(pieces["meta"]) if "meta" in pieces else Meta()
        self._stored = {name: data for name, data in pieces.items() if name.startswith(DETECTOR)}
        for name in (n for n in pieces if n.startswith(PROGRESS)):
            model, progress = name.removeprefix(PROGRESS), decode_progress(pieces[name])
            self._progress[model] = progress
            self._reread_fed |= {(kind, model): fed_ms for kind, fed_ms in progress.fed_ms.items()}
        self._reread_below = manifest.high.get(self._input, 0)
        self._reread_ms = {kind: self._meta.reached(kind) for kind in STREAMS}
        for name in list(self._stored):
            key = key_of(name)
            if (contract := self._contracts.get(key[0])) is None:
                continue
            config = next((c for c in contract.monitoring.detectors if c.name == key[2]), None)
            if config is None:
                self._drop(key)
                continue
            role = str(msgspec.msgpack.decode(self._stored[name])[1])
            self._running_for(contract, config, key, role)

    def _recall(self, key: Key) -> None:
        """What the stored detector was built with: it must be built so again, at once."""
        data = self._stored.get(piece_name(key))
        if data is not None and is_current(data):
            standing_key, known = msgspec.msgpack.decode(data)[7:9]
            self._cache.setdefault(standing_key, known)

    def _restore(self, key: Key, running: Running) -> None:
        if (data := self._stored.pop(piece_name(key), None)) is None:
            return
        _schema, _role, written_for, said, *rest = msgspec.msgpack.decode(data)
        if written_for != running.content:
            return self._begin_again(key, running, State(said), _OTHERWISE)
        try:
            if not is_current(data):
                raise SnapshotError("another layout")
            failed, address, snapshot, *_ = rest
            running.detector.load(snapshot)
        except SnapshotError as error:
            running.detector = running.spec.build(running.context)
            why = f"its state is of another code version ({error})"
            self._count("driftline_errors_total", where=f"detector {running.config.kind}: other version")
            return self._begin_again(key, running, State(said), why)
        running.said, running.failed, running.address = State(said), failed, address
        running.digest, running.touched = piece_digest(data), False

    def _begin_again(self, key: Key, running: Running, said: State, why: str) -> None:
        """What was said of a detector no longer stands: it warms up, and says so, once."""
        verdict = undecided(0.0, f"begins again: {why}"[:500])
        change = Change(-1, max(self._meta.prediction_ms, self._meta.outcome_ms), verdict)
        family = running.spec.family(running.config.stream)
        standing, contract = running.standing, self._contracts[key[0]]
        self._send(signal_of(key, running.config, family, standing, running.role, said, change, "", contract))

    def positions(self) -> dict[TopicPartition, int]:
        """The first record with a row that still waits; nothing named: all is consumed."""
        first = min(self._holding.offsets(), default=None)
        return {} if first is None else {self._input: first}

    def watermarks(self) -> dict[str, int]:
        return {"predictions": self._meta.prediction_ms, "feedback": self._meta.outcome_ms}

    def committed(self, sequence: int) -> None:
        """Nothing waits for it."""

    def upserts(self) -> list[Upserts]:
        return []

    def confirm(self, sent: Sequence[Upserts]) -> None:
        """This stage writes no aggregates."""

    def measurements(self) -> Iterable[tuple[str, dict[str, str], float]]:
        counted, self._counted = self._counted, {}
        for (name, labels), value in counted.items():
            yield name, dict(labels), value

    def _count(self, name: str, value: float = 1, **labels: str) -> None:
        key = (name, tuple(sorted(labels.items())))
        self._counted[key] = self._counted.get(key, 0) + value


def _error(note: str) -> Verdict:
    return Verdict(state=State.ERROR, score=0.0, threshold=0.0, evidence=Evidence(note=note[:500]))
