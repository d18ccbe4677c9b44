"""The registry writes once, hands out nothing that was altered, and finds a version by what asked for it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import model_report
from deploy.registry import Artifact, Golden, Lineage, Registry, feature_difference
from deploy.training.features import Encoder
from schemas.contracts import Feature, ModelContract, ModelVersion, Reference
from schemas.errors import RegistryError, SignatureError
from schemas.ids import content_hash
from schemas.signing import Signer, Verifier

CONTRACT = ModelContract(model="delay", features=(Feature(name="x"),))


def _artifact(onnx: bytes = b"model") -> Artifact:
    return Artifact(
        onnx,
        Encoder(("x",)).to_json(),
        Golden(({"x": 1.0}, {"x": None}), (0.25, 0.5)),
        Reference(loss_mean=0.4),
        "# card\n",
    )


def _verifier(signer: Signer) -> Verifier:
    import base64

    return Verifier([base64.b64encode(signer.public).decode()])


def test_a_version_comes_back_as_it_was_registered(tmp_path: Path) -> None:
    """Bytes, golden set, reference, lineage and finite metrics survive; infinities are left out of the record."""
    registry = Registry(tmp_path)
    lineage = Lineage(parent="0", cause="r-1", snapshot="s", created_event_ms=9)
    record = registry.register(
        CONTRACT, _artifact(), lineage, metrics={"auc": 0.7, "half_life": float("inf")}
    )
    loaded, artifact = registry.load("delay", "1", record.sha256)
    assert loaded == record
    assert artifact == _artifact()
    assert (record.parent, record.cause, record.metrics) == ("0", "r-1", {"auc": 0.7})
    assert record.sha256 == content_hash((tmp_path / "delay" / "1" / "manifest.json").read_bytes())


def test_versions_are_numbered_and_never_replaced(tmp_path: Path) -> None:
    """Numbers go up past names that are no numbers; a second registration of a version is refused and leaves no draft."""
    registry = Registry(tmp_path)
    for version in (None, None, "hotfix", "10", None):
        registry.register(CONTRACT, _artifact(), Lineage(), version=version)
    assert registry.versions("delay") == ["1", "2", "10", "11", "hotfix"]
    with pytest.raises(RegistryError, match="registered already"):
        registry.register(CONTRACT, _artifact(b"other"), Lineage(), version="2")
    assert registry.load("delay", "2")[1].onnx == b"model"
    assert not [p for p in (tmp_path / "delay").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", ["model.onnx", "encoder.json", "golden.json", "reference.json", "card.md"])
def test_an_altered_file_is_found(tmp_path: Path, name: str) -> None:
    """One changed byte in any file makes the version unusable."""
    registry = Registry(tmp_path)
    registry.register(CONTRACT, _artifact(), Lineage())
    file = tmp_path / "delay" / "1" / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(RegistryError, match=name):
        registry.load("delay", "1")


def test_an_announced_digest_must_be_the_one_on_disk(tmp_path: Path) -> None:
    """A directory that was replaced as a whole passes its own checksums but not the announced digest."""
    registry = Registry(tmp_path)
    registry.register(CONTRACT, _artifact(), Lineage())
    with pytest.raises(RegistryError, match="announced"):
        registry.load("delay", "1", "f" * 64)


def test_signatures_are_checked_before_the_bytes(tmp_path: Path) -> None:
    """Signed by a trusted key loads; unsigned, foreign or with a manifest changed after signing does not."""
    mine, other = Signer.create(tmp_path / "a.pem"), Signer.create(tmp_path / "b.pem")
    root = tmp_path / "registry"
    Registry(root, mine).register(CONTRACT, _artifact(), Lineage())
    Registry(root).register(CONTRACT, _artifact(), Lineage())
    Registry(root, other).register(CONTRACT, _artifact(), Lineage())
    strict = Registry(root, verifier=_verifier(mine))
    assert strict.load("delay", "1")[0].key_id == mine.key_id
    for version in ("2", "3"):
        with pytest.raises(SignatureError):
            strict.load("delay", version)
    manifest = root / "delay" / "1" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["version"]["risk"] = "high"
    manifest.write_text(json.dumps(content))
    with pytest.raises(SignatureError):
        strict.load("delay", "1")


def test_a_version_moved_to_another_name_does_not_load(tmp_path: Path) -> None:
    """A copy under another version's name is refused: the manifest says whose it is."""
    registry = Registry(tmp_path)
    registry.register(CONTRACT, _artifact(), Lineage())
    (tmp_path / "delay" / "1").rename(tmp_path / "delay" / "2")
    with pytest.raises(RegistryError, match="moved"):
        registry.load("delay", "2")
    with pytest.raises(RegistryError, match="not in the registry"):
        registry.load("delay", "1")


