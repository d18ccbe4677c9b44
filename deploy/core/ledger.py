"""What the controller must remember of the facts on record: where its chains end, and which facts may come again.

After a restart the messages since a model's last revision are read again, and those that led to facts without a revision
lead to them again. Their ids repeat; the ledger knows every id since that revision, so none is recorded twice.
"""

from __future__ import annotations

from schemas.control import Decision
from schemas.record import CONTROLLER, Head, head_of, link

#: Facts without a revision that are remembered a model; in practice a revision comes long before.
IDS_KEPT = 10_000


class Ledger:
    """Heads of all chains by model and writer. Learns from the log at start, then from what it is told was committed."""

    def __init__(self) -> None:
        # Of a long log only the chains' ends are worth a digest, so that is made when it is asked for.
        self._last: dict[tuple[str, str], Decision] = {}
        self._heads: dict[tuple[str, str], Head] = {}
        self._writers: dict[str, set[str]] = {}
        self._open: dict[str, dict[str, None]] = {}

    def learn(self, fact: Decision) -> None:
        """Take note of a fact as it stands on the log, in the log's order; what was known already changes nothing."""
        chain = (fact.model, fact.writer)
        held = self._last.get(chain)
        if fact.sequence <= (0 if held is None else held.sequence):
            return
        self._last[chain] = fact
        self._writers.setdefault(fact.model, set()).add(fact.writer)
        self._heads.pop(chain, None)
        if fact.writer != CONTROLLER:
            return
        ids = self._open.setdefault(fact.model, {})
        if fact.deployment_revision is not None:
            ids.clear()
            return
        ids[fact.decision_id] = None
        if len(ids) > IDS_KEPT:
            del ids[next(iter(ids))]

    def holds(self, fact: Decision) -> bool:
        """Whether that fact, made without a revision, is on record already."""
        return fact.decision_id in self._open.get(fact.model, {})

    def head(self, model: str, writer: str = CONTROLLER) -> Head:
        """Where that chain ends."""
        chain = (model, writer)
        if chain not in self._heads:
            self._heads[chain] = head_of(self._last[chain]) if chain in self._last else Head()
        return self._heads[chain]

    def link(self, facts: list[Decision]) -> list[Decision]:
        """The controller's ``facts`` about one model as the next of its chain. Nothing is remembered before ``learn``."""
        linked: list[Decision] = []
        for fact in facts:
            head = head_of(linked[-1]) if linked else self.head(fact.model)
            others = {
                writer: str(self.head(fact.model, writer))
                for writer in sorted(self._writers.get(fact.model, ()))
                if writer != CONTROLLER
            }
            linked.append(link(fact.model_copy(update={"witnessed": others}), CONTROLLER, head))
        return linked
