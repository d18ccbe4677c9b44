"""What predictions in the join index share, by a small number: window, version, role and segments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from streams.core.evicted import Marks
from streams.core.join_state import Kind, WindowKey

T = TypeVar("T")


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
        found: dict[T, list[int]] = {}
        for code in np.unique(codes).tolist():
            found.setdefault(what(self._kinds[code]), []).append(code)
        return [(one, np.isin(codes, of)) for one, of in found.items()]

    def marks(self, key: NDArray[np.uint64], check: NDArray[np.uint32], codes: NDArray[Any]) -> Marks:
        """Fingerprints of rows: two of a million in one window are alike once in thirty million windows."""
        marks: Marks = (key ^ self._mark[codes]) * np.uint64(0x9E3779B97F4A7C15)
        return marks ^ check.astype(np.uint64)


def hash64(text: str) -> int:
    """64 bits of BLAKE2b: the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