def test_a_version_is_found_by_its_cause(tmp_path: Path) -> None:
    """A request that was worked on before a crash leads to its version, an unknown one to none."""
    registry = Registry(tmp_path)
    registry.register(CONTRACT, _artifact(), Lineage(cause="r-1"))
    registry.register(CONTRACT, _artifact(), Lineage(cause="r-2"))
    found = registry.find_by_cause("delay", "r-1")
    assert found is not None
    assert found.version == "1"
    assert registry.find_by_cause("delay", "r-3") is None
    (tmp_path / "delay" / "2" / "manifest.json").write_text("{}")
    assert registry.find_by_cause("delay", "r-2") is None
    assert registry.find_by_cause("delay", "r-1") == found


@pytest.mark.parametrize(
    ("scores", "same"),
    [
        ([0.25, 0.5], True),
        ([0.25, 0.500001], True),
        ([0.25, 0.51], False),
        ([0.25], False),
        ([0.25, float("nan")], False),
    ],
)
def test_golden_comparison(scores: list[float], same: bool) -> None:
    """Equal within the stated tolerance; a NaN, a wrong length or a difference is a mismatch."""
    assert Golden(({}, {}), (0.25, 0.5)).agrees(scores) is same


def test_features_are_checked_by_name_kind_and_order(tmp_path: Path) -> None:
    """A version that reads other features than the contract is refused, and the difference is named; later too."""
    registry = Registry(tmp_path)
    two = ModelContract(model="delay", features=(Feature(name="x"), Feature(name="y")))
    with pytest.raises(RegistryError, match="the version lacks y"):
        registry.register(two, _artifact(), Lineage())
    registry.register(CONTRACT, _artifact(), Lineage())
    registry.check_features(CONTRACT, "1")
    with pytest.raises(RegistryError, match="the version lacks y"):
        registry.check_features(two, "1")
    changed = ModelContract(model="delay", features=(Feature(name="x", kind="categorical"),))
    with pytest.raises(RegistryError, match="x is numeric in the version and categorical"):
        registry.check_features(changed, "1")
    assert feature_difference((("a", "numeric"), ("b", "numeric")), (("b", "numeric"), ("a", "numeric")))


def test_approvals_are_signed_and_of_one_digest(tmp_path: Path) -> None:
    """They come back in order; without a key, or altered, or by a foreign key they do not count."""
    mine, other = Signer.create(tmp_path / "a.pem"), Signer.create(tmp_path / "b.pem")
    registry = Registry(tmp_path / "registry", mine, _verifier(mine))
    record = registry.register(CONTRACT, _artifact(), Lineage(risk="high"))
    registry.approve("delay", "1", "ann", 2, "looked at it")
    registry.approve("delay", "1", "bob", 1)
    found = registry.approvals("delay", "1")
    assert [(a.by, a.sha256) for a in found] == [("bob", record.sha256), ("ann", record.sha256)]
    with pytest.raises(SignatureError, match="must be signed"):
        Registry(registry.address).approve("delay", "1", "eve", 3)
    Registry(registry.address, other).approve("delay", "1", "eve", 3)
    with pytest.raises(SignatureError):
        registry.approvals("delay", "1")


def test_a_removed_version_is_gone_and_its_number_is_not_given_again(tmp_path: Path) -> None:
    """Removal leaves no files of the version but the memory of its name."""
    registry = Registry(tmp_path)
    registry.register(CONTRACT, _artifact(), Lineage())
    registry.register(CONTRACT, _artifact(), Lineage())
    registry.remove("delay", "2")
    assert registry.versions("delay") == ["1"]
    assert registry.register(CONTRACT, _artifact(), Lineage()).version == "3"
    with pytest.raises(RegistryError, match="pruned"):
        registry.register(CONTRACT, _artifact(), Lineage(), version="2")


def _noted() -> Artifact:
    return replace(
        _artifact(), notes={"snapshot.json": '{"rows": 7}', "training.json": '{"handed_over": false}'}
    )


