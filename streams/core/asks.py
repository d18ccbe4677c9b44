"""Which labels the hot index could not place are to be looked up, and from where in the log on an answer counts.

A prediction that has left the index is in the warehouse's label index as soon as the copy of ``observations`` there has
come past it. So a question has a bound: the task's position when it was put. The position is the sum of the two event times
that the task's ticks carry on ``observations``; every tick raises it, and a tick stands behind all that the task had
written before. An answer given at a higher position than the bound has therefore seen every outcome and every prediction that
came before the question; one at or below it has said nothing, and the question stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from streams.core.waiting import Key

#: Their piece of state is written whole: this many are some hundred kilobytes.
ROLES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Ask:
    """``bound``: an answer is one when the log's copy has come further than this."""

    model: str
    bound: int


@dataclass
class Asks:
    """By key, those put first in front. ``late``: models whose settled windows take labels, so that every label that finds
    nobody is asked for. ``roles``: keys of predictions that came when another role of theirs had left the index."""

    enabled: bool = False
    position: int = -(2**63)
    late: set[str] = field(default_factory=set)
    roles: dict[Key, str] = field(default_factory=dict)
    changed: bool = False
    _open: dict[Key, Ask] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, key: object) -> bool:
        return key in self._open

    def __iter__(self) -> Iterator[tuple[Key, Ask]]:
        return iter(self._open.items())

    def put(self, model: str, key: Key) -> None:
        """Ask, or ask again: what is known now is older than what has just come."""
        self._open.pop(key, None)
        self._open[key] = Ask(model, self.position)

    def put_role(self, model: str, key: Key) -> None:
        """Ask for the labels that other roles of a prediction have had. Beyond the bound the prediction's next label will."""
        if len(self.roles) >= ROLES_MAX:
            return
        self.roles[key] = model
        self.changed = True
        self.put(model, key)

    def drop(self, key: Key) -> None:
        """Nobody needs to know any more."""
        self._open.pop(key, None)
        if self.roles and self.roles.pop(key, None) is not None:
            self.changed = True

    def settled(self, model: str, key: Key, position: int) -> bool:
        """Whether an answer given at ``position`` is one to this question, which then is put no longer."""
        ask = self._open.get(key)
        if ask is None or ask.model != model or position <= ask.bound:
            return False
        self.drop(key)
        return True

    def restore(self, roles: Iterable[tuple[str, int, int]]) -> None:
        """Ask again for roles, as of a restored state."""
        for model, key, check in roles:
            self.roles[Key(key, check)] = model
            self.put(model, Key(key, check))
