"""What a model version consists of, and what is said of it: data alone, so that the registry can be about keeping it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.contracts import Reference
from schemas.errors import RegistryError

GOLDEN_SCHEMA = 1
#: Outputs of the same version on the same rows may differ by this much between processors; more is another model.
GOLDEN_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Golden:
    """Input rows as callers send them, and the scores, shape ``(n,)``, recorded for them at registration."""

    inputs: tuple[Mapping[str, Any], ...]
    scores: tuple[float, ...]

    def agrees(self, scores: Sequence[float] | NDArray[Any], tolerance: float = GOLDEN_TOLERANCE) -> bool:
        """Whether ``scores`` equal those on record within ``tolerance``; NaN and a wrong length never do."""
        answered = np.asarray(scores, np.float64)
        if len(answered) != len(self.scores):
            return False
        return bool(np.all(np.abs(answered - np.asarray(self.scores)) <= tolerance))

    def to_json(self) -> str:
        """Text form, canonical."""
        return canonical(
            {
                "schema": GOLDEN_SCHEMA,
                "inputs": [dict(row) for row in self.inputs],
                "scores": list(self.scores),
            }
        )

    @staticmethod
    def from_json(text: str) -> Golden:
        """Inverse of :meth:`to_json`. Raises RegistryError."""
        try:
            data = json.loads(text)
            if data["schema"] != GOLDEN_SCHEMA:
                raise RegistryError(f"golden set of schema {data['schema']}, this code reads {GOLDEN_SCHEMA}")
            return Golden(tuple(data["inputs"]), tuple(float(s) for s in data["scores"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"golden set cannot be read: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Artifact:
    """What one version consists of. ``encoder_json`` is :meth:`deploy.training.features.Encoder.to_json`; ``notes`` are
    further files by name, text for people and audits: how the data was chosen, how the version was judged."""

    onnx: bytes
    encoder_json: str
    golden: Golden
    reference: Reference
    card: str
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version came from. ``cause`` is the request id or person that asked for it."""

    parent: str | None = None
    snapshot: str | None = None
    trained_from_ms: int | None = None
    trained_to_ms: int | None = None
    cause: str = ""
    created_event_ms: int = 0
    risk: Literal["low", "medium", "high"] = "low"
    code: str = ""


#: Different people who must have approved a version of each risk tier before it may get traffic.
APPROVALS_NEEDED: Mapping[str, int] = {"low": 0, "medium": 1, "high": 2}


@dataclass(frozen=True, slots=True)
class Approval:
    """Somebody's word for one digest, signed by the key of the machine it was given on; ``at_ms`` is wall-clock time."""

    by: str
    at_ms: int
    sha256: str
    reason: str = ""
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class ContractLink:
    """What a version was registered against. ``features``: (name, kind) in the order of the contract."""

    revision: int
    hash: str
    features: tuple[tuple[str, str], ...]
    purpose: str = ""
    owner: str = ""
    threshold: float = 0.5
    code: str = ""


def feature_difference(have: Sequence[tuple[str, str]], wanted: Sequence[tuple[str, str]]) -> str | None:
    """How a version's features (name, kind) differ from a contract's, in words; None when they do not."""
    mine, theirs = dict(have), dict(wanted)
    parts = []
    if missing := [name for name in theirs if name not in mine]:
        parts.append(f"the version lacks {', '.join(missing)}")
    if extra := [name for name in mine if name not in theirs]:
        parts.append(f"the contract lacks {', '.join(extra)}")
    parts += [
        f"{name} is {mine[name]} in the version and {kind} in the contract"
        for name, kind in theirs.items()
        if name in mine and mine[name] != kind
    ]
    if not parts and [name for name, _ in have] != [name for name, _ in wanted]:
        parts.append(f"the order is {', '.join(mine)} in the version and {', '.join(theirs)} in the contract")
    return "; ".join(parts) or None


def canonical(data: Any) -> str:
    """JSON of which equal data have equal bytes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))
