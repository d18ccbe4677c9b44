"""Versions trained elsewhere: what a file must be to serve a contract is said here, before it can be registered.

An imported model reads the contract's features as one float32 row: numbers as they are, a category as its index in the
contract, anything else as the number of categories; null as NaN (for a category: the index of the unknown).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from deploy.registry import Golden
from deploy.training.features import Encoder
from schemas.contracts import ModelContract, Reference
from schemas.errors import RegistryError
from schemas.reference import reference_of

SMOKE_ROWS = 32


def encoder_of(contract: ModelContract) -> Encoder:
    """The encoding an imported model is given: features in contract order, categories by their index."""
    categorical = [feature for feature in contract.features if feature.kind == "categorical"]
    return Encoder(
        contract.feature_names,
        {feature.name: {name: at for at, name in enumerate(feature.categories)} for feature in categorical},
        {feature.name: len(feature.categories) for feature in categorical},
    )


def smoke_rows(contract: ModelContract, rows: int = SMOKE_ROWS) -> tuple[dict[str, Any], ...]:
    """Rows within the contract's ranges, evenly spread, with a null where one is allowed and an unknown category."""
    found = []
    for at in range(rows):
        row: dict[str, Any] = {}
        for number, feature in enumerate(contract.features):
            if feature.nullable and (at + number) % 8 == 7:
                row[feature.name] = None
            elif feature.kind == "categorical":
                names = [*feature.categories, "(unknown)"]
                row[feature.name] = names[(at + number) % len(names)]
            else:
                low = (
                    feature.low
                    if feature.low is not None
                    else (feature.high - 1 if feature.high is not None else 0.0)
                )
                high = feature.high if feature.high is not None else low + 1
                row[feature.name] = low + (high - low) * ((at * (number + 1)) % rows) / (rows - 1)
        found.append(row)
    return tuple(found)


def mlflow_onnx(directory: Path) -> Path:
    """The ONNX file of an MLflow model directory. Raises RegistryError saying what is needed when there is none."""
    try:
        content = yaml.safe_load((directory / "MLmodel").read_text())
        flavors: Mapping[str, Any] = content["flavors"]
        names = sorted(flavors)
        if "onnx" in flavors:
            file = (directory / str(flavors["onnx"]["data"])).resolve()
            if not file.is_relative_to(directory.resolve()):
                raise RegistryError(
                    f"{directory}/MLmodel: flavors.onnx.data leads out of the directory: {file}"
                )
            return file
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise RegistryError(f"{directory}: no MLflow model directory can be read there: {error!r}") from error
    if "sklearn" in flavors:
        raise RegistryError(
            f"{directory}: flavour sklearn is a pickle, and reading one runs whatever code its writer put in. "
            "Convert it where it was trained, with skl2onnx.to_onnx(model, options={'zipmap': False}), "
            "to one output of P(label 1), and import the ONNX file"
        )
    raise RegistryError(
        f"{directory}: flavours {', '.join(names)}; only onnx can be imported: convert the model first"
    )


def probe(onnx: bytes, contract: ModelContract, rows: Sequence[Mapping[str, Any]] | None = None) -> Golden:
    """Run the model on ``rows`` (else :func:`smoke_rows`) and return them with its scores, which become its golden set.

    Raises RegistryError saying what does not fit: inputs, their type or width, the operator set, or the outputs.
    """
    inputs = tuple(smoke_rows(contract) if rows is None else rows)
    session = session_of(onnx)
    matrix = encoder_of(contract).encode_rows(inputs)
    return Golden(inputs, tuple(run(session, matrix).tolist()))


