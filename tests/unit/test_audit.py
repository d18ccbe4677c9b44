"""The record is checked: whatever is done to it is found, named by its place, and nothing is found where nothing was done."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from deploy.audit.check import Fault, check
from deploy.audit.facts import LoggedFact, Record, anchors_of
from deploy.audit.story import columns, in_event_time, shown, traffic_text
from deploy.core.ledger import Ledger
from schemas.control import Because, Decision, Deployment, Phase
from schemas.errors import SignatureError
from schemas.record import POLICY, Head, head_of, link
from schemas.signing import Signer, Verifier
from schemas.verdicts import Evidence
from tests.support_examples import examples


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signer, Signer]:
    """Ours and a stranger's."""
    folder = tmp_path_factory.mktemp("keys")
    return Signer.create(folder / "ours.pem"), Signer.create(folder / "stranger.pem")


def believing(*signers: Signer) -> Verifier:
    return Verifier([base64.b64encode(signer.public).decode() for signer in signers])


def fact(number: int, **more: Any) -> Decision:
    plain = {"decision_id": f"d{number}", "model": "delay", "kind": "paused", "actor": "controller"}
    return Decision.model_validate(plain | {"event_time_ms": number, "recorded_ms": number} | more)


def logged(decision: Decision, offset: int) -> LoggedFact:
    return LoggedFact(f"decisions/0/{offset}", decision.model_dump_json().encode(), decision.model.encode())


def history(signer: Signer, controller: int = 6, policy: int = 3) -> Record:
    """Two models; policy decides, the controller answers and counts, as the services do."""
    ledger = Ledger()
    facts: list[Decision] = []
    heads = {"delay": Head(), "other": Head()}
    for number in range(max(controller, policy)):
        for model in ("delay", "other"):
            if number < policy:
                made = signer.sign(
                    link(fact(100 + number, model=model, actor="policy/harm"), POLICY, heads[model])
                )
                heads[model] = head_of(made)
                ledger.learn(made)
                facts.append(made)
            if number < controller:
                for linked in ledger.link([fact(number, model=model)]):
                    facts.append(signer.sign(linked))
                    ledger.learn(facts[-1])
    ends = [
        Deployment(
            model=model, revision=9, phase=Phase.STEADY,
            facts=ledger.head(model).sequence, facts_head=ledger.head(model).digest,
        )
        for model in heads
    ]  # fmt: skip
    return Record([logged(decision, at) for at, decision in enumerate(facts)], anchors_of(ends))


def altered(one: LoggedFact, signer: Signer | None = None, **changes: Any) -> LoggedFact:
    """``one`` with other fields; signed again if a signer is given."""
    decision = Decision.model_validate(one.document | changes)
    changed = decision if signer is None else signer.sign(decision)
    return LoggedFact(one.address, changed.model_dump_json().encode(), one.key)


def first(record: Record, verifier: Verifier) -> Fault:
    faults = check(record, verifier)
    assert faults
    return faults[0]


def test_an_honest_record_has_no_fault(keys: tuple[Signer, Signer]) -> None:
    """Two models, two writers, and an empty record; also with a second key that is believed."""
    ours, stranger = keys
    assert check(history(ours), believing(ours)) == []
    assert check(history(ours), believing(stranger, ours)) == []
    assert check(history(ours).of("delay"), believing(ours)) == []
    assert check(Record(), believing(ours)) == []


@pytest.mark.parametrize("at", range(18))
def test_a_fact_that_is_gone_is_missed(at: int, keys: tuple[Signer, Signer]) -> None:
    """Each one, the first and the last of a chain too: found at the next fact, or by what has counted it."""
    record = history(keys[0])
    gone = record.facts[at]
    kept = Record(record.facts[:at] + record.facts[at + 1 :], record.anchors)
    fault = first(kept, believing(keys[0]))
    assert fault.model == gone.model
    assert str(gone.number("sequence")) in fault.what and (
        "missing" in fault.what or "not here" in fault.what
    )


def test_the_last_facts_of_policy_are_missed_when_the_controller_has_read_them(
    keys: tuple[Signer, Signer],
) -> None:
    """A chain's end has no next fact; the other writer's facts are its witnesses."""
    record = history(keys[0], controller=6, policy=3)
    last = [f for f in record.facts if f.text("writer") == POLICY and f.model == "delay"][-1]
    fault = first(Record([f for f in record.facts if f is not last], record.anchors), believing(keys[0]))
    assert "written when there was more: fact 3 of policy is not here" in fault.what


