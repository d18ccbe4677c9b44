"""The chain of facts: why a fact that is missing, changed or out of order cannot go unnoticed.

A signature proves who wrote a fact, and nothing about the facts that are not there. So each writer counts the facts it
records about a model and gives each the digest of the one before. Two services decide about a model (the policy stage and
the controller), and neither waits for the other: each keeps a chain of its own, and the controller's facts name how far it
has read the others' (``witnessed``), its deployments how long its own is (``Deployment.facts``).

The digest leaves out the signature and ``recorded_ms``: what remains is a function of the input, so a chain that is made
again after a crash is the same chain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.control import Decision, canonical
from schemas.ids import content_hash

CONTROLLER = "controller"
POLICY = "policy"
_MOMENTARY = ("recorded_ms",)


class Head(BaseModel):
    """The end of a chain: how many facts it has, and the digest of the last."""

    model_config = ConfigDict(frozen=True)

    sequence: int = 0
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.sequence}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Inverse of ``str``. Raises ValueError when the text is not one."""
        sequence, _, digest = text.partition(":")
        return cls(sequence=int(sequence), digest=digest)


def link(fact: Decision, writer: str, head: Head) -> Decision:
    """``fact`` as the next of ``writer``'s chain after ``head``; not signed yet."""
    place = {"writer": writer, "sequence": head.sequence + 1, "previous": head.digest}
    return fact.model_copy(update=place)


def head_of(fact: Decision) -> Head:
    """The chain's end when ``fact`` is its last."""
    return Head(sequence=fact.sequence, digest=digest(fact))


def digest(fact: Decision) -> str:
    """Hex SHA-256 of what the chain covers of a fact."""
    return document_digest(json.loads(fact.model_dump_json()))


def document_digest(document: Mapping[str, Any]) -> str:
    """The same of a fact as it stands in the log."""
    return content_hash(canonical({k: v for k, v in document.items() if k not in _MOMENTARY}))
