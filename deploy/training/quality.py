"""Is this snapshot fit to learn from? Refusals before a minute of training is spent, each with its reason. Pure.

A retrain is asked for by a machine, so the data it would learn from gets the distrust a person would have: too few
rows, one class only, a source that sends the same row again and again, values the contract does not know, labels that
turn over from one week to the next.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.training.snapshot import Snapshot
from schemas.contracts import Feature, ModelContract
from schemas.reference import code_column


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest shares a snapshot may have. ``label_step_max``: the largest difference of the positive share between two
    neighbouring fifths of the snapshot."""

    duplicates_max: float = 0.2
    out_of_contract_max: float = 0.2
    missing_max: float = 0.5
    label_step_max: float = 0.35


_PARTS = 5


def refusals(snapshot: Snapshot, contract: ModelContract, limits: Limits | None = None) -> list[str]:
    """Why ``snapshot`` must not be learnt from; empty when it may."""
    limits = limits or Limits()
    rows = len(snapshot)
    if rows < contract.training.rows_min:
        return [f"{rows} labelled rows, at least {contract.training.rows_min} are needed (training.rows_min)"]
    found = []
    positive = float(snapshot.labels.mean())
    if positive in (0.0, 1.0):
        found.append(f"all {rows} labels are {int(positive)}: a classifier needs both")
    duplicates = 1.0 - len(set(_row_keys(snapshot))) / rows
    if duplicates > limits.duplicates_max:
        found.append(f"{duplicates:.1%} of rows repeat another row, at most {limits.duplicates_max:.0%} may")
    for feature in contract.features:
        outside, missing = _shares(feature, snapshot.table[feature.name])
        if outside > limits.out_of_contract_max:
            found.append(
                f"feature {feature.name}: {outside:.1%} of values are outside the contract, "
                f"at most {limits.out_of_contract_max:.0%} may be"
            )
        if missing > limits.missing_max and not feature.nullable:
            found.append(f"feature {feature.name}: {missing:.1%} of values are missing")
    step = label_step(snapshot.labels)
    if step > limits.label_step_max:
        found.append(
            f"the share of positive labels jumps by {step:.2f} between neighbouring parts of the snapshot, "
            f"at most {limits.label_step_max} may be real: are labels flipped?"
        )
    return found


def label_step(labels: NDArray[np.int8]) -> float:
    """Largest difference of the positive share between neighbouring fifths of ``labels``, which are in time order."""
    shares = [float(part.mean()) for part in np.array_split(labels, _PARTS) if len(part)]
    return max((abs(b - a) for a, b in itertools.pairwise(shares)), default=0.0)


def _shares(feature: Feature, column: NDArray[Any]) -> tuple[float, float]:
    """Shares of values outside the contract and of missing values."""
    if feature.kind == "categorical":
        empty = np.array([value is None or value == "" for value in column])
        coded = code_column(feature, column)
        outside = (
            (coded == len(feature.categories)) & ~empty if feature.categories else np.zeros(len(column), bool)
        )
        return float(outside.mean()), float(empty.mean())
    values = np.asarray(column, np.float64)
    low = values < feature.low if feature.low is not None else np.zeros(len(values), bool)
    high = values > feature.high if feature.high is not None else np.zeros(len(values), bool)
    return float((low | high | np.isinf(values)).mean()), float(np.isnan(values).mean())


def _row_keys(snapshot: Snapshot) -> list[tuple[Any, ...]]:
    columns = [snapshot.event_ms.tolist(), snapshot.labels.tolist()]
    columns += [
        np.nan_to_num(c, nan=np.inf).tolist() if c.dtype.kind == "f" else c.tolist()
        for c in snapshot.table.values()
    ]
    return list(zip(*columns, strict=True))
