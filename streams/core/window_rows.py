"""Rows of the warehouse's tables of windows, from cells: all that changed in a transaction at once, as the bytes that go there.

There may be many (a cell has one row a feature), and they wait until the warehouse has confirmed them: so they are written
without an object for any of their values, and none of them is one. See ``schemas.row_binary`` for their form.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, eight, put_eight
from schemas.json_text import Whole
from schemas.row_binary import length_bytes, put_length, text_bytes
from streams.core import tally
from streams.core.aggregates import Cell, Ints, Outcomes
from streams.core.delivery import Upserts
from streams.core.join_state import WindowKey
from streams.core.layouts import HEAD, INVALID, LEAST, LOWER, MISSING, MOST, ROWS, UPPER, Layout, Written
from streams.core.window_state import CellKey, Group

#: Rows that are made, sent and confirmed as one.
ROWS_AT_ONCE = 8_192
_FACTS = len(tally.FACTS)
_INT64_MAX = 2**63 - 1
Bytes = NDArray[np.uint8]


class Told(NamedTuple):
    """A cell of which the warehouse is to be told; ``key``: see :func:`row_key`."""

    group: Group
    cell: Cell
    key: bytes


def row_key(window: WindowKey, cell: CellKey, partition: int) -> bytes:
    """By what a cell's rows are known in the warehouse: with what they begin."""
    return _moment(window.start_ms, window.window_ms) + _named(window.model, *cell, partition)


@lru_cache(maxsize=4_096)
def _moment(start_ms: int, window_ms: int) -> bytes:
    return struct.pack("<qQ", start_ms, window_ms)


@lru_cache(maxsize=65_536)
def _named(model: str, version: str, role: str, segment: str, partition: int) -> bytes:
    return b"".join(map(text_bytes, (model, version, role, segment))) + struct.pack("<H", partition)


