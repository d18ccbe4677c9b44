"""Trainers are plug-ins: a package offers a factory under the entry point group ``driftline.trainers``.

A trainer fits once, on the rows it is handed, and gives back a file and an encoding. What must be the same for all of them
is not theirs: choosing rows and weights, keeping the latest span apart, judging, comparing, registering. ``README.md``
beside this file says how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.training.features import Encoder, Table
from schemas.contracts import ModelContract
from schemas.errors import ConfigurationError
from schemas.settings import TrainerSection

GROUP = "driftline.trainers"


@dataclass(frozen=True, slots=True)
class Job:
    """One fit. ``n`` rows in time order: raw columns ``(n,)`` by feature, ``labels`` 0 or 1, ``weights`` positive.

    ``cancelled`` says that nobody waits any more; a trainer that takes long asks it now and then and raises ``Cancelled``.
    """

    contract: ModelContract
    table: Table
    labels: NDArray[np.int8]
    weights: NDArray[np.float64]
    event_ms: NDArray[np.int64]
    cancelled: Callable[[], bool] = lambda: False

    @property
    def options(self) -> Mapping[str, Any]:
        """What the contract's owner says to this trainer: ``training.options``."""
        return self.contract.training.options

    @property
    def categorical(self) -> list[str]:
        """Features that are text."""
        return [feature.name for feature in self.contract.features if feature.kind == "categorical"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came of a fit. ``onnx``: input ``features`` float32 ``[n, k]`` as ``encoder`` makes it, NaN where a number is
    missing; output ``score`` float32 ``[n]`` = P(label 1). ``metrics``: the trainer's own, for the card."""

    onnx: bytes
    encoder: Encoder
    metrics: Mapping[str, float] = field(default_factory=dict)


class Cancelled(Exception):
    """The trainer process was told to end while a fit was under way."""


class Trainer(Protocol):
    """Fits a model. The same job must give the same bytes. Raises TrainingError when the rows cannot be learnt from."""

    def __call__(self, job: Job, /) -> Fitted: ...


#: What an entry point names: made once for a request, from the trainer process's own settings.
Factory = Callable[[TrainerSection], Trainer]


def trainer_for(contract: ModelContract, settings: TrainerSection | None = None) -> Trainer:
    """The trainer that the contract names. Raises ConfigurationError when it is not installed, is there twice, or cannot
    be imported."""
    name = contract.training.trainer
    found = entry_points(group=GROUP)
    matching = [point for point in found if point.name == name]
    if len({point.value for point in matching}) > 1:
        raise ConfigurationError(
            f"two packages offer a trainer {name!r} ({', '.join(sorted(p.value for p in matching))}): uninstall one"
        )
    if not matching:
        raise ConfigurationError(
            f"contract {contract.model}: training.trainer {name!r} is not installed; there are: "
            f"{', '.join(sorted(found.names)) or 'none (is driftline itself installed?)'}"
        )
    try:
        factory: Factory = matching[0].load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"trainer {name!r} ({matching[0].value}) cannot be imported: {error}"
        ) from error
    return factory(settings or TrainerSection())
