"""Columns keep what is in them wherever they go."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from streams.core.growing import Growing


@pytest.mark.parametrize("held", [False, True])
def test_rows_stay_and_the_rest_is_zero(held: bool) -> None:
    """Longer or shorter, and even where somebody still has an earlier one."""
    room = Growing("<i8")
    column = room.column(10)
    column[:10] = np.arange(10)
    before = column if held else None
    del column
    larger = room.column(100_000)
    assert len(larger) >= 100_000
    assert larger[:10].tolist() == list(range(10))
    assert not larger[10:].any()
    if before is not None:
        larger[0] = 7
        assert before[0] == 0
    larger[-1] = 1
    del larger
    smaller = room.column(10)
    assert len(smaller) == mmap.PAGESIZE // 8
    assert room.nbytes == mmap.PAGESIZE
    assert smaller[:10].tolist() == [7 if held else 0, *range(1, 10)]
    del smaller
    assert not room.column(100_000)[10:].any()


def test_pages_that_were_not_written_take_no_memory() -> None:
    """Room is made for what may come."""
    before = _resident_bytes()
    room = Growing("<f8")
    column = room.column(50_000_000)
    column[:10] = 1.0
    assert room.nbytes >= 400_000_000
    assert _resident_bytes() - before < 40_000_000


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
