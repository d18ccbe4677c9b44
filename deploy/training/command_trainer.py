"""Any command line as a trainer: it is handed files, and what it leaves behind is read with distrust.

It runs in a directory of its own that is deleted afterwards, in a session of its own that is killed as a whole, with the
variables the operator lists and no others; it may take so long and write so much. It is no sandbox: it runs as the
trainer's user and may read what that user may, and its memory is bounded only by whatever bounds the trainer's.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from deploy.training import confined
from deploy.training.features import Encoder, fit_encoder
from deploy.training.scores import ONNX_INPUT, ONNX_OUTPUT
from deploy.training.trainers import Cancelled, Fitted, Job, Trainer
from schemas.errors import ConfigurationError, TrainerCommandError
from schemas.settings import TrainerCommand, TrainerSection

SPEC_SCHEMA = 1
#: Columns of the data file beside the features; no feature may be called so.
LABEL, WEIGHT, EVENT_MS = "@label", "@weight", "@event_ms"
ONNX_FILE, METRICS_FILE = "model.onnx", "metrics.json"
_METRICS_BYTES_MAX = 1_048_576
_STDERR_SHOWN = 2_000
_LOOK_S = 0.05


def make(settings: TrainerSection) -> Trainer:
    """The entry point ``command``: a contract's ``training.options.command`` names one of ``trainer.commands``."""

    def fit(job: Job) -> Fitted:
        name = job.options.get("command")
        command = settings.commands.get(str(name))
        if command is None:
            raise ConfigurationError(
                f"contract {job.contract.model}: training.options.command {name!r} is not among this trainer's commands "
                f"({', '.join(sorted(settings.commands)) or 'it has none'}); set DRIFTLINE_TRAINER__COMMANDS"
            )
        return run_command(str(name), command, job)

    return fit


def run_command(name: str, command: TrainerCommand, job: Job) -> Fitted:
    """One fit by ``command``. Raises TrainerCommandError with its exit status and the end of its standard error, and
    Cancelled when nobody waits any more."""
    with tempfile.TemporaryDirectory(prefix="driftline-fit-") as place:
        directory = Path(place)
        output = directory / "output"
        output.mkdir()
        encoder = fit_encoder(
            job.table, job.labels, features=job.contract.feature_names, categorical=job.categorical
        )
        data = directory / f"data.{command.data}"
        _write(data, command.data, job, encoder)
        spec = directory / "spec.json"
        spec.write_text(json.dumps(_spec(job, data, command.data, output), indent=1))
        _run(name, command, [*command.argv, str(spec)], directory, job)
        return Fitted(
            _read(name, output / ONNX_FILE, command.output_bytes_max), encoder, _metrics(name, output)
        )


def _spec(job: Job, data: Path, form: str, output: Path) -> dict[str, Any]:
    contract = job.contract
    return {
        "schema": SPEC_SCHEMA,
        "model": contract.model,
        "task": contract.task,
        "data": str(data),
        "format": form,
        "rows": len(job.labels),
        "features": [{"name": feature.name, "kind": feature.kind} for feature in contract.features],
        "label": LABEL,
        "weight": WEIGHT,
        "event_ms": EVENT_MS,
        "seed": contract.training.seed,
        "options": {key: value for key, value in job.options.items() if key != "command"},
        "output": str(output),
        "onnx": {"file": ONNX_FILE, "input": ONNX_INPUT, "output": ONNX_OUTPUT},
        "metrics": METRICS_FILE,
    }


def _write(file: Path, form: str, job: Job, encoder: Encoder) -> None:
    matrix = encoder.encode(job.table)
    # A missing number is null in the file, as every reader expects; the model itself will be given NaN.
    columns = {
        name: pyarrow.array(np.ascontiguousarray(matrix[:, at]), from_pandas=True)
        for at, name in enumerate(encoder.features)
    }
    columns |= {
        LABEL: pyarrow.array(job.labels),
        WEIGHT: pyarrow.array(job.weights),
        EVENT_MS: pyarrow.array(job.event_ms),
    }
    table = pyarrow.table(columns)
    match form:
        case "parquet":
            pyarrow.parquet.write_table(table, file)
        case "arrow":
            pyarrow.feather.write_feather(table, file)
        case _:
            pyarrow.csv.write_csv(table, file)


def _run(name: str, command: TrainerCommand, argv: list[str], directory: Path, job: Job) -> None:
    environment = {key: os.environ[key] for key in command.environment if key in os.environ}
    launch = [sys.executable, "-I", confined.__file__, str(os.getpid()), str(command.output_bytes_max), *argv]
    errors = directory / "stderr"
    with errors.open("wb") as sink:
        child = subprocess.Popen(
            launch,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    started = time.monotonic()
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                status = child.wait(_LOOK_S)
                break
            if job.cancelled():
                raise Cancelled(f"trainer command {name} was stopped with the trainer")
            if (time.monotonic() - started) * 1_000 > command.time_limit:
                raise TrainerCommandError(
                    f"trainer command {name} took longer than its time_limit of {command.time_limit} ms{_end(errors)}"
                )
            _bound(name, command, directory)
    finally:
        # Whatever it started and left running goes with it.
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if status != 0:
        how = f"status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
        raise TrainerCommandError(f"trainer command {name} ended with {how}{_end(errors)}")
    _bound(name, command, directory)


def _bound(name: str, command: TrainerCommand, directory: Path) -> None:
    written = 0
    for parent, _, files in os.walk(directory):
        for file in files:
            if not file.startswith(("data.", "spec.json")) or Path(parent) != directory:
                with suppress(OSError):  # it may be deleting it
                    written += (Path(parent) / file).lstat().st_size
    if written > command.output_bytes_max:
        raise TrainerCommandError(
            f"trainer command {name} wrote {written} bytes, more than its output_bytes_max of {command.output_bytes_max}"
        )


def _end(errors: Path) -> str:
    text = errors.read_bytes()[-_STDERR_SHOWN:].decode(errors="replace").strip()
    return f"; it said: {text}" if text else "; it said nothing"


def _read(name: str, file: Path, bytes_max: int) -> bytes:
    # A link could lead to any file of the trainer's.
    if file.is_symlink() or not file.is_file():
        raise TrainerCommandError(
            f"trainer command {name} ended well but left no file {file.name} in its output"
        )
    if file.stat().st_size > bytes_max:
        raise TrainerCommandError(f"trainer command {name}: {file.name} has more than {bytes_max} bytes")
    return file.read_bytes()


def _metrics(name: str, output: Path) -> dict[str, float]:
    try:
        found: Mapping[str, Any] = json.loads(_read(name, output / METRICS_FILE, _METRICS_BYTES_MAX))
        metrics = {str(key): float(value) for key, value in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise TrainerCommandError(
            f"trainer command {name}: {METRICS_FILE} must be a JSON object of numbers: {error}"
        ) from error
    if bad := sorted(key for key, value in metrics.items() if not math.isfinite(value)):
        raise TrainerCommandError(f"trainer command {name}: metric {bad[0]} is not a finite number")
    return metrics
