"""How long the warehouse keeps rows: a time to live for each table, out of the settings, applied by ``driftline migrate``.

Age is measured in event time against the warehouse's clock, by the column that partitions the table. What is not named is
kept for ever. A row that is gone and written again (a window whose labels still come) goes again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from schemas.migrations import CommandClient
from schemas.rows import TABLES

#: Tables with an age, and the column that says it.
TIME_COLUMNS: dict[str, str] = {
    name: next(column for column in ("window_start", "copied_time", "event_time", "label_time", "kafka_time") if column in table.names)
    for name, table in TABLES.items()
    if name not in ("archive_progress", "label_index_progress")
}  # fmt: skip
#: Of tables that would grow for nothing.
DEFAULT_MS = {"label_index": 100 * 86_400_000, "label_states": 100 * 86_400_000}
#: A shorter life is a slip of the pen: rows would go before their window is over.
RETENTION_MS_MIN = 3_600_000
_TTL = re.compile(r"\bTTL (.+?)(?= SETTINGS |$)", re.DOTALL)


def clause(table: str, retention_ms: int) -> str:
    """The table's TTL expression, as ClickHouse prints it; empty when rows are kept for ever."""
    seconds = -(-retention_ms // 1000)
    return f"toDateTime({TIME_COLUMNS[table]}) + toIntervalSecond({seconds})" if retention_ms else ""


def apply(client: CommandClient, retention: Mapping[str, int]) -> dict[str, str]:
    """Give every table the life that ``retention`` (milliseconds by table, 0 and absence: for ever) says, in the client's
    database. Returns what was changed: table to its new TTL expression. Repeatable; tables that have theirs are not touched.
    """
    rows = client.query(
        "SELECT name, engine_full FROM system.tables WHERE database = currentDatabase()"
    ).result_rows  # type: ignore[attr-defined]
    engines = {str(name): str(engine) for name, engine in rows}
    changed = {}
    for table in TIME_COLUMNS:
        life_ms = retention.get(table, DEFAULT_MS.get(table, 0))
        wanted, match = clause(table, life_ms), _TTL.search(engines[table])
        if wanted == (match[1].strip() if match else ""):
            continue
        client.command(f"ALTER TABLE {table} {f'MODIFY TTL {wanted}' if wanted else 'REMOVE TTL'}")
        changed[table] = wanted
    return changed
