"""From a trained model to an artifact a registry takes: one way for the trainer, the demo and people.

Golden inputs are raw rows as callers send them, so that replaying them proves the encoder and the model together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.registry import Artifact, Golden
from deploy.training.candidate import TrainedModel
from deploy.training.scores import score
from schemas.contracts import ModelContract
from schemas.reference import reference_of

GOLDEN_ROWS = 64


def pack(
    trained: TrainedModel,
    contract: ModelContract,
    *,
    golden_rows: int = GOLDEN_ROWS,
    notes: Mapping[str, str] | None = None,
) -> Artifact:
    """Everything of ``trained`` that a version consists of. Golden outputs are the exported model's own."""
    held_out = trained.reference
    rows = len(held_out["score"])
    chosen = np.unique(np.linspace(0, rows - 1, min(golden_rows, rows)).astype(np.int64))
    inputs = tuple({name: _plain(held_out[name][at]) for name in contract.feature_names} for at in chosen)
    scores = score(trained.onnx, trained.encoder.encode_rows(inputs))
    reference = reference_of(
        held_out, held_out["score"], contract, labels=held_out["label"], event_ms=held_out.get("event_ms")
    )
    golden = Golden(inputs, tuple(float(value) for value in scores))
    return Artifact(
        trained.onnx, trained.encoder.to_json(), golden, reference, card(trained, contract), notes or {}
    )


def card(trained: TrainedModel, contract: ModelContract) -> str:
    """The model card: what the version is for, what it reads, how well it did on rows it had not seen."""
    lines = [f"# {contract.model}", "", contract.description or "(no description)", ""]
    lines += [
        f"- Owner: {contract.owner or '(none)'}",
        f"- Task: {contract.task}, threshold {contract.threshold}",
    ]
    lines += [
        f"- Features: {', '.join(contract.feature_names)}",
        "",
        "## Measured on the held-out, latest span",
        "",
    ]
    lines += [f"- {name}: {value:.6g}" for name, value in sorted(trained.metrics.items())]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """A numpy scalar as the JSON value a caller would send; NaN as null."""
    item = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(item, float) and math.isnan(item) else item


def describe(metrics: Mapping[str, float]) -> str:
    """Metrics in one line, for logs and reports."""
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
