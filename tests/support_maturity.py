"""Real flights through the join stage and into the warehouse, stopped at any instant: how good was a partial figure then?

Shared by the test, which takes a small share of the flights of a spring, and ``python -m tests.bench.maturity``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import deploy.demo
from deploy.demo.flights import DAY_MS, Flights, month_start_ms
from schemas.contracts import ModelContract, load_contract
from streams.core.records import Record
from streams.sink import Sink
from tests.support_join import Stream, join_core

#: Of a window's labels so much is in; 0: none, the first one comes next.
SHARES = (0.0, 0.1, 0.3, 0.5, 0.8)
FIGURES = ("accuracy", "log_loss", "brier")
CONTRACT = load_contract(Path(deploy.demo.__file__).with_name("flights.yaml"))
_TICK_MS = DAY_MS


def scores(flights: Flights) -> NDArray[np.float64]:
    """The share of late flights of the first two months by hour and origin: a model good enough to be wrong in places."""
    known = flights.labelled & (flights.departs_ms < month_start_ms(3))
    hour = flights.features["hour"].astype(np.int64)
    _, origin = np.unique(flights.features["origin"].astype(str), return_inverse=True)
    cell = origin * 24 + hour
    rows = np.bincount(cell[known], minlength=72)
    late = np.bincount(cell[known], flights.late[known] == 1, minlength=72)
    found: NDArray[np.float64] = ((late + 2) / (rows + 10))[cell]
    return found


class Replay:
    """Flights and their labels in the order of event time, through the core of one partition into ``sink``."""

    def __init__(
        self, flights: Flights, score: NDArray[np.float64], sink: Sink, contract: ModelContract = CONTRACT
    ) -> None:
        self._core = join_core(contract=contract)
        self._stream = Stream()
        self._sink = sink
        self._flights, self._score = flights, score
        labelled = np.flatnonzero(flights.labelled)
        times = np.concatenate([flights.departs_ms, flights.label_ms[labelled]])
        self._order = np.argsort(times, kind="stable")
        self._times = times[self._order]
        self._row = np.concatenate([np.arange(len(flights)), labelled])[self._order]
        self._next = 0
        self._sequence = 0
        self._ticked_ms = int(flights.departs_ms[0]) // _TICK_MS * _TICK_MS

    def advance(self, to_ms: int) -> None:
        """Everything up to ``to_ms``, with ticks on the way; then the warehouse is told."""
        while self._ticked_ms + _TICK_MS <= to_ms:
            self._ticked_ms += _TICK_MS
            self._apply(self._ticked_ms)
            self._core.apply(
                [self._stream.tick(self._ticked_ms), self._stream.tick(self._ticked_ms, "feedback")], 0
            )
        self._apply(to_ms)
        self._core.outputs()
        self._core.changed_pieces()
        self._sequence += 1
        self._core.committed(self._sequence)
        upserts = self._core.upserts()
        for table in sorted({u.table for u in upserts} - {"window_features"}):
            self._sink.write_blocks(table, [u.block for u in upserts if u.table == table])
        self._core.confirm(upserts)

    def _apply(self, to_ms: int) -> None:
        end = int(np.searchsorted(self._times, to_ms, side="right"))
        records = [
            self._record(int(self._row[at]), is_label=bool(self._order[at] >= len(self._flights)), at=at)
            for at in range(self._next, end)
        ]
        self._next = max(self._next, end)
        if records:
            self._core.apply(records, 0)

    def _record(self, row: int, *, is_label: bool, at: int) -> Record:
        f = self._flights
        event: dict[str, Any] = {"prediction_id": f.flight_id[row], "model": CONTRACT.model}
        if is_label:
            return self._stream.event(
                event | {"label": float(f.late[row]), "label_time_ms": int(self._times[at])}
            )
        event |= {"version": "v1", "event_time_ms": int(self._times[at]), "score": float(self._score[row])}
        return self._stream.event(event | {"features": json.loads(json.dumps(f.record(row)))})


@dataclass(frozen=True, slots=True)
class Partial:
    """A window's row of ``live_accuracy`` when so much of its labels was in, and in the end."""

    share: float
    then: dict[str, Any]
    final: dict[str, Any]

    def error(self, kind: str, figure: str) -> float:
        """Distance of ``naive_accuracy`` and the like from the final figure."""
        return abs(float(self.then[f"{kind}_{figure}"]) - float(self.final[f"naive_{figure}"]))


def partials(
    client: Any,
    replay: Replay,
    flights: Flights,
    starts_ms: Sequence[int],
    segments: Sequence[str] = ("",),
    labels_min: int = 20,
    window_ms: int = DAY_MS,
) -> list[Partial]:
    """Stop the replay when so much of each window's labels is in, and read what the view says of it."""
    stops = []
    for start_ms in starts_ms:
        of_window = flights.between(start_ms, start_ms + window_ms)
        times = np.sort(of_window.label_ms[of_window.labelled])
        if len(times) >= labels_min:
            stops += [
                (int(times[int(share * len(times))]) - (not share), share, start_ms) for share in SHARES
            ]
    seen = []
    for time_ms, share, start_ms in sorted(stops):
        replay.advance(time_ms)
        seen += [(share, row) for row in read(client, [start_ms], segments)]
    replay.advance(int(flights.departs_ms[-1]) + 30 * DAY_MS)
    rows = read(client, sorted({start_ms for _, _, start_ms in stops}), segments)
    final = {(row["window_start"], row["segment"]): row for row in rows}
    found = [Partial(share, row, final[row["window_start"], row["segment"]]) for share, row in seen]
    return [p for p in found if p.final["labelled"] >= labels_min]


def read(client: Any, starts_ms: Sequence[int], segments: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of ``live_accuracy`` of some windows."""
    result = client.query(
        "SELECT * FROM live_accuracy WHERE segment IN {segments:Array(String)} AND "
        "window_start IN (SELECT fromUnixTimestamp64Milli(arrayJoin({starts:Array(Int64)}), 'UTC'))",
        parameters={"starts": list(starts_ms), "segments": list(segments)},
    )
    return [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]