def test_notes_are_part_of_a_version(tmp_path: Path) -> None:
    """They come back, change the digest, and an altered or lost one is found like any other file."""
    registry = Registry(tmp_path)
    plain = registry.register(CONTRACT, _artifact(), Lineage(), version="1")
    noted = registry.register(CONTRACT, _noted(), Lineage(), version="2")
    assert plain.sha256 != noted.sha256
    assert registry.load("delay", "2")[1] == _noted()
    assert registry.notes("delay", "2") == {
        "snapshot.json": {"rows": 7},
        "training.json": {"handed_over": False},
    }
    assert registry.notes("delay", "1") == {}
    (tmp_path / "delay" / "2" / "training.json").write_text('{"handed_over": true}')
    with pytest.raises(RegistryError, match=r"training\.json is not what was registered"):
        registry.load("delay", "2")
    (tmp_path / "delay" / "2" / "training.json").unlink()
    with pytest.raises(RegistryError, match="cannot be read"):
        registry.load("delay", "2")


@pytest.mark.parametrize(
    "name", ["../x.json", "manifest.json", "model.onnx", ".x.json", "a/b.json", "note.txt"]
)
def test_a_note_cannot_be_any_file(tmp_path: Path, name: str) -> None:
    """Neither one of the version's own nor one outside its directory: not when written, not when read."""
    registry = Registry(tmp_path)
    with pytest.raises(RegistryError, match="cannot be a further file"):
        registry.register(CONTRACT, replace(_artifact(), notes={name: "{}"}), Lineage())
    registry.register(CONTRACT, _artifact(), Lineage(), version="1")
    manifest = tmp_path / "delay" / "1" / "manifest.json"
    content = json.loads(manifest.read_bytes())
    if name not in content["files"]:
        content["files"][name] = "0" * 64
        manifest.write_text(json.dumps(content))
        with pytest.raises(RegistryError):
            registry.load("delay", "1")


def test_what_a_dead_process_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    """Half-written and half-deleted versions; nothing that is whole, and nothing that may still be written."""
    registry = Registry(tmp_path)
    registry.register(CONTRACT, _artifact(), Lineage())
    for name in (".draft-old", ".gone-3", ".draft-new"):
        (tmp_path / "delay" / name).mkdir()
        (tmp_path / "delay" / name / "model.onnx").write_bytes(b"x")
    for name in (".draft-old", ".gone-3"):
        os.utime(tmp_path / "delay" / name, (1_000, 1_000))
    assert registry.sweep("delay", 2_000_000) == [".draft-old", ".gone-3"]
    assert sorted(path.name for path in (tmp_path / "delay").iterdir()) == [".draft-new", "1"]
    assert registry.sweep("nobody", 2_000_000) == []


def test_a_card_says_how_a_version_was_made() -> None:
    """Rows, labels, weighting and verdict, from the notes; a version trained elsewhere has no such part."""
    record = ModelVersion(model="delay", version="2", uri="delay/2", sha256="0" * 64)
    notes = {
        "snapshot.json": {"rows": 90, "predictions": 100, "unlabelled": 8, "left_out": 2, "backed_off_ms": 7_200_000,
                          "backed_off_by": "measured", "trainer": "sklearn"},
        "training.json": {"weighting": "recent 14d", "detail": "against version 1: better", "handed_over": True},
    }  # fmt: skip
    text = model_report.card(record, None, (), notes)
    assert "- Rows: 90 of 100 predictions; 8 had no label, 2 were outside the contract" in text
    assert "ends 2.0 h before the request (measured)" in text
    assert "rows weighted: recent 14d" in text
    assert "- Judged: against version 1: better" in text
    assert "How it was made" not in model_report.card(record, None, ())


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    """A scorer that runs as another user reads versions and approvals that the controller's user wrote."""
    before = os.umask(0o022)
    try:
        registry = Registry(tmp_path, Signer.create(tmp_path / "key.pem"))
        registry.register(CONTRACT, _artifact(), Lineage())
        registry.approve("delay", "1", "ann", 1)
    finally:
        os.umask(before)
    version = tmp_path / "delay" / "1"
    assert oct(version.stat().st_mode & 0o777) == "0o755"
    assert {oct(path.stat().st_mode & 0o777) for path in version.rglob("*.json")} == {"0o644"}
