"""Turns held-out rows into the reference of a version: what "no drift" means for its monitoring.

Whoever registers a version makes its reference here, from rows that the shipped scores are honest for (held out of
the fit, in time order), so that the trainer's versions and a first version made by hand are measured alike.

A reference travels in one message of the topic ``models``, so what grows with the number of features is bounded: fewer
rows of the sample, fewer (the newest) time blocks, references of fewer segments. A value that many rows share stays exact, because detectors give
it a cell of its own; others keep seven digits of their column's spread.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.bins import Binning
from schemas.contracts import ColumnReference, Feature, ModelContract, Reference

DAY_MS = 86_400_000
QUANTILES = 101
SAMPLE_ROWS_MAX = 2_000
#: Values of the sample, about 10 bytes each as JSON; and counts of the bins, about 4 bytes each.
SAMPLE_VALUES_MAX = 100_000
BIN_COUNTS_MAX = 300_000
#: Numbers in the references of all rows and of segments, together; rows and segments for which one is made.
SEGMENT_VALUES_MAX = 200_000
SEGMENT_ROWS_MIN = 200
SEGMENTS_MAX = 20
LOSS_CLIP = 1e-6
#: A time block with fewer rows than this share of the median block says nothing about block-to-block variation.
_BLOCK_SHARE_MIN = 0.25

Floats = NDArray[np.float64]
_log = logging.getLogger(__name__)


def reference_of(
    table: Mapping[str, NDArray[Any]],
    scores: NDArray[Any],
    contract: ModelContract,
    *,
    labels: NDArray[Any] | None = None,
    event_ms: NDArray[np.int64] | None = None,
    block_ms: int = DAY_MS,
    sample_rows_max: int = SAMPLE_ROWS_MAX,
) -> Reference:
    """The reference over ``n`` rows in time order: ``table`` has a raw column ``(n,)`` for every contract feature.

    Without ``labels`` there is no loss; without ``event_ms`` there are no time blocks. The sample is every k-th row,
    coded as observation blocks are (a category as its index in the contract, unknown last, null as NaN). With more than
    about 50 features there are fewer rows in it, with more than about 60 over a year fewer time blocks.
    """
    coded = {f.name: code_column(f, table[f.name]) for f in contract.features}
    answers = np.asarray(scores, np.float64)
    rows = len(answers)
    loss = log_losses(answers, labels) if labels is not None else None
    codes = {f.name: 0 if f.kind == "numeric" else len(f.categories) + 1 for f in contract.features}
    whole = describe(coded, codes, answers, loss=loss, event_ms=event_ms, block_ms=block_ms)
    if event_ms is not None and rows:
        found, kept = len(time_blocks(event_ms, block_ms)), len(whole.block_starts_ms)
        if kept < found:
            _log.warning("reference of %s: the newest %d of %d time blocks", contract.model, kept, found)
    most = min(sample_rows_max, max(1, SAMPLE_VALUES_MAX // len(contract.features)))
    if most < min(rows, sample_rows_max):
        _log.warning("reference of %s: a sample of at most %d rows", contract.model, most)
    step = max(1, -(-rows // most))
    sample: dict[str, Any] = {
        "sample": _rows_of([coded[f.name] for f in contract.features], step) if rows else (),
        "sample_time_ms": () if event_ms is None else tuple(int(at) for at in event_ms[::step]),
        "sample_score": tuple(shortened(answers, _repeated(answers))[::step].tolist()),
        "sample_label": () if labels is None else tuple(float(label) for label in labels[::step]),
    }
    values = _values_of(whole)
    room = (SEGMENT_VALUES_MAX - values) // max(1, values * len(contract.monitoring.segments))
    segments: dict[str, dict[int, Reference]] = {}
    for name in contract.monitoring.segments:
        parts = segments[name] = {}
        for code in frequent(whole.columns[name], min(room, SEGMENTS_MAX)):
            mine = coded[name] == code
            if int(mine.sum()) < SEGMENT_ROWS_MIN:
                continue
            parts[code] = describe(
                {column: values[mine] for column, values in coded.items()},
                codes,
                answers[mine],
                loss=None if loss is None else loss[mine],
                event_ms=None if event_ms is None else event_ms[mine],
                block_ms=block_ms,
            )
    return whole.model_copy(update={**sample, "segments": segments})


def describe(
    coded: Mapping[str, Floats],
    codes: Mapping[str, int],
    scores: Floats,
    *,
    loss: Floats | None = None,
    event_ms: NDArray[np.int64] | None = None,
    block_ms: int = DAY_MS,
) -> Reference:
    """A reference without sample and segments: of all rows, or of some of them.

    ``coded``: columns ``(n,)`` as :func:`code_column` makes them; ``codes``: how many codes each has, the one for unknown
    values included, 0 for a numeric one.
    """
    rows = len(scores)
    blocks = time_blocks(event_ms, block_ms) if event_ms is not None and rows else []
    columns = {
        name: _categorical(values, codes[name]) if codes[name] else _numeric(values)
        for name, values in coded.items()
    }
    score = _numeric(scores)
    everything = dict(coded) | ({} if "score" in coded else {"score": scores})
    binnings = {name: Binning(columns.get(name, score)) for name in everything}
    kept = blocks[-max(1, BIN_COUNTS_MAX // sum(binning.size for binning in binnings.values())) :]
    times = event_ms if event_ms is not None and rows else None
    return Reference(
        columns=columns,
        score=score,
        loss_mean=float(loss.mean()) if loss is not None and rows else None,
        loss_sd=float(loss.std()) if loss is not None and rows else None,
        loss_rows=rows if loss is not None else 0,
        loss_blocks=_block_means(loss, blocks) if loss is not None else (),
        loss_block_ms=block_ms,
        block_ms=block_ms,
        block_starts_ms=()
        if times is None
        else tuple(int(times[block[0]]) // block_ms * block_ms for block in kept),
        bins={name: _block_counts(binnings[name], values, kept) for name, values in everything.items()}
        if kept
        else {},
        rows=rows,
        from_ms=None if times is None else int(times[0]),
        to_ms=None if times is None else int(times[-1]),
    )


def frequent(column: ColumnReference, most: int) -> list[int]:
    """Codes of the ``most`` frequent categories of a column, the most frequent first; never the one for unknown."""
    shares = np.asarray(column.shares[:-1], np.float64)
    order = np.argsort(-shares, kind="stable")[: max(0, most)]
    return [int(code) for code in order if shares[code] > 0]


def _values_of(reference: Reference) -> int:
    """Numbers in it, roughly: what it takes in a message."""
    columns = [*reference.columns.values(), *([] if reference.score is None else [reference.score])]
    counts = sum(len(block) for of in reference.bins.values() for block in of)
    return sum(len(column.quantiles) + len(column.shares) for column in columns) + counts


def code_column(feature: Feature, column: NDArray[Any]) -> Floats:
    """A raw column as numbers ``(n,)``: null is NaN, a category its index in the contract, unknown ``len(categories)``."""
    if feature.kind == "numeric":
        return np.asarray(column, np.float64)
    index = {name: float(at) for at, name in enumerate(feature.categories)}
    unknown = float(len(feature.categories))
    values = (np.nan if _null(value) else index.get(str(value), unknown) for value in column)
    return np.fromiter(values, np.float64, len(column))


def log_losses(scores: Floats, labels: NDArray[Any]) -> Floats:
    """Negative log likelihood of each row in nats, scores kept 1e-6 away from 0 and 1; shape ``(n,)``."""
    p = np.clip(np.asarray(scores, np.float64), LOSS_CLIP, 1.0 - LOSS_CLIP)
    return np.asarray(-np.where(np.asarray(labels) == 1, np.log(p), np.log1p(-p)), np.float64)


def time_blocks(event_ms: NDArray[np.int64], block_ms: int) -> list[NDArray[np.int64]]:
    """Row positions of each block of event time, in time order, nearly empty blocks left out."""
    number = np.asarray(event_ms, np.int64) // block_ms
    blocks = [np.flatnonzero(number == value) for value in np.unique(number)]
    least = _BLOCK_SHARE_MIN * float(np.median([len(block) for block in blocks])) if blocks else 0.0
    return [block for block in blocks if len(block) >= least]


def shortened(values: Floats, exact: Floats) -> Floats:
    """``values`` cut down to seven digits of their spread, but for those in ``exact``, which must be sorted.

    Down, never up: a value on a border then stays on its side of it.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return values
    low, high = np.quantile(known, (0.1, 0.9)).tolist()
    spread = high - low or float(known.max() - known.min())
    digits = max(0, 6 - math.floor(math.log10(spread))) if 0 < spread < math.inf else 0
    if not 0 < digits < 300 or not np.isfinite(known * 10.0**digits).all():
        return values
    cut = np.round(np.floor(values * 10.0**digits) / 10.0**digits, digits)
    at = np.searchsorted(exact, values)
    same = np.zeros(len(values), bool) if not len(exact) else exact[np.minimum(at, len(exact) - 1)] == values
    return np.where(same, values, cut)


