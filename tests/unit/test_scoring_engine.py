"""Loading versions: which provider, how much memory, and proof that what is loaded computes what was registered."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.core.memory import MemoryBudget
from deploy.registry import Lineage, Registry
from deploy.scoring.engine import Engine
from deploy.scoring.provider import CUDA, Found, choose, look
from deploy.scoring.service import check
from deploy.scoring.session import Session
from schemas.errors import ConfigurationError
from schemas.settings import ScorerSection, ScorerSettings
from tests.support_deploy import CONTRACT, artifact, rows
from tests.support_scoring import CPU

#: Scores are probabilities; the CPU's and the device's float32 arithmetic differ in the last bits, added up over layers.
DEVICE_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Versions 1 to 5 of the model; 3 is altered after registration."""
    made = Registry(tmp_path_factory.mktemp("registry"))
    for flip in (False, True, False, False, True):
        made.register(CONTRACT, artifact(flip=flip), Lineage())
    (Path(made.address) / "delay" / "3" / "model.onnx").write_bytes(b"not a model")
    return made


# --- providers

_GPU_BUILD = Found("onnxruntime-gpu 1.31", None, "NVIDIA H200")
_CPU_BUILD = Found("onnxruntime 1.31", "this is the CPU build of ONNX Runtime")


@pytest.mark.parametrize(
    ("wish", "found", "provider", "said"),
    [
        ("auto", _GPU_BUILD, CUDA, "CUDA on NVIDIA H200, because a model ran there"),
        ("cuda", _GPU_BUILD, CUDA, "scorer.provider is cuda"),
        ("cpu", _GPU_BUILD, "CPUExecutionProvider", "scorer.provider is cpu; CUDA would run on NVIDIA H200"),
        ("auto", _CPU_BUILD, "CPUExecutionProvider", "because this is the CPU build"),
        ("cpu", _CPU_BUILD, "CPUExecutionProvider", "this is the CPU build"),
    ],
)
def test_the_provider_is_chosen_and_explained(wish: str, found: Found, provider: str, said: str) -> None:
    """CUDA when it runs and is not declined; else the CPU, with what stands in the way."""
    choice = choose(ScorerSection(provider=wish), found)
    assert choice.provider == choice.providers[0] == provider
    assert said in choice.why
    assert found.build in choice.why


def test_cuda_that_is_demanded_and_does_not_run_is_an_error() -> None:
    """A service that was told to use the device must not limp along on the CPU."""
    with pytest.raises(ConfigurationError, match="CPU build"):
        choose(ScorerSection(provider="cuda"), _CPU_BUILD)


def test_the_check_says_what_is_true_here() -> None:
    """Its line names the provider a loaded version really runs on, and the build."""
    said = check(ScorerSettings())
    assert said.startswith("CUDA on " if look().obstacle is None else "CPU, because ")
    assert "onnxruntime" in said


# --- sessions


