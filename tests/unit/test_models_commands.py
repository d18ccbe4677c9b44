"""`driftline models` on real files: what fits is registered and can be read back, what does not is named."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from deploy.cli import app
from deploy.deployed import in_use
from deploy.model_report import retention
from schemas.contracts import load_contract
from schemas.control import Deployment, Phase
from schemas.signing import Signer

CONTRACT = """\
model: tiny
description: Whether a visitor buys.
features:
  - {name: x, low: 0, high: 1, nullable: false}
  - {name: country, kind: categorical, categories: [de, fr]}
"""


def tiny(width: int = 2, kind: int = TensorProto.FLOAT, squash: str = "Sigmoid", opset: int = 17) -> bytes:
    """A model of one sum and one function."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["in", "axis"], ["sum"], keepdims=0),
            helper.make_node(squash, ["sum"], ["score"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("in", kind, [None, width])],
        [helper.make_tensor_value_info("score", kind, [None])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a contract and a model, and a signing key in the environment."""
    (tmp_path / "c.yaml").write_text(CONTRACT)
    (tmp_path / "m.onnx").write_bytes(tiny())
    Signer.create(tmp_path / "key.pem")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_SIGNING__KEY_FILE", str(tmp_path / "key.pem"))
    public = (tmp_path / "key.pem.pub").read_text().strip()
    monkeypatch.setenv("DRIFTLINE_SIGNING__TRUSTED", json.dumps([public]))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


def good(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def bad(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    return result.stderr


def test_an_onnx_file_goes_in_and_is_read_back(place: Path) -> None:
    """Import with a reference, then list, show, verify, approve, card and diff."""
    rows = "".join(f"{i / 100},{'de' if i % 2 else 'fr'},{i % 2},{i * 1000}\n" for i in range(100))
    (place / "r.csv").write_text("x,country,label,event_time_ms\n" + rows)
    good(
        "import",
        "m.onnx",
        "--contract",
        "c.yaml",
        "--reference",
        "r.csv",
        "--risk",
        "medium",
        "--code",
        "abc",
    )
    good("import", "m.onnx", "--contract", "c.yaml", "--parent", "1")
    listed = json.loads(good("list", "tiny", "--json"))
    assert [(row["version"], row["risk"], row["parent"]) for row in listed] == [
        ("1", "medium", None),
        ("2", "low", "1"),
    ]
    good("approve", "tiny", "1", "--by", "ann", "--reason", "read it")
    shown = json.loads(good("show", "tiny", "1", "--json"))
    assert shown["reference_rows"] == 100
    assert shown["contract"]["hash"] == load_contract(place / "c.yaml").hash
    assert [approval["by"] for approval in shown["approvals"]] == ["ann"]
    verified = json.loads(good("verify", "tiny", "1", "--contract", "c.yaml", "--json"))
    assert (verified["golden_rows"], verified["approvals"]) == (32, 1)
    assert verified["signature"] == shown["key_id"]
    text = good("card", "tiny", "1")
    for part in (
        "Whether a visitor buys.",
        "100 rows",
        "abc",
        "1 of 1 needed",
        "ann",
        "country (categorical)",
    ):
        assert part in text
    found = json.loads(good("diff", "tiny", "1", "2", "--json"))
    assert found["features"] is None
    assert found["lineage"]["parent"] == [None, "1"]


def test_verify_names_what_is_wrong(place: Path) -> None:
    """An altered model, an altered manifest, and a contract with other features."""
    good("import", "m.onnx", "--contract", "c.yaml")
    (place / "c2.yaml").write_text(CONTRACT.replace("name: x", "name: y"))
    assert "the version lacks y" in bad("verify", "tiny", "1", "--contract", "c2.yaml")
    file = place / "registry" / "tiny" / "1" / "model.onnx"
    before = file.read_bytes()
    file.write_bytes(tiny(squash="Tanh"))
    assert "model.onnx is not what was registered" in bad("verify", "tiny", "1")
    file.write_bytes(before)
    manifest = file.with_name("manifest.json")
    manifest.write_text(manifest.read_text().replace('"risk":"low"', '"risk":"high"'))
    assert "signature" in bad("verify", "tiny", "1")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (tiny(width=3), "the contract has 2 features"),
        (tiny(kind=TensorProto.DOUBLE), "must be tensor(float)"),
        (tiny(squash="Identity"), "a probability in [0, 1]"),
        (tiny(squash="Acos"), "is not finite"),
        (tiny(opset=99), "older opset"),
        (b"no model", "cannot load the model"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(place: Path, model: bytes, said: str) -> None:
    """Width, type, range, infinities, operator set and rubbish: each is named, and nothing is registered."""
    (place / "m.onnx").write_bytes(model)
    assert said in bad("import", "m.onnx", "--contract", "c.yaml")
    assert not (place / "registry").exists()


def test_mlflow_directories(place: Path) -> None:
    """Flavour onnx is imported; sklearn is not unpickled and the way out is said; a path out of it is refused."""
    flow = place / "flow"
    flow.mkdir()
    (flow / "model.onnx").write_bytes(tiny())
    (flow / "MLmodel").write_text(
        "flavors: {onnx: {data: model.onnx, onnx_version: 1.20.0}, python_function: {}}\n"
    )
    assert "tiny/1 registered" in good("import", "flow", "--contract", "c.yaml")
    (flow / "MLmodel").write_text("flavors: {onnx: {data: ../m.onnx}}\n")
    assert "out of the directory" in bad("import", "flow", "--contract", "c.yaml")
    (flow / "MLmodel").write_text("flavors: {sklearn: {pickled_model: model.pkl}}\n")
    assert "skl2onnx" in bad("import", "flow", "--contract", "c.yaml")
    (flow / "MLmodel").unlink()
    assert "no MLflow model directory" in bad("import", "flow", "--contract", "c.yaml")


def test_a_reference_that_cannot_be_read_is_named(place: Path) -> None:
    """A missing column, a text where a number belongs, a row without its label."""
    for text, said in (
        ("x\n1\n", "no column country"),
        ("x,country\nmany,de\n", "'many' is no number"),
        ("x,country,label\n0.5,de,1\n0.5,de,\n", "lacks its label"),
    ):
        (place / "r.csv").write_text(text)
        assert said in bad("import", "m.onnx", "--contract", "c.yaml", "--reference", "r.csv")


def test_retention_keeps_what_is_used_new_or_young() -> None:
    """Deployed, candidate, the last stable ones, the newest and the young stay; only the rest goes."""
    first = Deployment(model="m", revision=1, phase=next(iter(Phase)), stable="3", weights={"3": 1.0})
    then = first.model_copy(
        update={
            "revision": 2,
            "stable": "4",
            "previous": "3",
            "candidate": "5",
            "weights": {"4": 0.9, "5": 0.1},
        }
    )
    used = in_use([first, then], 2)
    assert used == {"3": "rollback target", "4": "stable: deployed", "5": "candidate of a rollout"}
    created = dict.fromkeys("13457", 0) | {"6": 100}
    kept = retention(list("1234567"), created, used, keep=1, young_since_ms=50)
    assert [one.version for one in kept if not one.why] == ["1"]
    assert {one.version: one.why for one in kept}["7"] == "one of the 1 newest"
    assert "cannot be read" in {one.version: one.why for one in kept}["2"]


@pytest.mark.usefixtures("place")
def test_prune_refuses_an_age_that_is_none() -> None:
    """The text is named, and the registry is as it was."""
    good("import", "m.onnx", "--contract", "c.yaml")
    assert "--age" in bad("prune", "tiny", "--age", "soon")
    assert "tiny/1" in good("verify", "tiny", "1")


def test_the_models_here_are_valid_onnx() -> None:
    """The tests' own model passes the checker, so a refusal is about the contract."""
    onnx.checker.check_model(onnx.load_from_string(tiny()))
