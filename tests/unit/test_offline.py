"""The offline computation: it explains what a policy task wrote by some order of what it heard, or says that none does."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.contracts import Feature, ModelContract, ModelRecord, ModelVersion, Policy, Rule
from schemas.control import Deployment, Phase
from schemas.errors import DeliveryError
from schemas.events import HEADER_KIND, HEADER_ORIGIN, KIND_TICK, Tick
from schemas.ids import partition_of
from schemas.settings import MonitorSettings
from schemas.verdicts import Family, SignalChanged, State, Verdict
from streams.core import offline
from streams.core.delivery import Manifest, StageContext
from streams.core.policy import PolicyCore
from streams.core.records import Record
from tests.support_examples import examples

CONTEXT = StageContext("policy", 0, 1, MonitorSettings())
HARM = Rule(name="harm", severity="page", action="retrain", cooldown=2)
CONTRACT = ModelContract(
    model="m", features=(Feature(name="x"),), policy=Policy(rules=(HARM,), retrain_interval=3, command_ttl=5)
)
MODELS = [ModelRecord(contract=CONTRACT)]
ANNOUNCED = ModelRecord(version=ModelVersion(model="m", version="1", uri="m/1", sha256="a" * 64))


def signal(offset: int, state: State) -> Record:
    """A verdict at event time ``offset``."""
    value = SignalChanged(
        signal_id=f"s{offset}", model="m", version="1", role="stable", detector="harm", kind="k",
        family=Family.CONCEPT, previous=State.STABLE, verdict=Verdict(state=state, score=2.0, threshold=1.0),
        event_time_ms=offset, row="observations/0/0/0", pages=True,
    )  # fmt: skip
    return Record("signals", 0, offset, b"m", value.model_dump_json().encode())


def tick(offset: int) -> Record:
    """Time ``offset`` on ``signals``."""
    value = Tick(event_time_ms=offset, source="detect/0", sources=1).model_dump_json().encode()
    return Record("signals", 0, offset, None, value, {HEADER_KIND: KIND_TICK})


def revision(offset: int, stable: str) -> Record:
    """A deployment; the policy only acts on versions with traffic."""
    value = Deployment(
        model="m", revision=offset + 1, phase=Phase.SUCCEEDED, stable=stable, weights={stable: 1.0}
    )
    return Record("deployments", 0, offset, b"m", value.model_dump_json().encode())


class Run:
    """A policy task's life: what it heard in which order, cut into transactions."""

    def __init__(self, heard: Sequence[str], cuts: Sequence[bool]) -> None:
        core = PolicyCore(CONTEXT, lambda message: message)
        core.activate(MODELS)
        self.models = [(0, record) for record in MODELS]
        self.signals: list[Record] = []
        self.deployments: list[Record] = []
        self.manifests: list[Manifest] = []
        self.written: offline.Documents = {}
        for what, cut in zip([*heard, "tick"], [*cuts, True], strict=True):
            at = len(self.signals)
            if what == "announced":
                self.models.append((len(self.models), ANNOUNCED))
                core.activate([ANNOUNCED])
            elif what.startswith("v"):
                self.deployments.append(revision(len(self.deployments), what.removeprefix("v")))
                core.apply(self.deployments[-1:], 1)
            else:
                self.signals.append(tick(at) if what == "tick" else signal(at, State(what)))
                core.apply(self.signals[-1:], 1)
            if cut:
                for out in core.outputs():
                    document = json.loads(out.value or b"")
                    self.written.setdefault(out.topic, []).append(offline.settled(document))
                self.manifests.append(
                    Manifest(
                        task="policy/0",
                        sequence=1_000 + len(self.manifests),
                        high={("signals", 0): len(self.signals)},
                        activations={"deployments": len(self.deployments), "models": len(self.models)},
                    )
                )

    def explained(self, written: offline.Documents | None = None) -> offline.Documents:
        return offline.decisions(
            self.signals, self.deployments, self.manifests, self.models, written or self.written, CONTEXT
        )


HEARD = st.lists(st.sampled_from(["drift", "stable", "tick", "tick", "v1", "v2"]), min_size=1, max_size=14)


@examples(50)
@given(HEARD, st.data())
def test_whatever_order_a_task_heard_things_in_is_found(heard: list[str], data: st.DataObject) -> None:
    """Transactions tell the order between them; within one it is inferred from what was written."""
    cuts = data.draw(st.lists(st.booleans(), min_size=len(heard), max_size=len(heard)))
    run = Run(heard, cuts)
    assert run.explained() == run.written


def test_what_no_order_explains_is_not_explained() -> None:
    """A command that is missing, written twice, or another one."""
    run = Run(["v1", "tick", "drift", "tick"], [True] * 4)
    command = next(d for d in run.written["control"] if d["type"] == "retrain")
    rest = [d for d in run.written["control"] if d is not command]
    for wrong in (rest, [*rest, command, command], [*rest, command | {"request_id": "other"}]):
        written = run.written | {"control": wrong}
        assert run.explained(written) != written


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_version_is_known_from_when_it_was_announced(at: int) -> None:
    """Facts name its digest from then on, and the computation at leisure does not know better than the task did."""
    heard = ["v1", "tick", "drift", "tick"]
    run = Run([*heard[:at], "announced", *heard[at:]], [True] * 5)
    digests = [fact["model_digest"] for fact in run.written["decisions"]]
    assert set(digests) == ({"a" * 64} if at < 4 else {""})
    assert run.explained() == run.written


def test_a_missing_transaction_is_named() -> None:
    """Between the first manifest there is and the last."""
    run = Run(["v1", "tick", "drift", "tick"], [True] * 4)
    del run.manifests[2]
    with pytest.raises(DeliveryError, match="a transaction is missing"):
        run.explained()


def test_rows_of_other_partitions_are_told_from_rows_that_were_sent_on() -> None:
    """The one is left to its own partition, the other counts here under its first address."""
    names = [f"p{n}" for n in range(40)]
    ours = next(n for n in names if partition_of(n.encode(), 2) == 0)
    theirs = next(n for n in names if partition_of(n.encode(), 2) == 1)

    def record(offset: int, name: str, headers: dict[str, bytes]) -> Record:
        event = {
            "prediction_id": name,
            "model": "m",
            "version": "1",
            "event_time_ms": 1_000,
            "features": {"x": 1.0},
        }
        return Record("predictions", 0, offset, name.encode(), json.dumps(event).encode(), headers)

    records = [
        record(0, theirs, {}),
        record(1, ours, {HEADER_ORIGIN: b"predictions/1/7/0"}),
        record(2, ours, {"bad": b"not-json"}),
    ]
    found = offline.joined(records, {"m": CONTRACT}, {}, 0, 2, "bad")
    assert (found.sent_on, found.origins) == (["predictions/0/0/0"], ["predictions/1/7/0"])
    assert found.addresses == [(1, 7, 0)]


def test_both_inputs_become_one_in_the_order_of_the_broker() -> None:
    """Each keeps its own order even where the broker's clock went back."""

    def at(topic: str, offset: int, timestamp_ms: int) -> Record:
        return Record(topic, 0, offset, None, b"", {}, timestamp_ms)

    one = [at("predictions", 0, 5), at("predictions", 1, 3)]
    two = [at("feedback", 0, 4), at("feedback", 1, 6)]
    merged = [(r.topic, r.offset) for r in offline.in_time_order(one, two)]
    assert merged == [("feedback", 0), ("predictions", 0), ("predictions", 1), ("feedback", 1)]
