"""Turns held-out rows into the reference of a version: what "no drift" means for its monitoring. Pure.

Whoever registers a version makes its reference here, from rows that the shipped scores are honest for (held out of
the fit, in time order), so that the trainer's versions and a first version made by hand are measured alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.contracts import ColumnReference, Feature, ModelContract, Reference

DAY_MS = 86_400_000
QUANTILES = 101
SAMPLE_ROWS_MAX = 2_000
LOSS_CLIP = 1e-6
#: A time block with fewer rows than this share of the median block says nothing about block-to-block variation.
_BLOCK_SHARE_MIN = 0.25

Floats = NDArray[np.float64]


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
    coded as observation blocks are (a category as its index in the contract, unknown last, null as NaN).
    """
    coded = {f.name: code_column(f, table[f.name]) for f in contract.features}
    answers = np.asarray(scores, np.float64)
    loss = log_losses(answers, labels) if labels is not None else None
    rows = len(answers)
    blocks = time_blocks(event_ms, block_ms) if event_ms is not None and rows else []
    transforms = {name: mid_ranks(values) for name, values in coded.items()}
    transforms.setdefault("score", mid_ranks(answers))
    step = max(1, -(-rows // sample_rows_max))
    matrix = np.column_stack([coded[f.name] for f in contract.features])[::step] if rows else np.empty((0, 0))
    return Reference(
        columns={f.name: _column(f, coded[f.name]) for f in contract.features},
        score=_numeric(answers),
        loss_mean=float(loss.mean()) if loss is not None and rows else None,
        loss_sd=float(loss.std()) if loss is not None and rows else None,
        loss_rows=rows if loss is not None else 0,
        loss_blocks=_block_means(loss, blocks) if loss is not None else (),
        loss_block_ms=block_ms,
        column_blocks={name: _block_means(values, blocks) for name, values in transforms.items()}
        if blocks
        else {},
        sample=tuple(tuple(None if math.isnan(value) else float(value) for value in row) for row in matrix),
    )


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


def mid_ranks(values: Floats) -> Floats:
    """Empirical distribution function at each value, ties in the middle: mean 1/2 over the reference itself; NaN stays."""
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return np.full(len(values), np.nan)
    below = np.searchsorted(known, values, "left")
    upto = np.searchsorted(known, values, "right")
    return np.where(np.isnan(values), np.nan, (below + upto) / (2.0 * len(known)))


def time_blocks(event_ms: NDArray[np.int64], block_ms: int) -> list[NDArray[np.int64]]:
    """Row positions of each block of event time, in time order, nearly empty blocks left out."""
    number = np.asarray(event_ms, np.int64) // block_ms
    blocks = [np.flatnonzero(number == value) for value in np.unique(number)]
    least = _BLOCK_SHARE_MIN * float(np.median([len(block) for block in blocks])) if blocks else 0.0
    return [block for block in blocks if len(block) >= least]


def _block_means(values: Floats, blocks: list[NDArray[np.int64]]) -> tuple[float, ...]:
    means = []
    for block in blocks:
        known = values[block][~np.isnan(values[block])]
        if len(known):
            means.append(float(known.mean()))
    return tuple(means)


def _column(feature: Feature, coded: Floats) -> ColumnReference:
    if feature.kind == "numeric":
        return _numeric(coded)
    known = coded[~np.isnan(coded)].astype(np.int64)
    counts = np.bincount(known, minlength=len(feature.categories) + 1)
    shares = counts / max(1, len(known))
    return ColumnReference(
        rows=len(known), missing=_missing(coded), shares=tuple(float(share) for share in shares)
    )


def _numeric(values: Floats) -> ColumnReference:
    known = values[~np.isnan(values)]
    if not len(known):
        return ColumnReference(rows=0, missing=_missing(values))
    quantiles = np.quantile(known, np.linspace(0.0, 1.0, QUANTILES))
    return ColumnReference(
        rows=len(known),
        missing=_missing(values),
        quantiles=tuple(float(value) for value in quantiles),
        mean=float(known.mean()),
        sd=float(known.std()),
    )


def _missing(values: Floats) -> float:
    return float(np.isnan(values).mean()) if len(values) else 0.0


def _null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
