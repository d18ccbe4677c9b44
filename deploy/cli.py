"""The command ``driftline``. Modules are imported by the command that needs them, so that help comes at once."""

from __future__ import annotations

import typer

from deploy.commands import audit, chaos, detectors, documents, local, models, remote, services, tokens
from deploy.commands.common import Commands

app = typer.Typer(
    name="driftline",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than everything else together
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Streaming monitor for machine-learning models: detect drift, decide, act.",
)

for _command in (
    local.demo, local.up, local.down, local.status, local.env, local.logs, chaos.chaos,
    remote.deployments, remote.gates, remote.deploy, remote.rollback, remote.promote, remote.pause, remote.resume, remote.retrain,
    remote.approve, remote.reject, remote.override, audit.audit,
    documents.schemas, documents.metrics,
    services.config, services.topics, services.migrate,
    services.monitor, services.archive, services.controller, services.scorer, services.trainer, services.notifier,
):  # fmt: skip
    app.command()(_command)
app.command(context_settings=detectors.PASSED_ON)(detectors.detectors)
app.command()(detectors.calibrate)
app.add_typer(documents.contract, name="contract")
app.add_typer(models.models, name="models")
app.add_typer(tokens.tokens, name="tokens")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
