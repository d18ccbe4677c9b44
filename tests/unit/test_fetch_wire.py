"""Fetches as they are written and read at once are those that aiokafka writes and reads field by field."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.protocol import fetch
from hypothesis import given
from hypothesis import strategies as st

from streams.fetch_wire import LARGE_BYTES, Answer, Fetch, Frame

int32, int64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
int16 = st.integers(-(2**15), 2**15 - 1)
aborted = st.lists(st.tuples(int64, int64), max_size=3)
parts = st.tuples(int32, int16, int64, int64, int64, aborted, int32, st.binary(max_size=40))
answers = st.tuples(
    int32, int16, int32, st.lists(st.tuples(st.text(max_size=5), st.lists(parts, max_size=3)), max_size=3)
)


@given(int32, int32, int32, st.integers(0, 1), st.text(max_size=9), st.data())
def test_a_fetch_is_written_as_aiokafka_writes_it(
    wait_ms: int, least: int, most: int, isolation: int, rack: str, data: st.DataObject
) -> None:
    """In the version that today's brokers read, and in one that older ones do."""
    asked = st.lists(st.tuples(int32, int64, int32), max_size=3)
    topics = data.draw(st.lists(st.tuples(st.text(max_size=9), asked), max_size=3))
    for version in (fetch.FetchRequest_v11, fetch.FetchRequest_v4):
        ours, theirs = (
            kind(wait_ms, least, most, isolation, topics, rack).build(version)
            for kind in (Fetch, fetch.FetchRequest)
        )
        assert ours.encode() == theirs.encode()
        header = ours.build_request_header(7, "me").encode()
        assert header == theirs.build_request_header(7, "me").encode()
    assert Fetch(wait_ms, least, most, isolation, topics, rack).prepare({1: (0, 17)}).API_VERSION == 11


@given(answers, st.booleans())
def test_an_answer_is_read_as_aiokafka_reads_it(said: tuple[Any, ...], large: bool) -> None:
    """Where an answer is large what is much of it is not copied; what is cut off is refused, wherever it ends."""
    if large:
        said = (*said[:3], [*said[3], ("t", [(0, 0, 9, 9, 0, [], -1, b"r" * LARGE_BYTES)])])
    data = fetch.FetchResponse_v11(*said).encode()
    found = Answer.decode(Frame(memoryview(data)))
    assert found == fetch.FetchResponse_v11.decode(data)
    assert [type(row[-1]) for _, rows in found.topics[-1:] for row in rows if large] == [memoryview] * large
    for end in range(0, len(data), max(1, len(data) // 50)):
        with pytest.raises(ValueError, match=r"ends too early|utf-8"):
            Answer.decode(Frame(memoryview(data)[:end]))