def test_bound_buffers_give_what_a_plain_run_gives() -> None:
    """Batches of any size in any order, each on the same buffers: equal to the last bit."""
    import onnxruntime

    made = artifact()
    session = Session(made.onnx, choose(CPU, look()), 1, 1 << 30)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    plain = onnxruntime.InferenceSession(made.onnx, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    for size in (1, 7, 64, 65, 1_000, 3, 64):
        matrix = rng.normal(size=(size, 3)).astype(np.float32)
        expected = plain.run(None, {"features": matrix})[0].reshape(-1)
        np.testing.assert_array_equal(session.run(matrix), expected.astype(np.float64))


def test_what_a_run_returned_is_not_overwritten_by_the_next() -> None:
    """Answers are copied out of the buffers: a batch that is still being written must not change."""
    session = Session(artifact().onnx, choose(CPU, look()), 1, 1 << 30)
    first = session.run(np.full((4, 3), 20, np.float32))
    kept = first.copy()
    session.run(np.zeros((4, 3), np.float32))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.skipif(look().obstacle is not None, reason=f"CUDA does not run here: {look().obstacle}")
def test_cuda_and_cpu_say_the_same(registry: Registry) -> None:
    """2,000 rows through the same version on both: equal within the tolerance."""
    table, _, _ = rows(2_000, seed=11)
    found = []
    for wish in ("cuda", "cpu"):
        engine = Engine(registry, ScorerSection(provider=wish))
        assert engine.load("delay", ["1"], {}) == {}
        loaded = engine.get("delay", "1")
        assert loaded is not None
        found.append(loaded.run(loaded.encode(table)))
    np.testing.assert_allclose(*found, atol=DEVICE_TOLERANCE)


# --- proof


def test_the_golden_set_proves_a_version(registry: Registry) -> None:
    """A loaded version repeats its recorded outputs; with another version's record it does not."""
    engine = Engine(registry, CPU)
    assert list(engine.load("delay", ["1", "2", "3"], {})) == ["3"]
    one, two = engine.get("delay", "1"), engine.get("delay", "2")
    assert one is not None
    assert two is not None
    assert one.golden_agrees()
    one.golden = two.golden
    assert not one.golden_agrees()


def test_a_version_that_computes_something_else_is_not_served(tmp_path: Path) -> None:
    """Registered with another model's golden set, signed and sealed: refused at load, with what is wrong."""
    made = Registry(tmp_path)
    made.register(CONTRACT, replace(artifact(), golden=artifact(flip=True).golden), Lineage())
    engine = Engine(made, CPU)
    assert "golden set" in engine.load("delay", ["1"], {})["1"]
    assert engine.get("delay", "1") is None


def test_a_version_that_failed_is_tried_again(registry: Registry, tmp_path: Path) -> None:
    """A registry that was not copied whole: once the version is there, it loads."""
    shutil.copytree(registry.address, tmp_path / "copy")
    (tmp_path / "copy" / "delay" / "2").rename(tmp_path / "later")
    engine = Engine(Registry(tmp_path / "copy"), CPU)
    assert list(engine.load("delay", ["1", "2"], {})) == ["2"]
    assert engine.settled("delay", ["1", "2"])
    assert list(engine.failed("delay")) == ["2"]
    (tmp_path / "later").rename(tmp_path / "copy" / "delay" / "2")
    assert engine.load("delay", ["1", "2"], {}) == {}
    assert engine.failed("delay") == {}


# --- memory


def test_the_longest_unused_goes_first_and_pinned_never() -> None:
    """What must go is told, not done; when pins leave no room there is none."""
    budget: MemoryBudget[str] = MemoryBudget(100)
    for name in "abc":
        budget.add(name, 30)
    assert budget.room_for(10, ()) == []
    assert budget.room_for(20, ()) == ["a"]
    assert budget.room_for(60, {"a"}) == ["b", "c"]
    budget.used_now("a")
    assert budget.room_for(20, ()) == ["b"]
    assert budget.room_for(50, {"a", "b"}) is None
    budget.drop("b")
    assert budget.used == 60


def test_versions_share_the_budget_and_the_routed_ones_stay(registry: Registry) -> None:
    """With room for three: what was routed last leaves before anything routed, and comes back when wanted again."""
    sizes = 4_000_000 + 2 * len((Path(registry.address) / "delay" / "1" / "model.onnx").read_bytes())
    engine = Engine(registry, ScorerSection(provider="cpu", memory_bytes_max=int(sizes * 3.5)))

    def loaded() -> set[str]:
        return {version for version in ("1", "2", "4", "5") if engine.get("delay", version) is not None}

    assert not engine.claim("delay", ["1", "2"])
    assert engine.load("delay", ["1", "2"], {}) == {}
    engine.warm("delay", "4", None)
    assert loaded() == {"1", "2", "4"}
    assert engine.claim("delay", ["2", "4"]), "1 is no longer routed, and still there"
    engine.warm("delay", "5", None)
    assert loaded() == {"2", "4", "5"}
    assert not engine.claim("delay", ["1", "2", "4"])
    assert engine.load("delay", ["1", "2", "4"], {}) == {}
    assert loaded() == {"1", "2", "4"}
    failed = engine.load("delay", ["1", "2", "4", "5"], {})
    assert "memory_bytes_max" in failed["5"]
    assert loaded() == {"1", "2", "4"}
    assert engine.memory_bytes <= sizes * 3.5
