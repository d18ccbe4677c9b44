"""What model versions are: groups of files that are written once, checked before every use, and never changed.

``<model>/<version>/`` of a store (a directory, or a bucket: ``deploy.store``) holds ``model.onnx``, ``encoder.json``, ``golden.json``, ``reference.json``, ``card.md``,
``manifest.json``, further ``.json`` notes and, when a key is at hand, ``signature.json``. The manifest lists the SHA-256 of every file and the
version's lineage; the SHA-256 of the manifest is the version's digest, and the signature covers the manifest's bytes.
A version appears by one step, so a reader sees all of it or nothing. What is read from afar is kept in a cache, from
which no byte is taken whose SHA-256 is not the one that was announced or that a checked manifest names.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy.artifact import (
    APPROVALS_NEEDED,
    GOLDEN_TOLERANCE,
    Approval,
    Artifact,
    ContractLink,
    Golden,
    Lineage,
    canonical,
    feature_difference,
)
from deploy.store.address import open_store
from deploy.store.base import MANIFEST, Absent, Store
from deploy.store.cache import Cache
from schemas.contracts import ModelContract, ModelVersion, Reference
from schemas.errors import DriftlineError, RegistryError, SignatureError, StoreUnavailable
from schemas.ids import content_hash
from schemas.signing import Signer, Verifier

__all__ = [
    "APPROVALS_NEEDED",
    "GOLDEN_TOLERANCE",
    "Approval",
    "Artifact",
    "ContractLink",
    "Golden",
    "Lineage",
    "Registry",
    "feature_difference",
]

log = logging.getLogger(__name__)

MANIFEST_SCHEMA = 1
FILES = ("model.onnx", "encoder.json", "golden.json", "reference.json", "card.md")
SIGNATURE = "signature.json"
PRUNED = ".pruned"
APPROVALS = "approvals"


class Registry:
    """Versions in ``store``. With a ``signer`` what is registered is signed; with a ``verifier`` only signed versions
    load. Whatever is asked of a store that is away raises StoreUnavailable."""

    def __init__(
        self,
        store: Store | Path | str,
        signer: Signer | None = None,
        verifier: Verifier | None = None,
        cache: Cache | None = None,
    ) -> None:
        self._store = open_store(store) if isinstance(store, Path | str) else store
        self._signer = signer
        self._verifier = verifier
        self._cache = cache

    @property
    def address(self) -> str:
        """Where the versions are."""
        return self._store.address

    @property
    def verifies(self) -> bool:
        """Whether signatures are checked: a trusted key is known."""
        return self._verifier is not None

    def versions(self, model: str) -> list[str]:
        """Registered versions of ``model``, numbers in their order, then names."""
        names = [name for name, whole in self._store.groups(model).items() if whole]
        return sorted(
            names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
        )

    def next_version(self, model: str) -> str:
        """The number after the highest numbered version; ``"1"`` first."""
        names = [*self._store.groups(model), *self._pruned(model)]
        return str(max((int(name) for name in names if name.isdecimal()), default=0) + 1)

    def _pruned(self, model: str) -> list[str]:
        return [entry.key.rpartition("/")[2] for entry in self._store.entries(f"{model}/{PRUNED}")]

    def register(
        self,
        contract: ModelContract,
        artifact: Artifact,
        lineage: Lineage,
        *,
        metrics: Mapping[str, float] | None = None,
        version: str | None = None,
    ) -> ModelVersion:
        """Write a version that did not exist and return its record. Raises RegistryError if it exists already."""
        if version is None:
            while True:
                with suppress(_Taken):
                    return self._register(
                        contract, artifact, lineage, metrics or {}, self.next_version(contract.model)
                    )
        return self._register(contract, artifact, lineage, metrics or {}, version)

    def record(self, model: str, version: str) -> ModelVersion:
        """The record of a version, after its manifest's and reference's checksums and its signature were checked."""
        return self._open(model, version, ("reference.json",))[0]

    def load(
        self, model: str, version: str, sha256: str | None = None, *, fresh: bool = False
    ) -> tuple[ModelVersion, Artifact]:
        """A version, every byte checked first. ``sha256``: the digest the version must have, if one is known; ``fresh``:
        the store itself is read, not the cache.

        Raises RegistryError when it is missing or altered, SignatureError when its signature is not by a trusted key.
        """
        record, files = self._open(model, version, None, sha256, fresh=fresh)
        if sha256 is not None and record.sha256 != sha256:
            raise RegistryError(
                f"{model}/{version}: the registry holds {record.sha256[:12]}, but {sha256[:12]} was announced: "
                "the version was replaced; do not serve it"
            )
        return record, Artifact(
            files["model.onnx"],
            files["encoder.json"].decode(),
            Golden.from_json(files["golden.json"].decode()),
            record.reference,
            files["card.md"].decode(),
            {name: files[name].decode() for name in files.keys() - set(FILES)},
        )

    def registered_ms(self, model: str, version: str) -> int:
        """Wall-clock time at which the version appeared here; a copy of it is younger than the original."""
        key = f"{model}/{version}/{MANIFEST}"
        for entry in self._store.entries(f"{model}/{version}"):
            if entry.key == key:
                return entry.modified_ms
        raise RegistryError(f"{model}/{version} is not in the registry at {self.address}")

    def check_features(self, contract: ModelContract, version: str, sha256: str | None = None) -> None:
        """Raise RegistryError naming the difference when a version reads other features than ``contract`` declares.

        A version registered before features were linked has nothing to compare and passes.
        """
        link = self.link(contract.model, version, sha256)
        if link is not None and (why := feature_difference(link.features, _schema(contract))):
            raise RegistryError(
                f"{contract.model}/{version} does not fit contract revision {contract.revision}: {why}"
            )

    def link(self, model: str, version: str, sha256: str | None = None) -> ContractLink | None:
        """The contract a version was registered against; None when it was registered before this was recorded."""
        found = self._manifest(model, version, sha256)[1].get("contract")
        if found is None:
            return None
        try:
            return ContractLink(
                **{**found, "features": tuple((name, kind) for name, kind in found["features"])}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RegistryError(f"{model}/{version}: its contract cannot be read: {error!r}") from error

    def approve(self, model: str, version: str, by: str, at_ms: int, reason: str = "") -> Approval:
        """Store an approval of the version as it is now. Raises SignatureError without a key to sign with."""
        record, _ = self.load(model, version)
        if self._signer is None:
            raise SignatureError("an approval must be signed: set DRIFTLINE_SIGNING__KEY_FILE")
        approval = Approval(by, at_ms, record.sha256, reason, self._signer.key_id)
        text = canonical({"model": model, "version": version, **asdict(approval)})
        stored = canonical({"approval": text, "signature": self._signer.sign_bytes(text.encode())})
        name = f"{at_ms}-{content_hash(text.encode())[:12]}.json"
        if not self._store.put(f"{model}/{version}/{APPROVALS}/{name}", stored.encode()):
            raise RegistryError(f"{model}/{version}: another approval is kept under the name {name}")
        return approval

    def notes(self, model: str, version: str) -> dict[str, Any]:
        """The version's notes by name, read as JSON, after their checksums were checked."""
        _, artifact = self.load(model, version)
        try:
            return {name: json.loads(text) for name, text in sorted(artifact.notes.items())}
        except ValueError as error:
            raise RegistryError(f"{model}/{version}: a note is no JSON: {error}") from error

    def approvals(self, model: str, version: str) -> list[Approval]:
        """Approvals of the version as it is, oldest first. Raises SignatureError when one is not by a trusted key."""
        record = self.record(model, version)
        found = []
        for entry in self._store.entries(f"{model}/{version}/{APPROVALS}"):
            try:
                stored = json.loads(self._store.get(entry.key))
                said = json.loads(stored["approval"])
                named = (said.pop("model"), said.pop("version"))
                approval = Approval(**said)
                signature = str(stored["signature"])
            except (Absent, ValueError, KeyError, TypeError) as error:
                raise SignatureError(f"{entry.key}: this approval cannot be read: {error!r}") from error
            if self._verifier is not None:
                self._verifier.verify_bytes(stored["approval"].encode(), signature, approval.key_id)
            if named == (model, version) and approval.sha256 == record.sha256:
                found.append(approval)
        return sorted(found, key=lambda approval: approval.at_ms)

    def remove(self, model: str, version: str) -> None:
        """Delete a version. Its number is remembered and never given again."""
        self._store.put(f"{model}/{PRUNED}/{version}", b"")
        try:
            self._store.delete(f"{model}/{version}")
        except Absent as error:
            raise RegistryError(f"{model}/{version} cannot be removed: {error}") from error

    def sweep(self, model: str, before_ms: int) -> list[str]:
        """Delete what a process that died left half written or half deleted before wall-clock time ``before_ms``; returns
        the names."""
        return self._store.sweep(model, before_ms)

    def find_by_cause(self, model: str, cause: str) -> ModelVersion | None:
        """The version that was registered for ``cause``, so that a request that was worked on twice yields one.

        A version that cannot be trusted is nobody's answer and is passed over.
        """
        for version in reversed(self.versions(model)):
            try:
                record = self.record(model, version)
            except StoreUnavailable:
                raise
            except (RegistryError, SignatureError):
                continue
            if record.cause == cause:
                return record
        return None

    def _register(
        self,
        contract: ModelContract,
        artifact: Artifact,
        lineage: Lineage,
        metrics: Mapping[str, float],
        version: str,
    ) -> ModelVersion:
        if version in self._pruned(contract.model):
            raise RegistryError(
                f"{contract.model}/{version} was pruned; a version's name is never given again"
            )
        if why := feature_difference(_encoded(artifact.encoder_json), _schema(contract)):
            raise RegistryError(
                f"{contract.model}/{version} does not fit contract revision {contract.revision}: {why}"
            )
        files = {
            "model.onnx": artifact.onnx,
            "encoder.json": artifact.encoder_json.encode(),
            "golden.json": artifact.golden.to_json().encode(),
            "reference.json": artifact.reference.model_dump_json().encode(),
            "card.md": artifact.card.encode(),
            **{_note(name): text.encode() for name, text in artifact.notes.items()},
        }
        try:
            draft = ModelVersion(
                model=contract.model,
                version=version,
                uri=f"{contract.model}/{version}",
                sha256="0" * 64,
                contract_revision=contract.revision,
                parent=lineage.parent,
                snapshot=lineage.snapshot,
                trained_from_ms=lineage.trained_from_ms,
                trained_to_ms=lineage.trained_to_ms,
                # JSON has no infinity: what is not finite cannot be carried by a record and is left out.
                metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)},
                reference=artifact.reference,
                risk=lineage.risk,
                cause=lineage.cause,
                created_event_ms=lineage.created_event_ms,
            )
        except ValidationError as error:
            raise RegistryError(f"{contract.model}/{version} cannot be registered: {error}") from error
        manifest = canonical(
            {
                "schema": MANIFEST_SCHEMA,
                "version": draft.model_dump(
                    mode="json", exclude={"sha256", "signature", "key_id", "reference"}
                ),
                "files": {name: content_hash(data) for name, data in files.items()},
                "contract": asdict(
                    ContractLink(
                        contract.revision,
                        contract.hash,
                        _schema(contract),
                        contract.description,
                        contract.owner,
                        contract.threshold,
                        lineage.code or _code(),
                    )
                ),
            }
        ).encode()
        files[MANIFEST] = manifest
        record = draft.model_copy(update={"sha256": content_hash(manifest)})
        if self._signer is not None:
            record = record.model_copy(
                update={"signature": self._signer.sign_bytes(manifest), "key_id": self._signer.key_id}
            )
            files[SIGNATURE] = canonical({"signature": record.signature, "key_id": record.key_id}).encode()
        if not self._store.publish(f"{contract.model}/{version}", files):
            raise _Taken(
                f"{contract.model}/{version} is registered already; a version never changes: use a new one"
            )
        return record

    def _open(
        self,
        model: str,
        version: str,
        names: Sequence[str] | None,
        sha256: str | None = None,
        *,
        fresh: bool = True,
    ) -> tuple[ModelVersion, dict[str, bytes]]:
        """Check the signature first, then the checksums, and only then hand out bytes: of ``names``, or of all files."""
        manifest, content, signature = self._manifest(model, version, None if fresh else sha256)
        try:
            sums: dict[str, str] = content["files"]
            chosen = names
            if chosen is None:
                # A manifest may be unsigned: it must not lead out of the version.
                chosen = [*FILES, *(_note(name) for name in sums.keys() - set(FILES))]
            found = {
                name: self._file(f"{model}/{version}/{name}", sums[name], fresh=fresh)
                for name in sorted({*chosen, "reference.json"})
            }
            files = {name: data for name, data in found.items() if data is not None}
            if wrong := sorted(found.keys() - files.keys()):
                raise RegistryError(
                    f"{model}/{version}: {', '.join(wrong)} is not what was registered: altered or torn"
                )
            reference = Reference.model_validate_json(files["reference.json"])
            known: dict[str, Any] = {
                "sha256": content_hash(manifest),
                "reference": reference,
                **(signature or {}),
            }
            record = ModelVersion(**content["version"], **known)
        except (Absent, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(f"{model}/{version}: manifest or files cannot be read: {error!r}") from error
        if (record.model, record.version) != (model, version):
            raise RegistryError(
                f"{model}/{version}: its manifest is of {record.model}/{record.version}: moved by hand"
            )
        return record, files

    def _file(self, key: str, sha256: str, *, fresh: bool) -> bytes | None:
        """The file's bytes, if they are those with this digest: from the cache, or from the store and kept."""
        cache = self._cache
        if cache is not None and not fresh and (kept := cache.get(sha256)) is not None:
            return kept
        data = self._store.get(key)
        if content_hash(data) != sha256:
            return None
        if cache is not None:
            cache.put(sha256, data)
        return data

    def _manifest(
        self, model: str, version: str, sha256: str | None = None
    ) -> tuple[bytes, dict[str, Any], dict[str, str] | None]:
        """The manifest's bytes and content, and its signature, which is checked first. The one with the digest ``sha256``
        may come from the cache."""
        where, cache = f"{model}/{version}", self._cache
        if cache is not None and sha256 is not None:
            kept, beside = cache.get(sha256), cache.signature(sha256)
            if kept is not None and beside is not None:
                try:
                    return self._checked(where, kept, beside)
                except DriftlineError as error:
                    log.warning("%s is read from the registry again: in the cache, %s", where, error)
        try:
            manifest = self._store.get(f"{where}/{MANIFEST}")
        except Absent as error:
            raise RegistryError(f"{where} is not in the registry at {self.address}: {error}") from error
        try:
            signature = self._store.get(f"{where}/{SIGNATURE}")
        except Absent:
            signature = b""
        found = self._checked(where, manifest, signature)
        if cache is not None:
            cache.put(content_hash(manifest), manifest, signature)
        return found

    def _checked(
        self, where: str, manifest: bytes, signed: bytes
    ) -> tuple[bytes, dict[str, Any], dict[str, str] | None]:
        signature = _signature(where, signed)
        if self._verifier is not None:
            if signature is None:
                raise SignatureError(f"{where} is not signed, and only signed versions are trusted")
            self._verifier.verify_bytes(manifest, signature["signature"], signature["key_id"])
        try:
            content: dict[str, Any] = json.loads(manifest)
            schema = content["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"{where}: its manifest cannot be read: {error!r}") from error
        if schema != MANIFEST_SCHEMA:
            raise RegistryError(f"{where}: manifest schema {schema} is not {MANIFEST_SCHEMA}")
        return manifest, content, signature


def _schema(contract: ModelContract) -> tuple[tuple[str, str], ...]:
    return tuple((feature.name, feature.kind) for feature in contract.features)


def _encoded(encoder_json: str) -> tuple[tuple[str, str], ...]:
    """Features (name, kind) an encoder reads, in its order."""
    try:
        raw = json.loads(encoder_json)
        return tuple(
            (str(name), "categorical" if name in raw["categories"] else "numeric") for name in raw["features"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"the version's encoder cannot be read: {error!r}") from error


def _code() -> str:
    try:
        return f"driftline {package_version('driftline')}"
    except PackageNotFoundError:
        return "driftline, not installed"


class _Taken(RegistryError):
    """Somebody registered this version first."""


def _signature(where: str, signed: bytes) -> dict[str, str] | None:
    if not signed:
        return None
    try:
        data = json.loads(signed)
        return {"signature": str(data["signature"]), "key_id": str(data["key_id"])}
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureError(f"{where}/{SIGNATURE} cannot be read: {error!r}") from error


def _note(name: str) -> str:
    """``name``, if it may be a further file of a version. Raises RegistryError."""
    if (
        name in (*FILES, MANIFEST, SIGNATURE)
        or not name.endswith(".json")
        or "/" in name
        or name.startswith(".")
    ):
        raise RegistryError(f"{name!r} cannot be a further file of a version: name it like `something.json`")
    return name