def run(session: Any, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores ``(n,)`` in [0, 1] of a ``(n, features)`` matrix, everything about the model's shape checked. Raises
    RegistryError."""
    given, output = session.get_inputs(), session.get_outputs()[0]
    if len(given) != 1:
        raise RegistryError(
            f"the model has {len(given)} inputs ({', '.join(one.name for one in given)}); it must read one float32 "
            f"matrix [n, {matrix.shape[1]}] of the contract's features in order"
        )
    if given[0].type != "tensor(float)":
        raise RegistryError(
            f"input {given[0].name} is {given[0].type}, it must be tensor(float): export with float32 inputs"
        )
    shape = given[0].shape
    if len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != matrix.shape[1]):
        raise RegistryError(
            f"input {given[0].name} has shape {shape}, the contract has {matrix.shape[1]} features: "
            f"it must be [n, {matrix.shape[1]}]"
        )
    if isinstance(shape[0], int):
        raise RegistryError(
            f"input {given[0].name} takes {shape[0]} rows a call; export with a free first dimension"
        )
    if output.type not in ("tensor(float)", "tensor(double)"):
        raise RegistryError(
            f"the first output, {output.name}, is {output.type}: it must be P(label 1) as a float; a classifier exported "
            "by skl2onnx gives the label first: drop that output and keep column 1 of the probabilities"
        )
    try:
        scores = np.asarray(session.run([output.name], {given[0].name: matrix})[0], np.float64)
    except Exception as error:  # ONNX Runtime raises classes of its own that share no base
        raise RegistryError(f"the model fails on rows that fit the contract: {error}") from error
    if scores.shape not in ((len(matrix),), (len(matrix), 1)):
        raise RegistryError(
            f"output {output.name} has shape {scores.shape} for {len(matrix)} rows; one score a row is needed"
        )
    scores = scores.reshape(-1)
    if not np.isfinite(scores).all():
        raise RegistryError(
            f"output {output.name} is not finite for {int((~np.isfinite(scores)).sum())} of {len(scores)} rows that fit "
            "the contract; a nullable feature is NaN when it is null"
        )
    if scores.min() < 0 or scores.max() > 1:
        raise RegistryError(
            f"output {output.name} goes from {scores.min():g} to {scores.max():g}; a score is a probability in [0, 1]"
        )
    return scores


def scores_of(onnx: bytes, encoder: Encoder, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """The model's checked scores ``(n,)`` of raw rows. Raises RegistryError."""
    return run(session_of(onnx), encoder.encode_rows(rows))


def reference_from(file: Path, contract: ModelContract, onnx: bytes) -> Reference:
    """The reference of held-out rows in a CSV with a header: a column for each feature, ``label`` and ``event_time_ms`` if
    known; an empty cell is a null. Raises RegistryError naming the column or the line that cannot be read."""
    try:
        with file.open(newline="") as text:
            lines = list(csv.DictReader(text))
    except (OSError, ValueError, csv.Error) as error:
        raise RegistryError(f"{file} cannot be read as CSV: {error}") from error
    if not lines:
        raise RegistryError(f"{file} has no rows")
    if absent := [name for name in contract.feature_names if name not in lines[0]]:
        raise RegistryError(f"{file} has no column {', '.join(absent)}")
    if lines[0].get("event_time_ms") is not None:
        lines.sort(key=lambda line: _number(file, "event_time_ms", line["event_time_ms"]) or 0.0)
    numeric = {feature.name for feature in contract.features if feature.kind == "numeric"}
    rows = [
        {
            name: _number(file, name, line[name]) if name in numeric else line[name] or None
            for name in contract.feature_names
        }
        for line in lines
    ]
    columns = {
        name: np.array([row[name] for row in rows], np.float64 if name in numeric else object)
        for name in contract.feature_names
    }
    known = {
        name: np.array([_number(file, name, line[name]) for line in lines], np.float64)
        for name in ("label", "event_time_ms")
        if lines[0].get(name) is not None
    }
    if any(np.isnan(values).any() for values in known.values()):
        raise RegistryError(f"{file}: a row lacks its {' or '.join(known)}; leave the row or the column out")
    times = known.get("event_time_ms")
    return reference_of(
        columns,
        scores_of(onnx, encoder_of(contract), rows),
        contract,
        labels=known.get("label"),
        event_ms=None if times is None else times.astype(np.int64),
    )


def _number(file: Path, column: str, text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise RegistryError(f"{file}, column {column}: {text!r} is no number") from None


def session_of(onnx: bytes) -> Any:
    """The model ready to run on one CPU thread. Raises RegistryError when ONNX Runtime cannot load it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own that share no base
        hint = ": export with an older opset, for example 17" if "opset" in str(error).lower() else ""
        raise RegistryError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {error}{hint}"
        ) from error
