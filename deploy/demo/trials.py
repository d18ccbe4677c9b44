"""Why: a strategy is believed when it has let a good version through and kept a bad one out, on data nobody made up.

A trial is one strategy and one candidate for the flights. Version 1 is a small first model; the candidate learnt from the
same two months with the shipped trainer's own settings, and is better. The bad one is that very model behind a pipeline
that takes the departure hour in UTC where it learnt local time: it loads, answers in time, and is wrong more often.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import yaml

from deploy.demo.flights import DAY_MS, HOUR_MS, Flights, month_start_ms
from deploy.demo.operator import UTC_AHEAD_HOURS
from deploy.registry import Lineage, Registry
from deploy.training.candidate import TrainedModel, train
from deploy.training.packing import pack
from deploy.training.snapshot import Snapshot
from deploy.training.trainers import trainer_for
from schemas.contracts import ModelContract, ModelRecord, load_contract
from schemas.errors import ConfigurationError
from schemas.rollout import Rollout

Strategy = Literal["canary", "shadow", "blue-green", "ab", "dark"]
Quality = Literal["good", "bad"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
QUALITIES: tuple[Quality, ...] = get_args(Quality)
STABLE, CANDIDATE = "1", "2"

#: Both versions learn from July and August; days begin at 08:00 UTC, the quietest hour in New York.
TRAINED_FROM_MS = month_start_ms(7)
BEGIN_MS = month_start_ms(9) // DAY_MS * DAY_MS + 8 * HOUR_MS
#: The candidate is deployed after so long with version 1 alone.
ALONE_MS = 12 * HOUR_MS
#: A first model of few, small trees.
SMALL = {"trees": 5, "leaves": 4}

_CONTRACT = Path(__file__).with_name("flights.yaml")
_ROLLOUTS = Path(__file__).with_name("strategies.yaml")


@dataclass(frozen=True, slots=True)
class Trial:
    """One strategy, one candidate."""

    strategy: Strategy
    candidate: Quality

    @staticmethod
    def named(strategy: str | None, candidate: str | None) -> Trial:
        """The trial of these names. Raises ConfigurationError that lists what there is."""
        for name in STRATEGIES:
            for quality in QUALITIES:
                if (name, quality) == (strategy, candidate):
                    return Trial(name, quality)
        raise ConfigurationError(
            f"--strategy {strategy} --candidate {candidate}: a trial has one of the strategies {', '.join(STRATEGIES)} "
            f"and a candidate that is {' or '.join(QUALITIES)}"
        )

    @property
    def model(self) -> str:
        """Its name on every topic."""
        return f"flights-{self.strategy}-{self.candidate}"

    @property
    def expected(self) -> str:
        """How it ends if the strategy does its work; a dark launch compares nothing, so it can only stop."""
        if self.strategy == "dark":
            return "stopped"
        return "promoted" if self.candidate == "good" else "rolled-back"

    def contract(self) -> ModelContract:
        """The contract of the year's flights with this strategy, and of its detectors the one that judges candidates."""
        base = load_contract(_CONTRACT)
        judges = tuple(d for d in base.monitoring.detectors if d.stream == "comparison")
        rules = tuple(rule for rule in base.policy.rules if "comparison" in rule.families)
        return base.model_copy(
            update={
                "model": self.model,
                "monitoring": base.monitoring.model_copy(update={"detectors": judges}),
                "policy": base.policy.model_copy(update={"rules": rules}),
                "rollout": rollouts()[self.strategy],
                "training": base.training.model_copy(update={"weightings": ("uniform",)}),
            }
        )


def rollouts() -> dict[str, Rollout]:
    """The shipped rollout of each strategy."""
    return {
        name: Rollout.model_validate(text) for name, text in yaml.safe_load(_ROLLOUTS.read_text()).items()
    }


@dataclass(frozen=True, slots=True)
class Trained:
    """The models of all trials. ``snapshot``: the content hash of what they learnt from."""

    small: TrainedModel
    good: TrainedModel
    snapshot: str

    def candidate(self, quality: Quality) -> TrainedModel:
        """What the candidate is, defect included."""
        if quality == "good":
            return self.good
        return replace(self.good, encoder=self.good.encoder.with_hour_shift(UTC_AHEAD_HOURS))


def train_models(flights: Flights) -> Trained:
    """Learn from July and August, as far as their labels were known when the replay begins."""
    contract = Trial("canary", "good").contract()
    past = flights.between(TRAINED_FROM_MS, BEGIN_MS)
    past = past.rows(past.label_known_by(BEGIN_MS))
    snapshot = Snapshot.of(past.features, past.late, past.departs_ms, prediction_ids=past.flight_id)
    little = contract.model_copy(update={"training": contract.training.model_copy(update={"options": SMALL})})
    trainer = trainer_for(contract)
    return Trained(
        train(snapshot, little, trainer), train(snapshot, contract, trainer), snapshot.content_hash()
    )


def register(registry: Registry, trial: Trial, trained: Trained) -> list[ModelRecord]:
    """Contract, version 1 and the candidate, as they are to be announced on `models`."""
    contract = trial.contract()
    records = [ModelRecord(contract=contract)]
    for parent, model in ((None, trained.small), (STABLE, trained.candidate(trial.candidate))):
        lineage = Lineage(parent=parent, snapshot=trained.snapshot, cause="trial", created_event_ms=BEGIN_MS)
        version = registry.register(contract, pack(model, contract), lineage, metrics=model.metrics)
        records.append(ModelRecord(version=version))
    return records
