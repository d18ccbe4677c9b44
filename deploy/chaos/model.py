"""The synthetic models of a chaos run: what they are asked, what they answer, what turns out to be true.

Two models under one contract: ``chaos-direct`` is served elsewhere and only logs its predictions; ``chaos-scored`` is asked
through the scoring service. What is true is a coin whose bias is a known function of the features; when the drift comes
the coin turns over and a feature moves, so both models are confidently wrong from a known moment on.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.registry import Artifact, Lineage, Registry
from deploy.training.candidate import train
from deploy.training.packing import pack
from deploy.training.snapshot import Snapshot
from deploy.training.trainers import trainer_for
from schemas.contracts import ModelContract, ModelRecord, load_contract
from schemas.reference import reference_of

DIRECT, SCORED = "chaos-direct", "chaos-scored"
CONTRACT = Path(__file__).with_name("chaos.yaml")
NUMBERS = ("x0", "x1", "x2", "x3")
COUNTRIES = ("de", "fr", "it", "es")
TIERS = ("free", "paid")
NULLS = 0.05
#: How far ``x0`` moves when the drift comes.
SHIFT = 1.0
_WEIGHTS = {"x0": 1.3, "x1": -0.9, "x2": 0.5}
_ROWS = 10_000
_BLOCK_MS = 1_000
_ROW_MS = 4

Features = dict[str, Any]


def contracts() -> tuple[ModelContract, ModelContract]:
    """Of the direct model and of the scored one."""
    declared = load_contract(CONTRACT)
    direct, scored = (declared.model_copy(update={"model": name}) for name in (DIRECT, SCORED))
    return direct, scored


def draw(rng: random.Random, drifted: bool) -> Features:
    """The features of one request."""
    features: Features = {name: min(6.0, max(-6.0, rng.gauss(0.0, 1.0))) for name in NUMBERS}
    if drifted:
        features["x0"] = min(6.0, features["x0"] + SHIFT)
    if rng.random() < NULLS:
        features["x3"] = None
    # A category nobody declared counts under "other".
    features["country"] = "mars" if rng.random() < 0.01 else rng.choice(COUNTRIES)
    features["tier"] = None if rng.random() < NULLS else rng.choice(TIERS)
    return features


def bias(features: Features) -> float:
    """Chance of a 1 before the drift; the direct model's answer at all times."""
    at = sum(weight * features[name] for name, weight in _WEIGHTS.items())
    return 1.0 / (1.0 + math.exp(-at))


def truth(rng: random.Random, features: Features, drifted: bool) -> float:
    """The outcome of one request."""
    chance = bias(features)
    return float(rng.random() < (1.0 - chance if drifted else chance))


def first_versions(registry: Registry, seed: int, now_ms: int) -> list[ModelRecord]:
    """Contracts, and version 1 of each model, trained on rows of before the drift and registered."""
    rng = random.Random(seed)
    rows = [draw(rng, False) for _ in range(_ROWS)]
    labels = np.array([truth(rng, row, False) for row in rows], np.int8)
    event_ms = now_ms - _ROW_MS * np.arange(_ROWS, 0, -1, dtype=np.int64)
    direct, scored = contracts()
    table = {name: _column([row[name] for row in rows]) for name in direct.feature_names}
    rules = direct.training.model_copy(update={"weightings": ("uniform",), "holdout": 0.5, "seed": seed})
    once = direct.model_copy(update={"training": rules})
    trained = train(Snapshot.of(table, labels, event_ms), once, trainer_for(once))
    held_out = trained.reference
    records = []
    for contract in (direct, scored):
        scores: NDArray[Any] = held_out["score"]
        if contract is direct:
            scores = np.array([bias(row) for row in rows[-len(scores) :]])
        reference = reference_of(
            held_out,
            scores,
            contract,
            labels=held_out["label"],
            event_ms=held_out["event_ms"],
            block_ms=_BLOCK_MS,
        )
        packed = pack(trained, contract)
        artifact = Artifact(packed.onnx, packed.encoder_json, packed.golden, reference, packed.card)
        version = registry.register(
            contract,
            artifact,
            Lineage(cause="chaos", created_event_ms=now_ms),
            metrics=trained.metrics,
            version="1",
        )
        records += [ModelRecord(contract=contract), ModelRecord(version=version)]
    return records


def _column(values: list[Any]) -> NDArray[Any]:
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else value for value in values], dtype=object)
    return np.array([math.nan if value is None else value for value in values])