def test_a_log_cut_short_is_missed(keys: tuple[Signer, Signer]) -> None:
    """From either end: the first facts by the numbers of those left, the last by the deployments."""
    record = history(keys[0])
    assert "missing" in first(Record(record.facts[8:], record.anchors), believing(keys[0])).what
    assert "counted more" in first(Record(record.facts[:-2], record.anchors), believing(keys[0])).what
    assert len(check(Record([], record.anchors), believing(keys[0]))) == 2


@pytest.mark.parametrize("at", range(18))
@pytest.mark.parametrize(
    "change",
    [
        {"detail": "else"},
        {"actor": "ann"},
        {"event_time_ms": 7_777},
        {"recorded_ms": 7_777},
        {"weights": {"1": 1.0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_fact_is_found_once(at: int, change: dict[str, Any], keys: tuple[Signer, Signer]) -> None:
    """Its signature does not fit any more; the facts behind it are not blamed."""
    record = history(keys[0])
    record.facts[at] = altered(record.facts[at], **change)
    (fault,) = check(record, believing(keys[0]))
    assert fault.address == record.facts[at].address and "does not fit" in fault.what


@pytest.mark.parametrize("at", range(18))
def test_history_cannot_be_written_anew_by_who_holds_the_key(at: int, keys: tuple[Signer, Signer]) -> None:
    """A fact that is changed and signed again: the next one, a deployment or a witness knows what it was."""
    record = history(keys[0])
    record.facts[at] = altered(record.facts[at], keys[0], detail="else")
    fault = first(record, believing(keys[0]))
    assert fault.model == record.facts[at].model
    assert "exchanged" in fault.what or "was another" in fault.what


@pytest.mark.parametrize("at", range(17))
def test_facts_that_changed_places_are_found(at: int, keys: tuple[Signer, Signer]) -> None:
    """Two of one chain; facts of different chains have no order among each other."""
    record = history(keys[0])
    one = record.facts[at]
    chain = (one.model, one.text("writer"))
    later = [i for i, f in enumerate(record.facts) if i > at and (f.model, f.text("writer")) == chain]
    if not later:
        return
    record.facts[at], record.facts[later[0]] = record.facts[later[0]], one
    whats = [fault.what for fault in check(record, believing(keys[0]))]
    assert any("missing" in what for what in whats) and any("out of order" in what for what in whats)


def test_a_fact_that_comes_twice_is_found(keys: tuple[Signer, Signer]) -> None:
    """Signed as it is, it would be believed."""
    record = history(keys[0])
    record.facts.append(record.facts[2])
    (fault,) = check(record, believing(keys[0]))
    assert "a second time" in fault.what


def test_a_strangers_fact_is_found_and_hides_nothing(keys: tuple[Signer, Signer]) -> None:
    """Added, or in the place of one of ours: two findings then, his and the gap."""
    ours, stranger = keys
    record = history(ours)
    last = record.facts[-1]
    added = stranger.sign(
        link(fact(99, model=last.model), last.text("writer"), Head(sequence=last.number("sequence")))
    )
    record.facts.append(logged(added, 99))
    (fault,) = check(record, believing(ours))
    assert fault.address == "decisions/0/99" and "unknown key" in fault.what
    record = history(ours)
    record.facts[4] = altered(record.facts[4], stranger)
    whats = [fault.what for fault in check(record, believing(ours))]
    assert "unknown key" in whats[0] and "missing" in whats[1]
    assert check(record, believing(ours, stranger)) == []


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b"null", b'{"model": "delay"}', b"\xff", b'{"witnessed": 3, "sequence": "x"}']
)
def test_what_is_no_fact_is_found(value: bytes, keys: tuple[Signer, Signer]) -> None:
    """Anything can be on a topic; the check says where and goes on."""
    record = history(keys[0])
    record.facts.insert(3, LoggedFact("decisions/0/x", value, b"delay"))
    (fault,) = check(record, believing(keys[0]))
    assert fault.address == "decisions/0/x" and fault.model == "delay" and "no fact" in fault.what


def test_facts_outside_of_any_order_are_found(keys: tuple[Signer, Signer]) -> None:
    """Without a place in a chain; filed under another model; a chain that begins anew; signed by nobody."""
    ours = keys[0]
    record = history(ours)
    assert "in no chain" in first(Record([logged(ours.sign(fact(1)), 0)]), believing(ours)).what
    misfiled = record.facts[0]
    filed = LoggedFact(misfiled.address, misfiled.value, b"other")
    assert "filed under 'other'" in first(Record([filed]), believing(ours)).what
    again = Record([*record.facts, logged(ours.sign(link(fact(50), POLICY, Head())), 99)], record.anchors)
    (fault,) = check(again, believing(ours))
    assert "begins anew" in fault.what
    unsigned = Record([logged(link(fact(1), POLICY, Head()), 0)])
    assert "unknown key (none)" in first(unsigned, believing(ours)).what


@examples(40)
@given(data=st.data())
def test_no_tampering_goes_unnoticed(data: st.DataObject, keys: tuple[Signer, Signer]) -> None:
    """Any sequence of removals, exchanges, repetitions and changed bytes that leaves another log is a fault."""
    record = history(keys[0], controller=4, policy=2)
    honest = list(record.facts)
    facts = list(honest)
    for _ in range(data.draw(st.integers(1, 4))):
        if not facts:
            break
        at = data.draw(st.integers(0, len(facts) - 1))
        match data.draw(st.sampled_from(["remove", "swap", "repeat", "flip"])):
            case "remove":
                del facts[at]
            case "swap":
                other = data.draw(st.integers(0, len(facts) - 1))
                facts[at], facts[other] = facts[other], facts[at]
            case "repeat":
                facts.insert(data.draw(st.integers(0, len(facts))), facts[at])
            case "flip":
                raw = bytearray(facts[at].value)
                raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 6))
                facts[at] = LoggedFact(facts[at].address, bytes(raw), facts[at].key)
    faults = check(Record(facts, record.anchors), believing(keys[0]))
    assert bool(faults) == (_chains(facts) != _chains(honest))


