"""Everything that is looked at before a version gets traffic: its bytes, its signature, its contract, its approvals, its
recorded requests. Each refusal is a sentence for the person who asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

from deploy.controller.patience import Patience
from deploy.controller.smoke import smoke
from deploy.core.gates import Approvals
from deploy.core.machine import Away
from deploy.registry import APPROVALS_NEEDED, Artifact, Registry
from schemas.contracts import ModelContract, ModelVersion
from schemas.errors import DriftlineError, StoreUnavailable

T = TypeVar("T")
log = logging.getLogger(__name__)
_PASSED_KEPT = 256


class Checks:
    """``find(model, version)``: what was announced on `models`, asked for anew if need be; ``contract(model)`` likewise.
    With ``patience`` a registry that is far away is not waited for longer than that."""

    def __init__(
        self,
        registry: Registry,
        find: Callable[[str, str], ModelVersion | None],
        contract: Callable[[str], ModelContract | None],
        patience: Patience | None = None,
    ) -> None:
        self._registry = registry
        self._find = find
        self._contract = contract
        self._patience = patience
        self._passed: dict[tuple[str, str], None] = {}

    def verify(self, model: str, version: str) -> str | None:
        """Every check there is: why the version must not get traffic, or None; Away when the registry does not answer."""
        return self._look(model, version, thorough=True)

    def intact(self, model: str, version: str) -> str | None:
        """Bytes, signature and contract: enough for a version that had the traffic not long ago."""
        return self._look(model, version, thorough=False)

    def approvals(self, model: str, version: str) -> Approvals:
        """What the version's risk tier asks for, and whose approvals of these bytes are on file."""
        record = self._find(model, version)
        if record is None:
            return Approvals()
        needed = APPROVALS_NEEDED[record.risk]
        try:
            found = self._ask(("approvals", model, version), lambda: self._registry.approvals(model, version))
            by = tuple(approval.by for approval in found)
        except DriftlineError as error:
            log.warning("approvals of %s/%s do not count: %s", model, version, error)
            by = ()
        return Approvals(needed, by, record.cause)

    def _look(self, model: str, version: str, *, thorough: bool) -> str | None:
        record = self._find(model, version)
        if record is None:
            return "it was never announced on `models`"
        contract = self._contract(model)
        try:
            # Every byte, every time: the fast path may not trust what it saw yesterday.
            loaded, artifact = self._ask(
                ("load", model, version, record.sha256, thorough),
                lambda: self._load(model, version, record.sha256, fresh=thorough),
            )
            if contract is not None:
                self._registry.check_features(contract, version, record.sha256)
        except StoreUnavailable as error:
            return Away(error)
        except DriftlineError as error:
            return str(error)
        if contract is None:
            return None
        if loaded.contract_revision > contract.revision:
            return f"it was trained for contract revision {loaded.contract_revision}, in force is {contract.revision}"
        key = (record.sha256, contract.rollout.smoke.model_dump_json())
        if not thorough or key in self._passed:
            return None
        why = smoke(artifact, contract.rollout.smoke, lambda: time.perf_counter() * 1_000)
        if why is None:
            self._passed[key] = None
            if len(self._passed) > _PASSED_KEPT:
                del self._passed[next(iter(self._passed))]
        return why

    def _ask(self, question: Hashable, find: Callable[[], T]) -> T:
        return find() if self._patience is None else self._patience.ask(question, find)

    def _load(self, model: str, version: str, sha256: str, *, fresh: bool) -> tuple[ModelVersion, Artifact]:
        """From the registry itself, or what was read from it under this digest before."""
        try:
            return self._registry.load(model, version, sha256, fresh=fresh)
        except StoreUnavailable:
            if not fresh:
                raise
            return self._registry.load(model, version, sha256)
