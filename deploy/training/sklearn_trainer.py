"""Trains a gradient-boosted classifier on a labelled snapshot and hands back ONNX: pure, seeded, no files, no clock.

The held-out span is the latest part of the snapshot, because a model is judged on the future and not on its
neighbours. Whether older rows should count less is decided on that span too: each half-life offered is tried and the
one with the best log loss is kept. The exported model must give the trained one's answers, or training fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.training.features import Encoder, Table, fit_encoder
from deploy.training.onnx_export import ONNX_INPUT, ONNX_OUTPUT, boosted_trees_to_onnx
from schemas.errors import TrainingError

DAY_MS = 86_400_000
ONNX_TOLERANCE = 1e-5
_TREES, _LEAVES, _LEARNING_RATE, _LEAF_ROWS = 80, 15, 0.1, 100
_BINS = 127
_PARITY_ROWS = 2_000
_ROWS_MIN = 200

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainedModel:
    """One trained version, ready to be registered.

    ``onnx``: the model file; input ``features`` float32 ``[n, k]``, output ``score`` float32 ``[n]`` = P(label 1).
    ``encoder``: how named columns become that matrix. ``metrics``: plain numbers for the model card, from the held-out
    span unless the name says otherwise. ``reference``: held-out columns plus ``score`` and ``label``, in time order:
    what monitoring compares with. ``golden`` / ``golden_scores``: encoded rows and their answers, for the proof that a
    restored version still computes the same.
    """

    onnx: bytes
    encoder: Encoder
    metrics: Mapping[str, float]
    reference: Mapping[str, npt.NDArray[Any]]
    golden: npt.NDArray[np.float32]
    golden_scores: npt.NDArray[np.float32]


def train(
    table: Table,
    labels: npt.NDArray[Any],
    weights: Floats | None = None,
    *,
    features: Sequence[str],
    categorical: Sequence[str],
    event_ms: npt.NDArray[np.int64] | None = None,
    half_lives_days: Sequence[float | None] = (None, 21.0),
    holdout_share: float = 0.2,
    golden_rows: int = 64,
    seed: int = 0,
) -> TrainedModel:
    """Train, validate on the latest ``holdout_share`` of rows, then refit on all rows and export.

    ``labels`` 0 or 1, one a row. ``weights`` positive, one a row (default 1). ``event_ms`` orders the rows in time and
    is what half-lives need; without it the rows are taken to be in order and are not weighted by age. A half-life of
    None means that age does not count. The reference scores are the *validation* model's, so they are honest
    out-of-sample answers; the shipped model has seen those rows.

    Raises ``TrainingError`` if there are too few rows, only one label, unequal lengths, or if the exported model's
    answers differ by more than 1e-5.
    """
    columns, labels, weights, event_ms = _in_time_order(table, labels, weights, event_ms, features)
    held_out = max(1, round(len(labels) * holdout_share))
    early, late = slice(0, len(labels) - held_out), slice(len(labels) - held_out, None)
    _check_labels(labels[early])
    encoder = fit_encoder(_part(columns, early), labels[early], features=features, categorical=categorical)
    matrix = encoder.encode(columns)

    best_loss, best_half_life, best_scores = np.inf, None, np.empty(0)
    for half_life in half_lives_days if event_ms is not None else (None,):
        model = _fit(
            matrix[early], labels[early], weights[early] * _age_weights(event_ms, early, half_life), seed
        )
        scores = model.predict_proba(matrix[late])[:, 1]
        loss = log_loss(labels[late], scores)
        if loss < best_loss:
            best_loss, best_half_life, best_scores = loss, half_life, scores

    encoder = fit_encoder(columns, labels, features=features, categorical=categorical)
    matrix = encoder.encode(columns)
    everything = slice(0, None)
    final = _fit(matrix, labels, weights * _age_weights(event_ms, everything, best_half_life), seed)
    onnx = boosted_trees_to_onnx(final, len(features))
    rng = np.random.default_rng(seed)
    probe = matrix[rng.choice(len(matrix), min(_PARITY_ROWS, len(matrix)), replace=False)]
    parity = _check_parity(onnx, final, probe)
    golden = probe[:golden_rows]

    base_rate = float(labels[early].mean())
    metrics = {
        "rows": float(len(labels)),
        "holdout_rows": float(held_out),
        "log_loss": best_loss,
        "log_loss_base_rate": log_loss(labels[late], np.full(held_out, base_rate)),
        "brier": brier(labels[late], best_scores),
        "auc": auc(labels[late], best_scores),
        "positive_share_train": float(labels.mean()),
        "positive_share_holdout": float(labels[late].mean()),
        "half_life_days": best_half_life if best_half_life is not None else float("inf"),
        "onnx_difference_max": parity,
    }
    reference = {**_part(columns, late), "score": best_scores.astype(np.float32), "label": labels[late]}
    if event_ms is not None:
        reference["event_ms"] = event_ms[late]
    return TrainedModel(onnx, encoder, metrics, reference, golden, score(onnx, golden))


def score(onnx: bytes, matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Answers of an exported model for encoded rows, on one CPU thread; opens a session each call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([ONNX_OUTPUT], {ONNX_INPUT: matrix})[0], dtype=np.float32)


def log_loss(labels: npt.NDArray[Any], scores: npt.NDArray[Any], clip: float = 1e-6) -> float:
    """Mean negative log likelihood in nats, scores kept ``clip`` away from 0 and 1."""
    p = np.clip(np.asarray(scores, dtype=np.float64), clip, 1.0 - clip)
    return float(-np.mean(np.where(labels == 1, np.log(p), np.log1p(-p))))


def brier(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Mean squared difference of score and label, in [0, 1]."""
    return float(np.mean((np.asarray(scores, dtype=np.float64) - labels) ** 2))


