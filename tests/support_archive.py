"""What an archive would have written, as Python's values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from schemas.row_binary import RowBlock, read_rows
from schemas.rows import TABLES


def rows_of(
    copied: Iterable[tuple[str, list[tuple[Any, ...]] | RowBlock]],
) -> list[tuple[str, tuple[Any, ...]]]:
    """(table, row) of each row of what the archive makes of records."""
    return [
        (table, row)
        for table, rows in copied
        for row in (read_rows(TABLES[table].types, rows) if isinstance(rows, RowBlock) else rows)
    ]
