"""What an archive would have written, as Python's values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from schemas.native import NATIVE, read_native
from schemas.row_binary import RowBlock, read_rows
from schemas.rows import TABLES


def rows_of(
    copied: Iterable[tuple[str, list[tuple[Any, ...]] | RowBlock]],
) -> list[tuple[str, tuple[Any, ...]]]:
    """(table, row) of each row of what the archive makes of records."""
    return [(table, row) for table, rows in copied for row in _rows(table, rows)]


def _rows(table: str, rows: list[tuple[Any, ...]] | RowBlock) -> list[tuple[Any, ...]]:
    if isinstance(rows, list):
        return rows
    return read_native(rows) if rows.format == NATIVE else read_rows(TABLES[table].types, rows)