def _repeated(values: Floats) -> Floats:
    found, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    return np.asarray(found[counts > 1], np.float64)


def _rows_of(columns: list[Floats], step: int) -> tuple[tuple[float | None, ...], ...]:
    short = np.column_stack([shortened(column, _repeated(column))[::step] for column in columns])
    return tuple(tuple(value if math.isfinite(value) else None for value in row) for row in short.tolist())


def _block_counts(
    binning: Binning, values: Floats, blocks: list[NDArray[np.int64]]
) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(binning.counts(values[block]).tolist()) for block in blocks)


def _block_means(values: Floats, blocks: list[NDArray[np.int64]]) -> tuple[float, ...]:
    means = []
    for block in blocks:
        known = values[block][~np.isnan(values[block])]
        if len(known):
            means.append(round(float(known.mean()), 9))
    return tuple(means)


def _categorical(coded: Floats, codes: int) -> ColumnReference:
    known = coded[np.isfinite(coded)].astype(np.int64)
    shares = np.bincount(known, minlength=codes) / max(1, len(known))
    return ColumnReference(
        rows=len(known), missing=_missing(coded), shares=tuple(float(share) for share in shares)
    )


def _numeric(values: Floats) -> ColumnReference:
    known = values[np.isfinite(values)]
    if not len(known):
        return ColumnReference(rows=0, missing=_missing(values))
    quantiles = np.quantile(known, np.linspace(0.0, 1.0, QUANTILES))
    return ColumnReference(
        rows=len(known),
        missing=_missing(values),
        # A value kept exact may come after one that was cut to below it.
        quantiles=tuple(np.maximum.accumulate(shortened(quantiles, _repeated(known))).tolist()),
        mean=float(known.mean()),
        sd=float(known.std()),
    )


def _missing(values: Floats) -> float:
    return float(1.0 - np.isfinite(values).mean()) if len(values) else 0.0


def _null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
