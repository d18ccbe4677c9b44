"""What the adapters of alibi-detect share: how it is imported, seeded, run without end, and calibrated once.

An extra: its licence is BUSL 1.1, production use needs one of its own. Nothing of it is imported unless a contract names
one of these kinds, and nothing that is on by default needs them. Three habits of the library are mended here: it calibrates
with draws from numpy's global generator, which is lent a seed and given back; it keeps every value and statistic it has
seen, so all but what its tests look back at is dropped after each row; and it would calibrate on all cores of the machine
with threads of OpenMP, the code for which takes half a minute to compile, where one core is what a worker has.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import msgspec
import numpy as np
from scipy.stats import hypergeom

from detectors.adapters.extras import imported
from detectors.adapters.machines import ALARM, QUIET, Level

#: The modules that the kinds need; those of many columns need torch too.
NEEDS = ("alibi_detect",)
NEEDS_TORCH = ("alibi_detect", "torch")
EXTRA = "pip install 'driftline[alibi]' (alibi-detect is under the Business Source License 1.1)"
EXTRA_TORCH = f"pip install torch, and {EXTRA}"
#: The library computes in single precision.
_FLOAT32_MAX = 1e30


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """numpy's global generator begins at ``seed`` within, and is as it was afterwards."""
    kept = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002, TID251
    try:
        yield
    finally:
        np.random.set_state(kept)  # noqa: NPY002


class OnlineMachine:
    """One of the library's online detectors, started again after each alarm. ``make`` builds and calibrates it, which may
    take seconds and so waits for the first row; ``window_rows`` is how far back its tests look."""

    def __init__(self, make: Callable[[], Any], seed: int, window_rows: int) -> None:
        self._make = make
        self._seed = seed
        self._window_rows = window_rows
        self._made: Any = None

    def update(self, value: Any) -> Level:
        """Take a number, or a row of numbers. Nothing is drawn at random once the thresholds stand."""
        if self._made is None:
            with seeded(self._seed):
                self._made = self._make()
            self._random = np.random.RandomState(self._seed + 1).get_state()
        kept = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._random)  # noqa: NPY002
        try:
            row = np.clip(np.atleast_1d(np.asarray(value)), -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)
            found = self._made.predict(row)["data"]["is_drift"]
        finally:
            self._random = np.random.get_state()  # noqa: NPY002
            np.random.set_state(kept)  # noqa: NPY002
        if found:
            self._made.reset_state()
            return ALARM
        keeps = getattr(self._made, "_detector", self._made)
        for name, rows in (("xs", self._window_rows), ("test_stats", 1), ("drift_preds", 1)):
            if hasattr(keeps, name):
                setattr(keeps, name, getattr(keeps, name)[-rows:])
        return QUIET


class FetMachine:
    """The library's FETDriftOnline on one window, with its thresholds and alarms, at a hundredth of the cost: a window of n
    rows has n + 1 possible counts, so the test's p-values are looked up. ``make`` as for ``OnlineMachine``."""

    def __init__(self, make: Callable[[], Any], seed: int, window_rows: int) -> None:
        self._make = make
        self._seed = seed
        self._size = window_rows
        self._window: deque[int] = deque(maxlen=window_rows)
        self._made: Any = None

    def _calibrate(self) -> None:
        with seeded(self._seed):
            made = self._made = self._make()
        ones = int(made.x_ref.sum())
        counts = ones + np.arange(self._size + 1)
        if made.alternative == "greater":
            p_values = hypergeom.cdf(ones, made.n + self._size, counts, made.n)
        else:
            p_values = hypergeom.cdf(counts - ones, made.n + self._size, counts, self._size)
        self._statistics: list[float] = (1 - p_values).tolist()
        self._thresholds: list[float] = made.thresholds[:, 0].tolist()
        self._permits: list[float] = made.permit_probs[:, 0].tolist()
        self._random = np.random.RandomState(self._seed + 1)
        self._begin()

    def _begin(self) -> None:
        self._window.clear()
        self._rows = self._ones = 0
        self._smooth: float | None = None

    def update(self, value: float) -> Level:
        """Take a 0 or a 1."""
        if self._made is None:
            self._calibrate()
        if len(self._window) == self._size:
            self._ones -= self._window[0]
        self._window.append(int(value))
        self._ones += int(value)
        self._rows += 1
        if self._rows < self._size:
            return QUIET
        found, lam = self._statistics[self._ones], self._made.lam
        if self._smooth is not None:
            found = (1 - lam) * self._smooth + lam * found
        # The library keeps its statistics in single precision, and a tie with the threshold is decided by lot.
        self._smooth = found = float(np.float32(found))
        at = min(self._rows, len(self._thresholds)) - 1
        if found > self._thresholds[at] or (
            found == self._thresholds[at] and self._random.uniform() > self._permits[at]
        ):
            self._begin()
            return ALARM
        return QUIET


def calibrated(
    name: str, kept: tuple[str, ...], cache: MutableMapping[str, bytes], key: str, **options: Any
) -> Any:
    """An ``alibi_detect.cd`` detector whose calibration, the attributes ``kept``, comes from ``cache`` or goes there."""
    kind = imported("alibi_detect.cd", name, EXTRA)
    for loop in vars(sys.modules[kind.__module__]).values():
        if getattr(loop, "targetoptions", {}).get("parallel"):
            loop.targetoptions["parallel"] = False
    held = cache.get(key)
    if held is not None:
        found = msgspec.msgpack.decode(held, type=dict[str, tuple[list[int], bytes]])

        def put(made: Any) -> None:
            for attribute, (shape, data) in found.items():
                setattr(made, attribute, np.frombuffer(data).reshape(shape).copy())

        kind = type(kind.__name__, (kind,), {"_configure_thresholds": put})
    made = kind(verbose=False, **options)
    if held is None:
        arrays = {attribute: np.asarray(getattr(made, attribute), np.float64) for attribute in kept}
        cache[key] = msgspec.msgpack.encode(
            {attribute: (array.shape, array.tobytes()) for attribute, array in arrays.items()}
        )
    return made
