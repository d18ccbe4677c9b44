"""Model versions in memory: verified, loaded once, kept warm, run by ONNX Runtime on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from deploy.registry import Artifact, Registry
from deploy.training.features import Encoder
from schemas.contracts import ModelVersion
from schemas.errors import ConfigurationError, DriftlineError, RegistryError
from schemas.settings import ScorerSection

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def choose_provider(settings: ScorerSection, available: list[str] | None = None) -> tuple[list[str], str]:
    """ONNX Runtime's providers in order of preference, and why, for people.

    Raises ConfigurationError when CUDA is demanded and this build of ONNX Runtime does not have it.
    """
    names = onnxruntime.get_available_providers() if available is None else available
    if settings.provider == "cpu":
        return [_CPU], "CPU, because scorer.provider is cpu"
    if _CUDA in names:
        return [
            _CUDA,
            _CPU,
        ], f"CUDA, because this ONNX Runtime has it and scorer.provider is {settings.provider}"
    if settings.provider == "cuda":
        raise ConfigurationError(
            f"scorer.provider is cuda, but this ONNX Runtime offers {', '.join(names)} only: "
            "install the distribution's `gpu` extra, or set scorer.provider to auto"
        )
    return [_CPU], f"CPU, because this ONNX Runtime offers {', '.join(names)} only"


class LoadedVersion:
    """One version ready to answer."""

    def __init__(self, record: ModelVersion, artifact: Artifact, session: Any, encoder: Encoder) -> None:
        self.record = record
        self.golden = artifact.golden
        self._session = session
        self._encoder = encoder
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    @property
    def provider(self) -> str:
        """The provider that runs it, which is not the wished one when the device could not be opened."""
        return str(self._session.get_providers()[0])

    def score(self, table: Mapping[str, Any]) -> NDArray[np.float64]:
        """Scores ``(n,)`` of raw columns of length n. Whatever ONNX Runtime or the encoder raises passes through."""
        answers = self._session.run([self._output], {self._input: self._encoder.encode(table)})[0]
        return np.asarray(answers, np.float64).reshape(-1)

    def golden_agrees(self) -> bool:
        """Whether the golden set's outputs are those recorded at registration."""
        names = self.golden.inputs[0].keys() if self.golden.inputs else ()
        table = {name: [row[name] for row in self.golden.inputs] for name in names}
        return not self.golden.inputs or self.golden.agrees(self.score(table))


class Engine:
    """Loads versions from the registry and remembers which could not be served, and why."""

    def __init__(self, registry: Registry, settings: ScorerSection) -> None:
        self._registry = registry
        self._threads = settings.threads
        self.providers, self.why = choose_provider(settings)
        self._loaded: dict[tuple[str, str], LoadedVersion] = {}
        self._failed: dict[tuple[str, str], str] = {}

    def get(self, model: str, version: str) -> LoadedVersion | None:
        """The version, if it is loaded."""
        return self._loaded.get((model, version))

    def failed(self, model: str) -> dict[str, str]:
        """Versions of ``model`` that could not be loaded, with the reason."""
        return {version: why for (name, version), why in self._failed.items() if name == model}

    def keep(self, model: str, versions: set[str], digests: Mapping[str, str]) -> dict[str, str]:
        """Have exactly ``versions`` of ``model`` loaded; returns those that failed now, with the reason.

        ``digests``: announced SHA-256 by version. A version that failed before is tried again.
        """
        for key in [k for k in self._loaded if k[0] == model and k[1] not in versions]:
            del self._loaded[key]
        for key in [k for k in self._failed if k[0] == model and k[1] not in versions]:
            del self._failed[key]
        failed = {}
        for version in sorted(versions):
            if (model, version) in self._loaded:
                continue
            try:
                self._loaded[model, version] = self._load(model, version, digests.get(version))
                self._failed.pop((model, version), None)
            except DriftlineError as error:
                failed[version] = self._failed[model, version] = str(error)
        return failed

    def _load(self, model: str, version: str, sha256: str | None) -> LoadedVersion:
        record, artifact = self._registry.load(model, version, sha256)
        encoder = Encoder.from_json(artifact.encoder_json)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(artifact.onnx, options, providers=self.providers)
        except Exception as error:  # ONNX Runtime raises classes of its own that share no base
            raise RegistryError(f"{model}/{version}: ONNX Runtime cannot load it: {error}") from error
        return LoadedVersion(record, artifact, session, encoder)
