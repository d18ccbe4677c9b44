"""The smoke test: a version answers the requests recorded with it before it answers anybody else's.

It runs in the controller on the CPU, through the same encoder and model file that a scorer would load.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from deploy.registry import Artifact
from deploy.training.features import Encoder
from schemas.rollout import Smoke

_TIMED_ROWS = 20


def smoke(artifact: Artifact, rules: Smoke, clock_ms: Callable[[], float]) -> str | None:
    """Why the version fails its recorded requests, or None. ``clock_ms``: any monotonic clock."""
    golden = artifact.golden
    if not golden.inputs:
        return "it has no recorded requests to be tried on: register it with a golden set"
    try:
        import onnxruntime

        session = onnxruntime.InferenceSession(artifact.onnx, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        matrix = Encoder.from_json(artifact.encoder_json).encode_rows(golden.inputs)

        def run(rows: Any) -> Any:
            return np.asarray(session.run(None, {name: rows})[0], np.float64).reshape(len(rows), -1)[:, -1]

        scores = run(matrix)
        took = []
        for at in range(min(_TIMED_ROWS, len(matrix))):
            started = clock_ms()
            run(matrix[at : at + 1])
            took.append(clock_ms() - started)
    except Exception as error:  # noqa: BLE001 - whatever a model does, it does not get traffic
        return f"its smoke test broke: {type(error).__name__}: {error}"
    if not np.all(np.isfinite(scores)):
        return f"{int(np.sum(~np.isfinite(scores)))} of {len(scores)} smoke test outputs are not finite"
    if scores.min() < 0 or scores.max() > 1:
        return f"smoke test outputs reach from {scores.min():.4g} to {scores.max():.4g}, not within 0 and 1"
    if not golden.agrees(scores, rules.tolerance):
        worst = float(np.max(np.abs(scores - np.asarray(golden.scores))))
        return f"its smoke test outputs differ from those on record by up to {worst:.3g}"
    median = statistics.median(took)
    if rules.latency_max and median > rules.latency_max:
        return f"a smoke test request takes {median:.0f} ms, at most {rules.latency_max} are allowed"
    return None
