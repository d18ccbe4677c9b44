"""Before any traffic a version answers its recorded requests: finite, in range, as recorded, in time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from deploy.controller.checks import Checks
from deploy.controller.smoke import smoke
from deploy.registry import Artifact, Golden, Lineage, Registry
from schemas.contracts import ModelVersion
from schemas.rollout import Smoke
from schemas.signing import Signer, Verifier
from tests.support_deploy import CONTRACT, artifact


def ticking(ms: float) -> Callable[[], float]:
    """A clock that moves by ``ms`` at every look."""
    steps = itertools.count()
    return lambda: next(steps) * ms


def constant(value: float) -> bytes:
    """A model that answers every row with one number."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("IsNaN", ["sum"], ["nan"]),
        helper.make_node("Where", ["nan", "value", "value"], ["y"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    number = helper.make_tensor("value", TensorProto.FLOAT, [1, 1], [value])
    graph = helper.make_graph(nodes, "constant", [x], [y], [axes, number])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def with_golden(scores: tuple[float, ...] | None = None, **changes: Any) -> Artifact:
    made = artifact()
    golden = made.golden if scores is None else replace(made.golden, scores=scores)
    return replace(made, golden=golden, **changes)


def test_a_version_that_computes_what_was_recorded_passes() -> None:
    """The encoder and the model together, from raw rows."""
    assert smoke(artifact(), Smoke(), ticking(1)) is None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_ends_of_the_range_are_in_it(value: float) -> None:
    """0 and 1 are probabilities."""
    rows = len(artifact().golden.inputs)
    assert smoke(with_golden((value,) * rows, onnx=constant(value)), Smoke(), ticking(1)) is None


@pytest.mark.parametrize(
    ("value", "why"),
    [(float("nan"), "not finite"), (float("inf"), "not finite"), (1.01, "within"), (-0.01, "within")],
)
def test_outputs_that_are_no_probabilities_are_refused(value: float, why: str) -> None:
    """Whatever was recorded."""
    rows = len(artifact().golden.inputs)
    said = smoke(with_golden((value,) * rows, onnx=constant(value)), Smoke(), ticking(1))
    assert said is not None and why in said


@pytest.mark.parametrize(("off", "fits"), [(0.9e-5, True), (2e-5, False)])
def test_outputs_must_be_those_on_record(off: float, fits: bool) -> None:
    """Within the tolerance, from both sides."""
    scores = tuple(score + off for score in artifact().golden.scores)
    assert (smoke(with_golden(scores), Smoke(), ticking(1)) is None) is fits


@pytest.mark.parametrize(("took", "fits"), [(50, True), (51, False)])
def test_a_request_must_be_answered_in_time(took: float, fits: bool) -> None:
    """The median of single requests, from both sides; 0 turns it off."""
    assert (smoke(artifact(), Smoke(latency_max=50), ticking(took)) is None) is fits
    assert smoke(artifact(), Smoke(latency_max=0), ticking(took)) is None


def test_without_recorded_requests_there_is_no_traffic() -> None:
    """Nothing was tried, so nothing is known."""
    said = smoke(replace(artifact(), golden=Golden((), ())), Smoke(), ticking(1))
    assert said is not None and "no recorded requests" in said


def test_a_model_that_cannot_run_is_refused() -> None:
    """In words, not as an exception."""
    said = smoke(replace(artifact(), onnx=b"not a model"), Smoke(), ticking(1))
    assert said is not None and "broke" in said


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Signs and verifies with one key; v1 is of low, v2 of medium, v3 of high risk, registered by ada."""
    signer = Signer.create(tmp_path / "key.pem")
    made = Registry(tmp_path / "registry", signer, Verifier([(tmp_path / "key.pem.pub").read_text().strip()]))
    for risk in ("low", "medium", "high"):
        made.register(CONTRACT, artifact(), Lineage(cause="cli/ada", risk=risk))
    return made


def checks(registry: Registry, announced: Mapping[str, ModelVersion] | None = None) -> Checks:
    known = announced or {v: registry.record("delay", v) for v in registry.versions("delay")}
    return Checks(registry, lambda _, version: known.get(version), lambda _: CONTRACT)


def test_what_is_looked_at_before_any_traffic(registry: Registry) -> None:
    """A sound version passes both the full check and the short one; one nobody announced passes neither."""
    looked = checks(registry)
    assert (looked.verify("delay", "1"), looked.intact("delay", "1")) == (None, None)
    assert "never announced" in str(looked.verify("delay", "9"))


@pytest.mark.parametrize("name", ["model.onnx", "encoder.json", "golden.json"])
def test_an_altered_byte_is_seen_every_time(registry: Registry, name: str) -> None:
    """Also after the version has passed once, and on the fast path."""
    looked = checks(registry)
    assert looked.verify("delay", "1") is None
    path = Path(registry.address) / "delay" / "1" / name
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b" ")
    assert "not what was registered" in str(looked.verify("delay", "1"))
    assert "not what was registered" in str(looked.intact("delay", "1"))


def test_a_version_trained_for_a_later_contract_is_refused(registry: Registry) -> None:
    """The contract in force is older than what the version was made for."""
    later = registry.register(CONTRACT.model_copy(update={"revision": 7}), artifact(), Lineage())
    assert "contract revision 7" in str(checks(registry).verify("delay", later.version))


def test_a_smoke_test_that_fails_refuses_what_is_otherwise_sound(registry: Registry) -> None:
    """Registered and signed as it is, with outputs on record that it does not compute; the fast path does not run it."""
    scores = tuple(1 - score for score in artifact().golden.scores)
    bad = registry.register(CONTRACT, with_golden(scores), Lineage())
    assert "differ from those on record" in str(checks(registry).verify("delay", bad.version))
    assert checks(registry).intact("delay", bad.version) is None


def test_approvals_of_a_risk_tier_are_those_signed_in_the_registry(
    registry: Registry, tmp_path: Path
) -> None:
    """With who registered the version, whose own do not count; a forged one makes none count."""
    registry.approve("delay", "3", "cli/grace", 1)
    registry.approve("delay", "3", "mary", 2)
    found = [checks(registry).approvals("delay", version) for version in ("1", "2", "3")]
    assert [(a.needed, a.by) for a in found] == [(0, ()), (1, ()), (2, ("cli/grace", "mary"))]
    assert found[2].author == "cli/ada"
    stranger = Registry(registry.address, Signer.create(tmp_path / "stranger.pem"))
    stranger.approve("delay", "2", "mallory", 3)
    assert checks(registry).approvals("delay", "2").by == ()
