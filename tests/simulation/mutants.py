"""Shells and cores with one bug each: what a simulation that is worth its time must find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streams.core.delivery import Loaded, TopicPartition, Transaction, Upserts
from streams.core.pipeline import JoinCore
from streams.core.records import Record
from tests.simulation.process import Run


class StateOutsideTheTransaction(Run):
    """State is sent before the transaction is committed, by a producer that has none."""

    def produce_state(self, key: bytes, value: bytes | None) -> None:
        self.log.send(self.state, key, value)


class OutputsOutsideTheTransaction(Run):
    """Outputs are sent as they are made."""

    def produce(
        self, tp: TopicPartition, key: bytes | None, value: bytes | None, headers: Mapping[str, bytes]
    ) -> None:
        self.log.send(tp, key, value, headers)


class GroupOffsets(Run):
    """Reading goes on from offsets acknowledged to the group after the commit, not from the manifest's."""

    def _acknowledged(self) -> dict[tuple[str, TopicPartition], int]:
        groups: dict[tuple[str, TopicPartition], int] = self.log.__dict__.setdefault("groups", {})
        return groups

    def open(self, loaded: Loaded, starts: Mapping[TopicPartition, int]) -> None:
        super().open(loaded, starts)
        for tp in self.inputs:
            self.ledger.next[tp] = self._acknowledged().get((self.task, tp), starts[tp])

    def attempt(self, transaction: Transaction, applied: list[Record]) -> Iterator[str]:
        yield from super().attempt(transaction, applied)
        yield "acknowledge"
        for tp in self.inputs:
            self._acknowledged()[(self.task, tp)] = self.ledger.next[tp]


class RestartedVersions(Run):
    """Rows are numbered by the commits of this process, so a successor's lose against its predecessor's."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if isinstance(self.core, JoinCore):
            self.core = self.ledger.core = _Renumbered(self.core._context)


class _Renumbered(JoinCore):
    commits = 0

    def upserts(self) -> list[Upserts]:
        self.commits += 1
        return self._windows.upserts(self.commits) + self._cold.late.upserts(self.commits)


class ForgottenDuplicates(Run):
    """The join index starts empty after a restart."""

    def load(self) -> Loaded:
        loaded = super().load()
        pieces = {name: data for name, data in loaded.pieces.items() if not name.startswith("join/rows/")}
        return Loaded(loaded.manifest, pieces)


class ForgottenDirt(Run):
    """Rows the warehouse had not confirmed are not sent again after a restart."""

    def open(self, loaded: Loaded, starts: Mapping[TopicPartition, int]) -> None:
        super().open(loaded, starts)
        self.core.confirm(self.core.upserts())


class AppliedAgain(Run):
    """Records the state has seen are applied again: at least once."""

    def open(self, loaded: Loaded, starts: Mapping[TopicPartition, int]) -> None:
        super().open(loaded, starts)
        for tp, at in self.ledger.next.items():
            self.ledger.next[tp] = max(starts[tp], at - 1)


class Unfenced(Run):
    """The successor does not fence: both commit."""

    def attempt(self, transaction: Transaction, applied: list[Record]) -> Iterator[str]:
        self._epoch = self.log._epochs[self.task]
        return super().attempt(transaction, applied)


class NoRereading(Run):
    """Commits while rows that recovery gave back are still to be read, and starts at the first never applied."""

    def open(self, loaded: Loaded, starts: Mapping[TopicPartition, int]) -> None:
        super().open(loaded, starts)
        for tp, high in self.ledger._high.items():
            self.ledger.next[tp] = max(self.ledger.next[tp], high)


class ConfirmedTooMuch(Run):
    """A confirmation clears a row whatever its version: a value that changed meanwhile is never sent."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        confirmed = self.ledger.confirmed

        def careless(sent: list[Upserts]) -> None:
            tables = {upserts.table for upserts in sent}
            confirmed([upserts for upserts in self.ledger.outbox if upserts.table in tables])

        self.ledger.confirmed = careless  # type: ignore[method-assign,assignment]


MUTANTS = (
    StateOutsideTheTransaction,
    OutputsOutsideTheTransaction,
    GroupOffsets,
    RestartedVersions,
    ForgottenDuplicates,
    ForgottenDirt,
    AppliedAgain,
    Unfenced,
    NoRereading,
    ConfirmedTooMuch,
)
