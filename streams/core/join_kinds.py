"""What predictions in the join index share, by a small number: window, version, role and segments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from streams.core.distinct import distinct
from streams.core.evicted import Marks
from streams.core.join_state import Kind, WindowKey
from streams.core.waiting import Key

T = TypeVar("T")
#: In the place of a version and a role.
_ANY = np.uint64(0x6A09E667F3BCC908)


class Kinds:
    """A table of kinds. ``end_ms (k,)``: when the window of each ends."""

    def __init__(self) -> None:
        self.end_ms = np.zeros(0, np.int64)
        self._kinds: list[Kind] = []
        self._code: dict[Kind, int] = {}
        self._mark = np.zeros(0, np.uint64)

    def __getitem__(self, code: int) -> Kind:
        return self._kinds[code]

    def codes(self, kinds: Iterable[Kind]) -> NDArray[np.int64]:
        """The codes of these kinds."""
        found, fresh = [], []
        for kind in kinds:
            code = self._code.get(kind)
            if code is None:
                code = self._code[kind] = len(self._kinds)
                self._kinds.append(kind)
                fresh.append(kind)
            found.append(code)
        if fresh:
            ends = [kind.window.end_ms for kind in fresh]
            marks = [hash64(f"{kind.version}\0{kind.role}") for kind in fresh]
            self.end_ms = np.append(self.end_ms, np.array(ends, np.int64))
            self._mark = np.append(self._mark, np.array(marks, np.uint64))
        return np.array(found, np.int64)

    def keep(self, codes: NDArray[Any]) -> None:
        """Only these, ascending, which are 0, 1, 2 and so on from now on."""
        self._kinds = [self._kinds[code] for code in codes.tolist()]
        self._code = {kind: at for at, kind in enumerate(self._kinds)}
        self.end_ms, self._mark = self.end_ms[codes], self._mark[codes]

    def by_window(self, codes: NDArray[Any]) -> list[tuple[WindowKey, NDArray[np.bool_]]]:
        """The windows among rows with these codes, and which rows are of each."""
        return self._by(codes, lambda kind: kind.window)

    def by_model(self, codes: NDArray[Any]) -> list[tuple[str, NDArray[np.bool_]]]:
        """The models among rows with these codes, and which rows are of each."""
        return self._by(codes, lambda kind: kind.window.model)

    def _by(self, codes: NDArray[Any], what: Callable[[Kind], T]) -> list[tuple[T, NDArray[np.bool_]]]:
        there, place = distinct(codes.astype(np.int64))
        found: dict[T, int] = {}
        group = [found.setdefault(what(self._kinds[code]), len(found)) for code in there.tolist()]
        of_row = np.array(group, np.int64)[place]
        return [(one, of_row == at) for one, at in found.items()]

    def marks(self, key: NDArray[np.uint64], check: NDArray[np.uint32], codes: NDArray[Any]) -> Marks:
        """Fingerprints of rows: two of a million in one window are alike once in thirty million windows."""
        marks: Marks = (key ^ self._mark[codes]) * np.uint64(0x9E3779B97F4A7C15)
        return marks ^ check.astype(np.uint64)


class Salts:
    """What makes of hashes of prediction ids the keys under which predictions of all models stand in one table, and back."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[np.uint64, np.uint32]] = {}

    def of(self, model: str) -> tuple[np.uint64, np.uint32]:
        """A model's own, for identities and for checks."""
        found = self._of.get(model)
        if found is None:
            narrow = np.uint32(hash64(f"{model}\0") & 0xFFFFFFFF)
            found = self._of[model] = (np.uint64(hash64(model)), narrow)
        return found

    def many(
        self, model: str, identity: NDArray[np.uint64], check: NDArray[np.uint32]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """Keys of hashes, or hashes of keys."""
        wide, narrow = self.of(model)
        return identity ^ wide, check ^ narrow

    def of_many(self, models: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """Those of each of these."""
        wide, narrow = zip(*map(self.of, models), strict=True)
        return np.array(wide, np.uint64), np.array(narrow, np.uint32)

    def one(self, model: str, identity: int, check: int) -> Key:
        """The same of one."""
        wide, narrow = self.of(model)
        return Key(identity ^ int(wide), check ^ int(narrow))


def key_marks(key: NDArray[np.uint64], check: NDArray[np.uint32]) -> Marks:
    """Fingerprints of prediction ids, whatever the role."""
    return (key ^ _ANY) * np.uint64(0x9E3779B97F4A7C15) ^ check.astype(np.uint64)


def hash64(text: str) -> int:
    """64 bits of BLAKE2b: the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
