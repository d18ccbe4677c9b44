"""What the detectors of a model share when they are built, and what is looked up instead of worked out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.outliers.robust_z import _median
from detectors.tools.same import by_identity
from detectors.transform import sample_of
from schemas.contracts import Reference


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=40), st.booleans())
def test_the_quick_median_is_numpys(values: list[float], ordered: bool) -> None:
    """To the last bit, in order or not: what detectors learn must not depend on which code found it."""
    given_ = np.array(sorted(values) if ordered else values)
    assert _median(given_) == float(np.median(given_))


def test_a_sample_is_read_once_and_nulls_are_nan() -> None:
    """The detectors of a model share one matrix, which none may change; rows of different lengths are refused."""
    reference = Reference(sample=((1.0, None), (2.0, 3.0)))
    found = sample_of(reference)
    assert sample_of(reference) is found
    np.testing.assert_array_equal(found, [[1.0, np.nan], [2.0, 3.0]])
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1
    with pytest.raises(ValueError, match="different lengths"):
        sample_of(Reference(sample=((1.0, 2.0), (2.0,))))


def test_what_was_found_for_one_object_is_not_said_of_an_equal_one() -> None:
    """By identity alone, and for the last few only."""
    asked: list[list[int]] = []

    @by_identity(2)
    def length(of: list[int]) -> int:
        asked.append(of)
        return len(of)

    one, other, third = [1], [1], [1, 2]
    assert [length(of) for of in (one, one, other, third, one)] == [1, 1, 1, 2, 1]
    assert list(map(id, asked)) == list(map(id, (one, other, third, one)))
