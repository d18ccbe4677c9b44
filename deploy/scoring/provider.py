"""Which ONNX Runtime provider runs the models here, and why: found out by trying, said in words an operator can act on.

ONNX Runtime falls back to the CPU in silence when CUDA cannot be opened, so a list of providers says little: a one-node
model is run on the device, and what stands in the way (build, driver, device, library) is looked for and named.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from schemas.errors import ConfigurationError
from schemas.settings import ScorerSection

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_BUILDS = ("onnxruntime-gpu", "onnxruntime")
#: ``y = Relu(x)`` over a float vector, opset 17.
_TINY = (
    b"\x08\x08\x12\x00:5\n\x0c\n\x01x\x12\x01y\x22\x04Relu\x12\x01tZ\x10\n\x01x\x12\x0b\n\t\x08\x01\x12\x05\n\x03"
    b"\x12\x01nb\x10\n\x01y\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01nB\x04\n\x00\x10\x11"
)


@dataclass(frozen=True, slots=True)
class Found:
    """What there is. ``obstacle``: why CUDA does not run, None when it does. ``device``: its name."""

    build: str
    obstacle: str | None
    device: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The provider to ask for, and why, for people. ``providers`` is ONNX Runtime's list, in order of preference."""

    provider: str
    why: str

    @property
    def providers(self) -> list[str]:
        return [CUDA, CPU] if self.provider == CUDA else [CPU]


def choose(settings: ScorerSection, found: Found) -> Choice:
    """The provider by the wish and by what there is. Raises ConfigurationError when CUDA is demanded and does not run."""
    if settings.provider == "cpu":
        instead = f"CUDA would run on {found.device}" if found.obstacle is None else found.obstacle
        return Choice(CPU, f"CPU, because scorer.provider is cpu; {instead} ({found.build})")
    if found.obstacle is None:
        return Choice(
            CUDA,
            f"CUDA on {found.device}, because a model ran there and scorer.provider is {settings.provider} ({found.build})",
        )
    if settings.provider == "cuda":
        raise ConfigurationError(
            f"scorer.provider is cuda, but {found.obstacle} ({found.build}); or set scorer.provider to auto"
        )
    return Choice(CPU, f"CPU, because {found.obstacle} ({found.build})")


def look() -> Found:
    """Try CUDA here. Takes milliseconds without it, a second or two with it; changes nothing."""
    available = onnxruntime.get_available_providers()
    build = f"{_distribution()}, providers {', '.join(available)}"
    if CUDA not in available:
        driver = _driver()
        there = driver if isinstance(driver, str) else f"though {driver[1]} is here"
        return Found(
            build, f"this is the CPU build of ONNX Runtime: install the extra `gpu` instead of `cpu`; {there}"
        )
    driver = _driver()
    if isinstance(driver, str):
        return Found(build, driver)
    onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(_TINY, _quiet(), providers=[CUDA, CPU])
        runs_on = session.get_providers()[0]
        session.run(None, {"x": np.zeros(1, np.float32)})
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises classes of its own that share no base
        return Found(build, f"the device {driver[1]} does not run a model: {error}", driver[1])
    if runs_on != CUDA:
        return Found(
            build, _missing_library() or "ONNX Runtime could not open CUDA and says no more", driver[1]
        )
    return Found(build, None, driver[1])


def _driver() -> tuple[int, str] | str:
    """Devices and the first one's name as the driver tells them; or what is missing."""
    try:
        driver: Any = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    count, name = ctypes.c_int(), ctypes.create_string_buffer(100)
    if (code := driver.cuInit(0)) != 0:
        return f"the NVIDIA driver does not start (cuInit says {code}): is a device visible to this process?"
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or not count.value:
        return "the NVIDIA driver sees no device: look at CUDA_VISIBLE_DEVICES and the container's devices"
    driver.cuDeviceGetName(name, len(name), 0)
    return count.value, name.value.decode(errors="replace")


def _missing_library() -> str | None:
    """The library that CUDA's part of ONNX Runtime asks for and does not get."""
    file = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(file))
    except OSError as error:
        return f"a library is missing: {error}; install the extra `gpu`, which brings CUDA and cuDNN"
    return None


def _distribution() -> str:
    for name in _BUILDS:
        try:
            return f"{name} {package_version(name)}"
        except PackageNotFoundError:
            continue
    return f"onnxruntime {onnxruntime.__version__}"


def _quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options
