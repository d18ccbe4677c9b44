"""The chain of facts and the controller's ledger of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from deploy.core.ledger import IDS_KEPT, Ledger
from schemas.control import Because, Decision, signable
from schemas.record import CONTROLLER, POLICY, Head, digest, document_digest, head_of, link
from schemas.signing import Signer, Verifier


def fact(number: int, **more: object) -> Decision:
    """A fact of the controller's without a place in a chain."""
    plain = {"decision_id": f"d{number}", "model": "delay", "kind": "paused", "actor": "controller"}
    return Decision.model_validate(plain | {"event_time_ms": number, "recorded_ms": 0} | more)


def test_a_chain_counts_and_names_the_fact_before() -> None:
    """From nothing: the first has no predecessor, each other one the digest of it."""
    first = link(fact(1), POLICY, Head())
    second = link(fact(2), POLICY, head_of(first))
    assert (first.sequence, first.previous, first.writer) == (1, "", POLICY)
    assert (second.sequence, second.previous) == (2, digest(first))
    assert Head.parse(str(head_of(second))) == head_of(second)


def test_the_digest_is_what_another_run_would_make() -> None:
    """When it was written and by which key changes nothing; what it says changes everything."""
    one = fact(1)
    assert digest(one) == digest(one.model_copy(update={"recorded_ms": 9, "signature": "s", "key_id": "k"}))
    assert digest(one) != digest(one.model_copy(update={"detail": "else"}))
    assert digest(one) != digest(one.model_copy(update={"previous": "0"}))


def test_what_is_on_the_wire_has_the_same_digest_and_signature(tmp_path: Path) -> None:
    """Also where a score has no bound, which JSON cannot say and is the largest number instead; it is read back the same;
    and a newer writer's field is covered too."""
    signer = Signer.create(tmp_path / "key.pem")
    because = (Because(signal_id="s", detector="d", score=math.inf, threshold=1e-7),)
    signed = signer.sign(fact(1, because=because))
    document = json.loads(signed.model_dump_json())
    assert document_digest(document) == digest(signed)
    assert Decision.model_validate(document) == signed
    assert document_digest(document | {"colour": "red"}) != digest(signed)
    verifier = Verifier([(tmp_path / "key.pem.pub").read_text()])
    verifier.verify_bytes(signable(signed), signed.signature, signed.key_id)


def test_the_ledger_goes_on_where_the_log_ends() -> None:
    """A new controller that has read the log makes the next link; other models and writers have their own chains, and
    the controller's facts say how far it has read them."""
    before = Ledger()
    policy = link(fact(1), POLICY, Head())
    log = [policy]
    before.learn(policy)
    for chosen in before.link([fact(2), fact(3)]):
        before.learn(chosen)
        log.append(chosen)
    after = Ledger()
    for known in log:
        after.learn(known)
    (found,) = after.link([fact(4)])
    assert (found.sequence, found.previous) == (3, digest(log[-1]))
    assert found.witnessed == {POLICY: f"1:{digest(policy)}"}
    (other,) = after.link([fact(5, model="other")])
    assert (other.sequence, other.previous, other.witnessed) == (1, "", {})


def test_what_was_linked_and_not_committed_is_forgotten() -> None:
    """An aborted transaction leaves no hole."""
    ledger = Ledger()
    ledger.link([fact(1)])
    (again,) = ledger.link([fact(1)])
    assert again.sequence == 1


def test_a_fact_without_a_revision_is_known_until_the_next_revision() -> None:
    """However many there were; reading a fact back once more changes nothing."""
    ledger = Ledger()
    log: list[Decision] = []

    def record(*facts: Decision) -> None:
        for linked in ledger.link(list(facts)):
            ledger.learn(linked)
            log.append(linked)

    record(*(fact(n) for n in range(3_000)))
    assert all(ledger.holds(fact(n)) for n in (0, 1, 2_999))
    record(fact(3_000, deployment_revision=4))
    assert not ledger.holds(fact(0))
    record(fact(3_001))
    for old in log:
        ledger.learn(old)
    assert ledger.holds(fact(3_001)) and ledger.head("delay").sequence == len(log)
    record(*(fact(n) for n in range(4_000, 4_000 + IDS_KEPT)))
    assert not ledger.holds(fact(3_001)) and ledger.holds(fact(4_000))
    assert not ledger.holds(fact(4_000, model="other"))
    assert ledger.head("delay", CONTROLLER).sequence == len(log)
