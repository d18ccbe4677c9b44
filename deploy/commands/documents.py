"""Why: what people write against (schemas, metrics, contracts) is printed and checked by the code that means it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deploy.commands.common import Commands
from deploy.commands.detectors import check_detectors

contract = typer.Typer(cls=Commands, no_args_is_help=True, help="Model contracts: check and apply.")
File = Annotated[Path, typer.Argument(help="The contract, YAML or JSON.")]


def schemas(
    out: Annotated[
        Path | None, typer.Option(help="Directory to write files to; else everything is printed.")
    ] = None,
) -> None:
    """Export JSON Schemas and AsyncAPI. One schema a document, and the topics as AsyncAPI 3."""
    from importlib.metadata import PackageNotFoundError, version

    from schemas.asyncapi import asyncapi_document, json_schemas
    from schemas.errors import ConfigurationError

    try:
        document = asyncapi_document(version("driftline"))
    except PackageNotFoundError:
        document = asyncapi_document()
    documents = {"asyncapi": document} | json_schemas()
    if out is None:
        typer.echo(json.dumps(documents, indent=2))
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in documents.items():
            (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written: {error}") from error
    typer.echo(f"{len(documents)} documents in {out}")


def metrics() -> None:
    """Print the list of metrics as Markdown. It is closed: no other name is exported."""
    from schemas.metrics import METRICS

    typer.echo("| Metric | Kind | Labels | Meaning |\n|---|---|---|---|")
    for metric in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        typer.echo(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")


@contract.command("check")
def check(file: File) -> None:
    """Say what is wrong with a contract and where, without touching anything."""
    from schemas.contracts import load_contract

    loaded = load_contract(file)
    check_detectors(file)
    typer.echo(
        f"{file}: model {loaded.model}, revision {loaded.revision}, {len(loaded.features)} features, "
        f"{len(loaded.monitoring.detectors)} detectors, {len(loaded.policy.rules)} rules, hash {loaded.hash[:12]}"
    )


@contract.command("apply")
def apply(file: File) -> None:
    """Check a contract and publish it; it takes effect when the services read it."""
    from deploy.models import publish_records
    from schemas.contracts import ModelRecord, load_contract
    from schemas.settings import ServiceSettings

    loaded = load_contract(file)
    check_detectors(file)
    kafka = ServiceSettings.load().kafka
    publish_records(kafka, [ModelRecord(contract=loaded)])
    typer.echo(
        f"{loaded.model}: contract revision {loaded.revision} ({loaded.hash[:12]}) published to {kafka.bootstrap}"
    )
