"""Sums that merge: what one window of one model, version, role and segment holds for one source partition.

Everything is an integer, so that no order and no cut of the input can change a bit of it: latencies in microseconds,
losses in 1e-9 units, feature sums in 1e-6 units. Minimum and maximum are exact and idempotent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.rows import CALIBRATION_BINS, LATENCY_GAMMA, OUTCOME_BINS
from streams.core.cell_codec import decode_features
from streams.core.layouts import Layout
from streams.core.tally import FACTS_WIDTH

Ints = NDArray[np.int64]
_LOG_GAMMA = np.log(LATENCY_GAMMA)


def latency_bucket(microseconds: NDArray[np.float64]) -> Ints:
    """Bucket of each latency: b holds (GAMMA**(b-1), GAMMA**b] microseconds, one microsecond and less fall in 0."""
    raw: Ints = np.ceil(np.log(np.maximum(microseconds, 1.0)) / _LOG_GAMMA).astype(np.int64)
    return raw


def unit_bin(values: NDArray[np.float64], bins: int) -> Ints:
    """Equal bins of [0, 1]; outside values go to the ends, NaN to the first."""
    bin_of: Ints = np.clip(np.clip(np.nan_to_num(values), 0.0, 1.0) * bins, 0, bins - 1).astype(np.int64)
    return bin_of


@cache
def _zeros(bins: int) -> Ints:
    """Of most cells most histograms are empty: they share one, so whoever adds to one puts the sum in its place."""
    empty = np.zeros(bins, np.int64)
    empty.setflags(write=False)
    return empty


@cache
def _nothing(bins: int) -> list[int]:
    return [0] * bins


def listed(histogram: Ints) -> list[int]:
    """Its counts; not to be written to."""
    empty = histogram is _zeros(len(histogram))
    return _nothing(len(histogram)) if empty else histogram.tolist()


@dataclass(slots=True)
class Outcomes:
    """Of predictions whose label is known. Positive means that the label is 1. ``predictions``: 0 in a cell, which counts them
    itself.

    ``positive_log_loss_nano``, ``positive_brier_nano``: what the positives have of the two sums. ``positive_delays``,
    ``negative_delays``: by bucket of ``streams.core.maturity``, how many first labels of that class came so long after
    the window's start. ``first_label_ms``, ``last_label_ms``: event times of labels, 0 when there is none.
    """

    predictions: int = 0
    labelled: int = 0
    revisions: int = 0
    true_positive: int = 0
    false_positive: int = 0
    true_negative: int = 0
    false_negative: int = 0
    log_loss_nano: int = 0
    brier_nano: int = 0
    positive_scores: Ints = field(default_factory=lambda: _zeros(OUTCOME_BINS))
    negative_scores: Ints = field(default_factory=lambda: _zeros(OUTCOME_BINS))
    calibration_counts: Ints = field(default_factory=lambda: _zeros(CALIBRATION_BINS))
    calibration_score_nano: Ints = field(default_factory=lambda: _zeros(CALIBRATION_BINS))
    calibration_positives: Ints = field(default_factory=lambda: _zeros(CALIBRATION_BINS))
    positive_log_loss_nano: int = 0
    positive_brier_nano: int = 0
    positive_delays: dict[int, int] = field(default_factory=dict)
    negative_delays: dict[int, int] = field(default_factory=dict)
    first_label_ms: int = 0
    last_label_ms: int = 0


class Cell:
    """One (version, role, segment) of a window. ``counts (COUNTS_WIDTH,)``: of predictions, whether labelled or not, as
    ``tally.facts`` counts them; ``latencies``: how many are in each bucket; ``outcomes``: None before the first label; ``sums``:
    of features, as ``layout`` says, None where none are counted. Arrays may be shared: whoever adds to one puts the sum in
    its place."""

    __slots__ = ("_sums", "counts", "latencies", "layout", "outcomes")

    def __init__(self) -> None:
        self.counts: Ints = _zeros(FACTS_WIDTH)
        self.latencies: dict[int, int] = {}
        self.outcomes: Outcomes | None = None
        self.layout: Layout | None = None
        self._sums: Ints | tuple[bytes, int] = _zeros(0)

    @property
    def sums(self) -> Ints:
        if not isinstance(self._sums, tuple):
            return self._sums
        assert self.layout is not None
        return decode_features(self._sums[0], self.layout, self._sums[1])

    @sums.setter
    def sums(self, sums: Ints) -> None:
        self._sums = sums

    @property
    def features(self) -> bytes | None:
        """The sums as they are stored, where they are held so."""
        held = self._sums
        return held[0] if isinstance(held, tuple) and held[1] == self.counts[0] else None

    def hold(self, features: bytes) -> None:
        """Hold the sums as they are stored, till somebody adds to them: few rows take a tenth of the room."""
        self._sums = features, int(self.counts[0])


#: Histograms of more bins are stored as places and counts.
_DENSE_MAX = 32


def pack(value: Outcomes) -> list[Any]:
    """Outcomes as plain msgpack types: empty histograms as their length, long ones as length, places and counts; whole
    numbers beyond 64 bits as text."""
    if not (value.labelled or value.revisions or value.first_label_ms):
        return [value.predictions]
    return [_packed(getattr(value, name)) for name in value.__slots__]


def _packed(item: Any) -> Any:
    if type(item) is int:
        return item if -(2**63) <= item < 2**63 else str(item)
    if not isinstance(item, np.ndarray):
        return item
    if not item.any():
        return len(item)
    if len(item) <= _DENSE_MAX:
        return item.tolist()
    at = np.flatnonzero(item)
    return [len(item), at.tolist(), item[at].tolist()]


def unpack(data: list[Any]) -> Outcomes:
    """Inverse of :func:`pack`."""
    found = Outcomes()
    for name, item in zip(found.__slots__, data, strict=False):
        if isinstance(getattr(found, name), np.ndarray):
            item = unpacked(item)
        setattr(found, name, int(item) if isinstance(item, str) else item)
    return found


def unpacked(item: Any) -> Ints:
    """A histogram as it is stored."""
    if isinstance(item, int):
        return _zeros(item)
    if len(item) == 3 and isinstance(item[1], list):
        array = np.zeros(item[0], np.int64)
        array[item[1]] = item[2]
        return array
    return np.array(item, np.int64)
