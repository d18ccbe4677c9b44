"""A hot index with far too little memory, through the same schedules: bounded, and exact in all that is still promised."""

from __future__ import annotations

from random import Random
from typing import Any

from streams.core.join import ENTRY_BYTES, FINGERPRINT_BYTES
from streams.core.pipeline import JoinCore
from tests.simulation.process import Run
from tests.simulation.scheduler import Simulation, schedule
from tests.simulation.world import PARTITIONS, expected

BYTES_MAX = 2 * ENTRY_BYTES + 40 * FINGERPRINT_BYTES


class Tight(Run):
    """Room for a few predictions, and for the fingerprints of all that were evicted."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if isinstance(self.core, JoinCore):
            self.core._index.bytes_max = BYTES_MAX - 40 * FINGERPRINT_BYTES

    def advance(self) -> None:
        super().advance()
        if isinstance(self.core, JoinCore):
            index = self.core._index
            index.bytes_max = BYTES_MAX - 40 * FINGERPRINT_BYTES + index._gone_count * FINGERPRINT_BYTES
            assert len(index) <= 2, "never more than there is room for"


def test_what_was_evicted_is_still_counted_once_and_its_lost_labels_are_counted() -> None:
    """Counts and features stay exact through duplicates and crashes; every prediction ends as one of three."""
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
