"""The loops that people write with river and alibi-detect themselves: one row, one call, one detector a column.

They are what our cost is put beside, on the same rows in the same run; none of them reads a block.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Takes rows (n, columns) one by one.
Loop = Callable[[Floats], None]
Maker = Callable[[Floats], Loop]

CVM_RUN_ROWS = 100
CVM_WINDOW = 30


def versions() -> dict[str, str]:
    """What the figures are beside."""
    found = {}
    for name in ("river", "alibi-detect", "numpy", "scikit-learn"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _each_column(make: Callable[[], Any]) -> Maker:
    """A detector of river's for each column."""

    def loop_of(reference: Floats) -> Loop:
        machines = [make() for _ in range(reference.shape[1])]

        def loop(rows: Floats) -> None:
            for row in rows.tolist():
                for machine, value in zip(machines, row, strict=True):
                    machine.update(value)
                    _ = machine.drift_detected

        return loop

    return loop_of


def _errors(make: Callable[[], Any]) -> Maker:
    """A detector of river's that reads whether an answer was wrong."""

    def loop_of(_: Floats) -> Loop:
        machine = make()

        def loop(rows: Floats) -> None:
            for row in rows.tolist():
                machine.update(row[0] > 1)
                _ = machine.drift_detected

        return loop

    return loop_of


def _anomaly(make: Callable[[], Any]) -> Maker:
    """An anomaly detector of river's, which reads a row as a dictionary."""

    def loop_of(reference: Floats) -> Loop:
        machine = make()
        names = [f"f{at}" for at in range(reference.shape[1])]

        def loop(rows: Floats) -> None:
            for row in rows.tolist():
                named = dict(zip(names, row, strict=True))
                machine.score_one(named)
                machine.learn_one(named)

        return loop

    return loop_of


@contextlib.contextmanager
def _quietly() -> Any:
    """alibi-detect shows bars and warnings; figures go to the same place. It draws from numpy's global generator."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            np.random.seed(0)  # noqa: NPY002, TID251
            yield
    finally:
        logging.disable(level)


def cvm_online(reference: Floats, run_rows: int = CVM_RUN_ROWS) -> Any:
    """alibi-detect's CVMDriftOnline on the rows ``reference (n, columns)``."""
    with _quietly():
        from alibi_detect.cd import CVMDriftOnline

        return CVMDriftOnline(
            reference, ert=run_rows, window_sizes=[CVM_WINDOW], n_bootstraps=max(1_000, 3 * run_rows),
            n_features=reference.shape[1], verbose=False,
        )  # fmt: skip


def _cvm(reference: Floats) -> Loop:
    machine = cvm_online(reference[:, :1])

    def loop(rows: Floats) -> None:
        for row in rows[:, :1]:
            machine.predict(row)

    return loop


def _alibi_mahalanobis(_: Floats) -> Loop:
    with _quietly():
        from alibi_detect.od import Mahalanobis

        machine = Mahalanobis(threshold=10.0, start_clip=100)

    def loop(rows: Floats) -> None:
        for row in rows:
            machine.predict(row[None])

    return loop


def _alibi_forest(reference: Floats) -> Loop:
    with _quietly():
        from alibi_detect.od import IForest

        machine = IForest(threshold=0.0, n_estimators=100)
        machine.fit(reference)

    def loop(rows: Floats) -> None:
        for row in rows:
            machine.predict(row[None])

    return loop


def makers() -> dict[str, tuple[str, Maker]]:
    """By our kind: the peer's name, and what makes its loop from reference rows."""
    from river import anomaly, drift

    return {
        "adwin": ("river ADWIN", _each_column(lambda: drift.ADWIN(delta=1e-6))),
        "kswin": (
            "river KSWIN",
            _each_column(lambda: drift.KSWIN(alpha=1e-5, window_size=300, stat_size=100, seed=1)),
        ),
        "river-drift": ("river ADWIN, its default", _each_column(drift.ADWIN)),
        "page-hinkley": ("river PageHinkley", _each_column(drift.PageHinkley)),
        "ddm": ("river DDM", _errors(drift.binary.DDM)),
        "eddm": ("river EDDM", _errors(drift.binary.EDDM)),
        "hddm-a": ("river HDDM_A", _errors(drift.binary.HDDM_A)),
        "hddm-w": ("river HDDM_W", _errors(drift.binary.HDDM_W)),
        "half-space-trees": ("river HalfSpaceTrees", _anomaly(lambda: anomaly.HalfSpaceTrees(seed=1))),
        "cvm-online": ("alibi-detect CVMDriftOnline", _cvm),
        "mahalanobis": ("alibi-detect Mahalanobis", _alibi_mahalanobis),
        "isolation-forest": ("alibi-detect IForest", _alibi_forest),
    }
