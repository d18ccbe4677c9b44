"""A real monitor process whose three stages count and pass on: what the delivery tests kill. Run as a script."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Mapping, Sequence

import msgspec

from schemas.contracts import ModelRecord
from schemas.events import HEADER_KIND, KIND_TICK, Tick
from schemas.observability import configure_logs
from schemas.settings import MonitorSettings
from streams.core.delivery import Manifest, Out, StageContext, TopicPartition, Upserts
from streams.core.records import Input, Record, one_by_one
from streams.monitor import run_monitor
from streams.stages import Stage

_NEXT = {"join": "observations", "detect": "signals", "policy": "control"}


class State(msgspec.Struct):
    """Rows passed on, by input; event time by source; the tick sent last; what a holding core has let go."""

    rows: dict[str, int] = {}
    sources: dict[str, int] = {}
    sent_ms: int = -1
    released: dict[str, int] = {}


class CountingCore:
    """Passes every row on once, counts them in its state, and merges ticks of as many sources as announced."""

    def __init__(self, context: StageContext) -> None:
        self.stage = context.stage
        self._context = context
        self._state = State()
        self._outs: list[Out] = []
        self._expected = 1
        self.models = 0

    def apply(self, records: Sequence[Input], now_ms: int) -> None:
        rows = self._state.rows
        for record in one_by_one(records):
            if record.headers.get(HEADER_KIND) == KIND_TICK:
                tick = msgspec.json.decode(record.value or b"", type=dict)
                if record.topic == "feedback":
                    continue
                source = tick["source"] if self.stage != "join" else "input"
                self._state.sources[source] = tick["event_time_ms"]
                self._expected = tick["sources"] or 1
            elif record.topic != "deployments":
                rows[record.topic] = rows.get(record.topic, 0) + 1
                self._outs.append(Out(_NEXT[self.stage], record.key, record.value, self._partition()))

    def _partition(self) -> int:
        return 0 if self.stage == "policy" else self._context.partition

    def _watermark(self) -> int:
        sources = self._state.sources
        return min(sources.values()) if len(sources) >= self._expected else -1

    def outputs(self) -> list[Out]:
        outs, self._outs = self._outs, []
        if (at_ms := self._watermark()) > self._state.sent_ms:
            self._state.sent_ms = at_ms
            context = self._context
            tick = Tick(
                event_time_ms=at_ms, source=context.task, sources=context.partitions
            ).model_dump_json()
            targets = [0] if self.stage == "policy" else list(range(context.partitions))
            outs += [
                Out(_NEXT[self.stage], None, tick.encode(), p, {HEADER_KIND: KIND_TICK}) for p in targets
            ]
        return outs

    def changed_pieces(self) -> dict[str, bytes | None]:
        return {"state": msgspec.msgpack.encode(self._state)}

    def restore(self, pieces: Mapping[str, bytes], manifest: Manifest | None) -> None:
        # Only one thread ever decodes: msgspec learns types at first use, and not for two threads at once.
        assert threading.current_thread().name.startswith("cpu"), threading.current_thread().name
        if "state" in pieces:
            self._state = msgspec.msgpack.decode(pieces["state"], type=State)

    def positions(self) -> dict[TopicPartition, int]:
        return {}

    def watermarks(self) -> dict[str, int]:
        return {"input": self._watermark()}

    def committed(self, sequence: int) -> None:
        """Nothing waits for it."""

    def upserts(self) -> list[Upserts]:
        return []

    def confirm(self, sent: Sequence[Upserts]) -> None:
        """There are none."""

    def activate(self, records: Sequence[ModelRecord]) -> None:
        self.models += len(records)


class HoldingCore(CountingCore):
    """Keeps rows in memory, not in state, until a tick; recovery reads them again, as detectors' waiting rows are."""

    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        self._waiting: dict[TopicPartition, list[Record]] = {}

    def apply(self, records: Sequence[Input], now_ms: int) -> None:
        for record in one_by_one(records):
            tp = (record.topic, record.partition)
            if record.offset < self._state.released.get(f"{tp[0]}/{tp[1]}", 0):
                continue
            waiting = self._waiting.setdefault(tp, [])
            if record.headers.get(HEADER_KIND) == KIND_TICK:
                self._state.released[f"{tp[0]}/{tp[1]}"] = record.offset + 1
                super().apply([*waiting, record], now_ms)
                waiting.clear()
            else:
                waiting.append(record)

    def positions(self) -> dict[TopicPartition, int]:
        return {tp: waiting[0].offset for tp, waiting in self._waiting.items() if waiting}


class HangingCore(CountingCore):
    """Never comes back from row 13."""

    def apply(self, records: Sequence[Input], now_ms: int) -> None:
        if any(record.value == b"13" for record in one_by_one(records)):
            threading.Event().wait()
        super().apply(records, now_ms)


STAGES = (
    Stage("join", ("predictions", "feedback"), CountingCore, ticked=True),
    Stage("detect", ("observations",), CountingCore),
    Stage("policy", ("signals",), CountingCore, follows=("deployments",)),
)
HOLDING = (Stage("join", ("predictions", "feedback"), HoldingCore, ticked=True),)
HANGING = (Stage("join", ("predictions", "feedback"), HangingCore, ticked=True),)
SPECIAL = {"hold": HOLDING, "hang": HANGING}


def main() -> int:
    settings = MonitorSettings()
    configure_logs(settings)
    named = sys.argv[1]
    stages = SPECIAL[named] if named in SPECIAL else STAGES[: int(named)]
    return asyncio.run(run_monitor(settings, stages))


if __name__ == "__main__":
    sys.exit(main())
