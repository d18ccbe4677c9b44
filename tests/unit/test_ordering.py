"""Rows are read in one order, however they came."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from schemas.blocks import DTYPES, ObservationBlock, decode_block, encode_block
from schemas.contracts import DetectorConfig
from schemas.ids import ROLES
from streams.core.feed import Columns, InOrder
from tests.support_examples import examples

Row = tuple[int, int, str, int, int]
few = st.integers(0, 3)
rows = st.lists(
    st.tuples(few, few, st.sampled_from(["v1", "v10", "v2"]), st.integers(0, 2), st.sampled_from([-1, 1]))
)


def _block(some: list[Row], versions: tuple[str, ...]) -> ObservationBlock:
    columns: dict[str, Any] = {name: np.zeros(len(some), dtype) for name, dtype in DTYPES.items()}
    columns |= {
        "segments": np.zeros((len(some), 0), np.int32),
        "check": np.empty(0, np.uint32),
    }
    # Whatever else a row has says which one it is.
    columns["score"] = np.array([hash(row) % 1_000 for row in some], np.float64)
    columns["features"] = columns["score"][:, None] + np.arange(3)
    columns["label_time_ms"] = np.array([row[0] for row in some], np.int64)
    columns["identity"] = np.array([row[1] for row in some], np.uint64)
    columns["version"] = np.array([versions.index(row[2]) for row in some], np.int32)
    columns["role"] = np.array([row[3] for row in some], np.int8)
    columns["sign"] = np.array([row[4] for row in some], np.int8)
    return ObservationBlock("outcomes", "m", versions, "h", **columns)


def _told(block: Columns) -> list[Row]:
    names = [block.versions[code] for code in block.version.tolist()]
    columns = (block.label_time_ms, block.identity, names, block.role, block.sign)
    found = [(int(t), int(i), v, int(r), int(s)) for t, i, v, r, s in zip(*columns, strict=True)]
    score = np.array([hash(row) % 1_000 for row in found], np.float64)
    assert_array_equal(block.score, score)
    assert_array_equal(block.features, score[:, None] + np.arange(3))
    return found


@examples(40)
@given(
    st.lists(st.tuples(rows, st.permutations(["v1", "v10", "v2"])), min_size=1, max_size=3),
    st.integers(1, 40),
    st.booleans(),
)
def test_rows_are_in_the_order_of_their_keys(
    parts: list[tuple[list[Row], list[str]]], times: int, sent: bool
) -> None:
    """By time, identity, version's name, role and sign: few rows of a time, or many; as they were made, or as they are read; and
    each version's own are the same ones."""
    blocks = [_block(some * times, tuple(versions)) for some, versions in parts]
    found = InOrder([decode_block(encode_block(block)) if sent else block for block in blocks])
    expected = sorted(row for some, _ in parts for row in some * times)
    assert _told(found.whole()) == expected
    config = DetectorConfig(name="d", kind="drift-e", stream="loss", roles=("stable", "canary"))
    own = [row for row in expected if row[3] != ROLES.index("shadow")]
    assert [(version, _told(part)) for version, part in found.by_version(config)] == [
        (version, [row for row in own if row[2] == version]) for version in sorted({row[2] for row in own})
    ]
