"""What every kind is built with and fed when its cost is measured: a reference, a context, rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from detectors.base import DAY_MS, STREAM_COLUMNS, Context, Rows, Spec, Stream
from detectors.registry import spec_class
from schemas.bins import Binning
from schemas.contracts import ColumnReference, FalsePages, Feature, Reference
from tests.bench.detectors import peers

Floats = NDArray[np.float64]
ROW_MS = DAY_MS // 50_000
SAMPLE_ROWS = 2_000
_DAYS = 40
_SHARES = (0.4, 0.3, 0.2, 0.1)
#: Options without which a kind cannot be built, or would take minutes to.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "cvm-online": {"expected_run_rows": peers.CVM_RUN_ROWS, "window_rows": peers.CVM_WINDOW},
    "fet-online": {"expected_run_rows": peers.CVM_RUN_ROWS, "window_rows": peers.CVM_WINDOW},
    "freshness": {"silence_max": DAY_MS},
    "staleness": {"age_max": 30 * DAY_MS},
    "service-level": {"latency_p99_ms": 1_000},
    "cbpe": {"metric": "accuracy"},
}


def sample_reference(width: int, rng: np.random.Generator, category: bool = False) -> Reference:
    """Of ``width`` normal columns, with blocks, sample, score and labels; ``category``: the last has four codes."""
    grid = tuple(ndtri(np.clip(np.linspace(0, 1, 101), 1e-6, 1 - 1e-6)).tolist())
    column = ColumnReference(rows=100_000, quantiles=grid, mean=0.0, sd=1.0)
    score = ColumnReference(rows=100_000, quantiles=tuple(np.linspace(0, 1, 101).tolist()), mean=0.5, sd=0.29)
    names = [f"f{at}" for at in range(width)]
    columns = dict.fromkeys(names, column)
    bins = dict.fromkeys([*names, "score"], _days(column, rng))
    sample = rng.normal(size=(SAMPLE_ROWS, width))
    if category:
        columns[names[-1]] = ColumnReference(rows=100_000, shares=_SHARES)
        codes = rng.choice(4, (_DAYS, 500), p=_SHARES).astype(np.float64)
        counts = Binning(columns[names[-1]]).counts
        bins[names[-1]] = tuple(tuple(int(n) for n in counts(day)) for day in codes)
        sample[:, -1] = rng.choice(4, SAMPLE_ROWS, p=_SHARES)
    scores = rng.uniform(size=SAMPLE_ROWS)
    return Reference(
        columns=columns, score=score, bins=bins, rows=100_000, from_ms=-_DAYS * DAY_MS, to_ms=-1,
        loss_mean=0.5, loss_sd=0.3, loss_rows=100_000, loss_blocks=tuple(rng.normal(0.5, 0.02, _DAYS).tolist()),
        block_starts_ms=tuple(day * DAY_MS for day in range(-_DAYS, 0)),
        sample=tuple(map(tuple, sample.tolist())), sample_score=tuple(scores.tolist()),
        sample_label=tuple((rng.uniform(size=SAMPLE_ROWS) < scores).astype(float).tolist()),
        sample_time_ms=tuple(np.linspace(-_DAYS * DAY_MS, -1, SAMPLE_ROWS).astype(int).tolist()),
    )  # fmt: skip


def _days(column: ColumnReference, rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    binning = Binning(column)
    return tuple(tuple(int(n) for n in binning.counts(rng.normal(size=500))) for _ in range(_DAYS))


@dataclass(frozen=True, slots=True)
class Setting:
    """A kind on a stream of ``width`` features: what it is built with, and rows for it."""

    context: Context
    values: Floats
    group: NDArray[np.int8] | None = None

    def rows(self, start: int, count: int) -> Rows:
        """``count`` rows that begin at row ``start`` of the stream; values are used over and over."""
        at = np.arange(start, start + count)
        group, identity = self.group, at.astype(np.uint64)
        if group is not None:
            at, group = at // 2 * 2, group[at % len(group)]
            identity = at.astype(np.uint64)
        return Rows.of(self.values[at % len(self.values)], at * ROW_MS, identity, group)


def setting(kind: type[Spec], stream: Stream, width: int, seed: int = 3) -> Setting:
    """Normals; on the loss stream calibrated scores with their labels."""
    rng = np.random.default_rng(seed)
    segmented = kind.kind in ("segments", "segment-gap", "categories", "chi-squared", "fisher")
    reference = sample_reference(width, rng, category=segmented)
    names = tuple(reference.columns)
    codes = tuple(4 if reference.columns[name].shares else 0 for name in names)
    features = {
        name: Feature(name=name, kind="categorical", categories=("x", "y", "z")) if code else Feature(name=name, low=-9, high=9)
        for name, code in zip(names, codes, strict=True)
    }  # fmt: skip
    n, group = 4_000, None
    inputs = rng.normal(size=(n, width))
    if segmented:
        inputs[:, -1] = rng.choice(4, n, p=_SHARES)
    score = rng.uniform(0.02, 0.98, n)
    label = (rng.uniform(size=n) < score).astype(np.float64)
    head = {
        "features": np.empty((n, 0)),
        "score": score[:, None],
        "predictions": np.column_stack([score, rng.exponential(20, n), np.zeros(n)]),
        "loss": np.column_stack([score, label, -np.log(np.where(label == 1, score, 1 - score))]),
        "comparison": np.column_stack([score, label]),
    }[stream]
    columns, categories = STREAM_COLUMNS.get(stream, ()), (0,) * head.shape[1]
    values = head
    if stream in ("features", "predictions"):
        columns, categories, values = (
            (*columns, *names),
            (*categories, *codes),
            np.concatenate([head, inputs], axis=1),
        )
    elif stream == "loss" and segmented:
        columns, categories, values = (
            (*columns, names[-1]),
            (*categories, 4),
            np.concatenate([head, inputs[:, -1:]], axis=1),
        )
    if stream == "comparison":
        group = (np.arange(n) % 2).astype(np.int8)
    context = Context(
        columns, categories, stream, reference, version="v1", false_pages=FalsePages(), features=features, trained_to_ms=0
    )  # fmt: skip
    return Setting(context, np.ascontiguousarray(values), group)


def spec_of(kind: str) -> Spec:
    return spec_class(kind).model_validate(OPTIONS.get(kind, {}))
