"""Why: who may call the API is decided where its token file is, by whoever may write that file, and not over the API."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.common import Commands, print_table

if TYPE_CHECKING:
    from deploy.http.tokens import TokenFile

tokens = typer.Typer(cls=Commands, no_args_is_help=True, help="API tokens: create, list and revoke.")
File = Annotated[
    Path | None, typer.Option("--file", help="The token file, instead of controller.api_tokens.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Role(StrEnum):
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@tokens.command("create")
def create(
    name: Annotated[
        str, typer.Argument(help="Who uses it: every command given with it is on record by this name.")
    ],
    role: Annotated[Role, typer.Option(help="What it may do.")],
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="For example 90d; else never.")
    ] = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and show it, once. Only its hash is kept."""
    from schemas.clock import wall_ms
    from schemas.documents import parse_duration_ms
    from schemas.errors import ConfigurationError

    now_ms = wall_ms()
    try:
        expires_ms = None if expires is None else now_ms + parse_duration_ms(expires)
    except ValueError as error:
        raise ConfigurationError(f"--expires {expires}: {error}") from error
    text, record = _file(file).create(name, role.value, now_ms, expires_ms)
    if as_json:
        typer.echo(json.dumps({"token": text} | record.model_dump(exclude={"sha256"}), indent=2))
        return
    typer.echo(text)
    typer.echo(f"{role.value} {name}, id {record.token_id}: keep it now, it is not shown again", err=True)


@tokens.command("list")
def show(file: File = None, as_json: AsJson = False) -> None:
    """Show who has tokens and which are in force."""
    from deploy.audit.story import when
    from schemas.clock import wall_ms

    now_ms = wall_ms()
    records = _file(file).records()
    if as_json:
        shown = [
            record.model_dump(exclude={"sha256"}) | {"state": record.state(now_ms)} for record in records
        ]
        typer.echo(json.dumps(shown, indent=2))
        return
    print_table(
        ("id", "name", "role", "state", "created (UTC)", "expires (UTC)"),
        [
            (
                r.token_id, r.name, r.role, r.state(now_ms), when(r.created_ms),
                "-" if r.expires_ms is None else when(r.expires_ms),
            )
            for r in records
        ],
    )  # fmt: skip


@tokens.command("revoke")
def revoke(token_id: Annotated[str, typer.Argument(help="As `list` shows it.")], file: File = None) -> None:
    """End a token at once, for good."""
    from schemas.clock import wall_ms

    record = _file(file).revoke(token_id, wall_ms())
    typer.echo(f"{record.token_id} ({record.name}, {record.role}) is revoked")


def _file(given: Path | None) -> TokenFile:
    """The token file. Raises ConfigurationError when neither option nor settings name one."""
    from deploy.http.tokens import TokenFile
    from schemas.errors import ConfigurationError
    from schemas.settings import ControllerSettings

    path = given or ControllerSettings.load().controller.api_tokens
    if path is None:
        raise ConfigurationError("no token file: set controller.api_tokens, or give --file")
    return TokenFile(path)