def auc(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Area under the ROC curve (ties count half); NaN if only one label occurs."""
    positive = np.asarray(labels) == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if ones == 0 or zeros == 0:
        return float("nan")
    _, rank_of, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0
    return float((mean_rank[rank_of][positive].sum() - ones * (ones + 1) / 2.0) / (ones * zeros))


def _fit(matrix: npt.NDArray[np.float32], labels: npt.NDArray[Any], weights: Floats, seed: int) -> Any:
    """Fit on rows repeated in proportion to their weights.

    The library's own weighted binning took five times as long as growing all the trees. Systematic resampling gives
    each row its expected number of copies, rounded up or down, and costs nothing.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    if not np.all(weights == weights[0]):
        mass = np.cumsum(weights)
        points = (np.arange(len(weights)) + np.random.default_rng(seed).random()) * (mass[-1] / len(weights))
        chosen = np.minimum(np.searchsorted(mass, points, side="right"), len(weights) - 1)
        matrix, labels = matrix[chosen], labels[chosen]
    return HistGradientBoostingClassifier(
        max_iter=_TREES,
        max_leaf_nodes=_LEAVES,
        max_bins=_BINS,
        learning_rate=_LEARNING_RATE,
        min_samples_leaf=min(_LEAF_ROWS, max(5, len(labels) // 100)),
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    ).fit(matrix, labels)


def _age_weights(event_ms: npt.NDArray[np.int64] | None, part: slice, half_life_days: float | None) -> Any:
    if event_ms is None or half_life_days is None:
        return 1.0
    age_days = (event_ms[part].max() - event_ms[part]) / DAY_MS
    return np.exp2(-age_days / half_life_days)


def _check_labels(labels: npt.NDArray[Any]) -> None:
    seen = set(np.unique(labels).tolist())
    if len(labels) < _ROWS_MIN or seen != {0, 1}:
        raise TrainingError(
            f"training rows have labels {sorted(seen)} over {len(labels)} rows: "
            f"at least {_ROWS_MIN} rows with both 0 and 1 are needed; take a longer snapshot"
        )


def _check_parity(onnx: bytes, model: Any, probe: npt.NDArray[np.float32]) -> float:
    worst = float(np.max(np.abs(score(onnx, probe) - model.predict_proba(probe)[:, 1])))
    if not worst <= ONNX_TOLERANCE:
        raise TrainingError(
            f"the exported model differs from the trained one by {worst:.2g} (at most {ONNX_TOLERANCE:g} is allowed): "
            "do not register it; the converter does not support this model"
        )
    return worst


def _in_time_order(
    table: Table,
    labels: npt.NDArray[Any],
    weights: Floats | None,
    event_ms: npt.NDArray[np.int64] | None,
    features: Sequence[str],
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.int8], Floats, npt.NDArray[np.int64] | None]:
    rows = len(labels)
    columns = {name: np.asarray(table[name]) for name in features if name in table}
    weights = np.ones(rows) if weights is None else np.asarray(weights, dtype=np.float64)
    lengths = {len(weights), *(len(column) for column in columns.values())}
    if event_ms is not None:
        lengths.add(len(event_ms))
    if lengths != {rows} or len(columns) != len(features):
        raise TrainingError(
            f"snapshot columns do not match {rows} labels (missing or of lengths {sorted(lengths)})"
        )
    if rows and not (np.all(np.isfinite(weights)) and weights.min() > 0):
        raise TrainingError("weights must be finite and positive: drop rows that should not count")
    labels = np.asarray(labels).astype(np.int8)
    if event_ms is None:
        return columns, labels, weights, None
    order = np.argsort(event_ms, kind="stable")
    return (
        {name: column[order] for name, column in columns.items()},
        labels[order],
        weights[order],
        event_ms[order],
    )


def _part(columns: Table, part: slice) -> dict[str, npt.NDArray[Any]]:
    return {name: column[part] for name, column in columns.items()}
