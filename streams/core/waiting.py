"""Labels that came before their prediction: kept until it comes or cannot come any more, bounded in number."""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from schemas.labels import Label

#: Of the heap by which they leave, so much may be of labels that have left otherwise.
_STALE_MIN = 1_024


class Key(NamedTuple):
    """By what a prediction is known: see ``schemas.ids.KeyHashes``; the model's name is part of both."""

    key: int
    check: int


def repeats(label: Label, held: Sequence[Label], asked: bool) -> bool:
    """Whether a label says nothing beside those that wait. One that is looked up is only left out where it is the same: those
    of higher revision may turn out to be beyond their prediction's horizon."""
    return label in held if asked else bool(held) and held[-1].revision >= label.revision


def rising(labels: Iterable[Label]) -> list[Label]:
    """Those that are of a higher revision than all before."""
    found: list[Label] = []
    for label in labels:
        if not found or label.revision > found[-1].revision:
            found.append(label)
    return found


class WaitingLabels:
    """By the key of their prediction, in the order of their revisions."""

    def __init__(self) -> None:
        self._labels: dict[int, dict[int, list[Label]]] = {}
        self._order: dict[str, list[tuple[int, Key]]] = {}
        self._ordered = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> Mapping[int, object]:
        """First halves of the keys of all that wait."""
        return self._labels

    def of(self, key: Key) -> list[Label]:
        """What waits for this prediction."""
        return self._labels.get(key.key, {}).get(key.check, [])

    def keep(self, key: Key, label: Label) -> None:
        """Let it wait."""
        self._labels.setdefault(key.key, {}).setdefault(key.check, []).append(label)
        self._count += 1
        heapq.heappush(self._order.setdefault(label.model, []), (label.label_time_ms, key))
        self._ordered += 1

    def take(self, key: Key) -> list[Label]:
        """What waits for this prediction, which waits no longer."""
        found = self._remove(key)
        self._count -= len(found)
        # The heap is made anew when most of it is of labels that have left.
        if self._ordered > 2 * self._count + _STALE_MIN:
            self._order = {}
            for one, label in self._all():
                self._order.setdefault(label.model, []).append((label.label_time_ms, one))
            for order in self._order.values():
                heapq.heapify(order)
            self._ordered = self._count
        return found

    def _remove(self, key: Key) -> list[Label]:
        of_key = self._labels.get(key.key)
        found = of_key.pop(key.check, []) if of_key else []
        if of_key is not None and not of_key:
            del self._labels[key.key]
        return found

    def _all(self) -> Iterator[tuple[Key, Label]]:
        for key, of_key in self._labels.items():
            for check, labels in of_key.items():
                for label in labels:
                    yield Key(key, check), label

    def expire(self, oldest_ms: Mapping[str, int], asked: Container[Key] = ()) -> int:
        """Let go of labels older than their model's ``oldest_ms``, but for those of ``asked`` keys, which are from now on let
        go by ``settle``; how many."""
        gone = 0
        for model, order in self._order.items():
            oldest = oldest_ms.get(model)
            while oldest is not None and order and order[0][0] < oldest:
                _, key = heapq.heappop(order)
                self._ordered -= 1
                if key in asked:
                    continue
                labels = self._remove(key)
                if stay := [label for label in labels if label.label_time_ms >= oldest]:
                    self._labels.setdefault(key.key, {})[key.check] = stay
                gone += len(labels) - len(stay)
        self._count -= gone
        return gone

    def settle(self, key: Key, oldest_ms: int) -> int:
        """Let go of labels of one prediction that are older; how many."""
        held = self._remove(key)
        if stay := [label for label in held if label.label_time_ms >= oldest_ms]:
            self._labels.setdefault(key.key, {})[key.check] = stay
        self._count -= len(held) - len(stay)
        return len(held) - len(stay)
