"""The command ``driftline``. Modules are imported by the command that needs them, so that help comes at once."""

from __future__ import annotations

import typer

from deploy.commands import documents, local, remote, services
from deploy.commands.common import Commands

app = typer.Typer(
    name="driftline",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Streaming monitor for machine-learning models: detect drift, decide, act.",
)

_PANELS = {
    "On this machine": (local.demo, local.up, local.down, local.status, local.logs),
    "Deployments": (
        remote.deployments, remote.deploy, remote.rollback, remote.promote, remote.pause, remote.resume,
        remote.retrain,
    ),
    "Documents": (documents.schemas, documents.metrics),
    "Services": (
        services.monitor, services.archive, services.controller, services.scorer, services.trainer,
        services.notifier, services.topics, services.migrate, services.config,
    ),
}  # fmt: skip
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(documents.contract, name="contract", rich_help_panel="Documents")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
