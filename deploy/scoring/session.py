"""One ONNX Runtime session with input and output buffers that stay: nothing is allocated for a batch, nothing copied twice.

Buffers are bound to the session (IOBinding). On CUDA they are registered with the driver as page-locked, so that the
copies to and from the device go at its full speed; where that is refused they work unregistered, and say so.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import threading
import weakref
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from deploy.scoring.provider import CUDA, Choice

log = logging.getLogger(__name__)

_ROWS_MIN = 64
_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64}
_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")


class Session:
    """Scores matrices. Threads may call :meth:`run` side by side: each has buffers of its own."""

    def __init__(self, onnx: bytes, choice: Choice, threads: int, device_bytes_max: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            onnx, options, providers=_with_options(choice, device_bytes_max)
        )
        given, output = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self._input, self._output = given.name, output.name
        self._dtype: Any = _FLOATS.get(output.type, np.float32)
        shape = output.shape
        #: The shape behind the rows; None when only running the model tells.
        self._tail = () if len(shape) == 1 else (1,) if len(shape) == 2 and shape[1] == 1 else None
        self._locked = self.provider == CUDA
        self._own = threading.local()

    @property
    def provider(self) -> str:
        """The provider that runs it, which is not the wished one when the device could not be opened."""
        return str(self._session.get_providers()[0])

    def run(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores ``(n,)`` of a ``(n, features)`` matrix. Whatever ONNX Runtime raises passes through."""
        rows, columns = matrix.shape
        buffers = getattr(self._own, "buffers", None)
        if buffers is None or buffers.rows < rows:
            size = max(_ROWS_MIN, 1 << (rows - 1).bit_length())
            buffers = self._own.buffers = _Buffers(self._session, size, columns, self._dtype, self._locked)
        np.copyto(buffers.given[: rows * columns].reshape(rows, columns), matrix)
        binding = buffers.binding
        binding.bind_input(self._input, "cpu", 0, np.float32, (rows, columns), buffers.given.ctypes.data)
        if self._tail is None:
            binding.bind_output(self._output)
            self._session.run_with_iobinding(binding)
            answers = binding.copy_outputs_to_cpu()[0]
        else:
            shape = (rows, *self._tail)
            binding.bind_output(self._output, "cpu", 0, self._dtype, shape, buffers.answers.ctypes.data)
            self._session.run_with_iobinding(binding)
            answers = buffers.answers[:rows]
        return np.array(answers, np.float64).reshape(-1)


class _Buffers:
    """One thread's input and output memory, and the binding that uses it."""

    def __init__(self, session: Any, rows: int, columns: int, dtype: Any, locked: bool) -> None:
        self.rows = rows
        self.binding = session.io_binding()
        self.given = _memory(rows * columns, np.float32, locked)
        self.answers = _memory(rows, dtype, locked)


def _memory(items: int, dtype: Any, locked: bool) -> NDArray[Any]:
    """Whole pages of memory, page-locked if wished and possible, for as long as the array lives."""
    pages = mmap.mmap(-1, max(1, items * np.dtype(dtype).itemsize))
    found = np.frombuffer(pages, dtype, items)
    if locked and (runtime := _runtime()) is not None:
        address = ctypes.c_void_p(found.ctypes.data)
        if (code := runtime.cudaHostRegister(address, ctypes.c_size_t(len(pages)), 0)) == 0:
            # Kept alive by the array, unlocked after it.
            weakref.finalize(found, runtime.cudaHostUnregister, address)
        else:
            log.warning(
                "host memory could not be page-locked (cudaHostRegister says %d): copies are slower", code
            )
    return found


def _runtime() -> Any:
    for name in _CUDA_RUNTIMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    log.warning("the CUDA runtime cannot be loaded: host memory is not page-locked, copies are slower")
    return None


def _with_options(choice: Choice, device_bytes_max: int) -> list[Any]:
    if choice.provider != CUDA:
        return list(choice.providers)
    cuda = {
        "device_id": "0",
        "gpu_mem_limit": str(device_bytes_max),
        # As much as asked for: doubling would let the first model take what the others need.
        "arena_extend_strategy": "kSameAsRequested",
        # TF32 keeps ten bits of a float's fraction: golden outputs would differ from the CPU's.
        "use_tf32": "0",
    }
    return [(CUDA, cuda), *choice.providers[1:]]
