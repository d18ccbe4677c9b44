"""Why: people who bring, judge and clear away versions need the registry's own checks, not a look into its directories."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.commands.asking import user
from deploy.commands.common import Commands
from deploy.commands.remote import AsJson, By, Model, Reason, Version
from schemas.errors import ConfigurationError, DriftlineError, RegistryError

if TYPE_CHECKING:
    from deploy.registry import Registry

models = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Model versions: import, check, compare, prune."
)
Root = Annotated[
    str | None,
    typer.Option(
        "--registry",
        help="A directory or s3://bucket/prefix; else the controller's: DRIFTLINE_CONTROLLER__REGISTRY.",
        show_default=False,
    ),
]
_DAY_MS = 86_400_000


def _registry(root: str | None) -> Registry:
    from deploy.registry import Registry
    from deploy.store.address import open_store
    from schemas.settings import ControllerSettings
    from schemas.signing import Signer, Verifier

    settings = ControllerSettings.load()
    signing = settings.signing
    return Registry(
        open_store(root or settings.controller.registry, settings.s3),
        None if signing.key_file is None else Signer.load(signing.key_file),
        Verifier(list(signing.trusted)) if signing.trusted else None,
    )


def _print(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


@models.command("list")
def list_versions(model: Model, root: Root = None, as_json: AsJson = False) -> None:
    """List the versions of a model; one that fails its checks is listed with the reason."""
    registry = _registry(root)
    rows: list[dict[str, Any]] = []
    for version in registry.versions(model):
        try:
            record = registry.record(model, version)
        except DriftlineError as error:
            rows.append({"version": version, "error": str(error)})
            continue
        rows.append(
            record.model_dump(include={"version", "sha256", "risk", "parent", "cause", "contract_revision"})
        )
    if as_json:
        _print(rows)
        return
    for row in rows:
        typer.echo(
            f"{row['version']}  error: {row['error']}"
            if "error" in row
            else f"{row['version']}  {row['sha256'][:12]}  risk {row['risk']}  parent {row['parent'] or '-'}  "
            f"contract {row['contract_revision']}  {row['cause']}"
        )
    if not rows:
        typer.echo(f"no version of {model} in {registry.address}")


@models.command("show")
def show(model: Model, version: Version, root: Root = None, as_json: AsJson = False) -> None:
    """Show a version's record, its contract and its approvals."""
    registry = _registry(root)
    record, link = registry.record(model, version), registry.link(model, version)
    data = record.model_dump(mode="json", exclude={"reference"})
    data["reference_rows"] = record.reference.rows
    data["contract"] = None if link is None else asdict(link)
    data["approvals"] = [asdict(approval) for approval in registry.approvals(model, version)]
    data["notes"] = registry.notes(model, version)
    if as_json:
        _print(data)
        return
    import yaml

    typer.echo(yaml.safe_dump(json.loads(json.dumps(data)), sort_keys=False, allow_unicode=True), nl=False)


