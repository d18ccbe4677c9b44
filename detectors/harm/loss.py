"""What detectors read of the loss stream: scores, labels, and the losses they make. One place, so all mean the same.

>>> import numpy as np
>>> [round(x, 4) for x in log_loss(np.array([0.9, 0.9, 0.0]), np.array([1.0, 0.0, 1.0])).tolist()]
[0.1054, 2.3026, 13.8155]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.base import Context
from schemas.errors import ConfigurationError

Floats = NDArray[np.float64]
#: Scores are kept this far from 0 and 1 where a logarithm is taken, as in the reference's own losses.
SCORE_CLIP = 1e-6


def score_and_label(context: Context) -> tuple[int, int]:
    """Places of both among the stream's columns. Raises ConfigurationError when one was left out."""
    try:
        return context.columns.index("score"), context.columns.index("label")
    except ValueError:
        raise ConfigurationError(
            f"it reads score and label of stream {context.stream}, but gets {', '.join(context.columns)}: "
            "leave `columns` out"
        ) from None


def answered(score: Floats, label: Floats) -> NDArray[np.bool_]:
    """Rows whose score is a probability and whose label is 0 or 1, shape ``(n,)``."""
    return np.asarray((score >= 0) & (score <= 1) & ((label == 0) | (label == 1)))


def log_loss(score: Floats, label: Floats) -> Floats:
    """Negative log likelihood in nats, shape ``(n,)``."""
    p = np.clip(np.where(label == 1, score, 1.0 - score), SCORE_CLIP, 1.0)
    return np.asarray(-np.log(p), np.float64)
