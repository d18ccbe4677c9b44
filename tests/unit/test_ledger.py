"""A task's bookkeeping: where it reads on, what it refuses, and whose rows win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from schemas.contracts import ModelRecord
from schemas.errors import DeliveryError
from streams.core.delivery import (
    Disposition,
    Loaded,
    Manifest,
    Out,
    TopicPartition,
    Upserts,
    disposition,
)
from streams.core.ledger import OUTBOX_MAX, Ledger
from streams.core.records import Record, RecordBatch

TP = ("predictions", 0)


class Counter:
    """A core whose state is how many records it has seen."""

    stage = "join"

    def __init__(self) -> None:
        self.seen = 0
        self.held: list[Upserts] = []
        self.sequence = 0

    def apply(self, records: Sequence[Record], now_ms: int) -> None:
        self.seen += len(records)

    def outputs(self) -> list[Out]:
        return []

    def changed_pieces(self) -> dict[str, bytes | None]:
        return {"seen": str(self.seen).encode()}

    def restore(self, pieces: Mapping[str, bytes], manifest: Manifest | None) -> None:
        self.seen = int(pieces.get("seen", b"0"))
        self.sequence = manifest.sequence if manifest else 0

    def positions(self) -> dict[TopicPartition, int]:
        return {}

    def watermarks(self) -> dict[str, int]:
        return {}

    def committed(self, sequence: int) -> None:
        self.sequence = sequence

    def upserts(self) -> list[Upserts]:
        return [Upserts("t", 1, [b"k"], self.sequence)]

    def confirm(self, sent: Sequence[Upserts]) -> None:
        self.held += sent

    def activate(self, records: Sequence[ModelRecord]) -> None:
        """It needs none."""


def _opened(loaded: Loaded, start: int = 0, now_ms: int = 1_000) -> Ledger:
    ledger = Ledger("join/0", Counter())
    ledger.open(loaded, {TP: start}, lambda before: [], now_ms)
    return ledger


def _commit(ledger: Ledger) -> Manifest:
    transaction = ledger.plan(ledger.take_confirmed())
    ledger.offer(ledger.committed(transaction))
    return transaction.manifest


def test_rows_made_again_after_the_state_was_lost_win_over_those_before() -> None:
    """A task without a manifest numbers from the clock on, past all its earlier life made."""
    first = _opened(Loaded(None, {}), now_ms=5_000)
    for _ in range(40):
        before = _commit(first)
    again = _opened(Loaded(None, {}), now_ms=6_000)
    assert _commit(again).sequence > before.sequence
    assert again.outbox[0].version > first.outbox[0].version


def test_a_restored_task_goes_on_counting() -> None:
    """The clock plays no part once there is a manifest."""
    manifest = _commit(_opened(Loaded(None, {})))
    successor = _opened(Loaded(manifest, {"seen": b"0"}), now_ms=99_999)
    assert _commit(successor).sequence == manifest.sequence + 1
    assert successor.manifest.epoch == manifest.epoch + 1


def test_input_deleted_before_it_was_read_is_an_error() -> None:
    """Silence would be a loss."""
    manifest = Manifest(task="join/0", sequence=3, offsets={TP: 4}, high={TP: 4})
    with pytest.raises(DeliveryError, match="deleted 2 offsets"):
        _opened(Loaded(manifest, {}), start=6)


def test_a_confirmation_of_an_older_value_leaves_the_newer_in_the_outbox() -> None:
    """Changed again while it was on its way."""
    ledger = _opened(Loaded(None, {}))
    _commit(ledger)
    sent = list(ledger.outbox)
    _commit(ledger)
    ledger.confirmed(sent)
    assert [u.version for u in ledger.outbox] == [ledger.manifest.sequence]
    assert ledger.has_confirmed


@pytest.mark.parametrize("next_offset", [0, 3, 5, 9])
def test_what_is_fresh_is_what_the_delivery_table_does_not_skip(next_offset: int) -> None:
    """Whatever holes there are, and whether or not the task is still reading what recovery gave back."""
    offsets = [2, 3, 4, 7, 8]
    records = [Record("predictions", 0, offset, None, b"") for offset in offsets]
    for high in (0, 6):
        manifest = Manifest(task="join/0", sequence=1, offsets={TP: next_offset}, high={TP: high})
        ledger = _opened(Loaded(manifest, {}))
        fresh = [record.offset for record in ledger.fresh(TP, RecordBatch.of(records))]
        assert fresh == [o for o in offsets if disposition(next_offset, high, o) is not Disposition.SKIP]
        assert ledger.next[TP] == max(next_offset, 9)


def test_rows_are_not_made_while_many_wait_for_the_warehouse() -> None:
    """A warehouse that is behind is told the newest values when it has caught up, not all those in between."""
    ledger = _opened(Loaded(None, {}))
    waiting = [Upserts("other", OUTBOX_MAX // 2, [b""], 0) for _ in range(2)]
    ledger.offer(waiting)
    for _ in range(3):
        _commit(ledger)
    assert ledger.waiting == OUTBOX_MAX
    ledger.confirmed(waiting)
    last = _commit(ledger)
    assert [upserts.version for upserts in ledger.outbox] == [last.sequence]


def test_what_a_core_holds_back_is_no_lag() -> None:
    """Who looks at the group's offsets sees what was read, not where a restart would begin."""

    class Holding(Counter):
        def positions(self) -> dict[TopicPartition, int]:
            return {TP: 1}

    ledger = Ledger("join/0", Holding())
    ledger.open(Loaded(None, {}), {TP: 0}, lambda before: [], 1_000)
    ledger.core.apply([ledger.fresh(TP, RecordBatch.of([Record(*TP, at, b"k", b"v") for at in range(5)]))], 0)
    assert (_commit(ledger).offsets, ledger.offsets) == ({TP: 1}, {TP: 5})
