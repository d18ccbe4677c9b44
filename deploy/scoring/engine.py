"""Model versions in memory: verified, proven on their golden sets, loaded once, kept warm, within a budget of bytes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.core.memory import MemoryBudget
from deploy.registry import GOLDEN_TOLERANCE, Artifact, Registry
from deploy.scoring.provider import choose, look
from deploy.scoring.session import Session
from deploy.scoring.wire import CompiledContract, Features
from deploy.training.features import Encoder
from schemas.contracts import ModelVersion
from schemas.errors import DriftlineError, RegistryError, StoreUnavailable
from schemas.settings import ScorerSection

#: What a session takes, for the budget: its file twice (weights, and kernels prepared from them) and its arenas.
_SESSION_BYTES, _FILE_TIMES = 4_000_000, 2
_encoders = itertools.count()


class LoadedVersion:
    """One version ready to answer."""

    def __init__(self, record: ModelVersion, artifact: Artifact, session: Session, encoder: Encoder) -> None:
        self.record = record
        self.golden = artifact.golden
        self._session = session
        self._encoder = encoder
        #: Under which name rows remember what this version's encoder made of them.
        self._name = next(_encoders)

    @property
    def provider(self) -> str:
        """The provider that runs it."""
        return self._session.provider

    def score(self, rows: Sequence[Features], contract: CompiledContract) -> NDArray[np.float64]:
        """Scores ``(n,)`` of checked rows. Whatever ONNX Runtime or the encoder raises passes through."""
        return self._session.run(self._matrix(rows, contract))

    def run(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores ``(n,)`` of rows that are encoded already, ``(n, features)``."""
        return self._session.run(matrix)

    def encode(self, table: Mapping[str, Any]) -> NDArray[np.float32]:
        """Raw columns of length n as the matrix this version reads."""
        return self._encoder.encode(table)

    def golden_agrees(self) -> bool:
        """Whether the golden set's outputs are those recorded at registration."""
        names = self.golden.inputs[0].keys() if self.golden.inputs else ()
        table = {name: [row[name] for row in self.golden.inputs] for name in names}
        return not self.golden.inputs or self.golden.agrees(self.run(self.encode(table)))

    def _matrix(self, rows: Sequence[Features], contract: CompiledContract) -> NDArray[np.float32]:
        if not contract.caches:
            return self._encoder.encode(contract.table(rows))
        name = self._name
        new = [row for row in rows if name not in row.encoded]
        if new:
            matrix = self._encoder.encode(contract.table(new))
            data, width = matrix.tobytes(), matrix.shape[1] * 4
            for at, row in enumerate(new):
                row.encoded[name] = data[at * width : (at + 1) * width]
            if len(new) == len(rows):
                return matrix
        lines = b"".join([row.encoded[name] for row in rows])
        return np.frombuffer(lines, np.float32).reshape(len(rows), -1)


class Engine:
    """Loads versions from the registry and remembers which could not be served, and why.

    :meth:`load` and :meth:`warm`, which take long, may run on one thread beside the others' calls of everything else.
    """

    def __init__(self, registry: Registry, settings: ScorerSection) -> None:
        self._registry = registry
        self._threads = settings.threads
        self._choice = choose(settings, look())
        self.why = self._choice.why
        self._memory: MemoryBudget[tuple[str, str]] = MemoryBudget(settings.memory_bytes_max)
        self._loaded: dict[tuple[str, str], LoadedVersion] = {}
        self._failed: dict[tuple[str, str], str] = {}
        #: Those of which nothing is known, because the registry is away.
        self._awaited: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        #: Versions by model that must stay: routed, or kept warm.
        self._pinned: dict[str, frozenset[str]] = {}

    @property
    def memory_bytes(self) -> int:
        """Estimated bytes of everything loaded."""
        return self._memory.used

    def get(self, model: str, version: str) -> LoadedVersion | None:
        """The version, if it is loaded."""
        return self._loaded.get((model, version))

    def failed(self, model: str) -> dict[str, str]:
        """Versions of ``model`` that could not be loaded, with the reason."""
        return {version: why for (name, version), why in self._failed.items() if name == model}

    def awaited(self, model: str) -> dict[str, str]:
        """Versions of ``model`` that are wanted while the registry is away, with why it is; they have not failed."""
        return {version: why for (name, version), why in self._awaited.items() if name == model}

    def claim(self, model: str, versions: Collection[str]) -> bool:
        """Make ``versions`` those of ``model`` that are never given up; whether all of them are loaded already."""
        with self._lock:
            self._pinned[model] = frozenset(versions)
            loaded = [(model, version) for version in versions if (model, version) in self._loaded]
            for key in loaded:
                self._memory.used_now(key)
            return len(loaded) == len(versions)

    def settled(self, model: str, versions: Collection[str]) -> bool:
        """Whether each of ``versions`` is loaded, or is known not to load."""
        return all((model, v) in self._loaded or (model, v) in self._failed for v in versions)

    def load(self, model: str, versions: Sequence[str], digests: Mapping[str, str]) -> dict[str, str]:
        """Load what is missing of ``versions``, the most needed first; what was loaded before stays while there is room.

        Returns those that failed now, with the reason; a version that failed before is tried again. ``digests``:
        announced SHA-256 by version. What the registry is away for is :meth:`awaited`.
        """
        for known in (self._failed, self._awaited):
            for key in [k for k in known if k[0] == model and k[1] not in versions]:
                del known[key]
        failed = {}
        for version in versions:
            if (model, version) in self._loaded:
                continue
            try:
                self._load(model, version, digests.get(version))
                self._failed.pop((model, version), None)
                self._awaited.pop((model, version), None)
            except StoreUnavailable as error:
                self._awaited[model, version] = str(error)
            except DriftlineError as error:
                failed[version] = self._failed[model, version] = str(error)
                self._awaited.pop((model, version), None)
        return failed

    def warm(self, model: str, version: str, sha256: str | None) -> None:
        """Load a version that nothing routes to yet, so that it is there when it is wanted. Raises DriftlineError."""
        if (model, version) not in self._loaded:
            self._load(model, version, sha256)

    def _load(self, model: str, version: str, sha256: str | None) -> None:
        record, artifact = self._registry.load(model, version, sha256)
        size = _SESSION_BYTES + _FILE_TIMES * len(artifact.onnx)
        with self._lock:
            pinned = {(name, kept) for name, all_kept in self._pinned.items() for kept in all_kept}
            going = self._memory.room_for(size, pinned)
            for key in going or ():
                del self._loaded[key]
                self._memory.drop(key)
        if going is None:
            raise RegistryError(
                f"{model}/{version} needs about {size / 1e6:.0f} MB, and versions that are routed or warm hold "
                f"{self._memory.used / 1e6:.0f} of {self._memory.bytes_max / 1e6:.0f} MB: raise scorer.memory_bytes_max"
            )
        try:
            session = Session(artifact.onnx, self._choice, self._threads, self._memory.bytes_max)
            loaded = LoadedVersion(record, artifact, session, Encoder.from_json(artifact.encoder_json))
            proven = loaded.golden_agrees()
        except DriftlineError:
            raise
        except Exception as error:  # ONNX Runtime raises classes of its own that share no base
            raise RegistryError(f"{model}/{version}: ONNX Runtime cannot run it: {error}") from error
        if not proven:
            raise RegistryError(
                f"{model}/{version}: its golden set's outputs on {loaded.provider} differ from those recorded by more than "
                f"{GOLDEN_TOLERANCE:g}: not the model that was registered, or not the same arithmetic"
            )
        with self._lock:
            self._loaded[model, version] = loaded
            self._memory.add((model, version), size)