def _in_parts(cells: Sequence[Told], rows_each: int = 1) -> Iterator[Sequence[Told]]:
    most = max(1, ROWS_AT_ONCE // rows_each)
    return (cells[start : start + most] for start in range(0, len(cells), most))


class _Keys:
    """Keys one behind the other, each as long as ``ends`` says; behind them room to be read over."""

    def __init__(self, cells: Sequence[Told]) -> None:
        keys = [told.key for told in cells]
        self.ends: Ints = np.cumsum([0, *map(len, keys)])
        self.data: Bytes = np.frombuffer(b"".join([*keys, bytes(8)]), np.uint8)
        self.size = len(self.data)


def counts_rows(cells: Sequence[Told], version: int) -> Iterator[Upserts]:
    """Rows of ``window_counts``."""
    for some in _in_parts(cells):
        n, keys = len(some), _Keys(some)
        counts = np.concatenate([told.cell.counts for told in some]).reshape(n, -1)
        buckets = list[int]()
        for told in some:
            held = told.cell.latencies
            for bucket in held if len(held) < 2 else sorted(held):
                buckets += (bucket, held[bucket])
        ends = np.cumsum([0, *(len(told.cell.latencies) for told in some)])
        spans = np.array([told.group.span_ms for told in some], np.int64)
        closed = np.array([told.group.closed for told in some], np.bool_)
        into = np.empty(keys.size + n * (8 * counts.shape[1] + 64) + 5 * len(buckets), np.uint8)
        latencies = np.array(buckets, np.int64)
        end = _put_counts(keys.data, keys.ends, counts, latencies, ends, spans, closed, version, into)
        yield Upserts("window_counts", n, [into[:end].tobytes()], version)


#: Of a row of ``window_outcomes`` what is before and behind that of labels: its part and how many predictions; when it became
#: final, when its window was settled, its span, whether it is final, and the version.
_BEFORE_LABELS, _BEHIND_LABELS = struct.Struct("<QQ"), struct.Struct("<qqQBQ")


def outcomes_rows(cells: Sequence[Told], version: int) -> Iterator[Upserts]:
    """Rows of ``window_outcomes``: the part that is the window itself."""
    for some in _in_parts(cells):
        parts = list[bytes]()
        for told in some:
            parts += _outcomes_row(told, version)
        yield Upserts("window_outcomes", len(some), parts, version)


def _outcomes_row(told: Told, version: int) -> tuple[bytes, ...]:
    group, o, predictions = told.group, told.cell.outcomes, int(told.cell.counts[0])
    complete = group.closed and predictions > 0 and o is not None and o.labelled == predictions
    settled_ms = group.settles_ms if group.final else 0
    final_ms = max(group.closes_ms, o.last_label_ms) if complete and o is not None else settled_ms
    last = _BEHIND_LABELS.pack(final_ms, settled_ms, group.span_ms, complete or group.final, version)
    return told.key, _BEFORE_LABELS.pack(0, predictions), _UNLABELLED if o is None else labels_said(o), last


def late_row(key: bytes, part: int, outcomes: Outcomes, settles_ms: int, span_ms: int, version: int) -> bytes:
    """A row of ``window_outcomes`` of what came when its window had left memory."""
    last = _BEHIND_LABELS.pack(outcomes.last_label_ms, settles_ms, span_ms, True, version)
    return key + _BEFORE_LABELS.pack(part, 0) + labels_said(outcomes) + last


def features_rows(cells: Sequence[Told], version: int) -> Iterator[Upserts]:
    """Rows of ``window_features``: of each cell, which has a layout, one a feature."""
    alike: dict[int, tuple[Layout, list[Told]]] = {}
    for told in cells:
        if told.cell.layout is not None:
            alike.setdefault(id(told.cell.layout), (told.cell.layout, []))[1].append(told)
    parts, rows = list[bytes](), 0
    for layout, of in alike.values():
        for some in _in_parts(of, len(layout.parts)):
            if rows and rows + len(some) * len(layout.parts) > ROWS_AT_ONCE:
                yield Upserts("window_features", rows, parts, version)
                parts, rows = [], 0
            parts.append(_features(layout, some, version))
            rows += len(some) * len(layout.parts)
    if rows:
        yield Upserts("window_features", rows, parts, version)


def _features(layout: Layout, cells: Sequence[Told], version: int) -> bytes:
    keys, written = _Keys(cells), layout.written
    sums = np.concatenate([told.cell.sums for told in cells])
    spans = np.array([told.group.span_ms for told in cells], np.int64)
    into = np.empty(keys.size * len(layout.parts) + len(cells) * written.bytes_max, np.uint8)
    end = _put_features(keys.data, keys.ends, sums, layout.size, written.of, spans, version, into)
    return into[:end].tobytes()


def labels_said(o: Outcomes) -> bytes:
    """What a row of ``window_outcomes`` says of labels, between its number of predictions and ``final_ms``."""
    return b"".join(
        (
            _whole(
                o.labelled, o.revisions, o.true_positive, o.false_positive, o.true_negative, o.false_negative,
                o.log_loss_nano, o.brier_nano,
            ),
            _array(o.positive_scores), _array(o.negative_scores), _array(o.calibration_counts),
            _array(o.calibration_score_nano), _array(o.calibration_positives),
            _whole(o.positive_log_loss_nano, o.positive_brier_nano), _delays(o.positive_delays),
            _delays(o.negative_delays), _whole(o.first_label_ms, o.last_label_ms),
        )
    )  # fmt: skip


def _whole(*values: int) -> bytes:
    """Numbers, cut to what 64 bits hold."""
    return struct.pack(f"<{len(values)}q", *(max(-_INT64_MAX, min(value, _INT64_MAX)) for value in values))


def _array(values: Ints) -> bytes:
    return length_bytes(len(values)) + values.tobytes()


def _delays(held: dict[int, int]) -> bytes:
    pairs = [struct.pack("<hq", bucket, count) for bucket, count in sorted(held.items())]
    return length_bytes(len(pairs)) + b"".join(pairs)


#: What all rows without labels say of them.
_UNLABELLED = labels_said(Outcomes())


@compiled
def _put_counts(
    keys: Bytes, key_ends: Ints, counts: Ints, latencies: Ints, latency_ends: Ints, spans: Ints,
    closed: NDArray[np.bool_], version: int, into: Bytes,
) -> Whole:  # fmt: skip
    """All rows; where they end. ``latencies``: bucket and count of each of row i from ``latency_ends[i]`` on."""
    at = 0
    for i in range(counts.shape[0]):
        at = _put_key(keys, key_ends, i, into, at)
        for k in range(_FACTS):
            put_eight(into, at, np.uint64(counts[i, k]))
            at += 8
        at = put_length(into, at, latency_ends[i + 1] - latency_ends[i])
        for j in range(latency_ends[i], latency_ends[i + 1]):
            bucket = latencies[2 * j]
            into[at] = bucket & 255
            into[at + 1] = (bucket >> 8) & 255
            put_eight(into, at + 2, np.uint64(latencies[2 * j + 1]))
            at += 10
        at = put_length(into, at, counts.shape[1] - _FACTS)
        for k in range(_FACTS, counts.shape[1]):
            put_eight(into, at, np.uint64(counts[i, k]))
            at += 8
        put_eight(into, at, np.uint64(spans[i]))
        into[at + 8] = closed[i]
        put_eight(into, at + 9, np.uint64(version))
        at += 17
    return at


@compiled
def _put_key(keys: Bytes, ends: Ints, i: int, into: Bytes, at: int) -> Whole:
    start, size = ends[i], ends[i + 1] - ends[i]
    for k in range(0, size, 8):
        put_eight(into, at + k, eight(keys, start + k))
    return at + size


@compiled
def _put_features(
    keys: Bytes, key_ends: Ints, sums: Ints, size: int, of: Written, spans: Ints,
    version: int, into: Bytes,
) -> Whole:  # fmt: skip
    """All rows of cells of one layout, whose sums are ``size`` numbers each; where they end."""
    at = 0
    for i in range(len(spans)):
        for f in range(len(of.starts) - 1):
            to, end = i * size + of.starts[f], i * size + of.starts[f + 1]
            at = _put_key(keys, key_ends, i, into, at)
            at = _put_key(of.names, of.name_ends, f, into, at)
            put_eight(into, at, np.uint64(sums[to + ROWS]))
            put_eight(into, at + 8, np.uint64(sums[to + MISSING]))
            put_eight(into, at + 16, np.uint64(sums[to + INVALID]))
            put_eight(into, at + 24, np.uint64(_sum(sums[to + UPPER], sums[to + LOWER])))
            put_eight(into, at + 32, np.uint64(sums[to + LEAST]))
            put_eight(into, at + 40, np.uint64(sums[to + MOST]))
            at += 48
            if of.numeric[f]:
                at = put_length(into, at, of.edge_ends[f + 1] - of.edge_ends[f])
                for e in range(of.edge_ends[f], of.edge_ends[f + 1]):
                    put_eight(into, at, of.edges[e])
                    at += 8
                at = put_length(into, at, end - to - HEAD)
                for k in range(to + HEAD, end):
                    put_eight(into, at, np.uint64(sums[k]))
                    at += 8
                at = put_length(into, at, 0)
            else:
                at = put_length(into, at, 0)
                at = put_length(into, at, 1)
                put_eight(into, at, np.uint64(0))
                at = _put_categories(sums, to + HEAD, of, f, into, at + 8)
            put_eight(into, at, np.uint64(spans[i]))
            put_eight(into, at + 8, np.uint64(version))
            at += 16
    return at


@compiled
def _put_categories(sums: Ints, to: int, of: Written, f: int, into: Bytes, at: int) -> Whole:
    """How often each category came, without those that did not; a name may have several places, which stand side by side."""
    begin, end = of.category_ends[f], of.category_ends[f + 1]
    for writes in range(2):
        shown, times = 0, 0
        for c in range(begin, end):
            times += sums[to + of.category_places[c]]
            if c + 1 < end and of.category_first[c + 1] == 0:
                continue
            if times > 0:
                shown += 1
                if writes:
                    at = _put_key(of.category_names, of.category_name_ends, c, into, at)
                    put_eight(into, at, np.uint64(times))
                    at += 8
            times = 0
        if not writes:
            at = put_length(into, at, shown)
    return at


@compiled
def _sum(upper: int, lower: int) -> Whole:
    """A sum of two halves, cut to what 64 bits hold."""
    high, low = upper + (lower >> tally.HALF), lower & 0xFFFFFFFF
    if high >= 2**31:
        return _INT64_MAX
    if high < -(2**31):
        return -_INT64_MAX
    return max((high << tally.HALF) + low, -_INT64_MAX)
