"""Facts as they stand in a log: bytes with an address. Checked as they are, so that nothing is lost in reading them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from schemas.control import Deployment
from schemas.record import Head


@dataclass(frozen=True)
class LoggedFact:
    """One record of ``decisions``. ``key`` None where the source keeps no keys."""

    address: str
    value: bytes
    key: bytes | None = None

    @cached_property
    def document(self) -> dict[str, Any]:
        """Its fields; none when it is no JSON object."""
        try:
            found = json.loads(self.value)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def model(self) -> str:
        """Of the fact, or of the record's key when the fact cannot be read."""
        return self.text("model") or (self.key or b"").decode(errors="replace")

    def text(self, name: str) -> str:
        """A field as text, empty when it is missing or none."""
        value = self.document.get(name)
        return "" if value is None else str(value)

    def number(self, name: str) -> int:
        """A whole number, 0 when the field holds something else."""
        value = self.document.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0


@dataclass(slots=True)
class Record:
    """All facts of the source in their order, and how long each model's deployment says the controller's chain is."""

    facts: list[LoggedFact] = field(default_factory=list)
    anchors: dict[str, Head] = field(default_factory=dict)

    def of(self, model: str) -> Record:
        """What is about one model."""
        anchors = {name: head for name, head in self.anchors.items() if name == model}
        return Record([fact for fact in self.facts if fact.model == model], anchors)


def anchors_of(deployments: Iterable[Deployment]) -> dict[str, Head]:
    """The longest chain that any revision of a model names."""
    found: dict[str, Head] = {}
    for deployment in deployments:
        if deployment.facts >= found.get(deployment.model, Head()).sequence:
            found[deployment.model] = Head(sequence=deployment.facts, digest=deployment.facts_head)
    return found
