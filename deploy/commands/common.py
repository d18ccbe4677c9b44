"""Why: every command must fail the same way: one line that says what, where and what to do, and exit status 1."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from schemas.errors import DriftlineError

_WIDE_COLUMNS = 4_000
_OURS = frozenset({"deploy", "schemas", "streams", "detectors"})


class Commands(TyperGroup):
    """A command group whose members raise :class:`DriftlineError` freely; people never see a traceback of those."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DriftlineError as error:
            fail(line(error))
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if not package or package in _OURS:
                raise
            fail(
                f"this command needs the package {package}, which is not installed: "
                "pip install 'driftline[local,demo,cpu]'"
            )


def print_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> None:
    """Rows for people. On a terminal as wide as that; elsewhere each row is one line, so that tools can cut it.

    Cells are text from anywhere: neither markup nor control characters in them mean anything.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for name in head:
        table.add_column(name, overflow="fold")
    for row in body:
        table.add_row(*(Text(_plain(cell)) for cell in row))
    terminal = sys.stdout.isatty()
    Console(width=None if terminal else _WIDE_COLUMNS).print(table)


def _plain(cell: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(cell.split()))


def fail(message: str) -> None:
    """Print ``message`` to standard error and end with exit status 1."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


def line(error: DriftlineError) -> str:
    """The error's text; a list of pydantic's complaints in it becomes ``key: what is wrong; key: ...``.

    The values pydantic would quote are left out: one of them may be a secret.
    """
    text = str(error)
    cause = error.__cause__
    complaints = getattr(cause, "errors", None)
    if cause is None or not callable(complaints):
        return text
    short = "; ".join(
        f"{'.'.join(str(part) for part in complaint['loc']) or 'document'}: {complaint['msg']}"
        for complaint in complaints(include_url=False, include_input=False, include_context=False)
    )
    return text.replace(str(cause), short)
