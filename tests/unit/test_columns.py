"""Columns become rows, and what is not finite in them is seen on the way."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from schemas.columns import by_row


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(0, 5), st.integers(0, 40)),
        elements=st.floats() | st.sampled_from([np.inf, -np.inf, np.nan, -0.0, 1e308]),
    )
)
def test_rows_are_the_columns_turned(columns: np.ndarray) -> None:
    """To the bit, whatever the numbers; a column is odd if one of them is not finite."""
    rows, odd = by_row(columns)
    assert rows.flags.c_contiguous
    assert rows.tobytes() == np.ascontiguousarray(columns.T).tobytes()
    assert odd.tolist() == (~np.isfinite(columns).all(axis=1)).tolist()
