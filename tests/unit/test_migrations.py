"""Migrations: numbered without a hole, applied once and in order, refused when an applied file has changed."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas.errors import WarehouseError
from schemas.migrations import Migration, apply, migrations
from schemas.rows import TABLES


class Client:
    """Remembers commands and answers what was applied; the real engine has a test of its own."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def command(self, cmd: str) -> object:
        self.commands.append(cmd)
        return None

    def query(self, query: str) -> object:
        assert "schema_migrations" in query
        inserts = [re.search(r"\((\d+), '[a-z_]+', '([0-9a-f]+)'\)", c) for c in self.commands]
        return SimpleNamespace(result_rows=[(int(m[1]), m[2]) for m in inserts if m])


def test_the_shipped_migrations_are_numbered_and_create_every_table() -> None:
    """What the row types name is there after the last one."""
    shipped = migrations()
    assert [m.number for m in shipped] == list(range(1, len(shipped) + 1))
    text = "\n".join(statement for m in shipped for statement in m.statements)
    created = set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", text))
    assert created == set(TABLES)
    assert all(
        s.startswith(("CREATE TABLE IF NOT EXISTS", "CREATE OR REPLACE VIEW", "ALTER TABLE", "--"))
        for m in shipped
        for s in m.statements
    )


def test_applying_twice_applies_once() -> None:
    """The second run finds everything done."""
    client = Client()
    assert apply(client) == migrations()
    before = len(client.commands)
    assert apply(client) == []
    assert len(client.commands) == before + 1


def test_a_run_that_was_cut_off_is_finished_by_the_next() -> None:
    """Only a migration whose every statement ran is on record."""

    class Dying(Client):
        def command(self, cmd: str) -> object:
            if "two" in cmd:
                raise ConnectionError
            return super().command(cmd)

    todo = [Migration(1, "first", "SELECT 1;\n"), Migration(2, "second", "SELECT 'half';\nSELECT 'two';\n")]
    dying = Dying()
    with pytest.raises(ConnectionError):
        apply(dying, todo)
    client = Client()
    client.commands = dying.commands
    assert apply(client, todo) == [todo[1]]


def test_a_migration_that_changed_after_it_was_applied_is_refused() -> None:
    """Two deployments must never have different tables under one number."""
    client = Client()
    apply(client, [Migration(1, "tables", "SELECT 1;\n")])
    with pytest.raises(WarehouseError, match="0001_tables was applied with another content"):
        apply(client, [Migration(1, "tables", "SELECT 2;\n")])


def test_statements_end_at_a_line_end_and_comments_are_none() -> None:
    """A semicolon inside a line is text."""
    text = "-- one; still a comment;\nSELECT 'a;b';\n\n-- nothing here;\nSELECT 2;\n-- end\n"
    assert [s.splitlines()[-1] for s in Migration(1, "m", text).statements] == ["SELECT 'a;b'", "SELECT 2"]


@pytest.mark.parametrize(
    ("names", "reason"), [(["0001_a.sql", "0003_b.sql"], "without a hole"), (["1_a.sql"], "NNNN_")]
)
def test_files_that_are_not_in_order_are_refused(tmp_path: Path, names: list[str], reason: str) -> None:
    """A forgotten or misnamed file is noticed before anything is applied."""
    for name in names:
        (tmp_path / name).write_text("SELECT 1;\n")
    with pytest.raises(WarehouseError, match=reason):
        migrations(tmp_path)
