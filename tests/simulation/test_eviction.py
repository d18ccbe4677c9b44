"""A hot index with far too little memory, through the same schedules: bounded, and exact in all that is still promised."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

import streams.core.join
import streams.core.join_pieces
from streams.core.evicted import FINGERPRINT_BYTES
from streams.core.join_pieces import MERGE_FAN
from streams.core.join_rows import ROW_BYTES
from streams.core.pipeline import JoinCore
from tests.simulation.process import Run
from tests.simulation.scheduler import Simulation, schedule
from tests.simulation.world import PARTITIONS, expected

ENTRIES_MAX = 2


class Tight(Run):
    """Room for a few predictions, and for the fingerprints of all that were evicted."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if isinstance(self.core, JoinCore):
            self.core._index.bytes_max = ENTRIES_MAX * ROW_BYTES + 40 * FINGERPRINT_BYTES

    def advance(self) -> None:
        super().advance()
        if isinstance(self.core, JoinCore):
            index = self.core._index
            assert index.bytes_held <= index.bytes_max, "never more than there is room for"
            index.bytes_max = ENTRIES_MAX * ROW_BYTES + index.gone_count * FINGERPRINT_BYTES


@pytest.mark.parametrize("merge_fan", [2, MERGE_FAN])
def test_what_was_evicted_is_still_counted_once_and_its_lost_labels_are_counted(
    merge_fan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts and features stay exact through duplicates and crashes; every prediction ends as one of three."""
    monkeypatch.setattr(streams.core.join_pieces, "MERGE_FAN", merge_fan)
    monkeypatch.setattr(streams.core.join, "DEAD_MIN", 0)
    evicted = kills = 0
    for seed in range(1, 60):
        simulation = Simulation(schedule(Random(seed), 80), seed, Tight)
        simulation.run()
        simulation.settle_all()
        for partition in range(PARTITIONS):
            wanted = expected(partition, simulation.history("join", partition))
            for table in ("window_counts", "window_features"):
                held = {
                    key: row[len(key) : -1]
                    for key, row in simulation.warehouse.tables.get(table, {}).items()
                    if key[6] == partition
                }
                assert held.keys() == wanted.tables[table].keys(), (seed, table)
                for key, row in wanted.tables[table].items():
                    assert held[key][:4] == row[:4], (seed, table, key)
            totals = simulation.totals(partition)
            assert sum(totals) == len(wanted.predictions), seed
            assert totals[0] <= sum(bool(p.labels) for p in wanted.predictions)
            evicted += totals[2]
        kills += simulation.kills
        simulation.check_empty()
    assert evicted > 50
    assert kills > 20
