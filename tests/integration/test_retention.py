"""Rows live as long as the settings say, in each table by its own time; and for ever when nobody says anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import clickhouse_connect
import pytest
from pydantic import ValidationError

from deploy.local.warehouse import LocalWarehouse
from deploy.migrate import migrate
from schemas import retention
from schemas.clock import wall_ms
from schemas.rows import TABLES
from schemas.settings import ClickHouseSettings

pytestmark = pytest.mark.integration

DAY_MS = 86_400_000


def lives(client: Any) -> dict[str, str]:
    """TTL expressions as the engine prints them."""
    rows = client.query(
        "SELECT name, engine_full FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
    ).result_rows
    return {name: engine.split("TTL ")[1].split(" SETTINGS")[0] for name, engine in rows if "TTL " in engine}


def test_rows_go_when_their_time_is_over(warehouse: LocalWarehouse) -> None:
    """Set, changed, applied again and taken away; what is young stays, and so does every other table."""
    settings = ClickHouseSettings(host=warehouse.host, port=warehouse.port, database="retention")
    migrate(settings)
    with clickhouse_connect.get_client(**settings.client()) as client:
        usual = {name: retention.clause(name, ms) for name, ms in retention.DEFAULT_MS.items()}
        assert lives(client) == usual
        now = datetime.fromtimestamp(wall_ms() / 1000, UTC)
        rows = [(f"p{days}", now - timedelta(days=days)) for days in (0, 5, 40)]
        for table, column in (("prediction_log", "event_time"), ("label_log", "label_time")):
            client.insert(table, rows, column_names=["prediction_id", column])
        migrate(settings.model_copy(update={"retention": {"prediction_log": 7 * DAY_MS}}))
        own = {"prediction_log": "toDateTime(event_time) + toIntervalSecond(604800)"}
        assert lives(client) == own | usual
        client.command("OPTIMIZE TABLE prediction_log FINAL")
        left = client.query("SELECT prediction_id FROM predictions ORDER BY prediction_id").result_rows
        assert left == [("p0",), ("p5",)]
        assert client.query("SELECT count() FROM label_log").result_rows == [(3,)]

        kept = {"prediction_log": 30 * DAY_MS, "window_counts": DAY_MS}
        assert retention.apply(client, kept).keys() == kept.keys()
        assert retention.apply(client, kept) == {}
        migrate(settings)
        assert lives(client) == usual


def test_every_table_with_an_age_can_be_given_a_life(warehouse: LocalWarehouse) -> None:
    """All tables but those that say how far copies are; the engine takes each expression as it is compared."""
    assert set(TABLES) - set(retention.TIME_COLUMNS) == {"archive_progress", "label_index_progress"}
    everywhere = dict.fromkeys(retention.TIME_COLUMNS, 90 * DAY_MS)
    settings = ClickHouseSettings(
        host=warehouse.host, port=warehouse.port, database="lives", retention=everywhere
    )
    migrate(settings)
    with clickhouse_connect.get_client(**settings.client()) as client:
        assert lives(client) == {name: retention.clause(name, kept) for name, kept in everywhere.items()}
        assert retention.apply(client, everywhere) == {}


@pytest.mark.parametrize(
    ("kept", "says"), [({"predictions": "30d"}, "no table 'predictions'"), ({"label_log": "5m"}, "an hour")]
)
def test_a_life_that_cannot_be_meant_is_refused(kept: dict[str, str], says: str) -> None:
    """A view's name, a slip of the unit: the settings say what is possible."""
    with pytest.raises(ValidationError, match=says):
        ClickHouseSettings.model_validate({"retention": kept})
