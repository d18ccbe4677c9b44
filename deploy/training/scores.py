"""Answers of an exported model, and how good answers are: what every trainer's models are measured by alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import TrainingError

#: The names under which a model file reads its rows and gives its scores.
ONNX_INPUT = "features"
ONNX_OUTPUT = "score"


def score(onnx: bytes, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores ``(n,)`` of a ``(n, features)`` matrix of encoded rows, on one CPU thread; opens a session each call.

    Raises TrainingError when the file cannot be run, has another input or output, or answers what is no probability.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        answers = np.asarray(session.run([ONNX_OUTPUT], {ONNX_INPUT: matrix})[0], np.float32)
    except Exception as error:  # ONNX Runtime raises classes of its own that share no base
        raise TrainingError(
            f"the trained model cannot be run: {error}; it must read `{ONNX_INPUT}` float32 [n, {matrix.shape[1]}] and "
            f"answer `{ONNX_OUTPUT}` float32 [n]"
        ) from error
    if answers.shape != (len(matrix),):
        raise TrainingError(
            f"the trained model answers {answers.shape} for {len(matrix)} rows: one score a row is needed"
        )
    if not (np.isfinite(answers).all() and (not len(answers) or (answers.min() >= 0 and answers.max() <= 1))):
        raise TrainingError(
            "the trained model answers outside [0, 1], or not a number: a score is P(label 1)"
        )
    return answers


def log_loss(labels: NDArray[Any], scores: NDArray[Any], clip: float = 1e-6) -> float:
    """Mean negative log likelihood in nats, scores kept ``clip`` away from 0 and 1."""
    p = np.clip(np.asarray(scores, dtype=np.float64), clip, 1.0 - clip)
    return float(-np.mean(np.where(labels == 1, np.log(p), np.log1p(-p))))


def brier(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """Mean squared difference of score and label, in [0, 1]."""
    return float(np.mean((np.asarray(scores, dtype=np.float64) - labels) ** 2))


def auc(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """Area under the ROC curve (ties count half); NaN if only one label occurs."""
    positive = np.asarray(labels) == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if ones == 0 or zeros == 0:
        return float("nan")
    _, rank_of, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0
    return float((mean_rank[rank_of][positive].sum() - ones * (ones + 1) / 2.0) / (ones * zeros))


def auc_error(area: float, ones: int, zeros: int) -> float:
    """Standard error of an AUC (Hanley and McNeil 1982, Radiology 143)."""
    q1, q2 = area / (2.0 - area), 2.0 * area**2 / (1.0 + area)
    variance = area * (1.0 - area) + (ones - 1) * (q1 - area**2) + (zeros - 1) * (q2 - area**2)
    return float(np.sqrt(max(0.0, variance) / (ones * zeros)))
