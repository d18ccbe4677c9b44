"""Columns that grow by moving their pages instead of their bytes.

A column that is copied each time it has to grow touches several times as much memory as it holds, and memory that is touched for
the first time is the dearest there is. Here each column has pages of its own, which the system moves to where there is more room.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Growing:
    """Room for one column of ``dtype``, all zeros at first."""

    def __init__(self, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._pages = _mapped(mmap.PAGESIZE)

    @property
    def nbytes(self) -> int:
        """Bytes it may take, of which those that were never written take no memory."""
        return len(self._pages)

    def column(self, rows: int) -> NDArray[Any]:
        """The column, from now on of ``rows`` rows and what is left of their last page: those it had, then zeros. Whoever has an
        earlier one must have let go of it, or it is copied and the two are no longer the same."""
        size = -(-max(1, rows * self._dtype.itemsize) // mmap.PAGESIZE) * mmap.PAGESIZE
        if size != len(self._pages):
            self._resize(size)
        return np.frombuffer(self._pages, self._dtype)

    def _resize(self, size: int) -> None:
        try:
            self._pages.resize(size)
        except (BufferError, SystemError):
            # Somebody has an array over it, or the system cannot move pages.
            kept, self._pages = self._pages[:size], _mapped(size)
            self._pages[: len(kept)] = kept


def _mapped(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