@models.command("verify")
def verify(
    model: Model,
    version: Version,
    contract: Annotated[Path | None, typer.Option(help="A contract its features must fit as well.")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Check checksums, signature, approvals' signatures and golden outputs; fails naming what is wrong."""
    from deploy.importing import scores_of
    from deploy.training.features import Encoder
    from schemas.contracts import load_contract

    registry = _registry(root)
    record, artifact = registry.load(model, version)
    golden = artifact.golden
    if golden.inputs and not golden.agrees(
        scores_of(artifact.onnx, Encoder.from_json(artifact.encoder_json), golden.inputs)
    ):
        raise RegistryError(f"{model}/{version}: its golden outputs are not those on record: do not serve it")
    approvals = registry.approvals(model, version)
    if contract is not None:
        registry.check_features(load_contract(contract), version)
    trusted = registry.verifies
    if as_json:
        _print(
            {
                "model": model,
                "version": version,
                "sha256": record.sha256,
                "signature": record.key_id if trusted else None,
                "golden_rows": len(golden.inputs),
                "approvals": len(approvals),
            }
        )
        return
    signature = f"signed by {record.key_id}" if trusted else "signature not checked: no trusted key is set"
    typer.echo(
        f"{model}/{version}: checksums fit, {signature}, {len(golden.inputs)} golden outputs agree, "
        f"{len(approvals)} approvals"
    )


@models.command("diff")
def diff(
    model: Model,
    old: Annotated[str, typer.Argument(help="The version to compare with.")],
    new: Annotated[str, typer.Argument(help="The version that is compared.")],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Compare two versions: metrics, references, features, lineage."""
    from deploy.model_report import difference

    registry = _registry(root)
    found = difference(
        registry.record(model, old),
        registry.record(model, new),
        registry.link(model, old),
        registry.link(model, new),
    )
    if as_json:
        _print(found)
        return
    for name, (was, now) in found["metrics"].items():
        typer.echo(f"metric {name}: {was} -> {now}")
    for name, shift in found["reference"].items():
        typer.echo(f"reference {name}: shifted by {shift:+.3f}")
    typer.echo(f"features: {found['features'] or 'the same'}")
    for name, (was, now) in found["lineage"].items():
        typer.echo(f"{name}: {was} -> {now}")


@models.command("card")
def card(model: Model, version: Version, root: Root = None) -> None:
    """Print a version's model card as Markdown, made from the record."""
    from deploy import model_report

    registry = _registry(root)
    approvals, notes = registry.approvals(model, version), registry.notes(model, version)
    typer.echo(
        model_report.card(registry.record(model, version), registry.link(model, version), approvals, notes),
        nl=False,
    )


@models.command("approve")
def approve(model: Model, version: Version, by: By = None, reason: Reason = "", root: Root = None) -> None:
    """Store a signed approval of a version beside it."""
    from schemas.clock import wall_ms

    given = _registry(root).approve(model, version, by or user(), wall_ms(), reason)
    typer.echo(f"{model}/{version}: approved by {given.by} ({given.sha256[:12]}, key {given.key_id})")


@models.command("import")
def import_model(
    source: Annotated[Path, typer.Argument(help="An ONNX file, or an MLflow model directory.")],
    contract: Annotated[Path, typer.Option(help="The contract it is to serve.")],
    reference: Annotated[
        Path | None, typer.Option(help="CSV of held-out rows in time order: features, and label if known.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Its name; else the next number.")] = None,
    parent: Annotated[str | None, typer.Option(help="The version it succeeds.")] = None,
    snapshot: Annotated[str | None, typer.Option(help="Content hash of its training data.")] = None,
    code: Annotated[str, typer.Option(help="Version of the code it was trained by.")] = "",
    risk: Annotated[str, typer.Option(help="low, medium or high.")] = "low",
    by: By = None,
    publish: Annotated[bool, typer.Option("--publish", help="Announce it on `models` as well.")] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Register a version trained elsewhere, after it was checked against the contract and tried."""
    from deploy import importing
    from deploy.registry import APPROVALS_NEEDED, Artifact, Lineage
    from schemas.clock import wall_ms
    from schemas.contracts import ModelRecord, Reference, load_contract

    loaded = load_contract(contract)
    if risk not in APPROVALS_NEEDED:
        raise ConfigurationError(f"--risk {risk}: choose one of {', '.join(APPROVALS_NEEDED)}")
    file = importing.mlflow_onnx(source) if source.is_dir() else source
    try:
        onnx = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    encoder = importing.encoder_of(loaded)
    rows = importing.smoke_rows(loaded)
    golden = importing.probe(onnx, loaded, rows)
    made = Reference() if reference is None else importing.reference_from(reference, loaded, onnx)
    record = _registry(root).register(
        loaded,
        Artifact(
            onnx, encoder.to_json(), golden, made, f"# {loaded.model}\n\nImported from {source.name}.\n"
        ),
        Lineage(
            parent=parent,
            snapshot=snapshot,
            cause=by or user(),
            created_event_ms=wall_ms(),
            risk=risk,  # type: ignore[arg-type]  # checked above
            code=code or "not stated (imported)",
        ),
        version=version,
    )
    if publish:
        from deploy.models import publish_records
        from schemas.settings import ServiceSettings

        publish_records(ServiceSettings.load().kafka, [ModelRecord(version=record)])
    if as_json:
        _print(record.model_dump(mode="json", exclude={"reference"}))
        return
    typer.echo(
        f"{record.model}/{record.version} registered ({record.sha256[:12]}): {len(rows)} rows tried, "
        f"reference of {made.rows} rows"
        + ("" if publish else "; not announced: `--publish` does, and rollouts need it")
    )


@models.command("prune")
def prune(
    model: Model,
    keep: Annotated[
        int, typer.Option(min=1, help="The newest versions stay, and as many rollback targets.")
    ] = 5,
    age: Annotated[str, typer.Option(help="Younger versions stay, e.g. 30d.")] = "30d",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")
    ] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Delete old versions that are neither deployed nor a rollback target; says why each other one stays."""
    from deploy.model_report import retention
    from schemas.clock import wall_ms
    from schemas.contracts import parse_duration_ms
    from schemas.settings import ServiceSettings

    try:
        age_ms = int(parse_duration_ms(age))
    except ValueError as error:
        raise ConfigurationError(f"--age: {error}") from None
    registry = _registry(root)
    created: dict[str, int] = {}
    versions = registry.versions(model)
    for version in versions:
        try:
            registry.record(model, version)
            created[version] = registry.registered_ms(model, version)
        except DriftlineError:
            continue  # retention keeps what cannot be read, and says so
    from deploy.deployed import versions_in_use

    in_use = versions_in_use(ServiceSettings.load().kafka, model, keep)
    found = retention(versions, created, in_use, keep=keep, young_since_ms=wall_ms() - age_ms)
    for one in found:
        if not one.why and not dry_run:
            registry.remove(model, one.version)
    if not dry_run:
        registry.sweep(model, wall_ms() - _DAY_MS)
    if as_json:
        _print([{"version": one.version, "kept": bool(one.why), "why": one.why} for one in found])
        return
    gone = "would go" if dry_run else "deleted"
    for one in found:
        typer.echo(f"{one.version}  {'kept: ' + one.why if one.why else gone}")
