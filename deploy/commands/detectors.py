"""Why: detectors are the monitor's, and the acting side never imports it; what is asked about them is asked of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.remote import AsJson
from schemas.errors import ConfigurationError, ContractError

if TYPE_CHECKING:
    from schemas.contracts import ModelContract, ModelVersion

#: First words that are commands of that process; any other is the name of a kind.
_COMMANDS = ("list", "show", "try", "check", "--help", "-h")

#: Everything after the command's name goes on to that process, ``--help`` as well.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def detectors(ctx: typer.Context) -> None:
    """List the kinds of detectors. NAME shows one, `try NAME FILE.csv` runs one over a file."""
    arguments = list(ctx.args)
    names = [argument for argument in arguments if not argument.startswith("-")]
    if arguments and arguments[0] in _COMMANDS:
        asked = arguments
    else:
        asked = ["show" if names else "list", *arguments]
    _end(_run(asked))


def calibrate(
    model: Annotated[str, typer.Argument(help="Name of a model, or a contract file (.yaml, .json).")],
    file: Annotated[
        Path | None,
        typer.Option(
            help="CSV of the model's history, free of drift: features, and score and label if known."
        ),
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="The file's column of times: ISO 8601, or seconds or ms since 1970.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="A registered version; else the newest. Its reference is measured.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure false alarms. What each detector of a model promises, beside what it does on data without drift."""
    import json
    import tempfile

    found = (
        _of_file(Path(model))
        if Path(model).suffix in (".yaml", ".yml", ".json")
        else _of_name(model, version)
    )
    contract, of_version = found
    if of_version is None and file is None:
        raise ConfigurationError(
            f"{contract.model} has no version to measure: --file names a CSV of its history"
        )
    dumped = {
        "contract": contract.model_dump(mode="json"),
        "version": None if of_version is None else of_version.model_dump(mode="json"),
    }
    with tempfile.TemporaryDirectory(prefix="driftline-calibrate-") as folder:
        handed = Path(folder) / "model.json"
        handed.write_text(json.dumps(dumped))
        asked = ["calibrate", str(handed), "--seed", str(seed)]
        asked += ["--history", str(file)] if file is not None else []
        asked += ["--time", time] if time is not None else []
        _end(_run([*asked, "--json"] if as_json else asked))


def check_detectors(file: Path) -> None:
    """Whether the monitor can build the detectors of a contract. Raises ContractError that says which it cannot."""
    asked = _run(["check", str(file)], captured=True)
    if asked.returncode != 0:
        raise ContractError(asked.stderr.strip().removeprefix("error: "))


def _of_file(path: Path) -> tuple[ModelContract, ModelVersion | None]:
    from schemas.contracts import load_contract

    return load_contract(path), None


def _of_name(model: str, version: str | None) -> tuple[ModelContract, ModelVersion | None]:
    from deploy.models import read_model
    from schemas.settings import ServiceSettings

    contract, versions = read_model(ServiceSettings.load().kafka, model)
    if version is None:
        return contract, max(versions.values(), key=lambda v: v.created_event_ms, default=None)
    if version not in versions:
        raise ConfigurationError(
            f"model {model} has no version {version!r}; there are: {', '.join(sorted(versions)) or 'none'}"
        )
    return contract, versions[version]


def _run(arguments: list[str], captured: bool = False) -> subprocess.CompletedProcess[str]:
    sys.stdout.flush()
    command = [sys.executable, "-m", "detectors", *arguments]
    return subprocess.run(command, capture_output=captured, text=True, check=False)


def _end(ended: subprocess.CompletedProcess[str]) -> None:
    """Its errors are printed already; what is left is to fail as it did."""
    if ended.returncode:
        raise typer.Exit(ended.returncode)
