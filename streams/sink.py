"""How aggregates reach the warehouse: cumulative upserts, tried until they are in, never in the tasks' way.

``Sink`` is what can be written to (ClickHouse, or memory for tests: the same contract tests hold both).
``SinkWriter`` empties the tasks' outboxes into one. However long the warehouse is away, an outbox holds no more rows than
``streams.core.ledger.OUTBOX_MAX`` and one transaction's: what changes then is made into rows when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError

from schemas.errors import WarehouseError
from schemas.native import NATIVE, read_native
from schemas.observability import Metrics
from schemas.row_binary import RowBlock, read_rows
from schemas.rows import TABLES
from schemas.settings import ClickHouseSettings
from streams.core.delivery import Upserts

log = logging.getLogger(__name__)
BATCH_ROWS_MAX = 20_000
#: A replay may bring years of months in one insert; refusing it would stop the stream for good.
_INSERT = {"max_partitions_per_insert_block": 0}
#: Of rows of one key views show the newest. To have older ones looked for at each insert, too, row by row, is most of what an
#: insert costs, and few are in one.
_INSERT_BLOCKS = {**_INSERT, "optimize_on_insert": 0}
BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 10.0

Row = tuple[Any, ...]


class Sink(Protocol):
    """Somewhere rows go. ``write`` blocks; it returns when all rows are durable and raises WarehouseError otherwise
    (some may be in: every row may come again). ``write_blocks`` does the same with rows that are bytes already, in blocks of one
    format."""

    def write(self, table: str, rows: Sequence[Row]) -> None: ...

    def write_blocks(self, table: str, blocks: Sequence[RowBlock]) -> None: ...

    def close(self) -> None: ...


class MemorySink:
    """Keeps rows in lists by table; ``failures`` makes the next so many writes fail."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self.failures = 0

    def write(self, table: str, rows: Sequence[Row]) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise WarehouseError(f"memory sink: write to {table} refused on demand")
        self.rows[table].extend(rows)

    def write_blocks(self, table: str, blocks: Sequence[RowBlock]) -> None:
        types = TABLES[table].types
        read = [read_native(one) if one.format == NATIVE else read_rows(types, one) for one in blocks]
        self.write(table, [row for rows in read for row in rows])

    def close(self) -> None:
        """Nothing to let go."""


class ClickHouseSink:
    """Inserts over HTTP(S) into the tables of ``schemas.rows``. Connects on first use, anew after a failure."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._settings = settings
        self._client: Any = None

    def write(self, table: str, rows: Sequence[Row]) -> None:
        if rows:
            known = TABLES[table]
            self._call(
                f"{len(rows)} rows for {table}",
                lambda client: client.insert(
                    table,
                    rows,
                    column_names=known.names,
                    column_type_names=list(known.types),
                    settings=_INSERT,
                ),
            )

    def write_blocks(self, table: str, blocks: Sequence[RowBlock]) -> None:
        rows = sum(block.rows for block in blocks)
        if rows:
            # Part by part from where it lies, as one body: told its length beforehand, the client puts nothing between.
            size = {"Content-Length": str(sum(block.nbytes for block in blocks))}
            self._call(
                f"{rows} rows for {table}",
                lambda client: client.raw_insert(
                    table, TABLES[table].names, [part for block in blocks for part in block.parts], settings=_INSERT_BLOCKS,
                    fmt=blocks[0].format, transport_settings=size,
                ),
            )  # fmt: skip

    def query(self, sql: str) -> Sequence[Row]:
        """Rows of a query. Raises WarehouseError."""
        found: Sequence[Row] = self._call("a query", lambda client: client.query(sql)).result_rows
        return found

    def _call(self, what: str, work: Callable[[Any], Any]) -> Any:
        try:
            if self._client is None:
                self._client = clickhouse_connect.get_client(**self._settings.client())
            return work(self._client)
        except (ClickHouseError, OSError) as error:
            self.close()
            raise WarehouseError(
                f"{self._settings.host}:{self._settings.port}, {self._settings.database}: {what} failed: {error}"
            ) from error

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class Sender(Protocol):
    """As much of a task as the writer sees."""

    @property
    def outbox(self) -> Sequence[Upserts]: ...

    def confirm(self, sent: list[Upserts]) -> None: ...


class SinkWriter:
    """The coroutine that sends what tasks have in their outboxes, one batch at a time, and confirms it to them."""

    def __init__(
        self, sink: Sink, tasks: Callable[[], Sequence[Sender]], dirty: asyncio.Event, metrics: Metrics
    ) -> None:
        self._sink = sink
        self._tasks = tasks
        self._dirty = dirty
        self._metrics = metrics

    async def run(self) -> None:
        """Send for ever; a failed batch is tried again after a growing pause. Cancel to end."""
        backoff_s = BACKOFF_S_MIN
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                while await self.send_once():
                    backoff_s = BACKOFF_S_MIN
            except WarehouseError as error:
                log.warning(
                    "the warehouse did not take a batch; it is sent again",
                    extra={"event": "warehouse-error", "detail": str(error)[:500], "pause_s": backoff_s},
                )
                self._dirty.set()
                await asyncio.sleep(backoff_s)
                backoff_s = min(BACKOFF_S_MAX, backoff_s * 2)

    async def send_once(self) -> bool:
        """Send one batch and confirm it; false when there was nothing. Raises WarehouseError."""
        batch: dict[str, list[tuple[Sender, Upserts]]] = defaultdict(list)
        rows = 0
        for task in self._tasks():
            for upserts in task.outbox:
                if rows and rows + upserts.rows > BATCH_ROWS_MAX:
                    break
                batch[upserts.table].append((task, upserts))
                rows += upserts.rows
        for table, sent in batch.items():
            try:
                await asyncio.to_thread(self._write, table, [upserts for _, upserts in sent])
            except WarehouseError:
                self._metrics.count("driftline_warehouse_errors_total", table=table)
                raise
            count = sum(upserts.rows for _, upserts in sent)
            self._metrics.count("driftline_warehouse_rows_total", count, table=table)
            for task in {id(task): task for task, _ in sent}.values():
                task.confirm([upserts for owner, upserts in sent if owner is task])
        return rows > 0

    def _write(self, table: str, sent: Sequence[Upserts]) -> None:
        self._sink.write_blocks(table, [upserts.block for upserts in sent])
