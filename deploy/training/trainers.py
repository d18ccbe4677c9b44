"""Trainers by name: a snapshot and a contract in, a trained model out. Adding one is a function and a line."""

from __future__ import annotations

from collections.abc import Callable

from deploy.training.sklearn_trainer import TrainedModel, train
from deploy.training.snapshot import Snapshot
from schemas.contracts import ModelContract
from schemas.errors import ConfigurationError

Trainer = Callable[[Snapshot, ModelContract], TrainedModel]


def train_sklearn(snapshot: Snapshot, contract: ModelContract) -> TrainedModel:
    """Gradient-boosted trees. Raises TrainingError."""
    return train(
        snapshot.table,
        snapshot.labels,
        features=contract.feature_names,
        categorical=[f.name for f in contract.features if f.kind == "categorical"],
        event_ms=snapshot.event_ms,
        holdout_share=contract.training.holdout,
        seed=contract.training.seed,
    )


TRAINERS: dict[str, Trainer] = {"sklearn": train_sklearn}


def trainer_for(contract: ModelContract) -> Trainer:
    """The trainer the contract names. Raises ConfigurationError."""
    try:
        return TRAINERS[contract.training.trainer]
    except KeyError:
        raise ConfigurationError(
            f"contract {contract.model}: training.trainer {contract.training.trainer!r} is not one of {sorted(TRAINERS)}"
        ) from None
