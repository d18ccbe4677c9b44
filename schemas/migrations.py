"""Numbered migrations of the warehouse: applied once, in order, and refused when a file that was applied has changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from schemas.errors import WarehouseError
from schemas.ids import content_hash

FOLDER = Path(__file__).with_name("clickhouse")
HISTORY = (
    "CREATE TABLE IF NOT EXISTS schema_migrations (number UInt32, name String, sha256 String, "
    "applied DateTime64(3, 'UTC') DEFAULT now64(3)) ENGINE = ReplacingMergeTree ORDER BY number"
)


class CommandClient(Protocol):
    """What applying needs of a ClickHouse client (clickhouse-connect's own client has it)."""

    def command(self, cmd: str) -> object: ...

    def query(self, query: str) -> object: ...


@dataclass(frozen=True, slots=True)
class Migration:
    """One file ``NNNN_name.sql``; statements end with a semicolon at a line's end."""

    number: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        return content_hash(self.text.encode())

    @property
    def statements(self) -> list[str]:
        return [part.strip() for part in re.split(r";[ \t]*(?:\n|$)", self.text) if _is_statement(part)]


def _is_statement(part: str) -> bool:
    return any(line.strip() and not line.strip().startswith("--") for line in part.splitlines())


def migrations(folder: Path = FOLDER) -> list[Migration]:
    """All migrations in order. Raises WarehouseError when numbers have a hole or a name is not ``NNNN_name.sql``."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_([a-z0-9_]+)\.sql", path.name)
        if match is None:
            raise WarehouseError(f"{path.name}: a migration is named NNNN_what_it_does.sql")
        found.append(Migration(int(match[1]), match[2], path.read_text()))
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise WarehouseError(
            f"migrations must be numbered from 0001 without a hole, not {[m.number for m in found]}"
        )
    return found


def apply(client: CommandClient, todo: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is not applied yet in the client's database; returns that. Repeatable.

    Every statement can be repeated, so a run that was cut off half-way is simply run again. Raises WarehouseError when
    an applied file's content has changed since.
    """
    client.command(HISTORY)
    rows = client.query("SELECT number, sha256 FROM schema_migrations FINAL").result_rows  # type: ignore[attr-defined]
    done = {int(number): str(sha) for number, sha in rows}
    applied = []
    for migration in migrations() if todo is None else todo:
        if migration.number in done:
            if done[migration.number] != migration.sha256:
                raise WarehouseError(
                    f"migration {migration.number:04d}_{migration.name} was applied with another content; a released "
                    "migration never changes: add a new one"
                )
            continue
        for statement in migration.statements:
            client.command(statement)
        client.command(
            "INSERT INTO schema_migrations (number, name, sha256) VALUES "
            f"({migration.number}, '{migration.name}', '{migration.sha256}')"
        )
        applied.append(migration)
    return applied
