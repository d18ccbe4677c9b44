"""Why: the warehouse's tables come from the numbered migrations alone, on the local engine as on a cluster."""

from __future__ import annotations

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError

from schemas import retention
from schemas.errors import WarehouseError
from schemas.migrations import Migration, apply
from schemas.settings import ClickHouseSettings


def migrate(clickhouse: ClickHouseSettings) -> list[Migration]:
    """Make the database, apply what is not applied yet (returned) and the lives of rows. Raises WarehouseError."""
    try:
        with clickhouse_connect.get_client(**clickhouse.client(database="default")) as client:
            client.command(f"CREATE DATABASE IF NOT EXISTS {clickhouse.database}")
        with clickhouse_connect.get_client(**clickhouse.client()) as client:
            applied = apply(client)
            retention.apply(client, clickhouse.retention)
            return applied
    except ClickHouseError as error:
        raise WarehouseError(f"ClickHouse at {clickhouse.host}:{clickhouse.port}: {error}") from error
