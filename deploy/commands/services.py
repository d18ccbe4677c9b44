"""Why: in production each service is one command, with the settings everything else is configured by."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from schemas.errors import ConfigurationError


class Format(StrEnum):
    YAML = "yaml"
    JSON = "json"


def monitor() -> None:
    """Run a monitor: joins, windows, detectors, policy."""
    _streams("monitor")


def archive() -> None:
    """Run the archive: copies logs to ClickHouse."""
    _streams("archive")


def _streams(name: str) -> None:
    """Become that process. The acting side never imports the monitoring side (they meet on topics alone)."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "streams", name])


def controller() -> None:
    """Run the deployment controller and its HTTP API."""
    from deploy.controller.service import run
    from schemas.settings import ControllerSettings

    raise typer.Exit(run(ControllerSettings.load()))


def scorer(
    check: Annotated[
        bool, typer.Option("--check", help="Say which ONNX Runtime providers work here, and end.")
    ] = False,
) -> None:
    """Run a scorer: answers scoring requests as the deployments say."""
    from deploy.scoring import service
    from schemas.settings import ScorerSettings

    settings = ScorerSettings.load()
    if check:
        typer.echo(service.check(settings))
        return
    raise typer.Exit(service.run(settings))


def trainer() -> None:
    """Run the trainer: answers retrain requests with registered versions."""
    from deploy.training.service import run
    from schemas.settings import TrainerSettings

    raise typer.Exit(run(TrainerSettings.load()))


def notifier() -> None:
    """Run the notifier: carries alerts to people."""
    from deploy.notify.service import run
    from schemas.settings import NotifierSettings

    raise typer.Exit(run(NotifierSettings.load()))


def topics() -> None:
    """Create the missing topics; repeatable."""
    from deploy.topics import create_topics
    from schemas.settings import ServiceSettings

    kafka = ServiceSettings.load().kafka
    created = create_topics(kafka)
    typer.echo(
        "\n".join(f"created {name}" for name in created) or f"all topics are there ({kafka.bootstrap})"
    )


def migrate() -> None:
    """Apply the missing migrations; repeatable."""
    from deploy.migrate import migrate as apply
    from schemas.settings import ServiceSettings

    clickhouse = ServiceSettings.load().clickhouse
    applied = apply(clickhouse)
    where = f"{clickhouse.host}:{clickhouse.port}/{clickhouse.database}"
    typer.echo(
        "\n".join(f"applied {m.number:04d} {m.name}" for m in applied) or f"nothing to apply ({where})"
    )


def config(
    service: Annotated[str | None, typer.Argument(help="One service; else all of them.")] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.YAML,
) -> None:
    """Print the settings in force, secrets masked. Apart from those it can be read back as DRIFTLINE_CONFIG."""
    from schemas.settings import SERVICES

    if service is not None and service not in SERVICES:
        raise ConfigurationError(f"unknown service {service!r}; known: {', '.join(SERVICES)}")
    shown: dict[str, Any] = {}
    for model in SERVICES.values() if service is None else (SERVICES[service],):
        shown |= model.load().shown()
    if output is Format.JSON:
        typer.echo(json.dumps(shown, indent=2))
        return
    import yaml

    typer.echo(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), nl=False)
