"""Columns of the join's pieces: whatever numbers they hold, in whatever order rows came, they are read back."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streams.core.join_state import ADDED, SETTLED, Kind, WindowKey, decode_piece, encode_piece
from tests.support_examples import examples

KINDS = [Kind(WindowKey("m", 0, 60_000), "1", 0, ())]
DTYPES = {"key": np.uint64, "check": np.uint32, "score": np.float64, "status": np.int8, "label": np.float64}


def columns(names: tuple[str, ...], numbers: list[int], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Each column drawn from these numbers, all ends of its type among them; row numbers rise."""
    n = int(rng.integers(0, 40))
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        dtype: Any = np.dtype(DTYPES.get(name, np.int64))
        if dtype.kind == "i":
            ends = np.iinfo(dtype)
            values = np.array([max(ends.min, min(v, ends.max)) for v in numbers], dtype)[
                rng.integers(0, len(numbers), n)
            ]
        else:
            values = rng.integers(0, 255, (n, dtype.itemsize)).astype(np.uint8).view(dtype).reshape(-1)
        found[name] = np.sort(values) if rng.integers(2) else values
    return found | {"number": np.cumsum(rng.integers(1, 3, n)), "kind": np.zeros(n, np.int64)}


@examples(40)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300), min_size=1, max_size=6),
    st.integers(0, 2**31),
)
def test_a_piece_is_read_back(numbers: list[int], seed: int) -> None:
    """Constant, rising by steps, near each other, far apart."""
    rng = np.random.default_rng(seed)
    added, settled = columns(ADDED, numbers, rng), columns(SETTLED, numbers, rng)
    data = encode_piece((9, 1), (1, 9), 0, KINDS, added, settled, [], [], {})
    body, kinds = decode_piece("join/rows/0", data)
    assert kinds == KINDS
    for before, after in zip((added, settled), body.columns(), strict=True):
        for name, values in after.items():
            assert values.astype(before[name].dtype).tobytes() == before[name].tobytes(), name


def test_rows_in_turn_of_many_models_take_what_is_random_in_them() -> None:
    """Numbers, offsets, kinds and times of rows that were sorted by model go on by themselves once they are as they came."""
    n, rng = 10_000, np.random.default_rng(1)
    turn = np.argsort(np.arange(n) % 1_000, kind="stable")
    added: dict[str, NDArray[Any]] = {name: np.zeros(n, np.int64) for name in ADDED}
    added |= {
        "number": np.arange(n), "offset": turn + 5, "kind": turn % 1_000, "event_time_ms": turn * 3 + 10**12,
        "key": rng.integers(0, 2**63, n).astype(np.uint64), "score": rng.uniform(size=n),
        "check": rng.integers(0, 2**32, n).astype(np.uint32),
    }  # fmt: skip
    settled: dict[str, NDArray[Any]] = {name: np.zeros(0, np.int64) for name in SETTLED}
    assert len(encode_piece((n, 0), (0, n), 0, KINDS, added, settled, [], [], {})) < n * 20.2
