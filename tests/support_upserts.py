"""Rows for the warehouse as Python's values, one by one."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from schemas.row_binary import read_rows
from schemas.rows import TABLES
from streams.core.delivery import Upserts


class Upsert(NamedTuple):
    """One row; ``key``: its values of the table's key."""

    table: str
    key: tuple[Any, ...]
    row: tuple[Any, ...]
    version: int


def spread(upserts: Iterable[Upserts]) -> list[Upsert]:
    """All rows in their order. Raises ValueError where they are not what is said of them."""
    return [row for of in upserts for row in _rows(of)]


def _rows(upserts: Upserts) -> list[Upsert]:
    table = TABLES[upserts.table]
    key = [table.names.index(name) for name in table.key]
    times = [kind.startswith("DateTime64") for kind in table.types]
    found = []
    for values in read_rows(table.types, upserts.block):
        row = tuple(
            datetime.fromtimestamp(value / 1000, UTC) if time else value
            for value, time in zip(values, times, strict=True)
        )
        found.append(Upsert(upserts.table, tuple(row[at] for at in key), row, row[-1]))
    return found