def test_a_signature_in_other_letters_is_found(keys: tuple[Signer, Signer]) -> None:
    """The last of its letters has four bits that mean nothing; changed, the same bytes are decoded."""
    record = history(keys[0])
    one = record.facts[2]
    signature = one.text("signature")
    same = signature[:-3] + chr(ord(signature[-3]) + 1) + "=="
    assert base64.b64decode(same) == base64.b64decode(signature)
    record.facts[2] = LoggedFact(one.address, one.value.replace(signature.encode(), same.encode()), one.key)
    assert "canonical" in first(record, believing(keys[0])).what


def _chains(facts: list[LoggedFact]) -> dict[Any, list[Any]]:
    """What each chain says, in its order: what there is to protect. Whitespace and key order say nothing."""
    found: dict[Any, list[Any]] = {}
    for one in facts:
        found.setdefault((one.model, one.text("writer")), []).append(json.dumps(one.document, sort_keys=True))
    return found


def test_a_key_that_is_none_is_named() -> None:
    """Instead of a traceback of a library."""
    for wrong in ("x", "", "not base64!", base64.b64encode(b"short").decode()):
        with pytest.raises(SignatureError, match="public key"):
            Verifier([wrong])


def test_the_story_is_in_the_order_of_event_time() -> None:
    """Each fact says when, what, who, why with its evidence, and who has the traffic after it."""
    evidence = Evidence(rows=120, column="score")
    because = (Because(signal_id="s", detector="judge", score=3.14159, threshold=3.0, evidence=evidence),)
    told = fact(
        1, kind="rolled-back", version="2", detail="worse", because=because, weights={"1": 0.95, "2": 0.05}
    )
    facts = [logged(fact(9), 0), logged(told, 1), logged(fact(9, kind="b"), 2), logged(fact(-5), 3)]
    assert [f.address[-1] for f in in_event_time(facts)] == ["3", "1", "0", "2"]
    row = columns(facts[1])
    assert row == (
        "1970-01-01 00:00:00", "rolled-back", "2", "controller",
        "worse [judge 3.14/3 on score, 120 rows]", "1 95%  2 5%",
    )  # fmt: skip
    assert (
        shown(facts[1])["address"] == "decisions/0/1" and shown(facts[1])["because"][0]["detector"] == "judge"
    )
    odd: list[Callable[[], Any]] = [
        lambda value=value: columns(LoggedFact("a", value))  # type: ignore[misc]
        for value in (b"", b'{"because": [3, {}]}', b'{"weights": {}, "event_time_ms": 99999999999999999999}')
    ]
    assert all(len(make()) == 6 for make in odd)


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    """What ``Signer.create`` puts beside a private key is what ``--key`` takes."""
    from deploy.commands.audit import _keys

    signer = Signer.create(tmp_path / "key.pem")
    (text,) = _keys([str(tmp_path / "key.pem.pub")], ())
    Verifier([text]).verify(signer.sign(fact(1)))


def test_traffic_is_told_by_region_where_a_rollout_goes_by_regions() -> None:
    """As people say it; nobody at all is the fallback."""
    assert traffic_text({"1": 0.95, "2": 0.05}) == "1 95%  2 5%"
    assert traffic_text({}) == "fallback"
    shares = {"eu": {"2": 1.0}, "us": {"1": 0.95, "2": 0.05}}
    assert traffic_text({"1": 1.0}, shares) == "eu: 2 100%; us: 1 95%  2 5%"
