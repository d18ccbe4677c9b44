"""Is the record whole? Every fact signed by a known key, and each writer's chain without a gap, from first to last.

    what was done to the log                     what gives it away
    a fact is changed                            its signature; and the next fact's digest of it
    ... and signed anew by a key we know         the next fact, the deployment or a witness names another digest
    a fact is removed                            the next one's number and digest
    the last facts are removed                   the deployment, or a later fact of the controller, has counted them
    facts change places, or come twice           their numbers
    a stranger adds a fact                       its key

Pure. What is found is in the log's order; a chain is taken up again after each fault, so one fault is one finding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from deploy.audit.facts import LoggedFact, Record
from schemas.control import Decision, canonical
from schemas.errors import SignatureError
from schemas.record import CONTROLLER, Head, document_digest
from schemas.signing import Verifier


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where it was seen, and what it means."""

    address: str
    model: str
    writer: str
    sequence: int
    decision_id: str
    what: str

    def __str__(self) -> str:
        place = f"{self.model}, {self.writer or 'no writer'} {self.sequence}"
        return f"{self.address} ({place}{', ' + self.decision_id if self.decision_id else ''}): {self.what}"

    def shown(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


class _Chains:
    """Where each chain stands, and every digest it had, for whoever names one later.

    The digest of a fact whose signature does not fit is not known (None): what was changed is found once.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[str, str], tuple[int, str | None]] = {}
        self._digests: dict[tuple[str, str], dict[int, set[str | None]]] = {}

    def take(self, fact: LoggedFact, changed: bool) -> str | None:
        """Why ``fact`` does not follow in its chain; None when it does."""
        chain, sequence = (fact.model, fact.text("writer")), fact.number("sequence")
        if not chain[1] or sequence < 1:
            return "it stands in no chain"
        last, last_digest = self._ends.get(chain, (0, ""))
        digest = None if changed else document_digest(fact.document)
        held = self._digests.setdefault(chain, {}).setdefault(sequence, set())
        known = bool(held)
        if digest in held:
            return "it is here a second time"
        held.add(digest)
        anew = sequence == 1 and known
        if sequence <= last and not anew:
            return f"it comes after fact {last}: out of order"
        self._ends[chain] = (sequence, digest)
        if anew:
            return "the chain begins anew: its writer had lost its state, or another history was put here"
        if sequence > last + 1:
            one = sequence == last + 2
            return f"fact {last + 1} is missing" if one else f"facts {last + 1} to {sequence - 1} are missing"
        if not changed and last_digest is not None and fact.text("previous") != last_digest:
            return (
                f"it does not follow what is here as fact {last}: that was exchanged"
                if last
                else "it is not the first"
            )
        return None

    def differs(self, chain: tuple[str, str], named: Head) -> str | None:
        """Why the chain is not what ``named`` says it was; None when it is."""
        if named.sequence == 0:
            return None
        held = self._digests.get(chain, {}).get(named.sequence)
        if held is None:
            return f"fact {named.sequence} of {chain[1]} is not here"
        return None if held & {None, named.digest} else f"fact {named.sequence} of {chain[1]} was another"


def check(record: Record, verifier: Verifier) -> list[Fault]:
    """Everything that is wrong with ``record``, in its order; what only its end or a witness gives away comes last."""
    faults: list[Fault] = []
    chains = _Chains()
    ours: list[LoggedFact] = []
    for fact in record.facts:
        doubt = _doubt(fact, verifier)
        if doubt is not None:
            faults.append(_fault(fact, doubt.what))
        # A stranger's fact moves no chain: or it could hide that one of ours was removed.
        if doubt is None or doubt.ours:
            gap = chains.take(fact, changed=doubt is not None)
            faults += [] if gap is None else [_fault(fact, gap)]
            ours.append(fact)
    for fact in ours:
        for writer, named in _witnessed(fact):
            what = chains.differs((fact.model, writer), named)
            if what is not None:
                faults.append(_fault(fact, f"it was written when there was more: {what}"))
    for model, anchor in sorted(record.anchors.items()):
        what = chains.differs((model, CONTROLLER), anchor)
        if what is not None:
            detail = f"the deployment has counted more: {what}"
            faults.append(Fault("deployments", model, CONTROLLER, anchor.sequence, "", detail))
    return faults


class _Doubt(NamedTuple):
    """Why a fact cannot be believed by itself; ``ours``: it is one of ours that was changed, not a stranger's."""

    what: str
    ours: bool


def _doubt(fact: LoggedFact, verifier: Verifier) -> _Doubt | None:
    try:
        Decision.model_validate(fact.document)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) or "document" for e in error.errors()[:5])
        return _Doubt(f"it is no fact: {fields}", ours=False)
    try:
        verifier.verify_bytes(canonical(fact.document), fact.text("signature"), fact.text("key_id"))
    except SignatureError as error:
        return _Doubt(str(error), ours=verifier.knows(fact.text("key_id")))
    if fact.key is not None and fact.key != fact.model.encode():
        return _Doubt(f"it is filed under {fact.key[:100].decode(errors='replace')!r}", ours=True)
    return None


def _witnessed(fact: LoggedFact) -> list[tuple[str, Head]]:
    found = fact.document.get("witnessed")
    heads: list[tuple[str, Head]] = []
    for writer, text in found.items() if isinstance(found, dict) else ():
        try:
            heads.append((str(writer), Head.parse(str(text))))
        except ValueError:
            continue
    return heads


def _fault(fact: LoggedFact, what: str) -> Fault:
    return Fault(
        fact.address, fact.model, fact.text("writer"), fact.number("sequence"), fact.text("decision_id"), what
    )
