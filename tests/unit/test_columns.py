"""What is not finite in a column of features is seen."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from schemas.columns import not_finite


@given(
    arrays.arrays(
        np.float64,
        st.integers(0, 40),
        elements=st.floats() | st.sampled_from([np.inf, -np.inf, np.nan, -0.0, 1e308]),
    )
)
def test_a_column_with_a_number_that_is_not_finite_is_known(column: np.ndarray) -> None:
    """Whatever the numbers, one infinity or one NaN is enough."""
    assert not_finite(column) == (not np.isfinite(column).all())
