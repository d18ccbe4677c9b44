"""The trainer that ships: gradient-boosted trees of scikit-learn, handed over as ONNX. Seeded, no files, no clock.

The exported model must give the trained one's answers, or the fit fails.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.training.features import fit_encoder
from deploy.training.onnx_export import boosted_trees_to_onnx
from deploy.training.scores import score
from deploy.training.trainers import Fitted, Job, Trainer
from schemas.errors import ConfigurationError, TrainingError
from schemas.settings import TrainerSection

ONNX_TOLERANCE = 1e-5
#: ``training.options`` of a contract, and what they are when it does not say.
OPTIONS: dict[str, float] = {"trees": 80, "leaves": 15, "learning_rate": 0.1, "leaf_rows": 100}
_BINS = 127
_PARITY_ROWS = 2_000


def make(_settings: TrainerSection) -> Trainer:
    """The entry point ``sklearn``."""
    return fit


def fit(job: Job) -> Fitted:
    """Fit on all rows of ``job``. Raises TrainingError if the exported model's answers differ by more than 1e-5, and
    ConfigurationError for an option that is not in :data:`OPTIONS`."""
    if unknown := sorted(job.options.keys() - OPTIONS.keys()):
        raise ConfigurationError(
            f"contract {job.contract.model}: training.options {', '.join(unknown)} are not the sklearn trainer's; it takes "
            f"{', '.join(OPTIONS)}"
        )
    features, seed = job.contract.feature_names, job.contract.training.seed
    encoder = fit_encoder(job.table, job.labels, features=features, categorical=job.categorical)
    matrix = encoder.encode(job.table)
    model = _fit(matrix, job.labels, job.weights, OPTIONS | dict(job.options), seed)
    onnx = boosted_trees_to_onnx(model, len(features))
    chosen = np.random.default_rng(seed).choice(len(matrix), min(_PARITY_ROWS, len(matrix)), replace=False)
    probe = matrix[np.sort(chosen)]
    worst = float(np.max(np.abs(score(onnx, probe) - model.predict_proba(probe)[:, 1])))
    if not worst <= ONNX_TOLERANCE:
        raise TrainingError(
            f"the exported model differs from the trained one by {worst:.2g} (at most {ONNX_TOLERANCE:g} is allowed): "
            "do not register it; the converter does not support this model"
        )
    return Fitted(onnx, encoder, {"onnx_difference_max": worst})


def _fit(
    matrix: NDArray[np.float32],
    labels: NDArray[Any],
    weights: NDArray[np.float64],
    options: dict[str, float],
    seed: int,
) -> Any:
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
        max_iter=int(options["trees"]),
        max_leaf_nodes=int(options["leaves"]),
        max_bins=_BINS,
        learning_rate=float(options["learning_rate"]),
        min_samples_leaf=min(int(options["leaf_rows"]), max(5, len(labels) // 100)),
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    ).fit(matrix, labels)
